//! `cargo xtask bench NAME`: ourselves and Python peers in turn, medians with spread, one verdict a line.
//!
//! Both sides print JSON lines `{"name", "ms": [one figure a sample], "threads", "batch"}`. A round runs each program
//! once, so that a machine that warms up or gets busy is unfair to all of them. Our lines may have more:
//!
//! * `gflop`: the arithmetic of a sample; the table then says GFLOP/s.
//! * `judged`: false for a case without a target.
//! * `against` and `implied_speedup`: a case that is compared with another of ours instead of with peers, and the speed-up that
//!   its skipped arithmetic implies. At least [`FOLLOWED`] of that is to be measured.

mod distributed;
mod events;
mod samples;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use serde_json::{Value, json};

use samples::{Samples, add, lines, measure, median_and_spread};

use super::drive;
use crate::checkout::Checkout;
use crate::libtorch;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure: spiking, sampling, events, distributed, dit-xl (with --steps against PyTorch, else ours alone), or sdt (ours alone)
    name: String,
    /// Threads for every program [default: all of the machine; for events 1 and 2 in turn]
    #[arg(long)]
    threads: Option<usize>,
    /// For spiking, sampling, dit-xl and sdt: cpu, cuda or cuda:N, for ours and the peers. On a GPU dit-xl runs 20 and 50 steps at 256 and
    /// 512 pixels unless --steps and --resolution say otherwise
    #[arg(long, default_value = "cpu")]
    device: String,
    /// For spiking, dit-xl and sdt: float32, tf32 or bfloat16, for ours and the peers
    #[arg(long)]
    precision: Option<String>,
    /// For dit-xl: steps of DDIM; may be repeated; for sdt of a trajectory
    #[arg(long, value_name = "N")]
    steps: Vec<u64>,
    /// For dit-xl and sdt: pixels a side; may be repeated
    #[arg(long, value_name = "PIXELS")]
    resolution: Vec<u64>,
    /// For dit-xl and sdt: images at once
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// For sdt: compute blocks again on the way back instead of keeping what they computed
    #[arg(long)]
    recompute: bool,
    /// For dit-xl and sdt: the shape, such as XL/2
    #[arg(long)]
    model: Option<String>,
    /// For spiking: vgg9 or vgg16, for ours and the peers
    #[arg(long, value_parser = ["vgg9", "vgg16"])]
    network: Option<String>,
    /// For events: a run whose network and images take the place of made-up ones; may be repeated
    #[arg(long = "run", value_name = "FOLDER")]
    runs: Vec<PathBuf>,
    /// How often each program runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Timed steps a run
    #[arg(long, default_value_t = 3)]
    samples: usize,
    /// Steps before the timed ones
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// One round of one sample
    #[arg(long)]
    quick: bool,
    /// Print the rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A benchmark: `fewstep bench NAME` against `xtask/bench/<script> --peer PEER`.
struct Bench {
    name: &'static str,
    script: &'static str,
    peers: &'static [&'static str],
    /// The largest ratio ours/peer that counts as met.
    target: f64,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "spiking",
        script: "spiking_peer.py",
        peers: &["spikingjelly", "snntorch"],
        target: 1.1,
    },
    Bench {
        name: "sampling",
        script: "sampling_peer.py",
        peers: &["pytorch"],
        target: 1. / 1.1,
    },
    Bench {
        name: DIT_XL,
        script: "sampling_peer.py",
        peers: &["pytorch", "pytorch-compile"],
        target: 1.,
    },
];

const DIT_XL: &str = "dit-xl";
/// On a GPU besides; its CUDA graphs are held against ours.
const GRAPH_PEER: &str = "pytorch-compile-graphs";

/// The share of an implied speed-up that is to be measured.
const FOLLOWED: f64 = 0.95;

/// What the peers need; pinned.
const REQUIREMENTS: &str = include_str!("../../bench/requirements.txt");

/// Measures, writes `target/bench/NAME.json`, prints the table.
pub fn bench(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    let threads = options
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let on_gpu = options.device != "cpu";
    let shape = options.shape(on_gpu);
    if options.name == "sdt" || (options.name == DIT_XL && !on_gpu && options.steps.is_empty()) {
        let mut words = vec![
            options.name.clone().into(),
            format!("--threads={threads}").into(),
        ];
        words.extend(shape.into_iter().map(Into::into));
        if options.name == "sdt" {
            words.extend(options.recompute.then(|| "--recompute".into()));
            words.push(format!("--samples={}", options.samples).into());
        }
        words.extend(options.json.then(|| "--json".into()));
        return drive::fewstep(checkout, Some("bench"), &words);
    }
    ensure!(
        options.rounds > 0 && options.samples > 0,
        "--rounds and --samples must be at least 1"
    );
    if options.name == events::NAME {
        return events::bench(checkout, options);
    }
    if options.name == distributed::NAME {
        return distributed::bench(checkout, options);
    }
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == options.name) else {
        let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!(
            "there is no benchmark {:?}; known: {}, {}, {}, sdt",
            options.name,
            known.join(", "),
            events::NAME,
            distributed::NAME
        );
    };
    libtorch::ensure(checkout, false, false)?;
    let python = python(checkout)?;
    let rounds = options.rounds();
    let mut common = options.common(threads).to_vec();
    common.extend(shape);
    let mut peers = bench.peers.to_vec();
    if on_gpu && bench.name == DIT_XL {
        peers.push(GRAPH_PEER);
    }

    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Samples>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: fewstep");
        let mut command = drive::command(checkout)?;
        command.args(["bench", bench.name, "--json"]).args(&common);
        measure(&mut command, "fewstep", &mut ours)?;
        for (peer, samples) in peers.iter().zip(&mut theirs) {
            eprintln!("round {round} of {rounds}: {peer}");
            let mut command = Command::new(&python);
            command
                .arg(checkout.root.join("xtask/bench").join(bench.script))
                .args(["--peer", peer])
                .args(&common);
            measure(&mut command, peer, samples)?;
        }
    }

    let rows = compare(bench.target, &peers, &ours, &theirs)?;
    let path = write(checkout, bench.name, &Value::from(rows.clone()))?;
    if options.json {
        println!("{:#}", Value::from(rows));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", table(&rows));
    println!(
        "median ms a step, interquartile range in brackets; {}; written to {}",
        verdict(&rows),
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}

impl Options {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    /// Where and what is computed, as far as it is said; every program takes these words.
    fn shape(&self, on_gpu: bool) -> Vec<String> {
        let mut words = Vec::new();
        if on_gpu {
            words.push(format!("--device={}", self.device));
        }
        words.extend(self.precision.iter().map(|p| format!("--precision={p}")));
        if self.name == "spiking" {
            words.extend(self.network.iter().map(|n| format!("--network={n}")));
        }
        if self.name != DIT_XL && self.name != "sdt" {
            return words;
        }
        let full = on_gpu && self.name == DIT_XL;
        let or = |said: &[u64], all: [u64; 2]| match said {
            [] if full => all.to_vec(),
            said => said.to_vec(),
        };
        let steps = or(&self.steps, [20, 50]);
        words.extend(steps.iter().map(|n| format!("--steps={n}")));
        let resolution = or(&self.resolution, [256, 512]);
        words.extend(resolution.iter().map(|n| format!("--resolution={n}")));
        words.extend(self.batch.iter().map(|n| format!("--batch={n}")));
        words.extend(self.model.iter().map(|m| format!("--model={m}")));
        words
    }

    /// What every program is told.
    fn common(&self, threads: usize) -> [String; 3] {
        let samples = if self.quick { 1 } else { self.samples };
        [
            format!("--threads={threads}"),
            format!("--samples={samples}"),
            format!("--warmup={}", self.warmup),
        ]
    }
}

/// Writes `target/bench/NAME.json`.
fn write(checkout: &Checkout, name: &str, result: &Value) -> Result<PathBuf> {
    let folder = checkout.target().join("bench");
    let path = folder.join(format!("{name}.json"));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, format!("{result:#}\n")))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// How many rows miss their target.
fn verdict(rows: &[Value]) -> String {
    let targets = rows.iter().filter(|row| !row["met"].is_null()).count();
    match rows.iter().filter(|row| row["met"] == json!(false)).count() {
        0 => "every target is met".to_owned(),
        missed => format!("{missed} of {targets} targets are missed"),
    }
}

/// The interpreter with the peers: FEWSTEP_BENCH_PYTHON, else a virtual environment made under target/ once.
pub(super) fn python(checkout: &Checkout) -> Result<PathBuf> {
    if let Some(python) = env::var_os("FEWSTEP_BENCH_PYTHON") {
        return Ok(python.into());
    }
    let home = checkout.target().join("bench/venv");
    let python = home.join("bin/python");
    // Written last, so a killed pip is not taken for a whole one; its text, so new pins are installed.
    let done = home.join("fewstep-requirements.txt");
    if fs::read_to_string(&done).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(python);
    }
    eprintln!(
        "making a virtual environment for the peers in {} (about 3 GB to download)",
        home.display()
    );
    let run = |command: &mut Command| -> Result<()> {
        let status = command
            .status()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        ensure!(
            status.success(),
            "cannot make the virtual environment {}: the reason is above. It needs Python 3 with venv and pip, and a network; or set FEWSTEP_BENCH_PYTHON to a Python that has the packages of xtask/bench/requirements.txt",
            home.display()
        );
        Ok(())
    };
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&home))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(checkout.root.join("xtask/bench/requirements.txt")))?;
    fs::write(&done, REQUIREMENTS).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(python)
}

/// One row for each case and what it is compared with.
fn compare(
    target: f64,
    peers: &[&str],
    ours: &[Samples],
    theirs: &[Vec<Samples>],
) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for our in ours {
        // A CUDA graph is held against the peer that has them as well, on the same case.
        if let Some(beside) = our.line["beside"].as_str() {
            let place = peers.iter().position(|peer| *peer == GRAPH_PEER);
            let their = place.and_then(|at| theirs[at].iter().find(|their| their.name == beside));
            if let (Some(their), None) = (their, &our.against) {
                rows.push(compare_two(our, GRAPH_PEER, their, Some(target)));
                continue;
            }
        }
        if let Some((against, implied)) = &our.against {
            let other = ours
                .iter()
                .find(|other| other.name == *against)
                .with_context(|| format!("fewstep did not measure {against}"))?;
            let target = our.judged.then_some(1. / (FOLLOWED * implied));
            let mut row = compare_two(our, against, other, target);
            let speedup = 1. / row["ratio"].as_f64().unwrap_or(f64::NAN);
            row["speedup"] = json!(speedup);
            row["implied_speedup"] = json!(implied);
            row["followed"] = json!(speedup / implied);
            rows.push(row);
            continue;
        }
        for (peer, samples) in peers.iter().zip(theirs) {
            if *peer == GRAPH_PEER && our.line["beside"].is_null() {
                continue;
            }
            let their = samples
                .iter()
                .find(|their| their.name == our.name)
                .with_context(|| format!("{peer} did not measure {}", our.name))?;
            ensure!(
                (their.threads, their.batch) == (our.threads, our.batch),
                "{}: fewstep ran {} threads and batch {}, {peer} {} threads and batch {}",
                our.name,
                our.threads,
                our.batch,
                their.threads,
                their.batch
            );
            let target = our.judged.then_some(target);
            rows.push(compare_two(our, peer, their, target));
        }
    }
    Ok(rows)
}

/// The row of `our` beside `their`, which must not take less than 1/`target` of its time.
fn compare_two(our: &Samples, peer: &str, their: &Samples, target: Option<f64>) -> Value {
    let (our_ms, our_spread) = median_and_spread(&our.ms);
    let (their_ms, their_spread) = median_and_spread(&their.ms);
    let ratio = our_ms / their_ms;
    let mut row = json!({
        "name": our.name, "threads": our.threads, "batch": our.batch,
        "ours_ms": our_ms, "ours_spread_ms": our_spread,
        "peer": peer, "peer_ms": their_ms, "peer_spread_ms": their_spread,
        "ratio": ratio,
        "target": target,
        "met": target.map(|target| ratio <= target),
    });
    if let Some(steps) = our.line["steps"].as_f64() {
        row["ours_seconds_an_image"] = json!(our_ms * steps / our.batch as f64 / 1e3);
    }
    if let Some(gflop) = our.gflop {
        row["ours_gflops"] = json!(gflop / our_ms * 1e3);
        row["peer_gflops"] = json!(gflop / their_ms * 1e3);
    }
    row
}

/// The rows for people.
fn table(rows: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "case", "threads", "batch", "ours", "peer", "its", "ratio", "target", "met", "that is",
    ]);
    let figure = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let time = |row: &Value, who: &str| {
        format!(
            "{:.1} ({:.1})",
            figure(row, &format!("{who}_ms")),
            figure(row, &format!("{who}_spread_ms"))
        )
    };
    for row in rows {
        table.add_row([
            row["name"].as_str().unwrap_or_default().to_owned(),
            row["threads"].to_string(),
            row["batch"].to_string(),
            time(row, "ours"),
            row["peer"].as_str().unwrap_or_default().to_owned(),
            time(row, "peer"),
            format!("{:.3}", figure(row, "ratio")),
            row["target"]
                .as_f64()
                .map_or("none".into(), |target| format!("{target:.3}")),
            match row["met"].as_bool() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            }
            .to_owned(),
            meaning(row),
        ]);
    }
    table
}

/// What a row's ratio says in other words.
fn meaning(row: &Value) -> String {
    let figure = |key: &str| row[key].as_f64();
    if let (Some(speedup), Some(implied), Some(followed)) = (
        figure("speedup"),
        figure("implied_speedup"),
        figure("followed"),
    ) {
        return format!("{speedup:.2} x faster, skipped work implies {implied:.2} ({followed:.3})");
    }
    if let Some(seconds) = figure("ours_seconds_an_image") {
        return format!("{seconds:.3} s an image");
    }
    match (figure("ours_gflops"), figure("peer_gflops")) {
        (Some(ours), Some(peer)) => format!("{ours:.0} GFLOP/s, peer {peer:.0}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::samples::parse;
    use super::*;

    #[test]
    fn a_cached_case_is_held_against_its_implied_speed_up() {
        let line = |text: &str| parse(text).unwrap();
        let ours = [
            line(r#"{"name": "all", "ms": [10.0], "threads": 2, "batch": 8, "gflop": 1.0}"#),
            line(
                r#"{"name": "half", "ms": [5.2], "threads": 2, "batch": 8, "against": "all", "implied_speedup": 2.0}"#,
            ),
        ];
        let theirs = vec![vec![line(
            r#"{"name": "all", "ms": [12.0], "threads": 2, "batch": 8}"#,
        )]];
        let rows = compare(BENCHES[1].target, BENCHES[1].peers, &ours, &theirs).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(meaning(&rows[0]), "100 GFLOP/s, peer 83");
        assert_eq!(rows[1]["met"], json!(true));
        assert_eq!(
            meaning(&rows[1]),
            "1.92 x faster, skipped work implies 2.00 (0.962)"
        );
    }

    #[test]
    fn a_cuda_graph_is_held_against_the_peers_graphs_and_the_rest_against_the_others() {
        let line = |text: &str| parse(text).unwrap();
        let ours = [
            line(r#"{"name": "a", "ms": [10.0], "threads": 2, "batch": 8, "steps": 20}"#),
            line(
                r#"{"name": "a-graph", "ms": [8.0], "threads": 2, "batch": 8, "steps": 20, "beside": "a"}"#,
            ),
        ];
        let of = |ms: f64| {
            let text = format!(r#"{{"name": "a", "ms": [{ms}], "threads": 2, "batch": 8}}"#);
            vec![line(&text)]
        };
        let peers = ["pytorch", GRAPH_PEER];
        let rows = compare(1., &peers, &ours, &[of(12.), of(7.)]).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r["name"].as_str(), r["peer"].as_str(), r["met"].as_bool()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some("a"), Some("pytorch"), Some(true)),
                (Some("a-graph"), Some(GRAPH_PEER), Some(false))
            ]
        );
        assert_eq!(meaning(&rows[0]), "0.025 s an image");
    }

    #[test]
    fn a_case_that_a_peer_did_not_run_is_named() {
        let ours = [parse(r#"{"name": "a", "ms": [1.0], "threads": 2, "batch": 32}"#).unwrap()];
        let theirs = vec![Vec::new(), Vec::new()];
        let error = compare(BENCHES[0].target, BENCHES[0].peers, &ours, &theirs).unwrap_err();
        assert_eq!(error.to_string(), "spikingjelly did not measure a");
    }
}
