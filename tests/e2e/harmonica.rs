//! Runs of the two diffusion methods: what they write, kill and resume, and what is said when something is wrong.

use fewstep_torch::Checkpoint;
use serde_json::Value;

use crate::common::{Sandbox, timeless};

/// A second of training a DiT.
pub const DIT: &str = r#"name = "tiny"
method = "dit"
device = "cpu"
threads = 1
samples = 10
precision = "float16"

[data]
name = "digits"
train_images = 200

[model]
patch = 4
depth = 2
width = 16
heads = 2
learned_variance = true

[training]
steps = 40
batch_size = 16
learning_rate = 1e-3
loss = "hybrid"
gradient_clip = 1.0
checkpoint_every = 15
validation_images = 20

[sampler]
name = "ddim"
steps = 4

[guidance]
scale = 1.5
"#;

/// A few seconds of learning routers for the DiT that fewstep carries.
pub const HARMONICA: &str = r#"name = "tiny"
method = "harmonica"
device = "cpu"
threads = 1

[model]
checkpoint = "digits"

[data]
name = "digits"
train_images = 200

[sampler]
name = "ddim"
steps = 5

[guidance]
scale = 1.5

[routers.harmonica]
trajectories = 5
batch_size = 2
learning_rate = 0.5
beta = 1e-3
normalise = true
proxy = "leave-one-out"
refresh_every = 10
checkpoint_every = 2
evaluate_on = 2

[routers.l2c]
training = "l2c"
trajectories = 4
batch_size = 2
learning_rate = 0.5
beta = 1e-2
checkpoint_every = 3
evaluate_on = 2

[evaluation]
images = 10
batch_size = 5
classifier = "digits"
mac_savings_percent = [30]
intervals = [2]
policies = [{ name = "interval", first = 0, last = 2, interval = 2 }]
repeats = 1
"#;

/// Summary and log without what a clock or the way of a run says.
fn outcome(sandbox: &Sandbox) -> (Value, Vec<Value>) {
    let mut summary = timeless(&sandbox.summary());
    for list in ["policies", "matched_saving"] {
        for policy in summary[list].as_array_mut().into_iter().flatten() {
            for key in ["latency_ms_per_image", "speedup"] {
                policy[key] = Value::Null;
            }
        }
    }
    summary["matched_latency"] = Value::Null;
    summary["sample_seconds"] = Value::Null;
    let events = sandbox.events();
    let events = events
        .iter()
        .filter(|e| e["kind"] != "resume")
        .map(timeless);
    (summary, events.collect())
}

fn killed_and_resumed_equals_one_that_was_not(config: &str, points: &[&str], result: &[&str]) {
    let whole = Sandbox::with_config(config);
    whole.succeed(&["--quiet"]);
    let expected = outcome(&whole);
    let killed = Sandbox::with_config(config);
    for point in points {
        let (mut child, _) = killed.run_until(&["--quiet", "--resume"], point);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    if !killed.tiny("summary.json").exists() {
        killed.succeed(&["--quiet", "--resume"]);
    }
    let found = outcome(&killed);
    assert_eq!(found.0, expected.0);
    for (line, (a, b)) in found.1.iter().zip(&expected.1).enumerate() {
        assert_eq!(a, b, "event {line}");
    }
    assert_eq!(found.1.len(), expected.1.len());
    for file in result {
        // The order of a header's entries is nobody's business.
        let read = |s: &Sandbox| Checkpoint::load(&s.tiny(file)).unwrap().section("");
        assert_eq!(read(&killed), read(&whole), "{file}");
    }
}

#[test]
fn a_dit_training_that_was_killed_and_resumed_equals_one_that_was_not() {
    killed_and_resumed_equals_one_that_was_not(
        DIT,
        &[
            "config.toml",
            "checkpoints/dit.safetensors",
            "dit.safetensors",
        ],
        &["dit.safetensors"],
    );
}

#[test]
fn routers_that_were_killed_and_resumed_equal_those_that_were_not() {
    killed_and_resumed_equals_one_that_was_not(
        HARMONICA,
        &[
            "checkpoints/harmonica/router.safetensors",
            "router-harmonica.safetensors",
            "checkpoints/l2c/router.safetensors",
            "plots/router-harmonica.png",
        ],
        &["router-harmonica.safetensors", "router-l2c.safetensors"],
    );
}

#[test]
fn the_summary_has_every_policy_with_its_figures() {
    let sandbox = Sandbox::with_config(HARMONICA);
    let done = sandbox.succeed(&["--quiet"]);
    let summary = sandbox.summary();
    for key in ["method", "model", "steps", "sampler", "guidance", "seed"] {
        assert!(!summary[key].is_null(), "{key}");
    }
    assert_eq!(summary["router"]["trajectories"], 5);
    assert!(summary["router"]["train_seconds"].as_f64().unwrap() > 0.);
    let policies = summary["policies"].as_array().unwrap();
    let mut names: Vec<_> = policies
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    names.dedup();
    for name in [
        "none",
        "harmonica",
        "l2c",
        "random",
        "fewer-steps",
        "fora",
        "interval",
    ] {
        assert!(names.contains(&name), "{names:?}");
        assert!(
            done.stdout.contains(&format!("| {name} ")),
            "{}",
            done.stdout
        );
    }
    for p in policies {
        for key in [
            "cur_percent",
            "mac_saving_percent",
            "latency_ms_per_image",
            "speedup",
            "x0_mse_vs_uncached",
            "fd",
            "recognised_percent",
        ] {
            assert!(p[key].as_f64().is_some_and(f64::is_finite), "{key} of {p}");
        }
    }
    let none = &policies[0];
    assert_eq!(
        (none["name"].as_str(), none["x0_mse_vs_uncached"].as_f64()),
        (Some("none"), Some(0.))
    );
    // The samples are the digits that were asked for.
    assert!(
        none["recognised_percent"].as_f64().unwrap() >= 90.,
        "{none}"
    );
    let saved = sandbox.tiny("plan-fora-every-2.toml");
    let shown = sandbox.fewstep(&["plan", "show", &saved.display().to_string()]);
    assert!(shown.ok, "{}", shown.stderr);
    for plot in [
        "side-by-side",
        "router-harmonica",
        "learning-l2c",
        "error-per-step",
        "speed-against-quality",
    ] {
        assert!(
            sandbox.tiny(&format!("plots/{plot}.png")).exists(),
            "{plot}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_config_is_said_with_its_line_before_anything_is_written() {
    let sandbox = Sandbox::with_config(HARMONICA);
    for (set, expected) in [
        ("sampler.steps=0", "`sampler.steps`"),
        (
            "routers.harmonica.threshold=1.5",
            "`routers.harmonica.threshold`: expected a number between 0 and 1, found 1.5",
        ),
        (
            "routers.harmonica.betta=1",
            "did you mean `routers.harmonica.beta`?",
        ),
        ("evaluation.intervals=[0]", "`evaluation.intervals`"),
        ("model.checkpoint=absent.pt", "absent.pt"),
        ("guidance.scale=-1", "`guidance.scale`"),
    ] {
        let done = sandbox.run(&["--set", set]);
        assert!(done.sentence().contains(expected), "{set}: {}", done.stderr);
    }
    let sandbox = Sandbox::with_config(DIT);
    for (set, expected) in [
        (
            "model.heads=3",
            "`model.heads`: expected a divisor of the width 16, found 3",
        ),
        ("training.ema=1.0", "`training.ema`"),
        ("model.learned_variance=false", "hybrid"),
    ] {
        let done = sandbox.run(&["--set", set]);
        assert!(done.sentence().contains(expected), "{set}: {}", done.stderr);
    }
    assert!(!sandbox.tiny("summary.json").exists());
}

/// Rivals that look at the model, with thresholds given and searched, beside plans; nothing is learned.
const COMPARE: &str = r#"name = "tiny"
method = "harmonica"
device = "cpu"
threads = 1

[model]
checkpoint = "digits"

[sampler]
name = "ddim"
steps = 6

[guidance]
scale = 1.5

[evaluation]
images = 4
batch_size = 4
mac_savings_percent = [30]
intervals = [2]
policies = [
  { name = "taylorseer", interval = 2, order = 1 },
  { name = "first-block" },
  { name = "dual-block", back = 1, threshold = 1.0, warmup_steps = 2, order = 1 },
  { name = "tea" },
  { name = "delta", interval = 2, blocks = 6 },
]
repeats = 1
"#;

#[test]
fn compare_puts_all_policies_beside_each_other_at_the_same_saving_and_time() {
    let sandbox = Sandbox::with_config(COMPARE);
    let config = sandbox.path("tiny.toml").display().to_string();
    let done = sandbox.fewstep(&["compare", &config, "--quiet"]);
    assert!(done.ok, "{}", done.stderr);
    assert!(done.stdout.contains("At the same MAC saving"));
    let summary = sandbox.summary();
    let matched = summary["matched_saving"].as_array().unwrap();
    let names: Vec<_> = matched
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    for name in ["fewer-steps", "fora", "taylorseer", "delta"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let policies = summary["policies"].as_array().unwrap();
    for name in ["first-block", "dual-block", "tea", "delta"] {
        let found = policies.iter().find(|p| p["name"] == name);
        let saved = found.map(|p| p["mac_saving_percent"].as_f64().unwrap());
        assert!(saved.is_some_and(|s| s > 5.), "{name}: {saved:?}");
    }
    for row in matched {
        assert!(row["mac_saving_percent"].as_f64().unwrap() >= 29., "{row}");
        assert!(row["x0_mse_vs_uncached"].as_f64().unwrap() > 0., "{row}");
    }
    assert!(summary["matched_latency"].is_array());
    // A searched threshold is written down.
    let first = policies
        .iter()
        .find(|p| p["name"] == "first-block")
        .unwrap();
    assert!(first["rule"]["threshold"].as_f64().unwrap() > 0.);
    let csv = std::fs::read_to_string(sandbox.tiny("table.csv")).unwrap();
    assert_eq!(csv.lines().count(), policies.len() + 1, "{csv}");
    for file in [
        "matched-saving.md",
        "matched-saving.csv",
        "matched-latency.md",
        "matched-latency.csv",
    ] {
        assert!(sandbox.tiny(file).exists(), "{file}");
    }
    assert!(sandbox.tiny("plots/speed-against-quality.png").exists());

    let done = sandbox.fewstep(&[
        "compare",
        &config,
        "--set",
        "evaluation.mac_savings_percent=[]",
    ]);
    assert!(
        done.sentence()
            .contains("first-block: expected a threshold"),
        "{}",
        done.stderr
    );
    let done = sandbox.fewstep(&[
        "compare",
        &config,
        "--routers-from",
        "runs/absent",
        "--force",
    ]);
    assert!(
        done.sentence().contains("absent could not be read"),
        "{}",
        done.stderr
    );
}

#[test]
fn compare_takes_the_routers_of_an_earlier_run() {
    let sandbox = Sandbox::with_config(HARMONICA);
    sandbox.succeed(&["--quiet"]);
    let config = sandbox.path("tiny.toml").display().to_string();
    let from = sandbox.tiny("").display().to_string();
    let arguments = [
        "compare",
        &config,
        "--routers-from",
        &from,
        "--quiet",
        "--json",
    ];
    let own = sandbox.fewstep(&arguments);
    assert!(
        own.sentence().contains("give it another name"),
        "{}",
        own.stderr
    );
    let done = sandbox.fewstep(&[&arguments[..], &["--set", "name=again"]].concat());
    assert!(done.ok, "{}", done.stderr);
    let summary: Value = serde_json::from_str(&done.stdout).unwrap();
    let told = |summary: &Value| -> Vec<Value> {
        let all = summary["policies"].as_array().unwrap().iter();
        let learned = all.filter(|p| p["name"] == "harmonica" || p["name"] == "l2c");
        learned.map(|p| p["x0_mse_vs_uncached"].clone()).collect()
    };
    assert_eq!(told(&summary), told(&sandbox.summary()));
    assert!(!told(&summary).is_empty());
}
