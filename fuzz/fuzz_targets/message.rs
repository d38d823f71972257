//! Any bytes as the body of a message: an error, or a message that reads back equal from its own bytes.
#![no_main]

use chipfit_wire::message::Message;
use libfuzzer_sys::fuzz_target;

/// Most bytes of a tensor here.
const TENSOR_LIMIT: u32 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let [kind, body @ ..] = bytes else { return };
    let Ok(message) = Message::decode(kind % 24, body, TENSOR_LIMIT) else { return };
    let written = message.encode();
    assert_eq!(message.measure(TENSOR_LIMIT), Ok(written.len() as u64));
    let again = Message::decode(message.kind(), &written, TENSOR_LIMIT);
    assert_eq!(again.as_ref(), Ok(&message));
});
