//! Layers by name, pattern or index; near matches for names that do not exist.

use super::file::{Layer, Layers};
use crate::program::{Program, StepId};

/// A name or index that no step has, with the names nearest to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoSuchLayer {
    pub(crate) layer: String,
    pub(crate) near: Vec<String>,
}

impl NoSuchLayer {
    /// "; nearest: a, b" or nothing.
    pub(crate) fn hint(&self) -> String {
        if self.near.is_empty() { String::new() } else { format!("; nearest: {}", self.near.join(", ")) }
    }
}

/// The steps that `layers` names, ascending, none twice.
pub(crate) fn select(program: &Program, layers: &Layers) -> Result<Vec<StepId>, NoSuchLayer> {
    let names: Vec<&str> = program.steps().iter().map(|step| step.name.as_str()).collect();
    Ok(choose(&names, layers)?.into_iter().map(StepId).collect())
}

/// The positions in `names` that `layers` names, ascending, none twice: the rule of faults, plan and campaign files.
///
/// # Errors
/// What is named and not there, with the nearest names, in words.
pub fn select_names(names: &[&str], layers: &Layers) -> Result<Vec<usize>, String> {
    choose(names, layers).map_err(|missing| format!("no layer is {}{}", missing.layer, missing.hint()))
}

fn choose(names: &[&str], layers: &Layers) -> Result<Vec<usize>, NoSuchLayer> {
    let mut is_chosen = vec![false; names.len()];
    for layer in &layers.0 {
        let mut is_known = false;
        match layer {
            Layer::Index(index) => {
                if let Some(chosen) = usize::try_from(*index).ok().and_then(|index| is_chosen.get_mut(index)) {
                    *chosen = true;
                    is_known = true;
                }
            }
            Layer::Name(pattern) => {
                // A name wins over the pattern that it also is.
                let is_name = names.contains(&pattern.as_str());
                for (name, chosen) in names.iter().zip(&mut is_chosen) {
                    if name == pattern || (!is_name && matches(pattern, name)) {
                        *chosen = true;
                        is_known = true;
                    }
                }
            }
        }
        if !is_known {
            let near = match layer {
                Layer::Name(pattern) => nearest(pattern, names.iter().copied()),
                Layer::Index(_) => vec![format!("the last step is number {}", names.len().saturating_sub(1))],
            };
            return Err(NoSuchLayer { layer: layer.to_string(), near });
        }
    }
    Ok((0..names.len()).filter(|&position| is_chosen[position]).collect())
}

/// Whether a pattern with `*` and `?` covers all of `name`; linear but for the last star.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after_star, from)) = retry else { return false };
                retry = Some((after_star, from + 1));
                p = after_star;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Up to three names that differ least.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = names.map(|name| (distance(wanted, name), name)).collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().take(3).map(|(_, name)| format!("'{name}'")).collect()
}

/// Levenshtein's distance of the first 128 characters.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(128).collect(), b.chars().take(128).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("conv*", "conv1", true),
            ("conv*", "myconv1", false),
            ("*/conv?/*", "/layer1/conv2/Conv", true),
            ("*/conv?", "/layer1/conv12", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXcd", false),
            ("?", "é", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let (pattern, name) = ("a*".repeat(200) + "b", "a".repeat(2_000));
        assert!(!matches(&pattern, &name));
    }

    #[test]
    fn distances_count_single_edits() {
        assert_eq!([distance("conv1", "conv1"), distance("conv1", "cnov1"), distance("", "abc")], [0, 2, 3]);
    }
}
