//! Whole campaigns on a stand-in for a processor whose truth is known: threads, interruptions, shards, stopping.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use chipfit_npu::{Site, Strike};

use super::*;
use crate::executor::Faulty;
use crate::file::Campaign;
use crate::folder::Origin;
use crate::outcome::{Outcome, Verdict};
use crate::random::{hash, unit};
use crate::results::{SUMMARY, TABLE, finish};
use crate::subject::{Layer, PointFacts};

pub(crate) fn campaign(text: &str) -> Campaign {
    Campaign::parse(text).unwrap()
}

/// Two layers: a convolution (2 channels x 3 positions, K = 4, input 5 x 3) and a table of 6 bytes.
pub(crate) fn subject(pictures: u64) -> Subject {
    let conv = Layer {
        step: 0,
        name: "conv".to_owned(),
        op_type: "Conv".to_owned(),
        channels: 2,
        positions: 3,
        products: 4,
        product_bits: 16,
        has_weights: true,
        input_channels: 3,
        input_positions: 5,
        macs: 24,
    };
    let relu = Layer {
        step: 1,
        name: "relu".to_owned(),
        op_type: "Relu".to_owned(),
        products: 0,
        product_bits: 0,
        has_weights: false,
        input_channels: 2,
        input_positions: 3,
        macs: 0,
        ..conv.clone()
    };
    let judge = Judge::new(0.1);
    let pictures = (0..pictures).map(|id| judge.clean(id, (id % 3) as u32, &Fake::clean_output(id))).collect();
    Subject { layers: vec![conv, relu], classes: 4, pictures, points: Vec::new() }
}

pub(crate) fn fault_campaign(rest: &str) -> (Campaign, Subject) {
    (campaign(&format!("mode = \"single\"\nseed = 5\n{rest}\n")), subject(10))
}

pub(crate) fn verdict(outcome: Outcome) -> Verdict {
    Verdict { outcome, class: 1, is_sdc_top5: false, is_in_top5: true, shift: 0.0, masked: None }
}

/// Answers by a hash of the question.
#[derive(Default)]
struct Fake<'a> {
    asked: AtomicU64,
    /// Set after so many questions.
    stops: Option<(u64, &'a AtomicBool)>,
    /// Fails at this question, if it is not 0.
    fails_at: u64,
}

impl Fake<'_> {
    fn count(&self) -> u64 {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some((_, stop)) = self.stops.filter(|(after, _)| asked >= *after) {
            stop.store(true, Ordering::Relaxed);
        }
        asked
    }

    fn clean_output(picture: u64) -> Vec<u8> {
        let mut output = vec![10, 20, 30, 5];
        output.rotate_left((picture % 4) as usize);
        output
    }

    /// The truth: a third is masked, a change of the decision is the more likely the higher the bit.
    fn answer(picture: u64, step: StepId, strike: &Strike) -> Computed {
        let bit = match strike.change {
            chipfit_npu::Change::Xor(mask) => u64::from(mask.trailing_zeros()),
            _ => 0,
        };
        let draw = unit(hash(&[99, picture, step.0 as u64, strike.site as u64, strike.word, bit]));
        let mut output = Self::clean_output(picture);
        if draw < 1.0 / 3.0 {
            return Computed::Masked(Masked { step: Some(step), by: MaskedBy::Requantized });
        }
        if draw > 1.0 - bit as f64 / 100.0 {
            output[(strike.word % 4) as usize] = 200;
        } else {
            output[3] ^= 1;
        }
        Computed::Output(output)
    }
}

impl Executor for Fake<'_> {
    type Golden = u64;

    fn clean(&self, pictures: &[u64]) -> Result<Vec<Vec<u8>>, ExecutorError> {
        Ok(pictures.iter().map(|&id| Self::clean_output(id)).collect())
    }

    fn golden(&self, picture: u64) -> Result<u64, ExecutorError> {
        Ok(picture)
    }

    fn strike(&self, &picture: &u64, step: StepId, strike: Strike) -> Result<Computed, ExecutorError> {
        if self.count() == self.fails_at {
            return Err("the chip is on fire".into());
        }
        Ok(Self::answer(picture, step, &strike))
    }

    fn pass(&self, point: usize, draw: u64, pictures: &[u64]) -> Result<Vec<Faulty>, ExecutorError> {
        self.count();
        let answer = |&id: &u64| {
            let mut output = Self::clean_output(id);
            if unit(hash(&[draw, id])) < 0.2 * (point as f64 + 1.0) {
                output.rotate_left(1);
            }
            Faulty { output, strikes: Some(draw) }
        };
        Ok(pictures.iter().map(answer).collect())
    }
}

fn origin(text: &str) -> Origin {
    Origin {
        model: "m".to_owned(),
        data: "d".to_owned(),
        preprocessing: "p".to_owned(),
        processor: "fake".to_owned(),
        campaign_text: text.to_owned(),
        inputs: BTreeMap::from([("plans/tmr.toml".to_owned(), b"plan".to_vec())]),
        command: vec!["chipfit".to_owned()],
    }
}

fn subject_for(text: &str) -> Subject {
    let mut subject = subject(10);
    if let crate::file::Mode::Rate(curves) = campaign(text).mode {
        let points: usize = curves.iter().map(|c| c.rates.len()).sum();
        subject.points = vec![PointFacts { definition: "fake".to_owned(), expected_flips: 0.25 }; points];
    }
    subject
}

fn open(path: &Path, text: &str, shard: Option<Shard>) -> RunFolder {
    RunFolder::create(path, &origin(text), shard, subject_for(text)).unwrap()
}

fn execute(folder: &RunFolder, threads: usize) -> Session {
    let stop = AtomicBool::new(false);
    run(folder, &Fake::default(), &Judge::new(0.1), &RunOptions { threads, stop: &stop }, |_| {}).unwrap()
}

fn result_of(folder: &RunFolder) -> (Vec<u8>, Vec<u8>) {
    finish(folder).unwrap();
    let read = |name| std::fs::read(folder.path().join(name)).unwrap();
    (read(SUMMARY), read(TABLE))
}

const TEXTS: [&str; 3] = [
    "mode = \"single\"\nseed = 5\ntrials = 9_000\ncells = [\"layer\", \"bit\"]\nsites = [\"mul\", \"out\", \"weight\"]\nkinds = [\"flip\", \"random\"]\n",
    "mode = \"single\"\nseed = 5\nmargin = 0.06\nsequential = true\ncells = [\"bit\"]\n",
    "mode = \"rate\"\nseed = 5\nrepeats = 40\n[[curve]]\nber = [1e-6, 1e-5]\n[[curve]]\nname = \"n\"\ncount = [3]\n",
];

#[test]
fn the_result_does_not_depend_on_threads_or_interruptions() {
    for text in TEXTS {
        let base = tempfile::tempdir().unwrap();
        let whole = open(&base.path().join("whole"), text, None);
        assert!(execute(&whole, 1).is_complete);
        let wanted = result_of(&whole);
        for threads in [2, 5] {
            let path = base.path().join(format!("cut{threads}"));
            let mut sessions = 0;
            loop {
                let folder = open(&path, text, None);
                let stop = AtomicBool::new(false);
                // A rate campaign asks once a batch.
                let after = if text.contains("rate") { 9 } else { 600 };
                let fake = Fake { stops: Some((after, &stop)), ..Fake::default() };
                let options = RunOptions { threads, stop: &stop };
                let session = run(&folder, &fake, &Judge::new(0.1), &options, |_| {}).unwrap();
                sessions += 1;
                if session.is_complete {
                    assert_eq!(result_of(&folder), wanted, "{text}");
                    break;
                }
                assert!(matches!(finish(&folder), Err(CampaignError::Incomplete { .. })));
                drop(folder);
                // A torn tail, as a power failure leaves it.
                let log = path.join("trials.log");
                let mut bytes = std::fs::read(&log).unwrap();
                bytes.truncate(bytes.len().saturating_sub(7 + sessions * 40).max(64));
                std::fs::write(&log, bytes).unwrap();
            }
            assert!(sessions > 1, "the run was never interrupted");
        }
    }
}

#[test]
fn merged_shards_are_one_run() {
    for text in TEXTS {
        let base = tempfile::tempdir().unwrap();
        let whole = open(&base.path().join("whole"), text, None);
        execute(&whole, 2);
        let wanted = result_of(&whole);
        for of in [1, 3] {
            let parts: Vec<PathBuf> = (1..=of)
                .map(|index| {
                    let path = base.path().join(format!("{index}of{of}"));
                    let folder = open(&path, text, Some(Shard { index, of }));
                    assert!(execute(&folder, 2).is_complete);
                    if of > 1 {
                        assert!(matches!(finish(&folder), Err(CampaignError::Incomplete { .. })));
                    }
                    path
                })
                .collect();
            let merged = RunFolder::merge(&base.path().join(format!("merged{of}")), &parts, &[]).unwrap();
            assert_eq!(result_of(&merged), wanted, "{text}");
        }
        // One shard and the rest made where it was merged.
        let merged = RunFolder::merge(&base.path().join("rest"), &[base.path().join("2of3")], &[]).unwrap();
        let session = execute(&merged, 2);
        assert!(session.resumed > 0 && session.made > 0);
        assert_eq!(result_of(&merged), wanted);
    }
}

#[test]
fn shards_split_the_work_and_know_their_share() {
    for (planned, of, is_sequential) in
        [(10_000u64, 3, false), (100, 4, false), (256, 2, false), (513, 7, false), (900, 3, true)]
    {
        let mut sum = vec![0; 5];
        for index in 1..=of {
            let part = Part { shard: Some(Shard { index, of }), is_sequential };
            for (cell, sum) in sum.iter_mut().enumerate() {
                let own = (0..planned).filter(|&i| part.has(cell, i)).count() as u64;
                assert_eq!(part.count(cell, planned), own, "{planned} {index}/{of} cell {cell}");
                *sum += own;
            }
        }
        assert_eq!(sum, vec![planned; 5]);
    }
}

#[test]
fn a_census_finds_the_truth_exactly_and_a_sample_covers_it() {
    let text = "mode = \"single\"\nseed = 5\ntrials_per_cell = 100_000\nsites = [\"acc\"]\ncells = [\"bit\"]\n";
    let base = tempfile::tempdir().unwrap();
    let folder = open(&base.path().join("census"), text, None);
    execute(&folder, 2);
    let census = finish(&folder).unwrap().single.unwrap();
    let mut all = 0;
    let mut truths = Vec::new();
    for (bit, cell) in census.cells.iter().enumerate() {
        let mut sdc = 0;
        for picture in 0..10u64 {
            for word in 0..24 {
                let strike = Strike {
                    site: Site::Acc,
                    word,
                    first_use: 0,
                    uses: u32::MAX,
                    change: chipfit_npu::Change::Xor(1 << bit),
                };
                if let Computed::Output(output) = Fake::answer(picture, StepId(0), &strike) {
                    let struck = output.iter().position(|&b| b == 200);
                    let clean = Fake::clean_output(picture).iter().position(|&b| b == 30);
                    sdc += u64::from(struck.is_some() && struck != clean && struck != Some((picture % 3) as usize));
                }
            }
        }
        all += sdc;
        truths.push(sdc as f64 / 240.0);
        assert_eq!((cell.trials, cell.population), (240, Some(240)));
        assert_eq!(cell.shares.sdc_top1.count, sdc, "bit {bit}");
        assert_eq!(cell.shares.sdc_top1.low, cell.shares.sdc_top1.high);
    }
    let overall = &census.overall[0].shares.sdc_top1;
    assert!((overall.value - all as f64 / (240.0 * 32.0)).abs() < 1e-12 && (overall.high - overall.low).abs() < 1e-9);
    let masked: u64 = census.masked.iter().map(|m| m.share.count).sum();
    assert_eq!(masked, census.cells.iter().map(|c| c.shares.masked.count).sum::<u64>());
    assert_eq!(census.channels.len(), 2);

    // Samples of 60 out of 240 at other seeds: 32 cells x 20 seeds, 95 % intervals.
    let mut covered = 0;
    for seed in 0..20 {
        let text =
            format!("mode = \"single\"\nseed = {seed}\ntrials_per_cell = 60\nsites = [\"acc\"]\ncells = [\"bit\"]\n");
        let folder = open(&base.path().join(format!("sample{seed}")), &text, None);
        execute(&folder, 2);
        let cells = finish(&folder).unwrap().single.unwrap().cells;
        covered += cells
            .iter()
            .zip(&truths)
            .filter(|(c, t)| c.shares.sdc_top1.low <= **t && **t <= c.shares.sdc_top1.high)
            .count();
    }
    assert!(covered as f64 >= 0.93 * 640.0, "{covered} of 640");
}

#[test]
fn sequential_cells_keep_their_margin_with_fewer_trials() {
    let base = tempfile::tempdir().unwrap();
    // 1,000 pictures make the cells large.
    let text = "mode = \"single\"\nseed = 5\nmargin = 0.04\nsequential = true\ncells = [\"bit\"]\nsites = [\"acc\"]\n";
    let folder = RunFolder::create(&base.path().join("run"), &origin(text), None, subject(1_000)).unwrap();
    execute(&folder, 2);
    let summary = finish(&folder).unwrap().single.unwrap();
    assert!(summary.cells.iter().all(|c| c.shares.sdc_top1.interval().half_width() <= 0.04));
    let trials: u64 = summary.cells.iter().map(|c| c.trials).sum();
    let planned: u64 = summary.cells.iter().map(|c| c.planned).sum();
    assert!(trials * 3 < planned * 2, "{trials} of {planned}");
}

#[test]
fn rate_results_count_what_they_say() {
    let base = tempfile::tempdir().unwrap();
    let folder = open(&base.path().join("run"), TEXTS[2], None);
    execute(&folder, 3);
    let summary = finish(&folder).unwrap();
    assert_eq!(summary.curves.iter().map(|c| c.points.len()).collect::<Vec<_>>(), [2, 1]);
    // Four classes: the top five hold every label, and a rotation by one always changes the decision.
    for (point, share) in summary.curves.iter().flat_map(|c| &c.points).zip([0.2, 0.4, 0.6]) {
        assert_eq!(point.trials, 400);
        assert_eq!(point.top5.count, 400);
        let changed = point.shares.sdc_top1.value + point.shares.beneficial.value;
        assert!((changed - share).abs() < 0.1, "{changed} {share}");
        assert!((1.0 - point.shares.masked.value - changed).abs() < 1e-12);
        assert!(point.mean_strikes.is_some());
    }
}

#[test]
fn a_failing_processor_ends_the_run_and_what_was_made_is_kept() {
    let base = tempfile::tempdir().unwrap();
    let text = TEXTS[0];
    let path = base.path().join("run");
    let folder = open(&path, text, None);
    let stop = AtomicBool::new(false);
    let fake = Fake { fails_at: 5_000, ..Fake::default() };
    let error = run(&folder, &fake, &Judge::new(0.1), &RunOptions { threads: 3, stop: &stop }, |_| {}).unwrap_err();
    assert!(error.to_string().contains("on fire"), "{error}");
    drop(folder);
    let folder = open(&path, text, None);
    let session = execute(&folder, 2);
    assert!(session.resumed > 1_000 && session.is_complete, "{session:?}");
    let whole = open(&base.path().join("whole"), text, None);
    execute(&whole, 1);
    assert_eq!(result_of(&folder), result_of(&whole));
}

#[test]
fn another_run_is_refused_and_told_apart() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("run");
    drop(open(&path, TEXTS[0], None));
    let refusal = |change: &dyn Fn(&mut Origin), shard| {
        let mut origin = origin(TEXTS[0]);
        change(&mut origin);
        RunFolder::create(&path, &origin, shard, subject(10)).unwrap_err().to_string()
    };
    type Change = (&'static str, Box<dyn Fn(&mut Origin)>);
    let changes: Vec<Change> = vec![
        ("model: \"m\" there, \"x\" given", Box::new(|o| o.model = "x".to_owned())),
        ("data: ", Box::new(|o| o.data = "x".to_owned())),
        ("preprocessing: ", Box::new(|o| o.preprocessing = "x".to_owned())),
        ("processor: ", Box::new(|o| o.processor = "x".to_owned())),
        ("inputs.plans/tmr.toml: ", Box::new(|o| o.inputs.values_mut().for_each(|v| v.push(0)))),
        (
            "campaign.seed: 5 there, 6 given",
            Box::new(|o| o.campaign_text = o.campaign_text.replace("seed = 5", "seed = 6")),
        ),
        ("campaign.mode.single.cells: ", Box::new(|o| o.campaign_text = o.campaign_text.replace("\"layer\", ", ""))),
    ];
    for (wanted, change) in changes {
        let error = refusal(&change, None);
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    let error = refusal(&|_| {}, Some(Shard { index: 1, of: 2 }));
    assert!(error.contains("shard: none there, 1/2 given"), "{error}");
    // Threads and comments are no difference.
    let mut same = origin(TEXTS[0]);
    same.campaign_text = format!("# again\nthreads = 7\n{}", TEXTS[0]);
    RunFolder::create(&path, &same, None, subject(10)).unwrap();
    let error = RunFolder::create(&path, &origin(TEXTS[0]), None, subject(11)).unwrap_err().to_string();
    assert!(error.contains("clean results"), "{error}");
}

#[test]
fn two_writers_and_foreign_folders_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("run");
    let held = open(&path, TEXTS[0], None);
    let again = RunFolder::create(&path, &origin(TEXTS[0]), None, subject(10));
    assert!(matches!(again, Err(CampaignError::Locked { .. })));
    assert!(matches!(
        RunFolder::merge(&base.path().join("m"), std::slice::from_ref(&path), &[]),
        Err(CampaignError::Locked { .. })
    ));
    drop(held);
    drop(open(&path, TEXTS[0], None));
    let foreign = base.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "x").unwrap();
    let error = RunFolder::create(&foreign, &origin(TEXTS[0]), None, subject(10)).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
}

#[test]
fn runs_of_different_campaigns_do_not_merge() {
    let base = tempfile::tempdir().unwrap();
    let (a, b) = (base.path().join("a"), base.path().join("b"));
    drop(open(&a, TEXTS[0], None));
    drop(open(&b, TEXTS[1], None));
    let error = RunFolder::merge(&base.path().join("m"), &[a, b], &[]).unwrap_err().to_string();
    assert!(error.contains("campaign.size"), "{error}");
}

#[test]
fn an_edited_copy_of_the_campaign_is_noticed() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("run");
    drop(open(&path, TEXTS[0], None));
    std::fs::write(path.join("campaign.toml"), TEXTS[1]).unwrap();
    assert!(RunFolder::open(&path).unwrap_err().to_string().contains("campaign was changed"));
}

#[test]
fn two_different_results_of_one_trial_are_an_error() {
    let base = tempfile::tempdir().unwrap();
    let folder = open(&base.path().join("run"), TEXTS[0], None);
    execute(&folder, 1);
    let mut first = None;
    folder
        .records(|record| {
            first.get_or_insert(record);
        })
        .unwrap();
    let mut record = first.unwrap();
    record.verdict.shift += 1.0;
    let (mut log, _) = folder.log(|_| {}).unwrap();
    log.append(&record).unwrap();
    log.sync().unwrap();
    assert!(finish(&folder).unwrap_err().to_string().contains("not deterministic"));
}
