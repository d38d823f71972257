//! From measured vulnerabilities to plans: knapsacks, re-measured around what is chosen.
//!
//! The losses of many faults do not add up: once an answer is wrong, further faults cost nothing, and faults in a layer
//! matter more when the layers around it are protected. So a plan starts from vulnerabilities with nothing protected,
//! then measures the harm of every layer's protected part and of its rest in the context of the plan found so far, and
//! chooses anew, a few times. The plans of
//! all rounds and that of whole layers are measured on fresh trials, and the best is taken.

use std::ops::Range;

use chipfit_npu::protection::PlanFile;
use chipfit_npu::{Processor, Protection, StepId, Vote};
use serde::{Deserialize, Serialize};

use super::ProtectError;
use super::baselines;
use super::knapsack;
use super::sample::{Measure, Sample};
use super::units::{self, Scope, Unit};
use super::validation::{self, Validation};
use super::vulnerability::{self, Bench, Estimate};

/// The first trial number of planning; retraining counts its steps from 0, so that it never meets the same draws.
pub const PLANNING_TRIALS: u64 = 1 << 40;

/// Most units where the size of groups is not given.
pub const MOST_UNITS: usize = 512;

/// How a plan is searched.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Output channels of a group; `None` for the smallest size that gives at most [`MOST_UNITS`] units.
    pub group: Option<usize>,
    /// What the voter compares.
    pub vote: Vote,
    /// What a faulty answer costs.
    pub measure: Measure,
    /// Which steps may be protected.
    pub scope: Scope,
    /// Pictures, spread evenly over the sample, on which the influence of every single unit is measured.
    pub screen: usize,
    /// Influence by step and output channel that is known already ([`super::gradient::Gradient::second_moment`]); no unit
    /// is then screened by injection.
    pub influence: Option<Vec<Vec<f64>>>,
    /// How often each picture of the sample is computed for each bin of units in each round.
    pub trials: u64,
    /// How often the vulnerabilities are measured again around the plan found so far.
    pub rounds: u64,
    /// How many bins of each layer the vulnerabilities are validated on by injection; 0 for no validation.
    pub validate: usize,
    /// The first trial number; other numbers are other draws.
    pub first_trial: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group: None,
            vote: Vote::default(),
            measure: Measure::default(),
            scope: Scope::default(),
            screen: 128,
            influence: None,
            trials: 2,
            rounds: 1,
            validate: 0,
            first_trial: PLANNING_TRIALS,
        }
    }
}

/// Measured vulnerabilities, to start a later plan from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vulnerabilities {
    /// The units.
    pub units: Vec<Unit>,
    /// The influence of each: the mean squared change of the logits when its faults are taken away.
    pub influences: Vec<Estimate>,
    /// The value of each: the mean loss that protecting it saves, by its influence and the harm of its bin.
    pub values: Vec<f64>,
}

/// A plan, and what it rests on.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The penalty asked for, 0 to 2.
    pub asked: f64,
    /// The penalty of the plan: `2 * protected MACs / all MACs`, never above `asked`.
    pub penalty: f64,
    /// The protected channels.
    pub protection: Protection,
    /// The same as a file.
    pub file: PlanFile,
    /// The vulnerabilities that the choice was made from.
    pub vulnerabilities: Vulnerabilities,
    /// One flag per unit of `vulnerabilities`.
    pub chosen: Vec<bool>,
    /// Which candidate was taken, and the mean loss of each on the planning sample.
    pub candidates: Vec<Candidate>,
}

/// Plans for several penalties.
#[derive(Clone, Debug)]
pub struct Plans {
    /// One for each penalty, in the order asked for.
    pub plans: Vec<Planned>,
    /// Layers by measured vulnerability per MAC, the highest first: what the layer-greedy baseline takes.
    pub layer_order: Vec<StepId>,
    /// How well vulnerabilities with nothing protected foretell harm on fresh draws; when [`Options::validate`] asks.
    pub validation: Option<Validation>,
}

/// One plan among which the best was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it comes from.
    pub name: String,
    /// Mean loss on trials that no estimate has used.
    pub loss: f64,
    /// Whether it is the plan.
    pub is_taken: bool,
}

/// Plans for several penalties. The processor is left with the last plan in force.
///
/// # Errors
/// [`ProtectError`]; the processor then keeps some protection that was being measured.
pub fn plans(
    processor: &mut dyn Processor,
    sample: &Sample,
    penalties: &[f64],
    options: &Options,
    earlier: Option<&Vulnerabilities>,
) -> Result<Plans, ProtectError> {
    let mut search = Search::new(processor, sample, options)?;
    for &penalty in penalties {
        units::budget(search.bench.processor.program(), penalty)?;
    }
    let start = search.start(earlier)?;
    let layers = search.layer_order()?;
    let validation = match options.validate {
        0 => None,
        parts => Some(search.validate(&start, parts)?),
    };
    let mut plans = Vec::with_capacity(penalties.len());
    for &penalty in penalties {
        plans.push(search.plan(penalty, &start, &layers)?);
    }
    if let Some(last) = plans.last() {
        search.bench.processor.protect(&last.protection)?;
    }
    Ok(Plans { plans, layer_order: layers, validation })
}

struct Search<'a> {
    bench: Bench<'a>,
    sample: &'a Sample,
    screen: Sample,
    options: &'a Options,
    steps: Vec<StepId>,
    units: Vec<Unit>,
    trial: u64,
}

impl<'a> Search<'a> {
    fn new(processor: &'a mut dyn Processor, sample: &'a Sample, options: &'a Options) -> Result<Self, ProtectError> {
        let group = options.group.map_or(1, |n| n as u64);
        let counts =
            [("channels of a group", group), ("trials", options.trials), ("pictures per unit", options.screen as u64)];
        for (what, value) in counts {
            if value == 0 {
                return Err(ProtectError::TooFew { what, value, least: 1 });
            }
        }
        if sample.is_empty() {
            return Err(ProtectError::NoPictures);
        }
        let program = processor.program();
        let steps = options.scope.steps(program)?;
        let size = options.group.unwrap_or_else(|| units::group_for(program, &steps, MOST_UNITS));
        let units = units::groups(program, &steps, size, |_| None);
        let bench = Bench { processor, measure: options.measure, vote: options.vote };
        let screen = sample.spread(options.screen);
        Ok(Self { bench, sample, screen, options, steps, units, trial: options.first_trial })
    }

    /// Trials that nothing has used.
    fn fresh(&mut self, count: u64) -> Range<u64> {
        let first = self.trial;
        self.trial += count;
        first..self.trial
    }

    /// Values in a context, from influences that are known.
    fn values(&mut self, context: &[bool], influences: Vec<Estimate>) -> Result<Vulnerabilities, ProtectError> {
        let bins = vulnerability::bins(&self.units, context);
        let trials = self.fresh(self.options.trials);
        let harms = self.bench.harms(self.sample, &self.units, context, trials, &bins)?;
        let values = vulnerability::values(&influences, &bins, &harms);
        Ok(Vulnerabilities { units: self.units.clone(), influences, values })
    }

    /// Vulnerabilities with nothing protected, or earlier ones.
    fn start(&mut self, earlier: Option<&Vulnerabilities>) -> Result<Vulnerabilities, ProtectError> {
        let Some(earlier) = earlier else {
            let none = vec![false; self.units.len()];
            let influences = match &self.options.influence {
                Some(given) => given_influences(&self.units, given)?,
                None => {
                    let trials = self.fresh(1);
                    self.bench.influences(&self.screen, &self.units, &none, trials)?
                }
            };
            return self.values(&none, influences);
        };
        let lengths = [earlier.influences.len(), earlier.values.len()];
        if earlier.units != self.units || lengths != [self.units.len(); 2] {
            let what = format!("{} units then, {} now, or other channels", earlier.units.len(), self.units.len());
            return Err(ProtectError::Earlier { what });
        }
        Ok(earlier.clone())
    }

    /// Layers by measured harm per MAC, the highest first: the baseline that takes whole layers.
    fn layer_order(&mut self) -> Result<Vec<StepId>, ProtectError> {
        let layers = units::layers(self.bench.processor.program(), &self.steps);
        let none = vec![false; layers.len()];
        let trials = self.fresh(self.options.trials);
        let bins = vulnerability::bins(&layers, &none);
        let harms = self.bench.harms(self.sample, &layers, &none, trials, &bins)?;
        let density = |at: usize| match layers[at].macs {
            0 => f64::INFINITY,
            macs => harms[at].mean / macs as f64,
        };
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by(|&a, &b| density(b).total_cmp(&density(a)).then(a.cmp(&b)));
        Ok(order.into_iter().map(|at| StepId(layers[at].step)).collect())
    }

    /// Holds the values to harms of bins that they were not calibrated on: each layer cut by value per MAC.
    fn validate(&mut self, start: &Vulnerabilities, parts: usize) -> Result<Validation, ProtectError> {
        let bins = validation::quantiles(&self.units, &start.values, parts);
        let none = vec![false; self.units.len()];
        let trials = self.fresh(self.options.trials);
        let harms = self.bench.harms(self.sample, &self.units, &none, trials, &bins)?;
        Ok(Validation::new(&self.units, &start.values, &bins, &harms))
    }

    fn choose(&self, values: &[f64], budget: u64) -> Vec<bool> {
        let (values, costs): (Vec<f64>, Vec<u64>) = self.priced(values).into_iter().unzip();
        knapsack::select(&values, &costs, budget).chosen
    }

    /// Value and cost of each unit. One that seemed to do nothing still may: what the others leave of the budget goes to
    /// such units, so none is worth nothing.
    fn priced(&self, values: &[f64]) -> Vec<(f64, u64)> {
        let least = values.iter().copied().fold(0.0, f64::max).max(1e-30) * 1e-9;
        values.iter().zip(&self.units).map(|(value, unit)| (value.max(least), unit.macs)).collect()
    }

    fn plan(&mut self, penalty: f64, start: &Vulnerabilities, layers: &[StepId]) -> Result<Planned, ProtectError> {
        let budget = units::budget(self.bench.processor.program(), penalty)?;
        let all: u64 = self.units.iter().map(|unit| unit.macs).sum();
        let mut vulnerabilities = start.clone();
        let mut rounds = vec![self.choose(&vulnerabilities.values, budget)];
        if (1..all).contains(&budget) {
            for _ in 0..self.options.rounds {
                let context = rounds.last().cloned().unwrap_or_default();
                vulnerabilities = self.values(&context, start.influences.clone())?;
                rounds.push(self.choose(&vulnerabilities.values, budget));
            }
        }
        let (protection, chosen, candidates) = self.best(rounds, &vulnerabilities.values, layers, budget)?;
        let program = self.bench.processor.program();
        Ok(Planned {
            asked: penalty,
            penalty: protection.penalty(program),
            file: protection.to_plan(program),
            protection,
            vulnerabilities,
            chosen,
            candidates,
        })
    }

    /// The candidate with the lowest loss on fresh trials; of equal ones the last round's.
    fn best(
        &mut self,
        rounds: Vec<Vec<bool>>,
        values: &[f64],
        layers: &[StepId],
        budget: u64,
    ) -> Result<(Protection, Vec<bool>, Vec<Candidate>), ProtectError> {
        let program = self.bench.processor.program();
        let greedy = baselines::layers_in_order(program, layers, budget);
        let flags = units::protection(program, self.options.vote, &greedy);
        let is_whole = |unit: &Unit| unit.channels.iter().all(|&c| flags.covers(StepId(unit.step), c as usize));
        let mut found: Vec<(String, Vec<bool>)> = Vec::new();
        let rounds = rounds.into_iter().enumerate().rev().map(|(number, chosen)| (format!("round {number}"), chosen));
        // Groups that the budget cuts through are left out; single units take their place.
        let mut whole: Vec<bool> = self.units.iter().map(is_whole).collect();
        knapsack::fill(&self.priced(values), &mut whole, budget);
        let whole = ("whole layers".to_owned(), whole);
        for (name, chosen) in rounds.chain([whole]) {
            if found.iter().all(|(_, other)| *other != chosen) {
                found.push((name, chosen));
            }
        }
        let mut candidates = Vec::new();
        let mut best = (f64::INFINITY, 0);
        let trials = self.fresh(4 * self.options.trials);
        for (at, (name, chosen)) in found.iter().enumerate().filter(|_| found.len() > 1) {
            let losses = self.bench.losses(self.sample, &self.units, chosen, trials.clone())?;
            let loss = losses.values.iter().sum::<f64>() / losses.values.len().max(1) as f64;
            if loss < best.0 {
                best = (loss, at);
            }
            candidates.push(Candidate { name: name.clone(), loss, is_taken: false });
        }
        if let Some(taken) = candidates.get_mut(best.1) {
            taken.is_taken = true;
        }
        let chosen = found.swap_remove(best.1).1;
        let on = self.units.iter().zip(&chosen).filter(|(_, on)| **on).map(|(unit, _)| unit);
        let protection = units::protection(self.bench.processor.program(), self.options.vote, on);
        Ok((protection, chosen, candidates))
    }
}

/// Influences of units from those of channels.
fn given_influences(units: &[Unit], given: &[Vec<f64>]) -> Result<Vec<Estimate>, ProtectError> {
    let of_channel = |unit: &Unit, channel: u32| given.get(unit.step)?.get(channel as usize).copied();
    let of_unit = |unit: &Unit| {
        let sum: Option<f64> = unit.channels.iter().map(|&channel| of_channel(unit, channel)).sum();
        let mean = sum.filter(|sum| sum.is_finite() && *sum >= 0.0).ok_or_else(|| ProtectError::Earlier {
            what: format!("no influence of step {}, channels {:?}", unit.step, unit.channels),
        })?;
        Ok(Estimate { mean, standard_error: 0.0 })
    };
    units.iter().map(of_unit).collect()
}
