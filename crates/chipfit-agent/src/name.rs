//! The name of a device: what its certificate says, what a trainer may insist on, and the folder of its bundle.

use std::fmt;
use std::str::FromStr;

use crate::error::AgentError;

/// A DNS name in small letters: labels of `a-z`, `0-9` and `-` with dots between them, the first character a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DeviceName {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        let refuse = |why| Err(AgentError::Name { name: text.escape_debug().to_string(), why });
        if text.is_empty() || text.len() > 253 {
            return refuse("1 to 253 characters are allowed");
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return refuse("it must begin with a letter from a to z");
        }
        if !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.') {
            return refuse("only a-z, 0-9, '-' and '.' are allowed");
        }
        let is_label =
            |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
        if !text.split('.').all(is_label) {
            return refuse("between dots, 1 to 63 characters that neither begin nor end with '-' are allowed");
        }
        // A last label of digits would make it read as a number or an address.
        if text.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
            return refuse("what follows the last dot must not be a number");
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names_and_never_paths_or_addresses() {
        for good in ["camera", "camera-7", "gate.hall-2.site3x", "a"] {
            assert_eq!(good.parse::<DeviceName>().expect(good).as_str(), good);
        }
        let long = format!("a{}", "b".repeat(63));
        for bad in [
            "", "Camera", "7up", "a b", "../a", "a/b", "a..b", ".a", "a.", "-a", "a-", "a_b", "a.1", "10.0.0.1", "é",
            "a\0", &long,
        ] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad:?}");
        }
    }
}
