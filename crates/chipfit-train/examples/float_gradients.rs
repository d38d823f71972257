//! Loss, gradients and running statistics of one batch, for `tests/python/gradients.py`.
//!
//! `float_gradients MODEL.onnx OUT.onnx`: MODEL holds the batch in initializers that no node reads (`given/x`,
//! `given/labels`, `given/smoothing`); OUT is MODEL with `found/loss`, `found/gradient/NAME` and `found/running/NAME`.

use std::error::Error;
use std::path::Path;

use chipfit_model::onnx::Overwrite;
use chipfit_model::{ConstTensor, Limits, Model};
use chipfit_train::loss::Loss;
use chipfit_train::scratch::Passes;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = arguments.as_slice() else { return Err("usage: float_gradients MODEL.onnx OUT.onnx".into()) };
    let mut model = Model::open(Path::new(model), &Limits::default())?;
    let given = |name: &str| -> Result<Vec<f64>, Box<dyn Error>> {
        let found = model.graph().initializer.iter().find(|tensor| tensor.name.as_deref() == Some(name));
        let tensor = model.tensor(found.ok_or_else(|| format!("the model has no initializer '{name}'"))?)?;
        Ok(tensor.to_f64_vec().ok_or("it holds no numbers")?)
    };
    let x: Vec<f32> = given("given/x")?.iter().map(|&x| x as f32).collect();
    let labels: Vec<u32> = given("given/labels")?.iter().map(|&label| label as u32).collect();
    let smoothing = given("given/smoothing")?.first().copied().unwrap_or_default() as f32;
    let mut passes = Passes::new(&model)?;
    let loss = passes.pass(&x, &labels, Loss { smoothing, ..Loss::default() })?;
    let mut found =
        vec![("found/loss".to_owned(), ConstTensor::from_f32(Vec::new(), &[loss as f32]).ok_or("no scalar")?)];
    let gradients = passes.gradients()?;
    for (name, tensor) in passes.network().tensors()? {
        if !gradients.contains_key(&name) {
            found.push((format!("found/running/{name}"), tensor));
        }
    }
    found.extend(gradients.into_iter().map(|(name, tensor)| (format!("found/gradient/{name}"), tensor)));
    let graph = model.proto.graph.get_or_insert_default();
    graph.initializer.extend(found.iter().map(|(name, tensor)| tensor.to_proto(name)));
    model.write(Path::new(out), Overwrite::Replace)?;
    Ok(())
}
