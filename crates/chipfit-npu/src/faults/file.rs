//! The faults file: what a `faults.toml` may say. Reference page: `docs/faults-file.md`.
//!
//! Parsing checks everything that needs no model; [`super::Faults::resolve`] checks the rest.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FaultsError, Site};
use crate::machine::Machine;

/// A parsed faults file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultsFile {
    /// The simulated chip.
    #[serde(default)]
    pub processor: Machine,
    /// The `[[fault]]` entries, in the file's order.
    #[serde(default, rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Entry>,
}

/// One `[[fault]]`: what strikes, where, how often. Absent keys have the defaults of `docs/faults-file.md`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Sites; every one is exposed on its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sites: Option<Vec<Site>>,
    /// What happens to a struck word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Probability per exposed unit and inference (a bit; a word for the kinds `random` and `set`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ber: Option<f64>,
    /// With `ber`: exactly `round(ber * units)` faults in every layer and site instead of a binomial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounded: Option<bool>,
    /// Exactly so many faults per inference, over all layers and sites of the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Probability per inference of every bit, from bit 0; bits beyond the list are not exposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bit_profile: Option<Vec<f64>>,
    /// Layers by name, pattern (`*` and `?`) or step index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// ONNX operators; only steps of these types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op_types: Option<Vec<String>>,
    /// Output channels (of the input for `act`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<u32>>,
    /// Exposed bits of the site's word; 0 is the least significant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<Vec<u32>>,
    /// Row and column of the defective processing element.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pe: Option<[u32; 2]>,
    /// Kind `burst`: how many adjacent bits flip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// Kind `set`: the word's new value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    /// How long a fault of `weight` or `act` lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
    /// How many consumers see a fault of `weight` or `act`; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<u32>,
    /// Another tool's fault model, in place of `kind` and the keys of the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// `mrfi`: mean number of faults per neuron. `mibb`: probability per neuron.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// `mrfi` and `pytorchfi`: what happens to the neuron.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// `pytorchfi`, mode `random_value`: real values, uniform in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// `opfi`: bits of an operand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operand_bits: Option<u32>,
}

/// What happens to a struck word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One bit flips.
    Flip,
    /// One bit reads 0.
    #[serde(rename = "stuck_at_0")]
    StuckAt0,
    /// One bit reads 1.
    #[serde(rename = "stuck_at_1")]
    StuckAt1,
    /// Adjacent bits flip together.
    Burst,
    /// The word becomes a uniformly random one.
    Random,
    /// The word becomes a given one.
    Set,
}

impl Kind {
    /// The name used in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::StuckAt0 => "stuck_at_0",
            Self::StuckAt1 => "stuck_at_1",
            Self::Burst => "burst",
            Self::Random => "random",
            Self::Set => "set",
        }
    }

    /// Whether the exposed unit is the whole word instead of a bit.
    pub const fn is_word(self) -> bool {
        matches!(self, Self::Random | Self::Set)
    }
}

/// How long a fault of a buffer lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// Fresh faults for every picture and trial.
    #[default]
    Inference,
    /// The same faults until the buffers are loaded again.
    Load,
    /// The same faults for the whole run.
    Campaign,
}

/// Another tool's fault model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// MRFI: Poisson numbers of struck neurons per layer, with replacement.
    Mrfi,
    /// PyTorchFI: one neuron of one layer per inference.
    Pytorchfi,
    /// OPFI: fixed numbers of struck products, partial sums and outputs.
    Opfi,
    /// FIdelity: buffer words that up to 16 consumers see.
    Fidelity,
    /// MIBB: a power of two is added to or taken from a neuron.
    Mibb,
}

impl Preset {
    /// The name used in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mrfi => "mrfi",
            Self::Pytorchfi => "pytorchfi",
            Self::Opfi => "opfi",
            Self::Fidelity => "fidelity",
            Self::Mibb => "mibb",
        }
    }
}

/// What a preset does to a neuron.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The highest bit flips.
    SignBit,
    /// One random bit flips.
    BitFlip,
    /// A random real value, quantised.
    RandomValue,
}

/// Which layers: one pattern or index, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(pub Vec<Layer>);

/// One pattern or index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Layer {
    /// A name, or a pattern with `*` (any characters) and `?` (one).
    Name(String),
    /// Index of a step.
    Index(u64),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Index(index) => write!(f, "number {index}"),
        }
    }
}

impl Default for Layers {
    /// All layers.
    fn default() -> Self {
        Self(vec![Layer::Name("*".to_owned())])
    }
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Layers(mut layers) = deserializer.deserialize_any(LayersVisitor { is_list_allowed: false })?;
        layers.pop().ok_or_else(|| de::Error::custom("a layer's name or index is missing"))
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LayersVisitor { is_list_allowed: true })
    }
}

struct LayersVisitor {
    is_list_allowed: bool,
}

impl<'de> Visitor<'de> for LayersVisitor {
    type Value = Layers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer's name, pattern or index")?;
        if self.is_list_allowed { f.write_str(", or a list of them") } else { Ok(()) }
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Layers, E> {
        Ok(Layers(vec![Layer::Name(name.to_owned())]))
    }

    fn visit_i64<E: de::Error>(self, index: i64) -> Result<Layers, E> {
        let index = u64::try_from(index).map_err(|_| E::invalid_value(de::Unexpected::Signed(index), &self))?;
        Ok(Layers(vec![Layer::Index(index)]))
    }

    fn visit_u64<E: de::Error>(self, index: u64) -> Result<Layers, E> {
        Ok(Layers(vec![Layer::Index(index)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
        if !self.is_list_allowed {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        let mut layers = Vec::new();
        while let Some(layer) = list.next_element()? {
            layers.push(layer);
        }
        Ok(Layers(layers))
    }
}

impl FaultsFile {
    /// A faults file from TOML.
    ///
    /// # Errors
    /// [`FaultsError::Format`] with line and key, [`FaultsError::Key`] for a key that is missing, superfluous or out of
    /// its range.
    pub fn parse(text: &str) -> Result<Self, FaultsError> {
        let file: Self = toml::from_str(text).map_err(|source| FaultsError::Format(Box::new(source)))?;
        if file.faults.is_empty() {
            return Err(FaultsError::Empty);
        }
        for (position, entry) in file.faults.iter().enumerate() {
            super::rules::check(entry).map_err(|(key, what)| FaultsError::Key { fault: position + 1, key, what })?;
        }
        Ok(file)
    }

    /// The file as TOML.
    pub fn to_toml(&self) -> String {
        // Every field is a plain TOML value; layers and entries serialise without maps of odd keys.
        toml::to_string(self).unwrap_or_default()
    }
}
