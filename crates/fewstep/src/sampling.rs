//! Sampling jobs: many images, a batch at a time.

use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::load::{self, LoadOptions};
use fewstep_diffusion::random::{ImageNoise, NoiseSource};
use fewstep_diffusion::sampler::{self, Call, Prediction, Sampler};
use fewstep_diffusion::{
    BetaSchedule, Convention, Dit, Error, Guidance, Guided, Labels, Result, Reuse, SamplerOptions,
};
use fewstep_harmonica::{CachePlan, CachedReuse, Planned};
use fewstep_torch::Replay;
use std::path::Path;

use ndarray::Array4;
use tch::{Device, Kind, Tensor};

/// The DiT that fewstep carries, trained by `configs/harmonica/digits-dit.toml`.
const DIGITS: &[u8] = include_bytes!("../../../configs/harmonica/weights/digits-dit.safetensors");

/// A trained DiT: a file or folder in any layout that `fewstep_diffusion::load` reads, or `digits`, the one that fewstep carries.
///
/// # Errors
/// There is none, or it is none; or the device lacks the memory.
pub fn open_model(checkpoint: &str, convention: Convention, device: Device) -> Result<Dit> {
    let dit = match checkpoint {
        "digits" => Dit::from_bytes(DIGITS, Path::new("the carried DiT"))?,
        _ => load::dit(
            Path::new(checkpoint),
            &LoadOptions {
                convention,
                ..LoadOptions::default()
            },
        )?,
    };
    dit.to(device, Kind::Float)
}

/// What plans and routers call a sampler: its label, and the noise schedule where it is not the default one.
pub fn sampler_label(options: &SamplerOptions, noise: &BetaSchedule) -> String {
    match noise == &BetaSchedule::default() {
        true => options.label(),
        false => format!("{}, noise {}", options.label(), serde_json::json!(noise)),
    }
}

/// A folder of diffusers says how its model was trained; sampling it otherwise gives noise.
///
/// # Errors
/// It says something else than `noise` and `prediction`, or can't be read.
pub fn check_scheduler(
    checkpoint: &str,
    noise: &BetaSchedule,
    prediction: Prediction,
) -> Result<()> {
    let folder = Path::new(checkpoint);
    if !folder.join("scheduler").is_dir() {
        return Ok(());
    }
    let found = load::scheduler(folder)?;
    if found.betas == *noise && found.prediction == prediction {
        return Ok(());
    }
    let words = |noise: &BetaSchedule, prediction: Prediction| {
        let (noise, prediction) = (serde_json::json!(noise), serde_json::json!(prediction));
        format!("noise {noise} and prediction {prediction}")
    };
    Err(Error::File {
        path: folder.join("scheduler"),
        reason: format!(
            "the model was trained with {}, and is to be sampled with {}",
            words(&found.betas, found.prediction),
            words(noise, prediction)
        ),
    })
}

/// What is sampled, and how.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The model.
    pub dit: &'a Dit,
    /// The sampler.
    pub sampler: &'a dyn Sampler,
    /// The guidance.
    pub guidance: &'a Guidance,
    /// Seed of the images' noise.
    pub seed: u64,
    /// Images in a batch.
    pub batch_size: usize,
}

impl Job<'_> {
    /// Image k has `labels[k]`; `[N, C, H, W]` on the CPU. A cache forgets everything between batches.
    ///
    /// # Errors
    /// Labels or guidance that the model does not have, or libtorch refuses.
    pub fn sample(&self, labels: &[i64], mut reuse: Option<&mut dyn Reuse>) -> Result<Tensor> {
        let mut all = Vec::new();
        for (batch, labels) in labels.chunks(self.batch_size.max(1)).enumerate() {
            let first = (batch * self.batch_size.max(1)) as u64;
            let mut compute_all = ComputeAll;
            let reuse: &mut dyn Reuse = match &mut reuse {
                Some(reuse) => *reuse,
                None => &mut compute_all,
            };
            all.push(self.batch(first, labels, reuse, &mut |_, _| Ok(()))?);
        }
        Ok(Tensor::f_cat(&all, 0)?)
    }

    /// Images `first..` with these labels; `watch` sees the latents after each call, where the model is.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn batch(
        &self,
        first: u64,
        labels: &[i64],
        reuse: &mut dyn Reuse,
        watch: &mut dyn FnMut(&Call, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let mut noise = ImageNoise::new(self.seed, first..first + labels.len() as u64);
        let x = self.initial(first, labels.len())?;
        let labels = Tensor::f_from_slice(labels)?;
        let mut denoiser = Guided::new(self.dit, &labels, self.guidance, reuse)?;
        let x = sampler::sample(self.sampler, &mut denoiser, &x, &mut noise, watch)?;
        Ok(x.f_to_device(Device::Cpu)?)
    }

    /// The noise that images `first..` begin with, where the model is.
    fn initial(&self, first: u64, images: usize) -> Result<Tensor> {
        let c = self.dit.config();
        let noise = ImageNoise::new(self.seed, first..first + images as u64);
        let x = noise.initial([c.channels, c.input_size, c.input_size])?;
        Ok(x.f_to_device(self.dit.device())?)
    }
}

/// The sampling of whole batches, which on a GPU is recorded as one CUDA graph, all calls of the model together: for a static plan and a
/// sampler that draws no noise on its way. Elsewhere it is a [`Job`].
pub struct Recorded<'a> {
    job: Job<'a>,
    x: Tensor,
    labels: Labels,
    replay: Replay<'a, Tensor, Error>,
}

impl<'a> Recorded<'a> {
    /// For batches of as many images as there are labels. A GPU samples with these labels to record it; a CPU does nothing yet.
    ///
    /// # Errors
    /// As [`Job::sample`]; a sampler that draws noise; on a GPU, fewstep was built without CUDA's headers.
    pub fn new(job: Job<'a>, plan: Option<&'a CachePlan>, labels: &[i64]) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let x = job.initial(0, labels.len())?;
        let labels = Labels::new(job.dit, &Tensor::f_from_slice(labels)?)?;
        let mut cache = plan.map(|plan| CachedReuse::new(Planned(plan), job.dit.config()));
        let inputs = (x.shallow_clone(), labels.shallow_clone());
        let replay = Replay::new(job.dit.device(), move || {
            let _guard = tch::no_grad_guard();
            let mut compute_all = ComputeAll;
            let reuse: &mut dyn Reuse = match &mut cache {
                Some(cache) => cache,
                None => &mut compute_all,
            };
            let labels = inputs.1.shallow_clone();
            let mut denoiser = Guided::with_labels(job.dit, labels, job.guidance, reuse)?;
            sampler::sample(
                job.sampler,
                &mut denoiser,
                &inputs.0,
                &mut NoNoise,
                &mut |_, _| Ok(()),
            )
        })?;
        Ok(Self {
            job,
            x,
            labels,
            replay,
        })
    }

    /// Images `first..` with these labels, as many as in the first batch; `[N, C, H, W]` on the CPU.
    ///
    /// # Errors
    /// As [`Job::sample`].
    pub fn batch(&mut self, first: u64, labels: &[i64]) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.x.f_copy_(&self.job.initial(first, labels.len())?)?;
        let labels = Labels::new(self.job.dit, &Tensor::f_from_slice(labels)?)?;
        self.labels.set(&labels)?;
        Ok(self.replay.play()?.f_to_device(Device::Cpu)?)
    }
}

/// What is recorded can't draw from the CPU.
struct NoNoise;

impl NoiseSource for NoNoise {
    fn noise(&mut self, _: usize, _: &Tensor) -> Result<Tensor> {
        Err(Error::Option {
            option: "cuda-graph",
            expected: "a sampler that draws no noise on its way, such as ddim with eta 0".into(),
            found: "one that does".into(),
        })
    }
}

/// Labels 0, 1, … of `classes`, over and over.
pub fn labels_in_turn(images: u64, classes: usize) -> Vec<i64> {
    (0..images)
        .map(|i| (i % classes.max(1) as u64) as i64)
        .collect()
}

/// Numbers from −1 to 1 `[N, C, H, W]` as bytes (N, H, W, C), rounded as the official DiT does it.
///
/// # Errors
/// libtorch refuses.
pub fn to_pixels(x: &Tensor) -> Result<Array4<u8>> {
    to_pixels_as(x, Convention::Original)
}

/// The same, rounded as this convention does it.
///
/// # Errors
/// libtorch refuses.
pub fn to_pixels_as(x: &Tensor, convention: Convention) -> Result<Array4<u8>> {
    let bytes = fewstep_diffusion::autoencoder::to_pixels(x, convention)?;
    let size: Vec<usize> = bytes.size().iter().map(|&d| d as usize).collect();
    let pixels = Vec::<u8>::try_from(bytes.f_flatten(0, -1)?)?;
    Ok(Array4::from_shape_vec((size[0], size[1], size[2], size[3]), pixels).unwrap_or_default())
}
