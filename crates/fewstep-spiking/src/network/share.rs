//! A batch that several processes work on: batch norm over all of it, and the dropout that one process would have drawn.

use fewstep_torch::{Group, Part};
use tch::{Kind, Tensor};

use super::BatchNorm;
use crate::Result;

/// This process's part of a batch. Where it is empty, the network is given one image that counts for nothing, because every
/// process has to take part in the sums.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    /// The processes.
    pub group: &'a Group,
    /// Which images of the batch are this process's.
    pub part: Part,
}

impl Share<'_> {
    /// Batch norm of `y` `[N, C, H, W]` with the statistics of the whole batch, which also move the running ones (unbiased, as
    /// libtorch's do). Gradients are those of one process that has the whole batch.
    ///
    /// Each process gives its own mean and squared deviations in double precision, so that one sum is enough: the difference of
    /// squares that follows loses nothing that float32 could hold.
    pub(super) fn batch_norm(&self, norm: &BatchNorm, y: &Tensor) -> Result<Tensor> {
        let x = y.f_to_kind(Kind::Float)?;
        let size = x.size();
        let (channels, positions) = (size[1], size[2..].iter().product::<i64>());
        let over: Vec<i64> = (0..size.len() as i64).filter(|d| *d != 1).collect();
        let (variance, mean) = x.f_var_mean_correction(over.as_slice(), 0, false)?;
        let (variance, mean) = (
            variance.f_to_kind(Kind::Double)?,
            mean.f_to_kind(Kind::Double)?,
        );
        let own = (self.part.len * positions) as f64;
        let sums = Tensor::f_cat(&[&mean * own, (variance + mean.f_square()?) * own], 0)?;
        let all = (self.part.batch * positions) as f64;
        let means = self
            .group
            .differentiable_sum("the statistics of batch norm", &sums)?
            / all;
        let mean = means.f_narrow(0, 0, channels)?;
        let variance =
            (means.f_narrow(0, channels, channels)? - mean.f_square()?).f_clamp_min(0.)?;
        tch::no_grad(|| -> Result<()> {
            let unbiased = &variance * (all / (all - 1.).max(1.));
            for (running, now) in [(&norm.running_mean, &mean), (&norm.running_var, &unbiased)] {
                let moved = running * (1. - BatchNorm::MOMENTUM) + now * BatchNorm::MOMENTUM;
                running.shallow_clone().f_copy_(&moved)?;
            }
            Ok(())
        })?;
        let mut along = vec![1; size.len()];
        along[1] = channels;
        let each = |t: Tensor| t.f_to_kind(Kind::Float)?.f_view(along.as_slice());
        let scale = (variance + BatchNorm::EPS).f_rsqrt()? * &norm.weight;
        let centred = x.f_sub(&each(mean)?)?;
        let bias = norm.bias.f_view(along.as_slice())?;
        Ok(bias
            .f_addcmul(&centred, &each(scale)?)?
            .f_to_kind(y.kind())?)
    }

    /// Of a mask `[1, batch, …]` over the whole batch, the rows of `images` images.
    pub(super) fn rows(&self, mask: &Tensor, images: i64) -> Result<Tensor> {
        Ok(mask.f_narrow(1, self.part.before, images)?)
    }
}
