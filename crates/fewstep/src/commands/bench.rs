//! `fewstep bench NAME`: our side of a benchmark, one JSON line a case, in the form that the peers' scripts print.

mod distributed;
mod events;
mod sampling;
mod spiking;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use tch::{Device, Kind, Tensor};

/// Options of `fewstep bench`.
#[derive(Args)]
#[command(after_help = "Example: fewstep bench sampling --threads 2 --samples 5")]
pub struct Options {
    /// Which one: spiking, sampling, events, distributed (a rank of it) or dit-xl
    pub name: String,
    /// Threads of libtorch; for `events` of the engine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1024))]
    pub threads: i32,
    /// Steps timed; for `sampling` whole runs of a sampler, for `events` batches (ten times as many of one image)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Steps before them; for `sampling` runs with two whole steps
    #[arg(long, default_value_t = 1)]
    pub warmup: u32,
    /// JSON lines, the only form of all but `dit-xl`
    #[arg(long)]
    pub json: bool,
    /// For `events`: a run whose network (vgg16 or resnet20) and test images take the place of made-up ones; may be repeated
    #[arg(long = "run", value_name = "FOLDER")]
    pub runs: Vec<PathBuf>,
    /// For `events`: where to leave the model files
    #[arg(long, value_name = "FOLDER")]
    pub models: Option<PathBuf>,
}

/// Times the cases of one benchmark.
///
/// # Errors
/// An unknown name, or libtorch refuses.
pub fn bench(options: &Options) -> Result<()> {
    tch::set_num_threads(options.threads);
    match options.name.as_str() {
        "spiking" => spiking::bench(options),
        "sampling" => sampling::bench(options),
        "events" => events::bench(options),
        "distributed" => distributed::bench(options),
        "dit-xl" => sampling::dit_xl(options),
        name => bail!(
            "no benchmark `{name}`; there are: spiking, sampling, events, distributed, dit-xl"
        ),
    }
}

/// Milliseconds of each plain product of two 1024 × 1024 matrices: what the machine has to give, 2.147 GFLOP each.
fn product(options: &Options) -> Result<Vec<f64>> {
    let on = (Kind::Float, Device::Cpu);
    let a = Tensor::f_rand([1024, 1024], on)?;
    (0..options.warmup + 10 * options.samples)
        .map(|_| {
            let start = Instant::now();
            let _ = a.f_matmul(&a)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        })
        .skip(options.warmup as usize)
        .collect()
}
