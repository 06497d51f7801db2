//! Against the published algorithm, written again in Python: tests/parity/harmonica.py.

use std::path::PathBuf;

use fewstep_diffusion::{Convention, DitConfig, SamplerOptions, sampler::SamplerName};
use fewstep_diffusion::{dit::ComputeAll, guidance::Guided, random::ImageNoise, sampler};

use super::job::Job;
use super::*;
use crate::{CachedReuse, Planned, RouterInit};

fn alone() -> &'static Group {
    static ALONE: std::sync::LazyLock<Group> = std::sync::LazyLock::new(Group::alone);
    &ALONE
}

struct Fixture {
    file: Checkpoint,
    facts: serde_json::Value,
    dit: Dit,
    sampler: Box<dyn Sampler>,
    guidance: Guidance,
    noise: NoiseSchedule,
    conditions: Conditions,
}

impl Fixture {
    fn open() -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/parity/harmonica.safetensors");
        let file = Checkpoint::load(&path).unwrap();
        let facts = serde_json::from_str(file.string("fewstep").unwrap()).unwrap();
        let config = DitConfig {
            input_size: 8,
            channels: 4,
            patch: 2,
            depth: 3,
            width: 16,
            heads: 4,
            mlp_ratio: 4.,
            classes: 10,
            class_dropout: 0.1,
            learned_variance: true,
            convention: Convention::Original,
        };
        let dit = Dit::from_tensors(&config, file.section("model/"), "the fixture").unwrap();
        let sampler = SamplerOptions::new(SamplerName::Ddim, 5)
            .build(&NoiseSchedule::default())
            .unwrap();
        let guidance = Guidance::scale(1.5);
        let conditions = Conditions::new(&dit, "ddim 5", sampler.timesteps(), &guidance).unwrap();
        Self {
            file,
            facts,
            dit,
            sampler,
            guidance,
            noise: NoiseSchedule::default(),
            conditions,
        }
    }

    fn setting(&self) -> Setting<'_> {
        Setting {
            dit: &self.dit,
            sampler: self.sampler.as_ref(),
            noise: &self.noise,
            conditions: &self.conditions,
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.file.tensor(name).unwrap().shallow_clone()
    }

    fn learner<'a>(&'a self, options: &'a LearnOptions) -> Learner<'a> {
        let learner = Learner::new(self.setting(), options, 0, alone()).unwrap();
        let initial = self.tensor("initial/logits");
        let _guard = tch::no_grad_guard();
        for (row, parameter) in learner.rows.iter().enumerate() {
            let mut parameter = parameter.shallow_clone();
            parameter.copy_(&initial.get(row as i64));
        }
        learner
    }

    /// A sample from the fixture's noise; what each call computed comes with it.
    fn sample(&self, reuse: &mut dyn fewstep_diffusion::Reuse) -> Tensor {
        let labels = self.tensor("infer/labels");
        let mut denoiser = Guided::new(&self.dit, &labels, &self.guidance, reuse).unwrap();
        let x = self.tensor("infer/noise");
        let mut noise = ImageNoise::new(0, 0..2);
        sampler::sample(
            self.sampler.as_ref(),
            &mut denoiser,
            &x,
            &mut noise,
            &mut |_, _| Ok(()),
        )
        .unwrap()
    }

    /// The final plan is the fixture's, and sampling with it gives the fixture's latents.
    fn check_inference(&self, case: &str, learner: &Learner<'_>) {
        let plan = learner.plan().unwrap();
        let computed = self.tensor(&format!("case/{case}/infer/computed"));
        for row in 0..5 {
            for module in 0..6 {
                let expected = computed.int64_value(&[row, module]) == 0;
                let found = plan.reuses(row as usize, module as usize);
                assert_eq!(found, expected, "{case}: row {row}, sub-module {module}");
            }
        }
        let mut reuse = CachedReuse::new(Planned(&plan), self.dit.config());
        let found = self.sample(&mut reuse);
        let expected = self
            .tensor(&format!("case/{case}/infer/x0"))
            .narrow(0, 0, 2);
        assert_close(&found, &expected, &format!("{case}: cached x0"));
    }
}

/// Within 1e-4 of the largest element.
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let scale = expected.abs().max().double_value(&[]);
    let found = found.to_kind(expected.kind()).view_as(expected);
    let error = (&found - expected).abs().max().double_value(&[]);
    assert!(error <= 1e-4 * scale, "{what}: {error} of {scale}");
}

fn options(fixture: &Fixture, case: &str) -> LearnOptions {
    let facts = &fixture.facts["cases"][case];
    let text = |key: &str| facts[key].as_str().unwrap_or_default().to_owned();
    LearnOptions {
        batch_size: 2,
        learning_rate: 0.01,
        beta: facts["beta"].as_f64().unwrap(),
        threshold: 0.1,
        proxy: match text("proxy").as_str() {
            "telescoping" => Proxy::Telescoping,
            "leave-one-out" => Proxy::LeaveOneOut,
            _ => Proxy::None,
        },
        reduction: match text("reduction").as_str() {
            "sum" => Reduction::Sum,
            _ => Reduction::Mean,
        },
        penalty: match text("penalty").as_str() {
            "macs" => Penalty::Macs,
            _ => Penalty::Count,
        },
        refresh_every: 10,
        ..LearnOptions::default()
    }
}

#[test]
fn three_trajectories_are_those_of_the_published_algorithm() {
    as_published(false);
}

#[test]
fn blocks_that_are_computed_again_on_the_way_back_give_the_published_algorithm_too() {
    as_published(true);
}

fn as_published(recompute: bool) {
    let fixture = Fixture::open();
    for case in [
        "telescoping-mean",
        "leave-one-out-mean",
        "leave-one-out-sum",
        "none",
        "telescoping-mean-macs",
    ] {
        let options = LearnOptions {
            recompute,
            ..options(&fixture, case)
        };
        let mut learner = fixture.learner(&options);
        let stored = |what: &str| fixture.tensor(&format!("case/{case}/{what}"));
        let (mut losses, mut errors, mut tables) = (vec![], vec![], vec![]);
        for trajectory in 0..3 {
            let labels = fixture.tensor("train/labels").get(trajectory);
            let noise = fixture.tensor("train/noise").get(trajectory);
            let job = Job::new(fixture.setting(), &labels, 0, 0..2).unwrap();
            learner
                .trajectory_of(job, &noise, &mut |_| Ok(()), &mut |seen| {
                    losses.push(seen.loss);
                    errors.push(seen.mse);
                    tables.push(seen.learner.logits()?);
                    Ok(())
                })
                .unwrap();
            learner.trajectory += 1;
            // Weights of the errors span orders of magnitude: each is compared for itself.
            let expected = stored("lambdas").get(trajectory);
            for row in 0..4 {
                let (found, expected) = (learner.lambda[row], expected.double_value(&[row as i64]));
                assert!(
                    (found - expected).abs() <= 1e-4 * expected,
                    "{case}: lambda of row {row} in trajectory {trajectory}: {found} {expected}"
                );
            }
        }
        assert_close(
            &Tensor::from_slice(&losses),
            &stored("loss"),
            &format!("{case}: losses"),
        );
        assert_close(
            &Tensor::from_slice(&errors),
            &stored("mse"),
            &format!("{case}: errors"),
        );
        assert_close(
            &Tensor::stack(&tables, 0),
            &stored("logits"),
            &format!("{case}: logits"),
        );
        fixture.check_inference(case, &learner);
    }
}

#[test]
fn the_latents_of_a_trajectory_are_those_of_the_published_algorithm() {
    let fixture = Fixture::open();
    let options = options(&fixture, "telescoping-mean");
    let mut learner = fixture.learner(&options);
    let mut all = Vec::new();
    let labels = fixture.tensor("train/labels").get(0);
    let noise = fixture.tensor("train/noise").get(0);
    let job = Job::new(fixture.setting(), &labels, 0, 0..2).unwrap();
    learner
        .trajectory_of(job, &noise, &mut |_| Ok(()), &mut |seen| {
            all.push(seen.x.copy());
            Ok(())
        })
        .unwrap();
    let expected = fixture.tensor("case/telescoping-mean/x").get(0);
    for (i, found) in all.iter().enumerate() {
        assert_close(
            found,
            &expected.get(i as i64 + 1),
            &format!("after call {}", i + 1),
        );
    }
}

#[test]
fn the_uncached_sample_is_that_of_the_fixture() {
    let fixture = Fixture::open();
    let found = fixture.sample(&mut ComputeAll);
    assert_close(&found, &fixture.tensor("infer/x0").narrow(0, 0, 2), "x0");
}

#[test]
fn learning_to_cache_trains_as_its_published_code() {
    let fixture = Fixture::open();
    let case = |what: &str| fixture.tensor(&format!("case/l2c/{what}"));
    let options = LearnOptions {
        training: Training::L2c,
        ..options(&fixture, "l2c")
    };
    let mut learner = fixture.learner(&options);
    let dropped = case("dropped");
    for i in 0..dropped.size()[0] {
        let labels = case("labels").get(i);
        let labels = labels
            .full_like(10)
            .where_self(&dropped.get(i).eq(1), &labels);
        let draw = l2c::Draw {
            row: case("row").int64_value(&[i]) as usize,
            x: case("x_start").get(i),
            noise: case("noise").get(i),
            labels,
        };
        let (loss, mse) = learner.l2c_step(&draw).unwrap();
        for (found, name) in [(loss, "loss"), (mse, "mse")] {
            let expected = case(name).double_value(&[i]);
            assert!(
                (found - expected).abs() <= 1e-4 * expected,
                "{name} {i}: {found} {expected}"
            );
        }
        assert_close(&learner.logits().unwrap(), &case("logits").get(i), "logits");
    }
    fixture.check_inference("l2c", &learner);
}

#[test]
fn adamw_takes_the_published_steps_where_gradients_are_as_small_as_its_epsilon() {
    let fixture = Fixture::open();
    let mut row = fixture.tensor("adamw/initial").set_requires_grad(true);
    let group = ParameterGroup {
        parameters: vec![("prob".into(), row.shallow_clone())],
        weight_decay: 0.,
        lr_factor: 1.,
    };
    let mut optimiser = Optimiser::new(ADAMW, vec![group]).unwrap();
    let grads = fixture.tensor("adamw/grads");
    for i in 0..grads.size()[0] {
        optimiser.zero_grad();
        (&row * grads.get(i)).sum(Kind::Float).backward();
        optimiser.step(0.01).unwrap();
        let _guard = tch::no_grad_guard();
        let _ = row.clamp_(-5., 5.);
        assert_close(&row.detach(), &fixture.tensor("adamw/after").get(i), "row");
    }
}

fn whole(
    fixture: &Fixture,
    options: &LearnOptions,
    folder: &Path,
    stop_at: Option<u32>,
) -> Result<Learned> {
    whole_as(alone(), fixture, options, folder, stop_at)
}

fn whole_as(
    group: &Group,
    fixture: &Fixture,
    options: &LearnOptions,
    folder: &Path,
    stop_at: Option<u32>,
) -> Result<Learned> {
    let images = Images {
        images: &fixture.tensor("infer/noise"),
        labels: &fixture.tensor("infer/labels"),
    };
    learn(
        fixture.setting(),
        options,
        Some(&images),
        3,
        folder,
        group,
        &mut |e| match e {
            LearnEvent::Trajectory { trajectory, .. } if Some(*trajectory) == stop_at => {
                Err(Error::Stopped("killed".into()))
            }
            _ => Ok(()),
        },
    )
}

#[test]
fn learning_that_was_killed_resumes_to_the_same_router() {
    let fixture = Fixture::open();
    let options = LearnOptions {
        trajectories: 7,
        checkpoint_every: 2,
        refresh_every: 15,
        beta: 1e-2,
        target_mac_saving: Some(0.3),
        order: 1,
        learning_rate: 0.1,
        evaluate_on: 2,
        batch_size: 2,
        ..LearnOptions::default()
    };
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = whole(&fixture, &options, one.path(), None).unwrap().router;
    for stop_at in [1, 3, 6] {
        assert!(whole(&fixture, &options, many.path(), Some(stop_at)).is_err());
    }
    assert_eq!(trajectories_done(many.path()).unwrap(), 4);
    let found = whole(&fixture, &options, many.path(), None).unwrap().router;
    assert_eq!(found.logits(), expected.logits());
}

#[test]
fn batches_do_not_repeat_after_the_proxy_is_refreshed() {
    let fixture = Fixture::open();
    let options = LearnOptions::default();
    let mut learner = fixture.learner(&options);
    let mut draw = |trajectory| {
        learner.trajectory = trajectory;
        random::normal(&mut learner.generator(), &[8]).unwrap()
    };
    assert_ne!(draw(0), draw(100));
    assert_eq!(draw(3), draw(3));
}

#[test]
fn an_error_on_the_prediction_does_not_see_the_variance() {
    let fixture = Fixture::open();
    let ones = Tensor::ones([2, 8, 8, 8], (Kind::Float, tch::Device::Cpu));
    let zeros = ones.zeros_like();
    let other = Tensor::cat(&[zeros.narrow(1, 0, 4), ones.narrow(1, 4, 4)], 1);
    for (error_on, expected) in [(ErrorOn::Output, 0.5), (ErrorOn::Prediction, 0.)] {
        let options = LearnOptions {
            error_on,
            ..LearnOptions::default()
        };
        let error = fixture.learner(&options).error(&zeros, &other).unwrap();
        assert_eq!(error.double_value(&[]), expected);
    }
}

#[test]
fn straight_through_runs_what_sampling_will_run_with_and_without_a_forecast() {
    let fixture = Fixture::open();
    let mut samples = Vec::new();
    for order in 0..=2 {
        let options = LearnOptions {
            mix: Mix::StraightThrough,
            proxy: Proxy::None,
            batch_size: 2,
            learning_rate: 1e-9,
            order,
            ..LearnOptions::default()
        };
        let mut learner = fixture.learner(&options);
        let plan = learner.plan().unwrap();
        assert!(
            (0..5).all(|row| (0..6).all(|c| !plan.reuses(row, c) || plan.order(row, c) == order))
        );
        let (labels, noise) = (
            fixture.tensor("infer/labels"),
            fixture.tensor("infer/noise"),
        );
        let job = Job::new(fixture.setting(), &labels, 0, 0..2).unwrap();
        let mut last = None;
        learner
            .trajectory_of(
                job.with_order(order),
                &noise,
                &mut |_| Ok(()),
                &mut |seen| {
                    last = Some(seen.x.narrow(0, 0, 2));
                    Ok(())
                },
            )
            .unwrap();
        let mut reuse = CachedReuse::new(Planned(&plan), fixture.dit.config());
        let sample = fixture.sample(&mut reuse);
        assert_close(&last.unwrap(), &sample, "x0");
        samples.push(sample);
    }
    assert_ne!(samples[0], samples[1]);
    assert_ne!(samples[1], samples[2]);
}

#[test]
fn a_target_drives_the_penalty_until_the_plan_saves_as_much() {
    let fixture = Fixture::open();
    let target = 0.4;
    let options = LearnOptions {
        mix: Mix::StraightThrough,
        threshold: 0.5,
        learning_rate: 0.1,
        beta: 1e-4,
        proxy: Proxy::None,
        target_mac_saving: Some(target),
        order: 1,
        trajectories: 60,
        batch_size: 2,
        evaluate_on: 2,
        ..LearnOptions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut seen: Vec<(f64, f64)> = Vec::new();
    let learned = learn(
        fixture.setting(),
        &options,
        None,
        0,
        folder.path(),
        alone(),
        &mut |event| {
            if let LearnEvent::Trajectory {
                beta, mac_saving, ..
            } = event
            {
                seen.push((*beta, *mac_saving));
            }
            Ok(())
        },
    )
    .unwrap();
    let last = &seen[seen.len() - 20..];
    let mean = last.iter().map(|s| s.1).sum::<f64>() / 20.;
    assert!((mean - target).abs() < 0.06, "{target}: {mean}, {last:?}");
    assert_eq!(learned.router.order(), 1);
}

#[test]
fn a_router_can_begin_with_a_plan() {
    let fixture = Fixture::open();
    let plan = policy::fora(&fixture.conditions, 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("start.toml");
    plan.save(&path).unwrap();
    let init = RouterInit::Plan {
        path: path.clone(),
        logit: 1.,
    };
    let router = Router::new(&fixture.conditions, 0.5, &init, 0).unwrap();
    let read = policy::harmonica(&router, 0.5).unwrap();
    assert!(read.diff(&plan).unwrap().cells.is_empty());
    let init = RouterInit::Plan { path, logit: 0. };
    let e = Router::new(&fixture.conditions, 0.5, &init, 0).unwrap_err();
    assert_eq!(
        e.to_string(),
        "init: expected a logit above 0, to 5, found 0"
    );
}

/// 50 updates of five trajectories or pairs of steps, with the proxy refreshed.
#[test]
fn ranks_learn_the_router_of_one_process_and_go_on_with_another_number_of_them() {
    let fixture = Fixture::open();
    let cases = [
        (Training::Sdt, Proxy::Telescoping, Reduction::Mean, 13),
        (Training::Sdt, Proxy::LeaveOneOut, Reduction::Sum, 13),
        (Training::L2c, Proxy::None, Reduction::Mean, 25),
    ];
    for (training, proxy, reduction, trajectories) in cases {
        let options = LearnOptions {
            training,
            proxy,
            reduction,
            trajectories,
            checkpoint_every: 3,
            refresh_every: 15,
            batch_size: 5,
            evaluate_on: 2,
            ..LearnOptions::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let expected = whole(&fixture, &options, folder.path(), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (world, stop_at) in [(3, Some(7)), (2, None)] {
            let found = Group::of_threads(world, std::time::Duration::from_secs(60), |group| {
                // Only rank 0 has a folder, and a fixture may not be shared.
                let (fixture, nowhere) = (Fixture::open(), Path::new(""));
                let folder = if group.leads() {
                    folder.path()
                } else {
                    nowhere
                };
                let learned = whole_as(group, &fixture, &options, folder, stop_at);
                learned.map(|l| l.router.logits().to_vec()).ok()
            });
            for logits in found.unwrap() {
                assert_eq!(logits.is_none(), stop_at.is_some());
                let all = logits.iter().flatten().flatten();
                for (a, b) in all.zip(expected.router.logits().iter().flatten()) {
                    assert!((a - b).abs() < 1e-4, "{training:?}, {proxy:?}: {a}, {b}");
                }
            }
        }
    }
}

#[test]
fn lambda_is_the_mean_over_ranks() {
    let options = LearnOptions {
        batch_size: 2,
        ..LearnOptions::default()
    };
    let proxy = |group: &Group| {
        let fixture = Fixture::open();
        let part = group.part(2);
        let (labels, noise) = (
            part.rows(&fixture.tensor("infer/labels")).unwrap(),
            part.rows(&fixture.tensor("infer/noise")).unwrap(),
        );
        let mut job = Job::new(fixture.setting(), &labels, 0, part.numbers()).unwrap();
        let learner = Learner {
            group,
            part,
            ..fixture.learner(&options)
        };
        learner.proxy(&mut job, &noise).unwrap()
    };
    let expected = proxy(alone());
    assert!(expected.iter().any(|l| *l > 0.));
    let found = Group::of_threads(2, std::time::Duration::from_secs(60), proxy);
    for lambda in found.unwrap() {
        for (a, b) in lambda.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{a}, {b}");
        }
    }
}
