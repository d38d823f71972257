//! Calibration: runs the float model on pictures and keeps what ranges need.
//!
//! Every quantised tensor that has a range of its own is made an output of the folded model, which one engine runs
//! batch by batch. Kept are the least and greatest value and, for the methods that need it, a [`Histogram`]; both
//! are the same for any order and any batches of the same pictures.

use std::collections::BTreeMap;

use bytes::Bytes;
use chipfit_model::build::value_info;
use chipfit_model::{ConstTensor, DataType};
use chipfit_run::engine::{Engine, Session};

use crate::entropy;
use crate::error::QuantizeError;
use crate::histogram::Histogram;
use crate::options::{Activations, Method, Options};
use crate::prepare::Prepared;
use crate::scale::Range;
use crate::simplify::{forget_shape, to_f32};

/// What calibration says about a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TensorRange {
    /// What keeps its meaning.
    pub range: Range,
    /// The least and greatest value seen.
    pub seen: Range,
    /// The share of values seen that lie outside `range` (to a bin of the histogram; 0 for min-max).
    pub saturated: f64,
}

/// The ranges of all tensors that need one of their own, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    /// By tensor of [`Prepared::observed`].
    pub tensors: BTreeMap<String, TensorRange>,
}

impl Ranges {
    /// Sets the range of a tensor, for ranges that come from elsewhere.
    pub fn set(&mut self, tensor: &str, low: f32, high: f32) {
        let range = Range::new(low, high);
        self.tensors.insert(tensor.to_owned(), TensorRange { range, seen: range, saturated: 0.0 });
    }
}

/// What is kept of a tensor.
#[derive(Clone, Debug)]
struct Observer {
    low: f32,
    high: f32,
    histogram: Option<Histogram>,
}

/// A calibration under way.
pub struct Calibration<'p> {
    prepared: &'p Prepared,
    session: Box<dyn Session>,
    options: Options,
    observers: BTreeMap<&'p str, Observer>,
}

impl<'p> Calibration<'p> {
    /// Loads the model with all observed tensors as outputs into `engine`.
    ///
    /// # Errors
    /// [`QuantizeError::Option`] for a percentile outside 0 to 100, [`QuantizeError::Engine`].
    pub fn new(prepared: &'p Prepared, engine: &dyn Engine, options: &Options) -> Result<Self, QuantizeError> {
        if let Method::Percentile(p) = options.method
            && !(p > 0.0 && p <= 100.0)
        {
            let why = "a percentile lies above 0 and is at most 100";
            return Err(QuantizeError::Option { option: "percentile", value: p.to_string(), why });
        }
        let mut graph = prepared.graph.clone();
        let values = prepared.observed().iter().filter(|name| !graph.is_input(name));
        graph.outputs = values.map(|name| value_info(name, DataType::Float, &[])).collect();
        graph.outputs.iter_mut().for_each(forget_shape);
        let bytes = Bytes::from(graph.to_model()?.to_bytes().map_err(|_| QuantizeError::TooLong)?);
        let session = engine.load(&bytes, None)?;
        let histogram = (options.method != Method::MinMax).then(Histogram::default);
        let observer = Observer { low: f32::INFINITY, high: f32::NEG_INFINITY, histogram };
        let observers = prepared.observed().iter().map(|name| (name.as_str(), observer.clone())).collect();
        Ok(Self { prepared, session, options: *options, observers })
    }

    /// Runs the model on one set of inputs and takes in all values.
    ///
    /// # Errors
    /// [`QuantizeError::Engine`], [`QuantizeError::NotFinite`].
    pub fn observe(&mut self, inputs: &[(String, ConstTensor)]) -> Result<(), QuantizeError> {
        let results = self.session.run(inputs)?;
        for (name, tensor) in inputs.iter().chain(&results) {
            if let Some(observer) = self.observers.get_mut(name.as_str()) {
                observer.take(name, tensor)?;
            }
        }
        Ok(())
    }

    /// [`Self::observe`] for a model of one float input: `values` in row-major order.
    ///
    /// # Errors
    /// [`QuantizeError::Unsupported`] where the model has several inputs or `values` do not fit `dims`; others as
    /// for [`Self::observe`].
    pub fn observe_floats(&mut self, dims: &[usize], values: &[f32]) -> Result<(), QuantizeError> {
        let unsupported = |what: String, hint| QuantizeError::Unsupported { what, hint };
        let [name] = self.session.inputs() else {
            return Err(unsupported("more than one input".to_owned(), "give them all by name"));
        };
        let name = name.clone();
        let tensor = ConstTensor::from_f32(dims.to_vec(), values).ok_or_else(|| {
            unsupported(
                format!("input '{name}' of {} values for shape {dims:?}", values.len()),
                "give as many values as the shape has",
            )
        })?;
        self.observe(&[(name, tensor)])
    }

    /// The ranges.
    ///
    /// # Errors
    /// [`QuantizeError::NotCalibrated`] where nothing was observed.
    pub fn finish(self) -> Result<Ranges, QuantizeError> {
        let mut ranges = Ranges::default();
        for name in self.prepared.observed() {
            let observer = self.observers.get(name.as_str()).filter(|o| o.low <= o.high);
            let observer = observer.ok_or_else(|| QuantizeError::NotCalibrated { tensor: name.clone() })?;
            ranges.tensors.insert(name.clone(), observer.range(&self.options));
        }
        Ok(ranges)
    }
}

impl Observer {
    fn take(&mut self, name: &str, tensor: &ConstTensor) -> Result<(), QuantizeError> {
        let values = float_values(tensor);
        if let Some(&value) = values.iter().find(|v| !v.is_finite()) {
            return Err(QuantizeError::NotFinite { tensor: name.to_owned(), value });
        }
        if values.is_empty() {
            return Ok(());
        }
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (self.low, self.high) = (self.low.min(low), self.high.max(high));
        if let Some(histogram) = &mut self.histogram {
            histogram.add(&values, low, high);
        }
        Ok(())
    }

    fn range(&self, options: &Options) -> TensorRange {
        let seen = Range::new(self.low, self.high);
        let range = match (options.method, &self.histogram) {
            (Method::Percentile(p), Some(histogram)) => histogram.percentile((100.0 - p) / 200.0, seen),
            (Method::Entropy, Some(histogram)) => {
                let (counts, width) = histogram.magnitudes(entropy::BINS);
                // A tensor of one sign has all its steps on that side, unless its zero point must be 0.
                let one_sided = seen.low == 0.0 || seen.high == 0.0;
                let levels = if one_sided && options.activations != Activations::Int8Symmetric { 256 } else { 128 };
                let threshold = to_f32(entropy::threshold(&counts, levels) as f64 * width);
                Range { low: seen.low.max(-threshold), high: seen.high.min(threshold) }
            }
            _ => seen,
        };
        let saturated = self.histogram.as_ref().map_or(0.0, |h| h.outside(range));
        TensorRange { range, seen, saturated }
    }
}

/// The elements of a float tensor; none of another type.
pub(crate) fn float_values(tensor: &ConstTensor) -> Vec<f32> {
    match tensor.dtype() {
        DataType::Float => tensor.bytes().as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
        _ => Vec::new(),
    }
}
