//! The plan file: which layers and channels a `plan.toml` protects. Reference page: `docs/plan-file.md`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Protection, Vote};
use crate::faults::file::{Layer, Layers};
use crate::faults::select::select;
use crate::program::{Program, StepId};

/// A parsed plan file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// What the voter compares.
    #[serde(default)]
    pub vote: Vote,
    /// The `[[protect]]` entries; a channel that any of them names is protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protect: Vec<Entry>,
}

/// One `[[protect]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Layers by name, pattern (`*` and `?`) or step index.
    pub layers: Layers,
    /// Output channels; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<u32>>,
}

/// Why a plan file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Not TOML, an unknown key, or a value of the wrong type; the message has line and key.
    #[error("plan file: {0}")]
    Format(Box<toml::de::Error>),
    /// An empty list.
    #[error("[[protect]] {entry}: key '{key}' is empty; leave the entry out, or '{key}' for all")]
    Empty {
        /// Number of the entry, from 1.
        entry: usize,
        /// The key.
        key: &'static str,
    },
    /// No step has this name, matches this pattern or has this index.
    #[error("[[protect]] {entry}: no layer is {layer}{hint}")]
    NoSuchLayer {
        /// Number of the entry, from 1.
        entry: usize,
        /// As the file has it.
        layer: String,
        /// Names nearest to it.
        hint: String,
    },
    /// A channel beyond a layer's last.
    #[error(
        "[[protect]] {entry}: key 'channels': layer '{layer}' has {channels} channels, 0 to {last}, and no {channel}"
    )]
    NoSuchChannel {
        /// Number of the entry, from 1.
        entry: usize,
        /// The layer.
        layer: String,
        /// How many channels it has.
        channels: usize,
        /// Its last channel.
        last: usize,
        /// What the file names.
        channel: u32,
    },
}

impl PlanFile {
    /// A plan from TOML.
    ///
    /// # Errors
    /// [`PlanError::Format`] and [`PlanError::Empty`].
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let file: Self = toml::from_str(text).map_err(|source| PlanError::Format(Box::new(source)))?;
        for (position, entry) in file.protect.iter().enumerate() {
            let refuse = |key| PlanError::Empty { entry: position + 1, key };
            if entry.layers.0.is_empty() {
                return Err(refuse("layers"));
            }
            if entry.channels.as_ref().is_some_and(Vec::is_empty) {
                return Err(refuse("channels"));
            }
        }
        Ok(file)
    }

    /// The plan as TOML.
    pub fn to_toml(&self) -> String {
        // Plain values only: nothing here that TOML lacks.
        toml::to_string(self).unwrap_or_default()
    }
}

impl Protection {
    /// What a plan file protects in a program.
    ///
    /// # Errors
    /// [`PlanError::NoSuchLayer`] and [`PlanError::NoSuchChannel`].
    pub fn resolve(file: &PlanFile, program: &Program) -> Result<Self, PlanError> {
        let mut flags: Vec<Vec<bool>> = vec![Vec::new(); program.steps().len()];
        for (position, entry) in file.protect.iter().enumerate() {
            let number = position + 1;
            let steps = select(program, &entry.layers).map_err(|missing| PlanError::NoSuchLayer {
                entry: number,
                hint: missing.hint(),
                layer: missing.layer,
            })?;
            for step in steps {
                let node = &program.steps()[step.0];
                let channels = program.tensor(node.output).channels();
                let flags = &mut flags[step.0];
                flags.resize(channels, false);
                match &entry.channels {
                    None => flags.fill(true),
                    Some(list) => {
                        for &channel in list {
                            let flag = flags.get_mut(channel as usize).ok_or_else(|| PlanError::NoSuchChannel {
                                entry: number,
                                layer: node.name.clone(),
                                channels,
                                last: channels.saturating_sub(1),
                                channel,
                            })?;
                            *flag = true;
                        }
                    }
                }
            }
        }
        let mut protection = Self::with_vote(file.vote);
        for (step, flags) in flags.into_iter().enumerate().filter(|(_, flags)| !flags.is_empty()) {
            protection.protect(StepId(step), flags);
        }
        Ok(protection)
    }

    /// The plan that gives this protection on `program`: one entry per protected layer, by index where names repeat.
    pub fn to_plan(&self, program: &Program) -> PlanFile {
        let steps = program.steps();
        let entry = |(position, step): (usize, &crate::program::Step)| {
            let flags = self.channels(StepId(position));
            let on: Vec<u32> = (0u32..).zip(flags).filter(|(_, on)| **on).map(|(channel, _)| channel).collect();
            let is_unique = steps.iter().filter(|other| other.name == step.name).count() == 1;
            let layer = if is_unique { Layer::Name(step.name.clone()) } else { Layer::Index(position as u64) };
            let is_whole = on.len() == program.tensor(step.output).channels();
            (!on.is_empty()).then(|| Entry { layers: Layers(vec![layer]), channels: (!is_whole).then_some(on) })
        };
        PlanFile { vote: self.vote(), protect: steps.iter().enumerate().filter_map(entry).collect() }
    }

    /// Lines for reports: vote and penalty, then every protected layer with its number of channels.
    pub fn describe(&self, program: &Program) -> Vec<String> {
        let steps = program.steps().iter().enumerate().map(|(position, step)| (StepId(position), step));
        let mut layers = Vec::new();
        for (id, step) in steps {
            let flags = self.channels(id);
            let on = flags.iter().filter(|&&on| on).count();
            if on > 0 {
                let mut line = format!("  {} ({}): ", step.name, step.op_type);
                let _ = match on == flags.len() {
                    true => write!(line, "all {on} channels"),
                    false => write!(line, "{on} of {} channels", flags.len()),
                };
                layers.push(line);
            }
        }
        if layers.is_empty() {
            return vec!["TMR: nothing protected".to_owned()];
        }
        let head = format!(
            "TMR: vote on {}, {} layers protected, penalty {:.2}% of the MACs",
            self.vote().name(),
            layers.len(),
            100.0 * self.penalty(program)
        );
        [vec![head], layers].concat()
    }
}
