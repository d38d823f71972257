//! `chipfit retrain` as a user meets it: the real binary, killed, resumed, refused; its model and its page.

mod common;

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use common::{Done, assert_keys, learnable};

const FAULTS: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 3e-6\n";
const RETRAIN: &str = "retrain q.onnx --data data --scale 0.01 --faults f.toml --seed 5 --batch 20 --learning-rate 0.02 \
                       --test-draws 2 --checkpoint-every 3";

fn hashes(done: &Done) -> (String, String) {
    let json = done.json();
    (json["hashes"]["weights"].to_string(), json["hashes"]["optimizer"].to_string())
}

#[test]
fn retraining_brings_accuracy_back_and_writes_a_model() {
    let folder = learnable(FAULTS);
    let done = folder.run(&format!("{RETRAIN} --epochs 30 --reference --validation 0.1 -o run --json")).expect(0);
    let json = done.json();
    assert_keys(&json, &["accuracy", "command", "epochs", "hashes", "processor", "recovery", "run", "steps", "time"]);
    let top1 = |name: &str| json["accuracy"][name]["top1"]["value"].as_f64().unwrap();
    assert!(top1("before_faulty") < 0.6, "the seeded weights know nothing: {}", top1("before_faulty"));
    let all = json["accuracy"].to_string();
    assert!(top1("after_faulty") > 0.8, "{all}");
    assert!(top1("after_fault_free") > 0.8 && top1("reference_fault_free") > 0.8);
    assert_eq!(json["accuracy"]["after_faulty"]["draws"], 2);
    assert_eq!(json["epochs"].as_array().map(Vec::len), Some(30));

    // The written model is the one that was measured, for anybody who reads it.
    let again = folder.run("evaluate run/model.retrained.onnx --data data --json").expect(0).json();
    assert_eq!(again["top1"]["value"], json["accuracy"]["after_fault_free"]["top1"]["value"]);

    let page = folder.run("report run -o run.html").expect(0);
    assert!(page.out().contains("run.html"));
    let html = fs::read_to_string(folder.path("run.html")).unwrap();
    assert!(html.contains("Retraining") && html.contains("Recovery (A - B) / (C - B)"));
}

#[test]
fn threads_and_interruptions_never_show() {
    let folder = learnable(FAULTS);
    let wanted = hashes(&folder.run(&format!("{RETRAIN} --epochs 4 --threads 1 -o one --json")).expect(0));
    assert_eq!(hashes(&folder.run(&format!("{RETRAIN} --epochs 4 --threads 2 -o two --json")).expect(0)), wanted);
    let other =
        folder.run(&format!("{RETRAIN} --epochs 4 --threads 2 -o three --json").replace("--seed 5", "--seed 6"));
    assert_ne!(hashes(&other.expect(0)), wanted);

    // Moments spread over one uninterrupted run.
    let clock = Instant::now();
    folder.run(&format!("{RETRAIN} --epochs 60 --threads 2 -o long")).expect(0);
    let whole = clock.elapsed();
    let wanted = hashes(&folder.run(&format!("{RETRAIN} --epochs 60 --threads 2 -o long --json")).expect(0));
    let mut killed = 0;
    for part in [0.5, 0.3, 0.7, 0.4, 0.6, 0.2] {
        let mut child = folder
            .command(&format!("{RETRAIN} --epochs 60 --threads 2 -o cut"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(part));
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed > 0, "every run had ended before it was killed");
    let resumed = folder.run(&format!("{RETRAIN} --epochs 60 --threads 1 -o cut --json")).expect(0);
    assert_eq!(hashes(&resumed), wanted);
    let lines = |run: &str| fs::read_to_string(folder.path(&format!("{run}/history.jsonl"))).unwrap().lines().count();
    assert_eq!(lines("cut"), lines("long"));
}

#[test]
fn another_run_and_nonsense_are_refused() {
    let folder = learnable(FAULTS);
    folder.run(&format!("{RETRAIN} --steps 2 -o run")).expect(0);
    let other = folder.run(&format!("{RETRAIN} --steps 3 -o run")).expect(2);
    assert!(other.err().contains("holds another run") && other.err().contains("config"), "{}", other.err());
    fs::create_dir(folder.path("full")).unwrap();
    fs::write(folder.path("full/file"), "mine").unwrap();
    let full = folder.run(&format!("{RETRAIN} --steps 2 -o full")).expect(2);
    assert!(full.err().contains("holds no retraining run"), "{}", full.err());
    for (flags, words) in [
        ("--ema 1.5", "ema"),
        ("--patience 2", "validation"),
        ("--pictures 0", "--pictures"),
        ("--label-smoothing 2", "smoothing"),
        ("--processor onnxruntime", "ONNX Runtime makes no errors"),
    ] {
        let refused = folder.run(&format!("{RETRAIN} --steps 2 {flags} -o bad"));
        assert!(matches!(refused.status(), Some(1 | 2)), "{flags}: {:?} {}", refused.status(), refused.err());
        assert!(refused.err().contains(words), "{flags}: {}", refused.err());
    }
    let float = folder.run("retrain m.onnx --data data --scale 0.01 --steps 1 -o float").expect(1);
    assert!(!float.err().is_empty() && !folder.path("float/summary.json").exists());
    let early = folder.run("report full -o x.html");
    assert!(matches!(early.status(), Some(1 | 2)) && !folder.path("x.html").exists());
}
