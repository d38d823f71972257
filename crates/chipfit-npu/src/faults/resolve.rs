//! From a faults file and a program to the cells that are drawn: one per entry, step, site and probability.

use std::collections::BTreeMap;

use super::counts::{Chunks, PoissonCount, Urn};
use super::file::{Entry, FaultsFile, Kind, Layers, Lifetime, Mode, Preset};
use super::model::{Amount, Cell, Consumers, Effect, Faults, Group, Pick};
use super::select::select;
use super::words::{Exposed, Mask};
use super::{FaultsError, Population, Site, population};
use crate::machine::Machine;
use crate::program::{Op, Program, StepId};

/// More expected faults than this in one step of one inference are refused: they would fill the memory.
pub(super) const MOST_PER_STEP: f64 = (1u64 << 26) as f64;

/// How often, before the program is known.
#[derive(Clone, Debug)]
enum Rate {
    /// Binomial, per unit.
    Each(f64),
    /// Exactly `round(p * units)` per step and site.
    Rounded(f64),
    /// Binomial per bit, bit 0 first.
    Profile(Vec<f64>),
    /// Every unit, always.
    Always,
    /// So many over the whole entry.
    Count,
    /// One in one step, all steps equally likely.
    OneLayer,
    /// Poisson with this mean per word, with replacement.
    Poisson(f64),
    /// Exactly `round(p * MACs)` per step.
    PerMac(f64),
    /// Exactly `round(p * outputs)` per step.
    PerOutput(f64),
}

/// What an entry says of one site.
struct Spec<'a> {
    site: Site,
    kind: What,
    rate: Rate,
    bits: Option<&'a [u32]>,
    reuse: Option<u32>,
}

/// What happens to a struck word, before the tensor is known.
#[derive(Clone, Copy)]
enum What {
    Kind { kind: Kind, length: u32, value: i64 },
    HighestBit,
    Real { low: f64, high: f64 },
    Power,
}

impl What {
    const FLIP: Self = Self::Kind { kind: Kind::Flip, length: 1, value: 0 };

    fn is_word(self) -> bool {
        match self {
            Self::Kind { kind, .. } => kind.is_word(),
            Self::HighestBit => false,
            Self::Real { .. } | Self::Power => true,
        }
    }

    /// How many adjacent bits a strike needs from its own bit upwards.
    fn span(self) -> u32 {
        match self {
            Self::Kind { kind: Kind::Burst, length, .. } => length,
            _ => 1,
        }
    }
}

impl Faults {
    /// The fault model of a file on a program. `seed` is what [`Faults::key`] draws with.
    ///
    /// # Errors
    /// [`FaultsError`] naming the entry: a layer that does not exist, a site or mask that exposes nothing, a count
    /// above what is exposed, or more faults than fit the memory.
    pub fn resolve(file: &FaultsFile, program: &Program, seed: u64) -> Result<Self, FaultsError> {
        let mut builder = Builder {
            program,
            machine: file.processor,
            fault: 0,
            cells: vec![Vec::new(); program.steps().len()],
            groups: Vec::new(),
        };
        let mut lines = Vec::new();
        for (position, entry) in file.faults.iter().enumerate() {
            builder.fault = position + 1;
            lines.push(super::report::definition(position + 1, entry));
            builder.add(entry)?;
        }
        let mut cells = builder.cells;
        for cells in &mut cells {
            cells.sort_by_key(|cell| (cell.site, cell.entry, cell.part));
        }
        let faults = Self::new(file.processor, seed, cells, builder.groups, lines);
        faults.check_size(program)?;
        Ok(faults)
    }
}

struct Builder<'a> {
    program: &'a Program,
    machine: Machine,
    /// Number of the current entry, from 1.
    fault: usize,
    /// By step.
    cells: Vec<Vec<Cell>>,
    groups: Vec<Group>,
}

impl Builder<'_> {
    fn add(&mut self, entry: &Entry) -> Result<(), FaultsError> {
        self.check_element(entry)?;
        let steps = self.steps(entry)?;
        // Cells that share one count: where they are, and how many units they have.
        let mut shared: Vec<(StepId, usize, u64)> = Vec::new();
        for spec in specs(entry) {
            let mut units = 0;
            for &step in &steps {
                let Some(population) = population(self.program, step, spec.site, &self.machine) else { continue };
                let mask = Mask { channels: entry.channels.as_deref(), element: entry.pe };
                let bits = exposed_bits(&spec, population);
                if bits.is_empty() && !spec.kind.is_word() {
                    continue;
                }
                let exposed = Exposed::new(self.program, step, spec.site, population, mask, &self.machine, bits);
                units += exposed.units();
                if exposed.units() == 0 {
                    continue;
                }
                for (part, (exposed, amount)) in (0..).zip(self.amounts(&spec, step, exposed)) {
                    if let Amount::Shared { .. } = amount {
                        shared.push((step, self.cells[step.0].len(), exposed.units()));
                    }
                    let effect = self.effect(&spec, step, population);
                    let cell = Cell {
                        entry: (self.fault - 1) as u32,
                        part,
                        site: spec.site,
                        exposed,
                        effect,
                        amount,
                        lifetime: entry.lifetime.unwrap_or(Lifetime::Inference),
                        consumers: self.consumers(&spec, step),
                    };
                    self.cells[step.0].push(cell);
                }
            }
            if units == 0 {
                let why = "no selected layer has this site with these channels, bits or processing element";
                return Err(FaultsError::NothingExposed { fault: self.fault, site: spec.site, why });
            }
        }
        self.share(entry, &shared)
    }

    /// Gives the cells of a shared count their group and place in it.
    fn share(&mut self, entry: &Entry, shared: &[(StepId, usize, u64)]) -> Result<(), FaultsError> {
        if shared.is_empty() {
            return Ok(());
        }
        let units: Vec<u64> = shared.iter().map(|&(_, _, units)| units).collect();
        let group = self.groups.len();
        for (leaf, &(step, cell, _)) in shared.iter().enumerate() {
            self.cells[step.0][cell].amount = Amount::Shared { group, leaf };
        }
        let (count, pick) = match entry.count {
            Some(count) => (count, Pick::Units(Urn::new(&units))),
            None => (1, Pick::Cells(units.len() as u64)),
        };
        let exposed: u64 = units.iter().sum();
        if count > exposed {
            return Err(FaultsError::CountTooLarge { fault: self.fault, count, exposed });
        }
        if count as f64 > MOST_PER_STEP {
            return Err(FaultsError::TooMany { what: format!("[[fault]] {}", self.fault), expected: count as f64 });
        }
        self.groups.push(Group { entry: (self.fault - 1) as u32, count, pick });
        Ok(())
    }

    fn check_element(&self, entry: &Entry) -> Result<(), FaultsError> {
        let [rows, columns] = self.machine.array.map(|side| side.get());
        match entry.pe {
            Some([row, column]) if row >= rows || column >= columns => Err(FaultsError::Key {
                fault: self.fault,
                key: "pe",
                what: format!("[{row}, {column}] lies outside the array of {rows} rows and {columns} columns"),
            }),
            _ => Ok(()),
        }
    }

    /// The selected steps.
    fn steps(&self, entry: &Entry) -> Result<Vec<StepId>, FaultsError> {
        let layers = entry.layers.clone().unwrap_or_default();
        let mut steps = select(self.program, &layers).map_err(|missing| FaultsError::NoSuchLayer {
            fault: self.fault,
            hint: missing.hint(),
            layer: missing.layer,
        })?;
        let default_types = match entry.preset {
            Some(Preset::Pytorchfi) if layers == Layers::default() => Some(&["Conv"][..]),
            Some(Preset::Mrfi) if layers == Layers::default() => Some(&["Conv", "Gemm", "MatMul"][..]),
            _ => None,
        };
        let types: Option<Vec<&str>> = match (&entry.op_types, default_types) {
            (Some(types), _) => Some(types.iter().map(String::as_str).collect()),
            (None, defaults) => defaults.map(<[&str]>::to_vec),
        };
        let op_type = |step: &StepId| self.program.steps()[step.0].op_type.as_str();
        if let Some(types) = types {
            let mut known: Vec<&str> = steps.iter().map(op_type).collect();
            known.sort_unstable();
            known.dedup();
            steps.retain(|step| types.contains(&op_type(step)));
            if steps.is_empty() {
                let what = format!("no selected layer is {}; they are {}", types.join(" or "), known.join(", "));
                return Err(FaultsError::Key { fault: self.fault, key: "op_types", what });
            }
        }
        if entry.preset == Some(Preset::Opfi) {
            steps.retain(|step| self.program.step_products(&self.program.steps()[step.0]) > 0);
        }
        Ok(steps)
    }

    /// The cells of one step and site: several where bits differ in their probability.
    fn amounts(&self, spec: &Spec<'_>, step: StepId, exposed: Exposed) -> Vec<(Exposed, Amount)> {
        let units = exposed.units();
        let node = &self.program.steps()[step.0];
        let rounded = |mean: f64| Amount::Exactly((mean.round() as u64).min(units));
        let each = |exposed: Exposed, p: f64| {
            (p > 0.0).then(|| (exposed.clone(), Amount::Each { p, chunks: Chunks::binomial(exposed.units(), p) }))
        };
        let amount = match &spec.rate {
            Rate::Each(p) => return each(exposed, *p).into_iter().collect(),
            Rate::Profile(profile) => {
                // Bits of one probability are drawn together.
                let mut by_probability: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
                for bit in exposed.bits() {
                    let p = profile.get(*bit as usize).copied().unwrap_or(0.0);
                    by_probability.entry(p.to_bits()).or_default().push(*bit);
                }
                return by_probability
                    .into_iter()
                    .filter_map(|(p, bits)| each(exposed.with_bits(bits), f64::from_bits(p)))
                    .collect();
            }
            Rate::Always => Amount::Every,
            Rate::Rounded(p) => rounded(p * units as f64),
            Rate::PerMac(p) => rounded(p * self.program.step_macs(node) as f64),
            Rate::PerOutput(p) => rounded(p * self.program.tensor(node.output).elements() as f64),
            Rate::Count | Rate::OneLayer => Amount::Shared { group: usize::MAX, leaf: 0 },
            Rate::Poisson(rate) => {
                let mean = rate * exposed.words() as f64;
                Amount::Poisson { mean, count: PoissonCount::new(mean) }
            }
        };
        vec![(exposed, amount)]
    }

    fn effect(&self, spec: &Spec<'_>, step: StepId, population: Population) -> Effect {
        let out = self.program.tensor(self.program.steps()[step.0].output);
        match spec.kind {
            What::HighestBit => Effect::Flip { length: 1 },
            What::Power => Effect::Power { word: out.word },
            What::Real { low, high } => Effect::Real {
                low,
                high,
                scale: f64::from(out.scale),
                zero_point: f64::from(out.zero_point),
                flip: u32::from(out.to_word(0)),
            },
            What::Kind { kind, length, value } => match kind {
                Kind::Flip => Effect::Flip { length: 1 },
                Kind::Burst => Effect::Flip { length },
                Kind::StuckAt0 => Effect::Clear,
                Kind::StuckAt1 => Effect::Raise,
                Kind::Random => Effect::Random { bits: population.bits },
                // Two's complement of the word's width; `Change::apply` masks it.
                Kind::Set => Effect::Set(value as u32),
            },
        }
    }

    fn consumers(&self, spec: &Spec<'_>, step: StepId) -> Option<(u32, Consumers)> {
        let uses = spec.reuse?;
        let consumers = match (&self.program.steps()[step.0].op, spec.site) {
            (Op::Linear(linear), Site::Weight) => {
                let pixels: usize = linear.geometry.output().iter().product();
                Consumers::Constant(u32::try_from(pixels).unwrap_or(u32::MAX))
            }
            (Op::Linear(linear), Site::Act) => Consumers::Window(linear.geometry.clone()),
            (Op::MatMul(product), Site::Act) => Consumers::Constant(u32::try_from(product.columns).unwrap_or(u32::MAX)),
            _ => return None,
        };
        Some((uses, consumers))
    }
}

/// The exposed bits of a word; empty when the unit is the word.
fn exposed_bits(spec: &Spec<'_>, population: Population) -> Vec<u32> {
    if spec.kind.is_word() {
        return Vec::new();
    }
    if matches!(spec.kind, What::HighestBit) {
        return vec![population.bits - 1];
    }
    let is_exposed = |bit: &u32| match (spec.bits, &spec.rate) {
        (Some(bits), _) => bits.contains(bit),
        (None, Rate::Profile(profile)) => profile.get(*bit as usize).is_some_and(|&p| p > 0.0),
        (None, _) => true,
    };
    (0..population.bits).filter(|bit| bit + spec.kind.span() <= population.bits).filter(is_exposed).collect()
}

/// What an entry says, site by site; presets written out.
fn specs(entry: &Entry) -> Vec<Spec<'_>> {
    let plain = |site, kind, rate| Spec { site, kind, rate, bits: entry.bits.as_deref(), reuse: entry.reuse };
    let rate = entry.rate.unwrap_or(0.0);
    let ber = entry.ber.unwrap_or(0.0);
    let own = || match (entry.ber, entry.count, &entry.bit_profile) {
        (Some(p), ..) if entry.rounded == Some(true) => Rate::Rounded(p),
        (Some(p), ..) => Rate::Each(p),
        (_, Some(_), _) => Rate::Count,
        (_, _, Some(profile)) => Rate::Profile(profile.clone()),
        _ => Rate::Always,
    };
    match entry.preset {
        None => {
            let kind = What::Kind {
                kind: entry.kind.unwrap_or(Kind::Flip),
                length: entry.length.unwrap_or(1),
                value: entry.value.unwrap_or(0),
            };
            entry.sites.iter().flatten().map(|&site| plain(site, kind, own())).collect()
        }
        Some(Preset::Mrfi) => {
            let kind = if entry.mode == Some(Mode::BitFlip) { What::FLIP } else { What::HighestBit };
            vec![plain(Site::Out, kind, Rate::Poisson(rate))]
        }
        Some(Preset::Pytorchfi) => {
            let [low, high] = entry.range.unwrap_or([-1.0, 1.0]);
            let kind = if entry.mode == Some(Mode::BitFlip) { What::FLIP } else { What::Real { low, high } };
            vec![plain(Site::Out, kind, Rate::OneLayer)]
        }
        Some(Preset::Opfi) => {
            let per_word = ber * f64::from(entry.operand_bits.unwrap_or(8));
            vec![
                plain(Site::Mul, What::FLIP, Rate::PerMac(2.0 * per_word)),
                plain(Site::Acc, What::FLIP, Rate::PerMac(per_word)),
                plain(Site::Out, What::FLIP, Rate::PerOutput(per_word)),
            ]
        }
        Some(Preset::Fidelity) => {
            let sites = entry.sites.clone().unwrap_or_else(|| vec![Site::Weight, Site::Act]);
            let reuse = Some(entry.reuse.unwrap_or(16));
            sites.into_iter().map(|site| Spec { reuse, ..plain(site, What::FLIP, own()) }).collect()
        }
        Some(Preset::Mibb) => vec![plain(Site::Out, What::Power, Rate::Each(rate))],
    }
}
