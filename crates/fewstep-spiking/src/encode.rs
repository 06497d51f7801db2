//! Encoders: what enters the first layer. Direct encoding ([`Input::Direct`](crate::Input::Direct)) needs none: the analog image is the
//! current of every timestep.

use tch::{Kind, Tensor};

use crate::Result;

/// Poisson (rate) code: at each timestep an element spikes with the probability of its value, clamped to 0..1.
///
/// `x` is `[N, …]`; returns `[T, N, …]` of 0 and 1, drawn from libtorch's generator.
///
/// # Errors
/// libtorch refuses.
pub fn poisson(x: &Tensor, timesteps: u32) -> Result<Tensor> {
    let mut shape = x.size();
    shape.insert(0, i64::from(timesteps));
    Ok(x.f_clamp(0., 1.)?
        .f_unsqueeze(0)?
        .f_expand(&shape, false)?
        .f_bernoulli()?)
}

/// Latency code: one spike an element, the earlier the larger its value: at timestep round((1 − x)·(T − 1)), x clamped to 0..1.
///
/// `x` is `[N, …]`; returns `[T, N, …]` of 0 and 1.
///
/// # Errors
/// libtorch refuses.
pub fn latency(x: &Tensor, timesteps: u32) -> Result<Tensor> {
    let late: Tensor = (1. - x.f_clamp(0., 1.)?) * f64::from(timesteps.saturating_sub(1));
    let when = late.f_round()?.f_to_kind(Kind::Int64)?;
    let mut shape = vec![i64::from(timesteps)];
    shape.extend(x.size());
    let spikes = Tensor::f_zeros(&shape, (x.kind(), x.device()))?;
    let ones = Tensor::f_ones_like(x)?.f_unsqueeze(0)?;
    Ok(spikes.f_scatter(0, &when.f_unsqueeze(0)?, &ones)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_rate_of_a_poisson_code_is_the_value() {
        tch::manual_seed(0);
        let x = Tensor::from_slice(&[0f32, 0.2, 0.7, 1., 1.5]);
        let s = poisson(&x, 20_000).unwrap();
        assert_eq!(s.size(), [20_000, 5]);
        let rate = Vec::<f32>::try_from(s.mean_dim([0i64].as_slice(), false, Kind::Float)).unwrap();
        // Three standard deviations of a mean of 20,000 draws are below 0.011.
        for (r, x) in rate.iter().zip([0., 0.2, 0.7, 1., 1.]) {
            assert!((r - x).abs() < 0.011, "{r} {x}");
        }
    }

    #[test]
    fn a_latency_code_has_one_spike_and_larger_values_come_first() {
        let s = latency(&Tensor::from_slice(&[1f32, 0.75, 0.5, 0., -1.]), 5).unwrap();
        assert_eq!(
            s.sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
            Tensor::ones([5], (Kind::Float, Device::Cpu))
        );
        let when = Vec::<i64>::try_from(s.argmax(0, false)).unwrap();
        assert_eq!(when, [0, 1, 2, 4, 4]);
    }
}
