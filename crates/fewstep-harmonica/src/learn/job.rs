//! One batch of trajectories as the published training runs them: latents are doubled for guidance, the model sees the first half.

use std::ops::Range;

use fewstep_diffusion::Reuse;
use fewstep_diffusion::dit::Prepared;
use fewstep_diffusion::random::{self, ImageNoise, Use};
use fewstep_diffusion::sampler::{Call, SamplerState};
use fewstep_torch::Part;
use tch::{Kind, Tensor};

use super::mix::{Fill, Gates, Slots};
use super::{Learner, Setting};
use crate::{CachedReuse, Planned, Result};

pub(super) struct Job<'a> {
    setting: Setting<'a>,
    labels: Tensor,
    n: i64,
    /// Whether latents are `[conditional; unconditional]`.
    paired: bool,
    /// Of the forecast on reuse.
    order: u8,
    noise: ImageNoise,
}

/// Where a trajectory is.
pub(super) struct Place {
    pub(super) x: Tensor,
    pub(super) slots: Slots,
    pub(super) state: SamplerState,
}

impl Place {
    pub(super) fn snapshot(&self) -> Self {
        Self {
            x: self.x.shallow_clone(),
            slots: self.slots.snapshot(),
            state: self.state.shallow_clone(),
        }
    }
}

impl<'a> Job<'a> {
    /// For these labels `[n]`; `seed` is that of what a stochastic sampler adds to the images of these numbers.
    pub(super) fn new(
        setting: Setting<'a>,
        labels: &Tensor,
        seed: u64,
        numbers: Range<u64>,
    ) -> Result<Self> {
        let n = labels.size()[0];
        let labels = labels.f_to_device(setting.dit.device())?;
        let paired = setting.guidance().scale != 1.;
        let null = labels.f_full_like(setting.dit.config().classes as f64)?;
        let images = numbers.clone().chain(numbers.filter(|_| paired));
        Ok(Self {
            labels: Tensor::f_cat(&[labels, null], 0)?,
            noise: ImageNoise::new(seed, images),
            setting,
            n,
            paired,
            order: 0,
        })
    }

    /// With forecasts of this order on reuse.
    pub(super) fn with_order(self, order: u8) -> Self {
        Self { order, ..self }
    }

    /// The start of the trajectory from noise `[n, C, H, W]`.
    pub(super) fn start(&self, x: &Tensor) -> Result<Place> {
        let x = x.f_to_device(self.setting.dit.device())?;
        Ok(Place {
            x: match self.paired {
                true => Tensor::f_cat(&[&x, &x], 0)?,
                false => x,
            },
            slots: Slots::new(self.setting.dit.config().sub_modules(), self.order),
            state: SamplerState::default(),
        })
    }

    fn guided(&self, call: &Call) -> bool {
        self.paired && self.setting.guidance().applies(call.timestep)
    }

    /// What does not depend on any cache.
    pub(super) fn prepare(&self, x: &Tensor, call: &Call) -> Result<Prepared> {
        let mut x = x.f_narrow(0, 0, self.n)?;
        let mut n = self.n;
        if self.guided(call) {
            x = Tensor::f_cat(&[&x, &x], 0)?;
            n *= 2;
        }
        let t = Tensor::f_full([n], call.timestep, (Kind::Float, x.device()))?;
        let labels = self.labels.f_narrow(0, 0, n)?;
        Ok(self.setting.dit.prepare(&x, &t, &labels)?)
    }

    /// The prediction after guidance: both halves where there is guidance, else the first.
    pub(super) fn predict(
        &self,
        prepared: &Prepared,
        call: &Call,
        reuse: &mut dyn Reuse,
    ) -> Result<Tensor> {
        let output = self.setting.dit.run(prepared, reuse)?;
        self.guide(call, output)
    }

    /// The same from tokens that have gone through all blocks.
    pub(super) fn finish(
        &self,
        prepared: &Prepared,
        call: &Call,
        tokens: &Tensor,
    ) -> Result<Tensor> {
        let output = self.setting.dit.finish(prepared, tokens)?;
        self.guide(call, output)
    }

    fn guide(&self, call: &Call, output: Tensor) -> Result<Tensor> {
        Ok(match self.guided(call) {
            true => self.setting.guidance().combine(self.setting.dit, &output)?,
            false => output,
        })
    }

    /// Takes the sampler's step.
    pub(super) fn advance(
        &mut self,
        place: &mut Place,
        index: usize,
        output: &Tensor,
    ) -> Result<()> {
        let output = match place.x.size()[0] == output.size()[0] {
            true => output.shallow_clone(),
            false => Tensor::f_cat(&[output, output], 0)?,
        };
        let sampler = self.setting.sampler;
        place.x = sampler.step(&mut place.state, index, &place.x, &output, &mut self.noise)?;
        Ok(())
    }

    /// One whole step without gradient: with `gates` the student's, without them everything is computed and stored.
    pub(super) fn step(
        &mut self,
        place: &mut Place,
        index: usize,
        gates: Option<&Gates>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let call = self.setting.sampler.call(index);
        let prepared = self.prepare(&place.x, &call)?;
        let output = match gates {
            Some(gates) => {
                let mut student = gates.student(&mut place.slots, call.timestep);
                self.predict(&prepared, &call, &mut student)?
            }
            None => {
                let (slots, timestep) = (&mut place.slots, call.timestep);
                self.predict(&prepared, &call, &mut Fill { slots, timestep })?
            }
        };
        self.advance(place, index, &output)
    }
}

/// The uncached run that a router is measured against while it learns; one rank's part of it.
pub(super) struct Reference {
    part: Part,
    labels: Tensor,
    noise: Tensor,
    latents: Vec<Tensor>,
}

impl Reference {
    pub(super) fn new(learner: &Learner<'_>) -> Result<Self> {
        let (dit, n) = (learner.setting.dit, learner.options.evaluate_on);
        let c = dit.config();
        let mut rng = random::generator(learner.seed, Use::Learning, &[11]);
        let noise = random::normal(&mut rng, &[n, c.channels, c.input_size, c.input_size])?;
        let labels = random::integers(&mut rng, n, c.classes)?;
        let part = learner.group.part(n);
        let mut reference = Self {
            part,
            labels: part.rows(&labels)?,
            noise: part.rows(&noise)?,
            latents: Vec::new(),
        };
        let mut all = fewstep_diffusion::dit::ComputeAll;
        reference.latents = reference.sample(learner.setting, &mut all)?;
        Ok(reference)
    }

    fn sample(&self, setting: Setting<'_>, reuse: &mut dyn Reuse) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let mut latents = Vec::new();
        if self.part.len == 0 {
            return Ok(latents);
        }
        let mut denoiser =
            fewstep_diffusion::Guided::new(setting.dit, &self.labels, setting.guidance(), reuse)?;
        let mut noise = ImageNoise::new(0, self.part.numbers());
        let x = self.noise.f_to_device(setting.dit.device())?;
        let _last = fewstep_diffusion::sampler::sample(
            setting.sampler,
            &mut denoiser,
            &x,
            &mut noise,
            &mut |_, x| {
                latents.push(x.shallow_clone());
                Ok(())
            },
        )?;
        Ok(latents)
    }

    /// Mean squared error after each call when the router so far decides.
    pub(super) fn errors(&self, learner: &Learner<'_>) -> Result<Vec<f64>> {
        let plan = learner.plan()?;
        let mut reuse = CachedReuse::new(Planned(&plan), learner.setting.dit.config());
        let found = self.sample(learner.setting, &mut reuse)?;
        let mut errors = vec![0.; learner.setting.sampler.timesteps().len()];
        for (error, (a, b)) in errors.iter_mut().zip(self.latents.iter().zip(&found)) {
            let mse = a.f_mse_loss(b, tch::Reduction::Mean)?;
            *error = mse.f_double_value(&[])? * self.part.weight();
        }
        learner.group.sum("the error of a trial", &mut errors)?;
        Ok(errors)
    }
}
