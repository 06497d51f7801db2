//! Learning-to-Cache's own training, as its published code does it: a noised image at an odd row fills the cache, one sampler step
//! leads to the even row below it, and only that row learns. No guidance, no trajectory, no weight on the error.

use fewstep_diffusion::random;
use fewstep_torch::seed;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use fewstep_diffusion::sampler::SamplerState;

use super::Learner;
use super::mix::{Fill, Slots, Teacher};
use crate::{Error, Result};

/// What Learning-to-Cache learns from: images `[M, C, H, W]`, bytes or numbers from −1 to 1 (or latents), and labels `[M]`.
pub struct Images<'a> {
    /// The images.
    pub images: &'a Tensor,
    /// Their classes.
    pub labels: &'a Tensor,
}

/// Share of labels that become the null class, as published.
const DROPPED: i64 = 10;

/// What one iteration draws, this rank's part of it.
pub(super) struct Draw {
    pub(super) row: usize,
    pub(super) x: Tensor,
    pub(super) noise: Tensor,
    pub(super) labels: Tensor,
}

impl Learner<'_> {
    /// As many iterations as there are pairs of rows. Returns the mean of loss and plain squared error.
    pub(super) fn l2c_pairs(&mut self, images: &Images<'_>) -> Result<(f64, f64)> {
        let mut rng = self.generator();
        let pairs = self.setting.sampler.timesteps().len() / 2;
        let (mut losses, mut errors) = (0., 0.);
        for _ in 0..pairs {
            let draw = self.draw(images, &mut rng)?;
            let (loss, mse) = self.l2c_step(&draw)?;
            losses += loss;
            errors += mse;
        }
        let n = pairs.max(1) as f64;
        Ok((losses / n, errors / n))
    }

    fn draw(&self, images: &Images<'_>, rng: &mut ChaCha8Rng) -> Result<Draw> {
        let c = self.setting.dit.config();
        let found = images.images.size();
        if found.len() != 4 || found[1..] != [c.channels, c.input_size, c.input_size] {
            let expected = format!("[M, {}, {}, {}]", c.channels, c.input_size, c.input_size);
            return Err(Error::option("images", expected, format!("{found:?}")));
        }
        let (n, pairs) = (
            self.options.batch_size,
            self.setting.sampler.timesteps().len() / 2,
        );
        let one = |rng: &mut ChaCha8Rng, end: i64| -> Result<i64> {
            Ok(random::integers(rng, 1, end)?.f_int64_value(&[0])?)
        };
        let row = 2 * one(rng, pairs as i64)? as usize;
        let which = self.part.rows(&random::integers(rng, n, found[0])?)?;
        let mut x = images.images.f_index_select(0, &which)?;
        if x.kind() == Kind::Uint8 {
            x = x
                .f_to_kind(Kind::Float)?
                .f_mul_scalar(2. / 255.)?
                .f_sub_scalar(1.)?;
        }
        let labels = images.labels.f_index_select(0, &which)?;
        let dropped = self.part.rows(&random::integers(rng, n, DROPPED)?)?;
        let dropped = dropped.f_eq(0)?;
        let null = labels.f_full_like(c.classes as f64)?;
        let labels = null.f_where_self(&dropped, &labels)?;
        Ok(Draw {
            row,
            noise: {
                let whole = [n, c.channels, c.input_size, c.input_size];
                self.part.rows(&random::normal(rng, &whole)?)?
            },
            x,
            labels,
        })
    }

    /// One iteration. Returns loss and plain squared error.
    pub(super) fn l2c_step(&mut self, draw: &Draw) -> Result<(f64, f64)> {
        let (dit, sampler) = (self.setting.dit, self.setting.sampler);
        let (device, n) = (dit.device(), draw.x.size()[0]);
        let calls = sampler.timesteps().len();
        let labels = draw.labels.f_to_device(device)?;
        // One computed step is behind it, which no forecast can be made from.
        let mut slots = Slots::new(dit.config().sub_modules(), 0);
        let mut teacher = Teacher::default();
        let (prepared, target) = tch::no_grad(|| -> Result<_> {
            let call = sampler.call(calls - 2 - draw.row);
            let timesteps = Tensor::f_full([n], call.timestep as i64, (Kind::Int64, device))?;
            let x = self.setting.noise.q_sample(
                &draw.x.f_to_device(device)?,
                &timesteps,
                &draw.noise.f_to_device(device)?,
            )?;
            let t = |timestep: f64| Tensor::f_full([n], timestep, (Kind::Float, device));
            let mut fill = Fill {
                slots: &mut slots,
                timestep: call.timestep,
            };
            let output = dit.forward(&x, &t(call.timestep)?, &labels, &mut fill)?;
            let place = [u64::from(self.trajectory), draw.row as u64];
            let images = self.part.numbers();
            let mut none = random::ImageNoise::new(seed::derive(self.seed, &place), images);
            let mut state = SamplerState::default();
            let x = sampler.step(&mut state, call.index, &x, &output, &mut none)?;
            let timestep = t(sampler.timesteps()[calls - 1 - draw.row])?;
            let prepared = dit.prepare(&x, &timestep, &labels)?;
            let target = dit.run(&prepared, &mut teacher)?;
            Ok((prepared, target))
        })?;
        let gates = self.gates(draw.row)?;
        let timestep = sampler.timesteps()[calls - 1 - draw.row];
        let mut student = gates.student(&mut slots, timestep);
        student.write = false;
        student.first = teacher.first;
        let output = dit.run(&prepared, &mut student)?;
        let error = self.error(&output, &target)?;
        self.update(draw.row, &gates.r, &error)
    }
}
