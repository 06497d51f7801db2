//! `fewstep sample`: images from a diffusion transformer, with or without a cache.

mod output;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use fewstep_diffusion::autoencoder::{self, Autoencoder, TinyAutoencoder};
use fewstep_diffusion::dit::{ComputeAll, Reuse};
use fewstep_diffusion::{Convention, Dit, DitConfig};
use fewstep_harmonica::{CacheCounts, CachePlan, CachedReuse, Planned, policy};
use fewstep_torch::{DeviceChoice, device};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::router::Rule;
use super::setting::{SamplingArgs, open_model, word};
use crate::progress::{Progress, ProgressMode};
use crate::sampling::{self, Job};
use output::{Output, Target};

/// Options of `fewstep sample`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Image k has the noise of seed and k alone: it is the same whatever --n, --batch and --device are, but for rounding.\n\n\
                  Example: fewstep sample --checkpoint digits --steps 20 --seed 0 --n 64 --out grid.png"
)]
pub struct Options {
    /// A checkpoint in any layout that fewstep reads, or `digits`, the model that it carries
    #[arg(long, value_name = "PATH")]
    checkpoint: String,
    /// Reuse what this router says: .safetensors, or .pt of HarmoniCa or Learning-to-Cache
    #[arg(long, value_name = "FILE", group = "policy")]
    router: Option<PathBuf>,
    /// Reuse what this cache plan says
    #[arg(long, value_name = "FILE", group = "policy")]
    plan: Option<PathBuf>,
    /// Compute every N-th step and reuse everything at the others (FORA)
    #[arg(long, value_name = "N", group = "policy")]
    fora: Option<usize>,
    /// Compute where the router is above X [default: what it was trained for; 0.1 for .pt]
    #[arg(
        long,
        value_name = "X",
        requires = "router",
        allow_negative_numbers = true
    )]
    threshold: Option<f64>,
    /// How images are sampled
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of the images' noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    n: u64,
    /// Classes that take turns, such as 0,1,2 [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    classes: Vec<i64>,
    /// One class for all images
    #[arg(long, value_name = "N", conflicts_with = "classes")]
    class: Option<i64>,
    /// Images at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of libtorch [default: what libtorch finds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: Option<i32>,
    /// Compute the model in bfloat16
    #[arg(long)]
    bf16: bool,
    /// Whose conventions the model follows: original or diffusers [default: what the checkpoint says, else original]
    #[arg(long, value_name = "NAME", value_parser = word::<Convention>)]
    convention: Option<Convention>,
    /// Autoencoder that makes pixels of latents: a diffusers folder, or taesd_decoder.pth beside taesd_encoder.pth
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// Where to, as often as needed: .png is a grid, .npz ADM's layout (float32 latents without --vae), else a folder of PNGs
    #[arg(long, value_name = "PATH", required = true)]
    out: Vec<PathBuf>,
    /// No progress, only the result
    #[arg(long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Samples.
///
/// # Errors
/// A flag, the checkpoint, the router or plan, or an output is at fault; one sentence.
pub fn sample(options: &Options) -> Result<()> {
    let sampler = options.sampling.sampler()?;
    let guidance = options.sampling.guidance()?;
    let targets = options
        .out
        .iter()
        .map(|path| Target::check(path))
        .collect::<Result<Vec<_>>>()?;
    let device = device::resolve(options.device.parse::<DeviceChoice>()?)?;
    if let Some(threads) = options.threads {
        tch::set_num_threads(threads);
    }
    options.sampling.check_scheduler(&options.checkpoint)?;
    let dit = open_model(&options.checkpoint, options.convention, device)?;
    let config = dit.config().clone();
    let labels = Labels::new(options, &config)?;
    let plan = plan(options, &dit)?;
    let vae = options
        .vae
        .as_deref()
        .map(|path| open_vae(path, &config, device))
        .transpose()?;
    let mut outputs = targets
        .into_iter()
        .map(|target| target.open(options.n, &config, vae.as_deref()))
        .collect::<Result<Vec<_>>>()?;
    let dit = match options.bf16 {
        true => dit.to(device, Kind::BFloat16)?,
        false => dit,
    };
    let job = Job {
        dit: &dit,
        sampler: sampler.as_ref(),
        guidance: &guidance,
        seed: options.seed,
        batch_size: options.batch as usize,
    };
    let done = run(
        options,
        &job,
        &labels,
        plan.as_ref(),
        vae.as_deref(),
        &mut outputs,
    )?;
    for output in outputs {
        output.finish()?;
    }
    report(options, &done, plan.as_ref(), device)
}

/// What a job did.
#[derive(Default)]
struct Done {
    seconds: f64,
    reused: u64,
    computed: u64,
    macs: u64,
    skipped_macs: u64,
}

impl Done {
    fn add(&mut self, counts: &CacheCounts) {
        self.reused += counts.reused.iter().sum::<u64>();
        self.computed += counts.computed.iter().sum::<u64>();
        self.macs += counts.macs;
        self.skipped_macs += counts.skipped_macs;
    }

    fn utilisation(&self) -> f64 {
        self.reused as f64 / (self.reused + self.computed).max(1) as f64
    }

    fn mac_saving(&self) -> f64 {
        self.skipped_macs as f64 / (self.skipped_macs + self.macs).max(1) as f64
    }
}

fn run(
    options: &Options,
    job: &Job<'_>,
    labels: &Labels,
    plan: Option<&CachePlan>,
    vae: Option<&dyn Autoencoder>,
    outputs: &mut [Output],
) -> Result<Done> {
    let config = job.dit.config();
    let mut cache = plan.map(|plan| CachedReuse::new(Planned(plan), config));
    let mode = ProgressMode::detect(options.quiet || options.json);
    let mut bar = Progress::new(mode, "sampling", options.n);
    let mut done = Done::default();
    let mut first = 0;
    while first < options.n {
        let next = options.n.min(first.saturating_add(options.batch));
        let classes = labels.of(first..next);
        let started = Instant::now();
        let mut compute_all = ComputeAll;
        let reuse: &mut dyn Reuse = match &mut cache {
            Some(cache) => cache,
            None => &mut compute_all,
        };
        let latents = job.batch(first, &classes, reuse, &mut |_, _| Ok(()))?;
        let images = match vae {
            Some(vae) => vae.decode(&latents)?.f_to_device(Device::Cpu)?,
            None => latents,
        };
        done.seconds += started.elapsed().as_secs_f64();
        if let Some(cache) = &cache {
            done.add(cache.counts());
        }
        write(outputs, first, &images, &classes, config.convention)?;
        first = next;
        bar.set(
            first,
            format_args!("{:.1} ms each", 1e3 * done.seconds / first as f64),
        );
    }
    bar.finish(format_args!("{} images", options.n));
    Ok(done)
}

fn write(
    outputs: &mut [Output],
    first: u64,
    images: &Tensor,
    classes: &[i64],
    convention: Convention,
) -> Result<()> {
    let mut pixels = None;
    for output in outputs {
        if output.wants_latents() {
            output.write_latents(images, classes)?;
            continue;
        }
        let pixels = match &pixels {
            Some(pixels) => pixels,
            None => pixels.insert(sampling::to_pixels_as(images, convention)?),
        };
        output.write(first as usize, pixels.view(), classes)?;
    }
    Ok(())
}

/// The plan that is followed; none computes everything.
fn plan(options: &Options, dit: &Dit) -> Result<Option<CachePlan>> {
    let conditions = |model| options.sampling.conditions(model, dit.config());
    if let Some(interval) = options.fora {
        let plan = policy::fora(&conditions(None)?, interval);
        return Ok(Some(plan.map_err(|e| anyhow::anyhow!("--fora: {e}"))?));
    }
    if options.plan.is_none() && options.router.is_none() {
        return Ok(None);
    }
    let job = conditions(Some(dit.fingerprint()?))?;
    if let Some(path) = &options.plan {
        return Ok(Some(policy::table(path, &job)?));
    }
    let path = options.router.as_deref().unwrap_or(Path::new(""));
    let (router, threshold) = super::router::open_for(path, &job, options.threshold)?;
    Ok(Some(Rule::of(&router).plan(&router, threshold)?))
}

/// The class of each image.
struct Labels(Vec<i64>);

impl Labels {
    fn new(options: &Options, config: &DitConfig) -> Result<Self> {
        let classes = match options.class {
            Some(class) => vec![class],
            None if options.classes.is_empty() => (0..config.classes).collect(),
            None => options.classes.clone(),
        };
        let flag = match options.class {
            Some(_) => "--class",
            None => "--classes",
        };
        // The row after the classes, where there is one, is "no class".
        let rows = config.label_rows();
        match classes.iter().find(|c| !(0..rows).contains(c)) {
            Some(class) => bail!("{flag}: expected 0 to {}, found {class}", rows - 1),
            None => Ok(Self(classes)),
        }
    }

    fn of(&self, images: std::ops::Range<u64>) -> Vec<i64> {
        images
            .map(|k| self.0[(k % self.0.len() as u64) as usize])
            .collect()
    }
}

/// The autoencoder at `path`, in float32.
fn open_vae(path: &Path, config: &DitConfig, device: Device) -> Result<Box<dyn Autoencoder>> {
    let vae: Box<dyn Autoencoder> = if path.is_dir() {
        autoencoder::load(path, device)?
    } else {
        let name = super::setting::file_name(path);
        if !name.contains("decoder") {
            bail!(
                "--vae: expected a folder of diffusers or taesd_decoder.pth, found {}",
                path.display()
            );
        }
        let encoder = path.with_file_name(name.replace("decoder", "encoder"));
        Box::new(TinyAutoencoder::load(&encoder, path)?.to(device, Kind::Float)?)
    };
    match vae.latent_channels() {
        channels if channels == config.channels => Ok(vae),
        channels => bail!(
            "--vae: expected latents of {} channels, which the model makes, found an autoencoder for {channels}",
            config.channels
        ),
    }
}

fn report(options: &Options, done: &Done, plan: Option<&CachePlan>, device: Device) -> Result<()> {
    let ms = 1e3 * done.seconds / options.n as f64;
    let (cur, saving) = (100. * done.utilisation(), 100. * done.mac_saving());
    let policy = plan.map_or(policy::NONE, CachePlan::policy);
    if options.json {
        return super::print(
            &json!({
                "images": options.n,
                "seconds": done.seconds,
                "latency_ms_per_image": ms,
                "policy": policy,
                "cur_percent": cur,
                "mac_saving_percent": saving,
                "sampler": options.sampling.options().label(),
                "guidance": options.sampling.guidance()?,
                "seed": options.seed,
                "batch_size": options.batch,
                "device": device::name(device),
                "precision": if options.bf16 { "bfloat16" } else { "float32" },
                "outputs": options.out,
            })
            .to_string(),
        );
    }
    let outputs: Vec<_> = options
        .out
        .iter()
        .map(|p| p.display().to_string())
        .collect();
    super::print(&format!(
        "{} images in {:.2} s, {ms:.1} ms each; {policy}: cache utilisation {cur:.1} %, {saving:.1} % of MACs saved; {}",
        options.n,
        done.seconds,
        outputs.join(", ")
    ))
}
