//! Which trials are done, and when a cell stops.
//!
//! A cell stops at the first checkpoint ([`checkpoints`](crate::statistics::checkpoints)) at which its interval is
//! narrow enough, judged from the trials before that checkpoint alone: whatever else is already in the log, from
//! other threads or shards, the decision is the same.

use std::collections::BTreeMap;

use crate::file::Mode;
use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::record::Record;
use crate::statistics::{checkpoints, wilson};
use crate::subject::Subject;

/// Trials of a chunk: two bits each.
const CHUNK: u64 = 4096;
const WORDS: usize = (CHUNK / 64) as usize;

/// Two bits per trial: done, and whether it counts towards the rate that decides about stopping.
#[derive(Clone, Debug)]
struct Bits {
    done: [u64; WORDS],
    hit: [u64; WORDS],
}

/// What is known of each cell.
#[derive(Debug)]
pub(crate) struct Tally {
    /// By cell and chunk; sparse, so that a hostile number costs one chunk.
    chunks: BTreeMap<(usize, u64), Bits>,
    counts: Vec<u64>,
    is_rate: bool,
}

/// What a cell needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// All trials below this index.
    Until(u64),
    /// Nothing: it stopped after so many trials.
    Stopped(u64),
}

impl Tally {
    pub(crate) fn new(plan: &Plan, mode: &Mode) -> Self {
        Self { chunks: BTreeMap::new(), counts: vec![0; plan.cells().len()], is_rate: matches!(mode, Mode::Rate(_)) }
    }

    /// Whether a trial counts: a silent corruption of one fault, a right decision under a rate.
    fn is_hit(&self, subject: &Subject, picture: usize, record: &Record) -> bool {
        if self.is_rate {
            subject.pictures.get(picture).is_some_and(|p| p.label == record.verdict.class)
        } else {
            record.verdict.outcome == Outcome::Sdc
        }
    }

    /// Notes a record of a trial of this plan; `false` when it was there already.
    pub(crate) fn note(&mut self, cell: usize, index: u64, picture: usize, subject: &Subject, record: &Record) -> bool {
        let is_hit = self.is_hit(subject, picture, record);
        let chunk =
            self.chunks.entry((cell, index / CHUNK)).or_insert_with(|| Bits { done: [0; WORDS], hit: [0; WORDS] });
        let (word, bit) = place(index);
        let (Some(done), Some(hit)) = (chunk.done.get_mut(word), chunk.hit.get_mut(word)) else { return false };
        if *done & bit != 0 {
            return false;
        }
        *done |= bit;
        if is_hit {
            *hit |= bit;
        }
        if let Some(count) = self.counts.get_mut(cell) {
            *count += 1;
        }
        true
    }

    /// Whether a trial is done.
    pub(crate) fn is_done(&self, cell: usize, index: u64) -> bool {
        let (word, bit) = place(index);
        let chunk = self.chunks.get(&(cell, index / CHUNK));
        chunk.and_then(|c| c.done.get(word)).is_some_and(|done| done & bit != 0)
    }

    /// Done trials of all cells.
    pub(crate) fn done(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Done trials and hits of a cell among its first `until` trials.
    pub(crate) fn below(&self, cell: usize, until: u64) -> (u64, u64) {
        let mut sums = (0, 0);
        for (&(_, chunk), bits) in self.chunks.range((cell, 0)..(cell, until.div_ceil(CHUNK))) {
            let start = chunk * CHUNK;
            for (word, (done, hit)) in (0u64..).zip(bits.done.iter().zip(&bits.hit)) {
                let mask = match until.saturating_sub(start + word * 64) {
                    0 => 0,
                    n @ 1..64 => (1u64 << n) - 1,
                    _ => u64::MAX,
                };
                sums.0 += u64::from((done & mask).count_ones());
                sums.1 += u64::from((hit & mask).count_ones());
            }
        }
        sums
    }

    /// What a cell needs next.
    pub(crate) fn next(&self, plan: &Plan, cell: usize) -> Next {
        let Some(known) = plan.cells().get(cell) else { return Next::Stopped(0) };
        let Some(margin) = plan.stop_at() else {
            let (done, _) = self.below(cell, known.planned);
            return if done == known.planned { Next::Stopped(done) } else { Next::Until(known.planned) };
        };
        for checkpoint in checkpoints(known.planned) {
            let (done, hits) = self.below(cell, checkpoint);
            if done < checkpoint {
                return Next::Until(checkpoint);
            }
            if wilson(hits, done, known.population, plan.z()).half_width() <= margin {
                return Next::Stopped(checkpoint);
            }
        }
        Next::Stopped(known.planned)
    }
}

fn place(index: u64) -> (usize, u64) {
    let within = index % CHUNK;
    // Below CHUNK / 64 = WORDS: it fits.
    ((within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::{fault_campaign, verdict};

    #[test]
    fn a_cell_stops_at_the_first_checkpoint_that_suffices_whatever_the_order() {
        let (campaign, subject) = fault_campaign("cells = []\nmargin = 0.05\nsequential = true");
        let plan = Plan::new(&campaign, &subject).unwrap();
        // One in fifty: half width 0.0498 at n = 50 hits would not do; found by hand with the formula of `wilson`.
        let record = |index: u64| Record {
            number: index,
            verdict: verdict(if index.is_multiple_of(50) { Outcome::Sdc } else { Outcome::Masked }),
            strikes: Some(1),
        };
        let wanted = checkpoints(plan.cells()[0].planned)
            .find(|&n| wilson(n.div_ceil(50), n, plan.cells()[0].population, plan.z()).half_width() <= 0.05)
            .unwrap();
        let mut forward = Tally::new(&plan, &campaign.mode);
        for index in 0..wanted {
            assert!(matches!(forward.next(&plan, 0), Next::Until(n) if n > index), "{index}");
            assert!(forward.note(0, index, 0, &subject, &record(index)));
            assert!(!forward.note(0, index, 0, &subject, &record(index)));
        }
        assert_eq!(forward.next(&plan, 0), Next::Stopped(wanted));
        // Trials behind the checkpoint and from the end backwards change nothing.
        let mut backward = Tally::new(&plan, &campaign.mode);
        for index in (0..wanted + 57).rev() {
            backward.note(0, index, 0, &subject, &record(index));
        }
        assert_eq!(backward.next(&plan, 0), Next::Stopped(wanted));
        assert_eq!(backward.done(), wanted + 57);
    }
}
