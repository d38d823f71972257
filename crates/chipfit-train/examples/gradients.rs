//! Gradients of a QDQ model for other programs to compare with.
//!
//! `gradients MODEL.onnx PICTURES.f32 LABELS.u8 FOLDER [FAULTS.toml]`
//!
//! PICTURES holds float pictures in the model's layout, little-endian, one after another; LABELS one byte each. The
//! simulator computes them (with the faults of trial 0, seed 0), the loss is the mean cross-entropy. FOLDER receives
//!
//! - `tensors.json`: for every tensor of the program name, shape (batch left out), layout (`channels_last` or
//!   `row_major`), scale, zero point (of biased bytes), offset into `tensors.u8` and length of all pictures;
//! - `tensors.u8`: the biased bytes that were computed, tensor after tensor, picture after picture;
//! - `steps.json`: for every step name, operator, inputs and output (positions in `tensors.json`), and, where it has
//!   them, `low`, `high`, geometry, weight and bias names, weight scales and zero points;
//! - `parameters.json`: for every parameter name, kind, length, offset into the two files below, in elements;
//! - `values.f32`: real values of the integers, weights as `[out][kernel row][kernel column][in / groups]`;
//! - `gradients.f32`: gradients by these values;
//! - `loss.json`: the loss, and its gradient by the real logits.

use std::path::Path;
use std::sync::Arc;

use chipfit_model::{Limits, Model};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{
    Batch, Faults, FaultsFile, Op, Processor as _, Program, Request, Simulator, SimulatorOptions, TensorId,
};
use chipfit_train::Backward;
use chipfit_train::loss::Loss;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|chunk| chunk.try_into().map_or(f32::NAN, f32::from_le_bytes)).collect()
}

fn write_floats(path: &Path, arrays: &[Vec<f32>]) -> std::io::Result<()> {
    let bytes: Vec<u8> = arrays.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(path, bytes)
}

fn steps(program: &Program) -> Vec<Value> {
    let describe = |step: &chipfit_npu::Step| {
        let inputs: Vec<usize> = step.inputs.iter().map(|id| id.0).collect();
        let mut value =
            json!({ "name": step.name, "op_type": step.op_type, "inputs": inputs, "output": step.output.0 });
        if let Op::Linear(linear) = &step.op {
            let g = &linear.geometry;
            value["linear"] = json!({
                "low": linear.low, "high": linear.high, "weights": linear.weights_name, "bias": linear.bias_name,
                "weight_scales": linear.weight_scales, "weight_zero_points": linear.weight_zero_points,
                "in_channels": g.in_channels, "out_channels": g.out_channels, "groups": g.groups,
                "kernel": g.kernel, "stride": g.stride, "dilation": g.dilation, "pads": g.pads,
            });
        }
        value
    };
    program.steps().iter().map(describe).collect()
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, pictures, labels, folder, faults @ ..] = arguments.as_slice() else {
        return Err("usage: gradients MODEL.onnx PICTURES.f32 LABELS.u8 FOLDER [FAULTS.toml]".into());
    };
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    let model = Model::open(Path::new(model), &Limits::default())?;
    let program = Program::lower(&model, &LowerOptions::default())?;
    let input = program.quantise_input(&floats(&std::fs::read(pictures)?));
    let labels = std::fs::read(labels)?;
    let ids: Vec<u64> = (0..).take(labels.len()).collect();
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default())?;
    if let [path] = faults {
        let file = FaultsFile::parse(&std::fs::read_to_string(path)?)?;
        simulator = simulator.with_faults(Arc::new(Faults::resolve(&file, &program, 0)?), 0);
    }
    let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
    let batch = Batch { pictures: &ids, input: &input };
    let trace = simulator.forward(&Request { batch, trial: 0, views: &[], wanted: &wanted })?;

    let output = program.tensor(program.output());
    let classes = output.elements();
    let mut gradient = vec![0.0; trace.output.len()];
    let mut loss = 0.0;
    for ((bytes, gradient), &label) in
        trace.output.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes)).zip(&labels)
    {
        let logits: Vec<f32> = bytes.iter().map(|&byte| output.real(byte)).collect();
        loss += Loss::default().picture(&logits, label.into(), None, 1.0 / labels.len() as f32, gradient);
    }
    loss /= labels.len() as f64;
    let backward = Backward::new(&program, 1)?;
    let mut gradients = backward.zeros();
    backward.run(&input, &trace, &gradient, &mut gradients)?;

    let (mut bytes, mut tensors) = (Vec::new(), Vec::new());
    for (id, tensor) in program.tensors().iter().enumerate() {
        let own = trace.tensors.get(&TensorId(id)).map_or(&[][..], Vec::as_slice);
        tensors.push(json!({
            "name": tensor.name, "shape": tensor.shape, "scale": tensor.scale, "zero_point": tensor.zero_point,
            "layout": if tensor.is_channels_last() { "channels_last" } else { "row_major" },
            "offset": bytes.len(), "length": own.len(),
        }));
        bytes.extend_from_slice(own);
    }
    std::fs::write(folder.join("tensors.u8"), bytes)?;
    std::fs::write(folder.join("tensors.json"), serde_json::to_vec_pretty(&tensors)?)?;
    std::fs::write(folder.join("steps.json"), serde_json::to_vec_pretty(&steps(&program))?)?;
    let (mut offset, mut parameters, mut values) = (0, Vec::new(), Vec::new());
    for parameter in backward.parameters() {
        parameters.push(json!({
            "name": parameter.name, "kind": format!("{:?}", parameter.kind).to_lowercase(),
            "offset": offset, "length": parameter.length,
        }));
        offset += parameter.length;
        values.push(parameter.real(&parameter.held(&program)?));
    }
    std::fs::write(folder.join("parameters.json"), serde_json::to_vec_pretty(&parameters)?)?;
    write_floats(&folder.join("values.f32"), &values)?;
    write_floats(&folder.join("gradients.f32"), &gradients)?;
    std::fs::write(
        folder.join("loss.json"),
        serde_json::to_vec_pretty(&json!({ "loss": loss, "output_gradient": gradient }))?,
    )?;
    println!("loss {loss}");
    Ok(())
}
