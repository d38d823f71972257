//! Increments come back, stay near the bound and below raw, and damaged ones change nothing.

use proptest::prelude::*;

use super::*;
use crate::entropy::measure::{Bound, binary_entropy};

/// A small generator of its own, so that sizes in these tests never move with a library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Copy, Debug)]
enum Law {
    /// Magnitude `m` with probability `2^-m`, either sign.
    Geometric,
    /// Magnitudes with `1 / m^1.5`: many symbols, some of them far out.
    HeavyTail,
    /// Every byte but 0.
    Uniform,
    /// Always 1.
    Single,
}

fn change(law: Law, random: &mut Random) -> i8 {
    let magnitude = match law {
        Law::Geometric => i64::from((random.next() | 1 << 60).trailing_zeros()) + 1,
        Law::HeavyTail => loop {
            let magnitude = 1.0 / (1.0 - random.unit()).powi(2);
            if magnitude < 128.0 {
                break magnitude as i64;
            }
        },
        Law::Uniform => return ((random.next() % 255) as u8 + 1).cast_signed(),
        Law::Single => return 1,
    };
    if random.next() & 1 == 0 { magnitude as i8 } else { -(magnitude as i8) }
}

/// `n` weights, changed with probability `density`, or with clusters in the first tenth only.
fn versions(n: usize, density: f64, law: Law, clustered: bool, seed: u64) -> (Vec<i8>, Vec<i8>) {
    let mut random = Random(seed);
    let old: Vec<i8> = (0..n).map(|_| random.next() as i8).collect();
    let new = old.iter().enumerate().map(|(at, &weight)| {
        let local = match clustered {
            true if at < n / 10 => (density * 6.0).min(0.9),
            true => density * 4.0 / 9.0,
            false => density,
        };
        if random.unit() < local { weight.wrapping_add(change(law, &mut random)) } else { weight }
    });
    let new = new.collect();
    (old, new)
}

fn round_trip(old: &[i8], new: &[i8]) -> usize {
    let bytes = encode(old, new, &[], &[]).expect("equal lengths");
    assert!(bytes.len() <= new.len() + HEADER_BYTES);
    let mut weights = old.to_vec();
    decode(&bytes, &mut weights, &mut []).expect("decodes");
    assert!(weights == new, "decoded weights differ");
    if new.len() <= 20_000 {
        assert!(twin::decode(&bytes, old, &[]).0 == new, "the format is not what docs/wire.md says");
    }
    bytes.len()
}

/// Bits that the values cost a coder that knows the law which drew them, without learning anything.
fn law_bits(old: &[i8], new: &[i8], law: Law) -> f64 {
    let share = |difference: i8| match law {
        Law::Geometric => 0.5f64.powi(i32::from(difference.unsigned_abs()) + 1),
        Law::HeavyTail => {
            let magnitude = f64::from(difference.unsigned_abs());
            (magnitude.powf(-0.5) - (magnitude + 1.0).powf(-0.5)) / (1.0 - 128f64.powf(-0.5)) / 2.0
        }
        Law::Uniform => 1.0 / 255.0,
        Law::Single => 1.0,
    };
    old.iter().zip(new).filter(|(old, new)| old != new).map(|(o, n)| -share(n.wrapping_sub(*o)).log2()).sum()
}

#[test]
fn at_least_97_percent_of_the_bound() {
    for n in [100_000, 200_000] {
        for density in [0.005, 0.01, 0.02, 0.05, 0.1] {
            for law in [Law::Geometric, Law::HeavyTail, Law::Uniform, Law::Single] {
                for clustered in [false, true] {
                    let (old, new) = versions(n, density, law, clustered, 11);
                    let bound = Bound::of(&old, &new);
                    let bits = round_trip(&old, &new) as f64 * 8.0;
                    // Hundreds of draws from a hundred symbols have an empirical entropy that no code reaches, since it
                    // would have to be told the draws' own frequencies: there the law itself is the measure.
                    let few = bound.changed < 1_200 && matches!(law, Law::HeavyTail | Law::Uniform);
                    let positions = n as f64 * binary_entropy(bound.density());
                    let target = if few { positions + law_bits(&old, &new, law) } else { bound.bits };
                    let ratio = target / bits;
                    assert!(ratio >= 0.97, "{n} weights, density {density}, {law:?}: {ratio:.4}");
                }
            }
        }
    }
}

#[test]
fn every_density_comes_back_below_raw() {
    for density in [0.0, 0.0001, 0.001, 0.2, 0.3, 0.34, 0.5, 0.8, 1.0] {
        for law in [Law::Geometric, Law::HeavyTail, Law::Uniform, Law::Single] {
            let (old, new) = versions(20_000, density, law, false, 5);
            let bound = Bound::of(&old, &new).bits / 8.0;
            let bytes = round_trip(&old, &new) as f64;
            assert!(bytes <= bound * 1.02 + 40.0, "density {density}, {law:?}: {bytes} bytes, bound {bound:.0}");
        }
    }
}

#[test]
fn clustered_changes_cost_less_than_scattered_ones() {
    let (old, new) = versions(300_000, 0.02, Law::Geometric, true, 3);
    let bound = Bound::of(&old, &new).bits / 8.0;
    assert!((round_trip(&old, &new) as f64) < bound, "a bound for scattered changes is no bound here");
}

#[test]
fn nothing_changed_is_one_byte() {
    assert_eq!(encode(&[1, 2, 3], &[1, 2, 3], &[7], &[7]), Ok(vec![0x10]));
    assert_eq!(encode(&[], &[], &[], &[]), Ok(vec![0x10]));
    assert_eq!(decode(&[0x10], &mut [5, 6], &mut [9]), Ok(()));
}

#[test]
fn wrong_use_is_named() {
    let lengths = IncrementError::Lengths { what: "weights", old: 1, new: 2 };
    assert_eq!(encode(&[1], &[1, 2], &[], &[]), Err(lengths));
    let lengths = IncrementError::Lengths { what: "biases", old: 0, new: 1 };
    assert_eq!(encode(&[1], &[1], &[], &[3]), Err(lengths));
    assert_eq!(decode(&[0x20], &mut [], &mut []), Err(IncrementError::Version(2)));
    assert_eq!(decode(&[], &mut [], &mut []), Err(IncrementError::Weights(CodingError::Truncated)));
    // k = 0 is written as nothing changed; k = 3 of 2 weights cannot be.
    let position = |k| IncrementError::Position { change: k, position: k.into(), elems: 2 };
    assert_eq!(decode(&[0x11, 0], &mut [1, 2], &mut []), Err(position(0)));
    assert_eq!(decode(&[0x11, 3], &mut [1, 2], &mut []), Err(position(3)));
    // An increment for other lengths.
    let (old, new) = versions(5_000, 0.1, Law::Geometric, false, 1);
    let bytes = encode(&old, &new, &[], &[]).expect("equal lengths");
    for n in [0, 1, 4_000, 4_999, 5_001, 70_536] {
        let mut weights = vec![3i8; n];
        assert!(decode(&bytes, &mut weights, &mut []).is_err(), "{n}");
        assert!(weights.iter().all(|&w| w == 3));
    }
}

#[test]
fn changes_find_their_tensors() {
    let changes = [(0, 'a'), (2, 'b'), (3, 'c'), (7, 'd'), (9, 'e')];
    let split = by_tensor(&changes, &[3, 0, 4, 1]);
    assert_eq!(split, [vec![(0, 'a'), (2, 'b')], vec![], vec![(0, 'c')], vec![(0, 'd')]]);
    assert_eq!(by_tensor::<i8>(&[], &[5]), [vec![]]);
    assert!(by_tensor(&changes, &[]).is_empty());
}

#[test]
fn biases_are_coded_densely() {
    let mut random = Random(2);
    let old: Vec<i32> = (0..2_000).map(|_| (random.next() >> 44) as i32 - (1 << 19)).collect();
    let new: Vec<i32> = old.iter().map(|bias| bias + (random.next() % 401) as i32 - 200).collect();
    let bytes = encode(&[], &[], &old, &new).expect("equal lengths");
    let mut biases = old.clone();
    decode(&bytes, &mut [], &mut biases).expect("decodes");
    assert_eq!(biases, new);
    // log2(401) = 8.65 bits each.
    assert!((bytes.len() as f64) < 2_000.0 * 8.65 / 8.0 * 1.02 + 30.0, "{}", bytes.len());
}

fn small() -> impl Strategy<Value = (Vec<i8>, Vec<i8>, Vec<i32>, Vec<i32>)> {
    let density = prop_oneof![Just(0.0), 0.0..0.1, 0.0..1.0f64];
    (0usize..600, density, 0u8..4, any::<u64>(), 0usize..40, 0u32..33).prop_map(
        |(n, density, law, seed, n_biases, shift)| {
            let law = [Law::Geometric, Law::HeavyTail, Law::Uniform, Law::Single][usize::from(law)];
            let (old, new) = versions(n, density, law, false, seed);
            let mut random = Random(!seed);
            let old_biases: Vec<i32> = (0..n_biases).map(|_| random.next() as i32).collect();
            let mut step = || (random.next() as u32).checked_shr(shift).unwrap_or(0).cast_signed();
            let new_biases = old_biases.iter().map(|bias| bias.wrapping_add(step())).collect();
            (old, new, old_biases, new_biases)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn increments_come_back((old, new, old_biases, new_biases) in small()) {
        let bytes = encode(&old, &new, &old_biases, &new_biases)?;
        prop_assert!(bytes.len() <= new.len() + 4 * new_biases.len() + HEADER_BYTES);
        let (mut weights, mut biases) = (old.clone(), old_biases.clone());
        decode(&bytes, &mut weights, &mut biases)?;
        prop_assert_eq!(&weights, &new);
        prop_assert_eq!(&biases, &new_biases);
        let (weights, biases) = twin::decode(&bytes, &old, &old_biases);
        prop_assert_eq!(&weights, &new);
        prop_assert_eq!(&biases, &new_biases);
        let changes = decode_changes(&bytes, &old, &old_biases)?;
        let plain = |at: usize| u32::try_from(at).expect("small");
        let expected = Changes {
            weights: (0..new.len()).filter(|&at| old[at] != new[at]).map(|at| (plain(at), new[at])).collect(),
            biases: (0..new_biases.len())
                .filter(|&at| old_biases[at] != new_biases[at])
                .map(|at| (plain(at), new_biases[at]))
                .collect(),
        };
        prop_assert_eq!(changes, expected);
    }

    #[test]
    fn damage_is_refused_or_gives_as_many_constants((old, new, old_biases, new_biases) in small(), change in 1u8..) {
        let bytes = encode(&old, &new, &old_biases, &new_biases)?;
        let attempt = |bytes: &[u8]| {
            let (mut weights, mut biases) = (old.clone(), old_biases.clone());
            let result = decode(bytes, &mut weights, &mut biases);
            if result.is_err() {
                assert_eq!(weights, old, "changed in spite of {result:?}");
                assert_eq!(biases, old_biases, "changed in spite of {result:?}");
            }
            assert_eq!(decode_changes(bytes, &old, &old_biases).is_ok(), result.is_ok());
            result
        };
        // Every length and every byte of short ones, a stride of longer ones: the table costs microseconds each time.
        let stride = bytes.len() / 100 + 1;
        for at in (0..bytes.len()).step_by(stride).chain(0..bytes.len().min(24)) {
            prop_assert!(attempt(&bytes[..at]).is_err(), "cut at {}", at);
            let mut damaged = bytes.clone();
            damaged[at] ^= change;
            let _ = attempt(&damaged);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(attempt(&longer).is_err());
    }

    #[test]
    fn any_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 1..200), n in 0usize..2_000, n_biases in 0usize..40) {
        for head in 0x10..0x20 {
            bytes[0] = head;
            let (mut weights, mut biases) = (vec![1i8; n], vec![1i32; n_biases]);
            let _ = decode(&bytes, &mut weights, &mut biases);
            if let Ok(changes) = decode_changes(&bytes, &vec![1; n], &vec![1; n_biases]) {
                prop_assert!(changes.weights.is_sorted_by(|a, b| a.0 < b.0));
                prop_assert!(changes.weights.iter().all(|change| (change.0 as usize) < n));
                prop_assert!(changes.biases.len() <= n_biases);
            }
        }
    }
}
