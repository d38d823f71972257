//! Why a faults or plan file was refused.

use super::Site;

/// Why a faults file was refused; nothing was resolved then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultsError {
    /// Not TOML, an unknown key, or a value of the wrong type; the message has line and key.
    #[error("faults file: {0}")]
    Format(Box<toml::de::Error>),
    /// No `[[fault]]` at all.
    #[error("faults file: no [[fault]] entry; the least one has sites, kind and ber")]
    Empty,
    /// A key that is missing, superfluous or out of its range.
    #[error("[[fault]] {fault}: key '{key}' {what}")]
    Key {
        /// Number of the entry, from 1.
        fault: usize,
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
    /// No step has this name, matches this pattern or has this index.
    #[error("[[fault]] {fault}: no layer is {layer}{hint}")]
    NoSuchLayer {
        /// Number of the entry, from 1.
        fault: usize,
        /// As the file has it.
        layer: String,
        /// Names nearest to it.
        hint: String,
    },
    /// A site of the entry exposes no bit of the model.
    #[error("[[fault]] {fault}: site {site} exposes nothing: {why}")]
    NothingExposed {
        /// Number of the entry, from 1.
        fault: usize,
        /// The site.
        site: Site,
        /// Why.
        why: &'static str,
    },
    /// More faults per inference than exposed units.
    #[error("[[fault]] {fault}: count = {count}, but only {exposed} units are exposed")]
    CountTooLarge {
        /// Number of the entry, from 1.
        fault: usize,
        /// What the file wants.
        count: u64,
        /// What there is.
        exposed: u64,
    },
    /// So many faults per inference that they would fill the memory.
    #[error("{what}: {expected:.0} faults expected per inference, more than 67108864 in one step; lower the rate")]
    TooMany {
        /// The step or entry.
        what: String,
        /// Expected number.
        expected: f64,
    },
}
