//! Any bytes as payloads of activations under any parameters: an error, a request, or a layer of its length.
//! Any layer beside any prediction: both ends together recover it exactly, within a few requests.
#![no_main]

use chipfit_wire::activation::{Decoder, HEADER_BYTES, Outcome, Parameters, Prior, Request, first, more};
use libfuzzer_sys::fuzz_target;

/// Requests after which a decoder must have asked for everything.
const ROUNDS: usize = 8;

fn hostile(parameters: Parameters, prediction: &[u8], payloads: &[u8]) {
    let mut decoder = Decoder::new(prediction.len(), parameters, Prior::uniform());
    for payload in payloads.chunks(payloads.len() / 3 + 1) {
        match decoder.try_decode(prediction, payload) {
            Ok(Outcome::Recovered(layer)) => return assert_eq!(layer.len(), prediction.len()),
            Ok(Outcome::NeedsMore(request)) => {
                assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request));
            }
            Err(_) => {}
        }
    }
}

fn honest(parameters: Parameters, prediction: &[u8], layer: &[u8]) {
    let mut decoder = Decoder::new(layer.len(), parameters, Prior::uniform());
    let mut payload = first(layer, &parameters);
    assert!(payload.len() <= layer.len() + HEADER_BYTES);
    for _ in 0..ROUNDS {
        match decoder.try_decode(prediction, &payload).expect("an honest payload") {
            Outcome::Recovered(recovered) => return assert!(recovered == layer, "wrong bytes with the right checksum"),
            Outcome::NeedsMore(request) => payload = more(layer, &parameters, &request),
        }
    }
    panic!("no end of requests");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((fields, rest)) = bytes.split_first_chunk::<16>() else { return };
    let Ok(parameters) = Parameters::from_bytes(fields) else { return };
    assert_eq!(parameters.to_bytes(), *fields);
    let (layer, changes) = rest.split_at(rest.len() / 2);
    // The layer once more, so that cells are fewer than bytes; the changes strike here and there.
    let layer = [layer, layer, layer].concat();
    let mut prediction = layer.clone();
    for change in changes.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(byte) = prediction.get_mut(at) {
            *byte ^= change[2];
        }
    }
    honest(parameters, &prediction, &layer);
    hostile(parameters, &prediction, changes);
    if let Some((four, after)) = changes.split_first_chunk::<4>() {
        // Cells of hostile values behind the checksum.
        hostile(parameters, &prediction, &[&[2u8], four.as_slice(), after].concat());
    }
});
