//! A fault rate that training can turn up: strikes of a source, thinned.
//!
//! Each strike stays with probability `scale`, decided by a hash of its key alone; so a rate of `ber` becomes exactly
//! `scale * ber` for independent strikes, and what is drawn still depends on seed, step and picture only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chipfit_npu::faults::generator::Key;
use chipfit_npu::{DrawKey, Strike, StrikeSource};

use crate::error::TrainError;

/// Something whose fault rate can be scaled.
pub trait Faultiness {
    /// Faults come at `scale` (0 to 1) times their full rate from now on.
    ///
    /// # Errors
    /// [`TrainError`] when the processor cannot.
    fn set_scale(&mut self, scale: f64) -> Result<(), TrainError>;
}

/// Purpose of the keys that decide which strikes stay.
const THIN: u64 = 0x0D_0003;

/// A source of strikes, thinned. Clones share the scale.
#[derive(Clone)]
pub struct Thinned {
    source: Arc<dyn StrikeSource + Send + Sync>,
    /// Bits of an f64.
    scale: Arc<AtomicU64>,
}

impl std::fmt::Debug for Thinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thinned").field("scale", &self.scale()).finish_non_exhaustive()
    }
}

impl Thinned {
    /// All strikes of `source`, until the scale is set.
    pub fn new(source: Arc<dyn StrikeSource + Send + Sync>) -> Self {
        Self { source, scale: Arc::new(AtomicU64::new(1f64.to_bits())) }
    }

    /// Share of the strikes that stay.
    pub fn scale(&self) -> f64 {
        f64::from_bits(self.scale.load(Ordering::SeqCst))
    }
}

impl Faultiness for Thinned {
    fn set_scale(&mut self, scale: f64) -> Result<(), TrainError> {
        self.scale.store(scale.to_bits(), Ordering::SeqCst);
        Ok(())
    }
}

impl StrikeSource for Thinned {
    fn strikes(&self, key: &DrawKey, step: chipfit_npu::StepId, replica: u8, out: &mut Vec<Strike>) {
        let start = out.len();
        self.source.strikes(key, step, replica, out);
        let scale = self.scale();
        if scale >= 1.0 {
            return;
        }
        let base = Key::new(THIN).with(key.seed).with(key.trial).with(key.picture);
        let base = base.with((step.0 as u64) << 8 | u64::from(replica));
        let mut at = 0;
        out.retain(|strike| {
            at += 1;
            at <= start || base.with(strike.site as u64).with(strike.word).stream().unit() < scale
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipfit_npu::{Change, Listed, Site, StepId};

    #[test]
    fn a_share_of_the_strikes_stays_and_the_full_scale_keeps_all() {
        let mut listed = Listed::new();
        (0..4000).for_each(|word| listed.add(StepId(1), 0, Strike::new(Site::Mul, word, Change::Xor(1))));
        let mut thinned = Thinned::new(Arc::new(listed));
        let draw = |thinned: &Thinned, trial: u64| {
            let mut out = Vec::new();
            thinned.strikes(&DrawKey { seed: 1, trial, picture: 2 }, StepId(1), 0, &mut out);
            out
        };
        assert_eq!(draw(&thinned, 0).len(), 4000);
        thinned.set_scale(0.25).unwrap();
        let kept = draw(&thinned, 0);
        // 1000 expected, deviation 27: six of them.
        assert!((836..1164).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept, draw(&thinned, 0));
        assert_ne!(kept, draw(&thinned, 1));
        thinned.set_scale(0.0).unwrap();
        assert!(draw(&thinned, 0).is_empty());
    }
}
