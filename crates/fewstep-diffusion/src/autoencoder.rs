//! Autoencoders: images to latents and back. [`AutoencoderKl`] is Stable Diffusion's (arXiv 2112.10752), [`TinyAutoencoder`] the
//! small one that is trained to agree with it (TAESD).
//!
//! Images are `[N, 3, H, W]` from −1 to 1, latents are those that the diffusion model sees, so the published scale is applied here
//! and nowhere else. Nothing here records gradients.

pub(crate) mod kl;
mod layers;
mod tiny;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::random::NoiseSource;
use crate::{Convention, Error, Result, load};

pub use kl::{AutoencoderKl, KlConfig, Posterior};
pub use tiny::{TinyAutoencoder, TinyConfig};

/// Pixels of the images that are encoded or decoded at once: four of 256×256, one of 512×512. Stable Diffusion's decoder holds
/// about 1 GiB then, whatever the batch.
const PIXELS_AT_ONCE: i64 = 512 * 512;

/// Images to latents and back.
pub trait Autoencoder {
    /// Latents `[N, C, H / factor, W / factor]`, float32, of images `[N, 3, H, W]`: their mean, or a sample with the noise of call
    /// 0. An autoencoder without a distribution draws none.
    ///
    /// # Errors
    /// Images of another shape, or libtorch refuses.
    fn encode(&self, images: &Tensor, noise: Option<&mut dyn NoiseSource>) -> Result<Tensor>;

    /// Images `[N, 3, H, W]`, float32 and about −1 to 1, of latents `[N, C, H / factor, W / factor]`.
    ///
    /// # Errors
    /// Latents of another shape, or libtorch refuses.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;

    /// Channels of the latents.
    fn latent_channels(&self) -> i64;

    /// Height and width of an image over those of its latents.
    fn factor(&self) -> i64;
}

/// The autoencoder of a folder of diffusers in float32, from its `vae/` or that folder itself: the tiny one where config.json says so.
///
/// # Errors
/// As [`AutoencoderKl::load`].
pub fn load(folder: &Path, device: Device) -> Result<Box<dyn Autoencoder>> {
    let config = config_file(folder);
    let text = std::fs::read_to_string(&config).map_err(|e| Error::File {
        path: config,
        reason: e.to_string(),
    })?;
    if text.contains("\"AutoencoderTiny\"") {
        let tensors = load::vae(folder)?.tensors;
        let tiny = TinyAutoencoder::from_tensors(tensors, &folder.display().to_string())?;
        return Ok(Box::new(tiny.to(device, Kind::Float)?));
    }
    let kl = AutoencoderKl::load(folder)?;
    Ok(Box::new(kl.to(device, Kind::Float)?))
}

fn config_file(folder: &Path) -> std::path::PathBuf {
    let inner = folder.join("vae");
    let folder = if inner.is_dir() { &inner } else { folder };
    folder.join("config.json")
}

/// Images `[N, C, H, W]` from −1 to 1 as bytes `[N, H, W, C]`. Both conventions round to the nearest byte; where two are as near,
/// the original takes the larger and diffusers the even one.
///
/// # Errors
/// libtorch refuses.
pub fn to_pixels(images: &Tensor, convention: Convention) -> Result<Tensor> {
    let images = images.f_to_kind(Kind::Float)?;
    let numbers = match convention {
        Convention::Original => images
            .f_mul_scalar(127.5)?
            .f_add_scalar(128.)?
            .f_clamp(0., 255.)?,
        Convention::Diffusers => images
            .f_div_scalar(2.)?
            .f_add_scalar(0.5)?
            .f_clamp(0., 1.)?
            .f_mul_scalar(255.)?
            .f_round()?,
    };
    Ok(numbers
        .f_to_kind(Kind::Uint8)?
        .f_permute([0, 2, 3, 1])?
        .f_contiguous()?)
}

/// `run` over as many of `x` `[N, …]` at once as have [`PIXELS_AT_ONCE`], for images of `pixels` each.
fn in_slices(x: &Tensor, pixels: i64, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let at_once = (PIXELS_AT_ONCE / pixels.max(1)).max(1);
    if x.size()[0] <= at_once {
        return run(x);
    }
    let parts = x.f_split(at_once, 0)?;
    let done = parts.iter().map(run).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&done, 0)?)
}

/// The number of pixels of each image, where `images` is `[N, 3, H, W]` with sides that `factor` divides.
fn image_pixels(images: &Tensor, channels: i64, factor: i64) -> Result<i64> {
    match images.size()[..] {
        [_, c, h, w] if c == channels && h > 0 && w > 0 && h % factor == 0 && w % factor == 0 => {
            Ok(h * w)
        }
        _ => Err(Error::Shape {
            what: "images",
            expected: format!("[N, {channels}, H, W] with H and W multiples of {factor}"),
            found: images.size(),
        }),
    }
}

/// The number of pixels of each image that `latents` `[N, C, h, w]` decode to.
fn decoded_pixels(latents: &Tensor, channels: i64, factor: i64) -> Result<i64> {
    match latents.size()[..] {
        [_, c, h, w] if c == channels && h > 0 && w > 0 => Ok(h * w * factor * factor),
        _ => Err(Error::Shape {
            what: "latents",
            expected: format!("[N, {channels}, H / {factor}, W / {factor}]"),
            found: latents.size(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_big_batch_runs_in_slices_and_keeps_its_order() {
        let x = Tensor::arange(10, (Kind::Float, Device::Cpu)).view([10, 1]);
        let seen = RefCell::new(Vec::new());
        let run = |part: &Tensor| {
            seen.borrow_mut().push(part.size()[0]);
            Ok(part * 2.)
        };
        let out = in_slices(&x, 256 * 256, run).unwrap();
        assert_eq!(out, &x * 2.);
        assert_eq!(seen.take(), [4, 4, 2]);
        // An image that is larger than a slice still runs.
        let _ = in_slices(&x, 2048 * 2048, run).unwrap();
        assert_eq!(seen.take(), [1; 10]);
    }
}
