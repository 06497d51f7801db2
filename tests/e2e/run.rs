//! What a run leaves, and that its seed decides it.

use std::process::Stdio;

use fewstep_torch::Checkpoint;
use serde_json::Value;

use crate::common::{Sandbox, files};

#[test]
fn a_run_writes_config_log_curves_checkpoints_plots_and_a_summary() {
    let sandbox = Sandbox::new();
    let done = sandbox.succeed(&["--set", "seed=3"]);
    let config = std::fs::read_to_string(sandbox.tiny("config.toml")).unwrap();
    assert!(
        config.contains("seed = 3") && config.contains("amsgrad = true"),
        "{config}"
    );
    let epochs = sandbox
        .events()
        .iter()
        .filter(|e| e["kind"] == "epoch")
        .count();
    assert_eq!(epochs, 5);
    let curves = files(&sandbox.tiny("tb"));
    assert!(!curves.is_empty() && curves.iter().all(|p| p.metadata().unwrap().len() > 1000));
    for phase in ["ann", "t2", "t1"] {
        let best = sandbox.tiny(&format!("checkpoints/{phase}/best.safetensors"));
        let best = Checkpoint::load(&best).unwrap();
        assert!(best.tensor("conv1.weight").is_ok());
        assert_eq!(best.tensor("conv1.threshold").is_ok(), phase != "ann");
        assert!(
            sandbox
                .tiny(&format!("checkpoints/{phase}/last.safetensors"))
                .exists()
        );
    }
    let plots = files(&sandbox.tiny("plots"));
    assert_eq!(plots.len(), 4);
    for plot in plots {
        let bytes = std::fs::read(&plot).unwrap();
        assert!(
            bytes.len() > 5_000,
            "{}: {} bytes",
            plot.display(),
            bytes.len()
        );
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(image::load_from_memory(&bytes).unwrap().width() > 300);
    }
    check_summary(&sandbox.summary());
    let table = std::fs::read_to_string(sandbox.tiny("table.md")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
    for row in ["ann ", "t2 ", "t1 "] {
        assert!(
            done.stdout.contains(&format!("| {row}")),
            "{row}:\n{}",
            done.stdout
        );
    }
}

fn check_summary(summary: &Value) {
    let texts = [
        ("method", "iir-snn"),
        ("dataset", "digits"),
        ("device", "cpu"),
    ];
    assert!(
        texts.iter().all(|(key, value)| summary[key] == *value),
        "{summary}"
    );
    assert_eq!(
        (&summary["seed"], &summary["synthetic_data"]),
        (&3.into(), &false.into())
    );
    let number = |value: &Value| {
        value
            .as_f64()
            .unwrap_or_else(|| panic!("{value} is no number:\n{summary}"))
    };
    let share = |value: &Value| assert!((0. ..=1.).contains(&number(value)), "{value}");
    share(&summary["ann"]["test_accuracy"]);
    let stages = summary["stages"].as_array().unwrap();
    let timesteps: Vec<_> = stages
        .iter()
        .map(|s| s["timesteps"].as_u64().unwrap())
        .collect();
    let epochs: Vec<_> = stages
        .iter()
        .map(|s| s["epochs"].as_u64().unwrap())
        .collect();
    assert_eq!((timesteps, epochs), (vec![2, 1], vec![1, 2]));
    for stage in stages {
        share(&stage["val_accuracy"]);
        share(&stage["test_accuracy"]);
        assert_eq!(stage["spike_rate_per_layer"].as_array().unwrap().len(), 3);
        for positive in ["spike_rate_mean", "energy_ratio", "train_seconds"] {
            assert!(number(&stage[positive]) > 0., "{positive}: {stage}");
        }
    }
    for (table, key) in [
        ("energy", "ann_uj"),
        ("energy", "snn_uj"),
        ("latency_ms", "ann"),
        ("latency_ms", "snn"),
    ] {
        assert!(number(&summary[table][key]) > 0., "{table}.{key}");
    }
}

#[test]
fn the_same_seed_gives_the_same_weights_byte_for_byte_and_another_does_not() {
    let weights = |seed: &str| {
        let sandbox = Sandbox::new();
        sandbox.succeed(&["--quiet", "--set", seed]);
        sandbox.weights()
    };
    let (first, second, other) = (weights("seed=1"), weights("seed=1"), weights("seed=2"));
    assert_eq!(first.keys().len(), 4);
    assert!(first == second);
    for (name, bytes) in &first {
        assert!(*bytes != other[name], "{name} is the same for two seeds");
    }
}

#[test]
fn json_prints_the_summary_and_nothing_else() {
    let sandbox = Sandbox::new();
    let done = sandbox.succeed(&["--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&done.stdout).unwrap(),
        sandbox.summary()
    );
    assert_eq!(done.stderr, "");
}

#[test]
fn a_run_whose_output_nobody_reads_still_ends_well() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&["run", "tiny.toml"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(sandbox.tiny("summary.json").exists());
}

#[test]
fn the_demo_runs_the_embedded_configs_and_starts_anew_each_time() {
    let sandbox = Sandbox::new();
    let short = [
        "demo",
        "--quiet",
        "--set",
        "limits.batches=2",
        "--set",
        "threads=1",
        "--set",
        "routers.harmonica.trajectories=2",
        "--set",
        "evaluation.images=10",
    ];
    for _ in 0..2 {
        let done = sandbox.fewstep(&short);
        assert!(done.ok, "{}", done.stderr);
        assert!(sandbox.path("runs/demo-iir/summary.json").exists());
        assert!(sandbox.path("runs/demo-harmonica/summary.json").exists());
        assert!(
            done.stdout.contains("| t5 ") && done.stdout.contains("| t1 "),
            "{}",
            done.stdout
        );
    }
}
