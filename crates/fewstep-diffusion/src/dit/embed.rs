//! Embeddings without weights.

use tch::{Kind, Tensor};

use super::{Convention, DitConfig};
use crate::Result;

/// Width of the sinusoidal timestep embedding.
pub(super) const FREQUENCIES: i64 = 256;
/// Added to the variance in a norm.
pub(super) const NORM_EPS: f64 = 1e-6;

/// `[N]` timesteps to `[N, 256]`, cosines first.
pub(super) fn timestep(t: &Tensor, convention: Convention) -> Result<Tensor> {
    let half = FREQUENCIES / 2;
    let over = match convention {
        Convention::Original => half,
        Convention::Diffusers => half - 1,
    };
    let frequencies = Tensor::f_arange(half, (Kind::Float, t.device()))?
        .f_mul_scalar(-10_000f64.ln() / over as f64)?
        .f_exp()?;
    let angles = t
        .f_to_kind(Kind::Float)?
        .f_unsqueeze(1)?
        .f_mul(&frequencies)?;
    Ok(Tensor::f_cat(&[angles.f_cos()?, angles.f_sin()?], 1)?)
}

/// The fixed sine-cosine embedding `[1, tokens, width]`: column first, then row, as the official code does it.
pub(super) fn position(config: &DitConfig) -> Result<Tensor> {
    let (g, d) = (config.input_size / config.patch, config.width);
    let quarter = d / 4;
    let mut all = Vec::with_capacity((g * g * d) as usize);
    for row in 0..g {
        for column in 0..g {
            for place in [column, row] {
                let angle = |i: i64| place as f64 / 10_000f64.powf(i as f64 / quarter as f64);
                all.extend((0..quarter).map(|i| angle(i).sin() as f32));
                all.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    Ok(Tensor::f_from_slice(&all)?.f_view([1, g * g, d])?)
}
