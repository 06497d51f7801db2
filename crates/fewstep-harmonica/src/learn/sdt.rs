//! Step-wise Denoising Training.

use fewstep_diffusion::random;
use fewstep_torch::seed;

use super::job::Job;
use super::mix::Teacher;
use super::recompute::Taught;
use super::{LearnEvent, Learner, Proxy};
use crate::Result;

impl Learner<'_> {
    /// One trajectory of the student. Returns the mean over its updates of the loss and of the plain squared error.
    pub(super) fn sdt_trajectory(
        &mut self,
        observe: &mut dyn FnMut(&LearnEvent) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let c = self.setting.dit.config();
        let mut rng = self.generator();
        let labels = random::integers(&mut rng, self.options.batch_size, c.classes)?;
        let shape = [
            self.options.batch_size,
            c.channels,
            c.input_size,
            c.input_size,
        ];
        let x = random::normal(&mut rng, &shape)?;
        let (labels, x) = (self.part.rows(&labels)?, self.part.rows(&x)?);
        let noise = seed::derive(self.seed, &[u64::from(self.trajectory)]);
        let job = Job::new(self.setting, &labels, noise, self.part.numbers())?;
        let job = job.with_order(self.options.order);
        self.trajectory_of(job, &x, observe, &mut |_| Ok(()))
    }

    /// The same from given noise `[n, C, H, W]`, that of this rank's part; `watch` sees the learner after each update.
    pub(super) fn trajectory_of(
        &mut self,
        mut job: Job<'_>,
        x: &tch::Tensor,
        observe: &mut dyn FnMut(&LearnEvent) -> Result<()>,
        watch: &mut dyn FnMut(Seen<'_>) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let calls = self.setting.sampler.timesteps().len();
        if self.refresh_is_due(calls as u64) {
            self.lambda = self.proxy(&mut job, x)?;
            observe(&LearnEvent::Refreshed {
                trajectory: self.trajectory,
                lambda: self.lambda.clone(),
            })?;
        }
        let mut place = job.start(x)?;
        job.step(&mut place, 0, None)?;
        let (mut losses, mut errors) = (0., 0.);
        for index in 1..calls {
            let call = self.setting.sampler.call(index);
            // The teacher reads no slot and writes none; embeddings, modulations and the first sub-module serve both.
            let mut teacher = Teacher::default();
            let (prepared, target) = tch::no_grad(|| -> Result<_> {
                let prepared = job.prepare(&place.x, &call)?;
                let target = job.predict(&prepared, &call, &mut teacher)?;
                Ok((prepared, target))
            })?;
            let gates = self.gates(call.row)?;
            let slots = &mut place.slots;
            let (output, error) = match self.options.recompute {
                true => {
                    let taught = Taught {
                        prepared: &prepared,
                        call: &call,
                        first: teacher.first,
                        target,
                    };
                    self.recomputed(&job, taught, &gates, slots)?
                }
                false => {
                    let mut student = gates.student(slots, call.timestep);
                    student.first = teacher.first;
                    let output = job.predict(&prepared, &call, &mut student)?;
                    let error = self.error(&output, &target)?;
                    (output, error)
                }
            };
            let (loss, mse) = self.update(call.row, &gates.r, &error)?;
            tch::no_grad(|| job.advance(&mut place, index, &output.f_detach()?))?;
            losses += loss;
            errors += mse;
            watch(Seen {
                learner: self,
                loss,
                mse,
                x: &place.x,
            })?;
        }
        let updates = (calls.max(2) - 1) as f64;
        Ok((losses / updates, errors / updates))
    }

    /// Every `refresh_every` iterations, at the start of the trajectory in which they are full.
    fn refresh_is_due(&self, calls: u64) -> bool {
        let every = u64::from(self.options.refresh_every);
        let iteration = u64::from(self.trajectory) * calls;
        self.options.proxy != Proxy::None
            && (iteration == 0 || iteration / every > (iteration - calls) / every)
    }
}

/// The learner after an update; for tests against the published algorithm.
#[cfg_attr(not(test), expect(dead_code))]
pub(super) struct Seen<'a> {
    pub(super) learner: &'a Learner<'a>,
    pub(super) loss: f64,
    pub(super) mse: f64,
    pub(super) x: &'a tch::Tensor,
}
