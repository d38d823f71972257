//! Inputs and comparisons of the proof.

use chipfit_model::{ConstTensor, DataType};

use super::{Equality, NodeProof};
use crate::interp::mix;
use crate::interp::tensor::{Data, Tensor, elements, integer_range, round_to_storage, unit_roundoff};
use crate::metrics::{ImageLayout, ssim};

/// Compares two results.
pub(super) struct Judge {
    /// Whether differences are failures.
    pub(super) exact: bool,
}

/// Element `at` of the stream `key`: 64 random bits.
fn bits(key: u64, at: usize) -> u64 {
    mix(mix(key).wrapping_add((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Integers of `-range..=range`, of nominal type `dtype`.
pub(super) fn small_input(dtype: DataType, dims: &[usize], key: u64, range: i32) -> Option<Tensor> {
    let width = i64::from(range) * 2 + 1;
    let value = |at| i32::try_from((bits(key, at) >> 1) as i64 % width - i64::from(range)).ok();
    let data = (0..elements(dims)?).map(value).collect::<Option<_>>()?;
    Tensor::new(dtype, dims.to_vec(), Data::I32(data))
}

/// Random elements: floats of [-1, 1), quantised ones over their whole range, one in eight an end of it.
pub(super) fn random_input(dtype: DataType, dims: &[usize], key: u64) -> Option<Tensor> {
    let count = elements(dims)?;
    // 53 bits, from -1 to 1.
    let unit = |at| (bits(key, at) >> 11) as f64 * 2f64.powi(-52) - 1.0;
    let data = match dtype {
        DataType::Double => Data::F64((0..count).map(unit).collect()),
        t if t.is_float() => {
            let mut values: Vec<f32> = (0..count).map(|at| unit(at) as f32).collect();
            round_to_storage(t, &mut values);
            Data::F32(values)
        }
        t => {
            let (low, high) = integer_range(t)?;
            let width = u64::try_from(high - low).ok()? + 1;
            let value = |at| {
                let bits = bits(key, at);
                let end = if bits & 8 == 0 { low } else { high };
                let inside = low + i64::try_from((bits >> 4) % width).ok()?;
                i32::try_from(if bits.is_multiple_of(8) { end } else { inside }).ok()
            };
            Data::I32((0..count).map(value).collect::<Option<_>>()?)
        }
    };
    Tensor::new(dtype, dims.to_vec(), data)
}

/// The coordinates of element `at`.
fn position(dims: &[usize], mut at: usize) -> Vec<usize> {
    let mut position = vec![0; dims.len()];
    for (p, &n) in position.iter_mut().zip(dims).rev() {
        *p = at % n.max(1);
        at /= n.max(1);
    }
    position
}

fn same_form(a: &Tensor, b: &Tensor) -> Result<(), String> {
    if a.dims == b.dims && a.dtype == b.dtype {
        return Ok(());
    }
    let show = |t: &Tensor| format!("{} {:?}", t.dtype.name(), t.dims);
    Err(format!("the original gives {}, the written model {}", show(a), show(b)))
}

impl Judge {
    /// Whether type, shape and all elements are equal.
    pub(super) fn equal(&self, a: &Tensor, b: &Tensor) -> Equality {
        if let Err(why) = same_form(a, b) {
            return Equality::Differs { position: Vec::new(), why };
        }
        if a.data == b.data {
            return Equality::Equal;
        }
        let (x, y) = (a.data.to_f64(), b.data.to_f64());
        let count = x.iter().zip(&y).filter(|(x, y)| x != y).count();
        let Some(at) = x.iter().zip(&y).position(|(x, y)| x != y) else {
            return Equality::Differs { position: Vec::new(), why: "the two sides compute differently".into() };
        };
        let position = position(&a.dims, at);
        let why = format!(
            "{count} of {} elements differ, first at {position:?}: expected {}, found {}",
            x.len(),
            x[at],
            y[at]
        );
        Equality::Differs { position, why }
    }

    /// Like [`Self::equal`], but where `terms` (one number per spatial position) is 0 nothing is compared: there
    /// the result is the bias alone, whose steps need not be those of an accumulator.
    pub(super) fn equal_sums(&self, a: &Tensor, b: &Tensor, terms: &[u64]) -> Equality {
        let without_bias = |t: &Tensor| match &t.data {
            Data::I32(v) => {
                let keep = v.iter().zip(terms.iter().cycle()).map(|(&v, &n)| if n == 0 { 0 } else { v });
                Tensor { data: Data::I32(keep.collect()), ..t.clone() }
            }
            _ => t.clone(),
        };
        match self.equal(a, b) {
            Equality::Differs { .. } if a.dims == b.dims && terms.contains(&0) => {
                self.equal(&without_bias(a), &without_bias(b))
            }
            other => other,
        }
    }

    /// Notes the largest differences.
    pub(super) fn measure(&self, a: &Tensor, b: &Tensor, proof: &mut NodeProof) {
        if a.dims != b.dims {
            (proof.max_abs, proof.max_rel) = (f64::INFINITY, f64::INFINITY);
            return;
        }
        if !self.exact {
            proof.ssim = match (proof.ssim, similarity(a, b)) {
                (Some(before), Some(now)) => Some(before.min(now)),
                (before, now) => before.or(now),
            };
        }
        let (a, b) = (a.data.to_f64(), b.data.to_f64());
        let mut largest = 0f64;
        let mut max_abs = 0f64;
        for (&a, &b) in a.iter().zip(&b) {
            // Of two equal infinities the difference is no number.
            let difference = if a == b { 0.0 } else { (a - b).abs() };
            max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
            largest = largest.max(a.abs());
        }
        proof.max_abs = proof.max_abs.max(max_abs);
        if largest > 0.0 {
            proof.max_rel = proof.max_rel.max(max_abs / largest);
        } else if max_abs > 0.0 {
            proof.max_rel = f64::INFINITY;
        }
    }

    /// Judges floats: `a` with its allowed errors as shadow, `b` as a runtime computes it.
    pub(super) fn within_bound(&self, a: &Tensor, b: &Tensor, proof: &mut NodeProof) -> Result<(), String> {
        if !self.exact {
            return Ok(());
        }
        same_form(a, b)?;
        let (x, y) = (a.data.to_f64(), b.data.to_f64());
        let (u, tiniest, greatest) = storage(a.dtype);
        let mut worst = 0f64;
        let mut first = None;
        for (at, (&x, &y)) in x.iter().zip(&y).enumerate() {
            // Both sides of a result that is no finite number to begin with.
            if !x.is_finite() && !y.is_finite() {
                continue;
            }
            let sums = a.shadow.at(at).ok_or("the reference gives no bound")?;
            let allowed = sums + u * x.abs().max(if y.is_finite() { y.abs() } else { 0.0 }) + tiniest;
            // Where the exact value is not representable, a runtime gives infinity.
            if y.is_infinite() && x.signum() == y.signum() && x.abs() + allowed >= greatest {
                continue;
            }
            let difference = (x - y).abs();
            let ratio = if difference == 0.0 { 0.0 } else { difference / allowed };
            if ratio.is_nan() || ratio > 1.0 {
                first.get_or_insert((at, x, y, allowed));
            }
            worst = if ratio.is_nan() { f64::INFINITY } else { worst.max(ratio) };
        }
        proof.worst_ratio = Some(proof.worst_ratio.map_or(worst, |w| w.max(worst)));
        match first {
            None => Ok(()),
            Some((at, x, y, allowed)) => Err(format!(
                "element {:?}: expected {x:e}, found {y:e}, allowed difference {allowed:e}",
                position(&a.dims, at)
            )),
        }
    }
}

/// The structural similarity of two batches of images, all channels; `None` for what is no image.
fn similarity(a: &Tensor, b: &Tensor) -> Option<f64> {
    let [_, _, _, _] = a.dims.as_slice() else { return None };
    let image = |t: &Tensor| {
        ConstTensor::from_f32(t.dims.clone(), &t.data.to_f64().iter().map(|&v| v as f32).collect::<Vec<_>>())
    };
    ssim(&image(a)?, &image(b)?, ImageLayout::ChannelsFirst, None).ok()
}

/// Half a unit, half the smallest step, and the greatest finite number of the type that a result is rounded to
/// once; float and double are what is added up in, so they round no further.
fn storage(dtype: DataType) -> (f64, f64, f64) {
    match dtype {
        DataType::Float16 => (unit_roundoff(dtype), 2f64.powi(-25), 65504.0),
        DataType::Bfloat16 => (unit_roundoff(dtype), 2f64.powi(-134), f64::from(half::bf16::MAX.to_f32())),
        DataType::Double => (0.0, 0.0, f64::MAX),
        _ => (0.0, 0.0, f64::from(f32::MAX)),
    }
}
