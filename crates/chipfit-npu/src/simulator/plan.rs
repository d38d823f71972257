//! Which buffer holds which tensor when, and how many pictures go through the network together.
//!
//! Promises: two tensors share a buffer only if no step needs both; a tensor's buffer holds as many pictures as a chunk.

use crate::program::{Program, TensorId};

/// Bytes of activations that should stay in a core's second-level cache.
const CACHE_BYTES: usize = 1 << 20;

/// Where the tensors of one chunk lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// By tensor: its buffer; `None` for a tensor that no step touches.
    pub(crate) buffers: Vec<Option<usize>>,
    /// By buffer: bytes of one picture.
    pub(crate) capacities: Vec<usize>,
    /// Pictures of a chunk.
    pub(crate) chunk: usize,
}

impl Layout {
    /// Assigns buffers by liveness; `chunk` overrides the number of pictures.
    pub(crate) fn new(program: &Program, chunk: Option<usize>) -> Self {
        let mut last_use = vec![None; program.tensors().len()];
        for (position, step) in program.steps().iter().enumerate() {
            last_use[step.output.0] = Some(position);
            for input in &step.inputs {
                last_use[input.0] = Some(position);
            }
        }
        last_use[program.output().0] = Some(program.steps().len());
        let mut layout = Self { buffers: vec![None; program.tensors().len()], capacities: Vec::new(), chunk: 1 };
        let mut free = Vec::new();
        layout.assign(program, program.input(), &mut free);
        for (position, step) in program.steps().iter().enumerate() {
            layout.assign(program, step.output, &mut free);
            let mut done: Vec<TensorId> = step.inputs.iter().copied().chain([step.output]).collect();
            done.sort_unstable();
            done.dedup();
            for tensor in done {
                if last_use[tensor.0] == Some(position) {
                    free.extend(layout.buffers[tensor.0]);
                }
            }
        }
        let bytes: usize = layout.capacities.iter().sum();
        layout.chunk = chunk.unwrap_or_else(|| (CACHE_BYTES / bytes.max(1)).clamp(1, 16)).max(1);
        layout
    }

    /// Gives `tensor` a free buffer: the smallest that holds it, else the largest, enlarged.
    fn assign(&mut self, program: &Program, tensor: TensorId, free: &mut Vec<usize>) {
        let bytes = program.tensor(tensor).elements();
        let fitting =
            free.iter().copied().filter(|&at| self.capacities[at] >= bytes).min_by_key(|&at| (self.capacities[at], at));
        let chosen = fitting.or_else(|| free.iter().copied().max_by_key(|&at| (self.capacities[at], at)));
        let buffer = match chosen {
            Some(at) => {
                free.retain(|&other| other != at);
                at
            }
            None => {
                self.capacities.push(0);
                self.capacities.len() - 1
            }
        };
        self.capacities[buffer] = self.capacities[buffer].max(bytes);
        self.buffers[tensor.0] = Some(buffer);
    }

    /// The buffer of a tensor that a step touches.
    pub(crate) fn buffer(&self, tensor: TensorId) -> usize {
        self.buffers[tensor.0].unwrap_or(0)
    }
}
