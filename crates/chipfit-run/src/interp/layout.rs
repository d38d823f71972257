//! Moving elements: selection along axes, permutation, repetition, joining. Data and shadow move alike.

use chipfit_model::DataType;

use super::Fault;
use super::tensor::{Data, Shadow, Tensor, elements, map_data};
use crate::reference::next_position;

/// For every position along one axis of a result, the position in the source; `None`: filled.
pub(super) type AxisMap = Vec<Option<usize>>;

/// The map that keeps an axis of length `n` as it is.
pub(super) fn identity(n: usize) -> AxisMap {
    (0..n).map(Some).collect()
}

fn is_identity(map: &AxisMap, n: usize) -> bool {
    map.len() == n && map.iter().enumerate().all(|(i, &m)| m == Some(i))
}

/// The result whose element at `(i0, i1, ..)` is the source's at `(maps[0][i0], maps[1][i1], ..)`, else `fill`.
fn select<T: Copy>(source: &[T], dims: &[usize], maps: &[AxisMap], fill: T) -> Vec<T> {
    let whole = maps.iter().zip(dims).rev().take_while(|(m, n)| is_identity(m, **n)).count();
    let moved = maps.len() - whole;
    let block: usize = dims[moved..].iter().product();
    let total = maps.iter().map(Vec::len).product();
    let mut out = Vec::with_capacity(total);
    if total == 0 {
        return out;
    }
    let Some(last) = moved.checked_sub(1) else { return source.to_vec() };
    let mut position = vec![0; last];
    let rows: usize = maps[..last].iter().map(Vec::len).product();
    for _ in 0..rows {
        let base = position.iter().enumerate().try_fold(0, |at, (axis, &p)| maps[axis][p].map(|p| at * dims[axis] + p));
        for &p in &maps[last] {
            match base.zip(p) {
                Some((base, p)) => out.extend_from_slice(&source[(base * dims[last] + p) * block..][..block]),
                None => out.extend(std::iter::repeat_n(fill, block)),
            }
        }
        next_position(&mut position, |axis| maps[axis].len());
    }
    out
}

/// The result of dims `dims` whose element at `(i0, i1, ..)` is the source's at `offset + i0*strides[0] + ..`.
fn strided<T: Copy>(source: &[T], dims: &[usize], strides: &[usize]) -> Vec<T> {
    let total = dims.iter().product();
    let mut out = Vec::with_capacity(total);
    if total == 0 {
        return out;
    }
    let Some(((&last, outer), (&step, outer_strides))) = dims.split_last().zip(strides.split_last()) else {
        return source.to_vec();
    };
    let mut position = vec![0; outer.len()];
    for _ in 0..total / last {
        let base: usize = position.iter().zip(outer_strides).map(|(p, s)| p * s).sum();
        out.extend((0..last).map(|i| source[base + i * step]));
        next_position(&mut position, |axis| outer[axis]);
    }
    out
}

/// Row-major strides.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut all = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        all[axis - 1] = all[axis] * dims[axis];
    }
    all
}

fn move_shadow(shadow: &Shadow, f: impl FnOnce(&Vec<f64>) -> Vec<f64>) -> Shadow {
    match shadow {
        Shadow::Each(v) => Shadow::Each(f(v)),
        other => other.clone(),
    }
}

pub(super) fn too_large(dims: &[usize]) -> Fault {
    Fault(format!("a result of dims {dims:?} is larger than the proof computes"))
}

impl Tensor {
    /// Selects along every axis; positions without source get `fill` (and shadow 0).
    pub(super) fn selected(&self, maps: &[AxisMap], fill: f64) -> Result<Self, Fault> {
        let dims: Vec<usize> = maps.iter().map(Vec::len).collect();
        elements(&dims).ok_or_else(|| too_large(&dims))?;
        let data = match &self.data {
            Data::F32(v) => Data::F32(select(v, &self.dims, maps, fill as f32)),
            Data::F64(v) => Data::F64(select(v, &self.dims, maps, fill)),
            Data::I32(v) => Data::I32(select(v, &self.dims, maps, fill as i32)),
            Data::I64(v) => Data::I64(select(v, &self.dims, maps, fill as i64)),
        };
        let shadow = move_shadow(&self.shadow, |v| select(v, &self.dims, maps, 0.0));
        Ok(Self { dtype: self.dtype, dims, data, shadow })
    }

    /// Axis `k` of the result is axis `order[k]` of the source; `order` must be a permutation.
    pub(super) fn permuted(&self, order: &[usize]) -> Self {
        let from = strides(&self.dims);
        let dims: Vec<usize> = order.iter().map(|&a| self.dims[a]).collect();
        let steps: Vec<usize> = order.iter().map(|&a| from[a]).collect();
        let data = map_data!(&self.data, v => strided(v, &dims, &steps));
        let shadow = move_shadow(&self.shadow, |v| strided(v, &dims, &steps));
        Self { dtype: self.dtype, dims, data, shadow }
    }

    /// Repeats along axes of length 1, and along new leading axes, up to `dims`.
    pub(super) fn broadcast(&self, dims: &[usize]) -> Result<Self, Fault> {
        elements(dims).ok_or_else(|| too_large(dims))?;
        let misfit = || Fault(format!("dims {:?} do not broadcast to {dims:?}", self.dims));
        let lead = dims.len().checked_sub(self.dims.len()).ok_or_else(misfit)?;
        let mut steps = vec![0; dims.len()];
        for (axis, (&n, step)) in self.dims.iter().zip(strides(&self.dims)).enumerate() {
            if n == dims[lead + axis] {
                steps[lead + axis] = step;
            } else if n != 1 {
                return Err(misfit());
            }
        }
        let data = map_data!(&self.data, v => strided(v, dims, &steps));
        let shadow = move_shadow(&self.shadow, |v| strided(v, dims, &steps));
        Ok(Self { dtype: self.dtype, dims: dims.to_vec(), data, shadow })
    }

    /// The same elements under other dims.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Result<Self, Fault> {
        if elements(&dims) != Some(self.data.len()) {
            return Err(Fault(format!("dims {:?} cannot be reshaped to {dims:?}", self.dims)));
        }
        Ok(Self { dims, ..self.clone() })
    }

    /// Real zeros as accumulators, which they are on every scale: a phase without taps beside quantised ones.
    /// `None`: no such change is needed or possible.
    fn zeros_as_accumulators(&self, beside: &[&Self]) -> Option<Self> {
        let accumulators = beside.iter().find(|p| p.dtype == self.dtype && matches!(p.data, Data::I32(_)))?;
        let Data::F32(v) = &self.data else { return None };
        if v.iter().any(|&v| v != 0.0) {
            return None;
        }
        let scale = accumulators.shadow.at(0)?;
        Some(Self { data: Data::I32(vec![0; v.len()]), shadow: Shadow::Uniform(scale), ..self.clone() })
    }

    /// Joins tensors that agree in type and in all dims but `axis`.
    pub(super) fn concatenated(parts: &[&Self], axis: usize) -> Result<Self, Fault> {
        let changed: Vec<Option<Self>> = parts.iter().map(|p| p.zeros_as_accumulators(parts)).collect();
        let parts: Vec<&Self> = parts.iter().zip(&changed).map(|(p, c)| c.as_ref().unwrap_or(p)).collect();
        let Some(first) = parts.first() else { return Err(Fault("no input".into())) };
        let mut dims = first.dims.clone();
        dims[axis] = 0;
        for part in &parts {
            let fits = part.dims.len() == dims.len()
                && part.dims.iter().zip(&first.dims).enumerate().all(|(a, (x, y))| a == axis || x == y);
            if !fits || part.dtype != first.dtype {
                let all: Vec<_> = parts.iter().map(|p| (p.dtype.name(), &p.dims)).collect();
                return Err(Fault(format!("inputs cannot be joined along axis {axis}: {all:?}")));
            }
            dims[axis] = dims[axis].checked_add(part.dims[axis]).ok_or_else(|| too_large(&part.dims))?;
        }
        elements(&dims).ok_or_else(|| too_large(&dims))?;
        let outer: usize = dims[..axis].iter().product();
        let blocks: Vec<usize> = parts.iter().map(|p| p.dims[axis..].iter().product()).collect();
        macro_rules! join {
            ($($kind:ident),*) => {
                match &first.data {
                    $(Data::$kind(_) => {
                        let mut sources = Vec::new();
                        for part in &parts {
                            let Data::$kind(v) = &part.data else {
                                return Err(Fault("inputs of different representations cannot be joined".into()));
                            };
                            sources.push(v.as_slice());
                        }
                        Data::$kind(interleave(&sources, &blocks, outer))
                    })*
                }
            };
        }
        let data = join!(F32, F64, I32, I64);
        let shadow = match parts.iter().all(|p| matches!(p.shadow, Shadow::None)) {
            true => Shadow::None,
            false if parts.iter().all(|p| p.shadow == first.shadow && matches!(p.shadow, Shadow::Uniform(_))) => {
                first.shadow.clone()
            }
            false => {
                let each: Vec<Vec<f64>> =
                    parts.iter().map(|p| (0..p.data.len()).map(|i| p.shadow.at(i).unwrap_or(0.0)).collect()).collect();
                Shadow::Each(interleave(&each.iter().map(Vec::as_slice).collect::<Vec<_>>(), &blocks, outer))
            }
        };
        Ok(Self { dtype: first.dtype, dims, data, shadow })
    }

    /// An int64 scalar or list of `dims` of the given values.
    pub(super) fn filled(dtype: DataType, dims: Vec<usize>, data: Data) -> Result<Self, Fault> {
        Self::new(dtype, dims.clone(), data).ok_or_else(|| too_large(&dims))
    }
}

/// `outer` times: one block of every source.
fn interleave<T: Copy>(sources: &[&[T]], blocks: &[usize], outer: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(sources.iter().map(|s| s.len()).sum());
    for row in 0..outer {
        for (source, &block) in sources.iter().zip(blocks) {
            out.extend_from_slice(&source[row * block..][..block]);
        }
    }
    out
}
