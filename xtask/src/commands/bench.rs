//! `cargo xtask bench NAME`: ourselves and Python peers in turn, medians with spread, one verdict a line.
//!
//! Both sides print JSON lines `{"name", "ms": [one figure a sample], "threads", "batch"}`. A round runs each program
//! once, so that a machine that warms up or gets busy is unfair to all of them.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use serde_json::{Value, json};

use super::drive;
use crate::checkout::Checkout;
use crate::libtorch;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure: spiking
    name: String,
    /// Threads for every program [default: all of the machine]
    #[arg(long)]
    threads: Option<usize>,
    /// How often each program runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Timed steps a run
    #[arg(long, default_value_t = 3)]
    samples: usize,
    /// Steps before the timed ones
    #[arg(long, default_value_t = 1)]
    warmup: usize,
}

/// A benchmark: `fewstep bench NAME` against `xtask/bench/<script> --peer PEER`.
struct Bench {
    name: &'static str,
    script: &'static str,
    peers: &'static [&'static str],
    /// The largest ratio ours/peer that counts as met.
    target: f64,
}

const BENCHES: &[Bench] = &[Bench {
    name: "spiking",
    script: "spiking_peer.py",
    peers: &["spikingjelly", "snntorch"],
    target: 1.1,
}];

/// What the peers need; pinned.
const REQUIREMENTS: &str = include_str!("../../bench/requirements.txt");

/// All samples of one case by one program.
#[derive(Debug, PartialEq)]
struct Samples {
    name: String,
    threads: u64,
    batch: u64,
    ms: Vec<f64>,
}

/// Measures, writes `target/bench/NAME.json`, prints the table.
pub fn bench(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == options.name) else {
        let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!(
            "there is no benchmark {:?}; known: {}",
            options.name,
            known.join(", ")
        );
    };
    ensure!(
        options.rounds > 0 && options.samples > 0,
        "--rounds and --samples must be at least 1"
    );
    libtorch::ensure(checkout, false, false)?;
    let python = python(checkout)?;
    let threads = options
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let common = [
        format!("--threads={threads}"),
        format!("--samples={}", options.samples),
        format!("--warmup={}", options.warmup),
    ];

    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Samples>> = bench.peers.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: fewstep", options.rounds);
        let mut command = drive::command(checkout)?;
        command.args(["bench", bench.name, "--json"]).args(&common);
        measure(&mut command, "fewstep", &mut ours)?;
        for (peer, samples) in bench.peers.iter().zip(&mut theirs) {
            eprintln!("round {round} of {}: {peer}", options.rounds);
            let mut command = Command::new(&python);
            command
                .arg(checkout.root.join("xtask/bench").join(bench.script))
                .args(["--peer", peer])
                .args(&common);
            measure(&mut command, peer, samples)?;
        }
    }

    let rows = compare(bench, &ours, &theirs)?;
    let folder = checkout.target().join("bench");
    let path = folder.join(format!("{}.json", bench.name));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, format!("{:#}\n", Value::from(rows.clone()))))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", table(&rows));
    let missed = rows.iter().filter(|row| row["met"] == json!(false)).count();
    println!(
        "median ms a step, interquartile range in brackets; {}; written to {}",
        if missed == 0 {
            "every target is met".to_owned()
        } else {
            format!("{missed} of {} targets are missed", rows.len())
        },
        path.display()
    );
    Ok(ExitCode::SUCCESS)
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

/// Runs one program and adds its samples to those of its earlier rounds.
fn measure(command: &mut Command, who: &str, into: &mut Vec<Samples>) -> Result<()> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{who} ended with {}; its words are above",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut any = false;
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let samples = parse(line)
            .with_context(|| format!("{who} printed {line:?}, which is no measurement"))?;
        any = true;
        match into.iter_mut().find(|known| known.name == samples.name) {
            Some(known) => known.ms.extend(samples.ms),
            None => into.push(samples),
        }
    }
    ensure!(any, "{who} printed no measurement");
    Ok(())
}

/// One line of a program.
fn parse(line: &str) -> Result<Samples> {
    let value: Value = serde_json::from_str(line)?;
    let ms = value["ms"]
        .as_array()
        .context("`ms` is no list")?
        .iter()
        .map(|ms| {
            ms.as_f64()
                .filter(|ms| *ms > 0.0)
                .context("`ms` holds something that is no positive number")
        })
        .collect::<Result<Vec<f64>>>()?;
    ensure!(!ms.is_empty(), "`ms` is empty");
    Ok(Samples {
        name: value["name"]
            .as_str()
            .context("`name` is no text")?
            .to_owned(),
        threads: value["threads"]
            .as_u64()
            .context("`threads` is no number")?,
        batch: value["batch"].as_u64().context("`batch` is no number")?,
        ms,
    })
}

/// One row for each case and peer.
fn compare(bench: &Bench, ours: &[Samples], theirs: &[Vec<Samples>]) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for our in ours {
        for (peer, samples) in bench.peers.iter().zip(theirs) {
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
            let (our_ms, our_spread) = median_and_spread(&our.ms);
            let (their_ms, their_spread) = median_and_spread(&their.ms);
            let ratio = our_ms / their_ms;
            rows.push(json!({
                "name": our.name, "threads": our.threads, "batch": our.batch,
                "ours_ms": our_ms, "ours_spread_ms": our_spread,
                "peer": peer, "peer_ms": their_ms, "peer_spread_ms": their_spread,
                "ratio": ratio, "target": bench.target, "met": ratio <= bench.target,
            }));
        }
    }
    Ok(rows)
}

/// Median and interquartile range, both by linear interpolation between the sorted samples.
fn median_and_spread(samples: &[f64]) -> (f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (sorted.len() - 1) as f64;
        let (below, above) = (
            sorted[place.floor() as usize],
            sorted[place.ceil() as usize],
        );
        below + (above - below) * place.fract()
    };
    (at(0.5), at(0.75) - at(0.25))
}

/// The rows for people.
fn table(rows: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "case", "threads", "batch", "ours", "peer", "its", "ratio", "target", "met",
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
            row["target"].to_string(),
            if row["met"] == json!(true) {
                "yes"
            } else {
                "NO"
            }
            .to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_interpolate() {
        assert_eq!(median_and_spread(&[4.0, 1.0, 3.0, 2.0]), (2.5, 1.5));
        assert_eq!(median_and_spread(&[7.0]), (7.0, 0.0));
    }

    #[test]
    fn a_case_that_a_peer_did_not_run_is_named() {
        let ours = [parse(r#"{"name": "a", "ms": [1.0], "threads": 2, "batch": 32}"#).unwrap()];
        let theirs = vec![Vec::new(), Vec::new()];
        let error = compare(&BENCHES[0], &ours, &theirs).unwrap_err();
        assert_eq!(error.to_string(), "spikingjelly did not measure a");
    }

    #[test]
    fn a_line_without_samples_is_refused() {
        assert!(parse(r#"{"name": "a", "ms": [], "threads": 2, "batch": 32}"#).is_err());
        assert!(parse(r#"{"name": "a", "ms": [-1], "threads": 2, "batch": 32}"#).is_err());
    }
}
