//! `fewstep evaluate`: what it says when something is not there, and a distance on a published network where that is at hand.

use std::path::{Path, PathBuf};

use fewstep::images::{NpzWriter, write_folder};
use ndarray::Array4;
use serde_json::Value;

use crate::common::Sandbox;

fn images(count: usize, step: usize) -> Array4<u8> {
    Array4::from_shape_fn((count, 32, 32, 3), |(n, y, x, c)| {
        (n * n * 37 + y * step + x * (3 + n % 4) + c * 50) as u8
    })
}

fn npz(path: &Path, images: &Array4<u8>) {
    let (count, height, width, _) = images.dim();
    let mut writer = NpzWriter::create(path, [count, height, width], false).unwrap();
    writer.write(images.view(), &[]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn what_is_not_there_is_said_in_one_sentence_with_the_way_to_it() {
    let sandbox = Sandbox::new();
    npz(&sandbox.path("samples.npz"), &images(4, 5));
    let said = |words: &[&str]| {
        let done = sandbox.fewstep(&[&["evaluate", "samples.npz"], words].concat());
        done.sentence().to_owned()
    };
    let absent = said(&[]);
    assert!(
        absent.contains("the weights of inception were not found: looked for data/inception/")
            && absent.ends_with("`cargo xtask data fetch inception` downloads them"),
        "{absent}"
    );
    let absent = said(&["--reference", "real.npz"]);
    assert!(
        absent.contains("real.npz could not be read: No such file"),
        "{absent}"
    );
    let needs = said(&["--metrics", "fid"]);
    assert!(
        needs.ends_with("--metrics: fid needs --reference"),
        "{needs}"
    );
    let other = said(&["--weights", "samples.npz"]);
    assert!(other.contains("samples.npz"), "{other}");
}

/// The published ResNet-56 in the shared development data.
fn resnet56() -> Option<PathBuf> {
    let data = std::env::var_os("FEWSTEP_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = data.join("weights/resnet56-4bfd9763.th");
    if path.exists() {
        return Some(path.canonicalize().unwrap());
    }
    println!("skipped: {} is not there", path.display());
    None
}

#[test]
fn an_archive_a_folder_and_saved_statistics_are_the_same_reference() {
    let Some(weights) = resnet56() else {
        return;
    };
    let sandbox = Sandbox::new();
    let (samples, real) = (images(30, 5), images(26, 11));
    npz(&sandbox.path("samples.npz"), &samples);
    npz(&sandbox.path("real.npz"), &real);
    write_folder(&sandbox.path("real"), 0, real.view()).unwrap();
    let weights = weights.to_str().unwrap();
    let evaluate = |words: &[&str]| {
        let rest = [
            "--network",
            "resnet56",
            "--weights",
            weights,
            "--device",
            "cpu",
        ];
        let done = sandbox.fewstep(&[&["evaluate"], words, &rest[..]].concat());
        assert!(done.ok, "{}", done.stderr);
        done.stdout
    };
    let saved = evaluate(&["real.npz", "--save-statistics", "statistics.npz"]);
    assert_eq!(saved, "");
    let distance = |reference: &str| {
        let words = [
            "samples.npz",
            "--reference",
            reference,
            "--json",
            "--batch-size",
            "7",
        ];
        let json: Value = serde_json::from_str(&evaluate(&words)).unwrap();
        assert_eq!(json["samples_count"], 30);
        assert_eq!(json["network"], "resnet56");
        json["fd-resnet56"].as_f64().unwrap()
    };
    let expected = distance("real.npz");
    assert!(expected > 0.1, "{expected}");
    for reference in ["real", "statistics.npz"] {
        let found = distance(reference);
        assert!(
            (found - expected).abs() < 1e-6 * expected,
            "{found} {expected}"
        );
    }
    let table = evaluate(&["samples.npz", "--reference", "samples.npz", "--quiet"]);
    assert!(
        table.contains("fd-resnet56") && table.contains("30 samples"),
        "{table}"
    );
}
