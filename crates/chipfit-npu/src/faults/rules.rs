//! Which keys of a `[[fault]]` go together, and their ranges.

use super::Site;
use super::file::{Entry, Kind, Mode, Preset};

/// The key and what is wrong with it.
type Objection = (&'static str, String);

/// What needs no model to be known wrong.
pub(super) fn check(entry: &Entry) -> Result<(), Objection> {
    lists(entry)?;
    match entry.preset {
        Some(preset) => preset_keys(entry, preset),
        None => own_keys(entry),
    }
}

fn refuse<T>(key: &'static str, what: impl Into<String>) -> Result<T, Objection> {
    Err((key, what.into()))
}

/// Keys that a model of faults has, with whether they are set.
fn present(entry: &Entry) -> [(&'static str, bool); 17] {
    [
        ("sites", entry.sites.is_some()),
        ("kind", entry.kind.is_some()),
        ("ber", entry.ber.is_some()),
        ("rounded", entry.rounded.is_some()),
        ("count", entry.count.is_some()),
        ("bit_profile", entry.bit_profile.is_some()),
        ("channels", entry.channels.is_some()),
        ("bits", entry.bits.is_some()),
        ("pe", entry.pe.is_some()),
        ("length", entry.length.is_some()),
        ("value", entry.value.is_some()),
        ("lifetime", entry.lifetime.is_some()),
        ("reuse", entry.reuse.is_some()),
        ("rate", entry.rate.is_some()),
        ("mode", entry.mode.is_some()),
        ("range", entry.range.is_some()),
        ("operand_bits", entry.operand_bits.is_some()),
    ]
}

/// Refuses every set key outside `allowed`.
fn only(entry: &Entry, allowed: &[&str], owner: &str) -> Result<(), Objection> {
    match present(entry).into_iter().find(|(key, is_set)| *is_set && !allowed.contains(key)) {
        Some((key, _)) => refuse(key, format!("does not belong to {owner}, whose keys are {}", allowed.join(", "))),
        None => Ok(()),
    }
}

/// Lists and numbers by themselves.
fn lists(entry: &Entry) -> Result<(), Objection> {
    if let Some(sites) = &entry.sites {
        if sites.is_empty() {
            return refuse("sites", "is empty; the sites are mul, acc, acc_out, out, weight, act");
        }
        if (1..sites.len()).any(|i| sites[..i].contains(&sites[i])) {
            return refuse("sites", "names a site twice");
        }
    }
    if entry.layers.as_ref().is_some_and(|layers| layers.0.is_empty()) {
        return refuse("layers", "is empty; leave it out or write \"*\" for all layers");
    }
    if entry.op_types.as_ref().is_some_and(Vec::is_empty) {
        return refuse("op_types", "is empty; leave it out for all operators");
    }
    if entry.channels.as_ref().is_some_and(Vec::is_empty) {
        return refuse("channels", "is empty; leave it out for all channels");
    }
    if let Some(bits) = &entry.bits {
        if bits.is_empty() {
            return refuse("bits", "is empty; leave it out for all bits");
        }
        if let Some(bit) = bits.iter().find(|&&bit| bit > 31) {
            return refuse("bits", format!("bit {bit}: no word is wider than 32 bits"));
        }
    }
    for (key, value) in [("ber", entry.ber), ("rate", entry.rate)] {
        if value.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return refuse(key, "must lie between 0 and 1");
        }
    }
    if let Some(profile) = &entry.bit_profile {
        if profile.is_empty() || profile.len() > 32 {
            return refuse("bit_profile", "needs 1 to 32 probabilities, bit 0 first");
        }
        if profile.iter().any(|p| !(0.0..=1.0).contains(p)) {
            return refuse("bit_profile", "must hold numbers between 0 and 1");
        }
    }
    if entry.reuse == Some(0) {
        return refuse("reuse", "must be at least 1");
    }
    if entry.range.is_some_and(|[low, high]| !(low.is_finite() && high.is_finite() && low <= high)) {
        return refuse("range", "must be two finite numbers, the lower first");
    }
    if entry.operand_bits.is_some_and(|bits| !(1..=16).contains(&bits)) {
        return refuse("operand_bits", "must lie between 1 and 16");
    }
    buffers(entry)
}

/// `reuse` and `lifetime` belong to buffers, `pe` to the array.
fn buffers(entry: &Entry) -> Result<(), Objection> {
    let is_buffer = |site: &Site| matches!(site, Site::Weight | Site::Act);
    let sites = entry.sites.as_deref().unwrap_or_default();
    let has_others = entry.preset != Some(Preset::Fidelity) && !sites.iter().all(is_buffer);
    if has_others {
        for (key, is_set) in [
            ("reuse", entry.reuse.is_some()),
            ("lifetime", entry.lifetime.is_some_and(|lifetime| lifetime != Default::default())),
        ] {
            if is_set {
                return refuse(key, "is for the sites weight and act only; give other sites their own [[fault]]");
            }
        }
    }
    if entry.pe.is_some() {
        let in_array = |site: &Site| matches!(site, Site::Mul | Site::Acc | Site::AccOut);
        if !sites.iter().all(in_array) {
            return refuse("pe", "a processing element has the sites mul, acc and acc_out only");
        }
    }
    Ok(())
}

/// An entry without a preset.
fn own_keys(entry: &Entry) -> Result<(), Objection> {
    for (key, is_set) in [
        ("rate", entry.rate.is_some()),
        ("mode", entry.mode.is_some()),
        ("range", entry.range.is_some()),
        ("operand_bits", entry.operand_bits.is_some()),
    ] {
        if is_set {
            return refuse(key, "belongs to a preset; the rate of other faults is 'ber' or 'count'");
        }
    }
    if entry.sites.is_none() {
        return refuse("sites", "is missing, for instance sites = [\"mul\", \"acc\"]");
    }
    let Some(kind) = entry.kind else {
        return refuse("kind", "is missing; flip, stuck_at_0, stuck_at_1, burst, random or set");
    };
    amount(entry)?;
    match (kind, entry.length, entry.value) {
        (Kind::Burst, None, _) => return refuse("length", "is missing: how many adjacent bits a burst flips"),
        (Kind::Burst, Some(length), _) if !(1..=32).contains(&length) => {
            return refuse("length", "must lie between 1 and 32");
        }
        (Kind::Set, _, None) => return refuse("value", "is missing: the word that kind = \"set\" writes"),
        (Kind::Set, _, Some(value)) if !(i64::from(i32::MIN)..=i64::from(u32::MAX)).contains(&value) => {
            return refuse("value", "must fit a word of 32 bits");
        }
        _ => {}
    }
    if kind != Kind::Burst && entry.length.is_some() {
        return refuse("length", "is for kind = \"burst\" only");
    }
    if kind != Kind::Set && entry.value.is_some() {
        return refuse("value", "is for kind = \"set\" only");
    }
    if kind.is_word() && (entry.bits.is_some() || entry.bit_profile.is_some()) {
        let key = if entry.bits.is_some() { "bits" } else { "bit_profile" };
        return refuse(key, format!("kind = \"{}\" strikes whole words", kind.name()));
    }
    Ok(())
}

/// Exactly one way to say how often.
fn amount(entry: &Entry) -> Result<(), Objection> {
    let ways = [entry.ber.is_some(), entry.count.is_some(), entry.bit_profile.is_some()];
    match ways.iter().filter(|&&is_set| is_set).count() {
        0 if entry.pe.is_none() => return refuse("ber", "is missing; give ber, count or bit_profile"),
        0 | 1 => {}
        _ => {
            let key = if entry.count.is_some() { "count" } else { "bit_profile" };
            return refuse(key, "give one of ber, count and bit_profile");
        }
    }
    if entry.rounded.is_some() && entry.ber.is_none() {
        return refuse("rounded", "goes with ber");
    }
    if entry.bits.is_some() && entry.bit_profile.is_some() {
        return refuse("bits", "goes with ber or count; a bit_profile names its bits by its zeros");
    }
    Ok(())
}

/// An entry with a preset has the preset's keys, and masks.
fn preset_keys(entry: &Entry, preset: Preset) -> Result<(), Objection> {
    let owner = format!("preset = \"{}\"", preset.name());
    let needs = |key: &'static str, value: Option<f64>, what: &str| match value {
        Some(_) => Ok(()),
        None => refuse(key, format!("is missing: {what}")),
    };
    match preset {
        Preset::Mrfi => {
            only(entry, &["rate", "mode", "channels"], &owner)?;
            needs("rate", entry.rate, "mean number of faults per neuron")?;
            if entry.mode == Some(Mode::RandomValue) {
                return refuse("mode", "mrfi has sign_bit and bit_flip");
            }
        }
        Preset::Pytorchfi => {
            only(entry, &["mode", "range", "channels"], &owner)?;
            if entry.mode == Some(Mode::SignBit) {
                return refuse("mode", "pytorchfi has random_value and bit_flip");
            }
            if entry.range.is_some() && entry.mode == Some(Mode::BitFlip) {
                return refuse("range", "goes with mode = \"random_value\"");
            }
        }
        Preset::Opfi => {
            only(entry, &["ber", "operand_bits"], &owner)?;
            needs("ber", entry.ber, "its bit error rate")?;
        }
        Preset::Fidelity => {
            only(entry, &["sites", "ber", "count", "rounded", "reuse", "lifetime", "channels", "bits"], &owner)?;
            let sites = entry.sites.as_deref().unwrap_or_default();
            if sites.iter().any(|site| !matches!(site, Site::Weight | Site::Act)) {
                return refuse("sites", "fidelity strikes the buffers weight and act");
            }
            amount(entry)?;
        }
        Preset::Mibb => {
            only(entry, &["rate", "channels"], &owner)?;
            needs("rate", entry.rate, "probability per neuron")?;
        }
    }
    Ok(())
}
