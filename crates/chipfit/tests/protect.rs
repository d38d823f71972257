//! `chipfit protect` as a user meets it: plan files that other commands take, the front, and bad input.

mod common;

use std::fs;

use chipfit_model::{DataType, build};
use common::{Folder, floats, model, values};

/// A classifier of 3x8x8 pictures into three classes, quantised, 24 pictures to plan on and 12 others.
fn prepared() -> Folder {
    let folder = Folder::new();
    let constants = vec![
        floats("w", &[6, 3, 3, 3], &values(162, 1)),
        floats("b", &[6], &values(6, 2)),
        floats("v", &[4, 6, 1, 1], &values(24, 4)),
        floats("fc", &[4, 3], &values(12, 3)),
    ];
    let nodes = vec![
        build::node("Conv", "conv", &["x", "w", "b"], &["c"], vec![build::attr_is("pads", &[1; 4])]),
        build::node("Relu", "relu", &["c"], &["r"], Vec::new()),
        build::node("Conv", "mix", &["r", "v"], &["m"], Vec::new()),
        build::node("GlobalAveragePool", "pool", &["m"], &["p"], Vec::new()),
        build::node("Flatten", "flatten", &["p"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("MatMul", "dense", &["f", "fc"], &["y"], Vec::new()),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 3]));
    for (split, count) in [("train", 8u8), ("test", 4)] {
        for (index, class) in ["a", "b", "c"].iter().enumerate() {
            fs::create_dir_all(folder.path(&format!("data/{split}/{class}"))).unwrap();
            for n in 0..count {
                let picture = image::RgbImage::from_fn(8, 8, |x, y| {
                    image::Rgb([(x * 30) as u8 ^ n, (y * 30) as u8, n * 20 + index as u8 * 50 + count])
                });
                picture.save(folder.path(&format!("data/{split}/{class}/{n}.png"))).unwrap();
            }
        }
    }
    folder.run("quantize m.onnx --data data:train -o q.onnx --scale 0.01").expect(0);
    put(&folder, "f.toml", "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-3\n");
    folder
}

fn put(folder: &Folder, name: &str, text: &str) {
    fs::write(folder.path(name), text).unwrap();
}

fn read(folder: &Folder, name: &str) -> String {
    fs::read_to_string(folder.path(name)).unwrap()
}

#[test]
fn one_plan_per_penalty_that_evaluate_takes_and_a_front() {
    let folder = prepared();
    let command = "protect q.onnx --data data --faults f.toml --penalty 0,25,62.5,200 -o plan.toml --seeds 3 --compare";
    let json = folder.run(&format!("{command} --json --threads 1")).expect(0).json();
    assert_eq!(json["planned_on"]["pictures"], 24);
    assert_eq!(json["measured_on"]["pictures"], 12);
    let (plans, points) = (json["plans"].as_array().unwrap(), json["front"]["points"].as_array().unwrap());
    for ((plan, point), percent) in plans.iter().zip(points).zip([0.0, 25.0, 62.5, 200.0]) {
        assert_eq!(plan["penalty_percent"], percent);
        assert_eq!(plan["file"], format!("plan.{percent}.toml"));
        let spent = plan["spent_percent"].as_f64().unwrap();
        assert!(spent <= percent + 1e-9 && spent >= percent - 20.0, "{spent} of {percent}");
        // Another command reads the file and counts the same penalty and, drawing the same faults, no other accuracy.
        let evaluate = format!("evaluate q.onnx --data data --faults f.toml --tmr plan.{percent}.toml --json");
        let own = folder.run(&evaluate).expect(0).json();
        let penalty = own["faults"]["tmr_penalty_percent"].as_f64().unwrap();
        assert!((penalty - spent).abs() < 1e-9, "{penalty} and {spent}");
        let names: Vec<&str> =
            point["strategies"].as_array().unwrap().iter().map(|s| s["strategy"].as_str().unwrap()).collect();
        assert_eq!(names, ["planned", "uniform", "first_layers", "layer_greedy"]);
        for s in &point["strategies"].as_array().unwrap()[..] {
            assert!(s["spent_percent"].as_f64().unwrap() <= percent + 1e-9);
            assert_eq!(s["by_seed"].as_array().unwrap().len(), 3);
        }
    }
    assert!(json["validation"]["parts"].as_array().unwrap().len() >= 3);
    let front: serde_json::Value = serde_json::from_str(&read(&folder, "plan.front.json")).unwrap();
    assert_eq!(front, json["front"]);
    // Four penalties, four ways each, and the heading.
    assert_eq!(read(&folder, "plan.front.csv").lines().count(), 17);
    // The same command gives the same files, with any number of threads.
    let before: Vec<String> = ["plan.25.toml", "plan.62.5.toml", "plan.front.json"].map(|f| read(&folder, f)).to_vec();
    let text = folder.run(&format!("{command} --force --threads 3")).expect(0).out();
    assert!(text.contains("layer-greedy") && text.contains("plan.front.csv"), "{text}");
    assert_eq!(before, ["plan.25.toml", "plan.62.5.toml", "plan.front.json"].map(|f| read(&folder, f)));
}

#[test]
fn one_penalty_is_one_file() {
    let folder = prepared();
    let before = folder.files();
    folder.run("protect q.onnx --data data --faults f.toml --penalty 50 -o p.toml --test-pictures 0").expect(0);
    let new: Vec<String> = folder.files().into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(new, ["p.toml"]);
    // Steps without products stay out unless asked for; a scope keeps other layers out.
    assert!(!read(&folder, "p.toml").contains("pool"));
    let scoped = "protect q.onnx --data data --faults f.toml --penalty 200 -o s.toml --layers mix --free-steps";
    folder.run(&format!("{scoped} --vote operation --test-pictures 0")).expect(0);
    let text = read(&folder, "s.toml");
    assert!(text.contains("mix") && text.contains("operation") && !text.contains("\"conv\""), "{text}");
    let gradient = "protect q.onnx --data data --faults f.toml --penalty 50 -o g.toml --influence gradient";
    let json = folder.run(&format!("{gradient} --test-pictures 0 --json")).expect(0).json();
    // Gradients have no standard error, and reach every layer.
    let units = json["plans"][0]["units"].as_array().unwrap();
    assert!(units.iter().all(|unit| unit["influence_standard_error"] == 0.0));
    for layer in ["conv", "mix", "dense"] {
        assert!(
            units.iter().any(|unit| unit["layer"] == layer && unit["influence"].as_f64().unwrap() > 0.0),
            "{layer}"
        );
    }
    assert!(read(&folder, "g.toml").contains("[[protect]]"));
    let free = "protect q.onnx --data data --faults f.toml --penalty 0 -o free.toml --free-steps --test-pictures 0";
    folder.run(free).expect(0);
    assert!(read(&folder, "free.toml").contains("pool"));
}

#[test]
fn pictures_of_one_set_are_planned_on_or_measured_on_but_never_both() {
    let folder = prepared();
    let command = "protect q.onnx --data data:train --test-data data:train --faults f.toml --penalty 20,30 -o p.toml";
    let json = folder.run(&format!("{command} --json --seeds 2")).expect(0).json();
    assert_eq!((&json["planned_on"]["pictures"], &json["measured_on"]["pictures"]), (&12.into(), &12.into()));
}

#[test]
fn bad_input_gets_one_clear_line_and_leaves_nothing() {
    let folder = prepared();
    put(&folder, "zero.toml", "[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = 0.0\n");
    put(&folder, "taken.toml", "mine");
    fs::create_dir_all(folder.path("none/train")).unwrap();
    let start = "protect q.onnx --data data --faults f.toml";
    let cases = [
        (format!("{start} --penalty 201 -o p.toml"), 2, "200"),
        (format!("{start} --penalty -1 -o p.toml"), 2, "200"),
        (format!("{start} --penalty nan -o p.toml"), 2, "200"),
        (format!("{start} --penalty 25,25 -o p.toml"), 2, "twice"),
        (format!("{start} --penalty 25 -o taken.toml"), 2, "--force"),
        (format!("{start} --penalty 25 -o p.toml --group 0"), 1, "group"),
        (format!("{start} --penalty 25 -o p.toml --layers conw"), 1, "'conv'"),
        (format!("{start} --penalty 25 -o p.toml --layers pool"), 1, "products"),
        (format!("{start} --penalty 25 -o p.toml --processor onnxruntime"), 2, "sim"),
        (format!("{start} --penalty 25 -o p.toml --compare --test-pictures 0"), 2, "--compare"),
        (format!("{start} --penalty 25 -o p.toml --pictures 0"), 2, "--pictures"),
        ("protect q.onnx --data data --faults zero.toml --penalty 25 -o p.toml".to_owned(), 1, "struck nothing"),
        ("protect q.onnx --data none --faults f.toml --penalty 25 -o p.toml".to_owned(), 1, "none"),
        ("protect m.onnx --data data --faults f.toml --penalty 25 -o p.toml".to_owned(), 1, "m.onnx"),
        ("protect q.onnx --data data --penalty 25 -o p.toml".to_owned(), 2, "--faults"),
    ];
    let before = folder.files();
    for (command, status, word) in cases {
        let done = folder.run(&command);
        assert_eq!(done.status(), Some(status), "{command}: {}", done.err());
        assert!(done.err().contains(word) && !done.err().contains("panicked"), "{command}: {}", done.err());
    }
    assert_eq!(folder.files(), before);
    assert_eq!(read(&folder, "taken.toml"), "mine");
}
