//! Trials of plans on fixed noise: error of the final latents against the uncached run, and the fit of forecasts along the way.

use fewstep_diffusion::random::{self, ImageNoise, Use};
use fewstep_diffusion::sampler::{self, Call, Sampler};
use fewstep_diffusion::{Guided, Result as DiffusionResult, Reuse, SubModule};
use tch::{Device, Kind, Tensor};

use crate::history::{Forecast, History, MAX_ORDER, Weights};
use crate::{CachePlan, CachedReuse, Error, Planned, Result, Setting};

/// Images that are sampled at once where nothing is fitted on them.
const BATCH: usize = 64;

/// Images of one noise, each with how much it counts, and what the uncached model makes of them.
pub(super) struct Trials<'a> {
    setting: Setting<'a>,
    /// Which images of the job `seed`.
    numbers: Vec<u64>,
    pub(super) labels: Tensor,
    /// How much each image counts, `[n]` float32, together 1.
    pub(super) weights: Tensor,
    pub(super) seed: u64,
    pub(super) reference: Tensor,
    /// Work done so far, in uncached trajectories of this batch.
    pub(super) trajectories: f64,
}

impl<'a> Trials<'a> {
    /// `images` images with the noise of the job `seed`, all of the same weight.
    pub(super) fn new(setting: Setting<'a>, seed: u64, images: u64) -> Result<Self> {
        let classes = setting.dit.config().classes;
        let mut rng = random::generator(seed, Use::Learning, &[40]);
        let mut trials = Self {
            numbers: (0..images).collect(),
            labels: random::integers(&mut rng, images as i64, classes)?,
            weights: Tensor::f_full(
                [images as i64],
                1. / images as f64,
                (Kind::Float, Device::Cpu),
            )?,
            reference: Tensor::new(),
            setting,
            seed,
            trajectories: 1.,
        };
        let mut all = fewstep_diffusion::dit::ComputeAll;
        trials.reference = trials.sample(setting.sampler, &mut all, BATCH)?;
        Ok(trials)
    }

    /// `images` of those whose number is even (`parity` 0) or odd (1): half of them those with the largest `errors`, each counting for itself, and half every n-th of the others, which
    /// count for all of those. The weighted mean is that over all images but for the luck of the second half.
    pub(super) fn stratified(&self, errors: &[f64], images: u64, parity: u64) -> Result<Self> {
        let mut order: Vec<usize> = (0..errors.len())
            .filter(|&i| self.images() < 2 || self.numbers[i] % 2 == parity)
            .collect();
        let all = order.len();
        let images = (images as usize).min(all);
        order.sort_by(|a, b| errors[*b].total_cmp(&errors[*a]));
        let worst = images / 2;
        let (first, rest) = order.split_at(worst);
        let picked = images - worst;
        // Spread over the sorted rest, so that every size of error is there.
        let others = (0..picked).map(|i| rest[(2 * i + 1) * rest.len() / (2 * picked)]);
        let chosen: Vec<i64> = first
            .iter()
            .copied()
            .chain(others)
            .map(|i| i as i64)
            .collect();
        let weight = |i: usize| match i < worst {
            true => 1. / all as f32,
            false => rest.len() as f32 / picked as f32 / all as f32,
        };
        let weights: Vec<f32> = (0..images).map(weight).collect();
        let index = Tensor::f_from_slice(&chosen)?;
        Ok(Self {
            setting: self.setting,
            numbers: chosen.iter().map(|&i| self.numbers[i as usize]).collect(),
            labels: self.labels.f_index_select(0, &index)?,
            weights: Tensor::f_from_slice(&weights)?,
            seed: self.seed,
            reference: self
                .reference
                .f_index_select(0, &index.f_to_device(self.reference.device())?)?,
            trajectories: 0.,
        })
    }

    /// At most `images` of these from the `first` on, with the weights that they have here.
    pub(super) fn part(&self, first: u64, images: u64) -> Result<Self> {
        let images = images.min(self.images() - first);
        let cut = |t: &Tensor| t.f_narrow(0, first as i64, images as i64);
        Ok(Self {
            setting: self.setting,
            numbers: self.numbers[first as usize..][..images as usize].to_vec(),
            labels: cut(&self.labels)?,
            weights: cut(&self.weights)?,
            seed: self.seed,
            reference: cut(&self.reference)?,
            trajectories: 0.,
        })
    }

    /// The number of the first image.
    pub(super) fn first(&self) -> u64 {
        self.numbers.first().copied().unwrap_or(0)
    }

    pub(super) fn images(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// The same in uncached trajectories of one image.
    pub(super) fn work(&self) -> f64 {
        self.trajectories * self.images() as f64
    }

    /// The noise that all begin with, where the model is.
    pub(super) fn noise(&self) -> Result<(ImageNoise, Tensor)> {
        let c = self.setting.dit.config();
        let noise = ImageNoise::new(self.seed, self.numbers.iter().copied());
        let x = noise.initial([c.channels, c.input_size, c.input_size])?;
        Ok((noise, x.f_to_device(self.setting.dit.device())?))
    }

    /// All images, `at_once` of them in a batch.
    fn sample(
        &self,
        sampler: &dyn Sampler,
        reuse: &mut dyn Reuse,
        at_once: usize,
    ) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let c = self.setting.dit.config();
        let (dit, guidance) = (self.setting.dit, self.setting.guidance());
        let mut all = Vec::new();
        let mut first = 0;
        for numbers in self.numbers.chunks(at_once) {
            let n = numbers.len() as i64;
            let mut noise = ImageNoise::new(self.seed, numbers.iter().copied());
            let x = noise.initial([c.channels, c.input_size, c.input_size])?;
            let x = x.f_to_device(dit.device())?;
            let labels = self.labels.f_narrow(0, first, n)?;
            first += n;
            let mut denoiser = Guided::new(dit, &labels, guidance, reuse)?;
            let watch = &mut |_: &Call, _: &Tensor| Ok(());
            all.push(sampler::sample(
                sampler,
                &mut denoiser,
                &x,
                &mut noise,
                watch,
            )?);
        }
        Ok(Tensor::f_cat(&all, 0)?)
    }

    /// Mean squared error of each image.
    fn squares(&self, x: &Tensor) -> Result<Tensor> {
        let squares = x.f_sub(&self.reference)?.f_square()?;
        let each = squares
            .f_flatten(1, -1)?
            .f_mean_dim(1, false, Kind::Float)?;
        Ok(each.f_to_device(Device::Cpu)?)
    }

    pub(super) fn mse(&self, x: &Tensor) -> Result<f64> {
        let weighted = self.squares(x)?.f_mul(&self.weights)?;
        Ok(weighted.f_sum(Kind::Double)?.f_double_value(&[])?)
    }

    /// Mean squared error of each image's final latents under a plan.
    pub(super) fn errors(&mut self, plan: &CachePlan) -> Result<Vec<f64>> {
        let x = self.latents(plan)?;
        Ok(Vec::<f64>::try_from(
            self.squares(&x)?.f_to_kind(Kind::Double)?,
        )?)
    }

    fn latents(&mut self, plan: &CachePlan) -> Result<Tensor> {
        let mut reuse = CachedReuse::new(Planned(plan), self.setting.dit.config());
        self.trajectories += 1. - plan.mac_saving();
        self.sample(self.setting.sampler, &mut reuse, BATCH)
    }

    /// Mean squared error of the final latents under a plan.
    pub(super) fn error(&mut self, plan: &CachePlan) -> Result<f64> {
        let x = self.latents(plan)?;
        self.mse(&x)
    }

    /// The same of another sampler without cache.
    pub(super) fn error_of(&mut self, sampler: &dyn Sampler) -> Result<f64> {
        let x = self.sample(sampler, &mut fewstep_diffusion::dit::ComputeAll, BATCH)?;
        let steps = self.setting.conditions.steps();
        self.trajectories += sampler.timesteps().len() as f64 / steps as f64;
        self.mse(&x)
    }

    /// The plan with weights that are fitted as its own trajectory goes along: at each reused cell the sub-module is computed for what its
    /// inputs are by then, and the last `order` + 1 outputs are weighted for the least squared error to it. With the plan's error.
    pub(super) fn fit(&mut self, plan: &CachePlan, order: u8) -> Result<(CachePlan, f64)> {
        let mut fitter = Fitter::new(plan, order);
        let x = self.sample(self.setting.sampler, &mut fitter, self.numbers.len())?;
        self.trajectories += 1.;
        let modules = plan.modules();
        let found = fitter.found;
        let fitted = plan
            .clone()
            .with_weights(|row, column| found[row * modules + column].clone())?;
        Ok((fitted, self.mse(&x)?))
    }
}

/// Computes every sub-module, and gives what a fitted forecast would where the plan reuses.
struct Fitter<'a> {
    plan: &'a CachePlan,
    outputs: usize,
    histories: Vec<History>,
    found: Vec<Option<Vec<f32>>>,
    call: Option<Call>,
}

impl<'a> Fitter<'a> {
    fn new(plan: &'a CachePlan, order: u8) -> Self {
        let modules = plan.modules();
        Self {
            plan,
            outputs: usize::from(order.min(MAX_ORDER)) + 1,
            histories: (0..modules).map(|_| History::default()).collect(),
            found: vec![None; plan.steps() * modules],
            call: None,
        }
    }
}

impl Reuse for Fitter<'_> {
    fn begin(&mut self, call: &Call) {
        self.call = Some(*call);
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> DiffusionResult<Tensor>,
    ) -> DiffusionResult<Tensor> {
        let output = compute()?;
        let Some(call) = self.call else {
            return Ok(output);
        };
        let index = module.index();
        let history = &mut self.histories[index];
        if self.plan.reuses(call.row, index) {
            let kept = history.fitting(self.outputs, output.size()[0])?;
            if !kept.is_empty() {
                let weights = least_squares(&kept, &output)?;
                let forecast = Weights::new(&weights).map_or(Forecast::LAST, Forecast::Weights);
                if let Some(value) = history.value(&forecast, call.timestep, output.size()[0])? {
                    self.found[call.row * self.plan.modules() + index] =
                        Some(weights).filter(|_| forecast != Forecast::LAST);
                    return Ok(value);
                }
            }
        }
        history.make_room(self.outputs);
        history.push(call.timestep, output.f_detach()?);
        Ok(output)
    }
}

/// Weights of `kept`, newest first, with the least squared error to `target`. Outputs of neighbouring calls are nearly the same, so the
/// fit is of what is left after the newest, by differences of rising order.
fn least_squares(kept: &[Tensor], target: &Tensor) -> DiffusionResult<Vec<f32>> {
    let n = kept.len();
    let wide = |t: &Tensor| -> DiffusionResult<Tensor> {
        Ok(t.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)
    };
    let rest = wide(target)?.f_sub(&wide(&kept[0])?)?;
    let basis = differences(kept.iter().map(wide).collect::<DiffusionResult<_>>()?)?;
    let all = Tensor::f_stack(&basis, 0)?;
    let gram = all.f_matmul(&all.f_transpose(0, 1)?)?;
    let right = all.f_mv(&rest)?;
    let mut gram = Vec::<Vec<f64>>::try_from(gram)?;
    let mut right = Vec::<f64>::try_from(right)?;
    for (i, row) in gram.iter_mut().enumerate() {
        row[i] = row[i] * (1. + RIDGE) + f64::MIN_POSITIVE;
    }
    solve(&mut gram, &mut right);
    let mut weights = vec![0.; n];
    weights[0] = 1.;
    for (i, coefficient) in right.iter().enumerate() {
        for (w, m) in weights.iter_mut().zip(difference_weights(i)) {
            *w += coefficient * m;
        }
    }
    Ok(weights.iter().map(|&w| w as f32).collect())
}

/// Outputs, newest first, as the newest, the difference of the last two, the difference of such differences, …
pub(super) fn differences(mut outputs: Vec<Tensor>) -> DiffusionResult<Vec<Tensor>> {
    let n = outputs.len();
    for order in 1..n {
        for i in (order..n).rev() {
            outputs[i] = outputs[i - 1].f_sub(&outputs[i])?;
        }
    }
    Ok(outputs)
}

/// How the difference of order i is made of the outputs, newest first: binomial coefficients of alternating sign.
pub(super) fn difference_weights(i: usize) -> impl Iterator<Item = f64> {
    (0..=i).scan(1., move |next, j| {
        let this = *next;
        *next *= -((i - j) as f64) / (j + 1) as f64;
        Some(this)
    })
}

/// Keeps coefficients of differences that are nothing but rounding small.
const RIDGE: f64 = 1e-6;

/// Solves the symmetric positive definite system in place, by elimination: it is of four unknowns at most.
fn solve(a: &mut [Vec<f64>], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        for j in i + 1..n {
            let factor = a[j][i] / a[i][i];
            let (above, below) = a.split_at_mut(j);
            for (x, y) in below[0].iter_mut().zip(&above[i]).skip(i) {
                *x -= factor * y;
            }
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            b[i] -= a[i][j] * b[j];
        }
        b[i] /= a[i][i];
    }
}

/// A number that is no number says that the model is not as it should be.
pub(super) fn finite(error: f64, what: &str) -> Result<f64> {
    match error.is_finite() {
        true => Ok(error),
        false => Err(Error::Invalid {
            key: "the error of x0".into(),
            reason: format!("expected a finite number, found {error} with {what}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_the_weights_that_an_output_was_made_with() {
        let mut rng = random::generator(3, Use::Learning, &[1]);
        let first = random::normal(&mut rng, &[50, 4]).unwrap();
        let mut kept = vec![first];
        for _ in 0..3 {
            let change = random::normal(&mut rng, &[50, 4]).unwrap() * 0.1;
            kept.push(&kept[kept.len() - 1] + change);
        }
        let expected = [1.9f64, -1.4, 0.7, -0.1];
        for n in 1..=4 {
            let target = kept[..n]
                .iter()
                .zip(expected)
                .fold(Tensor::zeros_like(&kept[0]), |sum, (t, w)| sum + t * w);
            let found = least_squares(&kept[..n], &target).unwrap();
            for (f, e) in found.iter().zip(expected) {
                assert!((f64::from(*f) - e).abs() < 1e-3, "{n}: {found:?}");
            }
        }
    }
}
