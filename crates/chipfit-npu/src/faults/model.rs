//! The resolved fault model, and how its strikes are drawn.
//!
//! Every cell (entry, step, site, probability) has streams of its own, keyed by (seed, trial, picture), step, site,
//! replica, entry and part: what is drawn depends on nothing else. One stream says how many units are struck and
//! which; a second one says what a random change is.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counts::{Chunks, PoissonCount, Urn};
use super::file::Lifetime;
use super::generator::{Key, Stream};
use super::population::readers;
use super::positions::subset;
use super::words::Exposed;
use super::{Change, DrawKey, Site, Strike, StrikeSource};
use crate::machine::Machine;
use crate::program::{ConvGeometry, StepId, Word};

/// Purposes of keys; streams of different purposes never meet.
const PER_INFERENCE: u64 = 1;
const PER_LOAD: u64 = 2;
const PER_CAMPAIGN: u64 = 3;
const SPLIT: u64 = 4;
/// Absorbed last by a cell's second stream.
const VALUES: u64 = 5;

/// A fault model on one program: what a [`super::FaultsFile`] means there.
#[derive(Clone, Debug)]
pub struct Faults {
    machine: Machine,
    seed: u64,
    load: u64,
    /// By step, sorted by site, entry and part.
    pub(super) cells: Vec<Vec<Cell>>,
    pub(super) groups: Vec<Group>,
    pub(super) definitions: Vec<String>,
    /// Tells models apart in the per-thread memory of splits.
    identity: u64,
}

/// Units of one step and site that share one way of being struck.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// The `[[fault]]`, from 0.
    pub entry: u32,
    /// Tells the cells of one entry, step and site apart: bits of different probability.
    pub part: u32,
    pub site: Site,
    pub exposed: Exposed,
    pub effect: Effect,
    pub amount: Amount,
    pub lifetime: Lifetime,
    /// `reuse`, and how many consumers a word has.
    pub consumers: Option<(u32, Consumers)>,
}

/// How many units of a cell are struck.
#[derive(Clone, Debug)]
pub(super) enum Amount {
    /// Binomial.
    Each { p: f64, chunks: Chunks },
    /// All.
    Every,
    /// A fixed number.
    Exactly(u64),
    /// A share of the entry's number.
    Shared { group: usize, leaf: usize },
    /// Poisson, with replacement.
    Poisson { mean: f64, count: PoissonCount },
}

/// A number of faults that several cells share.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub entry: u32,
    pub count: u64,
    pub pick: Pick,
}

/// How a shared number falls on cells.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    /// Every unit is as likely.
    Units(Urn),
    /// Every cell is as likely.
    Cells(u64),
}

/// What a strike does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    /// Bits from the unit's bit upwards flip.
    Flip {
        length: u32,
    },
    Clear,
    Raise,
    /// A random word of so many bits.
    Random {
        bits: u32,
    },
    Set(u32),
    /// Plus or minus 2^0 to 2^7, saturating.
    Power {
        word: Word,
    },
    /// A uniform real value, quantised; `flip` turns a biased byte into the stored word.
    Real {
        low: f64,
        high: f64,
        scale: f64,
        zero_point: f64,
        flip: u32,
    },
}

/// How many consumers read a word of a buffer.
#[derive(Clone, Debug)]
pub(super) enum Consumers {
    Constant(u32),
    Window(ConvGeometry),
}

impl Faults {
    pub(super) fn new(
        machine: Machine,
        seed: u64,
        cells: Vec<Vec<Cell>>,
        groups: Vec<Group>,
        definitions: Vec<String>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let identity = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { machine, seed, load: 0, cells, groups, definitions, identity }
    }

    /// The simulated chip that the file describes.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// The seed given to [`Faults::resolve`].
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The key of a trial and a picture with this model's seed.
    pub fn key(&self, trial: u64, picture: u64) -> DrawKey {
        DrawKey { seed: self.seed, trial, picture }
    }

    /// Says that buffers were loaded anew: faults with the lifetime `load` are drawn for this number from now on.
    pub fn set_load(&mut self, load: u64) {
        self.load = load;
    }

    /// How many of a group's faults fall on one of its cells.
    fn share(&self, key: &DrawKey, group: usize, leaf: usize, lifetime: Lifetime) -> u64 {
        let shared = &self.groups[group];
        let split = self.base(key, lifetime).with(SPLIT).with(u64::from(shared.entry));
        match &shared.pick {
            Pick::Cells(cells) => u64::from(split.stream().below(*cells) == leaf as u64) * shared.count,
            Pick::Units(urn) => {
                remembered((self.identity, group, split), leaf, || urn.split(&mut split.stream(), shared.count))
            }
        }
    }

    /// The key of everything that is drawn anew at once.
    fn base(&self, key: &DrawKey, lifetime: Lifetime) -> Key {
        match lifetime {
            Lifetime::Inference => Key::new(PER_INFERENCE).with(key.seed).with(key.trial).with(key.picture),
            Lifetime::Load => Key::new(PER_LOAD).with(key.seed).with(self.load),
            Lifetime::Campaign => Key::new(PER_CAMPAIGN).with(key.seed),
        }
    }
}

impl StrikeSource for Faults {
    fn strikes(&self, key: &DrawKey, step: StepId, replica: u8, out: &mut Vec<Strike>) {
        let Some(cells) = self.cells.get(step.0).filter(|cells| !cells.is_empty()) else { return };
        let start = out.len();
        let fresh = self.base(key, Lifetime::Inference);
        for cell in cells {
            if replica > 0 && matches!(cell.site, Site::Weight | Site::Act) {
                continue;
            }
            let base = match cell.lifetime {
                Lifetime::Inference => fresh,
                lifetime => self.base(key, lifetime),
            };
            let place = (step.0 as u64) << 16 | (cell.site as u64) << 8 | u64::from(replica);
            let own = base.with(place).with(u64::from(cell.entry) << 32 | u64::from(cell.part));
            let share = match cell.amount {
                Amount::Shared { group, leaf } => self.share(key, group, leaf, cell.lifetime),
                _ => 0,
            };
            cell.draw(own, share, out);
        }
        if !out[start..].is_sorted() {
            out[start..].sort_unstable();
        }
    }
}

impl Cell {
    /// Appends this cell's strikes; ascending unless `reuse` shuffles strikes of one word.
    fn draw(&self, key: Key, share: u64, out: &mut Vec<Strike>) {
        let mut stream = key.stream();
        let mut values = key.with(VALUES).stream();
        let mut strike = |unit: u64| {
            let (word, bit) = self.exposed.unit(unit);
            let change = self.effect.change(bit, &mut values);
            let mut strike = Strike::new(self.site, word, change);
            if let Some((uses, consumers)) = &self.consumers {
                let runs = u64::from(consumers.of(word).div_ceil(*uses)).max(1);
                strike.first_use = values.below(runs) as u32 * uses;
                strike.uses = *uses;
            }
            out.push(strike);
        };
        match &self.amount {
            Amount::Each { chunks, .. } => chunks.draw(&mut stream, strike),
            Amount::Every => (0..self.exposed.units()).for_each(strike),
            Amount::Exactly(count) => subset(&mut stream, self.exposed.units(), *count).into_iter().for_each(strike),
            Amount::Shared { .. } => subset(&mut stream, self.exposed.units(), share).into_iter().for_each(strike),
            Amount::Poisson { count, .. } => {
                let units = self.exposed.units();
                let mut struck: Vec<u64> = (0..count.count(&mut stream)).map(|_| stream.below(units)).collect();
                struck.sort_unstable();
                // A unit that is drawn twice is struck once.
                struck.dedup();
                struck.into_iter().for_each(&mut strike);
            }
        }
    }
}

impl Consumers {
    fn of(&self, word: u64) -> u32 {
        match self {
            Self::Constant(count) => *count,
            Self::Window(geometry) => u32::try_from(readers(geometry, word as usize)).unwrap_or(u32::MAX),
        }
    }
}

impl Effect {
    #[inline]
    fn change(self, bit: u32, values: &mut Stream) -> Change {
        match self {
            Self::Flip { length } => Change::Xor((u32::MAX >> (32 - length)) << bit),
            Self::Clear => Change::Clear(1 << bit),
            Self::Raise => Change::Raise(1 << bit),
            Self::Random { bits } => Change::Set((values.bits() >> (64 - bits)) as u32),
            Self::Set(value) => Change::Set(value),
            Self::Power { word } => {
                let random = values.below(16);
                let size = 1 << (random & 7);
                let step = if random < 8 { size } else { -size };
                match word {
                    Word::Signed => Change::AddSigned(step),
                    Word::Unsigned => Change::AddUnsigned(step),
                }
            }
            Self::Real { low, high, scale, zero_point, flip } => {
                let real = low + (high - low) * values.unit();
                let byte = ((real / scale).round_ties_even() + zero_point).clamp(0.0, 255.0) as u8;
                Change::Set(u32::from(byte) ^ flip)
            }
        }
    }
}

/// What one split is known by: the model, the group and the key.
type SplitKey = (u64, usize, Key);

/// A split that a thread remembers.
type Remembered = Option<(SplitKey, Vec<u64>)>;

/// Splits that this thread remembers; a batch is computed step by step, so that pictures alternate.
const REMEMBERED: usize = 128;

thread_local! {
    static SPLITS: RefCell<Vec<Remembered>> = const { RefCell::new(Vec::new()) };
}

/// One cell's number of a split that is computed at most once while this thread remembers it.
fn remembered(key: SplitKey, leaf: usize, split: impl FnOnce() -> Vec<u64>) -> u64 {
    SPLITS.with_borrow_mut(|splits| {
        splits.resize(REMEMBERED, None);
        let slot = &mut splits[(key.2.hash() % REMEMBERED as u64) as usize];
        match slot {
            Some((known, numbers)) if *known == key => numbers[leaf],
            _ => {
                let numbers = split();
                let number = numbers[leaf];
                *slot = Some((key, numbers));
                number
            }
        }
    })
}
