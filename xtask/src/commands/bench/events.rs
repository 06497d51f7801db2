//! `cargo xtask bench events`: the event-driven engine against onnxruntime and libtorch, and what a fresh process of each needs.
//!
//! Our side is `fewstep bench events`, and, where libtorch must not be in the process, two examples of fewstep-events: `roofline`, what the
//! machine has to give, and `cold`, a fresh process. The lines are those of the other benchmarks. Ours may have more:
//!
//! * `gadd`, `gbyte`: additions and bytes of weights of a sample, in billions; the table then says how many a second.
//! * `rate`: a row of the sweep over spike rates; `beside` names the case of the peers that it is held against.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use serde_json::{Value, json};

use super::{
    Options, Samples, compare_two, lines, measure, median_and_spread, python, verdict, write,
};
use crate::checkout::Checkout;
use crate::commands::drive;
use crate::libtorch;

pub(super) const NAME: &str = "events";

/// onnxruntime runs the ANN of the same architecture, quantised where the case is int8; libtorch the spiking network, densely.
const PEERS: [&str; 2] = ["onnxruntime", "libtorch"];

/// How often each program is started afresh, in a round.
const STARTS: usize = 3;
/// Samples of each figure of the roofline, in a round.
const ROOFLINE_SAMPLES: usize = 5;

/// The speed-up over a peer that is asked for.
fn target(case: &str, peer: &str) -> Option<f64> {
    match (case, peer) {
        ("vgg16-fp32-b1", "onnxruntime") => Some(5.),
        ("vgg16-fp32-b32", "onnxruntime") => Some(3.),
        ("vgg16-int8-b1", "onnxruntime") => Some(2.),
        ("vgg16-fp32-b1" | "resnet20-fp32-b1", "libtorch") => Some(6.),
        _ => None,
    }
}

/// Measures, writes `target/bench/events.json`, prints the tables.
pub(super) fn bench(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    libtorch::ensure(checkout, false, false)?;
    let programs = Programs {
        checkout,
        python: python(checkout)?,
        examples: build_examples(checkout)?,
        models: checkout.target().join("bench/events"),
        runs: &options.runs,
    };
    let counts = options.threads.map_or_else(|| vec![1, 2], |one| vec![one]);
    let (mut ours, mut theirs) = (Vec::new(), PEERS.map(|_| Vec::new()));
    let (mut roofline, mut starts) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds() {
        for &threads in &counts {
            let say = |who| {
                eprintln!(
                    "round {round} of {}, threads {threads}: {who}",
                    options.rounds()
                )
            };
            let common = options.common(threads);
            say("fewstep");
            measure(programs.ours(threads)?.args(&common), "fewstep", &mut ours)?;
            for (peer, samples) in PEERS.iter().zip(&mut theirs) {
                say(peer);
                measure(programs.peer(peer, threads).args(&common), peer, samples)?;
            }
            say("roofline");
            let mut command = programs.example("roofline");
            command.args([threads.to_string(), ROOFLINE_SAMPLES.to_string()]);
            measure(&mut command, "roofline", &mut roofline)?;
        }
        eprintln!("round {round} of {}: fresh processes", options.rounds());
        for _ in 0..STARTS {
            programs.start_each(&theirs[0], counts[0], &mut starts)?;
        }
    }

    let rows = compare(&ours, &theirs)?;
    let roofline: Vec<Value> = roofline.iter().map(alone).collect();
    let starts: Vec<Value> = starts.iter().map(Start::row).collect();
    let result = json!({"cases": rows, "roofline": roofline, "fresh_processes": starts});
    let path = write(checkout, NAME, &result)?;
    if options.json {
        println!("{result:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let (sweep, cases): (Vec<Value>, Vec<Value>) =
        rows.iter().cloned().partition(|row| !row["rate"].is_null());
    println!(
        "{}\n\nBy spike rate:\n{}",
        case_table(&cases),
        case_table(&sweep)
    );
    println!(
        "\nWhat the machine has to give:\n{}",
        roofline_table(&roofline)
    );
    println!("\nA fresh process and one image:\n{}", start_table(&starts));
    println!(
        "median ms a batch, interquartile range in brackets; {}; written to {}",
        verdict(&rows),
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// How to start each program.
struct Programs<'a> {
    checkout: &'a Checkout,
    python: PathBuf,
    /// Where both sides keep their model files.
    models: PathBuf,
    runs: &'a [PathBuf],
    /// Folder of fewstep-events' own programs, which have no libtorch around them.
    examples: PathBuf,
}

fn build_examples(checkout: &Checkout) -> Result<PathBuf> {
    let status = checkout
        .cargo()
        .args("build --quiet --package fewstep-events --examples".split(' '))
        .status()
        .context("cannot start cargo")?;
    ensure!(
        status.success(),
        "fewstep-events does not build; the reason is above"
    );
    Ok(checkout.target().join("debug/examples"))
}

impl Programs<'_> {
    fn ours(&self, threads: usize) -> Result<Command> {
        let mut command = drive::command(self.checkout)?;
        command
            .args(["bench", NAME, "--json", "--models"])
            .arg(&self.models);
        for run in self.runs {
            command.arg("--run").arg(run);
        }
        command.env("OMP_NUM_THREADS", threads.to_string());
        Ok(command)
    }

    fn peer(&self, peer: &str, threads: usize) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(self.checkout.root.join("xtask/bench/events_peer.py"))
            .args(["--peer", peer, "--models"])
            .arg(&self.models)
            .env("OMP_NUM_THREADS", threads.to_string());
        command
    }

    fn example(&self, name: &str) -> Command {
        Command::new(self.examples.join(name))
    }

    /// Starts each program once on each model, in turn. onnxruntime gets the quantised file that it ran fastest.
    fn start_each(
        &self,
        onnxruntime: &[Samples],
        threads: usize,
        into: &mut Vec<Start>,
    ) -> Result<()> {
        for peer in onnxruntime
            .iter()
            .filter(|s| s.batch == 1 && s.threads == threads as u64)
        {
            let model = peer.name.trim_end_matches("-b1");
            let variant = peer.line["variant"].as_str().unwrap_or_default();
            let file = match model.strip_suffix("int8") {
                Some(_) => format!("{model}-{variant}.onnx"),
                None => format!("{model}.onnx"),
            };
            let mut ours = self.example("cold");
            ours.arg(self.models.join(format!("{model}.events")))
                .arg(threads.to_string());
            Start::measure(model, "fewstep", &mut ours, into)?;
            let mut theirs = self.peer("onnxruntime", threads);
            theirs
                .args(["--cold", &file])
                .arg(format!("--threads={threads}"));
            Start::measure(model, "onnxruntime", &mut theirs, into)?;
        }
        Ok(())
    }
}

/// Fresh processes of one program on one model.
struct Start {
    model: String,
    who: &'static str,
    /// Milliseconds of the whole process, as its parent sees them.
    process_ms: Vec<f64>,
    /// What the process says of itself.
    lines: Vec<Value>,
}

impl Start {
    fn measure(
        model: &str,
        who: &'static str,
        command: &mut Command,
        into: &mut Vec<Self>,
    ) -> Result<()> {
        let clock = Instant::now();
        let printed = lines(command, who)?;
        let ms = clock.elapsed().as_secs_f64() * 1e3;
        let line = serde_json::from_str(&printed[0])?;
        match into.iter_mut().find(|s| s.model == model && s.who == who) {
            Some(known) => {
                known.process_ms.push(ms);
                known.lines.push(line);
            }
            None => into.push(Self {
                model: model.to_owned(),
                who,
                process_ms: vec![ms],
                lines: vec![line],
            }),
        }
        Ok(())
    }

    /// Medians of all figures.
    fn row(&self) -> Value {
        let median = |key: &str| {
            let figures: Vec<f64> = self
                .lines
                .iter()
                .filter_map(|line| line[key].as_f64())
                .collect();
            (!figures.is_empty()).then(|| median_and_spread(&figures).0)
        };
        let mut row = json!({
            "name": self.model, "who": self.who, "process_ms": median_and_spread(&self.process_ms).0,
        });
        for key in [
            "file_bytes",
            "resident_before_bytes",
            "resident_bytes",
            "open_ms",
            "cold_ms",
        ] {
            row[key] = json!(median(key));
        }
        row
    }
}

/// Each of our cases beside each peer that has it.
fn compare(ours: &[Samples], theirs: &[Vec<Samples>]) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for our in ours {
        let beside = our.line["beside"].as_str().unwrap_or(&our.name);
        let before = rows.len();
        for (peer, samples) in PEERS.iter().zip(theirs) {
            let same = |their: &&Samples| their.name == beside && their.threads == our.threads;
            let Some(their) = samples.iter().find(same) else {
                continue;
            };
            ensure!(
                their.batch == our.batch,
                "{}: fewstep ran batch {}, {peer} batch {}",
                our.name,
                our.batch,
                their.batch
            );
            let asked = target(&our.name, peer).map(|speedup| 1. / speedup);
            let mut row = compare_two(our, peer, their, asked);
            row["variant"] = their.line["variant"].clone();
            row["rate"] = our.line["rate"].clone();
            rates(our, &mut row);
            rows.push(row);
        }
        ensure!(
            rows.len() > before,
            "no peer measured {beside} with {} threads",
            our.threads
        );
    }
    Ok(rows)
}

/// The row of something that only we measure.
fn alone(our: &Samples) -> Value {
    let (ms, spread) = median_and_spread(&our.ms);
    let mut row = json!({"name": our.name, "threads": our.threads, "ms": ms, "spread_ms": spread});
    rates(our, &mut row);
    row
}

/// What is done a second, where a line says what is done.
fn rates(our: &Samples, row: &mut Value) {
    let seconds = median_and_spread(&our.ms).0 / 1e3;
    for key in ["gadd", "gbyte"] {
        if let Some(work) = our.line[key].as_f64() {
            row[format!("{key}_per_s")] = json!(work / seconds);
        }
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}

/// A figure with this many decimals; nothing where there is none.
fn figure(row: &Value, key: &str, decimals: usize) -> String {
    row[key]
        .as_f64()
        .map_or(String::new(), |f| format!("{f:.decimals$}"))
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn case_table(rows: &[Value]) -> Table {
    let mut table = new_table(&[
        "case",
        "threads",
        "ours",
        "peer",
        "its",
        "times faster",
        "asked",
        "met",
        "G add/s",
        "GB/s",
    ]);
    let inverse = |row: &Value, key: &str| {
        row[key]
            .as_f64()
            .map_or(String::new(), |f| format!("{:.2}", 1. / f))
    };
    let time = |row: &Value, who: &str| {
        format!(
            "{} ({})",
            figure(row, &format!("{who}_ms"), 2),
            figure(row, &format!("{who}_spread_ms"), 2)
        )
    };
    for row in rows {
        table.add_row([
            text(row, "name"),
            row["threads"].to_string(),
            time(row, "ours"),
            format!("{} {}", text(row, "peer"), text(row, "variant")),
            time(row, "peer"),
            inverse(row, "ratio"),
            inverse(row, "target"),
            row["met"]
                .as_bool()
                .map_or("", |met| if met { "yes" } else { "NO" })
                .to_owned(),
            figure(row, "gadd_per_s", 1),
            figure(row, "gbyte_per_s", 1),
        ]);
    }
    table
}

fn roofline_table(rows: &[Value]) -> Table {
    let mut table = new_table(&["what", "threads", "G add/s", "GB/s"]);
    for row in rows {
        table.add_row([
            text(row, "name"),
            row["threads"].to_string(),
            figure(row, "gadd_per_s", 1),
            figure(row, "gbyte_per_s", 1),
        ]);
    }
    table
}

fn start_table(rows: &[Value]) -> Table {
    let mut table = new_table(&[
        "model",
        "by",
        "file, MB",
        "resident before, MB",
        "after",
        "open, ms",
        "open to result",
        "whole process",
    ]);
    let megabytes = |row: &Value, key: &str| {
        row[key]
            .as_f64()
            .map_or(String::new(), |bytes| format!("{:.1}", bytes / 1e6))
    };
    for row in rows {
        table.add_row([
            text(row, "name"),
            text(row, "who"),
            megabytes(row, "file_bytes"),
            megabytes(row, "resident_before_bytes"),
            megabytes(row, "resident_bytes"),
            figure(row, "open_ms", 1),
            figure(row, "cold_ms", 1),
            figure(row, "process_ms", 0),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::samples::parse;
    use super::*;

    fn line(text: &str) -> Samples {
        parse(text).unwrap()
    }

    #[test]
    fn each_case_meets_the_peers_that_have_it_and_a_sweep_its_named_case() {
        let ours = [
            line(
                r#"{"name": "vgg16-fp32-b1", "ms": [2.0], "threads": 1, "batch": 1, "gadd": 0.02, "gbyte": 0.01}"#,
            ),
            line(r#"{"name": "vgg16-int8-b1", "ms": [2.0], "threads": 1, "batch": 1}"#),
            line(
                r#"{"name": "vgg16-fp32-b1-rate-0.5", "ms": [9.0], "threads": 1, "batch": 1, "rate": 0.5, "beside": "vgg16-fp32-b1"}"#,
            ),
        ];
        let theirs = [
            vec![
                line(r#"{"name": "vgg16-fp32-b1", "ms": [16.0], "threads": 1, "batch": 1}"#),
                line(r#"{"name": "vgg16-fp32-b1", "ms": [1.0], "threads": 2, "batch": 1}"#),
                line(r#"{"name": "vgg16-int8-b1", "ms": [3.0], "threads": 1, "batch": 1}"#),
            ],
            vec![line(
                r#"{"name": "vgg16-fp32-b1", "ms": [10.0], "threads": 1, "batch": 1}"#,
            )],
        ];
        let rows = compare(&ours, &theirs).unwrap();
        let said: Vec<_> = rows
            .iter()
            .map(|row| (text(row, "name"), text(row, "peer"), row["met"].as_bool()))
            .collect();
        let row = |name: &str, peer: &str, met| (name.to_owned(), peer.to_owned(), met);
        assert_eq!(
            said,
            [
                row("vgg16-fp32-b1", "onnxruntime", Some(true)),
                row("vgg16-fp32-b1", "libtorch", Some(false)),
                row("vgg16-int8-b1", "onnxruntime", Some(false)),
                row("vgg16-fp32-b1-rate-0.5", "onnxruntime", None),
                row("vgg16-fp32-b1-rate-0.5", "libtorch", None),
            ]
        );
        assert_eq!(figure(&rows[0], "gadd_per_s", 1), "10.0");
        assert_eq!(figure(&alone(&ours[0]), "gbyte_per_s", 1), "5.0");
    }

    #[test]
    fn a_case_that_no_peer_ran_is_named() {
        let ours = [line(
            r#"{"name": "a", "ms": [1.0], "threads": 2, "batch": 1}"#,
        )];
        let error = compare(&ours, &[Vec::new(), Vec::new()]).unwrap_err();
        assert_eq!(error.to_string(), "no peer measured a with 2 threads");
    }
}
