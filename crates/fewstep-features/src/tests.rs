//! Parity with pytorch-fid and torch-fidelity on random weights, see tests/parity/inception.py.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewstep_metrics::{InceptionScore, KernelOptions, Splits};
use fewstep_torch::Checkpoint;
use ndarray::{Array4, s};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::weights::{mixed, random};

/// Images in a set, and of how many the features are stored.
const COUNT: usize = 12;
const SHOWN: usize = 3;

fn reference() -> Checkpoint {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/inception.safetensors");
    Checkpoint::load(&path).unwrap()
}

/// Names and shapes of Inception's tensors, found out by asking it for what it misses.
fn random_inception() -> BTreeMap<String, Tensor> {
    let error = Inception::from_tensors(
        [(
            "x".to_owned(),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        )]
        .into(),
        Resize::TensorFlow,
        Device::Cpu,
    );
    let Err(Error::Weights { reason, .. }) = error else {
        panic!("expected an error");
    };
    let names: Vec<&str> = reason
        .split(", ")
        .filter_map(|part| part.strip_suffix("` is missing")?.strip_prefix('`'))
        .collect();
    // A shape is found out in the same way, from a scalar in the place of each tensor.
    let scalars = names
        .iter()
        .map(|name| ((*name).to_owned(), Tensor::from(0.0_f32)));
    let error = Inception::from_tensors(scalars.collect(), Resize::TensorFlow, Device::Cpu);
    let Err(Error::Weights { reason, .. }) = error else {
        panic!("expected an error");
    };
    let mut tensors = BTreeMap::new();
    for part in reason.split(", `") {
        let (name, shape) = part
            .split_once("` is Float [] instead of floats [")
            .unwrap();
        let shape: Vec<i64> = shape
            .trim_end_matches(']')
            .split(", ")
            .map(|d| d.parse().unwrap())
            .collect();
        let name = name.trim_start_matches('`').to_owned();
        tensors.insert(name.clone(), random(&name, &shape).unwrap());
    }
    assert_eq!(tensors.len(), names.len());
    tensors
}

/// The same bytes as `images` in inception.py.
fn images(which: usize) -> Array4<u8> {
    Array4::from_shape_fn((COUNT, 32, 32, 3), |(n, y, x, c)| {
        let block = 2 + n % 5 + which;
        let index = ((n * 32 + y / block) * 32 + x / block) * 3 + c + which * 1_000_003;
        let value = mixed(index as u32) & 255;
        let value = if which == 1 {
            value * 3 / 4 + 20 * c as u32
        } else {
            value
        };
        value as u8
    })
}

#[track_caller]
fn assert_close(found: &[f32], expected: &Tensor, tolerance: f64) {
    let expected = Vec::<f32>::try_from(expected.contiguous().view([-1])).unwrap();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0_f32, |m, v| m.max(v.abs()));
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let worst = f64::from(apart.fold(0_f32, f32::max) / largest);
    println!(
        "worst of {} values: {worst:.2e} of the largest",
        found.len()
    );
    assert!(worst < tolerance, "{worst}");
}

/// Every figure within 1e-4 relative; `less` is what both are without meaning (1 for the Inception Score).
#[track_caller]
fn assert_figure(name: &str, found: f64, less: f64, reference: &Checkpoint) {
    let expected = reference.tensor(&format!("figure/{name}")).unwrap();
    let expected = expected.double_value(&[0]);
    let relative = (found - expected).abs() / (expected - less).abs();
    println!("{name}: {found:.9} is {expected:.9} up to {relative:.1e}");
    assert!(relative < 1e-4, "{name}: {found} instead of {expected}");
}

/// A network that keeps what it has said.
struct Recorded<'a> {
    network: &'a Inception,
    all: RefCell<Features>,
}

impl FeatureNetwork for Recorded<'_> {
    fn distance_name(&self) -> &'static str {
        self.network.distance_name()
    }

    fn metrics(&self) -> &'static [Metric] {
        self.network.metrics()
    }

    fn widths(&self) -> Widths {
        self.network.widths()
    }

    fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features> {
        let features = self.network.features(images)?;
        let mut all = self.all.borrow_mut();
        all.pooled.extend(&features.pooled);
        all.spatial.extend(&features.spatial);
        all.logits.extend(&features.logits);
        Ok(features)
    }
}

/// What an evaluator makes of a set that comes in two unequal parts, and the features by which it did.
fn measured(network: &Inception, which: usize, wanted: &[Metric]) -> (Measured, Features) {
    let recorded = Recorded {
        network,
        all: RefCell::default(),
    };
    let evaluator = Evaluator::new(&recorded, wanted).unwrap();
    let evaluator = evaluator.with_splits(Splits::OfSize(5)).unwrap();
    let mut evaluator = evaluator.with_batch_size(4);
    let images = images(which);
    evaluator.add(images.slice(s![..7, .., .., ..])).unwrap();
    evaluator.add(images.slice(s![7.., .., .., ..])).unwrap();
    assert_eq!(evaluator.count(), COUNT as u64);
    let measured = evaluator.finish().unwrap();
    (measured, recorded.all.into_inner())
}

/// The rows of the images whose features are stored.
fn shown(rows: &[f32]) -> &[f32] {
    &rows[..rows.len() / COUNT * SHOWN]
}

#[test]
fn inception_and_all_figures_are_those_of_torch_fidelity_and_adm() {
    let reference = reference();
    let tensors = random_inception();
    let network = Inception::from_tensors(tensors, Resize::TensorFlow, Device::Cpu).unwrap();
    let (samples, features) = measured(&network, 0, &Metric::ALL);
    let (others, _) = measured(&network, 1, &Metric::ALL);

    let stored = |name: &str| reference.tensor(&format!("torch-fidelity/{name}")).unwrap();
    assert_close(shown(&features.pooled), stored("pool"), 1e-5);
    assert_close(shown(&features.spatial), stored("spatial"), 1e-5);
    assert_close(shown(&features.logits), stored("unbiased"), 1e-5);
    let bias = network.bias().unwrap();
    let logits = shown(&features.logits).iter().zip(bias.iter().cycle());
    let whole: Vec<f32> = logits.map(|(logit, bias)| logit + bias).collect();
    assert_close(&whole, stored("logits"), 1e-5);

    let figures = samples.compare(&others, KernelOptions::default()).unwrap();
    let names: Vec<&str> = figures.iter().map(|f| f.name).collect();
    assert_eq!(names, Metric::ALL.map(Metric::name));
    let adm = |figure: &Figure, rest: &str, less: f64| {
        let name = format!("adm/{}{rest}", figure.name);
        assert_figure(&name, figure.value, less, &reference);
    };
    for figure in &figures {
        match figure.name {
            "inception_score" => adm(figure, "/size=5", 1.0),
            "precision" | "recall" => adm(figure, "", 0.0),
            _ => {}
        }
        if figure.name != "inception_score" {
            let name = format!("torch-fidelity/{}", figure.name);
            assert_figure(&name, figure.value, 0.0, &reference);
        }
    }
    for splits in [1, 3] {
        let of = COUNT as u64;
        let mut score = InceptionScore::new(1008, Splits::Equal { splits, of }).unwrap();
        score.add(&features.logits).unwrap();
        let score = score.score().unwrap();
        let name = |what: &str| format!("torch-fidelity/{what}/splits={splits}");
        assert_figure(&name("inception_score"), score.mean, 1.0, &reference);
        if splits > 1 {
            assert_figure(&name("inception_score_std"), score.std, 0.0, &reference);
        }
    }
}

#[test]
fn features_and_distance_with_pytorchs_resize_are_those_of_pytorch_fid() {
    let reference = reference();
    let tensors = random_inception();
    let network = Inception::from_tensors(tensors, Resize::Torch, Device::Cpu).unwrap();
    let (samples, features) = measured(&network, 0, &[Metric::Fid]);
    let (others, _) = measured(&network, 1, &[Metric::Fid]);
    let stored = reference.tensor("pytorch-fid/pool").unwrap();
    assert_close(shown(&features.pooled), stored, 1e-5);
    let figures = samples.compare(&others, KernelOptions::default()).unwrap();
    let fid = figures[0].value;
    assert_figure("pytorch-fid/fid", fid, 0.0, &reference);
    assert_figure("torch-fidelity/fid-pytorch-resize", fid, 0.0, &reference);
}

/// Where the shared development data is.
fn shared(name: &str) -> Option<PathBuf> {
    let data = std::env::var_os("FEWSTEP_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = data.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

#[test]
fn the_published_resnet_gives_the_features_of_its_definition() {
    let Some(path) = shared("weights/resnet56-4bfd9763.th") else {
        return;
    };
    let reference = reference();
    let network = ResNet56::load(&path, Device::Cpu).unwrap();
    let features = network.features(images(0).view()).unwrap();
    assert_close(
        &features.pooled,
        reference.tensor("resnet56/pool").unwrap(),
        1e-5,
    );
    let measure = |which: usize| {
        let mut evaluator = Evaluator::new(&network, &[Metric::Fid]).unwrap();
        evaluator.add(images(which).view()).unwrap();
        evaluator.finish().unwrap()
    };
    let figures = measure(0).compare(&measure(1), KernelOptions::default());
    let figures = figures.unwrap();
    assert_eq!((figures.len(), figures[0].name), (1, "fd-resnet56"));
    for name in ["resnet56/fd", "resnet56/fd-scipy"] {
        assert_figure(name, figures[0].value, 0.0, &reference);
    }
    let error = Evaluator::new(&network, &[Metric::Sfid]).err().unwrap();
    assert_eq!(
        error.to_string(),
        "sfid is not taken on these features; fd-resnet56 gives fd-resnet56"
    );
}

#[test]
fn weights_of_another_network_are_named_tensor_by_tensor() {
    let mut tensors = random_inception();
    tensors.remove("Mixed_6d.branch1x1.bn.bias");
    let small = Tensor::zeros([10, 2048], (Kind::Float, Device::Cpu));
    tensors.insert("fc.weight".into(), small);
    let extra = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    tensors.insert("AuxLogits.fc.bias".into(), extra.shallow_clone());
    tensors.insert("Conv2d_1a_3x3.bn.num_batches_tracked".into(), extra);
    let error = Inception::from_tensors(tensors, Resize::TensorFlow, Device::Cpu).err();
    assert_eq!(
        error.unwrap().to_string(),
        "the tensors: expected the weights of FID's InceptionV3 (pt_inception-2015-12-05), found others: \
         `Mixed_6d.branch1x1.bn.bias` is missing, `fc.weight` is Float [10, 2048] instead of floats [1008, 2048], \
         `AuxLogits.fc.bias` is extra"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent.pth");
    let error = ResNet56::load(&path, Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("absent.pth"), "{error}");
}

/// A network whose features are the first pixel.
struct FirstPixel;

impl FeatureNetwork for FirstPixel {
    fn distance_name(&self) -> &'static str {
        "fd-first-pixel"
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Fid, Metric::Kid, Metric::Precision]
    }

    fn widths(&self) -> Widths {
        Widths {
            pooled: 3,
            spatial: 0,
            logits: 0,
        }
    }

    fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features> {
        let x = pixels::tensor(images, Device::Cpu)?;
        Ok(Features {
            pooled: pixels::rows(&x.f_narrow(2, 0, 1)?.f_narrow(3, 0, 1)?)?,
            ..Features::default()
        })
    }
}

#[test]
fn batches_change_nothing_and_a_reference_without_images_judges_what_it_can() {
    let all = images(0);
    let measure = |parts: &[usize], batch: usize| {
        let wanted = [Metric::Fid, Metric::Kid];
        let mut evaluator = Evaluator::new(&FirstPixel, &wanted)
            .unwrap()
            .with_batch_size(batch);
        let mut from = 0;
        for &to in parts {
            evaluator.add(all.slice(s![from..to, .., .., ..])).unwrap();
            from = to;
        }
        evaluator.finish().unwrap()
    };
    let whole = measure(&[COUNT], 32);
    assert_eq!(whole, measure(&[1, 7, COUNT], 2));
    let statistics = whole.pooled().cloned();
    let published = Measured::from_statistics(&FirstPixel, statistics, None).unwrap();
    assert!(published.can_judge(Metric::Fid) && !published.can_judge(Metric::Kid));
    let figures = whole.compare(&published, KernelOptions::default()).unwrap();
    assert_eq!((figures.len(), figures[0].name), (1, "fd-first-pixel"));
    assert!(figures[0].value < 1e-6 * 255.0 * 255.0);
    let both = published.with_features_of(measure(&[9], 3));
    let figures = whole.compare(&both, KernelOptions::default()).unwrap();
    assert_eq!(figures.len(), 2);
    assert!(figures[1].name == "kid" && figures[1].std.is_some());
}

#[test]
fn grey_is_repeated_and_other_shapes_are_refused() {
    let grey = images(0).slice(s![.., .., .., ..1]).to_owned();
    let rows = FirstPixel.features(grey.view()).unwrap().pooled;
    assert!(
        rows.chunks(3)
            .all(|row| row[0] == row[1] && row[1] == row[2])
    );
    let two = images(0).slice(s![.., .., .., ..2]).to_owned();
    assert_eq!(
        FirstPixel.features(two.view()).unwrap_err().to_string(),
        "images must be [number, height, width, 1 or 3 channels] with at least one pixel, found [12, 32, 32, 2]"
    );
}
