//! Mistakes in a config: one sentence with file, line and the nearest key, and nothing is written.

use std::path::Path;

use fewstep::config;
use fewstep::experiment::Experiment;

use crate::common::{Sandbox, TINY};

/// Runs `TINY` with one piece of text replaced, which must be refused before anything is written.
fn refused(from: &str, to: &str) -> String {
    assert!(TINY.contains(from));
    let sandbox = Sandbox::with_config(&TINY.replacen(from, to, 1));
    let done = sandbox.run(&[]);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(!sandbox.path("runs").exists(), "{to}: a folder was made");
    done.sentence().to_owned()
}

/// The line of `TINY`, from 1, that has this text.
fn line(text: &str) -> usize {
    1 + TINY.lines().position(|l| l.contains(text)).unwrap()
}

#[test]
fn a_mistyped_key_is_answered_with_line_and_nearest_key() {
    let at = line("timesteps = [2, 1]");
    assert_eq!(
        refused("timesteps = [2, 1]", "timestep = [5, 1]"),
        format!("error: tiny.toml:{at}: unknown key `snn.timestep`; did you mean `snn.timesteps`?")
    );
    let sandbox = Sandbox::new();
    assert_eq!(
        sandbox.run(&["--set", "snn.timestep=[5,1]"]).sentence(),
        "error: --set snn.timestep=[5,1]: unknown key `snn.timestep`; did you mean `snn.timesteps`?"
    );
}

#[test]
fn a_wrong_type_is_answered_with_line_and_what_was_expected() {
    let at = line("epochs = 2");
    assert_eq!(
        refused("epochs = 2", "epochs = \"two\""),
        format!(
            "error: tiny.toml:{at}: `ann.epochs` must be a whole number from 0 to 4294967295, but is the string \"two\""
        )
    );
}

#[test]
fn impossible_values_are_answered_with_line_key_and_what_was_expected() {
    let cases = [
        (
            "timesteps = [2, 1]",
            "timesteps = [1, 5]",
            "`snn.timesteps`: expected a descending list",
        ),
        (
            "train_images = 200",
            "validation_fraction = 2",
            "`data.validation_fraction`: expected a number between 0 and 1",
        ),
        (
            "train_images = 200",
            "validation_fraction = 1e-9",
            "`data.validation_fraction`: leaves 1437 images for training and 0",
        ),
        (
            "train_images = 200",
            "train_images = 9999",
            "`data.train_images`: expected 1 to 1437 (what there is), found 9999",
        ),
        (
            "augment = { crop_padding = 1 }",
            "augment = { cutout = 30 }",
            "`data.augment.cutout`: is 30, larger than images of 1×8×8",
        ),
        (
            "name = \"digits\"",
            "name = \"cifar01\"",
            "did you mean \"cifar10\"?",
        ),
        (
            "architecture = \"8 A 8\"",
            "architecture = \"vgg7\"",
            "`network.architecture`: `vgg7` is none of vgg5, vgg6, vgg9",
        ),
        (
            "architecture = \"8 A 8\"",
            "architecture = \"8 A A A A 8\"",
            "`network.architecture`: ",
        ),
        (
            "hidden = [16]",
            "hidden = [0]",
            "`network.hidden`: expected positive widths, found [0]",
        ),
        (
            "dropout = 0.1",
            "dropout = 1.0",
            "`ann.dropout`: expected a number from 0 to below 1, found 1",
        ),
        (
            "percentile = 80",
            "percentile = 101",
            "`calibration.percentile`: expected 0 to 100, found 101",
        ),
        (
            "threads = 1",
            "threads = 0",
            "`threads`: expected 1 to 1024, found 0",
        ),
        (
            "name = \"tiny\"",
            "name = \"../tiny\"",
            "`name`: the run name \"../tiny\" must be letters",
        ),
    ];
    for (from, to, expected) in cases {
        let said = refused(from, to);
        let place = format!("error: tiny.toml:{}: ", line(from));
        assert!(
            said.starts_with(&place) && said.contains(expected),
            "{to}: {said}"
        );
    }
}

#[test]
fn an_absent_config_is_answered_with_the_nearest_file() {
    let sandbox = Sandbox::new();
    let done = sandbox.fewstep(&["run", "tine.toml"]);
    assert!(
        done.sentence().ends_with("did you mean tiny.toml?"),
        "{}",
        done.stderr
    );
}

#[test]
fn every_config_of_the_repository_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/iir");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let experiment: Experiment = config::load(&path, &[]).unwrap();
        let phases = experiment.recipe().phases().unwrap();
        assert_eq!(
            phases.iter().filter(|p| p.name == "t1").count(),
            1,
            "{}",
            path.display()
        );
        // The run folder is named after the file, so that two configs never meet in one.
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            experiment.name == stem || experiment.name == format!("{stem}-iir"),
            "{}",
            path.display()
        );
        let size = experiment
            .data
            .augment
            .random_resized_crop
            .map_or(32, |side| side as i64);
        experiment.network.plan([3, size, size], 10).unwrap();
        count += 1;
    }
    assert!(count >= 7, "only {count} configs");
}
