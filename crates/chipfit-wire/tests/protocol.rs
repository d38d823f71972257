//! `docs/protocol.md` and the code say the same: every message, field, format, choice and number, both ways round, and
//! each message's example is the bytes that the code writes and reads.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_wire::format::{Field, LIST_LIMIT, TEXT_LIMIT, Varint};
use chipfit_wire::frame::{Decoder, Encoder, FIRST, HEADER_BYTES, LAST, MAGIC, MAJOR, MINOR};
use chipfit_wire::message::{
    Bye, Code, ElementType, Encoding, ErrorReport, Heartbeat, Held, Hello, HelloAck, Limits, Load, Loaded,
    MINIMUM_FRAME, MINIMUM_IN_FLIGHT, Message, Missing, Mode, More, MoreTrace, NewPicture, PictureRef, Pictures,
    Protect, Protected, Tag, TensorAnswer, TensorPayload, TensorRequest, Trace, TraceBody, VersionRange, View, Work,
    enumerations, structures,
};

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md can be read")
}

/// A section: its heading of third level, its first table's rows, its hex.
#[derive(Debug, Default)]
struct Section {
    rows: Vec<Vec<String>>,
    hex: String,
}

fn sections() -> BTreeMap<String, Section> {
    let document = document();
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut heading = String::new();
    let mut in_hex = false;
    for line in document.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            heading = name.to_owned();
            assert!(!sections.contains_key(&heading), "'{heading}' twice");
        } else if line.starts_with('#') {
            heading.clear();
        }
        if heading.is_empty() {
            continue;
        }
        let section = sections.entry(heading.clone()).or_default();
        if line == "```hex" {
            in_hex = true;
        } else if line == "```" {
            in_hex = false;
        } else if in_hex {
            section.hex.extend(line.chars().filter(char::is_ascii_hexdigit));
        } else if let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |"))
            && !row.starts_with("---")
        {
            section.rows.push(row.split(" | ").map(|cell| cell.trim_matches('`').to_owned()).collect());
        }
    }
    sections
}

fn cells(section: &Section) -> BTreeSet<(String, String)> {
    let rows = section.rows.iter().skip(1);
    rows.map(|row| (row.first().cloned().unwrap_or_default(), row.get(1).cloned().unwrap_or_default())).collect()
}

fn in_order(section: &Section, fields: &[Field]) {
    let said: Vec<(&str, &str)> =
        section.rows.iter().skip(1).filter_map(|row| Some((row.first()?.as_str(), row.get(1)?.as_str()))).collect();
    let coded: Vec<(&str, &str)> = fields.iter().map(|field| (field.name, field.format.as_str())).collect();
    assert_eq!(said, coded);
    assert!(section.rows.iter().all(|row| row.len() == 3 && row.iter().all(|cell| !cell.is_empty())));
}

#[test]
fn every_message_and_part_is_described_field_by_field() {
    let sections = sections();
    let messages = Message::tables().into_iter().map(|(kind, name, fields)| (format!("{kind} {name}"), fields));
    let parts = structures().into_iter().map(|(name, fields)| (name.to_owned(), fields));
    let tables: BTreeMap<String, Vec<Field>> = messages.chain(parts).collect();
    for (heading, fields) in &tables {
        let section = sections.get(heading).unwrap_or_else(|| panic!("no section '### {heading}'"));
        in_order(section, fields);
    }
    // The other way round: no section describes what the code has not.
    let choices: Vec<String> =
        enumerations().iter().map(|table| format!("{}: {}", table.name, table.integer)).collect();
    for heading in sections.keys() {
        assert!(tables.contains_key(heading) || choices.contains(heading), "'### {heading}' is nothing in the code");
    }
}

#[test]
fn every_choice_is_described_with_its_number() {
    let sections = sections();
    for table in enumerations() {
        let heading = format!("{}: {}", table.name, table.integer);
        let section = sections.get(&heading).unwrap_or_else(|| panic!("no section '### {heading}'"));
        let coded = table.choices.iter().map(|(number, name)| (number.to_string(), (*name).to_owned())).collect();
        assert_eq!(cells(section), coded, "{heading}");
    }
}

/// The table under a heading of second level.
fn table_under(heading: &str) -> Vec<Vec<String>> {
    let document = document();
    let lines = document.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
    lines
        .skip_while(|line| !line.starts_with("| "))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("|---"))
        .map(|line| {
            line.trim_matches(|char| char == '|' || char == ' ')
                .split(" | ")
                .map(|cell| cell.trim_matches('`').to_owned())
                .collect()
        })
        .skip(1)
        .collect()
}

#[test]
fn every_format_in_use_is_described() {
    let described: BTreeSet<String> =
        table_under("Formats").into_iter().filter_map(|row| row.first().cloned()).collect();
    let mut used = BTreeSet::new();
    let named: BTreeSet<String> = structures()
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .chain(enumerations().iter().map(|table| table.name.to_owned()))
        .collect();
    let fields = Message::tables().into_iter().map(|(_, _, fields)| fields);
    for field in fields.chain(structures().into_iter().map(|(_, fields)| fields)).flatten() {
        let mut format = field.format.as_str();
        while let Some((before, inner)) = format
            .strip_prefix("list of ")
            .map(|inner| ("list of T", inner))
            .or_else(|| format.strip_prefix("optional ").map(|inner| ("optional T", inner)))
        {
            used.insert(before.to_owned());
            format = inner;
        }
        if format.starts_with('[') {
            format = "[N]";
        }
        if !named.contains(format) {
            used.insert(format.to_owned());
        }
    }
    assert_eq!(described, used);
}

#[test]
fn the_header_is_described_byte_by_byte() {
    let rows = table_under("Frames");
    let wire = Encoder::new().encode(&examples()[12]).unwrap();
    let mut at = 0;
    let mut fields = BTreeMap::new();
    for row in &rows {
        assert_eq!(row[0], at.to_string(), "{row:?}");
        let bytes: usize = row[1].parse().unwrap();
        fields.insert(row[2].as_str(), wire[at..at + bytes].to_vec());
        at += bytes;
    }
    assert_eq!(at, HEADER_BYTES);
    let checksum = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes().to_vec();
    let expected = BTreeMap::from([
        ("magic", MAGIC.to_vec()),
        ("major", vec![MAJOR]),
        ("minor", vec![MINOR]),
        ("kind", vec![13]),
        ("flags", vec![FIRST | LAST]),
        ("sequence", vec![0; 4]),
        ("length", (wire.len() as u32 - 24).to_le_bytes().to_vec()),
        ("payload checksum", checksum(&wire[HEADER_BYTES..])),
        ("header checksum", checksum(&wire[..HEADER_BYTES - 4])),
    ]);
    assert_eq!(fields, expected);
}

#[test]
fn the_numbers_in_the_text_are_those_of_the_code() {
    let document = document();
    for said in [
        format!("version {MAJOR}.{MINOR}"),
        format!("at most {LIST_LIMIT} items"),
        format!("at most {TEXT_LIMIT} bytes"),
        format!("`frame` is at least {MINIMUM_FRAME}"),
        format!("`in_flight` at least {MINIMUM_IN_FLIGHT}"),
        format!(
            "frames of at most {} bytes and messages of at most {}",
            Limits::GREETING.frame,
            Limits::GREETING.in_flight
        ),
    ] {
        assert!(document.contains(&said), "docs/protocol.md does not say '{said}'");
    }
}

#[test]
fn every_message_has_an_example_that_is_read_and_written() {
    let sections = sections();
    let mut differ = String::new();
    let examples = examples();
    let kinds: Vec<u8> = examples.iter().map(Message::kind).collect();
    assert_eq!(kinds, Message::tables().iter().map(|(kind, _, _)| *kind).collect::<Vec<_>>());
    for message in examples {
        let mut encoder = Encoder::new();
        let limits = Limits { tensor: 1_000, ..Limits::GREETING };
        encoder.agree(limits, MINOR);
        let wire = encoder.encode(&message).unwrap();
        let hex: String = wire.iter().map(|byte| format!("{byte:02x}")).collect();
        let heading = format!("{} {}", message.kind(), message.name());
        if sections[&heading].hex != hex {
            differ += &format!("\n### {heading}\n{hex}");
            continue;
        }
        let bytes: Vec<u8> = sections[&heading]
            .hex
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let mut decoder = Decoder::new();
        decoder.agree(limits);
        let mut read = Vec::new();
        decoder.push(&bytes, &mut read).unwrap();
        assert_eq!(read, [message]);
    }
    assert!(differ.is_empty(), "the examples in docs/protocol.md are to be:{differ}");
}

/// One message of each kind, in the order of their numbers.
fn examples() -> Vec<Message> {
    let tag = Tag { step: 7, attempt: 1 };
    let limits = Limits { frame: 65_536, tensor: 1 << 24, in_flight: 1 << 26, sessions: 1 };
    let held =
        Held { model: Some([0x11; 32]), weights: Some([0x22; 32]), plan: None, trace: None, step: 6, pictures: 2 };
    let hash = [0x33; 16];
    let view = View { flip: true, down: -1, right: 2 };
    let picture = NewPicture { hash, bytes: vec![1, 2, 3].into() };
    let tensor = |number, bytes: &[u8]| TensorPayload {
        tensor: Varint(number),
        element: ElementType::U8,
        shape: vec![Varint(1), Varint(bytes.len() as u32)],
        encoding: Encoding::Raw,
        check: [0x44; 8],
        bytes: bytes.into(),
    };
    vec![
        Hello {
            versions: VersionRange { major_low: 1, major_high: 1, minor: 0 },
            name: "server".to_owned(),
            run: [0x55; 16],
            limits,
            heartbeat_ms: 1_000,
        }
        .into(),
        HelloAck {
            major: 1,
            minor: 0,
            name: "camera".to_owned(),
            description: "toy".to_owned(),
            boot: 9,
            cache_bytes: 1 << 20,
            limits,
            heartbeat_ms: 1_000,
            held: held.clone(),
        }
        .into(),
        Load {
            tag,
            identity: [0x11; 32],
            model: Some(vec![8, 9].into()),
            lowering: vec![0].into(),
            plan: "a".to_owned(),
            weights: Vec::new().into(),
            weights_hash: [0x22; 32],
        }
        .into(),
        Loaded { tag, held: held.clone() }.into(),
        Protect { tag, plan: "a".to_owned() }.into(),
        Protected { tag, held }.into(),
        Work {
            tag,
            trial: 7,
            base_hash: [0x22; 32],
            update: Some(vec![5, 6].into()),
            weights_hash: [0x66; 32],
            mode: Mode::Increments,
            pictures: vec![PictureRef { id: 300, hash, view }],
            new_pictures: vec![picture.clone()],
            wanted: vec![Varint(4), Varint(200)],
            parameters: vec![vec![1].into(), vec![].into()],
        }
        .into(),
        Missing { tag, hashes: vec![hash] }.into(),
        Pictures { tag, pictures: vec![picture] }.into(),
        Trace {
            tag,
            body: TraceBody {
                strikes: Some(3),
                processor_ns: 1_000_000,
                output: tensor(9, &[1, 2]),
                tensors: vec![tensor(4, &[3])],
            },
        }
        .into(),
        More {
            tag: Tag { step: 8, attempt: 1 },
            work: [0x77; 32],
            requests: vec![TensorRequest { tensor: Varint(4), bytes: vec![1].into() }],
        }
        .into(),
        MoreTrace {
            tag: Tag { step: 8, attempt: 1 },
            answers: vec![TensorAnswer { tensor: Varint(4), bytes: vec![2, 3].into() }],
        }
        .into(),
        Heartbeat { tag, working_ms: 250 }.into(),
        ErrorReport { tag, code: Code::Hang, text: "late".to_owned() }.into(),
        Bye { text: "done".to_owned() }.into(),
    ]
}
