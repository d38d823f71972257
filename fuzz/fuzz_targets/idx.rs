//! Any bytes as an IDX file: an error, or dimensions whose product is the number of elements.
#![no_main]

use chipfit_data::parse_idx;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(idx) = parse_idx(bytes) {
        assert!(!idx.dims.is_empty());
        let product = idx.dims.iter().map(|dim| *dim as u128).product::<u128>();
        assert_eq!(product, idx.values.len() as u128);
    }
});
