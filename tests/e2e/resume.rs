//! Kill -9 anywhere, resume, and nothing shows that it happened.

use serde_json::Value;

use crate::common::{Sandbox, TINY, timeless};

/// Every kind of phase and loss: stages, an arm with thresholds of its own, distillation, the penalty on spikes.
fn config() -> String {
    let more = "distillation = { weight = 0.5 }\nrate_penalty = 0.01\n\n[direct]\narms = [\"calibrated\"]\nepochs = 2\n";
    format!("{TINY}{more}")
}

/// What must be the same: weights, figures, log.
#[derive(PartialEq)]
struct Outcome {
    weights: std::collections::BTreeMap<String, Vec<u8>>,
    summary: Value,
    events: Vec<Value>,
}

fn outcome(sandbox: &Sandbox) -> Outcome {
    let events = sandbox.events();
    let events = events
        .iter()
        .filter(|e| e["kind"] != "resume")
        .map(timeless)
        .collect();
    Outcome {
        weights: sandbox.weights(),
        summary: timeless(&sandbox.summary()),
        events,
    }
}

fn assert_same(found: &Outcome, expected: &Outcome, what: &str) {
    assert_eq!(found.summary, expected.summary, "{what}");
    for (line, (a, b)) in found.events.iter().zip(&expected.events).enumerate() {
        assert_eq!(a, b, "{what}: event {line}");
    }
    assert_eq!(found.events.len(), expected.events.len(), "{what}");
    let names = |o: &Outcome| o.weights.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, bytes) in &expected.weights {
        assert!(
            found.weights[name] == *bytes,
            "{what}: {name} has other bytes"
        );
    }
}

fn whole() -> Outcome {
    let sandbox = Sandbox::with_config(&config());
    sandbox.succeed(&["--quiet"]);
    outcome(&sandbox)
}

/// From before the first checkpoint to the moment before the summary.
const POINTS: [&str; 10] = [
    "config.toml",
    "checkpoints/ann/last.safetensors",
    "checkpoints/ann/result.json",
    "checkpoints/calibrated-t-first.safetensors",
    "checkpoints/t2/best.safetensors",
    "checkpoints/t2/result.json",
    "checkpoints/t1/last.safetensors",
    "checkpoints/calibrated-direct-calibrated.safetensors",
    "checkpoints/direct-calibrated/last.safetensors",
    "plots/accuracy.png",
];

/// Starts a run, kills it once `point` is there, and says whether it was still unfinished.
fn killed_at(sandbox: &Sandbox, arguments: &[&str], point: &str) -> bool {
    let (mut child, _) = sandbox.run_until(arguments, point);
    child.kill().unwrap();
    child.wait().unwrap();
    !sandbox.tiny("summary.json").exists()
}

#[test]
fn a_run_killed_at_any_of_ten_points_and_resumed_equals_one_that_was_not() {
    let expected = whole();
    for point in POINTS {
        let sandbox = Sandbox::with_config(&config());
        // A run that was faster than the kill is started again.
        let was_killed = (0..20).any(|_| killed_at(&sandbox, &["--quiet", "--force"], point));
        assert!(
            was_killed,
            "{point}: every run was over before it could be killed"
        );
        sandbox.succeed(&["--quiet", "--resume"]);
        assert_same(&outcome(&sandbox), &expected, point);
        assert!(
            sandbox.events().iter().any(|e| e["kind"] == "resume"),
            "{point}"
        );
    }
}

#[test]
fn a_run_killed_again_and_again_equals_one_that_was_not() {
    let expected = whole();
    let sandbox = Sandbox::with_config(&config());
    let mut kills = 0;
    for point in POINTS {
        if sandbox.tiny(point).exists() {
            continue;
        }
        if !killed_at(&sandbox, &["--quiet", "--resume"], point) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 4, "killed only {kills} times");
    if !sandbox.tiny("summary.json").exists() {
        sandbox.succeed(&["--quiet", "--resume"]);
    }
    assert_same(&outcome(&sandbox), &expected, "killed again and again");
}

#[test]
fn a_finished_run_is_not_resumed() {
    let sandbox = Sandbox::new();
    sandbox.succeed(&["--quiet"]);
    let before = std::fs::read(sandbox.tiny("summary.json")).unwrap();
    let done = sandbox.run(&["--resume"]);
    assert!(
        done.sentence().contains("runs/tiny/ is finished"),
        "{}",
        done.stderr
    );
    assert_eq!(std::fs::read(sandbox.tiny("summary.json")).unwrap(), before);
}

#[test]
fn a_damaged_checkpoint_is_named_with_what_to_do_and_doing_it_helps() {
    let expected = whole();
    let sandbox = Sandbox::with_config(&config());
    assert!((0..20).any(|_| killed_at(
        &sandbox,
        &["--quiet", "--force"],
        "checkpoints/t1/last.safetensors"
    )));
    let files = [
        ("checkpoints/t1/last.safetensors", "checkpoints/t1"),
        ("checkpoints/t2/best.safetensors", "checkpoints/t2"),
        ("checkpoints/ann/last.safetensors", "checkpoints/ann"),
        ("checkpoints/calibrated-t-first.safetensors", "it"),
        ("checkpoints/t2/result.json", "it"),
    ];
    for (file, delete) in files {
        let path = sandbox.tiny(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let done = sandbox.run(&["--resume"]);
        let said = done.sentence();
        let cure = if delete == "it" {
            "; delete it".into()
        } else {
            format!("; delete runs/tiny/{delete} ")
        };
        assert!(
            said.contains(&format!("runs/tiny/{file}: ")) && said.contains(&cure),
            "{said}"
        );
        std::fs::write(&path, &bytes).unwrap();
    }
    std::fs::write(sandbox.tiny("checkpoints/t2/best.safetensors"), "").unwrap();
    std::fs::remove_dir_all(sandbox.tiny("checkpoints/t2")).unwrap();
    std::fs::remove_dir_all(sandbox.tiny("checkpoints/t1")).unwrap();
    sandbox.succeed(&["--quiet", "--resume"]);
    assert_same(&outcome(&sandbox), &expected, "a phase trained again");
}
