//! The last outputs of a sub-module, and what is made of them instead of computing it again.
//!
//! Plain reuse is order 0. A forecast of order n is a polynomial through the last n + 1 computed outputs (TaylorSeer, arXiv 2503.06923, has
//! its truncated Taylor series with finite differences); either is a weighted sum, so it costs n + 1 multiplications per element and n + 1
//! kept outputs, and no multiply-accumulate of the model.

use std::collections::VecDeque;

use fewstep_diffusion::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The highest order of a forecast.
pub const MAX_ORDER: u8 = 3;
const MOST: usize = MAX_ORDER as usize + 1;

/// What a forecast of an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Formula {
    /// The polynomial through the outputs, over their timesteps.
    #[default]
    Polynomial,
    /// TaylorSeer's: derivatives of every order from backward differences, each over the last distance. The same up to order 1.
    Taylor,
}

/// What takes the place of a sub-module's output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Forecast {
    /// From the last `order` + 1 outputs, or as many as there are; order 0 is the last output.
    Order(u8, Formula),
    /// The sum of the last outputs, newest first, with these weights.
    Weights(Weights),
}

impl Forecast {
    /// The last output.
    pub const LAST: Self = Self::Order(0, Formula::Polynomial);

    /// Outputs that it needs.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Order(order, _) => usize::from(*order) + 1,
            Self::Weights(w) => w.get().len(),
        }
    }
}

/// One to four weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    values: [f32; MOST],
    len: u8,
}

impl Weights {
    /// None where there are no weights or more than an order of [`MAX_ORDER`] has, or one is not finite.
    pub fn new(weights: &[f32]) -> Option<Self> {
        let fine = (1..=MOST).contains(&weights.len()) && weights.iter().all(|w| w.is_finite());
        fine.then(|| {
            let mut values = [0.; MOST];
            values[..weights.len()].copy_from_slice(weights);
            Self {
                values,
                len: weights.len() as u8,
            }
        })
    }

    /// Newest first.
    pub fn get(&self) -> &[f32] {
        &self.values[..usize::from(self.len)]
    }
}

/// The weights of the outputs computed at `times`, newest first and all different, for a value at time `at`.
pub fn weights(formula: Formula, times: &[f64], at: f64) -> Vec<f64> {
    match formula {
        Formula::Polynomial => (0..times.len())
            .map(|i| {
                let others = times.iter().enumerate().filter(|(j, _)| *j != i);
                others.fold(1., |w, (_, t)| w * (at - t) / (times[i] - t))
            })
            .collect(),
        Formula::Taylor => {
            // Row k of `differences` holds the k-th derivative at the newest outputs as weights.
            let n = times.len();
            let mut sum = vec![0.; n];
            let mut derivatives: Vec<Vec<f64>> = (0..n)
                .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
                .collect();
            let mut factor = 1.;
            for order in 0..n {
                for (s, w) in sum.iter_mut().zip(&derivatives[0]) {
                    *s += factor * w;
                }
                factor *= (at - times[0]) / (order + 1) as f64;
                derivatives = (0..derivatives.len() - 1)
                    .map(|i| {
                        let pairs = derivatives[i].iter().zip(&derivatives[i + 1]);
                        pairs
                            .map(|(a, b)| (a - b) / (times[i] - times[i + 1]))
                            .collect()
                    })
                    .collect();
            }
            sum
        }
    }
}

#[derive(Debug)]
struct Kept {
    timestep: f64,
    output: Tensor,
}

/// The last outputs of one sub-module, newest first.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<Kept>);

impl History {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets the oldest until there are fewer than `keep`.
    pub(crate) fn make_room(&mut self, keep: usize) {
        self.0.truncate(keep.saturating_sub(1));
    }

    /// `output` is not copied; nobody may write to it.
    pub(crate) fn push(&mut self, timestep: f64, output: Tensor) {
        self.0.push_front(Kept { timestep, output });
    }

    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |k: &Kept| (k.output.numel() * k.output.kind().elt_size_in_bytes()) as u64;
        self.0.iter().map(bytes).sum()
    }

    /// Timesteps and outputs, newest first.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (f64, &Tensor)> {
        self.0.iter().map(|k| (k.timestep, &k.output))
    }

    /// The same numbers as leaves of a new graph.
    pub(crate) fn leaves(&self) -> Result<Self> {
        let leaf = |k: &Kept| -> Result<Kept> {
            Ok(Kept {
                timestep: k.timestep,
                output: k.output.f_detach()?.f_set_requires_grad(true)?,
            })
        };
        Ok(Self(self.0.iter().map(leaf).collect::<Result<_>>()?))
    }

    /// The same outputs, to go on from here twice.
    pub(crate) fn shallow_clone(&self) -> Self {
        let copy = |k: &Kept| Kept {
            timestep: k.timestep,
            output: k.output.shallow_clone(),
        };
        Self(self.0.iter().map(copy).collect())
    }

    /// The newest outputs that hold `samples` samples, at most `most`, cut to them.
    pub(crate) fn fitting(&self, most: usize, samples: i64) -> Result<Vec<Tensor>> {
        let mut all = Vec::with_capacity(most);
        for kept in self.0.iter().take(most) {
            let found = kept.output.size().first().copied().unwrap_or(0);
            match found.cmp(&samples) {
                std::cmp::Ordering::Less => break,
                std::cmp::Ordering::Equal => all.push(kept.output.shallow_clone()),
                std::cmp::Ordering::Greater => all.push(kept.output.f_narrow(0, 0, samples)?),
            }
        }
        Ok(all)
    }

    /// What stands for the output at `timestep` for `samples` samples; none where not even the last output has as many, or where
    /// given weights find too few outputs.
    pub(crate) fn value(
        &self,
        forecast: &Forecast,
        timestep: f64,
        samples: i64,
    ) -> Result<Option<Tensor>> {
        let mut kept = self.fitting(forecast.outputs(), samples)?;
        if matches!(forecast, Forecast::Order(..)) {
            // Heun calls the model twice at a timestep; no line goes through two points at the same place.
            let times = || self.0.iter().map(|k| k.timestep);
            let different = (0..kept.len())
                .take_while(|&i| times().take(i).all(|t| Some(t) != times().nth(i)))
                .count();
            kept.truncate(different);
        }
        match forecast {
            _ if kept.is_empty() => Ok(None),
            Forecast::Order(_, formula) => {
                let times: Vec<f64> = self.0.iter().take(kept.len()).map(|k| k.timestep).collect();
                Ok(Some(sum(&kept, &weights(*formula, &times, timestep))?))
            }
            Forecast::Weights(w) if kept.len() == w.get().len() => {
                let w: Vec<f64> = w.get().iter().map(|&w| f64::from(w)).collect();
                Ok(Some(sum(&kept, &w)?))
            }
            Forecast::Weights(_) => Ok(None),
        }
    }
}

fn sum(outputs: &[Tensor], weights: &[f64]) -> Result<Tensor> {
    Ok(match (outputs, weights) {
        ([last], [1.]) => last.shallow_clone(),
        // One pass over memory where the weights sum to 1.
        ([a, b], [v, w]) if (v + w - 1.).abs() < 1e-12 => a.f_lerp(b, *w)?,
        _ => {
            let mut terms = outputs.iter().zip(weights);
            let Some((first, w)) = terms.next() else {
                return Err(fewstep_diffusion::Error::from(
                    fewstep_torch::Error::Mismatch("a forecast needs at least one output".into()),
                ));
            };
            let mut sum = first.f_mul_scalar(*w)?;
            for (output, w) in terms {
                sum = sum.f_add_(&output.f_mul_scalar(*w)?)?;
            }
            sum
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(history: &History, order: u8, formula: Formula, t: f64) -> f64 {
        let forecast = Forecast::Order(order, formula);
        let value = history.value(&forecast, t, 1).unwrap().unwrap();
        value.double_value(&[0])
    }

    fn of(times: &[f64], f: impl Fn(f64) -> f64) -> History {
        let mut history = History::default();
        for &t in times {
            history.push(t, Tensor::from_slice(&[f(t)]));
        }
        history
    }

    #[test]
    fn order_n_is_exact_for_polynomials_of_degree_n_over_any_timesteps() {
        let times = [999., 900., 850., 700.];
        let polynomials: [&dyn Fn(f64) -> f64; 4] = [
            &|_| 3.,
            &|t| 2. - t / 100.,
            &|t| (t / 100. - 6.).powi(2),
            &|t| (t / 100. - 6.).powi(3),
        ];
        for (degree, f) in polynomials.iter().enumerate() {
            let history = of(&times, f);
            for order in degree as u8..=MAX_ORDER {
                for t in [690., 500., 0.] {
                    let found = at(&history, order, Formula::Polynomial, t);
                    assert!(
                        (found - f(t)).abs() < 1e-6 * f(t).abs().max(1.),
                        "{order} {t}"
                    );
                }
            }
        }
    }

    #[test]
    fn taylors_formula_is_the_published_one_over_even_steps() {
        // Backward differences D¹ = F₀ − F₁, D² = F₀ − 2F₁ + F₂ at distance N: F₀ + D¹ k/N + D²/2 (k/N)².
        let (f, n) = ([7., 4., 2.], 3.);
        let mut history = History::default();
        for (i, value) in f.iter().enumerate().rev() {
            history.push(50. + n * i as f64, Tensor::from_slice(&[*value]));
        }
        for k in [1., 2.] {
            let (d1, d2) = (f[0] - f[1], f[0] - 2. * f[1] + f[2]);
            let x = k / n;
            let expected = [f[0], f[0] + d1 * x, f[0] + d1 * x + d2 / 2. * x * x];
            for (order, expected) in expected.iter().enumerate() {
                let found = at(&history, order as u8, Formula::Taylor, 50. - k);
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{order}: {found}, {expected}"
                );
            }
        }
    }

    #[test]
    fn outputs_of_a_repeated_timestep_are_not_forecast_from() {
        let mut history = of(&[10., 8.], |t| 3. * t);
        history.push(8., Tensor::from_slice(&[7f64]));
        assert_eq!(at(&history, 2, Formula::Polynomial, 5.), 7.);
        assert_eq!(at(&history, 2, Formula::Taylor, 5.), 7.);
    }

    #[test]
    fn fewer_outputs_than_the_order_needs_lower_the_order() {
        let history = of(&[10., 8.], |t| 3. * t);
        assert!((at(&history, 3, Formula::Polynomial, 5.) - 15.).abs() < 1e-9);
    }

    #[test]
    fn outputs_of_more_samples_serve_with_their_first_and_of_fewer_with_none() {
        let mut history = History::default();
        history.push(2., Tensor::from_slice(&[1f32]));
        history.push(1., Tensor::from_slice(&[5f32, 6.]));
        let one = Forecast::Order(1, Formula::Polynomial);
        let two = history.value(&one, 0., 2).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(two).unwrap(), [5., 6.]);
        let first = history.value(&one, 0., 1).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(first).unwrap(), [9.]);
        assert!(history.value(&one, 0., 3).unwrap().is_none());
        let weights = Forecast::Weights(Weights::new(&[0.5, 2.]).unwrap());
        let sum = history.value(&weights, 0., 1).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(sum).unwrap(), [4.5]);
        assert!(history.value(&weights, 0., 2).unwrap().is_none());
    }

    #[test]
    fn weights_are_one_to_four_finite_numbers() {
        assert!(Weights::new(&[]).is_none());
        assert!(Weights::new(&[1.; 5]).is_none());
        assert!(Weights::new(&[f32::NAN]).is_none());
        assert_eq!(Weights::new(&[1., 2.]).unwrap().get(), [1., 2.]);
    }
}
