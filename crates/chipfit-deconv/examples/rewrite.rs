//! Rewrites a model without proof: `rewrite IN OUT [FORM] [INTERLEAVE]`. For experiments; `chipfit rewrite` proves.
use chipfit_deconv::{Form, Interleave, Options, plan};
use chipfit_model::{Index, Limits, Model, onnx::Overwrite, shape};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let mut model = Model::open(args[1].as_ref(), &Limits::default())?;
    let index = Index::new(&model);
    let shapes = shape::infer(&index, &Default::default())?;
    let options = Options {
        form: args.get(3).and_then(|f| Form::ALL.into_iter().find(|x| x.name() == f)),
        interleave: args.get(4).and_then(|i| {
            [Interleave::DepthToSpace, Interleave::Reshape, Interleave::Concat].into_iter().find(|x| x.name() == i)
        }),
        ..Options::default()
    };
    let rewrite = plan(&index, &shapes, &options)?;
    for n in &rewrite.nodes {
        println!(
            "{} {:?} {:?} k{:?} s{:?} macs {:?} -> {:?}: {}",
            n.name, n.form, n.interleave, n.kernel, n.strides, n.macs_before, n.macs_after, n.reason
        );
    }
    model.apply(&rewrite.patch)?;
    model.write(args[2].as_ref(), Overwrite::Replace)?;
    Ok(())
}
