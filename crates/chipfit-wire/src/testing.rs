//! Random messages for tests: every kind, every field, every choice.

use crate::format::{Blob, Varint};
use crate::message::{
    Bye, Code, ElementType, Encoding, ErrorReport, Heartbeat, Held, Hello, HelloAck, Limits, Load, Loaded, Message,
    Missing, Mode, More, MoreTrace, NewPicture, PictureRef, Pictures, Protect, Protected, Tag, TensorAnswer,
    TensorPayload, TensorRequest, Trace, TraceBody, VersionRange, View, Work,
};

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A number of any magnitude.
    fn number(&mut self) -> u64 {
        let bits = self.below(65) as u32;
        self.next().checked_shr(bits).unwrap_or(0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn blob(&mut self, most: usize) -> Blob {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self) -> String {
        let length = self.below(20);
        (0..length).map(|_| ['a', 'ß', '€', '\u{1f40c}', '\n'][self.below(5)]).collect()
    }

    fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let length = self.below(most + 1);
        (0..length).map(|_| item(self)).collect()
    }

    fn option<T>(&mut self, item: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 1).then(|| item(self))
    }

    pub(crate) fn tag(&mut self) -> Tag {
        Tag { step: self.number(), attempt: self.number() as u32 }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            frame: self.number() as u32,
            tensor: self.number() as u32,
            in_flight: self.number() as u32,
            sessions: self.number() as u16,
        }
    }

    fn held(&mut self) -> Held {
        Held {
            model: self.option(Self::array),
            weights: self.option(Self::array),
            plan: self.option(Self::array),
            trace: self.option(Self::array),
            step: self.number(),
            pictures: self.number(),
        }
    }

    fn picture(&mut self) -> NewPicture {
        NewPicture { hash: self.array(), bytes: self.blob(60) }
    }

    fn view(&mut self) -> View {
        View { flip: self.below(2) == 1, down: self.next() as i8, right: self.next() as i8 }
    }

    fn tensor(&mut self) -> TensorPayload {
        let element = ElementType::ALL[self.below(ElementType::ALL.len())];
        let shape = self.list(4, |random| Varint(random.below(5) as u32));
        let encoding = Encoding::ALL[self.below(Encoding::ALL.len())];
        let bytes = match encoding {
            Encoding::Raw => {
                let elements: u64 = shape.iter().map(|extent| u64::from(extent.0)).product();
                (0..elements * element.bytes()).map(|_| self.next() as u8).collect()
            }
            Encoding::Increments => self.blob(50),
        };
        TensorPayload { tensor: Varint(self.number() as u32), element, shape, encoding, check: self.array(), bytes }
    }

    fn work(&mut self) -> Work {
        let (base_hash, weights_hash) = (self.array(), self.array());
        let update = self.option(|random| random.blob(200));
        let wanted = self.list(5, |random| Varint(random.number() as u32));
        let parameters = if self.below(2) == 1 { wanted.iter().map(|_| self.blob(9)).collect() } else { Vec::new() };
        let mut pictures = vec![PictureRef { id: self.number(), hash: self.array(), view: self.view() }];
        pictures.extend(self.list(5, |random| PictureRef {
            id: random.number(),
            hash: random.array(),
            view: random.view(),
        }));
        Work {
            tag: self.tag(),
            trial: self.number(),
            base_hash: if update.is_some() { base_hash } else { weights_hash },
            update,
            weights_hash,
            mode: Mode::ALL[self.below(Mode::ALL.len())],
            pictures,
            new_pictures: self.list(3, Self::picture),
            wanted,
            parameters,
        }
    }

    /// A message of the kind with this number.
    pub(crate) fn message_of(&mut self, kind: u8) -> Option<Message> {
        Some(match kind {
            1 => {
                let (a, b) = (self.next() as u8, self.next() as u8);
                let versions = VersionRange { major_low: a.min(b), major_high: a.max(b), minor: self.next() as u8 };
                let (name, run, limits) = (self.text(), self.array(), self.limits());
                Hello { versions, name, run, limits, heartbeat_ms: self.number() as u32 }.into()
            }
            2 => HelloAck {
                major: self.next() as u8,
                minor: self.next() as u8,
                name: self.text(),
                description: self.text(),
                boot: self.number(),
                cache_bytes: self.number(),
                limits: self.limits(),
                heartbeat_ms: self.number() as u32,
                held: self.held(),
            }
            .into(),
            3 => Load {
                tag: self.tag(),
                identity: self.array(),
                model: self.option(|random| random.blob(9_000)),
                lowering: self.blob(20),
                plan: self.text(),
                weights: self.blob(300),
                weights_hash: self.array(),
            }
            .into(),
            4 => Loaded { tag: self.tag(), held: self.held() }.into(),
            5 => Protect { tag: self.tag(), plan: self.text() }.into(),
            6 => Protected { tag: self.tag(), held: self.held() }.into(),
            7 => self.work().into(),
            8 => Missing { tag: self.tag(), hashes: self.list(5, Self::array) }.into(),
            9 => Pictures { tag: self.tag(), pictures: self.list(5, Self::picture) }.into(),
            10 => {
                let body = TraceBody {
                    strikes: self.option(Self::number),
                    processor_ns: self.number(),
                    output: self.tensor(),
                    tensors: self.list(4, Self::tensor),
                };
                Trace { tag: self.tag(), body }.into()
            }
            11 => {
                let request = |random: &mut Self| TensorRequest {
                    tensor: Varint(random.number() as u32),
                    bytes: random.blob(30),
                };
                More { tag: self.tag(), work: self.array(), requests: self.list(4, request) }.into()
            }
            12 => {
                let answer =
                    |random: &mut Self| TensorAnswer { tensor: Varint(random.number() as u32), bytes: random.blob(30) };
                MoreTrace { tag: self.tag(), answers: self.list(4, answer) }.into()
            }
            13 => Heartbeat { tag: self.tag(), working_ms: self.number() as u32 }.into(),
            14 => {
                let code = Code::ALL[self.below(Code::ALL.len())];
                ErrorReport { tag: self.tag(), code, text: self.text() }.into()
            }
            15 => Bye { text: self.text() }.into(),
            _ => return None,
        })
    }

    /// A message of any kind.
    pub(crate) fn message(&mut self) -> Message {
        loop {
            let kind = self.below(16) as u8;
            if let Some(message) = self.message_of(kind) {
                return message;
            }
        }
    }
}
