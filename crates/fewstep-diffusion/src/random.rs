//! Random numbers that belong to a place (an image of a job, a training step) and not to a generator that others draw from:
//! the same numbers on every device, for every batch size, in any order, and after a resume.

use fewstep_torch::seed::derive;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use tch::Tensor;

use crate::Result;

/// What numbers are drawn for; the first coordinate of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Noise of a sampled image.
    Sampling = 1,
    /// Noise, timesteps and dropped labels of a training step.
    Training = 2,
    /// Initial weights.
    Weights = 3,
    /// Whatever the learner of a cache draws.
    Learning = 4,
}

/// The generator of one place.
pub fn generator(seed: u64, what: Use, place: &[u64]) -> ChaCha8Rng {
    let place: Vec<u64> = std::iter::once(what as u64)
        .chain(place.iter().copied())
        .collect();
    ChaCha8Rng::seed_from_u64(derive(seed, &place))
}

/// Standard normal numbers of this shape, float32 on the CPU.
///
/// # Errors
/// libtorch can't allocate them.
pub fn normal(rng: &mut ChaCha8Rng, shape: &[i64]) -> Result<Tensor> {
    let n = shape.iter().product::<i64>().max(0) as usize;
    let numbers: Vec<f32> = StandardNormal.sample_iter(rng).take(n).collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
}

/// Numbers from −`bound` to `bound` of this shape, float32 on the CPU.
///
/// # Errors
/// libtorch can't allocate them.
pub fn uniform(rng: &mut ChaCha8Rng, shape: &[i64], bound: f64) -> Result<Tensor> {
    let n = shape.iter().product::<i64>().max(0) as usize;
    let one = || ((rng.next_u32() >> 8) as f64 / f64::from(1 << 23) - 1.) * bound;
    let numbers: Vec<f32> = std::iter::repeat_with(one)
        .take(n)
        .map(|v| v as f32)
        .collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
}

/// `n` whole numbers below `end`, int64 on the CPU.
///
/// # Errors
/// libtorch can't allocate them.
pub fn integers(rng: &mut ChaCha8Rng, n: i64, end: i64) -> Result<Tensor> {
    let end = end.max(1) as u64;
    // The bias of a 64-bit remainder is below 2^-50 for any number of classes or timesteps.
    let numbers: Vec<i64> = (0..n).map(|_| (rng.next_u64() % end) as i64).collect();
    Ok(Tensor::f_from_slice(&numbers)?)
}

/// Gives a sampler its noise. Samplers draw from nothing else.
pub trait NoiseSource {
    /// Standard normal noise `[N, C, H, W]` shaped like `like`, on its device. `call` 0 is the noise that sampling starts from,
    /// `call` k + 1 what the step after the denoiser's call k adds.
    ///
    /// # Errors
    /// libtorch can't allocate it.
    fn noise(&mut self, call: usize, like: &Tensor) -> Result<Tensor>;
}

/// Noise by image: image k of a job gets the same numbers whatever is sampled beside it.
#[derive(Debug, Clone)]
pub struct ImageNoise {
    seed: u64,
    images: Vec<u64>,
}

impl ImageNoise {
    /// For these images of the job `seed`, in the order of the batch.
    pub fn new(seed: u64, images: impl IntoIterator<Item = u64>) -> Self {
        Self {
            seed,
            images: images.into_iter().collect(),
        }
    }

    /// The noise that sampling starts from, `[N, shape…]` float32 on the CPU.
    ///
    /// # Errors
    /// libtorch can't allocate it.
    pub fn initial(&self, shape: [i64; 3]) -> Result<Tensor> {
        self.draw(0, &shape)
    }

    fn draw(&self, call: usize, shape: &[i64]) -> Result<Tensor> {
        let images = self
            .images
            .iter()
            .map(|&image| {
                let mut rng = generator(self.seed, Use::Sampling, &[image, call as u64]);
                normal(&mut rng, shape)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_stack(&images, 0)?)
    }
}

impl NoiseSource for ImageNoise {
    fn noise(&mut self, call: usize, like: &Tensor) -> Result<Tensor> {
        let size = like.size();
        if size.first() != Some(&(self.images.len() as i64)) {
            return Err(crate::Error::Shape {
                what: "latents",
                expected: format!("{} images", self.images.len()),
                found: size,
            });
        }
        let noise = self.draw(call, &size[1..])?;
        Ok(noise.f_to_device(like.device())?.f_to_kind(like.kind())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_its_noise_whatever_the_batch_and_order() {
        let all = ImageNoise::new(7, 0..6).initial([2, 3, 3]).unwrap();
        let some = ImageNoise::new(7, [4, 1]).initial([2, 3, 3]).unwrap();
        assert_eq!(some.get(0), all.get(4));
        assert_eq!(some.get(1), all.get(1));
        let mut source = ImageNoise::new(7, [4, 1]);
        let later = source.noise(3, &some).unwrap();
        assert_ne!(later, some);
        assert_eq!(source.noise(3, &some).unwrap(), later);
        assert_ne!(ImageNoise::new(8, [4, 1]).initial([2, 3, 3]).unwrap(), some);
    }

    #[test]
    fn noise_is_standard_normal() {
        let x = ImageNoise::new(0, 0..64).initial([4, 16, 16]).unwrap();
        // 65,536 numbers: four standard deviations of the mean are 0.016, of the variance 0.022.
        assert!(x.mean(tch::Kind::Float).abs().double_value(&[]) < 0.016);
        assert!((x.var(true) - 1.).abs().double_value(&[]) < 0.022);
    }
}
