//! Classes partition the numbers; models survive their own description; hostile descriptions are refused or consistent.

use proptest::prelude::*;

use super::*;
use crate::entropy::measure::order0_bits;
use crate::entropy::rans::TOTAL;

#[test]
fn classes_partition_the_numbers() {
    for classes in CLASSES {
        let mut end = 0u64;
        for token in 0..TOKENS as u32 {
            let (smallest, raw) = classes.base(token);
            assert_eq!(smallest, end, "{classes:?} token {token}");
            end = smallest + (1u64 << raw);
            for number in [smallest, (smallest + end) / 2, end - 1] {
                if let Ok(number) = u32::try_from(number) {
                    assert_eq!(classes.split(number), (token, raw), "{classes:?} number {number}");
                }
            }
            if end >> 32 != 0 {
                break;
            }
        }
    }
}

#[test]
fn finest_classes_hold_every_number() {
    assert_eq!(Classes::FINEST.tokens(u32::MAX), Some(248));
    assert_eq!(Classes::BYTES.tokens(255), Some(256));
    assert_eq!(Classes::BYTES.tokens(256), None);
}

fn count(numbers: &[u32], fine: Classes) -> [u64; TOKENS] {
    let mut counts = [0; TOKENS];
    for &number in numbers {
        counts[fine.split(number).0 as usize] += 1;
    }
    counts
}

fn same(a: &Model, b: &Model) {
    assert_eq!((a.number, a.tokens, a.shares), (b.number, b.tokens, b.shares));
    assert_eq!(a.frequencies, b.frequencies);
}

proptest! {
    #[test]
    fn chosen_models_survive_their_description(
        numbers in prop::collection::vec(prop_oneof![0u32..4, 0u32..300, any::<u32>()], 1..300),
        shift in 0u32..32,
        known in prop::option::of(any::<u32>()),
    ) {
        let numbers: Vec<u32> = numbers.iter().map(|n| n >> shift).collect();
        let domain = Domain { max: *numbers.iter().max().unwrap_or(&0), known };
        let counts = count(&numbers, Classes::FINEST);
        let model = Model::choose(Counts { of: &counts, fine: Classes::FINEST }, domain).expect("counts");
        for &number in &numbers {
            let (token, raw) = model.classes().split(number);
            let token = u8::try_from(token)?;
            prop_assert!(model.frequencies().get(token) > 0);
            let (base, bits) = model.bases()[usize::from(token)];
            prop_assert_eq!(bits, raw);
            prop_assert_eq!(u64::from(base) + (u64::from(number) & ((1 << raw) - 1)), u64::from(number));
        }
        let mut writer = BitWriter::new();
        model.write(&mut writer);
        let n = writer.len();
        let bytes = writer.into_bytes();
        let mut reader = BitReader::new(&bytes);
        same(&Model::read(&mut reader, domain)?, &model);
        prop_assert!(reader.into_rest()?.is_empty());
        prop_assert!(n <= 3 + 2 + 2 + 2 + 8 + 7 + 256 * 60);
    }

    #[test]
    fn hostile_descriptions_are_refused_or_whole(bytes in prop::collection::vec(any::<u8>(), 0..80), max: u32, known in prop::option::of(any::<u32>())) {
        if let Ok(model) = Model::read(&mut BitReader::new(&bytes), Domain { max, known }) {
            prop_assert_eq!((0..=255).map(|t| model.frequencies().get(t)).sum::<u32>(), TOTAL as u32);
            for token in model.tokens..TOKENS {
                prop_assert_eq!(model.frequencies().get(token as u8), 0);
            }
        }
    }
}

/// Coded bits of the chosen model over the bits of an ideal order-0 code, in floating point as a second opinion.
fn ratio(counts: &[u64; TOKENS], domain: Domain) -> f64 {
    let model = Model::choose(Counts { of: counts, fine: Classes::BYTES }, domain).expect("counts");
    let mut writer = BitWriter::new();
    model.write(&mut writer);
    let mut bits = writer.len() as f64;
    for (number, &count) in (0..256).zip(counts) {
        let (token, raw) = model.classes().split(number);
        if count > 0 {
            let share = f64::from(model.frequencies().get(token as u8)) / TOTAL as f64;
            bits += count as f64 * (f64::from(raw) - share.log2());
        }
    }
    bits / order0_bits(counts)
}

#[test]
fn tables_cost_little() {
    let domain = Domain { max: 255, known: None };
    // 500 values of geometric magnitudes with ratio 1/2, both signs: 3 bits each.
    let mut geometric = [0u64; TOKENS];
    for (u, count) in geometric.iter_mut().enumerate() {
        *count = u64::from(250u32.checked_shr(u as u32 / 2 + 1).unwrap_or(0));
    }
    assert!(ratio(&geometric, domain) < 1.03, "{}", ratio(&geometric, domain));
    // A million values with no simple law.
    let mut odd = [0u64; TOKENS];
    for (u, count) in odd.iter_mut().enumerate() {
        *count = (u as u64 * 7919 % 97) * 80 + 1;
    }
    assert!(ratio(&odd, domain) < 1.001, "{}", ratio(&odd, domain));
    // 2,000 values, all alike.
    assert!(ratio(&[8; TOKENS], domain) < 1.001, "{}", ratio(&[8; TOKENS], domain));
    // One symbol in a million is another.
    let mut rare = [0u64; TOKENS];
    (rare[0], rare[9]) = (1_000_000, 1);
    let bits = ratio(&rare, domain) * order0_bits(&rare);
    assert!(bits < 200.0, "{bits}");
}
