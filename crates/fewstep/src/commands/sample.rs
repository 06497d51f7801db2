//! `fewstep sample`: images from a diffusion transformer, with or without a cache, by one process or by several ranks.
//!
//! Each command is a job: its images are divided into chunks, and each chunk becomes a shard in the job's folder. What was killed goes
//! on when the same command is given again. When all shards are there, the outputs are made of them, a shard at a time.
//!
//! Image k has the noise of the seed and k, and the class whose turn it is. On a CPU in float32 it is bitwise the same whatever the batch,
//! the chunks and the number of ranks (`fewstep_diffusion` keeps to kernels that do not go by the number of samples, and an autoencoder
//! decodes image by image). In bfloat16, on a GPU, or with other threads it is only close: docs/results/distributed.md says what was seen.

mod folder;
mod manifest;
mod output;
mod shard;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use fewstep_diffusion::autoencoder::{self, Autoencoder, TinyAutoencoder};
use fewstep_diffusion::dit::{ComputeAll, Reuse};
use fewstep_diffusion::{Convention, Dit, DitConfig};
use fewstep_harmonica::{CachePlan, CachedReuse, Planned, policy};
use fewstep_torch::{DeviceChoice, LIBTORCH_VERSION, Precision, device};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::ranks::{Here, RankOptions};
use super::router::Rule;
use super::setting::{SamplingArgs, open_model, word};
use crate::progress::{Progress, ProgressMode};
use crate::sampling::{Job, Recorded};
use folder::{Chunks, JobFolder};
use manifest::Manifest;
use output::Targets;
use shard::{Files, Kept};

/// Options of `fewstep sample`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Image k has the noise of seed and k alone: it is the same whatever --n, --batch and the number of ranks are (bitwise in \
                  float32 on a CPU, else but for rounding). A job that was killed goes on when it is started again.\n\n\
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
    /// Images at a time, at most those of a shard
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
    /// On a GPU, record the sampling of a batch as a CUDA graph and play it for each batch: for samplers that draw no noise on their way
    #[arg(long)]
    cuda_graph: bool,
    /// Compute products in TF32, which is faster than float32 and has 10 bits of its 23; on a GPU
    #[arg(long, conflicts_with = "bf16")]
    tf32: bool,
    /// Whose conventions the model follows: original or diffusers [default: what the checkpoint says, else original]
    #[arg(long, value_name = "NAME", value_parser = word::<Convention>)]
    convention: Option<Convention>,
    /// Autoencoder that makes pixels of latents: a diffusers folder, or taesd_decoder.pth beside taesd_encoder.pth
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// Where to, as often as needed: .png is a grid (of 1024 at most), .npz ADM's layout (float32 latents without --vae), else a folder
    /// of .npz shards
    #[arg(long, value_name = "PATH", required = true)]
    out: Vec<PathBuf>,
    /// In the folder, a PNG for each image instead
    #[arg(long)]
    png: bool,
    /// Images in a shard, which is what ranks share out and what is lost when one is killed
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    chunk: u64,
    /// No progress, only the result
    #[arg(long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// For several processes that share a job
    #[command(flatten)]
    ranks: RankOptions,
}

/// Samples.
///
/// # Errors
/// A flag, the checkpoint, the router or plan, or an output is at fault; another job is at work on the folder, or it is one of another
/// job; one sentence.
pub fn sample(options: &Options) -> Result<()> {
    // Ranks need not come to the end together: those that are left make what a lost one has not made.
    Here::meet(&options.ranks, |here| follow(options, here))
}

fn follow(options: &Options, here: &Here) -> Result<()> {
    let sampler = options.sampling.sampler()?;
    let guidance = options.sampling.guidance()?;
    let targets = Targets::check(&options.out, options.png)?;
    let device = device::resolve(here.device(options.device.parse::<DeviceChoice>()?))?;
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
    let kept = targets.kept(&config, vae.as_deref(), options.png)?;
    let manifest = manifest(options, &dit, &labels, plan.as_ref(), kept.files)?;
    here.same_config(&manifest)?;

    let (path, stays) = targets.folder();
    let chunks = Chunks {
        images: options.n,
        size: options.chunk,
    };
    let folder = JobFolder::open(
        &path,
        &toml::to_string(&manifest)?,
        chunks,
        kept.files.ending(),
        &here.group,
    )?;
    let dit = match options.bf16 {
        true => dit.to(device, Kind::BFloat16)?,
        false => dit,
    };
    let _tf32 = options.precision().tf32()?;
    let job = Job {
        dit: &dit,
        sampler: sampler.as_ref(),
        guidance: &guidance,
        seed: options.seed,
        batch_size: options.batch as usize,
    };
    let work = Work {
        job: &job,
        labels: &labels,
        plan: plan.as_ref(),
        vae: vae.as_deref(),
        kept: &kept,
        record: options.cuda_graph,
    };
    // Counted before the first of this run's shards can be there.
    let earlier = folder.images_there();
    here.group.barrier("looking for shards")?;
    let mode = ProgressMode::detect(options.quiet || options.json || !here.group.leads());
    let started = Instant::now();
    super::or_lower(work.run(&folder, earlier, mode), "--batch")?;
    let seconds = started.elapsed().as_secs_f64();

    let Some(folder) = folder.last()? else {
        return Ok(());
    };
    targets.make(&folder, &kept, &labels)?;
    if !stays {
        folder.remove();
    }
    let done = Done {
        images: options.n - earlier,
        seconds,
    };
    report(options, &done, plan.as_ref(), device)
}

/// What determines the images.
fn manifest(
    options: &Options,
    dit: &Dit,
    labels: &Labels,
    plan: Option<&CachePlan>,
    files: Files,
) -> Result<Manifest> {
    let device = device::name(dit.device());
    Ok(Manifest {
        fewstep: env!("CARGO_PKG_VERSION"),
        libtorch: LIBTORCH_VERSION,
        model: dit.fingerprint()?,
        convention: dit.config().convention,
        precision: options.precision().name(),
        device: device.split(':').next().unwrap_or_default().to_owned(),
        plan: manifest::plan(plan),
        vae: options.vae.as_deref().map(manifest::checksum).transpose()?,
        seed: options.seed.to_string(),
        images: options.n,
        chunk: options.chunk,
        classes: labels.0.clone(),
        files: if files == Files::Png { "png" } else { "npz" },
        sampler: options.sampling.options(),
        noise: options.sampling.noise(),
        guidance: options.sampling.guidance()?,
    })
}

/// How often a rank looks what others have made, for its progress.
const LOOK: Duration = Duration::from_secs(2);

/// What a run did, all ranks together.
struct Done {
    images: u64,
    seconds: f64,
}

/// How a rank makes shards.
struct Work<'a> {
    job: &'a Job<'a>,
    labels: &'a Labels,
    plan: Option<&'a CachePlan>,
    vae: Option<&'a dyn Autoencoder>,
    kept: &'a Kept,
    /// Whether whole batches are recorded.
    record: bool,
}

impl Work<'_> {
    /// Makes what is missing, until all of it is there; `earlier` images were there before.
    fn run(&self, folder: &JobFolder, earlier: u64, mode: ProgressMode) -> Result<()> {
        let Chunks { images, size } = folder.chunks();
        let mut bar = Progress::new(mode, "sampling", images);
        let mut cache = self
            .plan
            .map(|plan| CachedReuse::new(Planned(plan), self.job.dit.config()));
        if earlier > 0 && mode != ProgressMode::Silent {
            super::tell(&format!(
                "{}: {} of {} chunks are there",
                folder.path().display(),
                earlier.div_ceil(size),
                folder.chunks().count()
            ));
        }
        let mut recorded: Option<Recorded<'_>> = None;
        let started = Instant::now();
        let (mut there, mut looked) = (earlier, started);
        folder.fill(|chunk| {
            let range = folder.chunks().range(chunk);
            let count = range.end - range.start;
            let mut shard = self.kept.begin(&folder.shard(chunk), range.start, count)?;
            // Of all ranks; one look at the folder now and then.
            if mode != ProgressMode::Silent && looked.elapsed() > LOOK {
                (there, looked) = (folder.images_there(), Instant::now());
            }
            let mut first = range.start;
            while first < range.end {
                let next = range.end.min(first + self.job.batch_size as u64);
                let classes = self.labels.of(first..next);
                let mut compute_all = ComputeAll;
                let reuse: &mut dyn Reuse = match &mut cache {
                    Some(cache) => cache,
                    None => &mut compute_all,
                };
                let latents = if self.record && classes.len() == self.job.batch_size {
                    let recorded = match &mut recorded {
                        Some(recorded) => recorded,
                        None => recorded.insert(Recorded::new(*self.job, self.plan, &classes)?),
                    };
                    recorded.batch(first, &classes)?
                } else {
                    self.job.batch(first, &classes, reuse, &mut |_, _| Ok(()))?
                };
                let made = match self.vae {
                    Some(vae) => decode(vae, &latents, self.job.dit.device())?,
                    None => latents,
                };
                shard.write(&self.kept.images(&made)?, &classes)?;
                first = next;
                let now = there + first - range.start;
                let ms = 1e3 * started.elapsed().as_secs_f64() / (now - earlier).max(1) as f64;
                bar.set(now, format_args!("{ms:.1} ms each"));
            }
            there += count;
            shard.finish()
        })?;
        bar.finish(format_args!("{images} images"));
        Ok(())
    }
}

/// Pixels `[N, 3, H, W]` on the CPU. There, convolutions of several images could be rounded by other kernels than those of one.
fn decode(vae: &dyn Autoencoder, latents: &Tensor, device: Device) -> Result<Tensor> {
    let at_once = match device {
        Device::Cpu => 1,
        _ => latents.size()[0],
    };
    let parts = latents.f_split(at_once, 0)?;
    let pixels = parts
        .iter()
        .map(|part| {
            Ok(vae
                .decode(&part.f_to_device(device)?)?
                .f_to_device(Device::Cpu)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&pixels, 0)?)
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

impl Options {
    fn precision(&self) -> Precision {
        match (self.bf16, self.tf32) {
            (true, _) => Precision::Bfloat16,
            (_, true) => Precision::Tf32,
            _ => Precision::Float32,
        }
    }
}

fn report(options: &Options, done: &Done, plan: Option<&CachePlan>, device: Device) -> Result<()> {
    let ms = 1e3 * done.seconds / done.images.max(1) as f64;
    let cur = 100. * plan.map_or(0., CachePlan::utilisation);
    let saving = 100. * plan.map_or(0., CachePlan::mac_saving);
    let policy = plan.map_or(policy::NONE, CachePlan::policy);
    if options.json {
        return super::print(
            &json!({
                "images": options.n,
                "sampled": done.images,
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
                "precision": options.precision().name(),
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
    let earlier = match options.n - done.images {
        0 => String::new(),
        there => format!(" ({there} were there)"),
    };
    super::print(&format!(
        "{} images{earlier} in {:.2} s, {ms:.1} ms each; {policy}: cache utilisation {cur:.1} %, {saving:.1} % of MACs saved; {}",
        options.n,
        done.seconds,
        outputs.join(", ")
    ))
}
