//! The numbered trials of a campaign.
//!
//! Trial number `t` of a plan with `C` cells is trial `t / C` of cell `t mod C`. What it does is a function of the
//! seed and of `t`: in a single-fault campaign a fault and a picture, drawn without replacement from all
//! (fault, picture) pairs of the cell; in a rate campaign a picture and the key of its draws. Neither the number of
//! trials, nor shards, nor stopping early, nor a resume changes what a number means.
//!
//! `docs/campaigns.md`, section Trials, has the formulas.

use chipfit_npu::faults::select_names;
use chipfit_npu::{Change, Site, Strike};
use serde::{Deserialize, Serialize};

use crate::error::CampaignError;
use crate::file::{Axis, Campaign, Curve, Kind, Mode, Single, Size};
use crate::random::{Permutation, hash};
use crate::statistics::{sample_size, two_sided_quantile};
use crate::subject::{Subject, Words};

/// Most cells of a campaign.
const MAX_CELLS: usize = 1 << 20;
/// Separates the purposes of draws that share a seed.
const DRAW_FAULT: u64 = 1;
const DRAW_WORD: u64 = 2;
const DRAW_ORDER: u64 = 3;

/// Trials that are counted together.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What they have in common.
    pub name: CellName,
    /// Most trials that may be made of it.
    pub planned: u64,
    /// All (fault, picture) pairs, where trials are drawn from them without replacement.
    pub population: Option<u64>,
    /// Faults that one inference is exposed to: strata's bits; 0 for a point of a curve.
    pub faults: u64,
    strata: Vec<Stratum>,
}

/// What the trials of a cell have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellName {
    /// Name of the kind; empty for a point of a curve.
    pub kind: String,
    /// Position in [`Subject::layers`], when layers are counted apart.
    pub layer: Option<usize>,
    /// Site, when sites are counted apart.
    pub site: Option<Site>,
    /// Bit, when bits are counted apart.
    pub bit: Option<u32>,
    /// Position of the curve and of the rate on it, in a rate campaign.
    pub point: Option<(usize, usize)>,
}

/// Faults of one site of one layer that lie in one cell.
#[derive(Clone, Debug, PartialEq)]
struct Stratum {
    layer: usize,
    site: Site,
    kind: Kind,
    words: Words,
    channels: Vec<u64>,
    /// `None` for kinds that replace the word.
    bits: Option<Vec<u32>>,
    /// Faults of this stratum and all before it in the cell.
    end: u64,
}

/// One fault of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Position in [`Subject::layers`]; also the step.
    pub layer: usize,
    /// Site.
    pub site: Site,
    /// Kind.
    pub kind: Kind,
    /// The (lowest) bit; `None` for kinds that replace the word.
    pub bit: Option<u32>,
    /// Channel: of the output; of the input at `act`.
    pub channel: u64,
    /// Position within the channel, row-major.
    pub position: u64,
    /// Product or update, k; 0 at other sites than `mul`, `acc`, `weight`.
    pub place: u64,
    /// What the processor is told.
    pub strike: Strike,
}

/// What one trial does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One fault.
    Fault(Fault),
    /// One inference at one point of a curve.
    Pass {
        /// Position in [`Subject::points`].
        point: usize,
        /// The `trial` of the draws' key.
        draw: u64,
    },
}

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Its number.
    pub number: u64,
    /// Position in [`Plan::cells`].
    pub cell: usize,
    /// Which trial of the cell.
    pub index: u64,
    /// Position in [`Subject::pictures`].
    pub picture: usize,
    /// What it does.
    pub work: Work,
}

/// The trials of one campaign on one subject.
#[derive(Clone, Debug)]
pub struct Plan {
    cells: Vec<Cell>,
    seed: u64,
    pictures: u64,
    /// Quantile of all intervals.
    z: f64,
    stop_at: Option<f64>,
}

impl Plan {
    /// Plans `campaign` on `subject`.
    ///
    /// # Errors
    /// [`CampaignError::Key`] for a layer, channel or bit that does not exist, no picture, no fault, too few trials
    /// for the cells, or numbers beyond 64 bits.
    pub fn new(campaign: &Campaign, subject: &Subject) -> Result<Self, CampaignError> {
        let pictures = subject.pictures.len() as u64;
        if pictures == 0 {
            return Err(CampaignError::key("images", "no picture is left"));
        }
        let z = two_sided_quantile(campaign.confidence);
        let mut cells = match &campaign.mode {
            Mode::Single(single) => single_cells(single, campaign.lanes, subject, pictures)?,
            Mode::Rate(curves) => rate_cells(curves, subject)?,
        };
        if cells.len() > MAX_CELLS {
            return Err(CampaignError::key("cells", format!("{} cells; at most {MAX_CELLS}", cells.len())));
        }
        size_cells(&mut cells, campaign, pictures, z)?;
        let n_cells = cells.len() as u64;
        if cells.iter().any(|cell| cell.planned.checked_mul(n_cells).is_none()) {
            return Err(CampaignError::key("trials", "trial numbers exceed 64 bits"));
        }
        let stop_at = match campaign.size {
            Size::Margin { margin, sequential: true } => Some(margin),
            _ => None,
        };
        Ok(Self { cells, seed: campaign.seed, pictures, z, stop_at })
    }

    /// The cells.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The normal quantile of all intervals.
    pub fn z(&self) -> f64 {
        self.z
    }

    /// The half width at which a cell stops; `None` when all planned trials are made.
    pub fn stop_at(&self) -> Option<f64> {
        self.stop_at
    }

    /// Most trials of all cells together.
    pub fn planned(&self) -> u64 {
        self.cells.iter().map(|cell| cell.planned).fold(0, u64::saturating_add)
    }

    /// The number of a cell's trial.
    pub fn number(&self, cell: usize, index: u64) -> u64 {
        index * self.cells.len() as u64 + cell as u64
    }

    /// Cell and index of a trial number, if the plan has it.
    pub fn place(&self, number: u64) -> Option<(usize, u64)> {
        let n_cells = self.cells.len() as u64;
        let cell = usize::try_from(number.checked_rem(n_cells)?).ok()?;
        let index = number / n_cells;
        (index < self.cells.get(cell)?.planned).then_some((cell, index))
    }

    /// What a trial does.
    ///
    /// # Errors
    /// [`CampaignError::NoTrial`] when the plan has no such number.
    pub fn trial(&self, number: u64) -> Result<Trial, CampaignError> {
        let unknown = || CampaignError::NoTrial {
            number,
            what: format!("number = index * {} + cell, index below the cell's planned trials", self.cells.len()),
        };
        let (position, index) = self.place(number).ok_or_else(unknown)?;
        let cell = self.cells.get(position).ok_or_else(unknown)?;
        let (picture, work) = match cell.name.point {
            Some(_) => {
                let repeat = index / self.pictures;
                let order = Permutation::new(&[self.seed, DRAW_ORDER, repeat], self.pictures);
                let draw = repeat * self.cells.len() as u64 + position as u64;
                (order.at(index % self.pictures), Work::Pass { point: position, draw })
            }
            None => {
                let pairs = cell.faults * self.pictures;
                let pair = Permutation::new(&[self.seed, DRAW_FAULT, position as u64], pairs).at(index);
                let fault =
                    cell.fault(pair % cell.faults, hash(&[self.seed, DRAW_WORD, number])).ok_or_else(unknown)?;
                (pair / cell.faults, Work::Fault(fault))
            }
        };
        let picture = usize::try_from(picture).map_err(|_| unknown())?;
        Ok(Trial { number, cell: position, index, picture, work })
    }
}

impl Cell {
    /// Layer, site, bit and number of faults of each part of the cell.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (usize, Site, Option<u32>, u64)> {
        self.strata.iter().flat_map(|stratum| {
            let bits: Vec<Option<u32>> = match &stratum.bits {
                Some(bits) => bits.iter().copied().map(Some).collect(),
                None => vec![None],
            };
            let each = stratum.faults().unwrap_or(0) / (bits.len() as u64).max(1);
            bits.into_iter().map(move |bit| (stratum.layer, stratum.site, bit, each))
        })
    }

    /// Fault `number` of the cell; `random` gives the word of kind `random`.
    fn fault(&self, number: u64, random: u64) -> Option<Fault> {
        let at = self.strata.partition_point(|stratum| stratum.end <= number);
        let stratum = self.strata.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.strata.get(before)).map_or(0, |s| s.end);
        let mut rest = number - start;
        let mut digit = |radix: u64| {
            let value = rest % radix;
            rest /= radix;
            value
        };
        let bit = match &stratum.bits {
            Some(bits) => Some(*bits.get(usize::try_from(digit(bits.len() as u64)).ok()?)?),
            None => None,
        };
        let place = digit(stratum.words.per_channel);
        let channel = *stratum.channels.get(usize::try_from(digit(stratum.channels.len() as u64)).ok()?)?;
        let position = rest;
        let mask = u32::MAX >> (32 - stratum.words.bits);
        let one = bit.map_or(0, |b| 1u32 << b);
        let change = match stratum.kind {
            Kind::Flip => Change::Xor(one),
            Kind::StuckAt0 => Change::Clear(one),
            Kind::StuckAt1 => Change::Raise(one),
            Kind::Burst(length) => Change::Xor((u32::MAX >> (32 - length)) << bit.unwrap_or(0)),
            // The high half: its bits are as good as any.
            Kind::Random => Change::Set((random >> 32) as u32 & mask),
            Kind::Set(word) => Change::Set(word & mask),
        };
        let word = stratum.words.word(position, channel, place);
        let strike = Strike { site: stratum.site, word, first_use: 0, uses: u32::MAX, change };
        Some(Fault {
            layer: stratum.layer,
            site: stratum.site,
            kind: stratum.kind,
            bit,
            channel,
            position,
            place,
            strike,
        })
    }
}

/// What a single-fault cell is known by, in the order in which cells are numbered: kind, layer, site, bit.
type CellKey = (Kind, Option<usize>, Option<Site>, Option<u32>);

fn single_cells(single: &Single, lanes: u32, subject: &Subject, pictures: u64) -> Result<Vec<Cell>, CampaignError> {
    let names: Vec<&str> = subject.layers.iter().map(|layer| layer.name.as_str()).collect();
    let layers = select_names(&names, &single.layers).map_err(|what| CampaignError::key("layers", what))?;
    let split = |axis| single.cells.contains(&axis);
    // Key of a cell first, so that sorting gives the cells' order.
    let mut strata: Vec<(CellKey, Stratum)> = Vec::new();
    for &kind in &single.kinds {
        for &layer in &layers {
            for &site in &single.sites {
                let Some(words) = subject.layers.get(layer).and_then(|l| l.words(site, lanes)) else { continue };
                let channels: Vec<u64> = match &single.channels {
                    Some(list) => list.iter().copied().filter(|&c| c < words.channels).collect(),
                    None => (0..words.channels).collect(),
                };
                if channels.is_empty() {
                    continue;
                }
                let last = match kind {
                    Kind::Burst(length) => (words.bits + 1).saturating_sub(length),
                    _ => words.bits,
                };
                let bits: Vec<u32> = match &single.bits {
                    Some(list) => list.iter().copied().filter(|&b| b < last).collect(),
                    None => (0..last).collect(),
                };
                let stratum = |bits| Stratum { layer, site, kind, words, channels: channels.clone(), bits, end: 0 };
                let key = |bit| (kind, split(Axis::Layer).then_some(layer), split(Axis::Site).then_some(site), bit);
                if !kind.has_bit() {
                    strata.push((key(None), stratum(None)));
                } else if split(Axis::Bit) {
                    strata.extend(bits.iter().map(|&bit| (key(Some(bit)), stratum(Some(vec![bit])))));
                } else if !bits.is_empty() {
                    strata.push((key(None), stratum(Some(bits))));
                }
            }
        }
    }
    if strata.is_empty() {
        return Err(CampaignError::key("sites", "no layer has a word with these sites, channels and bits"));
    }
    strata.sort_by_key(|(key, _)| *key);
    let mut cells: Vec<Cell> = Vec::new();
    for ((kind, layer, site, bit), mut stratum) in strata {
        let name = CellName { kind: kind.name(), layer, site, bit, point: None };
        let faults = stratum.faults();
        let too_many = || CampaignError::key("sites", "a cell has more faults than 64 bits can number");
        match cells.last_mut() {
            Some(cell) if cell.name == name => {
                stratum.end = faults.and_then(|f| f.checked_add(cell.faults)).ok_or_else(too_many)?;
                cell.faults = stratum.end;
                cell.strata.push(stratum);
            }
            _ => {
                stratum.end = faults.ok_or_else(too_many)?;
                cells.push(Cell { name, planned: 0, population: None, faults: stratum.end, strata: vec![stratum] });
            }
        }
    }
    for cell in &mut cells {
        let pairs = cell.faults.checked_mul(pictures).ok_or_else(|| {
            CampaignError::key("images", "a cell has more (fault, picture) pairs than 64 bits can number")
        })?;
        // A random word makes the same place a new fault each time.
        cell.population = (cell.strata.iter().all(|s| s.kind != Kind::Random)).then_some(pairs);
    }
    Ok(cells)
}

impl Stratum {
    fn faults(&self) -> Option<u64> {
        let bits = self.bits.as_ref().map_or(1, |bits| bits.len() as u64);
        let words =
            self.words.positions.checked_mul(self.channels.len() as u64)?.checked_mul(self.words.per_channel)?;
        words.checked_mul(bits)
    }
}

fn rate_cells(curves: &[Curve], subject: &Subject) -> Result<Vec<Cell>, CampaignError> {
    let points = curves.iter().enumerate().flat_map(|(c, curve)| (0..curve.rates.len()).map(move |p| (c, p)));
    let cells: Vec<Cell> = points
        .map(|point| Cell {
            name: CellName { kind: String::new(), layer: None, site: None, bit: None, point: Some(point) },
            planned: 0,
            population: None,
            faults: 0,
            strata: Vec::new(),
        })
        .collect();
    if cells.len() != subject.points.len() {
        let what = format!("{} points in the campaign, {} in the subject", cells.len(), subject.points.len());
        return Err(CampaignError::key("curve", what));
    }
    Ok(cells)
}

fn size_cells(cells: &mut [Cell], campaign: &Campaign, pictures: u64, z: f64) -> Result<(), CampaignError> {
    let n_cells = cells.len() as u64;
    let is_rate = matches!(campaign.mode, Mode::Rate(_));
    if let Size::Total(total) = campaign.size
        && total < n_cells
    {
        let what = format!("{total} trials for {n_cells} cells; give at least one each, or name fewer `cells`");
        return Err(CampaignError::key("trials", what));
    }
    for (position, cell) in cells.iter_mut().enumerate() {
        let wanted = match campaign.size {
            Size::Total(total) => total / n_cells + u64::from((position as u64) < total % n_cells),
            Size::PerCell(repeats) if is_rate => repeats
                .checked_mul(pictures)
                .ok_or_else(|| CampaignError::key("repeats", "repeats x pictures exceed 64 bits"))?,
            Size::PerCell(trials) => trials,
            Size::Margin { margin, .. } => sample_size(cell.population, margin, z),
        };
        cell.planned = cell.population.map_or(wanted, |all| wanted.min(all));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
