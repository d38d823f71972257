//! Any bytes as an npy and as an npz file: an error, or arrays whose shape fits their bytes.
#![no_main]

use std::io::Cursor;

use chipfit_data::{Npz, NpyArray, parse_npy};
use libfuzzer_sys::fuzz_target;

/// Most bytes an array may have here: a few kilobytes of input must not make more.
const LIMIT: u64 = 1 << 24;

fn check(array: &NpyArray) {
    let elems = array.shape().iter().map(|dim| *dim as u128).product::<u128>();
    assert_eq!(elems * array.dtype().bytes() as u128, array.values().len() as u128);
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(array) = parse_npy(bytes.to_vec()) {
        check(&array);
    }
    if let Ok(mut npz) = Npz::open(Cursor::new(bytes), bytes.len() as u64) {
        for key in npz.keys().to_vec() {
            if let Ok(array) = npz.array(&key, LIMIT) {
                check(&array);
            }
        }
    }
});
