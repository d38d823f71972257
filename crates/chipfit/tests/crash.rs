//! Trainer and device are killed without warning, again and again: the run ends with the bits of an undisturbed one.
//!
//! Twenty kills at named points and at random ones, drawn from a seed. What the device computes depends on seed, step and
//! picture, so the undisturbed run is made in one process.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Folder, learnable};

const FAULTS: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-5\n";
const RETRAIN: &str = "retrain q.onnx --data data --scale 0.01 --seed 3 --batch 20 --epochs 200 --learning-rate 0.005 \
                       --test-draws 1 --checkpoint-every 5";
const KILLS: usize = 20;
/// No single wait of the test may be longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a kill falls.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// The trainer, right after a checkpoint was written.
    TrainerAtCheckpoint,
    /// The trainer, some milliseconds after it started or went on.
    Trainer(u64),
    /// The device, right after a step was done.
    DeviceAfterStep,
    /// The device, after some milliseconds.
    Device(u64),
    /// Both.
    Both(u64),
}

fn points() -> Vec<Point> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    (0..KILLS)
        .map(|kill| match kill % 5 {
            0 => Point::TrainerAtCheckpoint,
            1 => Point::Device(random(150)),
            2 => Point::DeviceAfterStep,
            3 => Point::Trainer(random(400)),
            _ => Point::Both(random(200)),
        })
        .collect()
}

struct Site {
    folder: Folder,
    port: u16,
    device: Option<Child>,
    trainer: Option<Child>,
}

impl Site {
    fn start_device(&mut self) {
        let arguments = format!("device --listen 127.0.0.1:{} --config device.toml --insecure-loopback", self.port);
        let mut child = self.folder.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listens"), "the device says '{line}'");
        self.device = Some(child);
    }

    fn start_trainer(&mut self) {
        let arguments = format!("{RETRAIN} --device 127.0.0.1:{} --insecure-loopback -o run", self.port);
        let log = fs::File::create(self.folder.path("trainer.log")).unwrap();
        self.trainer = Some(self.folder.command(&arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Whether the trainer has come to its end; fails when that was no good one.
    fn is_finished(&mut self) -> bool {
        let Some(trainer) = &mut self.trainer else { return false };
        match trainer.try_wait().unwrap() {
            None => false,
            Some(status) => {
                let log = fs::read_to_string(self.folder.path("trainer.log")).unwrap();
                assert!(status.success(), "the trainer ended with {status}: {log}");
                true
            }
        }
    }

    /// Waits until `is_so`; false when the trainer ended before.
    fn wait(&mut self, what: &str, mut is_so: impl FnMut(&Folder) -> bool) -> bool {
        let start = Instant::now();
        while !is_so(&self.folder) {
            if self.is_finished() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn kill(child: &mut Option<Child>) {
        if let Some(mut child) = child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in [&mut self.trainer, &mut self.device] {
            if let Some(mut child) = child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn steps(folder: &Folder) -> usize {
    fs::read_to_string(folder.path("run/history.jsonl")).map_or(0, |text| text.lines().count())
}

fn checkpoint_time(folder: &Folder) -> Option<SystemTime> {
    fs::metadata(folder.path("run/retrained.checkpoint")).and_then(|file| file.modified()).ok()
}

#[test]
fn twenty_kills_change_no_bit() {
    let folder = learnable(FAULTS);
    fs::write(folder.path("device.toml"), "name = \"camera\"\nfaults = \"f.toml\"\nseed = 3\nthreads = 1\n").unwrap();
    let undisturbed = folder.run(&format!("{RETRAIN} --faults f.toml -o whole --json")).expect(0).json();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut site = Site { folder, port, device: None, trainer: None };
    site.start_device();
    site.start_trainer();
    let (mut kills, mut midway) = (0, 0);
    for point in points() {
        let before = steps(&site.folder);
        let is_running = match point {
            Point::TrainerAtCheckpoint => {
                let last = checkpoint_time(&site.folder);
                site.wait("checkpoint", |folder| checkpoint_time(folder) != last)
            }
            Point::DeviceAfterStep => site.wait("step", |folder| steps(folder) > before),
            Point::Trainer(milliseconds) | Point::Device(milliseconds) | Point::Both(milliseconds) => {
                std::thread::sleep(Duration::from_millis(milliseconds));
                !site.is_finished()
            }
        };
        if !is_running {
            break;
        }
        if matches!(point, Point::Device(_) | Point::DeviceAfterStep | Point::Both(_)) {
            Site::kill(&mut site.device);
            site.start_device();
        }
        if matches!(point, Point::Trainer(_) | Point::TrainerAtCheckpoint | Point::Both(_)) {
            Site::kill(&mut site.trainer);
            site.start_trainer();
        }
        kills += 1;
        midway += u32::from(steps(&site.folder) > 0);
    }
    assert!(kills == KILLS && midway >= 5, "the run ended after {kills} kills, {midway} of them midway");
    assert!(!site.wait("end", |_| false));
    let text = fs::read_to_string(site.folder.path("run/summary.json")).unwrap();
    let disturbed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(disturbed["hashes"], undisturbed["hashes"]);
    assert_eq!(disturbed["accuracy"], undisturbed["accuracy"]);
    assert_eq!(disturbed["epochs"], undisturbed["epochs"]);
}
