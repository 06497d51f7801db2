//! The Image-Error Proxy: how much reuse at one row changes the final latents.

use tch::{Kind, Tensor};

use super::job::{Job, Place};
use super::mix::Gates;
use super::{Learner, Proxy, Reduction};
use crate::Result;

impl Learner<'_> {
    /// The weight of each row's error, from the noise `x` `[n, C, H, W]`, the mean over ranks. What two generations share is computed once.
    pub(super) fn proxy(&self, job: &mut Job<'_>, x: &Tensor) -> Result<Vec<f64>> {
        let _guard = tch::no_grad_guard();
        let calls = self.setting.sampler.timesteps().len();
        let gates = (0..calls)
            .map(|index| self.gates(calls - 1 - index))
            .collect::<Result<Vec<_>>>()?;
        let mut lambda = vec![0.; calls];
        let mut place = job.start(x)?;
        job.step(&mut place, 0, None)?;
        let telescoping = self.options.proxy == Proxy::Telescoping;
        // Telescoping compares with the run that caches at one row less, leave-one-out with the run that caches everywhere.
        let mut before = finish(job, place.snapshot(), 1, &gates, !telescoping)?;
        for index in 1..calls {
            let mut other = place.snapshot();
            job.step(&mut place, index, Some(&gates[index]))?;
            let after = if telescoping {
                finish(job, place.snapshot(), index + 1, &gates, false)?
            } else {
                job.step(&mut other, index, None)?;
                finish(job, other, index + 1, &gates, true)?
            };
            let squares = after.f_sub(&before)?.f_square()?;
            // The sum over ranks of this is the mean, or the sum, over the batch.
            lambda[calls - 1 - index] = match self.options.reduction {
                Reduction::Mean => {
                    squares.f_mean(Kind::Float)?.f_double_value(&[])? * self.part.weight()
                }
                Reduction::Sum => squares.f_sum(Kind::Float)?.f_double_value(&[])?,
            };
            if telescoping {
                before = after;
            }
        }
        self.group.sum("the proxy", &mut lambda)?;
        if self.options.normalise {
            let mean = lambda.iter().sum::<f64>() / (calls.max(2) - 1) as f64;
            if mean > 0. {
                lambda.iter_mut().for_each(|l| *l /= mean);
            }
        }
        Ok(lambda)
    }
}

/// The last latents, from call `index` on with the cache or without.
fn finish(
    job: &mut Job<'_>,
    mut place: Place,
    index: usize,
    gates: &[Gates],
    cached: bool,
) -> Result<Tensor> {
    for (index, gates) in gates.iter().enumerate().skip(index) {
        job.step(&mut place, index, cached.then_some(gates))?;
    }
    Ok(place.x)
}
