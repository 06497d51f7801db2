//! A fresh process that opens a model and runs one image: what that costs in time and memory, as one line of JSON.
//!
//! Example: cargo run --package fewstep-events --example cold -- vgg16-int8.events 1 (model, threads)

use std::env;
use std::fs;
use std::time::Instant;

use fewstep_events::{Images, Model, Options};

/// Resident memory of this process, as Linux counts it.
fn resident_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.ok_or("/proc/self/status has no line VmRSS")?.trim();
    Ok(1024 * kib.trim_end_matches("kB").trim().parse::<u64>()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = env::args().skip(1);
    let path = words.next().ok_or("expected a model file")?;
    let threads = words.next().map_or(Ok(1), |word| word.parse())?;
    let before = resident_bytes()?;
    let start = Instant::now();
    let model = Model::open(&path)?;
    let open = start.elapsed();
    // Noise: an even image makes few spikes.
    let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
    let image: Vec<u8> = (0..model.input().iter().product()).map(noise).collect();
    let mut scores = vec![0.; model.classes()];
    let options = Options {
        threads,
        ..Options::default()
    };
    model
        .session(options)?
        .run(Images::Pixels(&image), &mut scores)?;
    let cold = start.elapsed();
    if !scores.iter().all(|score| score.is_finite()) {
        return Err("the scores are not finite; the measurement is void".into());
    }
    println!(
        r#"{{"name": "{}", "file_bytes": {}, "resident_before_bytes": {before}, "resident_bytes": {}, "open_ms": {}, "cold_ms": {}}}"#,
        model.name(),
        fs::metadata(&path)?.len(),
        resident_bytes()?,
        open.as_secs_f64() * 1e3,
        cold.as_secs_f64() * 1e3,
    );
    Ok(())
}
