use std::collections::HashMap;

use fewstep_diffusion::dit::{ComputeAll, SubModuleKind};
use fewstep_diffusion::random::{self, NoiseSource, Use};
use fewstep_diffusion::sampler::{Sampler, SamplerState, sample};
use fewstep_diffusion::{Dit, Guidance, Guided};
use proptest::prelude::*;
use tch::{Device, Kind};

use super::*;
use crate::testing::{conditions, dit};
use crate::{CachePlan, Conditions, Planned, Router, policy};

/// A tenth of the prediction is taken off at each call.
struct Plain(Vec<f64>);

impl Sampler for Plain {
    fn timesteps(&self) -> &[f64] {
        &self.0
    }

    fn step(
        &self,
        _: &mut SamplerState,
        _: usize,
        x: &Tensor,
        output: &Tensor,
        _: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        Ok(x - output.narrow(1, 0, x.size()[1]) * 0.1)
    }
}

/// The rule written as plainly as possible.
struct Naive<'a> {
    plan: &'a CachePlan,
    slots: HashMap<(usize, SubModuleKind), Tensor>,
    row: usize,
    samples: i64,
}

impl Reuse for Naive<'_> {
    fn begin(&mut self, call: &Call) {
        self.row = call.row;
    }

    fn batch(&mut self, samples: i64) {
        self.samples = samples;
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let key = (module.block, module.kind);
        let fits = self
            .slots
            .get(&key)
            .is_some_and(|t| t.size()[0] >= self.samples);
        if !self.plan.row(self.row)[module.index()] || !fits {
            self.slots.insert(key, compute()?.copy());
        }
        Ok(self.slots[&key].narrow(0, 0, self.samples).copy())
    }
}

fn job(seed: u64, n: i64) -> (Tensor, Tensor) {
    let mut rng = random::generator(seed, Use::Sampling, &[]);
    let x = random::normal(&mut rng, &[n, 4, 8, 8]).unwrap();
    (x, random::integers(&mut rng, n, 10).unwrap())
}

fn run(dit: &Dit, c: &Conditions, (x, y): &(Tensor, Tensor), reuse: &mut dyn Reuse) -> Tensor {
    let sampler = Plain(c.timesteps.iter().rev().copied().collect());
    let mut denoiser = Guided::new(dit, y, &c.guidance, reuse).unwrap();
    let mut noise = random::ImageNoise::new(0, 0..x.size()[0] as u64);
    sample(&sampler, &mut denoiser, x, &mut noise, &mut |_, _| Ok(())).unwrap()
}

fn plan_of(c: &Conditions, cells: &[bool]) -> CachePlan {
    let (steps, n) = (c.steps(), c.modules());
    CachePlan::new("table", toml::Table::new(), c, |row, column| {
        row + 1 < steps && cells[row * n + column]
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_plan_gives_what_the_plain_rule_gives_and_counts_what_ran(
        cells in proptest::collection::vec(any::<bool>(), 5 * 4),
        guided in proptest::option::of((0f64..999., 0f64..999.)),
    ) {
        let mut c = conditions(5, 2);
        c.guidance.interval = guided.map(|(a, b)| [a.min(b), a.max(b)]);
        let dit = dit(&c.shape);
        let plan = plan_of(&c, &cells);
        let job = job(1, 2);
        let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
        let ours = run(&dit, &c, &job, &mut cache);
        let mut naive = Naive { plan: &plan, slots: HashMap::new(), row: 0, samples: 0 };
        prop_assert_eq!(ours, run(&dit, &c, &job, &mut naive));
        let counts = cache.counts();
        prop_assert_eq!(counts.macs + counts.skipped_macs, 2 * c.total_macs());
        prop_assert_eq!(counts.computed.iter().chain(&counts.reused).sum::<u64>(), 20);
        if guided.is_none() {
            prop_assert_eq!(counts.utilisation(), plan.utilisation());
            prop_assert!((counts.mac_saving() - plan.mac_saving()).abs() < 1e-12);
        }
    }
}

#[test]
fn a_plan_that_computes_everything_changes_no_bit() {
    let c = conditions(4, 2);
    let dit = dit(&c.shape);
    let plan = policy::none(&c).unwrap();
    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    let job = job(1, 3);
    let out = run(&dit, &c, &job, &mut cache);
    assert_eq!(out, run(&dit, &c, &job, &mut ComputeAll));
    assert!(out.abs().max().double_value(&[]) > 0.1);
    assert_eq!(cache.counts().utilisation(), 0.);
    // Four slots for both halves of three images: 16 tokens of 24 float32 numbers each.
    assert_eq!(cache.counts().peak_bytes, 4 * 6 * 16 * 24 * 4);
}

#[test]
fn reuse_changes_the_output_so_that_these_tests_can_see_it() {
    let c = conditions(4, 2);
    let dit = dit(&c.shape);
    let plan = policy::fora(&c, 2).unwrap();
    let job = job(1, 2);
    let out = run(
        &dit,
        &c,
        &job,
        &mut CachedReuse::new(Planned(&plan), &c.shape),
    );
    let whole = run(&dit, &c, &job, &mut ComputeAll);
    assert!((out - whole).abs().max().double_value(&[]) > 1e-3);
}

#[test]
fn nothing_survives_into_the_next_job_whatever_its_batch_and_labels() {
    let mut c = conditions(5, 2);
    c.guidance = Guidance {
        interval: Some([0., 300.]),
        ..Guidance::scale(1.5)
    };
    let dit = dit(&c.shape);
    let plan = policy::fora(&c, 3).unwrap();
    let fresh = |job: &_| {
        run(
            &dit,
            &c,
            job,
            &mut CachedReuse::new(Planned(&plan), &c.shape),
        )
    };
    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    for (seed, n) in [(1, 3), (2, 1), (3, 4), (3, 4)] {
        let job = job(seed, n);
        assert_eq!(run(&dit, &c, &job, &mut cache), fresh(&job));
    }
    // A job that was broken off leaves nothing either.
    cache.begin(&Call {
        index: 0,
        row: 4,
        timestep: 999.,
    });
    cache.batch(2);
    let huge = Tensor::full([2, 16, 24], 1e9, (Kind::Float, Device::Cpu));
    for index in 0..4 {
        let _ = cache
            .run(SubModule::at(index), &mut || Ok(huge.shallow_clone()))
            .unwrap();
    }
    let job = job(5, 2);
    assert_eq!(run(&dit, &c, &job, &mut cache), fresh(&job));
}

/// Tells each call's value apart: [samples, 1, 1] filled with the call's number.
fn value(call: usize, samples: i64) -> Tensor {
    Tensor::full([samples, 1, 1], call as f64, (Kind::Float, Device::Cpu))
}

#[test]
fn a_slot_of_more_samples_serves_its_first_and_one_of_fewer_is_filled_anew() {
    let c = conditions(4, 1);
    let plan = plan_of(&c, &[true; 8]);
    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    let mut used = Vec::new();
    for (index, samples) in [4, 2, 4, 3].into_iter().enumerate() {
        cache.begin(&Call {
            index,
            row: 3 - index,
            timestep: 0.,
        });
        cache.batch(samples);
        let compute = &mut || {
            Ok(
                Tensor::arange(samples, (Kind::Float, Device::Cpu)).view([samples, 1, 1])
                    + 10. * index as f64,
            )
        };
        let out = cache.run(SubModule::at(0), compute).unwrap();
        used.push(Vec::<f32>::try_from(out.flatten(0, -1)).unwrap());
    }
    let expected: [&[f32]; 4] = [
        &[0., 1., 2., 3.],
        &[0., 1.],
        &[0., 1., 2., 3.],
        &[0., 1., 2.],
    ];
    assert_eq!(used, expected);
    assert_eq!(cache.counts().reused, [3, 0]);

    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    for (index, samples) in [1, 2].into_iter().enumerate() {
        cache.begin(&Call {
            index,
            row: 3 - index,
            timestep: 0.,
        });
        cache.batch(samples);
        let out = cache
            .run(SubModule::at(0), &mut || Ok(value(index, samples)))
            .unwrap();
        assert_eq!(out, value(index, samples));
    }
    assert_eq!(cache.counts().computed, [2, 0]);
}

#[test]
fn a_failed_computation_leaves_an_empty_slot() {
    let c = conditions(3, 1);
    let plan = plan_of(&c, &[true; 6]);
    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    cache.begin(&Call {
        index: 0,
        row: 2,
        timestep: 0.,
    });
    cache.batch(1);
    let stop = || fewstep_diffusion::Error::Stopped("enough".into());
    assert!(cache.run(SubModule::at(0), &mut || Err(stop())).is_err());
    cache.begin(&Call {
        index: 1,
        row: 1,
        timestep: 0.,
    });
    cache.batch(1);
    let out = cache
        .run(SubModule::at(0), &mut || Ok(value(1, 1)))
        .unwrap();
    assert_eq!(out, value(1, 1));
}

/// The authors' example of routing: threshold 0.5, three sub-modules, rows t = 1 to 4.
#[test]
fn the_worked_example_of_the_paper_uses_the_cached_values_it_says() {
    // Our sub-modules come in pairs, so a fourth one is beside them, which is always computed.
    let p = [
        [0.7, 0.2, 0.9, 0.99],
        [0.2, 0.3, 0.7, 0.99],
        [0.6, 0.4, 0.8, 0.99],
        [0.99; 4],
    ];
    let logits = p
        .map(|row| row.map(|p: f32| (p / (1. - p)).ln()).to_vec())
        .to_vec();
    let c = conditions(4, 2);
    let router = Router::from_logits(&c, 0.5, logits).unwrap();
    let plan = policy::harmonica(&router, 0.5).unwrap();
    let mut cache = CachedReuse::new(Planned(&plan), &c.shape);
    // For each step in the order of execution, the t at which each used value was computed.
    let mut origins = Vec::new();
    for index in 0..4 {
        let t = 4 - index;
        cache.begin(&Call {
            index,
            row: t - 1,
            timestep: t as f64,
        });
        cache.batch(1);
        let used: Vec<f64> = (0..3)
            .map(|module| {
                let out = cache
                    .run(SubModule::at(module), &mut || Ok(value(t, 1)))
                    .unwrap();
                out.double_value(&[0, 0, 0])
            })
            .collect();
        origins.push(used);
    }
    assert_eq!(
        origins,
        [[4., 4., 4.], [3., 4., 3.], [3., 4., 2.], [1., 4., 1.]]
    );
    assert_eq!(cache.counts().reused, [1, 3, 0, 0]);
    assert!((cache.counts().utilisation() - 4. / 12.).abs() < 1e-12);
}
