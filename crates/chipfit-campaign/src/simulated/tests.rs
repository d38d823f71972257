//! The simulated processor as an executor: words of layers, strikes and counts agree with `chipfit-npu`.

use chipfit_npu::faults::{FaultsFile, population};
use chipfit_npu::testing::{picture, program};
use chipfit_npu::{Listed, Site, Vote};

use super::*;
use crate::Judge;
use crate::file::Campaign;
use crate::plan::{Plan, Work};
use crate::subject::{Layer, Subject};

/// Random pictures; the key differs from the place.
struct Random(Program);

impl Pictures for Random {
    fn key(&self, index: u64) -> u64 {
        index * 7 + 1
    }

    fn input(&self, indices: &[u64]) -> Result<Vec<u8>, ExecutorError> {
        Ok(indices.iter().flat_map(|&index| picture(&self.0, index)).collect())
    }
}

fn simulated(program: &Program, protection: Protection, points: Vec<Faults>) -> Simulated<Random> {
    let options = SimulatedOptions { seed: 3, machine: Machine::default(), protection, points };
    Simulated::new(program.clone(), Random(program.clone()), options)
}

fn subject_of(program: &Program, executor: &Simulated<Random>) -> Subject {
    let layers = (0..program.steps().len()).filter_map(|step| Layer::of(program, StepId(step))).collect();
    let judge = Judge::new(program.tensor(program.output()).scale);
    let clean = executor.clean(&[0, 1, 2]).unwrap();
    let pictures = (0..).zip(&clean).map(|(index, output)| judge.clean(index, 0, output)).collect();
    Subject { layers, classes: clean[0].len() as u32, pictures, points: Vec::new() }
}

#[test]
fn words_are_those_of_the_processor() {
    for seed in 0..60 {
        let program = program(seed);
        for step in (0..program.steps().len()).map(StepId) {
            let layer = Layer::of(&program, step).unwrap();
            for lanes in [1, 3] {
                let machine = Machine { lanes: lanes.try_into().unwrap(), ..Machine::default() };
                for site in Site::ALL {
                    let own = layer.words(site, lanes).map(|w| (w.count().unwrap(), w.bits));
                    let wanted = population(&program, step, site, &machine).map(|p| (p.words, p.bits));
                    assert_eq!(own, wanted.filter(|&(words, _)| words > 0), "{seed} {step:?} {site} {lanes}");
                }
            }
        }
    }
}

#[test]
fn a_trial_is_a_run_with_one_listed_strike() {
    let text = "mode = \"single\"\nseed = 3\ncells = []\ntrials = 60\nsites = [\"mul\", \"acc\", \"acc_out\", \"out\", \"weight\", \"act\"]\nkinds = [\"flip\", \"random\"]\n";
    let campaign = Campaign::parse(text).unwrap();
    let mut changed = 0;
    for seed in 0..12 {
        let program = program(seed);
        let executor = simulated(&program, Protection::none(), Vec::new());
        let subject = subject_of(&program, &executor);
        let plan = Plan::new(&campaign, &subject).unwrap();
        for number in 0..60 {
            let trial = plan.trial(number).unwrap();
            let Work::Fault(fault) = trial.work else { panic!("fault") };
            let index = subject.pictures[trial.picture].index;
            let golden = executor.golden(index).unwrap();
            let clean = executor.clean(&[index]).unwrap().remove(0);
            let input = picture(&program, index);
            let listed = Arc::new(Listed::single(StepId(fault.layer), fault.strike));
            let mut plain =
                Simulator::new(program.clone(), SimulatorOptions::default()).unwrap().with_faults(listed, 0);
            let request = Request { batch: Batch { pictures: &[0], input: &input }, trial: 0, views: &[], wanted: &[] };
            let wanted = plain.forward(&request).unwrap().output;
            match executor.strike(&golden, StepId(fault.layer), fault.strike).unwrap() {
                Computed::Masked(_) => assert_eq!(wanted, clean),
                Computed::Output(output) => {
                    changed += usize::from(output != clean);
                    assert_eq!(output, wanted);
                }
            }
        }
    }
    assert!(changed > 100, "{changed} trials changed the output");
}

#[test]
fn full_protection_votes_every_single_fault_of_a_replica_away() {
    let text =
        "mode = \"single\"\nseed = 3\ncells = []\ntrials = 40\nsites = [\"mul\", \"acc\", \"acc_out\", \"out\"]\n";
    let campaign = Campaign::parse(text).unwrap();
    let mut voted = 0;
    for seed in 0..12 {
        let program = program(seed);
        let executor = simulated(&program, Protection::full(&program, Vote::Output), Vec::new());
        let subject = subject_of(&program, &executor);
        let plan = Plan::new(&campaign, &subject).unwrap();
        for number in 0..40 {
            let trial = plan.trial(number).unwrap();
            let Work::Fault(fault) = trial.work else { panic!("fault") };
            let golden = executor.golden(subject.pictures[trial.picture].index).unwrap();
            match executor.strike(&golden, StepId(fault.layer), fault.strike).unwrap() {
                Computed::Masked(masked) => voted += usize::from(masked.by == MaskedBy::Vote),
                Computed::Output(_) => panic!("{seed} {trial:?}"),
            }
        }
    }
    assert!(voted > 400, "{voted} of 480");
}

#[test]
fn passes_draw_the_faults_of_their_point_and_count_them() {
    let file = |rate: f64| {
        FaultsFile::parse(&format!(
            "[[fault]]\nsites = [\"mul\", \"out\", \"weight\"]\nkind = \"flip\"\nber = {rate}\n"
        ))
        .unwrap()
    };
    for seed in 0..12 {
        let program = program(seed);
        let points: Vec<Faults> = [0.0, 0.01].map(|rate| Faults::resolve(&file(rate), &program, 3).unwrap()).into();
        let protection = Protection::full(&program, Vote::Output);
        let facts = point_facts(&points[1], &program, &protection);
        assert!(facts.expected_flips > 0.0 && facts.definition.contains("probability"), "{facts:?}");
        let executor = simulated(&program, protection.clone(), points.clone());
        let clean = executor.clean(&[4, 5]).unwrap();
        let none = executor.pass(0, 9, &[4, 5]).unwrap();
        assert!(none.iter().zip(&clean).all(|(faulty, clean)| faulty.output == *clean && faulty.strikes == Some(0)));
        let both = executor.pass(1, 9, &[4, 5]).unwrap();
        for (at, index) in [4u64, 5].into_iter().enumerate() {
            let mut plain = Simulator::new(program.clone(), SimulatorOptions::default())
                .unwrap()
                .with_faults(Arc::new(points[1].clone()), 3)
                .with_protection(protection.clone());
            let input = picture(&program, index);
            let request = Request {
                batch: Batch { pictures: &[index * 7 + 1], input: &input },
                trial: 9,
                views: &[],
                wanted: &[],
            };
            let trace = plain.forward(&request).unwrap();
            assert_eq!(both[at], Faulty { output: trace.output, strikes: trace.strikes }, "{seed}");
        }
    }
}
