//! Any bytes in any pieces as a link's stream, then the messages as what both state machines hear.
#![no_main]

use chipfit_wire::frame::{Decoder, Encoder};
use chipfit_wire::message::{Limits, Message};
use chipfit_wire::session::{Device, DeviceConfig, DeviceEvent, LinkEvent, Trainer, TrainerConfig, TrainerEvent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<(u8, Vec<u8>)>, &[u8], u8)| {
    let (bodies, bytes, piece) = input;
    let limits = Limits { frame: 4096, tensor: 1 << 16, in_flight: 1 << 16, sessions: 1 };
    let mut decoder = Decoder::new();
    decoder.agree(limits);
    let mut messages = Vec::new();
    let mut came = 0;
    for piece in bytes.chunks(usize::from(piece).max(1)) {
        came += piece.len();
        let result = decoder.push(piece, &mut messages);
        assert!(decoder.kept_bytes() <= came);
        if result.is_err() {
            assert_eq!(decoder.push(piece, &mut messages), result);
            break;
        }
    }
    // Checksums keep the fuzzer out, so that bodies go through an honest encoder, too.
    let (mut encoder, mut honest) = (Encoder::new(), Decoder::new());
    encoder.agree(limits, 0);
    honest.agree(limits);
    for (kind, body) in bodies {
        if let Ok(message) = Message::decode(kind % 17, &body, 1 << 16)
            && let Ok(wire) = encoder.encode(&message)
        {
            let before = messages.len();
            honest.push(&wire, &mut messages).expect("the encoder's own bytes");
            assert_eq!(messages[before..], [message]);
        }
    }
    let mut trainer = Trainer::new(TrainerConfig::default());
    let mut device = Device::new(DeviceConfig::default(), None);
    trainer.step(0, TrainerEvent::Link(1, LinkEvent::Connected));
    device.step(0, DeviceEvent::Link(1, LinkEvent::Connected));
    for message in messages {
        trainer.step(1, TrainerEvent::Link(1, LinkEvent::Message(message.clone())));
        device.step(1, DeviceEvent::Link(1, LinkEvent::Message(message)));
    }
});
