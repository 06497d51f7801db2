//! The variational bound that trains a learned variance (IDDPM, arXiv 2102.09672, equations 3 to 6 and 15).

use fewstep_torch::device::send;
use tch::{Kind, Tensor};

use crate::Result;
use crate::noise::NoiseSchedule;

/// Bits per dimension, mean over the batch, of the step from `x` at `timesteps` to the one before, given the images `[N, C, H, W]`
/// and the model's output `[N, 2C, H, W]`, whose mean takes no gradient.
pub(super) fn bound(
    schedule: &NoiseSchedule,
    images: &Tensor,
    x: &Tensor,
    timesteps: &Tensor,
    output: &Tensor,
) -> Result<Tensor> {
    let channels = images.size()[1];
    let timesteps: Vec<usize> = Vec::<i64>::try_from(timesteps)?
        .iter()
        .map(|&t| t as usize)
        .collect();
    let column = |value: &dyn Fn(usize) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = timesteps.iter().map(|&t| value(t) as f32).collect();
        let values = Tensor::f_from_slice(&values)?.f_view([-1, 1, 1, 1])?;
        Ok(send(&values, x.device())?)
    };
    let (alphas_cumprod, betas) = (schedule.alphas_cumprod(), schedule.betas());
    let before = |t: usize| if t == 0 { 1. } else { alphas_cumprod[t - 1] };
    let posterior = |t: usize| betas[t] * (1. - before(t)) / (1. - alphas_cumprod[t]);
    // The variance of the last step is 0; its logarithm is that of the step before, as published.
    let smallest = column(&|t| posterior(t.max(1)).ln())?;
    let largest = column(&|t| betas[t].ln())?;
    let of_image = column(&|t| betas[t] * before(t).sqrt() / (1. - alphas_cumprod[t]))?;
    let of_x = column(&|t| (1. - before(t)) * (1. - betas[t]).sqrt() / (1. - alphas_cumprod[t]))?;
    let mean =
        |image: &Tensor| -> Result<Tensor> { Ok(image.f_mul(&of_image)?.f_add(&x.f_mul(&of_x)?)?) };

    let noise = output.f_narrow(1, 0, channels)?.f_detach()?;
    let image = x.f_sub(&noise.f_mul(&column(&|t| (1. - alphas_cumprod[t]).sqrt())?)?)?;
    let image = image.f_div(&column(&|t| alphas_cumprod[t].sqrt())?)?;
    let (expected, found) = (mean(images)?, mean(&image)?);
    let share = output
        .f_narrow(1, channels, channels)?
        .f_add_scalar(1.)?
        .f_div_scalar(2.)?;
    let log_variance = smallest.f_lerp_tensor(&largest, &share)?;

    let gap = expected.f_sub(&found)?.f_square()?;
    let divergence = smallest
        .f_sub(&log_variance)?
        .f_exp()?
        .f_add(&gap.f_mul(&log_variance.f_neg()?.f_exp()?)?)?
        .f_add(&log_variance)?
        .f_sub(&smallest)?
        .f_sub_scalar(1.)?
        .f_div_scalar(2.)?;
    let likelihood = log_likelihood(images, &found, &log_variance.f_div_scalar(2.)?)?;
    let last = column(&|t| f64::from(u8::from(t == 0)))?.f_gt(0.5)?;
    let nats = likelihood.f_neg()?.f_where_self(&last, &divergence)?;
    Ok(nats.f_mean(Kind::Float)?.f_div_scalar(2f64.ln())?)
}

/// Logarithm of the probability that a Gaussian gives to the 8-bit value of each pixel.
fn log_likelihood(images: &Tensor, mean: &Tensor, log_deviation: &Tensor) -> Result<Tensor> {
    let centred = images.f_sub(mean)?;
    let inverse = log_deviation.f_neg()?.f_exp()?;
    let below = |shift: f64| -> Result<Tensor> {
        let z = centred.f_add_scalar(shift)?.f_mul(&inverse)?;
        // The published approximation of the normal distribution function.
        let cubic = z.f_add(&z.f_pow_tensor_scalar(3)?.f_mul_scalar(0.044_715)?)?;
        let scaled = cubic.f_mul_scalar((2. / std::f64::consts::PI).sqrt())?;
        Ok(scaled.f_tanh()?.f_add_scalar(1.)?.f_div_scalar(2.)?)
    };
    let (upper, lower) = (below(1. / 255.)?, below(-1. / 255.)?);
    let log = |t: Tensor| -> Result<Tensor> { Ok(t.f_clamp_min(1e-12)?.f_log()?) };
    let inner = log(upper.f_sub(&lower)?)?;
    let darkest = log(upper)?;
    let brightest = log(lower.f_neg()?.f_add_scalar(1.)?)?;
    let inner = brightest.f_where_self(&images.f_gt(0.999)?, &inner)?;
    Ok(darkest.f_where_self(&images.f_lt(-0.999)?, &inner)?)
}
