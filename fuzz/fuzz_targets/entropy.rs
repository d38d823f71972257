//! Any bytes as coded bytes and numbers: an error, or exactly as many as were asked for. Any bytes encoded come back.
#![no_main]

use chipfit_wire::entropy::{bytes, integers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [a, b, rest @ ..] = input else { return };
    let n = usize::from(*a) << (b % 8);
    if let Ok(values) = bytes::decode(rest, n) {
        assert_eq!(values.len(), n);
    }
    if let Ok(values) = integers::decode(rest, n) {
        assert_eq!(values.len(), n);
    }
    let coded = bytes::encode(rest);
    assert!(coded.len() <= rest.len() + bytes::HEADER_BYTES);
    assert_eq!(bytes::decode(&coded, rest.len()).as_deref(), Ok(rest));
    let numbers: Vec<u32> = rest.iter().map(|byte| u32::from(*byte) << (b % 25)).collect();
    let coded = integers::encode(&numbers);
    assert!(coded.len() <= 4 * numbers.len() + integers::HEADER_BYTES);
    assert_eq!(integers::decode(&coded, numbers.len()), Ok(numbers));
});
