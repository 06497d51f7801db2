//! `cargo xtask bench distributed`: training and sampling by one rank and by two, of ours and of PyTorch's.
//!
//! Our side is `fewstep bench distributed`, started once a rank, and `fewstep sample`, a whole job; the peer is
//! `xtask/bench/distributed_peer.py`. What counts is how many times as many images a second two ranks of one thread each make as
//! one rank of one thread. One rank of two threads stands beside it: the same cores without messages.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use serde_json::{Value, json};

use super::{Options, Samples, add, median_and_spread, python, verdict, write};
use crate::checkout::Checkout;
use crate::commands::{drive, launch};

pub(super) const NAME: &str = "distributed";

/// Ranks, and threads of each; the first is what the others are held against.
const SETUPS: [(usize, usize); 3] = [(1, 1), (2, 1), (1, 2)];

/// A job of the model that fewstep carries, one after the other.
const JOB: &str = "sample --checkpoint digits --steps 20 --guidance 1.5 --n 1536 --chunk 64 --batch 64 --device cpu --json";

/// The speed-up of two ranks that is asked for.
fn target(case: &str) -> f64 {
    if case.starts_with("vgg9") { 1.6 } else { 1.8 }
}

/// Who is measured.
const WHO: [&str; 2] = ["fewstep", "pytorch"];

/// Measures, writes `target/bench/distributed.json`, prints the table.
pub(super) fn bench(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    ensure!(
        options.threads.is_none(),
        "distributed runs one and two threads by itself; leave --threads out"
    );
    let python = python(checkout)?;
    let program = drive::program(checkout)?;
    let script = checkout.root.join("xtask/bench/distributed_peer.py");
    let folder = checkout.target().join("bench/distributed");
    // By setup, ours and the peer's.
    let mut all: [[Vec<Samples>; 2]; 3] = Default::default();
    for round in 1..=options.rounds() {
        for (&(ranks, threads), [ours, theirs]) in SETUPS.iter().zip(&mut all) {
            let say = |who| {
                eprintln!(
                    "round {round} of {}, {ranks} × {threads} threads: {who}",
                    options.rounds()
                );
            };
            let common = options.common(threads);
            say(WHO[0]);
            let rank = || {
                let mut command = Command::new(&program);
                command.args(["bench", NAME, "--json"]).args(&common);
                command
            };
            add(&start(ranks, threads, rank)?, WHO[0], ours)?;
            add(&[job(&program, &folder, ranks, threads)?], WHO[0], ours)?;
            say(WHO[1]);
            let rank = || {
                let mut command = Command::new(&python);
                command.arg(&script).args(&common);
                command
            };
            add(&start(ranks, threads, rank)?, WHO[1], theirs)?;
        }
    }
    let rows = rows(&all)?;
    let path = write(checkout, NAME, &Value::from(rows.clone()))?;
    if options.json {
        println!("{:#}", Value::from(rows));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", table(&rows));
    println!(
        "median ms a step or job, interquartile range in brackets; sent: the share of a step in which buckets of gradients were on their way, waited for: the part of it after backward; {}; written to {}",
        verdict(&rows),
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Ranks that were started; those still there are killed when this goes out of scope, so that none runs beside the next measurement.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Neither can fail in a way that something could be done about.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts the ranks and waits for all; the lines of JSON that they printed.
fn start(ranks: usize, threads: usize, rank: impl Fn() -> Command) -> Result<Vec<String>> {
    let port = launch::free_port(None)?;
    let mut started = Started(Vec::new());
    for number in 0..ranks {
        let mut command = rank();
        launch::place(&mut command, number, ranks, port);
        command
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        started.0.push(child);
    }
    let mut lines = Vec::new();
    while !started.0.is_empty() {
        let child = started.0.remove(0);
        let output = child.wait_with_output().context("cannot wait for a rank")?;
        ensure!(
            output.status.success(),
            "a rank ended with {}; its words are above",
            output.status
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().filter(|line| line.starts_with('{'));
        lines.extend(found.map(str::to_owned));
    }
    Ok(lines)
}

/// A whole job of `fewstep sample`, as a line of a benchmark.
fn job(program: &Path, folder: &Path, ranks: usize, threads: usize) -> Result<String> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let rank = || {
        let mut command = Command::new(program);
        command
            .args(JOB.split(' '))
            .arg(format!("--threads={threads}"))
            .arg("--out")
            .arg(folder);
        command
    };
    let lines = start(ranks, threads, rank)?;
    // Of one object over many lines only the first begins with a brace.
    let text = lines.concat();
    let done: Value = serde_json::from_str(&text)
        .with_context(|| format!("fewstep sample printed {text:?}, which is no report"))?;
    let seconds = done["seconds"].as_f64();
    let ms = 1e3 * seconds.with_context(|| format!("{text:?} does not say how long it took"))?;
    Ok(
        json!({"name": "digits-job", "ms": [ms], "threads": threads, "batch": done["sampled"]})
            .to_string(),
    )
}

fn rows(all: &[[Vec<Samples>; 2]; 3]) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for (place, who) in WHO.iter().enumerate() {
        for case in &all[0][place] {
            let (first, _) = median_and_spread(&case.ms);
            for ((ranks, threads), setup) in SETUPS.iter().zip(all) {
                let samples = setup[place]
                    .iter()
                    .find(|samples| samples.name == case.name)
                    .with_context(|| format!("{who} did not measure {}", case.name))?;
                let (ms, spread) = median_and_spread(&samples.ms);
                // Means over the steps of the last round, so held against that round's mean.
                let (sent, waited) = (&samples.line["sent"], &samples.line["waited"]);
                let last = samples.line["ms"].as_array().map_or(&[][..], Vec::as_slice);
                let mean = last.iter().filter_map(Value::as_f64).sum::<f64>() / last.len() as f64;
                let target = (*ranks > 1).then(|| target(&case.name));
                rows.push(json!({
                    "name": case.name, "who": who, "ranks": ranks, "threads": threads, "batch": samples.batch,
                    "ms": ms, "spread_ms": spread, "images_a_second": 1e3 * samples.batch as f64 / ms,
                    "speedup": first / ms,
                    "target": target, "met": target.filter(|_| place == 0).map(|target| first / ms >= target),
                    "sent_ms": sent, "waited_ms": waited,
                    "sent_share": sent.as_f64().map(|sent| sent / mean),
                    "waited_share": waited.as_f64().map(|waited| waited / mean),
                }));
            }
        }
    }
    Ok(rows)
}

fn table(rows: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "case",
        "by",
        "ranks",
        "threads",
        "ms",
        "images/s",
        "speed-up",
        "target",
        "met",
        "sent",
        "waited for",
    ]);
    for row in rows {
        let figure = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let share = |key: &str| {
            row[key]
                .as_f64()
                .map_or(String::new(), |share| format!("{:.1} %", 100. * share))
        };
        table.add_row([
            row["name"].as_str().unwrap_or_default().to_owned(),
            row["who"].as_str().unwrap_or_default().to_owned(),
            row["ranks"].to_string(),
            row["threads"].to_string(),
            format!("{:.0} ({:.0})", figure("ms"), figure("spread_ms")),
            format!("{:.1}", figure("images_a_second")),
            format!("{:.2}", figure("speedup")),
            row["target"]
                .as_f64()
                .map_or(String::new(), |target| format!("{target:.1}")),
            match row["met"].as_bool() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            }
            .to_owned(),
            share("sent_share"),
            share("waited_share"),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::samples::parse;

    #[test]
    fn two_ranks_are_held_against_one_and_only_ours_are_judged() {
        let setup = |ms: f64, more: &str| -> [Vec<Samples>; 2] {
            let line =
                format!(r#"{{"name": "vgg9-t1", "ms": [{ms}], "threads": 1, "batch": 64{more}}}"#);
            [vec![parse(&line).unwrap()], vec![parse(&line).unwrap()]]
        };
        let all = [
            setup(100., ""),
            setup(50., r#", "sent": 10, "waited": 5"#),
            setup(80., ""),
        ];
        let rows = rows(&all).unwrap();
        assert_eq!(rows.len(), 6);
        assert_eq!(
            (&rows[1]["speedup"], &rows[1]["met"]),
            (&json!(2.), &json!(true))
        );
        assert_eq!(
            (&rows[1]["sent_share"], &rows[1]["waited_share"]),
            (&json!(0.2), &json!(0.1))
        );
        assert_eq!(rows[1]["images_a_second"], json!(1280.));
        assert_eq!(
            (&rows[2]["speedup"], &rows[2]["met"]),
            (&json!(1.25), &Value::Null)
        );
        assert_eq!(
            (&rows[4]["who"], &rows[4]["met"]),
            (&json!("pytorch"), &Value::Null)
        );
    }
}
