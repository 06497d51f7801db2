//! Surrogate gradients: what stands for the derivative of the spike with respect to z = m/θ − 1.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A surrogate gradient, by its name in the literature.
///
/// Each is the derivative of a smooth twin of the step function ([`Surrogate::twin`]), up to the constant that is stated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Surrogate {
    /// `height · max(0, 1 − |z| / width)` (Bellec et al. 2018). IIR-SNN and DIET-SNN: height 0.3, width 1.
    Triangular {
        /// The peak, at z = 0.
        #[serde(default = "paper_height")]
        height: f64,
        /// Zero from |z| = width on.
        #[serde(default = "one")]
        width: f64,
    },
    /// `1 / (2 · width)` for |z| < width, else 0 (Wu et al. 2018, STBP).
    Rectangular {
        /// Half the window.
        #[serde(default = "half")]
        width: f64,
    },
    /// `slope · σ(slope · z) · (1 − σ(slope · z))`.
    Sigmoid {
        /// Steepness.
        #[serde(default = "four")]
        slope: f64,
    },
    /// `1 / (1 + slope · |z|)²` (SuperSpike, Zenke and Ganguli 2018).
    FastSigmoid {
        /// Steepness.
        #[serde(default = "twenty_five")]
        slope: f64,
    },
    /// `slope / 2 / (1 + (π/2 · slope · z)²)` (Fang et al. 2021).
    Arctangent {
        /// Steepness.
        #[serde(default = "two")]
        slope: f64,
    },
}

fn paper_height() -> f64 {
    0.3
}
fn one() -> f64 {
    1.
}
fn half() -> f64 {
    0.5
}
fn two() -> f64 {
    2.
}
fn four() -> f64 {
    4.
}
fn twenty_five() -> f64 {
    25.
}

impl Default for Surrogate {
    /// The paper's: triangular, height 0.3, width 1.
    fn default() -> Self {
        Self::Triangular {
            height: paper_height(),
            width: 1.,
        }
    }
}

impl Surrogate {
    /// The surrogate's value at `z`.
    pub fn gradient(self, z: f64) -> f64 {
        match self {
            Self::Triangular { height, width } => height * (1. - z.abs() / width).max(0.),
            Self::Rectangular { width } => {
                if z.abs() < width {
                    0.5 / width
                } else {
                    0.
                }
            }
            Self::Sigmoid { slope } => {
                let s = 1. / (1. + (-slope * z).exp());
                slope * s * (1. - s)
            }
            Self::FastSigmoid { slope } => (1. + slope * z.abs()).powi(-2),
            Self::Arctangent { slope } => {
                slope / 2. / (1. + (std::f64::consts::FRAC_PI_2 * slope * z).powi(2))
            }
        }
    }

    /// A smooth function whose derivative is [`Surrogate::gradient`]; 0 at z = 0.
    pub fn twin(self, z: f64) -> f64 {
        match self {
            Self::Triangular { height, width } => {
                let x = z.clamp(-width, width);
                height * (x - x * x.abs() / (2. * width))
            }
            Self::Rectangular { width } => z.clamp(-width, width) * 0.5 / width,
            Self::Sigmoid { slope } => 1. / (1. + (-slope * z).exp()) - 0.5,
            Self::FastSigmoid { slope } => z / (1. + slope * z.abs()),
            Self::Arctangent { slope } => {
                (std::f64::consts::FRAC_PI_2 * slope * z).atan() / std::f64::consts::PI
            }
        }
    }

    /// |z| from which the gradient is exactly zero; infinite where it only decays.
    pub fn support(self) -> f64 {
        match self {
            Self::Triangular { width, .. } | Self::Rectangular { width } => width,
            _ => f64::INFINITY,
        }
    }

    /// Number and parameters as `cpp/neuron.cpp` knows them.
    pub(crate) fn code(self) -> (i64, f64, f64) {
        match self {
            Self::Triangular { height, width } => (0, height, width),
            Self::Rectangular { width } => (1, 0.5 / width, width),
            Self::Sigmoid { slope } => (2, slope, 0.),
            Self::FastSigmoid { slope } => (3, slope, 0.),
            Self::Arctangent { slope } => (4, slope, 0.),
        }
    }

    /// # Errors
    /// A parameter that is not positive and finite.
    pub fn validate(self) -> Result<()> {
        let parameters: &[(&'static str, f64)] = match self {
            Self::Triangular { height, width } => {
                &[("surrogate.height", height), ("surrogate.width", width)]
            }
            Self::Rectangular { width } => &[("surrogate.width", width)],
            Self::Sigmoid { slope } | Self::FastSigmoid { slope } | Self::Arctangent { slope } => {
                &[("surrogate.slope", slope)]
            }
        };
        match parameters.iter().find(|(_, v)| !(v.is_finite() && *v > 0.)) {
            Some(&(option, v)) => Err(Error::Option {
                option,
                expected: "a positive number",
                found: v.to_string(),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fewstep_torch::ops::{NeuronCall, neuron};
    use tch::{Device, Kind, Tensor};

    pub(crate) const ALL: [Surrogate; 6] = [
        Surrogate::Triangular {
            height: 0.3,
            width: 1.,
        },
        Surrogate::Triangular {
            height: 1.,
            width: 2.5,
        },
        Surrogate::Rectangular { width: 0.5 },
        Surrogate::Sigmoid { slope: 4. },
        Surrogate::FastSigmoid { slope: 25. },
        Surrogate::Arctangent { slope: 2. },
    ];

    #[test]
    fn each_gradient_is_the_derivative_of_its_smooth_twin() {
        let h = 1e-6;
        for s in ALL {
            for i in -300..300 {
                let z = f64::from(i) / 100. + 0.003;
                let difference = (s.twin(z + h) - s.twin(z - h)) / (2. * h);
                assert!(
                    (difference - s.gradient(z)).abs() < 1e-6,
                    "{s:?} at {z}: {difference} {}",
                    s.gradient(z)
                );
            }
        }
    }

    #[test]
    fn each_gradient_peaks_at_the_threshold_is_even_and_vanishes_outside_its_support() {
        for s in ALL {
            let peak = s.gradient(0.);
            for i in 1..500 {
                let z = f64::from(i) / 100.;
                assert!(s.gradient(z) <= peak && s.gradient(z) >= 0.);
                assert!((s.gradient(z) - s.gradient(-z)).abs() < 1e-15);
                assert_eq!(s.gradient(z) == 0., z >= s.support(), "{s:?} at {z}");
            }
        }
        assert_eq!(Surrogate::default().gradient(0.), 0.3);
    }

    #[test]
    fn the_kernels_use_these_formulas() {
        // z = x/θ − 1, so with θ = 1 the gradient of Σ s is the surrogate at x − 1.
        let z: Vec<f64> = (-250..250).map(|i| f64::from(i) / 100. + 0.005).collect();
        for s in ALL {
            for fused in [true, false] {
                let x = (Tensor::from_slice(&z) + 1.)
                    .view([1, -1, 1])
                    .set_requires_grad(true);
                let one = Tensor::ones([1], (Kind::Double, Device::Cpu));
                let (surrogate, a, b) = s.code();
                let call = NeuronCall {
                    timesteps: 1,
                    reset: 0,
                    surrogate,
                    a,
                    b,
                    membrane: false,
                    fused,
                };
                neuron(&x, &one, &one, None, call)
                    .unwrap()
                    .0
                    .sum(Kind::Double)
                    .backward();
                let g = Vec::<f64>::try_from(x.grad().view([-1])).unwrap();
                for (z, g) in z.iter().zip(&g) {
                    assert!(
                        (g - s.gradient(*z)).abs() < 1e-12,
                        "{s:?} fused {fused} at {z}: {g}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_width_of_zero_is_refused() {
        let e = Surrogate::Triangular {
            height: 0.3,
            width: 0.,
        }
        .validate()
        .unwrap_err()
        .to_string();
        assert_eq!(e, "surrogate.width: expected a positive number, found 0");
    }
}
