//! Run folders for tests, as fewstep writes them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// A PNG of 2 × 1 pixels.
pub(crate) const PNG: &[u8] = include_bytes!("../assets/two-pixels.png");

pub(crate) fn lines(events: &[Value]) -> String {
    events.iter().map(|e| format!("{e}\n")).collect()
}

pub(crate) fn write(folder: &Path, config: &str, events: &[Value], summary: Option<&Value>) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.toml"), config).unwrap();
    fs::write(folder.join("events.jsonl"), lines(events)).unwrap();
    if let Some(summary) = summary {
        fs::write(folder.join("summary.json"), summary.to_string()).unwrap();
    }
}

fn stage(t: u32, test: f64) -> Value {
    json!({
        "name": format!("t{t}"), "timesteps": t, "val_accuracy": 0.9, "test_accuracy": test, "spike_rate_mean": 0.2 * f64::from(t),
        "spike_rate_per_layer": [0.1 * f64::from(t), 0.3 * f64::from(t)], "layers": [{"layer": "conv1"}, {"layer": "fc1"}],
        "energy_ratio": 26.3, "train_seconds": 12.3, "latency_ms": {"median_ms": 0.148}, "thresholds": [0.98, 1.1], "leaks": [0.97, 1.0],
        "energy": {"ann_uj": 9.748, "snn_uj": 0.37, "mac_pj": 4.6, "ac_pj": 0.9, "first_layer": "once", "pool": "published", "layers": [
            {"name": "conv1", "ann_uj": 0.127, "snn_uj": 0.127}, {"name": "fc1", "ann_uj": 6.1, "snn_uj": 0.0152}]},
    })
}

/// A finished spiking run with stages at T = 2 and 1.
pub(crate) fn iir(folder: &Path, name: &str, seed: u64, test: f64) {
    let events = [
        json!({"kind": "start", "time_s": 0., "unix_s": 1_795_711_332.6, "command": ["fewstep", "run", "my config.toml"],
            "machine": {"cpu": "Some CPU", "cores": 2, "memory_gib": 23.5, "system": "Debian"}}),
        json!({"kind": "phase_started", "phase": "ann", "epochs": 2, "time_s": 1.}),
        json!({"kind": "epoch", "phase": "ann", "epoch": 1, "train_loss": 1.5, "val_accuracy": 0.5, "time_s": 2.}),
        json!({"kind": "epoch", "phase": "ann", "epoch": 2, "train_loss": 0.5, "val_accuracy": 0.8, "time_s": 3.}),
        json!({"kind": "epoch", "phase": "t2", "epoch": 1, "train_loss": 0.4, "val_accuracy": 0.85, "time_s": 4.}),
        json!({"kind": "warning", "phase": "t2", "message": "conv1 is silent <b>", "time_s": 4.}),
    ];
    let summary = json!({
        "method": "iir-snn", "name": name, "dataset": "digits", "device": "cpu", "threads": 2, "ranks": 1, "seed": seed, "seconds": 389.,
        "parameters": 226_192, "macs": 2_119_168, "synthetic_data": false, "ann": {"val_accuracy": 0.99, "test_accuracy": 0.9944},
        "stages": [stage(2, 0.985), stage(1, test)], "direct": [], "latency_ms": {"ann": 0.135, "snn": 0.148},
        "versions": {"fewstep": "0.1.0", "libtorch": "2.11.0", "commit": "84a1fb70c349"},
    });
    let config = format!(
        "name = \"{name}\"\nseed = {seed}\n\n[data]\nname = \"digits\"\n\n[snn]\ntimesteps = [2, 1]\n"
    );
    write(folder, &config, &events, Some(&summary));
}

/// A finished comparison of cache policies with a router of one block at two steps.
pub(crate) fn harmonica(folder: &Path, name: &str) {
    let policy = |name: &str, label: &str, saving: f64, ms: f64, mse: f64| {
        json!({"name": name, "label": label, "cur_percent": saving, "mac_saving_percent": saving, "latency_ms_per_image": ms, "speedup": 10. / ms,
            "x0_mse_vs_uncached": mse, "fd": 1.43, "fd_resnet56": null, "recognised_percent": null, "error_per_step": [0.0, mse]})
    };
    let events = [
        json!({"kind": "start", "time_s": 0., "unix_s": 1_795_711_332.6, "command": ["fewstep", "compare", "c.toml"]}),
        json!({"kind": "scalar", "tag": "harmonica/loss", "step": 1, "value": 0.5, "time_s": 1.}),
        json!({"kind": "scalar", "tag": "harmonica/mac_saving_percent", "step": 1, "value": 12., "time_s": 1.}),
    ];
    let summary = json!({
        "method": "harmonica", "name": name, "steps": 2, "images": 4, "device": "cpu", "threads": 1, "seconds": 20.,
        "policies": [policy("none", "", 0., 10., 0.), policy("harmonica", "r > 0.1", 25., 8., 1e-4), policy("fora", "every 2", 50., 5., 2e-3)],
        "routers": [{"name": "harmonica", "train_seconds": 9., "trajectories": 10, "threshold": 0.1,
            "timesteps": [999., 0.], "probabilities": [[0.9, 0.8], [0.7, 0.05]]}],
    });
    write(
        folder,
        &format!("name = \"{name}\"\nmethod = \"harmonica\"\n"),
        &events,
        Some(&summary),
    );
    fs::create_dir_all(folder.join("plots")).unwrap();
    for policy in ["none", "fora-every-2"] {
        fs::write(folder.join(format!("plots/samples-{policy}.png")), PNG).unwrap();
    }
    let plan = "steps = [\"CC\", \"C.\"]\n[made_for]\ntimesteps = [0.0, 999.0]\n";
    fs::write(folder.join("plan-harmonica.toml"), plan).unwrap();
}
