//! Add, Mul, Concat and average pools.

use chipfit_model::build::{get_i, get_is, is_op};

use super::grid::Grid;
use super::walk::Operand;
use super::{LowerError, Lowering};
use crate::ops::formula::{Addition, Multiplication};
use crate::ops::function::table;
use crate::program::{Op, Tensor, TensorId, to_channels_last};

impl<'m> Lowering<'m, '_> {
    /// The Add or Mul at `position`: of two activations, or of one and a constant.
    pub(super) fn add_or_multiply(&mut self, position: usize, output: TensorId) -> Result<(), LowerError> {
        let node = self.node(position);
        let is_add = is_op(node, "Add");
        let (a, b) = (self.operand(position, &node.input[0])?, self.operand(position, &node.input[1])?);
        let to = self.tensors[output.0].clone();
        let scalar = |operand: &Operand| match operand {
            Operand::Constant { grid, bytes, .. } if bytes.len() == 1 => Some((grid.tensor(), bytes[0])),
            _ => None,
        };
        // With a single number: a table.
        let single = match (&a, &b) {
            (Operand::Tensor(id), other) => scalar(other).map(|constant| (*id, constant, false)),
            (other, Operand::Tensor(id)) => scalar(other).map(|constant| (*id, constant, true)),
            _ => None,
        };
        if let Some((id, (constant, byte), first)) = single
            && self.tensors[id.0].shape == to.shape
        {
            let from = Tensor { shape: vec![2], ..self.tensors[id.0].clone() };
            let constant = Tensor { shape: vec![1], ..constant };
            let mut table = Box::new([0; 256]);
            for (x, entry) in (0..=u8::MAX).zip(table.iter_mut()) {
                *entry = match (is_add, first) {
                    (true, false) => Addition::of(&from, &constant, &to).apply(x, byte),
                    (true, true) => Addition::of(&constant, &from, &to).apply(byte, x),
                    (false, _) => Multiplication::new(&from, &constant, &to).apply(x, byte),
                };
            }
            self.add_step(position, Op::Table(table), vec![id], output);
            return Ok(());
        }
        let (a, b) = (self.placed(position, a, &to.shape)?, self.placed(position, b, &to.shape)?);
        for id in [a, b] {
            let shape = &self.tensors[id.0].shape;
            let fits = shape.len() == to.shape.len() && shape.iter().zip(&to.shape).all(|(&s, &t)| s == t || s == 1);
            if !fits {
                let what = format!("an operand of shape {shape:?} for a result of {:?}, batch aside", to.shape);
                return Err(self.mixes(position, &what));
            }
        }
        self.add_step(position, if is_add { Op::Add } else { Op::Mul }, vec![a, b], output);
        Ok(())
    }

    /// An operand as a tensor; a constant gets a step of its own, in a shape of as many axes as `like`.
    fn placed(&mut self, position: usize, operand: Operand, like: &[usize]) -> Result<TensorId, LowerError> {
        let (shape, grid, bytes) = match operand {
            Operand::Tensor(id) => return Ok(id),
            Operand::Constant { shape, grid, bytes } => (shape, grid, bytes),
        };
        let rank = like.len() + 1;
        let mut full = vec![1; rank.saturating_sub(shape.len())];
        full.extend(&shape);
        if full.len() != rank || full[0] != 1 {
            return Err(self.mixes(position, &format!("a constant of shape {shape:?}")));
        }
        let picture = full[1..].to_vec();
        let bytes = to_channels_last(&bytes, &picture);
        let id = self.add_internal(position, picture, grid);
        self.add_step(position, Op::Constant(bytes), Vec::new(), id);
        Ok(id)
    }

    /// The Concat at `position`.
    pub(super) fn concat(&mut self, position: usize, output: TensorId) -> Result<(), LowerError> {
        let node = self.node(position);
        let to = self.tensors[output.0].clone();
        let axis = self.picture_axis(position, get_i(node, "axis").unwrap_or(1), to.shape.len())?;
        let (mut inputs, mut tables) = (Vec::new(), Vec::new());
        for name in &node.input {
            let operand = self.operand(position, name)?;
            let id = self.placed(position, operand, &to.shape)?;
            let from = &self.tensors[id.0];
            tables.push((Grid::of(from) != Grid::of(&to)).then(|| table(from, &to, &[])));
            inputs.push(id);
        }
        let like = |shape: &[usize]| {
            shape.len() == to.shape.len() && (0..shape.len()).all(|at| at == axis || shape[at] == to.shape[at])
        };
        let shapes: Vec<&[usize]> = inputs.iter().map(|id: &TensorId| self.tensors[id.0].shape.as_slice()).collect();
        if !shapes.iter().all(|shape| like(shape)) || shapes.iter().map(|s| s[axis]).sum::<usize>() != to.shape[axis] {
            let what = format!("inputs of shapes {shapes:?} for an output of {:?}", to.shape);
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        self.add_step(position, Op::Concat { axis, tables }, inputs, output);
        Ok(())
    }

    /// The AveragePool at `position`; over the whole map it is a GlobalAveragePool, as in ONNX Runtime.
    pub(super) fn average_pool(&mut self, position: usize, output: TensorId) -> Result<(), LowerError> {
        let node = self.node(position);
        let input = self.activation(position, &node.input[0])?;
        let picture = self.tensors[input.0].shape.clone();
        let kernel = self.kernel_shape(position)?;
        let window = self.window(position, &kernel, &picture)?;
        self.check_channels(position, input, output)?;
        let is_global = picture.get(1..) == Some(kernel.as_slice()) && window.pads == [0; 4];
        if is_global && window.dilation == [1, 1] {
            self.add_step(position, Op::GlobalAveragePool, vec![input], output);
            return Ok(());
        }
        self.add_step(position, Op::AveragePool(window), vec![input], output);
        Ok(())
    }

    fn check_channels(&self, position: usize, input: TensorId, output: TensorId) -> Result<(), LowerError> {
        let (from, to) = (&self.tensors[input.0], &self.tensors[output.0]);
        if from.channels() == to.channels() {
            return Ok(());
        }
        let what = format!("shapes {:?} and {:?} of its input and output", from.shape, to.shape);
        Err(self.unsupported(position, &what, "correct the model"))
    }

    /// The GlobalAveragePool at `position`, or the ReduceMean over all axes of a map.
    pub(super) fn global_average_pool(&mut self, position: usize, output: TensorId) -> Result<(), LowerError> {
        let node = self.node(position);
        let input = self.activation(position, &node.input[0])?;
        let rank = self.tensors[input.0].shape.len();
        if is_op(node, "ReduceMean") {
            let axes = match node.input.get(1).filter(|name| !name.is_empty()) {
                Some(name) => self.constant(position, name, "the axes")?.to_i64_vec().unwrap_or_default(),
                None => get_is(node, "axes").unwrap_or(&[]).to_vec(),
            };
            let mut own: Vec<usize> =
                axes.iter().map(|&axis| self.picture_axis(position, axis, rank)).collect::<Result<_, _>>()?;
            own.sort_unstable();
            if rank < 2 || !own.iter().copied().eq(1..rank) {
                let what = format!("axes {axes:?}");
                return Err(self.unsupported(position, &what, "only the mean over all axes of the map is supported"));
            }
        }
        self.check_channels(position, input, output)?;
        if rank < 2 || self.tensors[output.0].elements() != self.tensors[output.0].channels() {
            return Err(self.unsupported(
                position,
                "an input without a map, or an output with one",
                "correct the model",
            ));
        }
        self.add_step(position, Op::GlobalAveragePool, vec![input], output);
        Ok(())
    }
}
