//! Strikes that somebody wrote down: a campaign's single fault, a replayed story, a test.

use std::collections::BTreeMap;

use super::{DrawKey, Strike, StrikeSource};
use crate::program::StepId;

/// Listed strikes, the same for every picture and trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    strikes: BTreeMap<(StepId, u8), Vec<Strike>>,
}

impl Listed {
    /// No strike at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// One strike of replica 0: the single fault of a campaign.
    pub fn single(step: StepId, strike: Strike) -> Self {
        let mut listed = Self::new();
        listed.add(step, 0, strike);
        listed
    }

    /// Adds one strike of a replica (0 to 2) of a step. Weight and act strikes take effect in replica 0 only.
    pub fn add(&mut self, step: StepId, replica: u8, strike: Strike) {
        let strikes = self.strikes.entry((step, replica)).or_default();
        let place = strikes.partition_point(|known| *known <= strike);
        strikes.insert(place, strike);
    }

    /// All strikes, by step and replica.
    pub fn iter(&self) -> impl Iterator<Item = (StepId, u8, &Strike)> {
        self.strikes.iter().flat_map(|(&(step, replica), strikes)| strikes.iter().map(move |s| (step, replica, s)))
    }
}

impl StrikeSource for Listed {
    fn strikes(&self, _: &DrawKey, step: StepId, replica: u8, out: &mut Vec<Strike>) {
        out.extend_from_slice(self.strikes.get(&(step, replica)).map_or(&[], Vec::as_slice));
    }
}
