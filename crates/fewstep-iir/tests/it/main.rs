//! Whole runs on the embedded digits, judged by the checkpoints that they leave.

#![allow(clippy::unwrap_used)]

mod performance;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use fewstep_datasets::DataSpec;
use fewstep_iir::{
    Arm, Calibration, CalibrationPreset, Data, DataOptions, Direct, Distillation, Epochs, Limits,
    NetworkOptions, Performance, Recipe, Report, Silent, Snn, Training, calibrate, distillation,
    fold_batch_norm, percentile, run,
};
use fewstep_spiking::{Forward, Input, Network, NeuronOptions, zoo};
use fewstep_torch::{Checkpoint, Group, LearningRate, OptimiserConfig};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;

const SGD: OptimiserConfig = OptimiserConfig::Sgd {
    momentum: 0.,
    nesterov: false,
};
const ADAM: OptimiserConfig = OptimiserConfig::Adam {
    betas: [0.9, 0.999],
    eps: 1e-8,
    amsgrad: true,
    decoupled: false,
};
/// A rate at which no weight of a float moves.
const STILL: f64 = 1e-12;

/// One run at a time: libtorch's generator belongs to the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    guard
}

/// `train_images` digits, of which `validation_fraction` are for validation.
fn digits(train_images: usize, validation_fraction: f64) -> Data {
    let options = DataOptions {
        validation_fraction,
        train_images: Some(train_images),
        test_images: Some(100),
        ..DataOptions::default()
    };
    Data::open_with(&DataSpec::new("digits", None), &options, 0).unwrap()
}

/// 160 digits to train on and 40 for validation.
fn data() -> Data {
    digits(200, 0.2)
}

/// One epoch of one stage at T = 2, with nothing random in a step.
fn recipe() -> Recipe {
    Recipe {
        network: NetworkOptions {
            architecture: "8 A 8".into(),
            hidden: vec![16],
            ..NetworkOptions::default()
        },
        ann: Training {
            epochs: 10,
            batch_size: 20,
            learning_rate: 0.05,
            schedule: LearningRate::Constant,
            dropout: 0.,
            ..Training::default()
        },
        calibration: Calibration {
            timesteps: Some(5),
            images: Some(64),
            // Low enough for a stage at T = 1 to live. A percentile is also the current of some neuron, which a last bit must not
            // make fire or not.
            scale: Some(0.5),
            ..Calibration::default()
        },
        snn: Snn {
            timesteps: vec![2],
            epochs: Epochs::Same(1),
            batch_size: 40,
            optimiser: SGD,
            learning_rate: 0.1,
            schedule: LearningRate::Constant,
            dropout: 0.,
            ..Snn::default()
        },
        ..Recipe::default()
    }
}

fn train(recipe: &Recipe, data: &Data, folder: &Path) -> Report {
    run(
        recipe,
        data,
        folder,
        Device::Cpu,
        &Group::alone(),
        &mut Silent,
    )
    .unwrap()
}

/// A folder that holds a trained artificial network and nothing else; it is trained once for all tests.
fn folder_with_ann() -> TempDir {
    const FILES: [&str; 3] = ["best.safetensors", "last.safetensors", "result.json"];
    static TRAINED: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    let trained = TRAINED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let report = train(&recipe(), &data(), folder.path());
        let accuracy = report.ann.test_accuracy;
        assert!(accuracy > 0.6, "the network is no good: {accuracy}");
        FILES.map(|file| std::fs::read(folder.path().join("ann").join(file)).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    let ann = folder.path().join("ann");
    std::fs::create_dir(&ann).unwrap();
    for (file, bytes) in FILES.iter().zip(trained) {
        std::fs::write(ann.join(file), bytes).unwrap();
    }
    folder
}

/// Follows the recipe from the trained artificial network.
fn spike(recipe: &Recipe, data: &Data) -> (TempDir, Report) {
    let folder = folder_with_ann();
    let report = train(recipe, data, folder.path());
    (folder, report)
}

/// The tensors of a checkpoint whose names start with `prefix`.
fn read(folder: &TempDir, file: &str, prefix: &str) -> Tensors {
    let path = folder.path().join(format!("{file}.safetensors"));
    let found = Checkpoint::load(&path).unwrap().section(prefix);
    assert!(!found.is_empty(), "{file} has nothing under `{prefix}`");
    found
}

/// The weights that were best.
fn best(folder: &TempDir, phase: &str) -> Tensors {
    read(folder, &format!("{phase}/best"), "")
}

/// What calibration handed to the first stage.
fn start(folder: &TempDir) -> Tensors {
    read(folder, "calibrated-t-first", "network.")
}

fn is_weight(name: &str, t: &Tensor) -> bool {
    name.ends_with(".weight") && t.dim() > 1
}

fn is_neuron(name: &str) -> bool {
    name.ends_with(".threshold") || name.ends_with(".leak")
}

fn largest(t: &Tensor) -> f64 {
    t.abs().max().double_value(&[])
}

/// The largest difference of any two tensors of a name.
fn distance(a: &Tensors, b: &Tensors) -> f64 {
    assert!(a.keys().eq(b.keys()));
    a.iter()
        .map(|(name, t)| largest(&(t - &b[name])))
        .fold(0., f64::max)
}

/// Only the thresholds.
fn thresholds(of: &Tensors) -> Tensors {
    of.iter()
        .filter(|(name, _)| name.ends_with(".threshold"))
        .map(|(name, t)| (name.clone(), t.shallow_clone()))
        .collect()
}

#[test]
fn each_stage_starts_from_the_best_weights_thresholds_and_leaks_of_the_last() {
    let _alone = alone();
    let mut recipe = recipe();
    recipe.snn.timesteps = vec![2, 1];
    recipe.snn.learning_rate = STILL;
    let data = data();
    let (folder, _) = spike(&recipe, &data);
    let first = best(&folder, "t2");
    assert!(distance(&first, &start(&folder)) < 1e-6);
    assert!(distance(&best(&folder, "t1"), &first) < 1e-6);

    // Best weights that are not the last ones, as after a kill behind the last epoch of t2.
    let better: Tensors = first
        .iter()
        .map(|(name, t)| {
            let factor = if name.ends_with(".leak") { 0.7 } else { 1.1 };
            (name.clone(), t * factor)
        })
        .collect();
    assert!(better.keys().any(|name| name.ends_with(".leak")));
    let tensors = better.iter().map(|(n, t)| (n.clone(), t.shallow_clone()));
    Checkpoint::new()
        .with_all("", tensors)
        .save(&folder.path().join("t2/best.safetensors"))
        .unwrap();
    std::fs::remove_file(folder.path().join("t2/result.json")).unwrap();
    std::fs::remove_dir_all(folder.path().join("t1")).unwrap();
    train(&recipe, &data, folder.path());
    assert!(distance(&read(&folder, "t2/last", "network."), &first) < 1e-6);
    assert!(distance(&best(&folder, "t1"), &better) < 1e-6);
}

#[test]
fn a_stage_starts_with_a_fresh_optimiser() {
    let _alone = alone();
    let mut recipe = recipe();
    recipe.snn.timesteps = vec![2, 1];
    recipe.snn.epochs = Epochs::Each(vec![2, 1]);
    recipe.snn.batch_size = 160;
    recipe.snn.optimiser = ADAM;
    recipe.snn.learning_rate = 1e-3;
    let (folder, _) = spike(&recipe, &data());
    for (stage, steps) in [("t2", 2.), ("t1", 1.)] {
        let state = read(&folder, &format!("{stage}/last"), "optimiser.steps.");
        for (name, found) in state {
            assert_eq!(found.double_value(&[]), steps, "{stage}: {name}");
        }
    }
    // After the first step from empty moments they hold one gradient: (1 − β₁) g and (1 − β₂) g².
    let first = read(&folder, "t1/last", "optimiser.first.");
    let second = read(&folder, "t1/last", "optimiser.second.");
    for (name, m) in &first {
        let expected = (m / 0.1).square() * 0.001;
        let tolerance = 1e-4 * largest(&expected) + 1e-30;
        assert!(largest(&(expected - &second[name])) <= tolerance, "{name}");
    }
    assert!(first.values().any(|m| largest(m) > 0.));
}

#[test]
fn the_carried_arm_starts_from_the_calibrated_thresholds_the_calibrated_arm_from_its_own_and_scratch_from_the_default()
 {
    let _alone = alone();
    let mut recipe = recipe();
    recipe.snn.learning_rate = STILL;
    recipe.neuron.threshold = 0.55;
    recipe.calibration.scale = None;
    recipe.direct = Direct {
        arms: vec![Arm::Carried, Arm::Calibrated, Arm::Scratch],
        epochs: Some(1),
    };
    let (folder, report) = spike(&recipe, &data());
    let (converted, own) = (
        start(&folder),
        read(&folder, "calibrated-direct-calibrated", "network."),
    );
    assert!(distance(&best(&folder, "direct-carried"), &converted) < 1e-6);
    assert!(distance(&best(&folder, "direct-calibrated"), &own) < 1e-6);
    assert!(distance(&thresholds(&own), &thresholds(&converted)) > 1e-3);
    for (name, rate) in report.direct[1]
        .layers
        .iter()
        .map(|l| (&l.layer, l.spike_rate))
    {
        assert!((0.05..0.15).contains(&rate), "{name}: {rate}");
    }
    let scratch = best(&folder, "direct-scratch");
    for (name, threshold) in thresholds(&scratch) {
        assert!(largest(&(threshold - 0.55)) < 1e-6, "{name}");
    }
    for (name, t) in &converted {
        if is_weight(name, t) {
            assert!(largest(&(t - &own[name])) < 1e-6, "{name}");
            assert!(largest(&(t - &scratch[name])) > 1e-2, "{name}");
        }
    }
}

#[test]
fn weight_decay_acts_on_weights_only() {
    let _alone = alone();
    let mut recipe = recipe();
    recipe.limits = Limits { batches: Some(1) };
    recipe.snn.learning_rate = 1e-3;
    let data = data();
    let decayed = |mut recipe: Recipe| {
        recipe.snn.weight_decay = 100.;
        recipe
    };
    let (plain, _) = spike(&recipe, &data);
    let (shrunk, _) = spike(&decayed(recipe.clone()), &data);
    let (before, plain, shrunk) = (start(&plain), best(&plain, "t2"), best(&shrunk, "t2"));
    let mut kept = 0;
    for (name, t) in &plain {
        if is_weight(name, t) {
            let expected = t - &before[name] * 0.1;
            assert!(largest(&(expected - &shrunk[name])) < 1e-6, "{name}");
        } else {
            kept += 1;
            assert!(largest(&(t - &shrunk[name])) < 1e-7, "{name}");
        }
    }
    // Two biases (folded batch norm), three thresholds, three leaks.
    assert_eq!(kept, 8);

    // The artificial network, whose start no file holds: a rate so small that decay alone moves it.
    recipe.ann.optimiser = SGD;
    recipe.ann.learning_rate = 1e-7;
    recipe.ann.weight_decay = 0.;
    let ann = |recipe: &Recipe| {
        let folder = tempfile::tempdir().unwrap();
        train(recipe, &data, folder.path());
        best(&folder, "ann")
    };
    let plain = ann(&recipe);
    recipe.ann.weight_decay = 1e6;
    let shrunk = ann(&recipe);
    for (name, t) in &plain {
        let factor = if is_weight(name, t) { 0.9 } else { 1. };
        assert!(largest(&(t * factor - &shrunk[name])) < 1e-5, "{name}");
    }
    assert!(plain.keys().any(|name| name.contains("batch_norm.weight")));
}

#[test]
fn accumulated_batches_make_the_step_of_one_large_batch() {
    let _alone = alone();
    // 40 images to train on: an epoch is one step.
    let data = digits(50, 0.2);
    assert_eq!(data.counts().0, 40);
    let after = |batch_size, accumulate| {
        let mut recipe = recipe();
        (recipe.snn.batch_size, recipe.snn.accumulate) = (batch_size, accumulate);
        let (folder, _) = spike(&recipe, &data);
        (start(&folder), best(&folder, "t2"))
    };
    let (before, whole) = after(40, 1);
    assert!(distance(&whole, &before) > 1e-3);
    // More to accumulate than an epoch has: the mean is over those that there are.
    for (batch_size, accumulate) in [(20, 2), (20, 5), (10, 4)] {
        let found = distance(&after(batch_size, accumulate).1, &whole);
        assert!(found < 1e-5, "{batch_size} × {accumulate}: {found}");
    }
    // Without accumulation the same batches are two steps.
    assert!(distance(&after(20, 1).1, &whole) > 1e-3);
}

#[test]
fn a_penalty_on_accumulates_lowers_the_spike_rate() {
    let _alone = alone();
    let with = |rate_penalty| {
        let mut recipe = recipe();
        // One long epoch, so that its weights are the best ones whatever became of the accuracy.
        recipe.snn.batch_size = 4;
        recipe.snn.optimiser = ADAM;
        recipe.snn.learning_rate = 3e-3;
        recipe.snn.rate_penalty = rate_penalty;
        spike(&recipe, &data()).1.stages.remove(0)
    };
    let (free, penalised) = (with(0.), with(5.));
    assert!(
        penalised.spike_rate_mean < 0.8 * free.spike_rate_mean,
        "{} and {}",
        penalised.spike_rate_mean,
        free.spike_rate_mean
    );
    assert!(penalised.energy_ratio > free.energy_ratio);
}

#[test]
fn thresholds_learn_at_their_own_rate() {
    let _alone = alone();
    let moved = |factor| {
        let mut recipe = recipe();
        recipe.limits = Limits { batches: Some(1) };
        // Away from 1, where leaks would be held.
        recipe.neuron.leak.initial = 0.8;
        recipe.snn.threshold_lr_factor = factor;
        let (folder, _) = spike(&recipe, &data());
        let before = start(&folder);
        best(&folder, "t2")
            .into_iter()
            .map(|(name, t)| (name.clone(), t - &before[&name]))
            .collect::<Tensors>()
    };
    let (full, half) = (moved(1.), moved(0.5));
    for (name, t) in &full {
        let factor = if is_neuron(name) { 0.5 } else { 1. };
        assert!(largest(t) > 1e-5, "{name} does not move");
        assert!(largest(&(t * factor - &half[name])) < 1e-6, "{name}");
    }
}

#[test]
fn the_two_published_calibrations_differ_as_published() {
    let _alone = alone();
    let preset = |preset| Calibration {
        preset,
        ..Calibration::default()
    };
    let (iir, diet) = (
        preset(CalibrationPreset::IirSnn),
        preset(CalibrationPreset::DietSnn),
    );
    let numbers = |c: &Calibration| (c.percentile(), c.scale(), c.timesteps());
    assert_eq!(numbers(&iir), (90., 1., 500));
    assert_eq!(numbers(&diet), (99.7, 0.3, 100));
    let own = Calibration {
        percentile: Some(95.),
        ..diet.clone()
    };
    assert_eq!(numbers(&own), (95., 0.3, 100));

    tch::manual_seed(0);
    let images = Tensor::rand([8, 3, 16, 16], (Kind::Float, Device::Cpu));
    let plan = || zoo::by_name("resnet12", [3, 16, 16], &[], 4, 0.1, false).unwrap();
    let mut network = Network::new(plan(), Device::Cpu).unwrap();
    for setting in [iir, diet] {
        network.add_neurons(&NeuronOptions::default()).unwrap();
        let calibrated = calibrate(&mut network, &images, &setting, 5).unwrap();
        let names: Vec<_> = calibrated.iter().map(|c| c.layer.as_str()).collect();
        assert_eq!(names, ["stem1", "stem2", "stem3"]);
        let current = network
            .current(Input::Direct(&images), 1, 0, &mut Vec::new())
            .unwrap();
        let expected = percentile(&current, setting.percentile(), false).unwrap();
        let expected = expected.double_value(&[0]) * setting.scale();
        assert!((calibrated[0].threshold - expected).abs() < 1e-6);
        // The published code leaves the neurons of residual blocks as they were.
        for unit in network
            .units()
            .iter()
            .filter(|u| u.name.starts_with("stage"))
        {
            let threshold = &unit.neuron.as_ref().unwrap().threshold;
            assert_eq!(threshold, &Tensor::from_slice(&[0.4f32]), "{}", unit.name);
        }
        let residual = Calibration {
            residual: true,
            ..setting
        };
        network.add_neurons(&NeuronOptions::default()).unwrap();
        let calibrated = calibrate(&mut network, &images, &residual, 5).unwrap();
        assert_eq!(calibrated.len(), network.units().len() - 1);
        assert!(
            calibrated
                .iter()
                .all(|c| c.threshold > 0. && (c.threshold - 0.4).abs() > 1e-6)
        );
    }
}

/// All test images, `[360, 1, 8, 8]`, about as the networks see them.
fn images() -> Tensor {
    let test = fewstep_datasets::digits().unwrap().test;
    let pixels: Vec<f32> = (0..test.len())
        .flat_map(|i| {
            let image = test.image(i).unwrap();
            image.iter().map(|&p| f32::from(p)).collect::<Vec<_>>()
        })
        .collect();
    let x = Tensor::from_slice(&pixels).view([-1, 1, 8, 8]);
    (&x - x.mean(Kind::Float)) / x.std(true)
}

#[test]
fn distillation_pulls_the_student_to_the_teacher() {
    let _alone = alone();
    let plan = || recipe().network.plan([1, 8, 8], 10).unwrap();
    let x = images();
    let away = |weight: Option<f64>| {
        let mut recipe = recipe();
        // One long epoch, so that its weights are the best ones whatever became of the accuracy.
        recipe.snn.batch_size = 4;
        recipe.snn.optimiser = ADAM;
        recipe.snn.learning_rate = 3e-3;
        // Next to nothing is left of the labels.
        recipe.snn.label_smoothing = 0.999;
        recipe.snn.distillation = weight.map(|weight| Distillation {
            weight,
            temperature: 2.,
        });
        let (folder, _) = spike(&recipe, &data());
        let mut teacher = Network::new(plan(), Device::Cpu).unwrap();
        teacher.load(&best(&folder, "ann"), "the teacher").unwrap();
        let mut student = Network::new(plan(), Device::Cpu).unwrap();
        fold_batch_norm(&mut student).unwrap();
        student.add_neurons(&recipe.neuron).unwrap();
        let logits = |network: &Network, options| {
            let input = Input::Direct(&x);
            network.forward(input, &options, None).unwrap().logits
        };
        let target = logits(&teacher, Forward::analog());
        [start(&folder), best(&folder, "t2")].map(|weights| {
            student.load(&weights, "the student").unwrap();
            let student = logits(&student, Forward::spiking(2));
            let distance = distillation(&student, &target, 1.).unwrap();
            distance.double_value(&[])
        })
    };
    let [before, with] = away(Some(20.));
    let [_, without] = away(None);
    assert!(with < 0.8 * before, "{with} and {before}");
    assert!(with < 0.8 * without, "{with} and {without}");
}
