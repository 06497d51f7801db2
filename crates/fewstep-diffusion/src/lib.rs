//! Diffusion transformers on libtorch: noise schedules, samplers, guidance, DiT, autoencoders, loaders for published checkpoints,
//! training. Samplers and models know nothing of caches: a DiT asks a [`dit::Reuse`] for each sub-module's output, and the plain
//! answer is to compute it.

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
