//! Makes the trials that a run folder lacks.
//!
//! Trials are taken in pieces, a piece is sorted by picture (so that each clean run is made once a piece) and handed
//! out to threads group by group. The order of the log is therefore an accident; its content, sorted by trial number,
//! is not. Memory: a piece (32 bytes x 2^20 trials at most), two bits a trial, one clean run a thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use chipfit_npu::StepId;

use crate::error::CampaignError;
use crate::executor::{Computed, Executor, ExecutorError, Masked, MaskedBy};
use crate::folder::{RunFolder, Shard};
use crate::outcome::Judge;
use crate::plan::{Plan, Trial, Work};
use crate::record::Record;
use crate::subject::Subject;
use crate::tally::{Next, Tally};

/// Most trials of a piece.
const PIECE: usize = 1 << 20;
/// Consecutive trials of a cell that stay in one shard (where cells do not stop early).
const BLOCK: u64 = 256;
/// Most pictures that are computed together under a rate.
const BATCH: usize = 32;
/// Longest time that a thread keeps records to itself.
const HAND_OVER: Duration = Duration::from_millis(100);

/// How to run.
#[derive(Debug)]
pub struct RunOptions<'a> {
    /// Threads; at least 1.
    pub threads: usize,
    /// Set from elsewhere to end early; what is done is synced.
    pub stop: &'a AtomicBool,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Trials in the log that belong to the plan.
    pub done: u64,
    /// Most trials that the run (or the shard) can need; cells that stop early need fewer.
    pub planned: u64,
}

/// What a session did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Session {
    /// Trials that were in the log before.
    pub resumed: u64,
    /// Trials made now.
    pub made: u64,
    /// Records of the log that were damaged and dropped.
    pub damaged: u64,
    /// Wall clock seconds.
    pub seconds: f64,
    /// Whether the run (or the shard) has all its trials.
    pub is_complete: bool,
}

/// Which trials a session makes.
#[derive(Clone, Copy, Debug)]
struct Part {
    shard: Option<Shard>,
    is_sequential: bool,
}

impl Part {
    /// A shard makes whole cells where cells stop early (so it can decide alone), else blocks of 256 trials.
    fn has(&self, cell: usize, index: u64) -> bool {
        let Some(Shard { index: own, of }) = self.shard else { return true };
        let block = if self.is_sequential { 0 } else { index / BLOCK };
        (cell as u64).wrapping_add(block) % of == own - 1
    }

    /// Trials of a cell with `planned` trials that belong to the part.
    fn count(&self, cell: usize, planned: u64) -> u64 {
        let Some(Shard { of, .. }) = self.shard else { return planned };
        if self.is_sequential {
            return if self.has(cell, 0) { planned } else { 0 };
        }
        let (blocks, rest) = (planned / BLOCK, planned % BLOCK);
        // The first block of the cell that is ours; then every `of`-th.
        let own = (0..of.min(blocks + 1)).find(|&block| self.has(cell, block * BLOCK));
        own.map_or(0, |first| {
            let whole = if first < blocks { (blocks - 1 - first) / of + 1 } else { 0 };
            whole * BLOCK + if self.has(cell, blocks * BLOCK) { rest } else { 0 }
        })
    }
}

/// Makes the missing trials of `folder` (which must be locked: [`RunFolder::create`] or [`RunFolder::merge`]).
///
/// # Errors
/// The executor's, [`CampaignError::LogWrite`], and [`CampaignError::Damaged`] for a log with foreign trials.
pub fn run<E: Executor>(
    folder: &RunFolder,
    executor: &E,
    judge: &Judge,
    options: &RunOptions<'_>,
    mut progress: impl FnMut(Progress),
) -> Result<Session, CampaignError> {
    let started = Instant::now();
    let subject = &folder.subject;
    let plan = Plan::new(&folder.campaign, subject)?;
    let mut tally = Tally::new(&plan, &folder.campaign.mode);
    let mut foreign = None;
    let (mut log, found) = folder.log(|record| match plan.trial(record.number) {
        Ok(trial) => {
            tally.note(trial.cell, trial.index, trial.picture, subject, &record);
        }
        Err(_) => foreign = Some(record.number),
    })?;
    if let Some(number) = foreign {
        let what = format!("it holds trial {number}, which this campaign has not");
        return Err(CampaignError::Damaged { path: folder.path().to_owned(), what });
    }
    let part = Part { shard: folder.manifest.shard, is_sequential: folder.campaign.is_sequential() };
    let planned = plan.cells().iter().enumerate().map(|(c, cell)| part.count(c, cell.planned)).sum();
    let resumed = tally.done();
    let crew = Crew { executor, judge, plan: &plan, subject, threads: options.threads.max(1), stop: options.stop };
    progress(Progress { done: resumed, planned });
    while !options.stop.load(Ordering::Relaxed) {
        let piece = next_piece(&plan, &tally, &part);
        if piece.is_empty() {
            break;
        }
        let made = crew.make(piece, |arrived| {
            if let Some((trial, record)) = arrived {
                log.append(&record)?;
                tally.note(trial.cell, trial.index, trial.picture, subject, &record);
                progress(Progress { done: tally.done(), planned });
            }
            log.sync_if_due()
        });
        if made.is_err() {
            // What was computed before the failure is kept; the first error is the one to tell.
            let _ = log.sync();
        }
        made?;
    }
    log.sync()?;
    let session = Session {
        resumed,
        made: tally.done() - resumed,
        damaged: found.damaged,
        seconds: started.elapsed().as_secs_f64(),
        is_complete: next_piece(&plan, &tally, &part).is_empty(),
    };
    folder.note_session(&serde_json::json!({
        "seconds": session.seconds,
        "trials": session.made,
        "resumed": session.resumed,
        "threads": options.threads,
        "complete": session.is_complete,
    }))?;
    Ok(session)
}

/// The next trials that are wanted and missing, in the order of cells.
fn next_piece(plan: &Plan, tally: &Tally, part: &Part) -> Vec<u64> {
    let mut piece = Vec::new();
    for cell in 0..plan.cells().len() {
        if part.is_sequential && !part.has(cell, 0) {
            continue;
        }
        let Next::Until(until) = tally.next(plan, cell) else { continue };
        let mut index = 0;
        while index < until {
            if !part.has(cell, index) {
                index = (index / BLOCK + 1) * BLOCK;
                continue;
            }
            if !tally.is_done(cell, index) {
                piece.push(plan.number(cell, index));
                if piece.len() == PIECE {
                    return piece;
                }
            }
            index += 1;
        }
    }
    piece
}

/// Threads and what they need.
struct Crew<'a, E> {
    executor: &'a E,
    judge: &'a Judge,
    plan: &'a Plan,
    subject: &'a Subject,
    threads: usize,
    stop: &'a AtomicBool,
}

type Arrived = Result<(Trial, Record), CampaignError>;

impl<E: Executor> Crew<'_, E> {
    /// Makes the trials of a piece. `arrive` is called on this thread for each record, and at least every 100 ms.
    fn make(
        &self,
        numbers: Vec<u64>,
        mut arrive: impl FnMut(Option<(Trial, Record)>) -> Result<(), CampaignError>,
    ) -> Result<(), CampaignError> {
        let mut trials = numbers.into_iter().map(|n| self.plan.trial(n)).collect::<Result<Vec<Trial>, _>>()?;
        trials.sort_unstable_by_key(|t| (group_of(t), t.picture, t.number));
        let groups = groups(&trials);
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let (sender, receiver) = sync_channel::<Vec<Arrived>>(self.threads * 4);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                let sender = sender.clone();
                let (next, groups, failed) = (&next, &groups, &failed);
                scope.spawn(move || {
                    let mut basket = Basket { sender, waiting: Vec::new(), since: Instant::now() };
                    while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let is_ended = || failed.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed);
                        if is_ended() {
                            break;
                        }
                        if let Err(error) = self.group(group, &is_ended, &mut basket) {
                            failed.store(true, Ordering::Relaxed);
                            basket.put(Err(CampaignError::Executor(error)));
                        }
                    }
                    basket.send();
                });
            }
            drop(sender);
            let mut result = Ok(());
            loop {
                let arrived = match receiver.recv_timeout(HAND_OVER) {
                    Ok(records) => records,
                    Err(RecvTimeoutError::Timeout) => Vec::new(),
                    Err(RecvTimeoutError::Disconnected) => return result,
                };
                let take = || -> Result<(), CampaignError> {
                    for record in arrived {
                        arrive(Some(record?))?;
                    }
                    arrive(None)
                };
                // After a failure the channel is still drained, so that no thread waits forever.
                if result.is_ok()
                    && let Err(error) = take()
                {
                    failed.store(true, Ordering::Relaxed);
                    result = Err(error);
                }
            }
        })
    }

    /// Makes trials of one picture, or of one point of a curve.
    fn group(&self, trials: &[Trial], is_ended: &impl Fn() -> bool, basket: &mut Basket) -> Result<(), ExecutorError> {
        let Some(first) = trials.first() else { return Ok(()) };
        match first.work {
            Work::Fault(_) => self.faults(trials, is_ended, basket),
            Work::Pass { point, draw } => self.passes(point, draw, trials, basket),
        }
    }

    fn faults(&self, trials: &[Trial], is_ended: &impl Fn() -> bool, basket: &mut Basket) -> Result<(), ExecutorError> {
        let Some(picture) = trials.first().and_then(|t| self.subject.pictures.get(t.picture)) else { return Ok(()) };
        let golden = self.executor.golden(picture.index)?;
        // Only when a processor answers with bytes are the clean ones needed.
        let mut clean: Option<Vec<u8>> = None;
        for trial in trials {
            if is_ended() {
                break;
            }
            let Work::Fault(fault) = trial.work else { continue };
            let verdict = match self.executor.strike(&golden, StepId(fault.layer), fault.strike)? {
                Computed::Masked(masked) => self.judge.masked(picture, Some(masked)),
                Computed::Output(output) => {
                    if clean.is_none() {
                        clean = self.executor.clean(&[picture.index])?.pop();
                    }
                    let unknown = Masked { step: None, by: MaskedBy::Unknown };
                    self.judge.judge(picture, clean.as_deref().unwrap_or_default(), &output, Some(unknown))
                }
            };
            basket.put(Ok((*trial, Record { number: trial.number, verdict, strikes: Some(1) })));
        }
        Ok(())
    }

    fn passes(&self, point: usize, draw: u64, trials: &[Trial], basket: &mut Basket) -> Result<(), ExecutorError> {
        let pictures: Vec<_> = trials.iter().filter_map(|t| self.subject.pictures.get(t.picture)).collect();
        let indices: Vec<u64> = pictures.iter().map(|p| p.index).collect();
        let clean = self.executor.clean(&indices)?;
        let faulty = self.executor.pass(point, draw, &indices)?;
        if faulty.len() != trials.len() || clean.len() != trials.len() {
            return Err(format!("the processor answered {} of {} pictures", faulty.len(), trials.len()).into());
        }
        for (((trial, picture), clean), faulty) in trials.iter().zip(pictures).zip(clean).zip(faulty) {
            let verdict = self.judge.judge(picture, &clean, &faulty.output, None);
            let strikes = faulty.strikes.map(|n| u32::try_from(n).unwrap_or(u32::MAX - 1));
            basket.put(Ok((*trial, Record { number: trial.number, verdict, strikes })));
        }
        Ok(())
    }
}

/// Records on their way to the log.
struct Basket {
    sender: SyncSender<Vec<Arrived>>,
    waiting: Vec<Arrived>,
    since: Instant,
}

impl Basket {
    fn put(&mut self, arrived: Arrived) {
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        self.waiting.push(arrived);
        if self.waiting.len() >= 4096 || self.since.elapsed() >= HAND_OVER {
            self.send();
        }
    }

    fn send(&mut self) {
        // The receiver lives as long as the scope; were it gone, nobody would want the records.
        let _ = self.sender.send(std::mem::take(&mut self.waiting));
    }
}

/// What trials of one group have in common, besides the picture in a single-fault campaign.
fn group_of(trial: &Trial) -> (usize, u64) {
    match trial.work {
        Work::Fault(_) => (0, 0),
        Work::Pass { point, draw } => (point, draw),
    }
}

/// Runs of trials of one picture, or of one draw and at most [`BATCH`] pictures.
fn groups(trials: &[Trial]) -> Vec<&[Trial]> {
    let same = |a: &Trial, b: &Trial| {
        group_of(a) == group_of(b) && (matches!(a.work, Work::Pass { .. }) || a.picture == b.picture)
    };
    trials
        .chunk_by(same)
        .flat_map(|group| {
            let most =
                if matches!(group.first().map(|t| t.work), Some(Work::Pass { .. })) { BATCH } else { group.len() };
            group.chunks(most.max(1))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
