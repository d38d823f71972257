//! Any byte stream, in pieces: the same messages and the same error as in one piece, and little is kept.
//! The bytes as payloads of frames with right checksums: the second layer is reached.
#![no_main]

use chipfit_wire::frame::{Decoder, FrameError, HEADER_BYTES};
use chipfit_wire::message::Message;
use libfuzzer_sys::fuzz_target;

fn decode(stream: &[u8], piece: usize) -> (Vec<Message>, Option<FrameError>) {
    let (mut decoder, mut messages, mut taken) = (Decoder::new(), Vec::new(), 0);
    for part in stream.chunks(piece.max(1)) {
        taken += part.len();
        if let Err(error) = decoder.push(part, &mut messages) {
            assert_eq!(decoder.push(&[], &mut messages), Err(error.clone()));
            return (messages, Some(error));
        }
        assert!(decoder.kept_bytes() <= taken, "keeps more than came");
    }
    (messages, None)
}

/// Gives every whole frame in the stream the checksums that it should have.
fn mend(stream: &mut [u8]) {
    let mut rest = stream;
    while rest.len() >= HEADER_BYTES {
        let (header, after) = rest.split_at_mut(HEADER_BYTES);
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        let payload = after.len().min(length);
        let (payload, after) = after.split_at_mut(payload);
        let checksum = crc32fast::hash(payload).to_le_bytes();
        header[16..20].copy_from_slice(&checksum);
        let checksum = crc32fast::hash(&header[..20]).to_le_bytes();
        header[20..24].copy_from_slice(&checksum);
        rest = after;
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [piece, stream @ ..] = bytes else { return };
    assert_eq!(decode(stream, usize::from(*piece)), decode(stream, stream.len()));
    let mut mended = stream.to_vec();
    mend(&mut mended);
    assert_eq!(decode(&mended, usize::from(*piece)), decode(&mended, mended.len()));
});
