use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn config(seed: u64) -> Value {
    json!({
        "seed": seed,
        "snn": {"timesteps": [5, 1], "learning_rate": 0.001},
        "stages": [{"epochs": 3}, {"epochs": 2}],
    })
}

fn open(root: &Path, existing: Existing) -> Result<RunFolder, RunError> {
    RunFolder::create(root, "demo", &config(1), existing)
}

fn complaint(result: Result<RunFolder, RunError>, root: &TempDir) -> String {
    let message = result.unwrap_err().to_string();
    message.replace(&root.path().display().to_string(), "runs")
}

fn tensorboard_files(root: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.path().join("demo/tb")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_new_run_writes_config_events_plots_and_summary() {
    let root = TempDir::new().unwrap();
    let mut run = open(root.path(), Existing::Refuse).unwrap();
    assert!(!run.resumed() && !run.finished());
    run.scalar("ann/loss", 1, 0.5).unwrap();
    run.event(
        "epoch",
        json!({"stage": "ann", "loss": f64::NAN, "kind": "not mine"}),
    )
    .unwrap();
    run.event("note", json!("hello")).unwrap();
    let png = crate::tensorboard::tests::tiny_png();
    run.plot("energy", &png).unwrap();
    run.write_summary(&json!({"method": "iir"})).unwrap();
    assert!(run.finished());
    let events = run.events().unwrap();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["start", "scalar", "epoch", "note"]);
    assert_eq!(events[1]["value"], 0.5);
    assert!(events[2]["loss"].is_null());
    assert_eq!(events[3]["value"], "hello");
    assert_eq!(fs::read(run.path("plots/energy.png")).unwrap(), png);
    assert_eq!(
        fs::read_to_string(run.path("summary.json")).unwrap(),
        "{\n  \"method\": \"iir\"\n}\n"
    );
    assert_eq!(tensorboard_files(&root).len(), 1);
    let left: Vec<_> = fs::read_dir(run.path("")).unwrap().collect();
    assert_eq!(left.len(), 6, "no temporary files stay behind: {left:?}");
}

#[test]
fn a_folder_that_holds_a_run_is_refused() {
    let root = TempDir::new().unwrap();
    let mut run = open(root.path(), Existing::Refuse).unwrap();
    assert_snapshot!(complaint(open(root.path(), Existing::Resume), &root), @"runs/demo is in use by another process; wait for its end or choose another name");
    run.write_summary(&json!({})).unwrap();
    drop(run);
    assert_snapshot!(complaint(open(root.path(), Existing::Refuse), &root), @"runs/demo already holds a finished run; replace it by --force, or choose another name");
    fs::remove_file(root.path().join("demo/summary.json")).unwrap();
    assert_snapshot!(complaint(open(root.path(), Existing::Refuse), &root), @"runs/demo already holds an unfinished run; go on with it by --resume, replace it by --force, or choose another name");
    fs::remove_file(root.path().join("demo/config.toml")).unwrap();
    assert_snapshot!(complaint(open(root.path(), Existing::Resume), &root), @"runs/demo holds files of a run but no config.toml, so it cannot be resumed; replace it by --force");
}

#[test]
fn a_name_that_is_no_folder_name_is_refused() {
    let root = TempDir::new().unwrap();
    for name in ["", "..", ".hidden", "a/b", "a b", "a\\b"] {
        let result = RunFolder::create(root.path(), name, &config(1), Existing::Refuse);
        assert!(matches!(result, Err(RunError::Name { .. })), "{name:?}");
    }
    let result = RunFolder::create(root.path(), "../x", &config(1), Existing::Refuse);
    assert_snapshot!(complaint(result, &root), @r#"the run name "../x" must be letters, digits, `-`, `_` and `.`, and must not begin with `.`"#);
}

#[test]
fn resuming_with_another_config_names_the_first_key_that_differs() {
    let root = TempDir::new().unwrap();
    drop(open(root.path(), Existing::Refuse).unwrap());
    let resume = |config: &Value| {
        complaint(
            RunFolder::create(root.path(), "demo", config, Existing::Resume),
            &root,
        )
    };
    let mut other = config(1);
    other["snn"]["timesteps"] = json!([4, 1]);
    assert_snapshot!(resume(&other), @"cannot resume runs/demo/config.toml: `snn.timesteps` was [5, 1] when the run began and is [4, 1] now; set it back, or choose another name");
    let mut other = config(1);
    other["stages"][1]["epochs"] = json!(9);
    assert_snapshot!(resume(&other), @"cannot resume runs/demo/config.toml: `stages.1.epochs` was 2 when the run began and is 9 now; set it back, or choose another name");
    let mut other = config(1);
    other["snn"]["dropout"] = json!(0.5);
    assert_snapshot!(resume(&other), @"cannot resume runs/demo/config.toml: `snn.dropout` was not set when the run began and is 0.5 now; set it back, or choose another name");
    assert!(open(root.path(), Existing::Resume).unwrap().resumed());
}

#[test]
fn rewinding_drops_what_was_logged_after_the_checkpoint() {
    let root = TempDir::new().unwrap();
    let mut run = open(root.path(), Existing::Resume).unwrap();
    assert!(!run.resumed(), "nothing to resume: a new run");
    for epoch in 1..=3 {
        run.scalar("loss", epoch, 1.0 / epoch as f64).unwrap();
        run.mark(epoch).unwrap();
    }
    run.scalar("loss", 4, 0.1).unwrap();
    run.write_summary(&json!({})).unwrap();
    drop(run);
    let log = root.path().join("demo/events.jsonl");
    let mut torn = fs::read(&log).unwrap();
    torn.extend_from_slice(b"{\"time_s\": 3.2, \"ki");
    fs::write(&log, &torn).unwrap();

    let mut run = open(root.path(), Existing::Resume).unwrap();
    assert_eq!(run.events().unwrap().len(), 8, "the torn line is gone");
    run.rewind(2).unwrap();
    run.scalar("loss", 3, 0.3).unwrap();
    let events = run.events().unwrap();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "start", "scalar", "mark", "scalar", "mark", "resume", "scalar"
        ]
    );
    let times: Vec<_> = events
        .iter()
        .map(|event| event["time_s"].as_f64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(!run.finished());
    let files = tensorboard_files(&root);
    assert_eq!(files.len(), 1);
    let records = crate::tensorboard::tests::payloads(&fs::read(&files[0]).unwrap());
    assert_eq!(
        records.len(),
        1 + 2 + 1,
        "version, two kept scalars, one new"
    );

    run.rewind(0).unwrap();
    let events = run.events().unwrap();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["start", "resume"]);
}

#[test]
fn a_damaged_line_inside_the_log_is_named() {
    let root = TempDir::new().unwrap();
    drop(open(root.path(), Existing::Refuse).unwrap());
    fs::write(
        root.path().join("demo/events.jsonl"),
        "{\"mark\": 0}\nnonsense\n",
    )
    .unwrap();
    let run = open(root.path(), Existing::Resume).unwrap();
    let message = run.events().unwrap_err().to_string();
    let message = message.replace(&root.path().display().to_string(), "runs");
    assert_snapshot!(message, @"runs/demo/events.jsonl:2: expected a JSON object on the line, found something else: expected ident at line 1 column 2");
}

#[test]
fn replacing_deletes_what_a_run_writes_and_nothing_else() {
    let root = TempDir::new().unwrap();
    let mut run = open(root.path(), Existing::Refuse).unwrap();
    run.scalar("loss", 1, 1.0).unwrap();
    for (phase, file) in [
        ("mine", "notes.txt"),
        ("t1", "best.safetensors"),
        ("t1", "result.json"),
    ] {
        fs::create_dir_all(run.checkpoints().join(phase)).unwrap();
        fs::write(run.checkpoints().join(phase).join(file), "x").unwrap();
    }
    fs::write(run.checkpoints().join("last.safetensors"), "x").unwrap();
    fs::write(run.path("notes.txt"), "keep").unwrap();
    let shown = [
        "plan-fora-every-2.toml",
        "router-l2c.safetensors",
        "matched-saving.md",
        "table.csv",
        "report.html",
    ];
    for file in shown {
        fs::write(run.path(file), "old").unwrap();
    }
    drop(run);
    let run = RunFolder::create(root.path(), "demo", &config(2), Existing::Replace).unwrap();
    assert!(!run.resumed());
    assert_eq!(run.events().unwrap().len(), 1);
    assert!(run.path("notes.txt").exists() && run.checkpoints().join("mine/notes.txt").exists());
    assert!(!run.checkpoints().join("t1").exists());
    assert!(!run.checkpoints().join("last.safetensors").exists());
    assert!(!run.path("tb").exists());
    for file in shown {
        assert!(!run.path(file).exists(), "{file} is not the new run's");
    }
}

#[test]
fn who_looks_at_a_run_for_a_moment_does_not_keep_it_from_starting() {
    let root = TempDir::new().unwrap();
    drop(open(root.path(), Existing::Refuse).unwrap());
    let look = File::open(root.path().join("demo/run.lock")).unwrap();
    look.try_lock_shared().unwrap();
    let looked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(look);
    });
    assert!(open(root.path(), Existing::Resume).unwrap().resumed());
    looked.join().unwrap();
}
