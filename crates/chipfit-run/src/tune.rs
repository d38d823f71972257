//! Measuring candidate models in ONNX Runtime, side by side.
//!
//! Every candidate runs once per round, the rounds start at a different candidate each, and a candidate's ratio
//! is the median of its times over the first candidate's of the same round: a machine that slows down for a
//! while slows both. Inputs are converted before, outputs are dropped inside the measured time. Nothing is
//! chosen here.
//!
//! Read [`measure`], then [`Plan`]; [`median_ratio`] is the statistic.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chipfit_model::ConstTensor;

use crate::engine::onnxruntime::SessionOptions;
use crate::engine::{EngineError, OnnxRuntime, Optimisation};

/// A model to measure.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// What it is called in errors and results.
    pub name: String,
    /// Its file.
    pub bytes: Bytes,
    /// The folder of its external data.
    pub folder: Option<&'a Path>,
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Unmeasured runs of each candidate before the first round; at least one is made.
    pub warm_up: usize,
    /// Rounds; at least one is made.
    pub rounds: usize,
    /// No further round is begun after this time, once [`Plan::MIN_ROUNDS`] are done.
    pub budget: Duration,
    /// A sample repeats a short run until it has taken about this long.
    pub sample: Duration,
}

impl Plan {
    /// Rounds that are made whatever the budget (unless fewer were asked for).
    pub const MIN_ROUNDS: usize = 5;
}

impl Default for Plan {
    fn default() -> Self {
        Self { warm_up: 2, rounds: 21, budget: Duration::from_secs(2), sample: Duration::from_millis(2) }
    }
}

/// What was measured of one candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The candidate.
    pub name: String,
    /// Seconds of one run, a sample per round.
    pub seconds: Vec<f64>,
    /// Their median.
    pub median_seconds: f64,
    /// The median over the rounds of this candidate's time over the first candidate's; 1 for the first.
    pub ratio: f64,
}

/// Why measuring failed: the candidate and the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("candidate '{candidate}': {source}")]
pub struct TuneError {
    /// The candidate.
    pub candidate: String,
    /// Why.
    pub source: EngineError,
}

/// Measures every candidate on `inputs`, with one thread and full optimisation. All stay loaded meanwhile.
///
/// # Errors
/// [`TuneError`] for the first candidate that cannot be loaded or run.
pub fn measure(
    engine: &OnnxRuntime,
    candidates: &[Candidate<'_>],
    inputs: &[(String, ConstTensor)],
    plan: &Plan,
) -> Result<Vec<Measurement>, TuneError> {
    let engine = engine.with_options(SessionOptions { threads: 1, optimisation: Optimisation::Full });
    let mut sessions = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let error = |source| TuneError { candidate: candidate.name.clone(), source };
        let mut session = engine.session(&candidate.bytes, candidate.folder).map_err(error)?;
        session.hold(inputs).map_err(error)?;
        sessions.push(session);
    }
    let started = Instant::now();
    let samples = rounds(plan, candidates.len(), &mut || started.elapsed(), &mut |candidate| {
        let Some((session, candidate)) = sessions.get_mut(candidate).zip(candidates.get(candidate)) else {
            return Ok(());
        };
        session.run_held().map_err(|source| TuneError { candidate: candidate.name.clone(), source })
    })?;
    let first = samples.first().cloned().unwrap_or_default();
    let measurement = |(candidate, seconds): (&Candidate<'_>, Vec<f64>)| Measurement {
        name: candidate.name.clone(),
        median_seconds: median(&seconds).unwrap_or(f64::NAN),
        ratio: median_ratio(&first, &seconds).unwrap_or(f64::NAN),
        seconds,
    };
    Ok(candidates.iter().zip(samples).map(measurement).collect())
}

/// Seconds of one run, by candidate and round. `now` is the time since any fixed moment, `run` runs a candidate.
fn rounds<E>(
    plan: &Plan,
    candidates: usize,
    now: &mut dyn FnMut() -> Duration,
    run: &mut dyn FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<f64>>, E> {
    let mut samples = vec![Vec::new(); candidates];
    let mut repeats = Vec::with_capacity(candidates);
    let begun = now();
    for candidate in 0..candidates {
        let mut fastest = Duration::MAX;
        for _ in 0..plan.warm_up.max(1) {
            let before = now();
            run(candidate)?;
            fastest = fastest.min(now().saturating_sub(before));
        }
        let fastest = fastest.as_nanos().max(1);
        repeats.push(u32::try_from(plan.sample.as_nanos() / fastest).unwrap_or(u32::MAX).clamp(1, 100_000));
    }
    for round in 0..plan.rounds.max(1) {
        if round >= Plan::MIN_ROUNDS && now().saturating_sub(begun) > plan.budget {
            break;
        }
        for step in 0..candidates {
            let candidate = (round + step) % candidates;
            let count = repeats.get(candidate).copied().unwrap_or(1);
            let before = now();
            for _ in 0..count {
                run(candidate)?;
            }
            let seconds = now().saturating_sub(before).as_secs_f64() / f64::from(count);
            if let Some(list) = samples.get_mut(candidate) {
                list.push(seconds);
            }
        }
    }
    Ok(samples)
}

/// The median of `other[i] / base[i]`; `None` where the lengths differ or are 0, or a ratio is not a number.
pub fn median_ratio(base: &[f64], other: &[f64]) -> Option<f64> {
    if base.len() != other.len() {
        return None;
    }
    median(&base.iter().zip(other).map(|(b, o)| o / b).collect::<Vec<_>>())
}

/// The median, of an even number the mean of the middle two; `None` where there is none or one is no number.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = if sorted.len().is_multiple_of(2) { *sorted.get(sorted.len() / 2 - 1)? } else { upper };
    Some(lower + (upper - lower) / 2.0)
}

#[cfg(test)]
mod tests;
