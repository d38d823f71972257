//! What a campaign file may say, and what each mistake is answered.

use chipfit_npu::faults::file::Layer;

use super::*;

#[test]
fn the_least_file_of_each_mode_is_enough() {
    let single = Campaign::parse("mode = \"single\"\nseed = 1\ntrials = 10\n").unwrap();
    assert_eq!(single.size, Size::Total(10));
    let Mode::Single(faults) = single.mode else { panic!("single") };
    assert_eq!((faults.sites, faults.kinds), (vec![Site::Mul, Site::Acc], vec![Kind::Flip]));
    let rate = Campaign::parse("mode = \"rate\"\nseed = 1\nrepeats = 3\n[[curve]]\nber = [0.0, 1e-6]\n").unwrap();
    assert_eq!(rate.size, Size::PerCell(3));
    let Mode::Rate(curves) = rate.mode else { panic!("rate") };
    assert_eq!(curves[0].name, "mul+acc");
    assert_eq!(curves[0].rates, Rates::Ber(vec![0.0, 1e-6]));
    let text =
        "mode = \"rate\"\nseed = 1\n[[curve]]\npreset = \"mrfi\"\nrate = [0.001]\n[[curve]]\nfaults = \"f.toml\"\n";
    let Mode::Rate(curves) = Campaign::parse(text).unwrap().mode else { panic!("rate") };
    assert_eq!((curves[0].name.as_str(), curves[1].name.as_str()), ("mrfi", "f.toml"));
    assert_eq!(curves[0].faults_file(0, Machine::default()).unwrap().faults[0].rate, Some(0.001));
}

#[test]
fn everything_a_single_campaign_may_say_is_read() {
    let text = r#"
mode = "single"
seed = 7
threads = 2
model = "m.onnx"
data = "d:test"
images = { count = 5, select = "first", correct_only = true }
sites = ["out", "acc"]
kinds = ["stuck_at_1", "burst:3", "random", "set:127", "flip"]
layers = ["conv*", 3]
channels = [1, 0]
bits = [7, 6]
cells = ["layer"]
lanes = 4
tmr = "plan.toml"
margin = 0.01
confidence = 0.99
sequential = true
"#;
    let campaign = Campaign::parse(text).unwrap();
    assert!(campaign.is_sequential());
    let Mode::Single(single) = &campaign.mode else { panic!("single") };
    assert_eq!(single.kinds, [Kind::Flip, Kind::StuckAt1, Kind::Burst(3), Kind::Random, Kind::Set(127)]);
    assert_eq!(single.layers, Layers(vec![Layer::Name("conv*".to_owned()), Layer::Index(3)]));
    assert_eq!(single.channels, Some(vec![0, 1]));
    assert_eq!(campaign.images, Images { count: Some(5), select: Select::First, correct_only: true });
}

#[test]
fn mistakes_are_named() {
    let single = "mode = \"single\"\nseed = 1\n";
    let rate = "mode = \"rate\"\nseed = 1\n";
    for (text, wanted) in [
        (format!("{single}trials = 1\nbitts = [1]"), "bitts"),
        (format!("{single}trials = 1\nsites = [\"mull\"]"), "mull"),
        (format!("{single}trials = 1\nkinds = [\"flop\"]"), "flop"),
        (format!("{single}trials = 1\nkinds = [\"burst:1\"]"), "burst:1"),
        (format!("{single}trials = 1\nbits = [1, 1]"), "bits"),
        (format!("{single}trials = 1\nbits = []"), "bits"),
        (format!("{single}trials = 0"), "trials"),
        (format!("{single}trials = -1"), "trials"),
        (single.to_owned(), "trials"),
        (format!("{single}trials = 1\nmargin = 0.1"), "trials"),
        (format!("{single}trials = 1\nsequential = true"), "sequential"),
        (format!("{single}margin = 0.0"), "margin"),
        (format!("{single}margin = nan"), "margin"),
        (format!("{single}margin = 0.1\nconfidence = 1.0"), "confidence"),
        (format!("{single}trials = 1\nrepeats = 2"), "repeats"),
        (format!("{single}trials = 1\nimages = 0"), "images"),
        (format!("{single}trials = 1\nimages = -3"), "images"),
        (format!("{single}trials = 1\nimages = {{ cuont = 3 }}"), "cuont"),
        (format!("{single}trials = 1\nthreads = 0"), "threads"),
        (format!("{single}trials = 1\nlanes = 0"), "lanes"),
        ("mode = \"both\"\nseed = 1".to_owned(), "both"),
        ("seed = 1".to_owned(), "mode"),
        ("mode = \"single\"\ntrials = 3".to_owned(), "seed"),
        (rate.to_owned(), "curve"),
        (format!("{rate}sites = [\"mul\"]\n[[curve]]\nber = [0.1]"), "sites"),
        (format!("{rate}[[curve]]\nber = [2.0]"), "'ber'"),
        (format!("{rate}[[curve]]\nber = [nan]"), "'ber'"),
        (format!("{rate}[[curve]]\nber = []"), "curve[0].ber"),
        (format!("{rate}[[curve]]\nber = [0.1]\ncount = [1]"), "curve[0].ber"),
        (format!("{rate}[[curve]]\n"), "curve[0].ber"),
        (format!("{rate}[[curve]]\nber = [0.1]\nrates = 1"), "rates"),
        (format!("{rate}[[curve]]\nber = \"x\""), "curve[0].ber"),
        (format!("{rate}[[curve]]\nber = [0.1]\nkind = \"flop\""), "flop"),
        (format!("{rate}[[curve]]\nrate = [0.1]"), "curve[0]"),
        (format!("{rate}[[curve]]\nber = [0.1]\nfaults = \"f.toml\""), "curve[0].faults"),
        (format!("{rate}[[curve]]\nfaults = \"f.toml\"\nsites = [\"mul\"]"), "curve[0].sites"),
        (format!("{rate}repeats = 2\nmargin = 0.1\n[[curve]]\nber = [0.1]"), "repeats"),
        (format!("{rate}repeats = 0\n[[curve]]\nber = [0.1]"), "repeats"),
    ] {
        let error = Campaign::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(wanted), "{text}\n-> {error}");
    }
}

#[test]
fn threads_are_no_part_of_the_identity() {
    let of = |threads: &str| Campaign::parse(&format!("mode = \"single\"\nseed = 1\ntrials = 10\n{threads}")).unwrap();
    assert_eq!(serde_json::to_string(&of("")).unwrap(), serde_json::to_string(&of("threads = 2")).unwrap());
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Campaign::parse(&text);
    }
}
