//! Accuracies of a run: on the faulty processor over several draws of its errors, and on the fault-free one.

use anyhow::Result;
use chipfit_campaign::statistics::{Share, two_sided_quantile};
use chipfit_npu::Processor;
use chipfit_train::{Accuracy, Pictures, evaluate};
use serde::{Deserialize, Serialize};

/// Trials of the draws that measure; training's and validation's never meet them.
const MEASURING: u64 = 1 << 63;
/// Of the intervals.
const CONFIDENCE: f64 = 0.95;

/// An accuracy, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Over all draws.
    pub(crate) top1: Share,
    /// Over all draws.
    pub(crate) top5: Share,
    /// Pictures of one draw.
    pub(crate) pictures: u64,
    /// Draws of the errors; 1 on a processor without errors.
    pub(crate) draws: u32,
    /// Of each draw.
    pub(crate) top1_by_draw: Vec<f64>,
    /// Of each draw.
    pub(crate) top5_by_draw: Vec<f64>,
    /// Standard deviation of top-1 over the draws; 0 for one draw.
    pub(crate) top1_deviation: f64,
}

/// Measures over `draws` draws; `tick` hears of every draw.
pub(crate) fn measure(
    processor: &mut dyn Processor,
    pictures: &dyn Pictures,
    batch: usize,
    draws: u32,
    mut tick: impl FnMut(),
) -> Result<Measured> {
    let mut all = Accuracy::default();
    let (mut top1, mut top5) = (Vec::new(), Vec::new());
    for draw in 0..draws {
        let one = evaluate(processor, pictures, batch, MEASURING + u64::from(draw))?;
        top1.push(one.top1_share());
        top5.push(one.top5_share());
        all.pictures += one.pictures;
        all.top1 += one.top1;
        all.top5 += one.top5;
        tick();
    }
    let share = |count| Share::new(count, all.pictures, None, two_sided_quantile(CONFIDENCE));
    Ok(Measured {
        top1: share(all.top1),
        top5: share(all.top5),
        pictures: pictures.len() as u64,
        draws,
        top1_deviation: deviation(&top1),
        top1_by_draw: top1,
        top5_by_draw: top5,
    })
}

/// Standard deviation of a sample; 0 for fewer than two values.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_those_of_samples() {
        assert_eq!(deviation(&[]), 0.0);
        assert_eq!(deviation(&[0.5]), 0.0);
        assert!((deviation(&[1.0, 2.0, 3.0, 4.0]) - (5.0f64 / 3.0).sqrt()).abs() < 1e-15);
    }
}
