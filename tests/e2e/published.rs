//! The published configs, every stage of them, on a few images of noise and with fewer channels.

use std::path::Path;

use crate::common::Sandbox;

fn runs_all_stages(name: &str, width: &str, noise: &str, more: &[&str]) {
    let sandbox = Sandbox::new();
    let config =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/iir/{name}.toml"));
    let (width, noise) = (
        format!("network.width={width}"),
        format!("data.stand_in={noise}"),
    );
    let mut arguments = vec!["run", config.to_str().unwrap(), "--json"];
    let small = [
        "threads=1",
        "device=cpu",
        "limits.batches=1",
        "ann.batch_size=2",
        "snn.batch_size=2",
        "calibration.images=2",
    ];
    for set in small.iter().chain(&[width.as_str(), &noise]).chain(more) {
        arguments.extend(["--set", set]);
    }
    let done = sandbox.fewstep(&arguments);
    assert!(done.ok, "{name}: {}", done.stderr);
    let summary: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(summary["synthetic_data"], true);
    let stages = summary["stages"].as_array().unwrap();
    let timesteps: Vec<_> = stages
        .iter()
        .map(|s| s["timesteps"].as_u64().unwrap())
        .collect();
    assert_eq!(timesteps, [5, 4, 3, 2, 1], "{name}");
}

#[test]
fn resnet20_for_cifar10_runs_all_stages() {
    runs_all_stages("cifar10-resnet20", "0.25", "synthetic:3x32x32:10:40", &[]);
}

#[test]
fn vgg16_for_cifar10_and_cifar100_runs_all_stages() {
    runs_all_stages("cifar10-vgg16", "0.125", "synthetic:3x32x32:10:40", &[]);
    runs_all_stages("cifar100-vgg16", "0.125", "synthetic:3x32x32:100:40", &[]);
}

#[test]
fn vgg16_for_imagenet_runs_all_stages() {
    let crop = ["data.augment.random_resized_crop=64"];
    runs_all_stages("imagenet-vgg16", "0.05", "synthetic:3x64x64:1000:60", &crop);
}
