//! What programs print: lines of JSON, and the samples of each case in them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// All samples of one case by one program.
#[derive(Debug, PartialEq)]
pub(super) struct Samples {
    pub(super) name: String,
    pub(super) threads: u64,
    pub(super) batch: u64,
    pub(super) ms: Vec<f64>,
    pub(super) gflop: Option<f64>,
    pub(super) judged: bool,
    /// The case of ours that this one is compared with, and the speed-up that is implied.
    pub(super) against: Option<(String, f64)>,
    /// The last line, for what only one benchmark has.
    pub(super) line: Value,
}

/// Runs one program and adds its samples to those of its earlier rounds.
pub(super) fn measure(command: &mut Command, who: &str, into: &mut Vec<Samples>) -> Result<()> {
    add(&lines(command, who)?, who, into)
}

/// Adds what a program printed to the samples of its earlier rounds.
pub(super) fn add(lines: &[String], who: &str, into: &mut Vec<Samples>) -> Result<()> {
    for line in lines {
        let samples = parse(line)
            .with_context(|| format!("{who} printed {line:?}, which is no measurement"))?;
        let same =
            |known: &&mut Samples| (&known.name, known.threads) == (&samples.name, samples.threads);
        match into.iter_mut().find(same) {
            Some(known) => {
                known.ms.extend(samples.ms);
                known.line = samples.line;
            }
            None => into.push(samples),
        }
    }
    Ok(())
}

/// Runs one program; the lines of JSON that it printed, at least one.
pub(super) fn lines(command: &mut Command, who: &str) -> Result<Vec<String>> {
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
    let lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(str::to_owned)
        .collect();
    ensure!(!lines.is_empty(), "{who} printed no measurement");
    Ok(lines)
}

/// One line of a program.
pub(super) fn parse(line: &str) -> Result<Samples> {
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
        gflop: value["gflop"].as_f64(),
        judged: value["judged"].as_bool().unwrap_or(true),
        against: value["against"]
            .as_str()
            .map(str::to_owned)
            .zip(value["implied_speedup"].as_f64()),
        line: value,
    })
}

/// Median and interquartile range, both by linear interpolation between the sorted samples.
pub(super) fn median_and_spread(samples: &[f64]) -> (f64, f64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_interpolate() {
        assert_eq!(median_and_spread(&[4.0, 1.0, 3.0, 2.0]), (2.5, 1.5));
        assert_eq!(median_and_spread(&[7.0]), (7.0, 0.0));
    }

    #[test]
    fn a_line_without_samples_is_refused() {
        assert!(parse(r#"{"name": "a", "ms": [], "threads": 2, "batch": 32}"#).is_err());
        assert!(parse(r#"{"name": "a", "ms": [-1], "threads": 2, "batch": 32}"#).is_err());
    }
}
