//! Files: the least one, every objection, and nonsense.

use proptest::prelude::*;

use super::*;
use crate::testing;
use crate::twin;

const LEAST: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-6\nlayers = \"*\"\n";

#[test]
fn the_least_file_has_one_lane_and_strikes_nothing_rarely() {
    let program = testing::program(11);
    let faults = resolve(LEAST, &program);
    assert_eq!(faults.machine(), crate::Machine::default());
    assert_eq!((faults.machine().lanes.get(), faults.seed()), (1, 42));
    let bits: u64 = (0..program.steps().len())
        .flat_map(|step| [Site::Mul, Site::Acc].map(|site| population(&program, StepId(step), site, &faults.machine())))
        .flatten()
        .map(|population| population.words * u64::from(population.bits))
        .sum();
    let expected = faults.expected(&program, &bare()).total();
    assert!((expected / (bits as f64 * 1e-6) - 1.0).abs() < 1e-12);
}

#[test]
fn files_survive_writing_and_reading() {
    let text = "[processor]\nlanes = 4\narray = [8, 32]\n[[fault]]\nsites = [\"weight\", \"act\"]\nkind = \"burst\"\n\
                length = 2\nber = 0.5\nrounded = true\nlayers = [\"conv*\", 3]\nchannels = [1]\nbits = [0, 7]\n\
                lifetime = \"load\"\nreuse = 16\n[[fault]]\npreset = \"mrfi\"\nrate = 1e-3\nmode = \"bit_flip\"\nlayers = 2\n";
    let file = FaultsFile::parse(text).unwrap();
    assert_eq!(FaultsFile::parse(&file.to_toml()).unwrap(), file);
    assert_eq!((file.processor.lanes.get(), file.faults.len()), (4, 2));
}

fn parse_error(text: &str) -> String {
    FaultsFile::parse(text).unwrap_err().to_string()
}

#[test]
fn errors_name_line_and_key() {
    let unknown = parse_error(&LEAST.replace("layers", "layer"));
    assert!(unknown.contains("line 5") && unknown.contains("unknown field `layer`"), "{unknown}");
    let type_error = parse_error(&LEAST.replace("1e-6", "\"often\""));
    assert!(type_error.contains("line 4") && type_error.contains("expected f64"), "{type_error}");
    let site = parse_error(&LEAST.replace("\"acc\"", "\"sum\""));
    assert!(site.contains("line 2") && site.contains("`sum`") && site.contains("acc_out"), "{site}");
    assert!(parse_error("[processor]\nlanes = 0\n").contains("lanes"));
    assert!(parse_error("").contains("no [[fault]] entry"));
    assert!(parse_error("x = 1").contains("unknown field `x`"));
}

#[test]
fn every_objection_names_entry_and_key() {
    let with = |old: &str, new: &str| parse_error(&LEAST.replace(old, new));
    let cases = [
        (with("ber = 1e-6", "ber = 1.5"), "[[fault]] 1: key 'ber' must lie"),
        (with("ber = 1e-6", "ber = nan"), "[[fault]] 1: key 'ber' must lie"),
        (with("ber = 1e-6", ""), "key 'ber' is missing"),
        (with("ber = 1e-6", "ber = 0.1\ncount = 1"), "key 'count' give one"),
        (with("ber = 1e-6", "count = 1\nrounded = true"), "key 'rounded' goes with"),
        (with("ber = 1e-6", "bit_profile = []"), "key 'bit_profile' needs"),
        (with("ber = 1e-6", "bit_profile = [0, 2]"), "key 'bit_profile' must hold"),
        (with("ber = 1e-6", "bit_profile = [0.1]\nbits = [0]"), "key 'bits' goes with"),
        (with("[\"mul\", \"acc\"]", "[]"), "key 'sites' is empty"),
        (with("[\"mul\", \"acc\"]", "[\"mul\", \"mul\"]"), "key 'sites' names a site twice"),
        (with("sites = [\"mul\", \"acc\"]\n", ""), "key 'sites' is missing"),
        (with("kind = \"flip\"\n", ""), "key 'kind' is missing"),
        (with("\"flip\"", "\"burst\""), "key 'length' is missing"),
        (with("\"flip\"", "\"burst\"\nlength = 33"), "key 'length' must lie"),
        (with("\"flip\"", "\"flip\"\nlength = 3"), "key 'length' is for"),
        (with("\"flip\"", "\"set\""), "key 'value' is missing"),
        (with("\"flip\"", "\"set\"\nvalue = 5000000000"), "key 'value' must fit"),
        (with("\"flip\"", "\"flip\"\nvalue = 5"), "key 'value' is for"),
        (with("\"flip\"", "\"random\"\nbits = [1]"), "key 'bits' kind = \"random\" strikes whole"),
        (with("\"*\"", "[]"), "key 'layers' is empty"),
        (with("\"*\"", "\"*\"\nop_types = []"), "key 'op_types' is empty"),
        (with("\"*\"", "\"*\"\nchannels = []"), "key 'channels' is empty"),
        (with("\"*\"", "\"*\"\nbits = []"), "key 'bits' is empty"),
        (with("\"*\"", "\"*\"\nbits = [32]"), "key 'bits' bit 32"),
        (with("\"*\"", "\"*\"\nreuse = 16"), "key 'reuse' is for the sites weight and act"),
        (with("\"*\"", "\"*\"\nlifetime = \"load\""), "key 'lifetime' is for the sites weight and act"),
        (with("\"*\"", "\"*\"\nrate = 0.1"), "key 'rate' belongs to a preset"),
        (with("[\"mul\", \"acc\"]", "[\"out\"]\npe = [0, 0]"), "key 'pe' a processing element has"),
        (parse_error("[[fault]]\npreset = \"mrfi\""), "key 'rate' is missing"),
        (
            parse_error("[[fault]]\npreset = \"mrfi\"\nrate = 0.1\nber = 0.1"),
            "key 'ber' does not belong to preset = \"mrfi\"",
        ),
        (parse_error("[[fault]]\npreset = \"mrfi\"\nrate = 0.1\nmode = \"random_value\""), "key 'mode' mrfi has"),
        (parse_error("[[fault]]\npreset = \"pytorchfi\"\nmode = \"sign_bit\""), "key 'mode' pytorchfi has"),
        (parse_error("[[fault]]\npreset = \"pytorchfi\"\nrange = [1, 0]"), "key 'range' must be two finite"),
        (
            parse_error("[[fault]]\npreset = \"pytorchfi\"\nmode = \"bit_flip\"\nrange = [0, 1]"),
            "key 'range' goes with",
        ),
        (parse_error("[[fault]]\npreset = \"opfi\""), "key 'ber' is missing"),
        (parse_error("[[fault]]\npreset = \"opfi\"\nber = 0.1\noperand_bits = 0"), "key 'operand_bits' must lie"),
        (parse_error("[[fault]]\npreset = \"fidelity\""), "key 'ber' is missing"),
        (parse_error("[[fault]]\npreset = \"fidelity\"\nber = 0.1\nsites = [\"out\"]"), "key 'sites' fidelity strikes"),
        (parse_error("[[fault]]\npreset = \"fidelity\"\nber = 0.1\nreuse = 0"), "key 'reuse' must be at least 1"),
        (parse_error("[[fault]]\npreset = \"mibb\""), "key 'rate' is missing"),
    ];
    for (message, wanted) in cases {
        assert!(message.contains(wanted), "wanted \"{wanted}\", got \"{message}\"");
    }
    let second = parse_error(&format!("{LEAST}[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = -1"));
    assert!(second.contains("[[fault]] 2: key 'ber'"), "{second}");
}

#[test]
fn deep_and_long_files_are_refused_in_peace() {
    let deep = format!("[[fault]]\nlayers = {}", "[".repeat(200_000));
    let inline = format!("[[fault]]\nlayers = {}", "{a=".repeat(100_000));
    let dotted = format!("[[fault]]\n{}b = 1", "a.".repeat(100_000));
    for text in [deep, inline, dotted] {
        assert!(FaultsFile::parse(&text).is_err() && crate::protection::PlanFile::parse(&text).is_err());
    }
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let program = testing::program(11);
    let refuse = |rest: &str| {
        let text = format!("[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\n{rest}");
        Faults::resolve(&FaultsFile::parse(&text).unwrap(), &program, 0).unwrap_err().to_string()
    };
    let name = &program.steps()[0].name;
    let near = refuse(&format!("ber = 0.1\nlayers = [\"{name}\", \"{}\"]", name.replace('v', "w")));
    assert!(near.contains("no layer is 'conw0'; nearest: 'conv0'"), "{near}");
    assert!(refuse("ber = 0.1\nlayers = 99").contains("no layer is number 99; nearest: the last step is number"));
    assert!(refuse("ber = 0.1\nbits = [30]").contains("site mul exposes nothing"));
    assert!(refuse("ber = 0.1\nchannels = [4000000000]").contains("site mul exposes nothing"));
    assert!(refuse("count = 1000000000000").contains("count = 1000000000000, but only"));
    assert!(refuse("pe = [16, 0]").contains("lies outside the array of 16 rows"));
    assert!(refuse("ber = 0.1\nop_types = [\"Gru\"]").contains("no selected layer is Gru; they are Conv"));
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("nan".to_owned()),
        Just("-inf".to_owned()),
        Just("1e-320".to_owned()),
        Just("[]".to_owned()),
        Just("[[1]]".to_owned()),
        Just("\"*\"".to_owned()),
        Just("\"weight\"".to_owned()),
        Just("[\"mul\", \"weight\", \"act\"]".to_owned()),
        Just("[0, 0]".to_owned()),
        Just("true".to_owned()),
        Just("{ a = 1 }".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        (0i64..40).prop_map(|n| n.to_string()),
        (0.0f64..1.0).prop_map(|n| n.to_string()),
        prop::sample::select(vec![
            "flip",
            "stuck_at_0",
            "burst",
            "random",
            "set",
            "mrfi",
            "pytorchfi",
            "opfi",
            "fidelity",
            "mibb",
            "load",
            "campaign",
            "sign_bit",
            "bit_flip",
            "random_value",
            "conv0",
            "**?"
        ])
        .prop_map(|word| format!("\"{word}\"")),
        prop::collection::vec(0u32..40, 0..5).prop_map(|list| format!("{list:?}")),
        prop::collection::vec(0.0f64..0.2, 0..20).prop_map(|list| format!("{list:?}")),
    ]
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "sites",
        "kind",
        "ber",
        "rounded",
        "count",
        "bit_profile",
        "layers",
        "op_types",
        "channels",
        "bits",
        "pe",
        "length",
        "value",
        "lifetime",
        "reuse",
        "preset",
        "rate",
        "mode",
        "range",
        "operand_bits",
        "lanes",
        "array",
    ])
}

/// Values that fit their key, so that many files get through the parser.
fn fitting() -> impl Strategy<Value = String> {
    let sites = prop::sample::subsequence(vec!["mul", "acc", "acc_out", "out", "weight", "act"], 1..4);
    let kind = prop::sample::select(vec!["flip", "stuck_at_0", "stuck_at_1", "burst", "random", "set"]);
    let rate = prop_oneof![
        (0.0f64..=1.0).prop_map(|p| format!("ber = {p}")),
        (0.0f64..=0.01).prop_map(|p| format!("ber = {p}\nrounded = true")),
        (0u64..2_000).prop_map(|n| format!("count = {n}")),
        prop::collection::vec(0.0f64..0.5, 1..32).prop_map(|list| format!("bit_profile = {list:?}")),
        (0u32..20, 0u32..20).prop_map(|(r, c)| format!("pe = [{r}, {c}]")),
    ];
    let masks = prop::collection::vec(
        prop::sample::select(vec![
            "channels = [0, 3, 1]",
            "bits = [0, 15, 31]",
            "layers = \"conv*\"",
            "layers = [0, 1]",
            "layers = \"gone\"",
            "op_types = [\"Conv\"]",
        ]),
        0..3,
    );
    (sites, kind, rate, masks).prop_map(|(sites, kind, rate, mut masks)| {
        masks.sort_unstable();
        masks.dedup_by_key(|mask| &mask[..4]);
        let more = match kind {
            "burst" => "length = 4",
            "set" => "value = -7",
            _ => "",
        };
        format!("[[fault]]\nsites = {sites:?}\nkind = \"{kind}\"\n{rate}\n{more}\n{}\n", masks.join("\n"))
    })
}

proptest! {
    #[test]
    fn nonsense_is_refused_without_panic(entries in prop::collection::vec((key(), value()), 0..8), text in ".{0,80}") {
        let body: Vec<String> = entries.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let _ = FaultsFile::parse(&text);
        let _ = FaultsFile::parse(&format!("[processor]\n{}", body.join("\n")));
        if let Ok(file) = FaultsFile::parse(&format!("[[fault]]\n{}", body.join("\n"))) {
            let program = testing::program(11);
            if let Ok(faults) = Faults::resolve(&file, &program, 1) {
                inference(&faults, &program, 0, 0);
            }
        }
    }

    #[test]
    fn whatever_resolves_can_be_drawn_and_run(text in prop::collection::vec(fitting(), 1..3), seed in 0u64..200) {
        let program = any_program(seed);
        let Ok(file) = FaultsFile::parse(&text.concat()) else { return Ok(()) };
        prop_assert_eq!(&FaultsFile::parse(&file.to_toml()).unwrap(), &file);
        let Ok(faults) = Faults::resolve(&file, &program, seed) else { return Ok(()) };
        let expected = faults.expected(&program, &bare()).total();
        let strikes = inference(&faults, &program, 1, 2);
        // Certain at both ends; in between the laws are tested elsewhere.
        prop_assert!(expected > 0.0 || strikes.is_empty());
        prop_assert_eq!(faults.describe(&program, &bare()).len(), file.faults.len() + 1);
        if strikes.len() < 2_000 {
            let input = testing::picture(&program, seed);
            twin::forward(&program, Some(&faults), &bare(), faults.key(1, 2), faults.machine(), &input);
        }
    }
}
