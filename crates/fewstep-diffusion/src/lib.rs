//! Diffusion transformers on libtorch: noise schedules, samplers, guidance, DiT, autoencoders, loaders for published checkpoints,
//! training. Samplers and models know nothing of caches: a DiT asks a [`dit::Reuse`] for each sub-module's output, and the plain
//! answer is to compute it.
//!
//! ```
//! use fewstep_diffusion::{BetaSchedule, Dit, DitConfig, Guidance, Guided, NoiseSchedule, SamplerOptions};
//! use fewstep_diffusion::{dit::ComputeAll, random::ImageNoise, sampler::{SamplerName, sample}};
//!
//! let config = DitConfig { depth: 2, width: 24, heads: 3, ..DitConfig::named("S/2", 8, 4).ok_or("no such shape")? };
//! let dit = Dit::new(&config, 0)?; // random weights; `load::dit` opens a checkpoint
//! let sampler = SamplerOptions::new(SamplerName::Ddim, 4).build(&NoiseSchedule::new(&BetaSchedule::default())?)?;
//! let (guidance, mut compute_all) = (Guidance::scale(1.5), ComputeAll);
//! let mut denoiser = Guided::new(&dit, &tch::Tensor::from_slice(&[207i64, 360]), &guidance, &mut compute_all)?;
//! let mut noise = ImageNoise::new(0, [0, 1]); // seed 0, images 0 and 1
//! let x = noise.initial([4, 8, 8])?;
//! let latents = sample(&*sampler, &mut denoiser, &x, &mut noise, &mut |_, _| Ok(()))?;
//! assert_eq!(latents.size(), [2, 4, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod autoencoder;
pub mod dit;
mod error;
pub mod guidance;
pub mod load;
pub mod noise;
pub mod random;
pub mod sampler;
pub mod train;

pub use dit::{Convention, Dit, DitConfig, Reuse, SubModule};
pub use error::{Error, Result};
pub use guidance::{Guidance, Guided, Labels};
pub use noise::{BetaSchedule, NoiseSchedule};
pub use sampler::SamplerOptions;
