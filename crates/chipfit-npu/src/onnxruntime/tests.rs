//! The simulator and ONNX Runtime on the same models: the same bytes, through the same trait.
//!
//! Skips, and says so, where ONNX Runtime is not installed (`CHIPFIT_PYTHON`, `ORT_DYLIB_PATH`).

use chipfit_model::build::attr_is;
use chipfit_run::engine::Places;

use super::*;
use crate::lower::LowerOptions;
use crate::processor::Batch;
use crate::testing::Numbers;
use crate::testing::qdq::Qdq;
use crate::{Simulator, SimulatorOptions};

fn runtime() -> Option<OnnxRuntime> {
    let found = OnnxRuntime::find(&Places::from_environment());
    if let Err(why) = &found {
        eprintln!("SKIPPED: {why}");
    }
    found.ok()
}

/// Convolution, Relu, pool, then a matrix; the pool's QuantizeLinear has the convolution's grid.
fn network(batch: i64) -> Model {
    let mut qdq = Qdq::new(&[batch, 3, 8, 8], 0.02, 0);
    let x = qdq.quantised("x", 0.02, 100);
    let w = qdq.weights(&[5, 3, 3, 3], &[0.01, 0.02, 0.011, 0.013, 0.007]);
    let products = [0.01, 0.02, 0.011, 0.013, 0.007].map(|w: f32| 0.02f32 * w);
    let b = qdq.bias(&[100, -2000, 300, 1000, 50], &products);
    let conv = qdq.node("Conv", &[&x, &w, &b], vec![attr_is("pads", &[1, 1, 1, 1])]);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let pool = qdq.node("MaxPool", &[&relu], vec![attr_is("kernel_shape", &[2, 2]), attr_is("strides", &[2, 2])]);
    let pool = qdq.quantised(&pool, 0.06, 0);
    let flat = qdq.node("Flatten", &[&pool], vec![]);
    let w = qdq.weights(&[80, 10], &[0.004]);
    let y = qdq.node("MatMul", &[&flat, &w], vec![]);
    let y = qdq.quantised(&y, 0.2, 128);
    qdq.model(&y)
}

fn pictures(program: &Program, count: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(5);
    (0..count * program.tensor(program.input()).elements()).map(|_| numbers.bits() as u8).collect()
}

fn trace(processor: &mut dyn Processor, input: &[u8], count: usize, wanted: &[TensorId]) -> Trace {
    let pictures: Vec<u64> = (0..count as u64).collect();
    let request = Request { batch: Batch { pictures: &pictures, input }, trial: 0, views: &[], wanted };
    processor.forward(&request).unwrap()
}

#[test]
fn simulator_and_onnx_runtime_give_the_same_bytes() {
    let Some(runtime) = runtime() else { return };
    for batch in [1, 4] {
        let model = network(batch);
        let program = Program::lower(&model, &LowerOptions::default()).unwrap();
        let input = pictures(&program, 6);
        // The convolution's own tensor is internal: ONNX Runtime quantises behind the pool.
        let shown: Vec<TensorId> =
            (0..program.tensors().len()).map(TensorId).filter(|id| !program.tensor(*id).is_internal()).collect();
        assert!(shown.len() >= 3);
        let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
        let mut processor = OnnxRuntimeProcessor::new(&model, program.clone(), runtime.clone()).unwrap();
        let (ours, theirs) = (trace(&mut simulator, &input, 6, &shown), trace(&mut processor, &input, 6, &shown));
        assert_eq!(ours.output, theirs.output);
        for id in &shown {
            let name = &program.tensor(*id).name;
            if *id != program.input() {
                assert_eq!(ours.tensors[id], theirs.tensors[id], "{name}");
            }
        }
        assert_eq!(theirs.strikes, Some(0));
    }
}

#[test]
fn a_change_of_constants_reaches_both() {
    let Some(runtime) = runtime() else { return };
    let model = network(1);
    let program = Program::lower(&model, &LowerOptions::default()).unwrap();
    let input = pictures(&program, 2);
    let mut deltas = Vec::new();
    for step in program.steps() {
        let Op::Linear(linear) = &step.op else { continue };
        let changes = (0..20).map(|at| (at * 3, i32::from(at as i8) * 5 - 40)).collect();
        deltas.push(TensorDelta { name: linear.weights_name.clone(), changes });
        if let Some(name) = &linear.bias_name {
            deltas.push(TensorDelta { name: name.clone(), changes: vec![(0, 4000), (3, -4000)] });
        }
    }
    assert_eq!(deltas.len(), 3);
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
    let mut processor = OnnxRuntimeProcessor::new(&model, program, runtime).unwrap();
    let before = trace(&mut processor, &input, 2, &[]).output;
    simulator.update(&deltas).unwrap();
    processor.update(&deltas).unwrap();
    let after = trace(&mut processor, &input, 2, &[]).output;
    assert_ne!(before, after);
    assert_eq!(trace(&mut simulator, &input, 2, &[]).output, after);
    assert_eq!(simulator.program(), processor.program());
    let unknown = TensorDelta { name: "nothing".to_owned(), changes: vec![] };
    assert!(matches!(processor.update(&[unknown]), Err(ProcessorError::Update { .. })));
    assert_eq!(trace(&mut processor, &input, 2, &[]).output, after);
}

#[test]
fn wrong_lengths_and_hidden_tensors_are_errors() {
    let Some(runtime) = runtime() else { return };
    let model = network(1);
    let program = Program::lower(&model, &LowerOptions::default()).unwrap();
    let hidden = (0..program.tensors().len()).map(TensorId).find(|id| program.tensor(*id).is_internal()).unwrap();
    let mut processor = OnnxRuntimeProcessor::new(&model, program, runtime).unwrap();
    let request = Request { batch: Batch { pictures: &[0], input: &[1, 2, 3] }, trial: 0, views: &[], wanted: &[] };
    assert!(matches!(processor.forward(&request), Err(ProcessorError::InputLength { bytes: 3, .. })));
    let input = pictures(processor.program(), 1);
    let request = Request { batch: Batch { pictures: &[0], input: &input }, trial: 0, views: &[], wanted: &[hidden] };
    let text = processor.forward(&request).unwrap_err().to_string();
    assert!(text.contains("does not show"), "{text}");
}
