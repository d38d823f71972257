//! Accuracy of several protections on the same pictures under the same faults, and paired differences.
//!
//! A trial is one draw of faults for every picture. Intervals are over pictures, whose trials are averaged first: they
//! speak of new pictures and new faults. The difference of two protections is taken picture by picture and trial by
//! trial, under common draws.

use chipfit_npu::{Processor, Program, Protection, StepId, Vote};
use serde::{Deserialize, Serialize};

use super::baselines;
use super::sample::{Measure, Sample, losses};
use super::units::{self, Scope};
use super::vulnerability::Estimate;
use super::{Options, Plans, ProtectError};

/// The first trial number of comparisons: no draw of planning or retraining is met again.
pub const COMPARING_TRIALS: u64 = 1 << 41;

/// `P(|Z| <= z) = 0.95`.
const Z95: f64 = 1.959_963_984_540_054;

/// A mean with its 95% interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl From<Estimate> for Interval {
    fn from(e: Estimate) -> Self {
        let half = Z95 * e.standard_error;
        Self { mean: e.mean, low: e.mean - half, high: e.mean + half }
    }
}

/// Right answers by trial and picture: 1 or 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    right: Vec<f64>,
    pictures: usize,
}

impl Answers {
    /// Computes every picture of `sample` under `protection` in `trials` trials from number `first` on.
    ///
    /// # Errors
    /// What the processor says; [`ProtectError::TooFew`] without a trial.
    pub fn of(
        processor: &mut dyn Processor,
        protection: &Protection,
        sample: &Sample,
        first: u64,
        trials: u64,
    ) -> Result<Self, ProtectError> {
        if trials == 0 {
            return Err(ProtectError::TooFew { what: "seeds", value: 0, least: 1 });
        }
        let wrong = losses(processor, protection, sample, first..first + trials, Measure::Top1)?;
        Ok(Self { right: wrong.values.iter().map(|wrong| 1.0 - wrong).collect(), pictures: sample.len() })
    }

    /// Top-1 accuracy, 0 to 1.
    pub fn accuracy(&self) -> Interval {
        Estimate::over_pictures(&self.right, self.pictures).into()
    }

    /// Top-1 accuracy of each trial.
    pub fn by_trial(&self) -> Vec<f64> {
        let mean = |trial: &[f64]| trial.iter().sum::<f64>() / self.pictures as f64;
        self.right.chunks_exact(self.pictures.max(1)).map(mean).collect()
    }

    /// This accuracy less another's, paired.
    pub fn less(&self, other: &Self) -> Interval {
        let differences: Vec<f64> = self.right.iter().zip(&other.right).map(|(a, b)| a - b).collect();
        Estimate::over_pictures(&differences, self.pictures).into()
    }
}

/// Ways to spend a budget that ours is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The plan.
    Planned,
    /// The same share of the channels of every layer, drawn by a seed.
    Uniform,
    /// The first layers.
    FirstLayers,
    /// Whole layers by measured vulnerability per MAC.
    LayerGreedy,
}

impl Strategy {
    /// The strategies that a plan is compared with.
    pub const BASELINES: [Self; 3] = [Self::Uniform, Self::FirstLayers, Self::LayerGreedy];

    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Uniform => "uniform",
            Self::FirstLayers => "first layers",
            Self::LayerGreedy => "layer-greedy",
        }
    }
}

/// What baselines need to know.
#[derive(Clone, Debug)]
pub struct Baselines {
    /// Which steps may be protected.
    pub scope: Scope,
    /// What the voter compares.
    pub vote: Vote,
    /// Layers by measured vulnerability per MAC, the highest first.
    pub layer_order: Vec<StepId>,
    /// Of the uniform strategy's channels.
    pub seed: u64,
}

impl Baselines {
    /// Baselines for plans made with these options.
    pub fn new(options: &Options, layer_order: Vec<StepId>, seed: u64) -> Self {
        Self { scope: options.scope.clone(), vote: options.vote, layer_order, seed }
    }

    /// The protection of a baseline at this penalty (0 to 2); nothing for [`Strategy::Planned`].
    ///
    /// # Errors
    /// [`ProtectError::Penalty`], and what [`Scope::steps`] says.
    pub fn protection(&self, program: &Program, strategy: Strategy, penalty: f64) -> Result<Protection, ProtectError> {
        let budget = units::budget(program, penalty)?;
        let steps = self.scope.steps(program)?;
        let chosen = match strategy {
            Strategy::Planned => Vec::new(),
            Strategy::Uniform => baselines::uniform(program, &steps, budget, self.seed),
            Strategy::FirstLayers => baselines::layers_in_order(program, &steps, budget),
            Strategy::LayerGreedy => baselines::layers_in_order(program, &self.layer_order, budget),
        };
        Ok(units::protection(program, self.vote, &chosen))
    }
}

/// Accuracy over penalties, for plans and what they are compared with: the document that reports show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Front {
    /// Pictures of the comparison.
    pub pictures: usize,
    /// Draws of faults for each picture.
    pub seeds: u64,
    /// Confidence of all intervals.
    pub confidence: f64,
    /// Top-1 accuracy without any protection, 0 to 1.
    pub unprotected: Interval,
    /// Top-1 accuracy with everything protected.
    pub everything: Interval,
    /// One for each penalty.
    pub points: Vec<Point>,
}

/// What one penalty buys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The penalty asked for, in percent of the MACs.
    pub percent: f64,
    /// The plan first, then the baselines, where they were asked for.
    pub strategies: Vec<StrategyPoint>,
}

/// One strategy at one penalty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategyPoint {
    /// Which.
    pub strategy: Strategy,
    /// The penalty that it comes to, in percent; whole channels seldom use all of a budget.
    pub spent_percent: f64,
    /// Top-1 accuracy, 0 to 1.
    pub accuracy: Interval,
    /// The same for each draw.
    pub by_seed: Vec<f64>,
    /// Accuracy of the plan less this one's, paired; absent for the plan itself.
    pub plan_less_this: Option<Interval>,
}

/// What the plans are measured on.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// Pictures that planning has not seen.
    pub sample: &'a Sample,
    /// Draws of faults for each picture.
    pub seeds: u64,
    /// The first trial number.
    pub first_trial: u64,
    /// Whether the baselines are measured, too.
    pub baselines: Option<&'a Baselines>,
}

/// Measures plans, and baselines at the same penalties. The processor is left with the last measured protection.
///
/// # Errors
/// [`ProtectError`].
pub fn front(processor: &mut dyn Processor, plans: &Plans, on: &Comparison<'_>) -> Result<Front, ProtectError> {
    let program = processor.program().clone();
    let vote = plans.plans.first().map_or_else(Vote::default, |plan| plan.protection.vote());
    let mut answers = |protection: &Protection| Answers::of(processor, protection, on.sample, on.first_trial, on.seeds);
    let unprotected = answers(&Protection::none())?.accuracy();
    let everything = answers(&Protection::full(&program, vote))?.accuracy();
    let mut points = Vec::with_capacity(plans.plans.len());
    for plan in &plans.plans {
        let ours = answers(&plan.protection)?;
        let point = |strategy, protection: &Protection, answers: &Answers, less| StrategyPoint {
            strategy,
            spent_percent: 100.0 * protection.penalty(&program),
            accuracy: answers.accuracy(),
            by_seed: answers.by_trial(),
            plan_less_this: less,
        };
        let mut strategies = vec![point(Strategy::Planned, &plan.protection, &ours, None)];
        if let Some(baselines) = on.baselines {
            for strategy in Strategy::BASELINES {
                let protection = baselines.protection(&program, strategy, plan.asked)?;
                let other = if protection == plan.protection { ours.clone() } else { answers(&protection)? };
                strategies.push(point(strategy, &protection, &other, Some(ours.less(&other))));
            }
        }
        points.push(Point { percent: 100.0 * plan.asked, strategies });
    }
    Ok(Front { pictures: on.sample.len(), seeds: on.seeds, confidence: 0.95, unprotected, everything, points })
}

impl Front {
    /// The front as comma-separated values, one line a penalty and strategy, accuracies between 0 and 1.
    pub fn to_csv(&self) -> String {
        let mut text = String::from(
            "penalty_percent,strategy,spent_percent,accuracy,low,high,plan_less_this,plan_less_this_low,plan_less_this_high\n",
        );
        for point in &self.points {
            for s in &point.strategies {
                let Interval { mean, low, high } = s.accuracy;
                let less = s
                    .plan_less_this
                    .map_or_else(|| ",,".to_owned(), |less| format!("{},{},{}", less.mean, less.low, less.high));
                let (percent, name, spent) = (point.percent, s.strategy.name(), s.spent_percent);
                text.push_str(&format!("{percent},{name},{spent},{mean},{low},{high},{less}\n"));
            }
        }
        text
    }
}
