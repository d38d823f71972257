//! Numbers, cells, masks and what every trial number means.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::run::tests::{campaign, fault_campaign, subject};

#[test]
fn a_census_visits_every_fault_of_every_picture_once() {
    // Layer 0: 2 channels x 3 positions x K 4; layer 1 has no products.
    let (campaign, subject) =
        fault_campaign("cells = []\ntrials = 1_000_000\nsites = [\"mul\", \"out\", \"weight\", \"act\"]");
    let plan = Plan::new(&campaign, &subject).unwrap();
    let per_picture = 6 * 4 * 16 + 6 * 8 + 8 * 8 + 15 * 8 + 6 * 8 + 6 * 8;
    assert_eq!(plan.cells().len(), 1);
    assert_eq!(plan.cells()[0].faults, per_picture);
    assert_eq!(plan.planned(), per_picture * subject.pictures.len() as u64);
    let mut seen = BTreeSet::new();
    for number in 0..plan.planned() {
        let trial = plan.trial(number).unwrap();
        let Work::Fault(fault) = trial.work else { panic!("fault") };
        let Change::Xor(mask) = fault.strike.change else { panic!("flip") };
        let words = subject.layers[fault.layer].words(fault.site, 1).unwrap();
        assert_eq!(mask, 1 << fault.bit.unwrap());
        assert!(fault.bit.unwrap() < words.bits);
        assert!(fault.strike.word < words.count().unwrap());
        assert_eq!(fault.strike.word, words.word(fault.position, fault.channel, fault.place));
        assert!(seen.insert((trial.picture, fault.layer, fault.site, fault.strike.word, mask)), "{trial:?}");
    }
    assert_eq!(seen.len() as u64, plan.planned());
    assert!(plan.trial(plan.planned()).is_err());
}

#[test]
fn cells_are_what_the_axes_say() {
    let cells = |axes: &str| {
        let (campaign, subject) = fault_campaign(&format!("cells = {axes}\ntrials_per_cell = 2"));
        Plan::new(&campaign, &subject).unwrap().cells().len()
    };
    // The default sites mul (16 bits) and acc (32 bits) exist in layer 0 alone.
    assert_eq!(cells("[]"), 1);
    assert_eq!(cells("[\"site\"]"), 2);
    assert_eq!(cells("[\"bit\"]"), 32);
    assert_eq!(cells("[\"bit\", \"site\"]"), 48);
    assert_eq!(cells("[\"layer\", \"bit\", \"site\"]"), 48);
}

#[test]
fn masks_restrict_and_their_mistakes_are_named() {
    let plan = |text: &str| {
        let (campaign, subject) = fault_campaign(&format!("cells = []\ntrials = 1_000_000\n{text}"));
        Plan::new(&campaign, &subject)
    };
    let faults = |text: &str| plan(text).unwrap().cells().iter().map(|c| c.faults).sum::<u64>();
    assert_eq!(faults("sites = [\"mul\"]\nbits = [15, 3]"), 6 * 4 * 2);
    assert_eq!(faults("sites = [\"out\"]\nlayers = \"re*\""), 48);
    assert_eq!(faults("sites = [\"out\"]\nlayers = [0]\nchannels = [1]"), 24);
    assert_eq!(faults("sites = [\"out\"]\nlayers = [0]\nkinds = [\"burst:3\"]"), 6 * 6);
    assert_eq!(faults("sites = [\"out\"]\nlayers = [0]\nkinds = [\"set:3\", \"stuck_at_0\"]"), 6 + 48);
    for (text, key) in [
        ("layers = \"nosuch\"", "nosuch"),
        ("layers = [7]", "number 7"),
        ("layers = [\"relu\"]", "sites"),
        ("channels = [9]", "sites"),
        ("sites = [\"mul\"]\nbits = [16]", "sites"),
    ] {
        let error = plan(text).expect_err(text).to_string();
        assert!(error.contains(key), "{text}: {error}");
    }
}

#[test]
fn too_few_trials_for_the_cells_are_refused() {
    let (campaign, subject) = fault_campaign("trials = 47");
    assert!(Plan::new(&campaign, &subject).unwrap_err().to_string().contains("47 trials for 48 cells"));
}

#[test]
fn a_trial_is_the_same_whatever_the_number_of_trials() {
    let trial = |size: &str| {
        let (campaign, subject) = fault_campaign(size);
        Plan::new(&campaign, &subject).unwrap().trial(100).unwrap()
    };
    assert_eq!(trial("trials = 1000"), trial("trials_per_cell = 7"));
    assert_eq!(trial("trials = 1000"), trial("margin = 0.1\nsequential = true"));
}

#[test]
fn rate_trials_visit_every_picture_once_a_repeat_under_draws_of_their_own() {
    let campaign = campaign("mode = \"rate\"\nseed = 5\nrepeats = 3\n[[curve]]\nber = [1e-6, 1e-5]\n");
    let mut subject = subject(10);
    subject.points = vec![PointFactsForTest::make(), PointFactsForTest::make()];
    let plan = Plan::new(&campaign, &subject).unwrap();
    assert_eq!(plan.planned(), 60);
    let mut visits: BTreeMap<(usize, u64), BTreeSet<usize>> = BTreeMap::new();
    for number in 0..60 {
        let trial = plan.trial(number).unwrap();
        let Work::Pass { point, draw } = trial.work else { panic!("pass") };
        assert!(visits.entry((point, draw)).or_default().insert(trial.picture));
    }
    assert_eq!(visits.len(), 6);
    assert_eq!(visits.keys().map(|(_, draw)| draw).collect::<BTreeSet<_>>().len(), 6);
    assert!(visits.values().all(|pictures| pictures.len() == 10));
}

struct PointFactsForTest;
impl PointFactsForTest {
    fn make() -> crate::subject::PointFacts {
        crate::subject::PointFacts { definition: "test".to_owned(), expected_flips: 1.0 }
    }
}

#[test]
fn draws_are_uniform_over_layers_bits_and_pictures() {
    let (campaign, subject) = fault_campaign("cells = []\ntrials = 20_000\nsites = [\"acc\"]\nkinds = [\"random\"]");
    let plan = Plan::new(&campaign, &subject).unwrap();
    let mut words = [0f64; 24];
    let mut high_bits = 0f64;
    for number in 0..20_000 {
        let Work::Fault(fault) = plan.trial(number).unwrap().work else { panic!("fault") };
        words[fault.strike.word as usize] += 1.0;
        let Change::Set(value) = fault.strike.change else { panic!("random") };
        high_bits += f64::from(value >> 31);
    }
    let expected = 20_000.0 / 24.0;
    let chi_square: f64 = words.iter().map(|n| (n - expected).powi(2) / expected).sum();
    assert!(chi_square < 49.7, "{chi_square}");
    // Five standard deviations of a fair coin.
    assert!((high_bits - 10_000.0).abs() < 5.0 * 70.7, "{high_bits}");
}

proptest! {
    #[test]
    fn numbers_and_places_are_inverse(cell in 0usize..48, index in 0u64..20) {
        let (campaign, subject) = fault_campaign("trials_per_cell = 20");
        let plan = Plan::new(&campaign, &subject).unwrap();
        prop_assert_eq!(plan.place(plan.number(cell, index)), Some((cell, index)));
    }
}
