//! Any bytes: an error or a model that can be viewed, checked, inferred, summed up and written. Never a panic.
#![no_main]

use std::collections::BTreeMap;

use chipfit_model::shape::infer;
use chipfit_model::summary::summarize;
use chipfit_model::{Index, Limits, Model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { message_bytes: 64 << 20, ..Limits::default() };
    let Ok(model) = Model::from_bytes(bytes.to_vec().into(), &limits) else { return };
    let index = Index::new(&model);
    let shapes = infer(&index, &BTreeMap::new()).expect("no overrides, nothing to contradict");
    let summary = summarize(&index, &shapes);
    assert_eq!(summary.nodes.len(), index.scopes.iter().map(|s| s.nodes.len()).sum::<usize>());
    for tensor in index.tensors() {
        let _ = model.tensor(tensor);
    }
    let written = model.to_bytes().expect("what was read can be written");
    let again = Model::from_bytes(written.clone().into(), &limits).expect("what was written can be read");
    // Bytes are compared, because a NaN is not equal to itself.
    assert_eq!(again.to_bytes().expect("encodes"), written);
});
