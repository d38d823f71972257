//! The float model, simplified and folded, with the plan of what will be quantised.

use chipfit_model::Model;

use crate::calibrate::Ranges;
use crate::error::QuantizeError;
use crate::fold::{self, Folded};
use crate::graph::Graph;
use crate::options::Options;
use crate::places::Places;
use crate::report::Report;
use crate::{simplify, write};

/// A float model that is ready for calibration. The same model always gives the same one.
pub struct Prepared {
    pub(crate) graph: Graph,
    pub(crate) places: Places,
    pub(crate) folded: Folded,
}

impl Prepared {
    /// Simplifies `model`, folds what can be folded and plans what will be quantised.
    ///
    /// # Errors
    /// [`QuantizeError`]: a model that is already quantised, has control flow, functions, sparse constants, an
    /// operator set that cannot be raised, broken parameters, or nothing to quantise.
    pub fn new(model: &Model) -> Result<Self, QuantizeError> {
        let mut graph = Graph::new(model)?;
        simplify::simplify(&mut graph)?;
        let types = simplify::types(&graph)?;
        let folded = fold::fold(&mut graph, &types)?;
        graph.drop_dead_nodes();
        let places = Places::new(&graph, &simplify::types(&graph)?);
        if places.quantised.is_empty() {
            return Err(QuantizeError::NothingToQuantise);
        }
        Ok(Self { graph, places, folded })
    }

    /// The folded float model, which computes what the original computes up to rounding.
    ///
    /// # Errors
    /// [`QuantizeError::Invalid`], a fault of this program.
    pub fn model(&self) -> Result<Model, QuantizeError> {
        self.graph.to_model()
    }

    /// The tensors that need a range, sorted by name.
    pub fn observed(&self) -> &[String] {
        &self.places.observed
    }

    /// The quantised model.
    ///
    /// # Errors
    /// [`QuantizeError::NotCalibrated`] where `ranges` lacks a tensor.
    pub fn quantize(&self, ranges: &Ranges, options: &Options) -> Result<(Model, Report), QuantizeError> {
        write::quantize(self, ranges, options)
    }
}
