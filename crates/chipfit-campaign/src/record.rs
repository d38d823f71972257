//! One trial as 32 bytes of the log.
//!
//! | bytes | field, little-endian |
//! |---|---|
//! | 0..8 | trial number |
//! | 8 | outcome, in the order of [`Outcome::ALL`] |
//! | 9 | bit 0: SDC top-5; bit 1: label among the faulty top five; other bits 0 |
//! | 10 | reason of masking plus 1, in the order of [`MaskedBy::ALL`]; 0: not told |
//! | 11 | 0 |
//! | 12..16 | step at which it was masked plus 1; 0: not told |
//! | 16..20 | faulty top-1 class |
//! | 20..24 | confidence shift, f32 |
//! | 24..28 | words struck, at most 2^32 - 2; 2^32 - 1: not known |
//! | 28..32 | CRC-32 of the 28 bytes before |

use chipfit_npu::StepId;

use crate::executor::{Masked, MaskedBy};
use crate::outcome::{Outcome, Verdict};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 32;

/// A judged trial and its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// The trial's number.
    pub number: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// Words struck; `None` when the processor cannot know.
    pub strikes: Option<u32>,
}

impl Record {
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let verdict = &self.verdict;
        let outcome = Outcome::ALL.iter().position(|&o| o == verdict.outcome).unwrap_or(0);
        let reason = verdict.masked.and_then(|m| MaskedBy::ALL.iter().position(|&r| r == m.by)).map_or(0, |p| p + 1);
        let step = verdict.masked.and_then(|m| m.step).map_or(0, |s| s.0 + 1);
        let flags = u8::from(verdict.is_sdc_top5) | u8::from(verdict.is_in_top5) << 1;
        let mut bytes = [0; RECORD_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            for (slot, byte) in bytes.iter_mut().skip(at).zip(field) {
                *slot = *byte;
            }
            at += field.len();
        };
        put(&self.number.to_le_bytes());
        put(&[u8::try_from(outcome).unwrap_or(0), flags, u8::try_from(reason).unwrap_or(0), 0]);
        put(&u32::try_from(step).unwrap_or(0).to_le_bytes());
        put(&verdict.class.to_le_bytes());
        put(&verdict.shift.to_le_bytes());
        put(&self.strikes.map_or(u32::MAX, |n| n.min(u32::MAX - 1)).to_le_bytes());
        let (body, sum) = bytes.split_at_mut(RECORD_BYTES - 4);
        sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        bytes
    }

    /// Reads 32 bytes; `None` when the checksum or a field is wrong.
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (number, rest) = body.split_first_chunk::<8>()?;
        let ([outcome, flags, reason, reserved], rest) = rest.split_first_chunk::<4>()?;
        let (step, rest) = rest.split_first_chunk::<4>()?;
        let (class, rest) = rest.split_first_chunk::<4>()?;
        let (shift, rest) = rest.split_first_chunk::<4>()?;
        let (strikes, _) = rest.split_first_chunk::<4>()?;
        if *flags > 3 || *reserved != 0 {
            return None;
        }
        let step = u32::from_le_bytes(*step).checked_sub(1).and_then(|s| usize::try_from(s).ok()).map(StepId);
        let masked = match reason.checked_sub(1) {
            Some(position) => Some(Masked { step, by: *MaskedBy::ALL.get(usize::from(position))? }),
            None => None,
        };
        let strikes = u32::from_le_bytes(*strikes);
        Some(Self {
            number: u64::from_le_bytes(*number),
            verdict: Verdict {
                outcome: *Outcome::ALL.get(usize::from(*outcome))?,
                class: u32::from_le_bytes(*class),
                is_sdc_top5: flags & 1 != 0,
                is_in_top5: flags & 2 != 0,
                shift: f32::from_le_bytes(*shift),
                masked,
            },
            strikes: (strikes != u32::MAX).then_some(strikes),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let masked = (proptest::option::of(0usize..1000), 0usize..6)
            .prop_map(|(step, by)| Masked { step: step.map(StepId), by: MaskedBy::ALL[by] });
        let verdict = (0usize..4, any::<u32>(), any::<[bool; 2]>(), -1f32..1.0, proptest::option::of(masked));
        (any::<u64>(), verdict, proptest::option::of(0..u32::MAX)).prop_map(|(number, v, strikes)| Record {
            number,
            verdict: Verdict {
                outcome: Outcome::ALL[v.0],
                class: v.1,
                is_sdc_top5: v.2[0],
                is_in_top5: v.2[1],
                shift: v.3,
                masked: v.4,
            },
            strikes,
        })
    }

    proptest! {
        #[test]
        fn records_come_back(record in any_record()) {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
        }

        #[test]
        fn a_flipped_bit_is_noticed(record in any_record(), bit in 0usize..RECORD_BYTES * 8) {
            let mut bytes = record.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::from_bytes(&bytes), None);
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(Record::from_bytes(&[0; RECORD_BYTES]), None);
    }
}
