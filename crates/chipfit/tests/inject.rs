//! `chipfit inject` and `chipfit report` as a user meets them: the real binary, killed, resumed, sharded, refused.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use chipfit_model::{DataType, build};
use common::{Folder, assert_keys, floats, model, values};

/// A quantised classifier of 3x8x8 pictures into three classes, and 12 pictures.
fn prepared() -> Folder {
    let folder = Folder::new();
    let constants = vec![
        floats("w", &[6, 3, 3, 3], &values(162, 1)),
        floats("b", &[6], &values(6, 2)),
        floats("w2", &[4, 6, 3, 3], &values(216, 5)),
        floats("fc", &[4, 3], &values(12, 3)),
    ];
    let pads = || vec![build::attr_is("pads", &[1; 4])];
    let nodes = vec![
        build::node("Conv", "conv1", &["x", "w", "b"], &["c"], pads()),
        build::node("Relu", "relu1", &["c"], &["r"], Vec::new()),
        build::node("Conv", "conv2", &["r", "w2"], &["c2"], pads()),
        build::node("Relu", "relu2", &["c2"], &["r2"], Vec::new()),
        build::node("GlobalAveragePool", "pool", &["r2"], &["p"], Vec::new()),
        build::node("Flatten", "flatten", &["p"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("MatMul", "dense", &["f", "fc"], &["y"], Vec::new()),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 3]));
    for (index, class) in ["a", "b", "c"].iter().enumerate() {
        fs::create_dir_all(folder.path(&format!("data/test/{class}"))).unwrap();
        for n in 0..4u8 {
            let picture = image::RgbImage::from_fn(8, 8, |x, y| {
                image::Rgb([(x * 30) as u8, (y * 30) as u8, n * 40 + index as u8 * 50])
            });
            picture.save(folder.path(&format!("data/test/{class}/{n}.png"))).unwrap();
        }
    }
    folder.run("quantize m.onnx --data data --calibration-data data:test -o q.onnx --scale 0.01").expect(0);
    folder
}

const SINGLE: &str = "mode = \"single\"\nseed = 11\nmodel = \"q.onnx\"\ndata = \"data\"\nsites = [\"mul\", \"acc\", \"out\", \"weight\"]\ncells = [\"layer\", \"site\"]\n";

fn put(folder: &Folder, name: &str, text: &str) {
    fs::write(folder.path(name), text).unwrap();
}

/// `summary.json` and `trials.parquet` of a run.
fn results(folder: &Folder, run: &str) -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| fs::read(folder.path(&format!("{run}/{name}"))).unwrap();
    (read("summary.json"), read("trials.parquet"))
}

#[test]
fn a_single_fault_campaign_reports_rates_with_intervals() {
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials_per_cell = 400\n"));
    let json = folder.run("inject --campaign c.toml -o run --threads 2 --json").expect(0).json();
    assert_keys(&json, &["run", "session", "summary", "shard"]);
    let single = &json["summary"]["single"];
    let cells = single["cells"].as_array().unwrap();
    // Three layers with products at four sites, and `out` of every other step.
    assert!(cells.len() >= 12, "{}", cells.len());
    for cell in cells {
        let sdc = &cell["shares"]["sdc_top1"];
        assert!(sdc["low"].as_f64() <= sdc["value"].as_f64() && sdc["value"].as_f64() <= sdc["high"].as_f64());
        assert!(cell["trials"].as_u64() <= cell["population"].as_u64());
        let sum: u64 = ["masked", "benign", "beneficial", "sdc_top1"]
            .iter()
            .map(|o| cell["shares"][o]["count"].as_u64().unwrap())
            .sum();
        assert_eq!(Some(sum), cell["trials"].as_u64());
    }
    assert!(single["overall"][0]["shares"]["masked"]["value"].as_f64() > Some(0.1));
    assert!(!single["channels"].as_array().unwrap().is_empty());

    // The same command again finds everything done and gives the same bytes.
    let before = results(&folder, "run");
    let again = folder.run("inject --campaign c.toml -o run --threads 1 --json").expect(0).json();
    assert_eq!(again["session"]["made"], 0);
    assert_eq!(again["summary"], json["summary"]);
    assert_eq!(results(&folder, "run"), before);

    // As text, and as a page.
    let text = folder.run("inject --campaign c.toml -o run").expect(0);
    assert!(text.out().contains("most vulnerable cells"), "{}", text.out());
    folder.run("report run -o page.html").expect(0);
    let page = fs::read_to_string(folder.path("page.html")).unwrap();
    for wanted in ["inject --campaign c.toml", "exactly one fault", "<svg", "conv2", "SDC top-1"] {
        assert!(page.contains(wanted), "{wanted}");
    }
    folder.run("report run -o page.html").expect(2);
    folder.run("report run -o page.html --force").expect(0);
}

#[test]
fn a_rate_campaign_starts_at_the_clean_accuracy() {
    let folder = prepared();
    put(
        &folder,
        "c.toml",
        "mode = \"rate\"\nseed = 3\nrepeats = 20\n[[curve]]\nber = [0.0, 1e-5, 1e-2]\n[[curve]]\nname = \"two\"\nsites = [\"out\"]\ncount = [2]\n",
    );
    let json = folder.run("inject q.onnx --data data --campaign c.toml -o run --json").expect(0).json();
    let curves = json["summary"]["curves"].as_array().unwrap();
    let point = |curve: usize, point: usize| &curves[curve]["points"][point];
    assert_eq!(point(0, 0)["top1"]["value"], json["summary"]["pictures"]["clean_top1"]["value"]);
    assert_eq!(point(0, 0)["shares"]["masked"]["value"], 1.0);
    assert_eq!(point(0, 0)["expected_flips"], 0.0);
    assert!(point(0, 2)["shares"]["masked"]["value"].as_f64() < Some(0.5));
    assert_eq!(point(1, 0)["expected_flips"].as_f64(), Some(2.0));
    let struck = point(1, 0)["mean_strikes"].as_f64().unwrap();
    assert!((1.9..=2.0).contains(&struck), "{struck}");
    folder.run("report run -o page.html").expect(0);
    let page = fs::read_to_string(folder.path("page.html")).unwrap();
    assert!(page.contains("probability per exposed bit") && page.contains("no faults"));
}

/// The best test of the promise: the process dies without warning, again and again.
#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials = 150_000\n"));
    folder.run("inject --campaign c.toml -o whole --threads 2").expect(0);
    let wanted = results(&folder, "whole");
    let seconds = |run: &str| {
        let text = fs::read_to_string(folder.path(&format!("{run}/timings.jsonl"))).unwrap();
        serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap()["seconds"].as_f64().unwrap()
    };
    // Moments spread over one uninterrupted run, at least a few while trials are made.
    let whole = seconds("whole");
    let mut killed_midway = 0;
    for part in [0.1, 0.35, 0.2, 0.5, 0.3, 0.15] {
        let mut child = folder
            .command("inject --campaign c.toml -o cut --threads 2")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(0.25 + whole * part));
        let was_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        let log = fs::metadata(folder.path("cut/trials.log")).map_or(0, |m| m.len());
        killed_midway += usize::from(was_running && log > 64 && log < 64 + 32 * 150_000);
    }
    assert!(killed_midway >= 1, "no kill fell into the middle of the run");
    folder.run("inject --campaign c.toml -o cut --threads 2").expect(0);
    assert_eq!(results(&folder, "cut"), wanted);
}

#[test]
fn shards_merge_to_the_same_bytes() {
    let folder = prepared();
    for (name, size) in [("fixed", "trials = 3_000\n"), ("sequential", "margin = 0.08\nsequential = true\n")] {
        put(&folder, "c.toml", &format!("{SINGLE}{size}"));
        folder.run(&format!("inject --campaign c.toml -o {name}")).expect(0);
        for shard in 1..=3 {
            let done = folder.run(&format!("inject --campaign c.toml -o {name}{shard} --shard {shard}/3")).expect(0);
            assert!(done.out().contains("--merge"), "{}", done.out());
        }
        folder.run(&format!("inject --merge {name}1 {name}3 -o {name}part")).expect(1);
        folder.run(&format!("inject --merge {name}1 {name}2 {name}3 -o {name}all")).expect(0);
        assert_eq!(results(&folder, name), results(&folder, &format!("{name}all")));
        // What is missing can be made where it was merged.
        folder.run(&format!("inject --campaign c.toml -o {name}part")).expect(0);
        assert_eq!(results(&folder, name), results(&folder, &format!("{name}part")));
    }
}

#[test]
fn a_full_disk_is_told_and_survived() {
    if cfg!(not(target_os = "linux")) {
        eprintln!("SKIPPED: needs a shell that limits file sizes");
        return;
    }
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials = 20_000\n"));
    folder.run("inject --campaign c.toml -o whole").expect(0);
    // 600 blocks of 512 bytes; the log wants 640,064 bytes.
    let done = folder.run_after("trap '' XFSZ; ulimit -f 600", "inject --campaign c.toml -o full").expect(1);
    assert!(done.err().contains("trials.log") && done.err().contains("make room"), "{}", done.err());
    folder.run("inject --campaign c.toml -o full").expect(0);
    assert_eq!(results(&folder, "full"), results(&folder, "whole"));
}

#[test]
fn another_model_data_or_campaign_is_refused_on_resume() {
    let folder = prepared();
    let text = format!("{SINGLE}trials = 200\n");
    put(&folder, "c.toml", &text);
    folder.run("inject --campaign c.toml -o run").expect(0);
    let refused = |arguments: &str, wanted: &str| {
        let done = folder.run(arguments).expect(1);
        assert!(done.err().contains(wanted), "{wanted}: {}", done.err());
    };
    put(&folder, "d.toml", &text.replace("seed = 11", "seed = 12"));
    refused("inject --campaign d.toml -o run", "campaign.seed: 11 there, 12 given");
    refused("inject --campaign c.toml -o run --shard 1/2", "shard: none there, 1/2 given");
    refused("inject --campaign c.toml -o run --requantize fixed", "processor");
    refused("inject --campaign c.toml -o run --scale 0.02", "preprocessing");
    folder
        .run("quantize m.onnx --data data --calibration-data data:test -o q2.onnx --scale 0.01 --power-of-two")
        .expect(0);
    refused("inject q2.onnx --campaign c.toml -o run", "model");
    fs::remove_file(folder.path("data/test/a/0.png")).unwrap();
    refused("inject --campaign c.toml -o run", "data");
}

#[test]
fn mistakes_are_answered_clearly() {
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials = 200\n"));
    let refused = |status: i32, arguments: &str, wanted: &str| {
        let done = folder.run(arguments).expect(status);
        assert!(done.err().contains(wanted), "{arguments}: {}", done.err());
    };
    refused(1, "inject m.onnx --campaign c.toml -o run", "quant");
    refused(2, "inject --campaign c.toml", "--output");
    refused(2, "inject --campaign c.toml -o run --shard 3/2", "shard");
    refused(2, "inject --campaign c.toml -o run --processor onnxruntime", "no faults");
    refused(1, "inject --campaign nosuch.toml -o run", "nosuch.toml");
    refused(1, "report data -o page.html", "manifest.json");
    put(&folder, "bad.toml", &format!("{SINGLE}trials = 200\nlayerz = \"*\"\n"));
    refused(1, "inject --campaign bad.toml -o run", "layerz");
    put(&folder, "bad.toml", &format!("{SINGLE}trials = 200\nlayers = \"con1\"\n"));
    refused(1, "inject --campaign bad.toml -o run", "conv1");
    put(&folder, "bad.toml", &format!("{SINGLE}trials = 200\nimages = 99\n"));
    refused(1, "inject --campaign bad.toml -o run", "12");
    put(&folder, "bad.toml", &format!("{SINGLE}trials = 200\ntmr = \"plan.toml\"\n"));
    refused(1, "inject --campaign bad.toml -o run", "plan.toml");
    assert!(!folder.path("run/manifest.json").exists());
}

#[test]
fn a_trial_is_replayed_with_its_story() {
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials = 300\n"));
    folder.run("inject --campaign c.toml -o run").expect(0);
    let mut outcomes = std::collections::BTreeMap::new();
    for trial in 0..40 {
        let json = folder.run(&format!("inject --campaign c.toml --replay 11:{trial} --json")).expect(0).json();
        assert_keys(&json, &["fault", "picture", "outcome", "steps", "confidence_shift"]);
        let outcome = json["outcome"].as_str().unwrap().to_owned();
        assert_eq!(outcome == "masked", json["masked"].is_object(), "{json}");
        if outcome != "masked" {
            assert!(!json["steps"].as_array().unwrap().is_empty(), "{json}");
        }
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    assert!(outcomes.len() >= 2, "{outcomes:?}");
    let text = folder.run("inject --campaign c.toml --replay 11:3").expect(0);
    assert!(text.out().contains("fault: flip at"), "{}", text.out());
    folder.run("inject --campaign c.toml --replay 11:99999999").expect(1);
    folder.run("inject --campaign c.toml --replay 11").expect(2);
}

#[test]
fn full_protection_masks_every_single_fault_of_the_datapath() {
    let folder = prepared();
    put(&folder, "plan.toml", "[[protect]]\nlayers = \"*\"\n");
    put(&folder, "c.toml", &format!("{}trials = 2_000\ntmr = \"plan.toml\"\n", SINGLE.replace(", \"weight\"", "")));
    let json = folder.run("inject --campaign c.toml -o run --json").expect(0).json();
    assert_eq!(json["summary"]["single"]["overall"][0]["shares"]["masked"]["value"], 1.0);
}

#[test]
fn the_table_of_trials_opens_in_python() {
    let Some(python) = std::env::var_os("CHIPFIT_PYTHON") else {
        eprintln!("SKIPPED: CHIPFIT_PYTHON is not set");
        return;
    };
    let has = |module: &str| {
        let status = Command::new(&python).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    };
    let read = if has("pyarrow") {
        "import sys, pyarrow.parquet as p; t = p.read_table(sys.argv[1]).to_pydict()"
    } else if has("duckdb") {
        "import sys, duckdb; r = duckdb.sql(f\"select * from '{sys.argv[1]}'\"); t = {c: [x[i] for x in r.fetchall()] for i, c in enumerate(r.columns)}"
    } else {
        eprintln!("SKIPPED: neither pyarrow nor duckdb is installed in CHIPFIT_PYTHON");
        return;
    };
    let folder = prepared();
    put(&folder, "c.toml", &format!("{SINGLE}trials = 500\n"));
    folder.run("inject --campaign c.toml -o run").expect(0);
    let script = format!(
        "{read}\nimport json, collections\nprint(json.dumps([len(t['trial']), t['trial'] == sorted(t['trial']), \
         dict(collections.Counter(t['outcome'])), sum(b is None for b in t['masked_by']), sorted(set(t['site']))]))"
    );
    let output = Command::new(&python).args(["-c", &script]).arg(folder.path("run/trials.parquet")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&results(&folder, "run").0).unwrap();
    let cells = summary["single"]["cells"].as_array().unwrap();
    let masked: u64 = cells.iter().map(|c| c["shares"]["masked"]["count"].as_u64().unwrap()).sum();
    assert_eq!(told[0], summary["trials"]);
    assert_eq!(told[1], true);
    assert_eq!(told[2]["masked"], masked);
    assert_eq!(told[3], 500 - masked);
    assert_eq!(told[4], serde_json::json!(["acc", "mul", "out", "weight"]));
}

#[test]
fn files_are_recognised_and_checked() {
    let folder = prepared();
    put(&folder, "faults.toml", "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-6\nlayers = \"*\"\n");
    put(&folder, "plan.toml", "[[protect]]\nlayers = \"*\"\n");
    put(&folder, "c.toml", &format!("{SINGLE}trials = 200\ntmr = \"plan.toml\"\n"));
    let target = include_str!("../../chipfit-deconv/targets/edge-npu.toml");
    put(&folder, "chip.toml", target);
    let json = folder.run("check faults.toml plan.toml c.toml chip.toml q.preprocess.toml --json").expect(0).json();
    let kinds: Vec<&str> = json["files"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["faults", "plan", "campaign", "target", "preprocessing"]);
    put(&folder, "bad.toml", "[[fault]]\nsites = [\"mull\"]\n");
    put(&folder, "strange.toml", "x = 1\n");
    put(&folder, "plan.toml", "[[protect]]\nlayerz = \"*\"\n");
    let done = folder.run("check bad.toml strange.toml c.toml nosuch.toml q.onnx --json").expect(1);
    let json = done.json();
    assert_eq!(json["wrong"], 5);
    let said: Vec<&str> = json["files"].as_array().unwrap().iter().map(|f| f["what"].as_str().unwrap()).collect();
    for (said, wanted) in said.iter().zip(["mull", "no key tells", "layerz", "nosuch.toml", "q.onnx"]) {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}
