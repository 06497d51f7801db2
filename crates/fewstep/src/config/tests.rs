use std::path::Path;

use insta::assert_snapshot;
use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Experiment {
    seed: u64,
    #[serde(default)]
    name: Option<String>,
    dataset: Dataset,
    snn: Snn,
    #[serde(default)]
    stages: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(dead_code)]
enum Dataset {
    Digits { classes: u32 },
    ImageFolder { path: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Snn {
    timesteps: Vec<u32>,
    learning_rate: f64,
    #[serde(default)]
    batch_norm: bool,
    reset: Reset,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reset {
    Soft,
    Hard,
    None,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    epochs: u32,
}

const GOOD: &str = r#"seed = 1

[dataset]
kind = "digits"
classes = 10

[snn]
timesteps = [5, 4, 3, 2, 1]
learning_rate = 1e-3
reset = "soft"

[[stages]]
epochs = 3

[[stages]]
epochs = 2
"#;

fn read(text: &str, overrides: &[&str]) -> Result<Experiment, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    from_str("configs/iir/x.toml", text, &overrides)
}

fn complaint(text: &str, overrides: &[&str]) -> String {
    read(text, overrides).unwrap_err().to_string()
}

#[test]
fn an_unknown_key_names_the_line_and_the_nearest_key() {
    let text = GOOD.replace("timesteps", "timestep");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:8: unknown key `snn.timestep`; did you mean `snn.timesteps`?");
    let text = GOOD.replace("learning_rate", "lr");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:9: unknown key `snn.lr`; did you mean `snn.learning_rate`?");
}

#[test]
fn an_unknown_key_that_is_near_to_nothing_gets_the_list() {
    let text = GOOD.replace("learning_rate", "zzz");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:9: unknown key `snn.zzz`; the keys here are `timesteps`, `learning_rate`, `batch_norm` and `reset`");
}

#[test]
fn an_unknown_key_inside_a_tagged_table_is_found() {
    let text = GOOD.replace("classes", "clases");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:5: unknown key `dataset.clases`; did you mean `dataset.classes`?");
}

#[test]
fn a_wrong_type_names_what_was_expected_and_found() {
    let text = GOOD.replace("1e-3", "\"fast\"");
    assert_snapshot!(complaint(&text, &[]), @r#"configs/iir/x.toml:9: `snn.learning_rate` must be a number, but is the string "fast""#);
    let text = GOOD.replace("epochs = 2", "epochs = -2");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:16: `stages.1.epochs` must be a whole number from 0 to 4294967295, but is the whole number -2");
    let text = GOOD.replace("3, 2, 1]", "3,\n  2.5, 1]");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:9: `snn.timesteps.3` must be a whole number from 0 to 4294967295, but is the number 2.5");
    let text = GOOD.replace("seed = 1", "seed = true");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:1: `seed` must be a whole number, 0 or more, but is true");
    let text = GOOD.replace("classes = 10", "classes = [10]");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:5: `dataset.classes` must be a whole number from 0 to 4294967295, but is an array of length 1");
    let text = GOOD.replace("[dataset]\nkind = \"digits\"\nclasses = 10", "dataset = 3");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:3: `dataset` must be a table, but is the whole number 3");
}

#[test]
fn an_unknown_choice_names_the_nearest_and_all() {
    let text = GOOD.replace("\"soft\"", "\"sofd\"");
    assert_snapshot!(complaint(&text, &[]), @r#"configs/iir/x.toml:10: `snn.reset` is "sofd", which it cannot be; did you mean "soft"? (choices: "soft", "hard" and "none")"#);
    let text = GOOD.replace("\"digits\"", "\"image-folders\"");
    assert_snapshot!(complaint(&text, &[]), @r#"configs/iir/x.toml:4: `dataset.kind` is "image-folders", which it cannot be; did you mean "image-folder"? (choices: "digits" and "image-folder")"#);
    let text = GOOD.replace("\"soft\"", "3");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:10: `snn.reset` must be a word, but is the whole number 3");
}

#[test]
fn text_that_is_not_toml_names_line_and_column() {
    assert_snapshot!(complaint("seed = 1\n[snn\nx = 2\n", &[]), @"configs/iir/x.toml:2:5: not valid TOML: unclosed table, expected `]`");
    assert_snapshot!(complaint("seed = 1\nseed = 2\n", &[]), @"configs/iir/x.toml:2:1: not valid TOML: duplicate key");
    assert_snapshot!(complaint("seed = 99999999999999999999\n", &[]), @"configs/iir/x.toml:1:8: not valid TOML: the number 99999999999999999999 is too large");
}

#[test]
fn a_missing_file_names_the_nearest_file_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("digits.toml"), "").unwrap();
    let error = load::<Experiment>(&folder.path().join("digit.toml"), &[]).unwrap_err();
    let message = error
        .to_string()
        .replace(&folder.path().display().to_string(), "DIR");
    assert_snapshot!(message, @"cannot read the config DIR/digit.toml: No such file or directory (os error 2); did you mean DIR/digits.toml?");
    let error = load::<Experiment>(Path::new("no/such/folder/a.toml"), &[]).unwrap_err();
    assert_snapshot!(error, @"cannot read the config no/such/folder/a.toml: No such file or directory (os error 2)");
}

#[test]
fn a_missing_key_names_the_table_that_lacks_it() {
    let text = GOOD.replace("reset = \"soft\"\n", "");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:7: the key `snn.reset` is missing, and it has no default");
    assert_snapshot!(complaint("name = \"x\"", &[]), @"configs/iir/x.toml: the key `seed` is missing, and it has no default");
    let text = GOOD.replace("classes = 10\n", "");
    assert_snapshot!(complaint(&text, &[]), @"configs/iir/x.toml:3: the key `dataset.classes` is missing, and it has no default");
}

#[test]
fn overrides_win_over_the_file_and_later_ones_over_earlier_ones() {
    let config = read(
        GOOD,
        &[
            "seed=2",
            "seed=3",
            "name=two words",
            "snn.timesteps=[2, 1]",
            "snn.reset=hard",
            "snn.learning_rate=1_0.5",
            "stages.1.epochs=7",
            "stages[0].epochs = 8",
        ],
    )
    .unwrap();
    assert_eq!(config.seed, 3);
    assert_eq!(config.name.as_deref(), Some("two words"));
    assert_eq!(config.snn.timesteps, [2, 1]);
    assert_eq!(config.snn.reset, Reset::Hard);
    assert_eq!(config.snn.learning_rate, 10.5);
    assert_eq!(config.stages[0].epochs, 8);
    assert_eq!(config.stages[1].epochs, 7);
}

#[test]
fn a_bad_override_is_quoted_instead_of_a_line() {
    assert_snapshot!(complaint(GOOD, &["ssn.learning_rate=1"]), @"--set ssn.learning_rate=1: unknown key `ssn`; did you mean `snn`?");
    assert_snapshot!(complaint(GOOD, &["snn.learning-rate=1"]), @"--set snn.learning-rate=1: unknown key `snn.learning-rate`; did you mean `snn.learning_rate`?");
    assert_snapshot!(complaint(GOOD, &["snn.learning_rate=fast"]), @r#"--set snn.learning_rate=fast: `snn.learning_rate` must be a number, but is the string "fast""#);
    assert_snapshot!(complaint(GOOD, &["snn.timesteps=[3, x]"]), @"--set snn.timesteps=[3, x]: the value is not valid TOML: string values must be quoted, expected literal string (words inside an array need quotes)");
    assert_snapshot!(complaint(GOOD, &["stages.2.epochs=1"]), @"--set stages.2.epochs=1: `stages` is an array of length 2, so `2` must be an index below 2");
    assert_snapshot!(complaint(GOOD, &["seed.x=1"]), @"--set seed.x=1: `seed` is the whole number 1, it has no `x` inside");
    assert_snapshot!(complaint(GOOD, &["seed"]), @"--set seed: expected key.path=value, found no `=`");
    assert_snapshot!(complaint(GOOD, &["=1"]), @"--set =1: expected key.path=value, found no key before the `=`");
    let two_lines = complaint(GOOD, &["seed=1\nname=2"]);
    assert!(two_lines.ends_with("expected one value, found several lines"));
}

#[test]
fn every_value_can_be_located_for_later_checks() {
    let overrides = ["snn.learning_rate=-1".to_owned()];
    let source = ConfigSource::parse("configs/iir/x.toml", GOOD, &overrides).unwrap();
    assert_eq!(source.describe("snn.timesteps"), "configs/iir/x.toml:8");
    assert_eq!(source.locate("stages.1.epochs"), Some(16));
    assert_eq!(source.locate("stages[0].epochs"), Some(13));
    assert_eq!(source.locate("stages.1"), Some(15));
    // Left to its default: the table's line; at the top level: the file.
    assert_eq!(source.locate("snn.batch_norm"), Some(7));
    assert_eq!(source.describe("limits.batches"), "configs/iir/x.toml");
    let error = source.invalid("snn.learning_rate", "expected a number above 0, found -1");
    assert_snapshot!(error, @"--set snn.learning_rate=-1: `snn.learning_rate`: expected a number above 0, found -1");
}
