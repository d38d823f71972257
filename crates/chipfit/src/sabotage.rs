//! Test aid.
use anyhow::Result;
use chipfit_model::proto::ModelProto;
use clap::ValueEnum;

/// `--sabotage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Tap,
}

pub(crate) fn damage(_model: &mut ModelProto, _kind: Kind) -> Result<()> {
    Ok(())
}
