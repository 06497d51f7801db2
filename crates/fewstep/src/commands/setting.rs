//! What `sample`, `plan make` and `router import` share: the model, the sampler and the guidance as flags, and the conditions that
//! they make.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use fewstep_diffusion::noise::Respacing;
use fewstep_diffusion::sampler::{Prediction, Sampler, SamplerName, Variance};
use fewstep_diffusion::{
    BetaSchedule, Convention, Dit, DitConfig, Guidance, NoiseSchedule, SamplerOptions,
};
use fewstep_harmonica::{CachePlan, Conditions};
use serde::de::DeserializeOwned;
use serde_json::json;
use tch::Device;

use crate::sampling;

/// Channels of the latents of every published DiT.
const LATENT_CHANNELS: i64 = 4;

/// How images are sampled.
#[derive(Args, Debug, Clone)]
pub struct SamplingArgs {
    /// ddim, ddpm, iddpm, dpm-solver++, euler or heun
    #[arg(long, value_name = "NAME", default_value = "ddim", value_parser = word::<SamplerName>)]
    sampler: SamplerName,
    /// Steps, 1 to 1000: calls of the model, two each with heun
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Share of DDPM's noise that ddim adds, 0 to 1
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.,
        allow_negative_numbers = true
    )]
    eta: f64,
    /// The noise that ddpm adds: fixed-small or fixed-large
    #[arg(long, value_name = "NAME", default_value = "fixed-small", value_parser = word::<Variance>)]
    variance: Variance,
    /// Let dpm-solver++ place its steps by Karras' noise levels
    #[arg(long)]
    karras: bool,
    /// How timesteps are chosen: published, ddim, leading, trailing or linspace
    #[arg(long, value_name = "NAME", default_value = "published", value_parser = word::<Respacing>)]
    respacing: Respacing,
    /// What the model predicts: epsilon, v or sample (euler and heun: always a velocity)
    #[arg(long, value_name = "NAME", default_value = "epsilon", value_parser = word::<Prediction>)]
    prediction: Prediction,
    /// Clamp predicted pixels to -1 … 1 (ddim, ddpm, iddpm; not for latents)
    #[arg(long)]
    clip_denoised: bool,
    /// The noise schedule of the model's training: linear, scaled-linear or cosine
    #[arg(long, value_name = "NAME", default_value = "linear", value_parser = noise)]
    noise: BetaSchedule,
    /// Scale of classifier-free guidance; 1 is none
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.5,
        allow_negative_numbers = true
    )]
    guidance: f64,
    /// Guide only at timesteps from A to B, both included
    #[arg(long, value_name = "A:B", value_parser = interval)]
    guidance_interval: Option<[f64; 2]>,
    /// How many channels are guided, from the first [default: 3 as published; with diffusers' convention all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    guidance_channels: Option<i64>,
}

impl SamplingArgs {
    /// The guidance.
    ///
    /// # Errors
    /// Names the flag that is out of range.
    pub(crate) fn guidance(&self) -> Result<Guidance> {
        let guidance = Guidance {
            scale: self.guidance,
            channels: self.guidance_channels,
            interval: self.guidance_interval,
        };
        guidance
            .validate()
            .map_err(|(key, reason)| match key {
                "scale" => anyhow!("--guidance: {reason}"),
                key => anyhow!("--guidance-{key}: {reason}"),
            })
            .map(|()| guidance)
    }

    /// The sampler's settings.
    pub(crate) fn options(&self) -> SamplerOptions {
        SamplerOptions {
            eta: self.eta,
            variance: self.variance,
            karras: self.karras,
            respacing: self.respacing,
            prediction: self.prediction,
            clip_denoised: self.clip_denoised,
            ..SamplerOptions::new(self.sampler, self.steps)
        }
    }

    /// The noise schedule of the model's training.
    pub(crate) fn noise(&self) -> BetaSchedule {
        self.noise
    }

    /// The sampler.
    ///
    /// # Errors
    /// Names the flag that is out of range, or that this sampler does not have.
    pub(crate) fn sampler(&self) -> Result<Box<dyn Sampler>> {
        let options = self.options();
        options
            .validate()
            .map_err(|(key, reason)| anyhow!("--{}: {reason}", key.replace('_', "-")))?;
        Ok(options.build(&NoiseSchedule::new(&self.noise)?)?)
    }

    /// # Errors
    /// The checkpoint's own folder says that it was trained with other noise or for another prediction.
    pub(crate) fn check_scheduler(&self, checkpoint: &str) -> Result<()> {
        Ok(sampling::check_scheduler(
            checkpoint,
            &self.noise,
            self.prediction,
        )?)
    }

    /// The conditions under which a model of this shape is sampled; `model` is its fingerprint.
    ///
    /// # Errors
    /// As [`guidance`](Self::guidance) and [`sampler`](Self::sampler).
    pub(crate) fn conditions(
        &self,
        model: Option<String>,
        shape: &DitConfig,
    ) -> Result<Conditions> {
        let sampler = self.sampler()?;
        let conditions = Conditions {
            model,
            sampler: sampling::sampler_label(&self.options(), &self.noise),
            timesteps: sampler.timesteps().iter().rev().copied().collect(),
            guidance: self.guidance()?,
            shape: shape.clone(),
        };
        conditions.validate()?;
        Ok(conditions)
    }
}

/// The model that a plan or router is made for.
#[derive(Args, Debug, Clone)]
pub struct TargetArgs {
    /// The model: a checkpoint in any layout that fewstep reads, or `digits`, the one that it carries
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "model",
        conflicts_with = "model"
    )]
    checkpoint: Option<String>,
    /// Whose conventions it follows: original or diffusers
    #[arg(long, value_name = "NAME", value_parser = word::<Convention>)]
    convention: Option<Convention>,
    /// Instead of a checkpoint, a published shape such as DiT-XL/2: fits any model of that shape
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Height and width of that shape's latents: 32 for 256 pixels, 64 for 512
    #[arg(long, value_name = "N", default_value_t = 32)]
    input_size: i64,
}

impl TargetArgs {
    /// What is made is made for this.
    ///
    /// # Errors
    /// No such model or shape, or a flag out of range.
    pub(crate) fn conditions(&self, sampling: &SamplingArgs) -> Result<Conditions> {
        // Before a large file is read.
        sampling.sampler()?;
        sampling.guidance()?;
        if let Some(name) = &self.model {
            let mut shape =
                DitConfig::named(name, self.input_size, LATENT_CHANNELS).ok_or_else(|| {
                    anyhow!(
                        "--model: expected a published shape such as DiT-XL/2 or S/4, found {name}"
                    )
                })?;
            shape.convention = self.convention.unwrap_or_default();
            shape
                .validate()
                .map_err(|(key, reason)| anyhow!("--{}: {reason}", key.replace('_', "-")))?;
            return sampling.conditions(None, &shape);
        }
        let checkpoint = self.checkpoint.as_deref().unwrap_or_default();
        sampling.check_scheduler(checkpoint)?;
        let dit = open_model(checkpoint, self.convention, Device::Cpu)?;
        sampling.conditions(Some(dit.fingerprint()?), dit.config())
    }
}

/// The model of `--checkpoint`.
///
/// # Errors
/// There is none, it is damaged, or it says itself that it follows another convention than the one asked for.
pub(crate) fn open_model(
    checkpoint: &str,
    convention: Option<Convention>,
    device: Device,
) -> Result<Dit> {
    let dit = sampling::open_model(checkpoint, convention.unwrap_or_default(), device)?;
    let own = dit.config().convention;
    match convention {
        Some(asked) if asked != own => bail!(
            "--convention: expected {}, as {checkpoint} says itself, found {}",
            name_of(own),
            name_of(asked)
        ),
        _ => Ok(dit),
    }
}

fn name_of(convention: Convention) -> &'static str {
    match convention {
        Convention::Original => "original",
        Convention::Diffusers => "diffusers",
    }
}

/// A value as a config names it.
pub(crate) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(json!(text)).map_err(|e| e.to_string())
}

fn noise(text: &str) -> Result<BetaSchedule, String> {
    serde_json::from_value(json!({ "name": text })).map_err(|e| e.to_string())
}

fn interval(text: &str) -> Result<[f64; 2], String> {
    let two = || {
        let (a, b) = text.split_once(':')?;
        Some([a.trim().parse().ok()?, b.trim().parse().ok()?])
    };
    two().ok_or_else(|| "expected two numbers such as 0:500".into())
}

/// `utilisation 37.50 % (420 of 1120), 36.20 % of MACs saved, as much work as 12.76 full forwards`.
pub(crate) fn figures(plan: &CachePlan) -> String {
    format!(
        "utilisation {:.2} % ({} of {}), {:.2} % of MACs saved, as much work as {:.2} full forwards",
        100. * plan.utilisation(),
        plan.reused(),
        plan.steps() * plan.modules(),
        100. * plan.mac_saving(),
        plan.full_forwards()
    )
}

/// `20 steps × 16 sub-modules of model 0123456789abcdef, ddim 20, guidance 1.5 at timesteps 0 to 500`.
pub(crate) fn described(conditions: &Conditions) -> String {
    let guidance = &conditions.guidance;
    let mut text = format!(
        "{} steps × {} sub-modules of {}, {}, guidance {}",
        conditions.steps(),
        conditions.modules(),
        match &conditions.model {
            Some(model) => format!("model {model}"),
            None => "any model of its shape".into(),
        },
        conditions.sampler,
        guidance.scale
    );
    if let Some([from, to]) = guidance.interval {
        text += &format!(" at timesteps {from} to {to}");
    }
    if let Some(channels) = guidance.channels {
        text += &format!(" on {channels} channels");
    }
    text
}

/// A file's name, for titles and sentences.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |n| n.to_string_lossy().into(),
    )
}
