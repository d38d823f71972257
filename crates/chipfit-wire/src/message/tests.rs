use proptest::prelude::*;

use super::*;
use crate::format::LIST_LIMIT;
use crate::testing::Random;

const TENSOR: u32 = 1 << 20;

/// Decoding must give the message back; any other outcome says what is wrong.
fn decode(message: &Message) -> Result<Message, MessageError> {
    Message::decode(message.kind(), &message.encode(), TENSOR)
}

#[test]
fn every_kind_round_trips() {
    for (kind, name, _) in Message::tables() {
        for seed in 0..200 {
            let message = Random(seed).message_of(kind).unwrap_or_else(|| panic!("no sample of {name}"));
            assert_eq!(message.kind(), kind);
            assert_eq!(message.name(), name);
            assert_eq!(decode(&message).as_ref(), Ok(&message), "seed {seed}");
            assert_eq!(message.measure(TENSOR), Ok(message.encode().len() as u64), "seed {seed}");
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for (kind, name, _) in Message::tables() {
        let body = Random(7).message_of(kind).unwrap_or_else(|| panic!("no sample of {name}")).encode();
        for length in 0..body.len() {
            let error = Message::decode(kind, &body[..length], TENSOR).expect_err("a message was cut");
            assert_eq!(error.message, name);
        }
        let longer = [&body[..], &[0]].concat();
        let error = Message::decode(kind, &longer, TENSOR).expect_err("a byte too many");
        assert_eq!(error.fault, Fault::Trailing { left: 1 }, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// One encoding for each value: what a changed body decodes to is written as that body again.
    #[test]
    fn a_changed_byte_gives_an_error_or_another_message(seed: u64, at: prop::sample::Index, byte: u8) {
        let message = Random(seed).message();
        let mut body = message.encode();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
            if let Ok(other) = Message::decode(message.kind(), &body, TENSOR) {
                prop_assert_eq!(other.encode(), body);
            }
        }
    }

    #[test]
    fn any_bytes_give_an_error_or_a_message(kind in 0_u8..18, body in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::decode(kind, &body, TENSOR) {
            prop_assert_eq!(message.encode(), body);
        }
    }

    #[test]
    fn varints_have_one_form(value: u64) {
        let mut writer = Writer::new();
        writer.varint(value);
        let bytes = writer.into_bytes();
        prop_assert_eq!(Reader::new(&bytes).varint(u64::MAX), Ok(value));
        let mut longer = bytes.clone();
        if let Some(last) = longer.last_mut() {
            *last |= 0x80;
        }
        longer.push(0);
        prop_assert!(Reader::new(&longer).varint(u64::MAX).is_err());
    }
}

#[test]
fn counts_and_lengths_are_judged_by_what_is_there() {
    // A Missing that claims 2^16 hashes, and one that claims more than a list may have.
    let tag = [0; 12];
    let short = Message::decode(8, &[&tag[..], &[0x80, 0x80, 0x04]].concat(), TENSOR).expect_err("no hashes follow");
    assert_eq!(short.fault, Fault::Short { wanted: 16, left: 0 });
    let long = Message::decode(8, &[&tag[..], &[0x81, 0x80, 0x04]].concat(), TENSOR).expect_err("too many");
    assert_eq!(long.fault, Fault::Limit { value: LIST_LIMIT + 1, limit: LIST_LIMIT });
    // A Protect whose plan claims nearly 1 MiB, then more than a text may have, then 2^64 and more.
    let short = Message::decode(5, &[&tag[..], &[0xff, 0xff, 0x3f]].concat(), TENSOR).expect_err("no text follows");
    assert_eq!(short.fault, Fault::Short { wanted: (1 << 20) - 1, left: 0 });
    let long = Message::decode(5, &[&tag[..], &[0xff, 0xff, 0xff, 0x7f]].concat(), TENSOR).expect_err("too long");
    assert!(matches!(long.fault, Fault::Limit { .. }), "{long}");
    let endless = Message::decode(5, &[&tag[..], &[0xff; 11]].concat(), TENSOR).expect_err("no number");
    assert_eq!(endless.fault, Fault::Varint);
    assert_eq!(
        endless.to_string(),
        "message Protect: field 'plan' is not the shortest form of a number of at most 64 bits"
    );
}

#[test]
fn what_a_reader_would_refuse_is_not_measured() {
    let many = Missing { tag: Tag::default(), hashes: vec![[0; 16]; (1 << 16) + 1] };
    let error = Message::from(many).measure(TENSOR).expect_err("too many hashes");
    assert_eq!(error.fault, Fault::Limit { value: LIST_LIMIT + 1, limit: LIST_LIMIT });
    let Some(Message::Work(mut work)) = Random(3).message_of(7) else { panic!("no work") };
    work.pictures.clear();
    assert_eq!(Message::from(work).measure(TENSOR).expect_err("no pictures").field, "pictures");
}

#[test]
fn tensors_are_held_to_their_shape_and_limit() {
    let tensor = |shape: &[u32], bytes: usize| TensorPayload {
        tensor: Varint(1),
        element: ElementType::I32,
        shape: shape.iter().map(|&extent| Varint(extent)).collect(),
        encoding: Encoding::Raw,
        check: [0; 8],
        bytes: vec![0; bytes].into(),
    };
    let trace = |output| {
        let body = TraceBody { strikes: None, processor_ns: 0, output, tensors: Vec::new() };
        Message::from(Trace { tag: Tag::default(), body })
    };
    let measured = |output, limit| trace(output).measure(limit).map_err(|error| (error.field, error.fault));
    assert!(measured(tensor(&[2, 3], 24), 24).is_ok());
    assert_eq!(measured(tensor(&[2, 3], 24), 23), Err(("shape", Fault::Limit { value: 24, limit: 23 })));
    let what = Fault::Contradiction { what: "raw, and not of 'shape'" };
    assert_eq!(measured(tensor(&[2, 3], 23), 24), Err(("bytes", what)));
    let most = Fault::Limit { value: u64::MAX, limit: 24 };
    assert_eq!(measured(tensor(&[u32::MAX; 5], 0), 24), Err(("shape", most)));
    assert!(measured(tensor(&[u32::MAX, u32::MAX, u32::MAX, 0], 0), 24).is_ok());
}

#[test]
fn equal_works_have_equal_digests_whatever_the_device_has() {
    let Some(Message::Work(work)) = Random(11).message_of(7) else { panic!("no work") };
    let known = Work {
        tag: Tag { step: 9, attempt: 9 },
        base_hash: work.weights_hash,
        update: None,
        new_pictures: Vec::new(),
        ..work.clone()
    };
    assert_eq!(work.digest(), known.digest());
    let others = [
        Work { trial: work.trial ^ 1, ..work.clone() },
        Work { weights_hash: [1; 32], ..work.clone() },
        Work {
            pictures: work.pictures.iter().map(|seen| PictureRef { id: seen.id ^ 1, ..*seen }).collect(),
            ..work.clone()
        },
        Work { wanted: [&work.wanted[..], &[Varint(1)]].concat(), ..work.clone() },
        Work { parameters: [&work.parameters[..], &[Blob::default()]].concat(), ..work.clone() },
    ];
    assert!(others.iter().all(|other| other.digest() != work.digest()));
}

#[test]
fn versions_meet_at_the_highest_of_both_with_the_lower_minor() {
    let range = |major_low, major_high, minor| VersionRange { major_low, major_high, minor };
    assert_eq!(range(1, 1, 4).agree(range(1, 1, 2)), Some((1, 2)));
    assert_eq!(range(1, 1, 4).agree(range(1, 3, 2)), Some((1, 4)));
    assert_eq!(range(1, 2, 4).agree(range(2, 3, 2)), Some((2, 4)));
    assert_eq!(range(1, 1, 4).agree(range(2, 3, 2)), None);
    assert_eq!(range(4, 5, 0).agree(range(2, 3, 2)), None);
}

#[test]
fn limits_meet_at_the_lower_of_both() {
    let low = Limits { frame: MINIMUM_FRAME, tensor: 5, in_flight: MINIMUM_IN_FLIGHT, sessions: 3 };
    assert_eq!(low.agree(Limits::default()), Ok(Limits { sessions: 1, ..low }));
    assert_eq!(Limits { frame: 0, ..low }.agree(low), Err("frame"));
    assert_eq!(low.agree(Limits { in_flight: MINIMUM_IN_FLIGHT - 1, ..low }), Err("in_flight"));
}
