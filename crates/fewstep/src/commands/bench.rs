//! `fewstep bench NAME`: our side of a benchmark, one JSON line a case, in the form that the peers' scripts print.

mod distributed;
mod dit_xl;
mod events;
mod sampling;
mod sdt;
mod spiking;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use fewstep_torch::{DeviceChoice, Precision, device, profile};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{print, tell};
use crate::report::{Style, text};

/// Options of `fewstep bench`.
#[derive(Args)]
#[command(
    after_help = "Example: fewstep bench sampling --threads 2 --samples 5\n\nOn a GPU: fewstep bench dit-xl --device cuda:0 --steps 20 --steps 50 \
                  --resolution 256 --resolution 512 --json"
)]
pub struct Options {
    /// Which one: spiking, sampling, events, distributed (a rank of it), dit-xl or sdt
    pub name: String,
    /// For spiking, sampling, dit-xl and sdt: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// For spiking, sampling and dit-xl with --steps: run one step of each case under libtorch's profiler as well, print where its time goes, and leave
    /// traces (for chrome://tracing or Perfetto) there
    #[arg(long, value_name = "FOLDER")]
    pub profile: Option<PathBuf>,
    /// Threads of libtorch; for `events` of the engine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1024))]
    pub threads: i32,
    /// Steps timed; for `sampling` whole runs of a sampler, for `events` batches (ten times as many of one image)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Steps before them; for `sampling` runs with two whole steps
    #[arg(long, default_value_t = 1)]
    pub warmup: u32,
    /// JSON lines, the only form of all but `sdt` and `dit-xl` without --steps
    #[arg(long)]
    pub json: bool,
    /// For spiking and dit-xl: the number format of matrix products and convolutions, for sdt float32 or tf32
    #[arg(long, value_name = "FORMAT", default_value = "float32", value_parser = super::check::precision)]
    pub precision: Precision,
    /// For spiking: inference at T = 1 as well, launched and recorded as a CUDA graph (which a CPU does again); for dit-xl: graphs on a CPU
    /// too
    #[arg(long)]
    pub cuda_graph: bool,
    /// For dit-xl: batches in so many steps of DDIM, uncached and with cache plans, may be repeated [default: one image in 3 steps]; for sdt
    /// steps of a trajectory [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1000))]
    pub steps: Vec<u64>,
    /// For dit-xl with --steps: pixels a side, may be repeated; for sdt
    #[arg(long, value_name = "PIXELS", default_values_t = [256])]
    pub resolution: Vec<i64>,
    /// For dit-xl with --steps: images at once; for sdt latents, which guidance doubles
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub batch: u64,
    /// For sdt: compute blocks again on the way back instead of keeping what they computed
    #[arg(long)]
    pub recompute: bool,
    /// For dit-xl and sdt: the shape
    #[arg(long, default_value = "XL/2")]
    pub model: String,
    /// For spiking: the network, vgg9 or vgg16
    #[arg(long, default_value = "vgg9", value_parser = ["vgg9", "vgg16"])]
    pub network: String,
    /// For `events`: a run whose network (vgg16 or resnet20) and test images take the place of made-up ones; for spiking with --cuda-graph a
    /// run whose last stage is T = 1; may be repeated
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
    let fixed = ["events", "distributed"].contains(&options.name.as_str());
    if fixed && (options.device != DeviceChoice::Cpu || options.profile.is_some()) {
        bail!("--device and --profile are for spiking, sampling, dit-xl and sdt");
    }
    // What would be ignored would be measured otherwise than it was asked for.
    let asked = [
        (
            options.precision != Precision::Float32,
            "--precision",
            &["spiking", "dit-xl", "sdt"][..],
        ),
        (options.cuda_graph, "--cuda-graph", &["spiking", "dit-xl"]),
        (!options.steps.is_empty(), "--steps", &["dit-xl", "sdt"]),
        (options.recompute, "--recompute", &["sdt"]),
        (options.network != "vgg9", "--network", &["spiking"]),
    ];
    for (is_asked, option, names) in asked {
        if is_asked && !names.contains(&options.name.as_str()) {
            bail!("{option} is for {}", names.join(", "));
        }
    }
    match options.name.as_str() {
        "spiking" => spiking::bench(options),
        "sampling" => sampling::bench(options),
        "events" => events::bench(options),
        "distributed" => distributed::bench(options),
        "dit-xl" => dit_xl::bench(options),
        "sdt" => sdt::bench(options),
        name => bail!(
            "no benchmark `{name}`; there are: spiking, sampling, events, distributed, dit-xl, sdt"
        ),
    }
}

impl Options {
    fn device(&self) -> Result<Device> {
        Ok(device::resolve(self.device)?)
    }

    /// A case's line, with more fields.
    fn say(&self, mut line: Value, more: Value) -> Result<()> {
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more);
        }
        print(&line.to_string())
    }

    /// Runs `step` once under the profiler, where one is asked for, and says what takes its time.
    fn profiled<T>(&self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<()> {
        let Some(folder) = &self.profile else {
            return Ok(());
        };
        std::fs::create_dir_all(folder).map_err(super::at(folder, "could not be made"))?;
        let trace = folder.join(format!("{name}.json"));
        let device = self.device()?;
        let start = Instant::now();
        let step = || step().map_err(Profiled);
        let (_, seen) = profile::profile(device, Some(&trace), step).map_err(|e| e.0)?;
        let wall = start.elapsed();
        let lines = seen.by_name();
        let share = |t: std::time::Duration| 100. * t.as_secs_f64() / wall.as_secs_f64();
        let rows: Vec<_> = lines
            .iter()
            .take(PROFILE_LINES)
            .map(|line| {
                [
                    line.name.chars().take(60).collect::<String>(),
                    if line.on_device { "GPU" } else { "CPU" }.to_owned(),
                    line.calls.to_string(),
                    format!("{:.2}", line.own_time.as_secs_f64() * 1e3),
                    format!("{:.1}", share(line.own_time)),
                ]
            })
            .collect();
        let sum = |on_device: bool| -> f64 {
            let of = lines.iter().filter(|l| l.on_device == on_device);
            share(of.map(|l| l.own_time).sum())
        };
        let on_gpu = match device {
            Device::Cpu => String::new(),
            _ => format!(
                ", kernels on the GPU {:.0} %; {} reads of a value wait for it",
                sum(true),
                seen.calls("aten::_local_scalar_dense")
            ),
        };
        tell(&format!(
            "{name}: one step, {:.2} ms under the profiler; operators take {:.0} % of it{on_gpu}; trace: {}",
            wall.as_secs_f64() * 1e3,
            sum(false),
            trace.display()
        ));
        let header = [
            "operator or kernel",
            "on",
            "calls",
            "own ms",
            "% of the step",
        ];
        tell(&text(&header, &rows, Style::Plain));
        Ok(())
    }
}

/// Lets an error of a step through the profiler.
struct Profiled(anyhow::Error);

impl From<fewstep_torch::Error> for Profiled {
    fn from(e: fewstep_torch::Error) -> Self {
        Self(e.into())
    }
}

const PROFILE_LINES: usize = 15;

/// Milliseconds of each plain product of two 1024 × 1024 matrices: what the machine has to give, 2.147 GFLOP each.
fn product(options: &Options) -> Result<Vec<f64>> {
    let device = options.device()?;
    let a = Tensor::f_rand([1024, 1024], (Kind::Float, device))?;
    (0..options.warmup + 10 * options.samples)
        .map(|_| {
            let start = Instant::now();
            let product = a.f_matmul(&a)?;
            wait(&product)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        })
        .skip(options.warmup as usize)
        .collect()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Waits until a GPU has computed it, by reading one element.
fn wait(tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cuda() {
        let _ = tensor.f_flatten(0, -1)?.f_get(0)?.f_double_value(&[])?;
    }
    Ok(())
}
