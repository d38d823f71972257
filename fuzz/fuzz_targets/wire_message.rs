//! A kind and any bytes as a message's body: an error, or a message that is written as the same bytes.
#![no_main]

use chipfit_wire::message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, body) = input;
    if let Ok(message) = Message::decode(kind % 17, body, 1 << 20) {
        assert_eq!(message.encode(), body);
    }
});
