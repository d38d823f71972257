use proptest::prelude::*;

use super::*;
use crate::message::{Heartbeat, Load, Tag};
use crate::testing::Random;

const LIMITS: Limits = Limits { frame: 4_096, tensor: 1 << 20, in_flight: 1 << 20, sessions: 1 };

fn coders() -> (Encoder, Decoder) {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    encoder.agree(LIMITS, MINOR);
    decoder.agree(LIMITS);
    (encoder, decoder)
}

fn beat() -> Message {
    Heartbeat { tag: Tag { step: 1, attempt: 2 }, working_ms: 3 }.into()
}

/// A message of several frames.
fn long() -> Message {
    Load {
        tag: Tag { step: 1, attempt: 1 },
        identity: [1; 32],
        model: Some((0..20_000_u32).map(|at| at.to_le_bytes()[0]).collect()),
        lowering: Default::default(),
        plan: String::new(),
        weights: Default::default(),
        weights_hash: [2; 32],
    }
    .into()
}

/// What a fresh decoder makes of bytes.
fn outcome(bytes: &[u8]) -> (Vec<Message>, Result<(), FrameError>) {
    let (_, mut decoder) = coders();
    let mut messages = Vec::new();
    let result = decoder.push(bytes, &mut messages);
    (messages, result)
}

/// Header with other values, its checksum made right again.
fn forge(wire: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut forged = wire.to_vec();
    change(&mut forged);
    let checksum = crc32fast::hash(&forged[..20]);
    forged[20..24].copy_from_slice(&checksum.to_le_bytes());
    forged
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_stream_may_be_cut_anywhere(seed: u64, pieces in prop::collection::vec(1_usize..9_000, 1..40)) {
        let mut random = Random(seed);
        let sent: Vec<Message> = (0..6).map(|_| random.message()).collect();
        let (mut encoder, mut decoder) = coders();
        let mut wire = Vec::new();
        for message in &sent {
            wire.extend(encoder.encode(message).map_err(|error| TestCaseError::fail(error.to_string()))?);
        }
        let (mut rest, mut received, mut pieces) = (wire.as_slice(), Vec::new(), pieces.iter().cycle());
        while !rest.is_empty() {
            let length = pieces.next().map_or(1, |&piece| piece.min(rest.len()));
            let (piece, after) = rest.split_at(length);
            prop_assert_eq!(decoder.push(piece, &mut received), Ok(()));
            rest = after;
        }
        prop_assert_eq!(received, sent);
        prop_assert_eq!(decoder.kept_bytes(), 0);
    }

    #[test]
    fn a_changed_byte_never_passes(seed: u64, at: prop::sample::Index, change in 1_u8..) {
        let message = Random(seed).message();
        let (mut encoder, _) = coders();
        let mut wire = encoder.encode(&message).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let at = at.index(wire.len());
        wire[at] ^= change;
        let (messages, result) = outcome(&wire);
        prop_assert!(result.is_err() && messages.is_empty(), "{:?}", messages);
    }

    #[test]
    fn any_bytes_behind_any_header_are_judged(seed: u64, header: [u8; 16], payload in prop::collection::vec(any::<u8>(), 0..200)) {
        // A header that is right in all but what it says, so that the payload is reached.
        let mut random = Random(seed);
        let wire = [&header[..], &crc32fast::hash(&payload).to_le_bytes(), &[0; 4], &payload].concat();
        let wire = forge(&wire, |header| {
            header[..4].copy_from_slice(&MAGIC);
            header[4] = MAJOR;
            header[6] %= 17;
            header[7] = if random.below(4) == 0 { header[7] } else { FIRST | LAST };
            header[8..12].fill(0);
            if random.below(8) > 0 {
                header[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            }
        });
        let (_, mut decoder) = coders();
        let mut messages = Vec::new();
        let first = decoder.push(&wire, &mut messages);
        prop_assert!(decoder.kept_bytes() <= wire.len());
        if first.is_err() {
            prop_assert_eq!(decoder.push(&wire, &mut messages), first);
        }
    }
}

#[test]
fn every_cut_of_a_frame_waits_for_more() {
    let wire = coders().0.encode(&beat()).unwrap();
    for length in 0..wire.len() {
        assert_eq!(outcome(&wire[..length]), (Vec::new(), Ok(())), "{length} bytes");
    }
}

#[test]
fn long_messages_are_cut_below_the_limit_and_joined() {
    let (mut encoder, mut decoder) = coders();
    let wire = encoder.encode(&long()).unwrap();
    let body = long().encode().len();
    assert_eq!(wire.len(), body + body.div_ceil(4_096) * HEADER_BYTES);
    let mut messages = Vec::new();
    for piece in wire.chunks(1_000) {
        decoder.push(piece, &mut messages).unwrap();
        assert!(decoder.kept_bytes() <= body + HEADER_BYTES);
    }
    assert_eq!(messages, [long()]);
}

#[test]
fn a_claimed_length_reserves_nothing() {
    let wire = coders().0.encode(&beat()).unwrap();
    let forged = forge(&wire, |header| header[12..16].copy_from_slice(&4_096_u32.to_le_bytes()));
    let (_, mut decoder) = coders();
    decoder.push(&forged, &mut Vec::new()).unwrap();
    assert_eq!(decoder.kept_bytes(), wire.len());
    assert!(decoder.parser.capacity() <= 2 * wire.len() + 64, "{} bytes reserved", decoder.parser.capacity());
    let forged = forge(&wire, |header| header[12..16].copy_from_slice(&4_097_u32.to_le_bytes()));
    assert_eq!(outcome(&forged).1, Err(FrameError::TooLong { sequence: 0, asked: 4_097, limit: 4_096 }));
}

#[test]
fn each_field_of_the_header_has_its_error() {
    let wire = coders().0.encode(&beat()).unwrap();
    let error = |change: fn(&mut [u8])| outcome(&forge(&wire, change)).1.expect_err("forged");
    assert!(matches!(error(|header| header[0] = b'X'), FrameError::Magic { .. }));
    assert_eq!(error(|header| header[4] = 2), FrameError::Version { sequence: 0, major: 2 });
    assert_eq!(error(|header| header[6] = 99), FrameError::Kind { sequence: 0, kind: 99 });
    assert_eq!(error(|header| header[7] = 7), FrameError::Flags { sequence: 0, flags: 7, kind: 13 });
    assert_eq!(error(|header| header[7] = LAST), FrameError::Flags { sequence: 0, flags: LAST, kind: 13 });
    assert_eq!(error(|header| header[8] = 1), FrameError::Sequence { expected: 0, found: 1 });
    assert!(matches!(error(|header| header[16] ^= 1), FrameError::PayloadChecksum { .. }));
    let mut damaged = wire.clone();
    damaged[12] ^= 1;
    assert!(matches!(outcome(&damaged).1, Err(FrameError::HeaderChecksum { .. })));
    // A minor version above ours is a matter of the greeting.
    assert_eq!(outcome(&forge(&wire, |header| header[5] = 200)).1, Ok(()));
}

#[test]
fn frames_that_repeat_or_miss_are_refused() {
    let (mut encoder, _) = coders();
    let (one, two) = (encoder.encode(&beat()).unwrap(), encoder.encode(&beat()).unwrap());
    assert_eq!(outcome(&[&one[..], &one].concat()).1, Err(FrameError::Sequence { expected: 1, found: 0 }));
    assert_eq!(outcome(&two).1, Err(FrameError::Sequence { expected: 0, found: 1 }));
    let (messages, result) = outcome(&[one, two].concat());
    assert_eq!((messages.len(), result), (2, Ok(())));
}

#[test]
fn a_message_in_pieces_is_bounded_and_not_interrupted() {
    let (mut encoder, _) = coders();
    let wire = encoder.encode(&long()).unwrap();
    let (_, mut decoder) = coders();
    decoder.agree(Limits { in_flight: 10_000, ..LIMITS });
    let error = FrameError::InFlight { sequence: 2, bytes: 12_288, limit: 10_000 };
    assert_eq!(decoder.push(&wire, &mut Vec::new()), Err(error));

    let frame = 4_096 + HEADER_BYTES;
    let mut foreign = Encoder { sequence: 1, ..encoder };
    let interrupted = [&wire[..frame], &foreign.encode(&beat()).unwrap()].concat();
    assert_eq!(outcome(&interrupted).1, Err(FrameError::Flags { sequence: 1, flags: FIRST | LAST, kind: 13 }));

    let empty = forge(&wire[..HEADER_BYTES], |header| header[12..16].fill(0));
    assert_eq!(outcome(&empty).1, Err(FrameError::Empty { sequence: 0 }));
}

#[test]
fn what_the_peer_would_refuse_is_not_sent() {
    let mut encoder = Encoder::new();
    encoder.agree(Limits { in_flight: 10_000, ..LIMITS }, MINOR);
    assert!(matches!(encoder.encode(&long()), Err(EncodeError::InFlight { limit: 10_000, .. })));
    // The number of the frame that was not sent is not used up.
    let wire = encoder.encode(&beat()).unwrap();
    assert_eq!(outcome(&wire), (vec![beat()], Ok(())));
}
