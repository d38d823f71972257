//! Thousands of disturbed runs of both state machines on one thread: every one must end like the undisturbed one.
//!
//! A seed decides what is computed and what goes wrong: links cut after any byte, bits flipped, messages repeated, late
//! and from links long closed, either side killed at any moment, processors that are slow, hang, die, fail or change
//! their weights. `CHIPFIT_SIMULATION_SEEDS` sets how many seeds run, `CHIPFIT_SIMULATION_SEED` runs a single one.

#[path = "simulation/processor.rs"]
mod processor;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/world.rs"]
mod world;

use random::Random;
use run::{Run, script};
use world::{Statistics, World};

/// Tells how to repeat a seed, should it panic.
struct Seed(u64);

impl Seed {
    fn replay(&self) -> String {
        format!("CHIPFIT_SIMULATION_SEED={} cargo test -p chipfit-wire --test simulation", self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay: {}", self.replay());
        }
    }
}

/// One seed, disturbed; panics when it does not end like the undisturbed run.
fn simulate(number: u64) -> Statistics {
    let seed = Seed(number);
    let expected = Run::undisturbed(&script(&mut Random::new(number)));
    let mut calm = World::new(number, false);
    let results = calm.finish().unwrap_or_else(|broken| panic!("seed {number}, calm: {broken}"));
    assert_eq!(results, expected, "seed {number}: the calm run has other results");

    let mut world = World::new(number, true);
    let results = world.finish().unwrap_or_else(|broken| panic!("seed {number}: {broken}\n{}", seed.replay()));
    assert_eq!(results, expected, "seed {number}: other results than undisturbed\n{}", seed.replay());

    // A trouble costs at most a greeting, the model, and the deeds since the checkpoint, each way.
    let deeds = 4;
    let bound = |calm: u64, each: u64| calm + world.statistics.troubles * each * deeds;
    let (sent, answered) = (world.statistics.trainer_bytes, world.statistics.device_bytes);
    assert!(sent <= bound(calm.statistics.trainer_bytes, 4_000), "seed {number}: the trainer sent {sent} bytes");
    assert!(answered <= bound(calm.statistics.device_bytes, 4_000), "seed {number}: the device sent {answered} bytes");
    world.statistics
}

#[test]
fn disturbed_runs_end_like_undisturbed_ones() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("CHIPFIT_SIMULATION_SEED") {
        eprintln!("{:#?}", simulate(seed));
        return;
    }
    let seeds = number("CHIPFIT_SIMULATION_SEEDS").unwrap_or(2_000);
    let mut sum = Statistics::default();
    for seed in 0..seeds {
        let one = simulate(seed);
        sum.troubles += one.troubles;
        sum.connections += one.connections;
        sum.resent += one.resent;
        sum.lost_processors += one.lost_processors;
        sum.duplicates_dropped += one.duplicates_dropped;
        sum.retried += one.retried;
        sum.virtual_ms += one.virtual_ms;
        sum.trainer_bytes += one.trainer_bytes;
        sum.device_bytes += one.device_bytes;
    }
    eprintln!("{seeds} seeds: {sum:?}");
    // A simulation in which nothing goes wrong proves nothing.
    if seeds >= 100 {
        for (name, count) in [
            ("troubles", sum.troubles),
            ("second connections", sum.connections.saturating_sub(seeds)),
            ("pictures sent again", sum.resent),
            ("processors lost", sum.lost_processors),
            ("messages dropped", sum.duplicates_dropped),
            ("requests tried again", sum.retried),
        ] {
            assert!(count >= seeds / 20, "{name}: {count} in {seeds} seeds");
        }
    }
}
