//! `--tune`: the form of every node by measurement.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use chipfit_deconv::{Form, Options};
use chipfit_model::{Index, ScopeId, Shapes};

/// The fastest form of every ConvTranspose, measured in ONNX Runtime; `None`: keeping it is fastest.
pub(crate) fn decide(
    _index: &Index<'_>,
    _shapes: &Shapes,
    _options: &Options,
    _library: Option<&Path>,
) -> Result<BTreeMap<(ScopeId, usize), Option<Form>>> {
    bail!("this build cannot measure yet")
}
