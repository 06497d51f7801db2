use fewstep_datasets::Augment;
use fewstep_torch::Precision;

use super::*;
use crate::noise::BetaSchedule;

fn config(learned_variance: bool) -> DitConfig {
    DitConfig {
        depth: 2,
        width: 32,
        heads: 2,
        classes: 10,
        learned_variance,
        ..DitConfig::named("S/4", 8, 1).unwrap()
    }
}

fn data() -> TrainData {
    let digits = fewstep_datasets::digits().unwrap();
    TrainData {
        train: digits.train,
        validation: digits.test,
    }
}

fn options() -> TrainOptions {
    TrainOptions {
        steps: 30,
        batch_size: 32,
        learning_rate: 3e-3,
        checkpoint_every: 10,
        validation_images: 64,
        gradient_clip: Some(1.),
        ..TrainOptions::default()
    }
}

fn run(
    o: &TrainOptions,
    learned: bool,
    folder: &Path,
    stop_at: Option<u32>,
) -> (Result<Dit>, Vec<f64>) {
    run_as(&Group::alone(), o, learned, folder, stop_at)
}

fn run_as(
    group: &Group,
    o: &TrainOptions,
    learned: bool,
    folder: &Path,
    stop_at: Option<u32>,
) -> (Result<Dit>, Vec<f64>) {
    let mut losses = Vec::new();
    let dit = train(
        &config(learned),
        o,
        &data(),
        5,
        folder,
        Device::Cpu,
        group,
        &mut |e| {
            match e {
                TrainEvent::Step { step, .. } if Some(*step) == stop_at => {
                    return Err(Error::Stopped("killed".into()));
                }
                TrainEvent::Checkpoint {
                    validation_loss, ..
                } => losses.push(*validation_loss),
                TrainEvent::Step { .. } => {}
            }
            Ok(())
        },
    );
    (dit, losses)
}

#[test]
fn a_training_that_was_killed_resumes_to_the_same_weights() {
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let o = options();
    let (expected, losses) = run(&o, false, whole.path(), None);
    assert!(losses[2] < losses[0], "{losses:?}");
    for stop_at in [3, 14, 20, 29] {
        assert!(run(&o, false, pieces.path(), Some(stop_at)).0.is_err());
    }
    assert_eq!(steps_done(pieces.path()).unwrap(), 20);
    let (found, _) = run(&o, false, pieces.path(), None);
    assert_eq!(
        found.unwrap().fingerprint().unwrap(),
        expected.unwrap().fingerprint().unwrap()
    );
}

/// The fingerprint of what is trained, and all that is told meanwhile.
fn told(o: &TrainOptions) -> (String, Vec<TrainEvent>) {
    let folder = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let (config, alone) = (config(true), Group::alone());
    let observe = &mut |e: &TrainEvent| {
        events.push(*e);
        Ok(())
    };
    let dit = train(
        &config,
        o,
        &data(),
        5,
        folder.path(),
        Device::Cpu,
        &alone,
        observe,
    );
    (dit.unwrap().fingerprint().unwrap(), events)
}

#[test]
fn losses_read_rarely_change_nothing_that_is_trained_or_told() {
    let o = TrainOptions {
        loss: Loss::Hybrid,
        ..options()
    };
    let expected = told(&o);
    assert_eq!(expected.1.len(), 33);
    for every in [4, 100] {
        let read_loss_every = Some(every);
        let precision = Precision::Tf32;
        let found = told(&TrainOptions {
            read_loss_every,
            precision,
            ..o.clone()
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn images_on_the_device_train_to_the_same_bits_and_are_told_of_alike() {
    let o = TrainOptions {
        augment: Augment {
            crop_padding: 1,
            horizontal_flip: true,
            cutout: 2,
            ..Augment::default()
        },
        // Two epochs of the digits, the second begun.
        steps: 60,
        ..options()
    };
    let expected = told(&o);
    let resident = TrainOptions {
        data_on_device: Some(true),
        ..o
    };
    assert_eq!(told(&resident), expected);
    let folder = tempfile::tempdir().unwrap();
    assert!(run(&resident, true, folder.path(), Some(55)).0.is_err());
    let (resumed, _) = run(&resident, true, folder.path(), None);
    assert_eq!(resumed.unwrap().fingerprint().unwrap(), expected.0);
}

#[test]
fn images_that_are_randomly_resized_are_refused_on_the_device() {
    let mut o = options();
    o.data_on_device = Some(true);
    o.augment.random_resized_crop = Some(8);
    let (key, reason) = o.validate().unwrap_err();
    assert_eq!(key, "data_on_device");
    assert!(
        reason.starts_with("expected false with augment.random_resized_crop"),
        "{reason}"
    );
}

#[test]
fn a_loss_that_is_no_number_is_found_late_and_named_with_its_step() {
    let step = |read_loss_every| {
        let o = TrainOptions {
            learning_rate: 1e30,
            read_loss_every,
            gradient_clip: None,
            ..options()
        };
        let folder = tempfile::tempdir().unwrap();
        match run(&o, false, folder.path(), None).0 {
            Err(Error::Diverged { step, .. }) => step,
            other => panic!("{:?}", other.map(|dit| dit.fingerprint())),
        }
    };
    assert_eq!(step(Some(7)), step(None));
}

#[test]
fn bfloat16_trains_to_nearly_the_loss_of_float32() {
    let losses = [Precision::Float32, Precision::Bfloat16].map(|precision| {
        let o = TrainOptions {
            precision,
            loss: Loss::Hybrid,
            ..options()
        };
        let folder = tempfile::tempdir().unwrap();
        let (dit, losses) = run(&o, true, folder.path(), None);
        dit.unwrap();
        losses[2]
    });
    assert_ne!(losses[0], losses[1]);
    assert!(
        (losses[0] - losses[1]).abs() < 0.02 * losses[0],
        "{losses:?}"
    );
}

#[test]
fn the_bound_trains_the_variance_and_leaves_the_mean_alone() {
    let schedule = NoiseSchedule::new(&BetaSchedule::default()).unwrap();
    let mut rng = random::generator(0, Use::Training, &[]);
    let images = random::normal(&mut rng, &[4, 1, 8, 8])
        .unwrap()
        .clamp(-1., 1.);
    let noise = random::normal(&mut rng, &[4, 1, 8, 8]).unwrap();
    let timesteps = Tensor::from_slice(&[0i64, 1, 400, 999]);
    let x = schedule.q_sample(&images, &timesteps, &noise).unwrap();
    let at = |fraction: f64, mean: &Tensor| {
        let v = Tensor::full([4, 1, 8, 8], fraction, (Kind::Float, Device::Cpu));
        Tensor::cat(&[mean, &v], 1).set_requires_grad(true)
    };
    let output = at(0., &noise);
    variance::bound(&schedule, &images, &x, &timesteps, &output)
        .unwrap()
        .backward();
    let gradient = output.grad();
    assert_eq!(gradient.narrow(1, 0, 1).abs().max().double_value(&[]), 0.);
    assert!(gradient.narrow(1, 1, 1).abs().max().double_value(&[]) > 0.);
    // With the true noise the mean is right, and the posterior's own variance (the lower end) costs nothing.
    let later = |t: &Tensor| t.narrow(0, 1, 3);
    let exact = variance::bound(
        &schedule,
        &later(&images),
        &later(&x),
        &later(&timesteps),
        &later(&at(-1., &noise)),
    );
    assert!(exact.unwrap().abs().double_value(&[]) < 1e-4);
}

#[test]
fn the_hybrid_loss_is_for_models_with_a_learned_variance() {
    let folder = tempfile::tempdir().unwrap();
    let o = TrainOptions {
        loss: Loss::Hybrid,
        steps: 2,
        ..options()
    };
    let e = run(&o, false, folder.path(), None)
        .0
        .unwrap_err()
        .to_string();
    assert_eq!(
        e,
        "loss: expected mse for a DiT without learned variance, found hybrid"
    );
    assert!(run(&o, true, folder.path(), None).0.is_ok());
}

/// The largest difference between any two weights.
fn difference(a: &Dit, b: &Dit) -> f64 {
    let both = a.parameters().into_iter().zip(b.parameters());
    both.map(|((_, a), (_, b))| (a - b).abs().max().double_value(&[]))
        .fold(0., f64::max)
}

#[test]
fn ranks_train_the_model_of_one_process_and_go_on_with_another_number_of_them() {
    let o = TrainOptions {
        steps: 50,
        loss: Loss::Hybrid,
        // Adam divides by the gradient's size, which lifts a last bit to the size of a step: small steps, small differences.
        learning_rate: 1e-4,
        batch_size: 31,
        validation_images: 50,
        ..options()
    };
    let alone = tempfile::tempdir().unwrap();
    let (expected, expected_losses) = run(&o, true, alone.path(), None);
    let (expected, folder) = (expected.unwrap(), tempfile::tempdir().unwrap());
    for (world, stop_at) in [(3, Some(24)), (2, None)] {
        let found = Group::of_threads(world, std::time::Duration::from_secs(60), |group| {
            // Only rank 0 has a folder.
            let folder = match group.leads() {
                true => folder.path(),
                false => Path::new(""),
            };
            let (dit, losses) = run_as(group, &o, true, folder, stop_at);
            match stop_at {
                Some(_) => assert!(dit.is_err()),
                None => {
                    assert_eq!(losses.len(), 3);
                    for (found, expected) in losses.iter().zip(&expected_losses[2..]) {
                        assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
                    }
                }
            }
            dit.ok()
        });
        for dit in found.unwrap().into_iter().flatten() {
            let most = difference(&dit, &expected);
            assert!(most < 1e-5, "weights differ by {most:e}");
        }
    }
}

#[test]
fn a_batch_with_fewer_images_than_ranks_is_refused_in_words() {
    let o = TrainOptions {
        batch_size: 2,
        ..options()
    };
    let found = Group::of_threads(3, std::time::Duration::from_secs(60), |group| {
        let (dit, _) = run_as(group, &o, false, Path::new(""), None);
        dit.unwrap_err().to_string()
    });
    let words = "batch_size: expected an image for each of 3 ranks, found 2";
    assert!(found.unwrap().iter().all(|said| said == words));
}
