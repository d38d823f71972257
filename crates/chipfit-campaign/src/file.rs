//! The campaign file: TOML in, checked settings out. Reference: `docs/campaigns.md`.
//!
//! Unknown keys are refused by name. What needs the model (layer names, channel numbers, bit widths) is checked when
//! the [`plan`](crate::plan) is made.

use std::path::PathBuf;

use chipfit_npu::faults::file::{Entry, Kind as EntryKind, Layers};
use chipfit_npu::{FaultsFile, Machine, Site};
use serde::{Deserialize, Serialize};

use crate::error::CampaignError;

/// A checked campaign.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Campaign {
    /// Keys every draw.
    pub seed: u64,
    /// Worker threads; never changes a result, so it is no part of a run's identity.
    #[serde(skip)]
    pub threads: Option<usize>,
    /// The model, if the file names it; relative to the file.
    #[serde(skip)]
    pub model: Option<PathBuf>,
    /// `PATH[:SPLIT]` of the data set, if the file names it.
    #[serde(skip)]
    pub data: Option<String>,
    /// Which pictures.
    pub images: Images,
    /// Updates of an accumulator that happen at once: `acc` words per output are `ceil(K / lanes)`.
    pub lanes: u32,
    /// TMR plan; relative to the file.
    pub tmr: Option<PathBuf>,
    /// Of every interval.
    pub confidence: f64,
    /// How many trials.
    pub size: Size,
    /// What a trial is.
    pub mode: Mode,
}

/// Which pictures of the data set take part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// How many; all when absent.
    pub count: Option<u64>,
    /// Which.
    #[serde(default)]
    pub select: Select,
    /// Only pictures that the fault-free model puts into the right class.
    #[serde(default)]
    pub correct_only: bool,
}

/// Rule that picks pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// In random order, a function of the seed alone.
    #[default]
    Random,
    /// In the data set's order.
    First,
}

/// How many trials.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// In total, spread evenly over the cells.
    Total(u64),
    /// In each cell.
    PerCell(u64),
    /// As many as give this margin in each cell.
    Margin {
        /// Half width of the interval.
        margin: f64,
        /// Whether a cell stops as soon as its interval is narrow enough.
        sequential: bool,
    },
}

/// What a trial is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One fault in one inference.
    Single(Single),
    /// One inference under a fault rate; trials are pictures x repeats, once at each rate.
    Rate(Vec<Curve>),
}

/// The faults of a single-fault campaign.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Single {
    /// Sites.
    pub sites: Vec<Site>,
    /// Kinds; each is a cell of its own.
    pub kinds: Vec<Kind>,
    /// Layers.
    pub layers: Layers,
    /// Channels of each layer; all when absent.
    pub channels: Option<Vec<u64>>,
    /// Bits, 0 the lowest; all when absent. A site without a named bit has no part in it.
    pub bits: Option<Vec<u32>>,
    /// What is counted apart.
    pub cells: Vec<Axis>,
}

/// How a struck word changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One bit flips.
    Flip,
    /// One bit is 0.
    #[serde(rename = "stuck_at_0")]
    StuckAt0,
    /// One bit is 1.
    #[serde(rename = "stuck_at_1")]
    StuckAt1,
    /// This many adjacent bits flip, from the drawn bit upwards.
    Burst(u32),
    /// A random word.
    Random,
    /// This word.
    Set(u32),
}

impl Kind {
    /// Its name in files: `flip`, `stuck_at_0`, `stuck_at_1`, `burst:3`, `random`, `set:127`.
    pub fn name(self) -> String {
        match self {
            Self::Flip => "flip".to_owned(),
            Self::StuckAt0 => "stuck_at_0".to_owned(),
            Self::StuckAt1 => "stuck_at_1".to_owned(),
            Self::Burst(bits) => format!("burst:{bits}"),
            Self::Random => "random".to_owned(),
            Self::Set(word) => format!("set:{word}"),
        }
    }

    /// Whether a bit is drawn: not for kinds that replace the whole word.
    pub const fn has_bit(self) -> bool {
        !matches!(self, Self::Random | Self::Set(_))
    }

    fn parse(text: &str) -> Result<Self, CampaignError> {
        let number = |digits: &str, lowest: u32, highest: u32| {
            digits.parse::<u32>().ok().filter(|n| (lowest..=highest).contains(n)).ok_or_else(|| {
                CampaignError::key("kinds", format!("'{text}': a number from {lowest} to {highest} belongs after ':'"))
            })
        };
        match text.split_once(':') {
            None if text == "flip" => Ok(Self::Flip),
            None if text == "stuck_at_0" => Ok(Self::StuckAt0),
            None if text == "stuck_at_1" => Ok(Self::StuckAt1),
            None if text == "random" => Ok(Self::Random),
            Some(("burst", digits)) => Ok(Self::Burst(number(digits, 2, 32)?)),
            Some(("set", digits)) => Ok(Self::Set(number(digits, 0, u32::MAX)?)),
            _ => Err(CampaignError::key(
                "kinds",
                format!(
                    "unknown kind '{text}'; the kinds are flip, stuck_at_0, stuck_at_1, burst:BITS, random, set:WORD"
                ),
            )),
        }
    }
}

/// What can be counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The layer.
    Layer,
    /// The bit.
    Bit,
    /// The site.
    Site,
}

/// One curve of accuracy over a rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// For legends.
    pub name: String,
    /// What is drawn at each point.
    pub faults: CurveFaults,
    /// The rates, in the file's order.
    pub rates: Rates,
}

/// Where a curve's faults come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CurveFaults {
    /// An entry as in a faults file, without its rate.
    Entry(Box<Entry>),
    /// A faults file; relative to the campaign file.
    File(PathBuf),
}

/// The abscissa of a curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rates {
    /// Probability per exposed unit.
    Ber(Vec<f64>),
    /// Faults per inference.
    Count(Vec<u64>),
    /// What a preset calls its rate.
    Rate(Vec<f64>),
    /// The faults file as it is: one point.
    AsFile,
}

impl Rates {
    /// Number of points.
    pub fn len(&self) -> usize {
        match self {
            Self::Ber(rates) | Self::Rate(rates) => rates.len(),
            Self::Count(counts) => counts.len(),
            Self::AsFile => 1,
        }
    }

    /// Whether there is no point.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `point`.
    pub fn at(&self, point: usize) -> Option<f64> {
        match self {
            Self::Ber(rates) | Self::Rate(rates) => rates.get(point).copied(),
            Self::Count(counts) => counts.get(point).map(|&n| n as f64),
            Self::AsFile => None,
        }
    }

    /// The key in the file: `ber`, `count`, `rate`, or `file`.
    pub const fn unit(&self) -> &'static str {
        match self {
            Self::Ber(_) => "ber",
            Self::Count(_) => "count",
            Self::Rate(_) => "rate",
            Self::AsFile => "file",
        }
    }
}

impl Curve {
    /// The faults file of one point; `None` for a curve with a file of its own, or beyond the last point.
    pub fn faults_file(&self, point: usize, machine: Machine) -> Option<FaultsFile> {
        let CurveFaults::Entry(entry) = &self.faults else { return None };
        let mut entry = Entry::clone(entry);
        match &self.rates {
            Rates::Ber(rates) => entry.ber = Some(*rates.get(point)?),
            Rates::Count(counts) => entry.count = Some(*counts.get(point)?),
            Rates::Rate(rates) => entry.rate = Some(*rates.get(point)?),
            Rates::AsFile => return None,
        }
        Some(FaultsFile { processor: machine, faults: vec![entry] })
    }
}

/// The file as it is written, both modes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    mode: RawMode,
    seed: u64,
    threads: Option<usize>,
    model: Option<PathBuf>,
    data: Option<String>,
    images: Option<toml::Value>,
    lanes: Option<u32>,
    tmr: Option<PathBuf>,
    confidence: Option<f64>,
    margin: Option<f64>,
    sequential: Option<bool>,
    trials: Option<u64>,
    trials_per_cell: Option<u64>,
    sites: Option<Vec<Site>>,
    kinds: Option<Vec<String>>,
    layers: Option<Layers>,
    channels: Option<Vec<u64>>,
    bits: Option<Vec<u32>>,
    cells: Option<Vec<Axis>>,
    repeats: Option<u64>,
    curve: Option<Vec<toml::Table>>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawMode {
    Single,
    Rate,
}

impl Campaign {
    /// Reads the text of a campaign file.
    ///
    /// # Errors
    /// [`CampaignError::Toml`] naming line and key; [`CampaignError::Key`] for values that cannot be meant.
    pub fn parse(text: &str) -> Result<Self, CampaignError> {
        let raw: Raw = toml::from_str(text).map_err(|e| CampaignError::Toml(e.to_string().trim_end().to_owned()))?;
        let confidence = raw.confidence.unwrap_or(0.95);
        if !(0.5..=0.999_999).contains(&confidence) {
            return Err(CampaignError::key("confidence", format!("{confidence} is not between 0.5 and 0.999999")));
        }
        if raw.threads == Some(0) {
            return Err(CampaignError::key("threads", "at least 1"));
        }
        let images = raw.images.map_or(Ok(Images::default()), images)?;
        if images.count == Some(0) {
            return Err(CampaignError::key("images", "at least 1 picture"));
        }
        let lanes = raw.lanes.unwrap_or(1);
        if lanes == 0 {
            return Err(CampaignError::key("lanes", "at least 1"));
        }
        let foreign: &[(&str, bool)] = match raw.mode {
            RawMode::Single => &[("repeats", raw.repeats.is_some()), ("curve", raw.curve.is_some())],
            RawMode::Rate => &[
                ("sites", raw.sites.is_some()),
                ("kinds", raw.kinds.is_some()),
                ("layers", raw.layers.is_some()),
                ("channels", raw.channels.is_some()),
                ("bits", raw.bits.is_some()),
                ("cells", raw.cells.is_some()),
                ("trials", raw.trials.is_some()),
                ("trials_per_cell", raw.trials_per_cell.is_some()),
            ],
        };
        if let Some((key, _)) = foreign.iter().find(|(_, given)| *given) {
            let what = match raw.mode {
                RawMode::Single => "belongs to mode = \"rate\"",
                RawMode::Rate => {
                    "belongs to mode = \"single\"; with mode = \"rate\" sites and masks stand in [[curve]]"
                }
            };
            return Err(CampaignError::key(*key, what));
        }
        let (size, mode) = match raw.mode {
            RawMode::Single => {
                let size = size(raw.trials, raw.trials_per_cell, raw.margin, raw.sequential)?;
                let single = Single {
                    sites: distinct("sites", raw.sites.unwrap_or_else(|| vec![Site::Mul, Site::Acc]))?,
                    kinds: kinds(raw.kinds)?,
                    layers: raw.layers.unwrap_or_default(),
                    channels: raw.channels.map(|c| distinct("channels", c)).transpose()?,
                    bits: raw.bits.map(|b| distinct("bits", b)).transpose()?,
                    cells: raw.cells.unwrap_or_else(|| vec![Axis::Layer, Axis::Bit, Axis::Site]),
                };
                (size, Mode::Single(single))
            }
            RawMode::Rate => {
                let repeats = raw.repeats.unwrap_or(1);
                if repeats == 0 {
                    return Err(CampaignError::key("repeats", "at least 1"));
                }
                let size = match (raw.margin, raw.sequential) {
                    (None, None | Some(false)) => Size::PerCell(repeats),
                    (Some(margin), sequential) if raw.repeats.is_none() => {
                        Size::Margin { margin: checked_margin(margin)?, sequential: sequential.unwrap_or(false) }
                    }
                    (None, Some(true)) => return Err(CampaignError::key("sequential", "needs a `margin`")),
                    (Some(_), _) => return Err(CampaignError::key("repeats", "give `repeats` or `margin`, not both")),
                };
                let curves = raw.curve.unwrap_or_default();
                if curves.is_empty() {
                    return Err(CampaignError::key("curve", "mode = \"rate\" needs at least one [[curve]] table"));
                }
                (size, Mode::Rate(curves.into_iter().enumerate().map(|(i, c)| curve(i, c)).collect::<Result<_, _>>()?))
            }
        };
        Ok(Self {
            seed: raw.seed,
            threads: raw.threads,
            model: raw.model,
            data: raw.data,
            images,
            lanes,
            tmr: raw.tmr,
            confidence,
            size,
            mode,
        })
    }

    /// Whether cells stop early.
    pub const fn is_sequential(&self) -> bool {
        matches!(self.size, Size::Margin { sequential: true, .. })
    }
}

/// `images = COUNT` or a table; read by hand so that a wrong key in the table is named.
fn images(value: toml::Value) -> Result<Images, CampaignError> {
    match value {
        toml::Value::Integer(count) => {
            let count = u64::try_from(count).map_err(|_| CampaignError::key("images", format!("{count} pictures")))?;
            Ok(Images { count: Some(count), ..Images::default() })
        }
        table => table.try_into().map_err(|e| CampaignError::key("images", e.to_string().trim_end())),
    }
}

fn size(
    total: Option<u64>,
    per_cell: Option<u64>,
    margin: Option<f64>,
    sequential: Option<bool>,
) -> Result<Size, CampaignError> {
    if sequential == Some(true) && margin.is_none() {
        return Err(CampaignError::key("sequential", "needs a `margin`"));
    }
    match (total, per_cell, margin) {
        (Some(0), None, None) => Err(CampaignError::key("trials", "at least 1")),
        (None, Some(0), None) => Err(CampaignError::key("trials_per_cell", "at least 1")),
        (Some(n), None, None) => Ok(Size::Total(n)),
        (None, Some(n), None) => Ok(Size::PerCell(n)),
        (None, None, Some(margin)) => {
            Ok(Size::Margin { margin: checked_margin(margin)?, sequential: sequential.unwrap_or(false) })
        }
        (None, None, None) => Err(CampaignError::key("trials", "give `trials`, `trials_per_cell` or `margin`")),
        _ => Err(CampaignError::key("trials", "give one of `trials`, `trials_per_cell` and `margin`")),
    }
}

fn checked_margin(margin: f64) -> Result<f64, CampaignError> {
    if (1e-6..0.5).contains(&margin) {
        Ok(margin)
    } else {
        Err(CampaignError::key("margin", format!("{margin} is not between 0.000001 and 0.5")))
    }
}

fn distinct<T: Ord + std::fmt::Debug>(key: &str, mut list: Vec<T>) -> Result<Vec<T>, CampaignError> {
    if list.is_empty() {
        return Err(CampaignError::key(key, "the list is empty"));
    }
    list.sort_unstable();
    match list.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
        Some(pair) => Err(CampaignError::key(key, format!("{:?} stands there twice", pair.first()))),
        None => Ok(list),
    }
}

fn kinds(names: Option<Vec<String>>) -> Result<Vec<Kind>, CampaignError> {
    let kinds: Result<Vec<Kind>, _> =
        names.unwrap_or_else(|| vec!["flip".to_owned()]).iter().map(|name| Kind::parse(name)).collect();
    distinct("kinds", kinds?)
}

fn curve(position: usize, mut table: toml::Table) -> Result<Curve, CampaignError> {
    let place = format!("curve[{position}]");
    let key = |name: &str| format!("{place}.{name}");
    let name: Option<String> = take(&mut table, &place, "name")?;
    let file: Option<PathBuf> = take(&mut table, &place, "faults")?;
    let ber: Option<Vec<f64>> = take(&mut table, &place, "ber")?;
    let count: Option<Vec<u64>> = take(&mut table, &place, "count")?;
    let rate: Option<Vec<f64>> = take(&mut table, &place, "rate")?;
    let rates = match (ber, count, rate, &file) {
        (Some(ber), None, None, None) => Rates::Ber(ber),
        (None, Some(count), None, None) => Rates::Count(count),
        (None, None, Some(rate), None) => Rates::Rate(rate),
        (None, None, None, Some(_)) => Rates::AsFile,
        (.., Some(_)) => return Err(CampaignError::key(key("faults"), "the faults file has its own rates")),
        _ => {
            return Err(CampaignError::key(
                key("ber"),
                "give one list: `ber`, `count` or `rate` (or a file: `faults`)",
            ));
        }
    };
    if rates.is_empty() {
        return Err(CampaignError::key(key(rates.unit()), "the list is empty"));
    }
    if let Some(path) = file {
        if let Some(other) = table.keys().next() {
            return Err(CampaignError::key(key(other), "stands in the faults file when `faults` is given"));
        }
        let name = name.unwrap_or_else(|| path.display().to_string());
        return Ok(Curve { name, faults: CurveFaults::File(path), rates });
    }
    let mut entry: Entry = toml::Value::Table(table)
        .try_into()
        .map_err(|e: toml::de::Error| CampaignError::key(&place, e.to_string().trim_end()))?;
    if entry.preset.is_none() {
        entry.sites.get_or_insert_with(|| vec![Site::Mul, Site::Acc]);
        entry.kind.get_or_insert(EntryKind::Flip);
    }
    let sites = entry.sites.iter().flatten().map(|s| s.name()).collect::<Vec<_>>().join("+");
    let own_name = entry.preset.map_or(sites, |preset| preset.name().to_owned());
    let curve = Curve { name: name.unwrap_or(own_name), faults: CurveFaults::Entry(Box::new(entry)), rates };
    for point in 0..curve.rates.len() {
        // The rules are those of the faults file; its own words say which key is wrong.
        if let Some(file) = curve.faults_file(point, Machine::default()) {
            FaultsFile::parse(&file.to_toml()).map_err(|e| CampaignError::key(&place, e.to_string()))?;
        }
    }
    Ok(curve)
}

/// Takes a key out of a table.
fn take<T: serde::de::DeserializeOwned>(
    table: &mut toml::Table,
    place: &str,
    name: &str,
) -> Result<Option<T>, CampaignError> {
    let wrong = |e: toml::de::Error| CampaignError::key(format!("{place}.{name}"), e.to_string().trim_end());
    table.remove(name).map(|value| value.try_into().map_err(wrong)).transpose()
}

#[cfg(test)]
mod tests;
