//! Any bytes as an increment of weights: an error and nothing changed, or as many constants as there were.
//! The same bytes as two versions of weights: they come back, in no more bytes than raw.
#![no_main]

use chipfit_wire::increment::{HEADER_BYTES, decode, decode_changes, encode};
use libfuzzer_sys::fuzz_target;

fn hostile(bytes: &[u8], n: usize, n_biases: usize) {
    let held: Vec<i8> = (0..n).map(|at| (at * 37) as i8).collect();
    let held_biases: Vec<i32> = (0..n_biases).map(|at| (at as i32).wrapping_mul(0x0123_4567)).collect();
    let (mut weights, mut biases) = (held.clone(), held_biases.clone());
    let applied = decode(bytes, &mut weights, &mut biases);
    let listed = decode_changes(bytes, &held, &held_biases);
    assert_eq!(applied.as_ref().err(), listed.as_ref().err());
    let Ok(changes) = listed else {
        assert!(weights == held && biases == held_biases, "changed in spite of {applied:?}");
        return;
    };
    let (mut other, mut other_biases) = (held, held_biases);
    changes.weights.iter().for_each(|&(at, value)| other[at as usize] = value);
    changes.biases.iter().for_each(|&(at, value)| other_biases[at as usize] = value);
    assert!(weights == other && biases == other_biases, "applied and listed changes differ");
}

fuzz_target!(|bytes: &[u8]| {
    let [a, b, c, rest @ ..] = bytes else { return };
    hostile(rest, usize::from(*a) << (b % 8), usize::from(*c));

    let (old, new) = rest.split_at(rest.len() / 2);
    // The low bits of `b` make unchanged weights likely.
    let old: Vec<i8> = old.iter().map(|byte| byte.cast_signed()).collect();
    let new: Vec<i8> =
        old.iter().zip(new).map(|(old, byte)| if byte % 16 <= b % 16 { *old } else { byte.cast_signed() }).collect();
    let wide = |half: &[i8]| -> Vec<i32> { half.iter().map(|v| i32::from(*v) << (c % 25)).collect() };
    let (old_biases, new_biases) = (wide(&old[old.len() / 2..]), wide(&new[new.len() / 2..]));
    let coded = encode(&old, &new, &old_biases, &new_biases).expect("equal lengths");
    assert!(coded.len() <= new.len() + 4 * new_biases.len() + HEADER_BYTES);
    let (mut weights, mut biases) = (old, old_biases);
    decode(&coded, &mut weights, &mut biases).expect("what was encoded");
    assert!(weights == new && biases == new_biases);
});
