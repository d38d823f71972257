//! The results of a run, from its log.
//!
//! Shares of one cell are plain counts with Wilson intervals. Shares over several cells (a layer, a bit, everything)
//! weigh each cell with the number of its faults, so that they mean *a fault drawn uniformly from all exposed bits of
//! that layer (bit, ...)*, and take the interval of Zou and Donner ([`weighted`]). `docs/campaigns.md`, Results.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chipfit_npu::Site;
use serde::{Deserialize, Serialize};

use crate::error::CampaignError;
use crate::file::{Mode, Rates};
use crate::folder::{self, Identity, RunFolder};
use crate::outcome::Outcome;
use crate::plan::{CellName, Plan, Trial, Work};
use crate::record::Record;
use crate::statistics::{Interval, Share, weighted};
use crate::subject::Subject;
use crate::table;
use crate::tally::{Next, Tally};

/// Name of the summary in the run folder.
pub const SUMMARY: &str = "summary.json";
/// Name of the table of trials in the run folder.
pub const TABLE: &str = "trials.parquet";

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// What was run.
    pub identity: Identity,
    /// Of all intervals.
    pub confidence: f64,
    /// The pictures and the clean model.
    pub pictures: Pictures,
    /// Trials that count.
    pub trials: u64,
    /// Of a single-fault campaign.
    pub single: Option<SingleSummary>,
    /// Of a rate campaign.
    pub curves: Vec<CurveSummary>,
}

/// The pictures and the clean model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pictures {
    /// How many take part.
    pub count: u64,
    /// Of these pictures, those that the clean model gets right.
    pub clean_top1: Share,
    /// Those whose label is among its first five.
    pub clean_top5: Share,
}

/// What a single-fault campaign found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SingleSummary {
    /// By kind: over all exposed bits.
    pub overall: Vec<Group>,
    /// Each cell.
    pub cells: Vec<CellSummary>,
    /// By kind and layer.
    pub layers: Vec<Group>,
    /// By kind, site and bit.
    pub bits: Vec<Group>,
    /// By kind, layer and output channel (`act` has none), the most vulnerable first (by the lower bound).
    pub channels: Vec<ChannelSummary>,
    /// Where masked faults died: layer and reason, with the share of all trials.
    pub masked: Vec<MaskedPlace>,
}

/// Shares of each outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares<T> {
    /// Masked.
    pub masked: T,
    /// Benign.
    pub benign: T,
    /// Beneficial.
    pub beneficial: T,
    /// SDC top-1.
    pub sdc_top1: T,
    /// SDC top-5, a part of SDC top-1.
    pub sdc_top5: T,
    /// A right decision became wrong, a part of SDC top-1.
    pub harmful: T,
}

/// A weighted share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The share.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Several cells together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Kind.
    pub kind: String,
    /// Step and name, when it is a layer.
    pub layer: Option<(usize, String)>,
    /// Site, when it is a bit of one.
    pub site: Option<Site>,
    /// Bit; absent for kinds that replace the word.
    pub bit: Option<u32>,
    /// Faults that one inference is exposed to.
    pub faults: u64,
    /// Trials.
    pub trials: u64,
    /// Weighted shares.
    pub shares: Shares<Estimate>,
    /// Mean confidence shift of the trials, unweighted.
    pub mean_shift: f64,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellSummary {
    /// What its trials have in common.
    pub cell: CellName,
    /// Name of the layer, when layers are counted apart.
    pub layer_name: Option<String>,
    /// Faults that one inference is exposed to.
    pub faults: u64,
    /// (Fault, picture) pairs, where trials are drawn from them without replacement.
    pub population: Option<u64>,
    /// Trials that were planned at most.
    pub planned: u64,
    /// Trials.
    pub trials: u64,
    /// Shares with Wilson intervals.
    pub shares: Shares<Share>,
    /// Mean confidence shift.
    pub mean_shift: f64,
}

/// One output channel of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSummary {
    /// Kind.
    pub kind: String,
    /// Step and name.
    pub layer: (usize, String),
    /// Output channel.
    pub channel: u64,
    /// Trials.
    pub trials: u64,
    /// SDC top-1, weighted.
    pub sdc_top1: Estimate,
}

/// One place where faults died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedPlace {
    /// Step and name; absent when the processor does not tell.
    pub layer: Option<(usize, String)>,
    /// Reason.
    pub by: String,
    /// Share of all trials.
    pub share: Share,
}

/// One curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurveSummary {
    /// For legends.
    pub name: String,
    /// `ber`, `count` or `file`.
    pub unit: String,
    /// Points in the campaign's order.
    pub points: Vec<PointSummary>,
}

/// One point of a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSummary {
    /// Abscissa; absent for a faults file.
    pub rate: Option<f64>,
    /// Sites, kind and the definition of the rate, in words.
    pub definition: String,
    /// Mean flips in one inference by definition.
    pub expected_flips: f64,
    /// Mean words struck in one inference as counted; absent when the processor cannot know.
    pub mean_strikes: Option<f64>,
    /// Inferences: pictures x repeats, or as many as were needed.
    pub trials: u64,
    /// Right decisions.
    pub top1: Share,
    /// Labels among the first five.
    pub top5: Share,
    /// Shares of each outcome.
    pub shares: Shares<Share>,
    /// Mean confidence shift.
    pub mean_shift: f64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    trials: u64,
    outcomes: [u64; 4],
    sdc_top5: u64,
    harmful: u64,
    top1: u64,
    top5: u64,
    strikes: Option<u64>,
    shift: f64,
}

impl Counts {
    fn add(&mut self, subject: &Subject, trial: &Trial, record: &Record) {
        let verdict = &record.verdict;
        let picture = subject.pictures.get(trial.picture);
        if let Some(slot) =
            Outcome::ALL.iter().position(|&o| o == verdict.outcome).and_then(|p| self.outcomes.get_mut(p))
        {
            *slot += 1;
        }
        let strikes = record.strikes.map(u64::from);
        self.strikes = if self.trials == 0 { strikes } else { self.strikes.zip(strikes).map(|(a, b)| a + b) };
        self.trials += 1;
        self.sdc_top5 += u64::from(verdict.is_sdc_top5);
        self.harmful += u64::from(verdict.outcome == Outcome::Sdc && picture.is_some_and(|p| p.is_right()));
        self.top1 += u64::from(picture.is_some_and(|p| p.label == verdict.class));
        self.top5 += u64::from(verdict.is_in_top5);
        self.shift += f64::from(verdict.shift);
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        Outcome::ALL.iter().zip(self.outcomes).find(|(o, _)| **o == outcome).map_or(0, |(_, n)| n)
    }

    fn numbers(&self) -> Shares<u64> {
        Shares {
            masked: self.outcome(Outcome::Masked),
            benign: self.outcome(Outcome::Benign),
            beneficial: self.outcome(Outcome::Beneficial),
            sdc_top1: self.outcome(Outcome::Sdc),
            sdc_top5: self.sdc_top5,
            harmful: self.harmful,
        }
    }

    fn shares(&self, population: Option<u64>, z: f64) -> Shares<Share> {
        self.numbers().map(|&count| Share::new(count, self.trials, population, z))
    }

    fn mean_shift(&self) -> f64 {
        if self.trials == 0 { 0.0 } else { self.shift / self.trials as f64 }
    }
}

impl<T> Shares<T> {
    /// The same shape with other values.
    pub fn map<U>(&self, of: impl Fn(&T) -> U) -> Shares<U> {
        Shares {
            masked: of(&self.masked),
            benign: of(&self.benign),
            beneficial: of(&self.beneficial),
            sdc_top1: of(&self.sdc_top1),
            sdc_top5: of(&self.sdc_top5),
            harmful: of(&self.harmful),
        }
    }
}

/// The parts of one group: a weight, the counts, and the population where the part is a whole cell.
#[derive(Default)]
struct Parts(Vec<(u64, Counts, Option<u64>)>);

impl Parts {
    /// Weighted share of what `of` counts. Parts without trials widen the interval: nothing is known of them.
    fn estimate(&self, of: impl Fn(&Counts) -> u64, z: f64) -> Estimate {
        let weight_of = |parts: &mut dyn Iterator<Item = &(u64, Counts, Option<u64>)>| {
            parts.map(|(weight, _, _)| *weight as f64).sum::<f64>()
        };
        let all = weight_of(&mut self.0.iter());
        let seen = weight_of(&mut self.0.iter().filter(|(_, counts, _)| counts.trials > 0));
        if seen == 0.0 {
            return Estimate { value: 0.0, low: 0.0, high: 1.0 };
        }
        let shares: Vec<(f64, Share)> = self
            .0
            .iter()
            .filter(|(_, counts, _)| counts.trials > 0)
            .map(|(weight, counts, population)| {
                (*weight as f64 / seen, Share::new(of(counts), counts.trials, *population, z))
            })
            .collect();
        let (value, Interval { low, high }) = weighted(&shares);
        let known = seen / all;
        Estimate { value, low: low * known, high: (high * known + (1.0 - known)).min(1.0) }
    }

    fn group(&self, key: GroupKey, subject: &Subject, z: f64) -> Group {
        let trials: u64 = self.0.iter().map(|(_, c, _)| c.trials).sum();
        let shift: f64 = self.0.iter().map(|(_, c, _)| c.shift).sum();
        let estimate = |of: fn(&Shares<u64>) -> u64| self.estimate(|counts| of(&counts.numbers()), z);
        Group {
            kind: key.kind,
            layer: key.layer.map(|layer| named(subject, layer)),
            site: key.site,
            bit: key.bit,
            faults: self.0.iter().map(|(weight, _, _)| weight).sum(),
            trials,
            shares: Shares {
                masked: estimate(|s| s.masked),
                benign: estimate(|s| s.benign),
                beneficial: estimate(|s| s.beneficial),
                sdc_top1: estimate(|s| s.sdc_top1),
                sdc_top5: estimate(|s| s.sdc_top5),
                harmful: estimate(|s| s.harmful),
            },
            mean_shift: if trials == 0 { 0.0 } else { shift / trials as f64 },
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    kind: String,
    layer: Option<usize>,
    site: Option<Site>,
    bit: Option<u32>,
}

fn named(subject: &Subject, layer: usize) -> (usize, String) {
    subject.layers.get(layer).map_or((layer, String::new()), |l| (l.step, l.name.clone()))
}

/// Reads the log of a complete run and writes `summary.json` and `trials.parquet`.
///
/// Memory: 64 bytes a trial.
///
/// # Errors
/// [`CampaignError::Incomplete`] when trials are missing; [`CampaignError::Damaged`] when two records of one trial
/// differ; the system's.
pub fn finish(folder: &RunFolder) -> Result<Summary, CampaignError> {
    let plan = Plan::new(&folder.campaign, &folder.subject)?;
    let records = complete_records(folder, &plan)?;
    let summary = summarise(folder, &plan, &records)?;
    let path = folder.path().join(TABLE);
    folder::replace(&path, |file| {
        table::write(file, folder, &plan, &records)
            .map_err(|e| CampaignError::Table { path: path.clone(), what: e.to_string() })
    })?;
    folder::write_whole(&folder.path().join(SUMMARY), &folder::json(&summary))?;
    Ok(summary)
}

/// Reads `summary.json` of a finished run.
///
/// # Errors
/// [`CampaignError::Io`] when there is none, [`CampaignError::Damaged`].
pub fn read_summary(folder: &RunFolder) -> Result<Summary, CampaignError> {
    folder::read_json(&folder.path().join(SUMMARY))
}

/// The records that count, by trial number.
fn complete_records(folder: &RunFolder, plan: &Plan) -> Result<Vec<Record>, CampaignError> {
    let subject = &folder.subject;
    let mut tally = Tally::new(plan, &folder.campaign.mode);
    let mut records: Vec<Record> = Vec::new();
    folder.records(|record| {
        if let Ok(trial) = plan.trial(record.number) {
            tally.note(trial.cell, trial.index, trial.picture, subject, &record);
            records.push(record);
        }
    })?;
    let mut counts = Vec::with_capacity(plan.cells().len());
    let mut missing = 0;
    for cell in 0..plan.cells().len() {
        match tally.next(plan, cell) {
            Next::Stopped(trials) => counts.push(trials),
            Next::Until(until) => missing += until - tally.below(cell, until).0,
        }
    }
    if missing > 0 {
        return Err(CampaignError::Incomplete { missing, planned: plan.planned() });
    }
    records.retain(|record| {
        plan.place(record.number).is_some_and(|(cell, index)| counts.get(cell).is_some_and(|&n| index < n))
    });
    records.sort_by_key(|record| record.number);
    let twice =
        records.windows(2).find(|pair| matches!(pair, [a, b] if a.number == b.number && a.to_bytes() != b.to_bytes()));
    if let Some(record) = twice.and_then(|pair| pair.first()) {
        let what = format!("two different results of trial {}: the processor is not deterministic", record.number);
        return Err(CampaignError::Damaged { path: PathBuf::from(folder.path()), what });
    }
    records.dedup_by_key(|record| record.number);
    Ok(records)
}

fn summarise(folder: &RunFolder, plan: &Plan, records: &[Record]) -> Result<Summary, CampaignError> {
    let subject = &folder.subject;
    let z = plan.z();
    let mut cells = vec![Counts::default(); plan.cells().len()];
    let mut places: BTreeMap<(Option<usize>, &str), u64> = BTreeMap::new();
    // Counts within a cell, by layer, site and bit; and by layer and channel.
    let mut within: BTreeMap<(usize, usize, Site, Option<u32>), Counts> = BTreeMap::new();
    let mut channels: BTreeMap<(usize, usize, u64), Counts> = BTreeMap::new();
    for record in records {
        let trial = plan.trial(record.number)?;
        if let Some(counts) = cells.get_mut(trial.cell) {
            counts.add(subject, &trial, record);
        }
        if let Work::Fault(fault) = trial.work {
            if record.verdict.outcome == Outcome::Masked {
                let masked = record.verdict.masked;
                let step = masked.and_then(|m| m.step).map(|s| s.0);
                *places.entry((step, masked.map_or("unknown", |m| m.by.name()))).or_default() += 1;
            }
            let key = (trial.cell, fault.layer, fault.site, fault.bit);
            within.entry(key).or_default().add(subject, &trial, record);
            if fault.site != Site::Act {
                channels.entry((trial.cell, fault.layer, fault.channel)).or_default().add(subject, &trial, record);
            }
        }
    }
    let count = |of: fn(&crate::subject::Picture) -> bool| subject.pictures.iter().filter(|p| of(p)).count() as u64;
    let pictures = subject.pictures.len() as u64;
    let summary = Summary {
        identity: folder.manifest.identity.clone(),
        confidence: folder.campaign.confidence,
        pictures: Pictures {
            count: pictures,
            clean_top1: Share::new(count(crate::subject::Picture::is_right), pictures, None, z),
            clean_top5: Share::new(count(crate::subject::Picture::is_in_top5), pictures, None, z),
        },
        trials: records.len() as u64,
        single: None,
        curves: Vec::new(),
    };
    match &folder.campaign.mode {
        Mode::Single(_) => {
            let all = records.len() as u64;
            let masked = places.into_iter().map(|((layer, by), count)| MaskedPlace {
                layer: layer.map(|l| named(subject, l)),
                by: by.to_owned(),
                share: Share::new(count, all, None, z),
            });
            let single = SingleSummary {
                overall: groups(plan, &cells, &within, subject, |_, _, _| GroupKey::default()),
                cells: plan
                    .cells()
                    .iter()
                    .zip(&cells)
                    .map(|(cell, counts)| CellSummary {
                        cell: cell.name.clone(),
                        layer_name: cell.name.layer.map(|l| named(subject, l).1),
                        faults: cell.faults,
                        population: cell.population,
                        planned: cell.planned,
                        trials: counts.trials,
                        shares: counts.shares(cell.population, z),
                        mean_shift: counts.mean_shift(),
                    })
                    .collect(),
                layers: groups(plan, &cells, &within, subject, |layer, _, _| GroupKey {
                    layer: Some(layer),
                    ..GroupKey::default()
                }),
                bits: groups(plan, &cells, &within, subject, |_, site, bit| GroupKey {
                    site: Some(site),
                    bit,
                    ..GroupKey::default()
                }),
                channels: most_vulnerable(plan, &channels, subject),
                masked: masked.collect(),
            };
            Ok(Summary { single: Some(single), ..summary })
        }
        Mode::Rate(curves) => {
            let mut points = plan.cells().iter().zip(&cells).zip(&subject.points);
            let curves = curves.iter().map(|curve| CurveSummary {
                name: curve.name.clone(),
                unit: curve.rates.unit().to_owned(),
                points: points
                    .by_ref()
                    .take(curve.rates.len())
                    .enumerate()
                    .map(|(at, ((_, counts), facts))| PointSummary {
                        rate: rate_at(&curve.rates, at),
                        definition: facts.definition.clone(),
                        expected_flips: facts.expected_flips,
                        mean_strikes: counts.strikes.map(|n| n as f64 / counts.trials.max(1) as f64),
                        trials: counts.trials,
                        top1: Share::new(counts.top1, counts.trials, None, z),
                        top5: Share::new(counts.top5, counts.trials, None, z),
                        shares: counts.shares(None, z),
                        mean_shift: counts.mean_shift(),
                    })
                    .collect(),
            });
            Ok(Summary { curves: curves.collect(), ..summary })
        }
    }
}

fn rate_at(rates: &Rates, point: usize) -> Option<f64> {
    rates.at(point)
}

/// Layer, site and bit.
type Piece = (usize, Site, Option<u32>);

/// Groups of strata, by kind and what `key` says. A cell that lies in one group whole is one part of it, with its
/// finite population; a cell that is spread over groups gives each a part per layer, site and bit.
fn groups(
    plan: &Plan,
    cells: &[Counts],
    within: &BTreeMap<(usize, usize, Site, Option<u32>), Counts>,
    subject: &Subject,
    key: impl Fn(usize, Site, Option<u32>) -> GroupKey,
) -> Vec<Group> {
    let mut groups: BTreeMap<GroupKey, Parts> = BTreeMap::new();
    for (position, (cell, counts)) in plan.cells().iter().zip(cells).enumerate() {
        let pieces: Vec<(GroupKey, Piece, u64)> = cell
            .pieces()
            .map(|(layer, site, bit, faults)| {
                (GroupKey { kind: cell.name.kind.clone(), ..key(layer, site, bit) }, (layer, site, bit), faults)
            })
            .collect();
        let is_whole = pieces.windows(2).all(|pair| matches!(pair, [a, b] if a.0 == b.0));
        if let (true, Some((key, _, _))) = (is_whole, pieces.first()) {
            groups.entry(key.clone()).or_default().0.push((cell.faults, *counts, cell.population));
            continue;
        }
        for (key, (layer, site, bit), faults) in pieces {
            let counts = within.get(&(position, layer, site, bit)).copied().unwrap_or_default();
            groups.entry(key).or_default().0.push((faults, counts, None));
        }
    }
    groups.into_iter().map(|(key, parts)| parts.group(key, subject, plan.z())).collect()
}

/// Every struck output channel, the surest to be vulnerable first.
fn most_vulnerable(
    plan: &Plan,
    channels: &BTreeMap<(usize, usize, u64), Counts>,
    subject: &Subject,
) -> Vec<ChannelSummary> {
    let mut parts: BTreeMap<(String, usize, u64), Parts> = BTreeMap::new();
    for (&(position, layer, channel), &counts) in channels {
        let Some(cell) = plan.cells().get(position) else { continue };
        // All channels of a stratum have equally many faults: the layer's share of the cell weighs them all alike.
        let faults: u64 =
            cell.pieces().filter(|&(l, site, _, _)| l == layer && site != Site::Act).map(|(_, _, _, n)| n).sum();
        parts.entry((cell.name.kind.clone(), layer, channel)).or_default().0.push((faults, counts, None));
    }
    let mut channels: Vec<ChannelSummary> = parts
        .into_iter()
        .map(|((kind, layer, channel), parts)| ChannelSummary {
            kind,
            layer: named(subject, layer),
            channel,
            trials: parts.0.iter().map(|(_, c, _)| c.trials).sum(),
            sdc_top1: parts.estimate(|counts| counts.outcome(Outcome::Sdc), plan.z()),
        })
        .collect();
    channels
        .sort_by(|a, b| b.sdc_top1.low.total_cmp(&a.sdc_top1.low).then(b.sdc_top1.value.total_cmp(&a.sdc_top1.value)));
    channels
}
