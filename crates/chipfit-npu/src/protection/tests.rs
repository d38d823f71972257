//! Plans from files, and what voting leaves over against its formula.

use proptest::prelude::*;

use super::*;
use crate::faults::{Faults, FaultsFile};
use crate::program::TensorId;
use crate::testing::{self, Builder};
use crate::twin;

#[test]
fn plans_name_layers_and_channels() {
    let program = testing::program(11);
    let names: Vec<&str> = program.steps().iter().map(|step| step.name.as_str()).collect();
    let channels = program.tensor(program.steps()[0].output).channels();
    let text = format!("vote = \"accumulator\"\n[[protect]]\nlayers = [\"{}\"]\nchannels = [0]\n", names[0]);
    let plan = PlanFile::parse(&text).unwrap();
    let protection = Protection::resolve(&plan, &program).unwrap();
    assert_eq!(protection.vote(), Vote::Accumulator);
    assert!(protection.covers(StepId(0), 0) && !protection.covers(StepId(0), 1) && !protection.covers(StepId(1), 0));
    let share = program.step_macs(&program.steps()[0]) as f64 / channels as f64 / program.macs() as f64;
    assert!((protection.penalty(&program) - 2.0 * share).abs() < 1e-12);
    let lines = protection.describe(&program);
    assert!(lines[0].contains("vote on accumulator, 1 layers protected, penalty"), "{lines:?}");
    let plain = format!("vote = \"accumulator\"\n[[protect]]\nlayers = \"{}\"\nchannels = [0]\n", names[0]);
    assert_eq!(protection.to_plan(&program), PlanFile::parse(&plain).unwrap());
    let all = Protection::resolve(&PlanFile::parse("[[protect]]\nlayers = \"*\"").unwrap(), &program).unwrap();
    assert_eq!(all, Protection::full(&program, Vote::Output));
    assert!(all.describe(&program)[0].contains("penalty 200.00%"));
    assert_eq!(Protection::none().describe(&program), ["TMR: nothing protected"]);
}

#[test]
fn errors_say_what_and_where() {
    let program = testing::program(11);
    let parse = |text: &str| PlanFile::parse(text).unwrap_err().to_string();
    assert!(parse("vote = \"words\"").contains("line 1") && parse("vote = \"words\"").contains("accumulator"));
    assert!(parse("votes = \"output\"").contains("unknown field `votes`"));
    assert!(parse("[[protect]]\nchannels = [0]").contains("missing field `layers`"));
    assert!(parse("[[protect]]\nlayers = []").contains("[[protect]] 1: key 'layers' is empty"));
    assert!(parse("[[protect]]\nlayers = 0\nchannels = []").contains("key 'channels' is empty"));
    let resolve = |text: &str| Protection::resolve(&PlanFile::parse(text).unwrap(), &program).unwrap_err().to_string();
    assert!(resolve("[[protect]]\nlayers = \"conw0\"").contains("no layer is 'conw0'; nearest: 'conv0'"));
    assert!(resolve("[[protect]]\nlayers = \"conv0\"\nchannels = [5000]").contains("and no 5000"));
}

proptest! {
    #[test]
    fn plans_survive_the_way_through_a_file(seed: u64, bits: u64, vote in 0usize..3) {
        let program = testing::program(seed);
        let mut protection = Protection::with_vote([Vote::Output, Vote::Accumulator, Vote::Operation][vote]);
        for (position, step) in program.steps().iter().enumerate() {
            let channels = program.tensor(step.output).channels();
            let flags: Vec<bool> = (0..channels).map(|channel| bits >> ((channel + position) % 64) & 1 == 1).collect();
            protection.protect(StepId(position), flags);
        }
        let text = protection.to_plan(&program).to_toml();
        let again = Protection::resolve(&PlanFile::parse(&text).unwrap(), &program).unwrap();
        for (position, step) in program.steps().iter().enumerate() {
            for channel in 0..program.tensor(step.output).channels() {
                prop_assert_eq!(again.covers(StepId(position), channel), protection.covers(StepId(position), channel));
            }
        }
        prop_assert_eq!(again.vote(), protection.vote());
        prop_assert!((again.penalty(&program) - protection.penalty(&program)).abs() < 1e-12);
    }

    #[test]
    fn nonsense_plans_are_refused_without_panic(text in "(vote|protect|layers|channels|\\[|\\]|=|\"|\\*|[0-9]|\n| ){0,40}") {
        if let Ok(plan) = PlanFile::parse(&text) {
            let _ = Protection::resolve(&plan, &testing::program(11));
        }
    }
}

/// Shares of passes in which each bit of the only output differs from its clean value.
fn wrong_bits(
    faults: &Faults,
    program: &crate::Program,
    protection: &Protection,
    trials: std::ops::Range<u64>,
) -> [f64; 8] {
    let input = testing::picture(program, 1);
    let clean = twin::forward(program, None, &Protection::none(), faults.key(0, 0), faults.machine(), &input);
    let passes = (trials.end - trials.start) as f64;
    let mut wrong = [0u32; 8];
    for trial in trials {
        let struck = twin::forward(program, Some(faults), protection, faults.key(trial, 0), faults.machine(), &input);
        let output = program.output().0;
        let change = struck[output][0] ^ clean[output][0];
        (0..8).for_each(|bit| wrong[bit] += u32::from(change >> bit & 1));
    }
    wrong.map(|count| f64::from(count) / passes)
}

#[test]
fn what_the_vote_leaves_over_agrees_with_the_formula() {
    let mut builder = Builder::new(9, &[6]);
    builder.gemm(TensorId(0), 1);
    let mut program = builder.build();
    let crate::Op::Linear(linear) = &mut program.steps[0].op else { unreachable!() };
    (linear.low, linear.high) = (0, 255);
    let text = "[[fault]]\nsites = [\"mul\", \"acc\", \"out\"]\nkind = \"flip\"\nber = 0.012";
    let faults = Faults::resolve(&FaultsFile::parse(text).unwrap(), &program, 3).unwrap();
    let passes = 40_000u64;
    let alone = wrong_bits(&faults, &program, &Protection::none(), 0..passes);
    let voted = wrong_bits(&faults, &program, &Protection::full(&program, Vote::Output), passes..2 * passes);
    let n = passes as f64;
    let mut seen = 0;
    for (p, q) in alone.into_iter().zip(voted) {
        let expected = residual(p);
        // Both shares are estimates: the voted one's own deviation, and what p's deviation does to the formula.
        let slope = 6.0 * p * (1.0 - p);
        let deviation = ((expected * (1.0 - expected) + slope * slope * p * (1.0 - p)) / n).sqrt();
        // 5 deviations, 8 bits: one false alarm in 200,000 seeds.
        assert!((q - expected).abs() < 5.0 * deviation, "alone {p}, voted {q}, formula {expected} +- {deviation}");
        seen += u32::from(p > 0.05 && (p - expected) > 10.0 * deviation);
    }
    assert!(seen > 0, "rates too low for the test to tell: {alone:?}");
}

#[test]
fn the_formula_keeps_certainty_and_halves() {
    assert_eq!([0.0, 0.5, 1.0].map(residual), [0.0, 0.5, 1.0]);
    assert!((residual(1e-3) - 2.998e-6).abs() < 1e-15);
}
