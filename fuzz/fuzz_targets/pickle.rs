//! Any bytes as a weights file: an error, or tensors in proportion to the bytes. Never a panic.
//! Seeds: `crates/chipfit-model/tests/data/pickles`.
#![no_main]

use chipfit_model::zoo::Weights;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(weights) = Weights::from_pickle(bytes.to_vec().into()) else { return };
    let copied: usize = weights.tensors().keys().map(String::len).sum();
    assert!(copied <= 4 * bytes.len() + (1 << 20), "{copied} bytes of names from {} bytes", bytes.len());
    for tensor in weights.tensors().values() {
        assert!(tensor.bytes().len() <= bytes.len(), "a tensor larger than its file");
    }
});
