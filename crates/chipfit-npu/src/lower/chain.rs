//! Links: nodes that commute with rounding, turned into tables, pools and moves of bytes.
//!
//! `QuantizeLinear(f(x))` of a stored byte is a table of 256 entries; moving a value and rounding it can be done in
//! either order; so can rounding and taking a maximum, because rounding never changes an order. Hence a chain of
//! links between two integer tensors needs one table at most, moves on either side of it, and pools before it
//! (on the source's grid) or behind it (on the target's).

use super::grid::Grid;
use super::movement::Movement;
use super::{LowerError, Lowering, op_type};
use crate::ops::formula::quantize;
use crate::ops::function::{Function, table};
use crate::program::{Op, TensorId, Window};

/// A step to come: its node, what it computes, and the shape of its result where that changes.
type Planned = (usize, Op, Option<Vec<usize>>);

/// A node that commutes with rounding.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The node.
    pub position: usize,
    /// What it does.
    pub kind: LinkKind,
}

/// What a link does.
#[derive(Clone, Debug)]
pub(super) enum LinkKind {
    /// A function of every value.
    Function(Function),
    /// Moves values, may fill in a constant.
    Move(Movement),
    /// Maximum of windows, and the shape of the result.
    MaxPool(Window, Vec<usize>),
}

impl Link {
    /// Whether the link maps values of the grid to values of the grid, so that no rounding is needed behind it.
    pub(super) fn is_exact_on(&self, grid: Grid) -> bool {
        let on = grid.tensor();
        match &self.kind {
            LinkKind::Function(function) => (0..=u8::MAX).all(|byte| {
                let value = function.at(on.real(byte));
                on.real(quantize(&on, value)) == value
            }),
            LinkKind::Move(movement) => !movement.fills() || on.real(quantize(&on, movement.fill)) == movement.fill,
            LinkKind::MaxPool(..) => true,
        }
    }
}

impl Lowering<'_, '_> {
    /// The steps from the tensor `start` through `links` to a tensor `name` on `grid` (internal where `name` is
    /// empty); `start` itself where nothing is to be done.
    pub(super) fn apply(
        &mut self,
        position: usize,
        start: TensorId,
        mut links: Vec<Link>,
        grid: Grid,
        name: &str,
    ) -> Result<TensorId, LowerError> {
        let source = Grid::of(&self.tensors[start.0]);
        let is_function = |link: &Link| matches!(link.kind, LinkKind::Function(_));
        let is_pool = |link: &Link| matches!(link.kind, LinkKind::MaxPool(..));
        let first = links.iter().position(is_function);
        let last = links.iter().rposition(is_function);
        let (mut plan, needs_table): (Vec<Planned>, bool) = match (first, last) {
            (Some(first), Some(last)) => {
                if let Some(pool) = links[first..=last].iter().find(|link| is_pool(link)) {
                    let what = "a maximum pool between functions that are not quantised";
                    return Err(self.unsupported(pool.position, what, "quantise its input"));
                }
                (Vec::new(), true)
            }
            _ => (Vec::new(), source != grid),
        };
        // Up to here on the source's grid: pools before the first function, and what stands before them.
        let before = first.and_then(|first| links[..first].iter().rposition(is_pool)).map_or(0, |pool| pool + 1);
        if let Some(link) = links[..before].iter().find(|link| !link.is_exact_on(source)) {
            return Err(self.unsupported(
                link.position,
                "its fill value is not on the input's grid",
                "quantise its output",
            ));
        }
        let functions: Vec<(usize, Function)> = links
            .iter()
            .filter_map(|link| if let LinkKind::Function(f) = link.kind { Some((link.position, f)) } else { None })
            .collect();
        self.bake_fills(&mut links[before..]);
        let mut shape = self.tensors[start.0].shape.clone();
        let mut after = Vec::new();
        for (at, link) in links.into_iter().enumerate() {
            let on = if at < before { source } else { grid };
            let step = match link.kind {
                LinkKind::Function(_) => continue,
                LinkKind::MaxPool(window, result) => {
                    shape = result.clone();
                    (link.position, Op::MaxPool(window), Some(result))
                }
                LinkKind::Move(movement) => {
                    let result = movement.shape.clone();
                    let fill = quantize(&on.tensor(), movement.fill);
                    let op = movement.into_op(&shape, fill);
                    shape = result.clone();
                    (link.position, op, Some(result))
                }
            };
            if at < before { plan.push(step) } else { after.push(step) }
        }
        if needs_table {
            let list: Vec<Function> = functions.iter().map(|(_, function)| *function).collect();
            let at = functions.last().map_or(position, |(at, _)| *at);
            plan.push((at, Op::Table(table(&source.tensor(), &grid.tensor(), &list)), None));
        }
        plan.extend(after);
        let plan = merged(plan);
        let (mut at, steps, mut on) = (start, plan.len(), source);
        for (number, (position, op, shape)) in plan.into_iter().enumerate() {
            if matches!(op, Op::Table(_)) {
                on = grid;
            }
            let shape = shape.unwrap_or_else(|| self.tensors[at.0].shape.clone());
            let is_last = number + 1 == steps && !name.is_empty();
            let to = if is_last { self.add_tensor(name, shape, on) } else { self.add_internal(position, shape, on) };
            self.add_step(position, op, vec![at], to);
            at = to;
        }
        Ok(at)
    }

    /// Applies to each move's fill value the functions behind it, which are about to be taken out of the chain.
    pub(super) fn bake_fills(&self, links: &mut [Link]) {
        let functions: Vec<Option<Function>> = links
            .iter()
            .map(|link| if let LinkKind::Function(function) = link.kind { Some(function) } else { None })
            .collect();
        for (at, link) in links.iter_mut().enumerate() {
            if let LinkKind::Move(movement) = &mut link.kind {
                movement.fill = functions[at + 1..].iter().flatten().fold(movement.fill, |x, function| function.at(x));
            }
        }
    }

    /// An operator right on integer tensors, without DequantizeLinear: moves and maximum pools.
    pub(super) fn lower_on_integers(&mut self, position: usize, from: TensorId) -> Result<(), LowerError> {
        let node = self.node(position);
        let kind = if chipfit_model::build::is_op(node, "MaxPool") {
            let (window, shape) = self.max_pool(position)?;
            LinkKind::MaxPool(window, shape)
        } else {
            match self.movement(position, &node.output[0])? {
                // An integer fill: its value counts in bytes, not in real numbers.
                Some(movement) if !movement.fills() => LinkKind::Move(movement),
                _ => {
                    let what = format!("{} on the integer tensor '{}'", op_type(node), self.tensors[from.0].name);
                    return Err(self.unsupported(
                        position,
                        &what,
                        "put it between DequantizeLinear and QuantizeLinear",
                    ));
                }
            }
        };
        let grid = Grid::of(&self.tensors[from.0]);
        let id = self.apply(position, from, vec![Link { position, kind }], grid, &node.output[0])?;
        self.integers.insert(node.output[0].clone(), id);
        Ok(())
    }
}

/// Neighbouring moves made one, where they fill in one value at most.
fn merged(plan: Vec<Planned>) -> Vec<Planned> {
    use crate::program::Source;
    let mut merged: Vec<Planned> = Vec::new();
    for step in plan {
        if let (Some((_, Op::Move { sources: first, fill: first_fill }, _)), (_, Op::Move { sources, fill }, _)) =
            (merged.last(), &step)
        {
            let fills = |sources: &[Source]| sources.contains(&Source::Fill);
            let (one, two) = (fills(first), fills(sources));
            if !(one && two) || first_fill == fill {
                let fill = if one { *first_fill } else { *fill };
                let through = |source: &Source| match source {
                    Source::Byte(index) => first[*index as usize],
                    Source::Fill => Source::Fill,
                };
                let op = Op::Move { sources: sources.iter().map(through).collect(), fill };
                merged.pop();
                merged.push((step.0, op, step.2));
                continue;
            }
        }
        merged.push(step);
    }
    merged
}
