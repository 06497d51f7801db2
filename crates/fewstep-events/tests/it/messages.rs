//! One sentence for each way in which a file can be wrong.

use std::io::Write;

use fewstep_events::{Model, Precision};
use serde_json::{Value, json};

use crate::forge::Parts;
use crate::small_network;

fn parts(precision: Precision) -> Parts {
    Parts::of(&small_network(1).to_bytes(precision).unwrap()).unwrap()
}

fn refused(file: &[u8]) -> String {
    match Model::from_bytes(file) {
        Ok(_) => panic!("it loads"),
        Err(error) => error.to_string(),
    }
}

/// What is said of a model with a change and a checksum that fits.
fn changed(change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = parts(Precision::Int8);
    change(&mut parts);
    refused(&parts.file(true))
}

fn network(change: impl FnOnce(&mut Value)) -> String {
    changed(|parts| {
        let mut network = parts.network();
        change(&mut network);
        parts.set_network(&network);
    })
}

fn tensor<'a>(parts: &'a mut Parts, name: &str) -> &'a mut crate::forge::Tensor {
    parts.tensors.iter_mut().find(|t| t.name == name).unwrap()
}

#[test]
fn a_file_that_is_no_model_says_what_it_is() {
    let good = small_network(1).to_bytes(Precision::Float32).unwrap();
    let foreign = {
        let mut parts = parts(Precision::Float32);
        parts.texts.clear();
        parts.texts.insert("format".into(), "pt".into());
        parts.file(false)
    };
    let other = changed(|parts| drop(parts.texts.insert("version".into(), "2".into())));
    let all = [
        refused(b""),
        refused(b"\x89PNG\r\n\x1a\n and so on"),
        refused(&good[..good.len() - 64]),
        refused(&good[..100]),
        refused(&foreign),
        other,
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    <memory>: expected a model of fewstep-events, found something else or a cut-off file (header too small)
    <memory>: expected a model of fewstep-events, found something else or a cut-off file (header too large)
    <memory>: expected a model of fewstep-events, found something else or a cut-off file (incomplete metadata, file not fully covered)
    <memory>: expected a model of fewstep-events, found something else or a cut-off file (invalid header length)
    <memory>: expected a model of fewstep-events, found another safetensors file
    <memory>: expected version 1 of the format, found `2`
    "#);
}

#[test]
fn damage_says_which_checksum_was_expected() {
    let mut bytes = small_network(1).to_bytes(Precision::Float32).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 4;
    insta::assert_snapshot!(refused(&bytes), @"<memory>: damaged: expected checksum 07bfbea5, found `e7fa0015`");
}

#[test]
fn a_wrong_tensor_says_its_name_and_what_was_expected() {
    let all = [
        changed(|parts| parts.tensors.retain(|t| t.name != "down.projection.weight")),
        changed(|parts| parts.tensors.retain(|t| t.name != "same.threshold")),
        changed(|parts| tensor(parts, "same.bias").bytes.truncate(64)),
        changed(|parts| tensor(parts, "hidden.scale").dtype = "I32".into()),
        changed(|parts| tensor(parts, "down.weight").dtype = "U8".into()),
        changed(|parts| {
            // Eight-bit weights where floats belong: the first layer.
            let stem = tensor(parts, "stem.weight");
            stem.dtype = "I8".into();
            stem.bytes.truncate(18 * 32);
            let scale = crate::forge::Tensor {
                name: "stem.scale".into(),
                dtype: "F32".into(),
                bytes: vec![0; 4 * 32],
            };
            parts.tensors.insert(0, scale);
        }),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    <memory>: tensor `down.projection.weight` is missing
    <memory>: tensor `same.threshold` is missing
    <memory>: tensor `same.bias`: expected 80 elements of F32, found [16] of F32
    <memory>: tensor `hidden.scale`: expected 32 elements of F32, found [32] of I32
    <memory>: tensor `down.weight`: expected 12992 elements of I8, found [12992] of U8
    <memory>: tensor `stem.weight`: expected 576 elements of F32, found [576] of I8
    "#);
}

#[test]
fn a_wrong_network_says_the_layer_and_what_was_expected() {
    let all = [
        network(|n| n["timesteps"] = json!(0)),
        network(|n| n["layers"][1]["outputs"] = json!(u64::MAX)),
        network(|n| n["layers"][1]["connection"]["kernel"] = json!(65)),
        network(|n| n["layers"][1]["connection"]["padding"] = json!(3)),
        network(|n| n["layers"][1]["outputs"] = json!(67)),
        network(|n| n["layers"][2]["shortcut"]["from"] = json!(2)),
        network(|n| n["layers"][2]["shortcut"]["from"] = json!(0)),
        network(|n| n["layers"][3]["pool"] = json!(true)),
        network(|n| n["layers"][4]["name"] = json!("stem")),
        network(|n| n["std"][0] = json!(0.0)),
        network(|n| n["classes"] = json!(["one"])),
        network(|n| n["surprise"] = json!(1)),
        network(|n| *n = json!("nothing")),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    <memory>: network: expected 1 to 64 timesteps, found 0
    <memory>: layer `down`: expected 1 output or more and at most 268435456 elements in maps and weights, found an output of [18446744073709551615, 2, 2]
    <memory>: layer `down`: expected kernel, stride and padding of at most 64
    <memory>: layer `down`: a kernel of [3, 3] does not fit a map of 4×3
    <memory>: layer `same`: expected a shortcut of shape [66, 2, 2], found [67, 2, 2]
    <memory>: layer `same`: expected a shortcut from an earlier layer, found 2
    <memory>: layer `same`: expected a shortcut of shape [66, 2, 2], found [18, 4, 3]
    <memory>: layer `hidden`: no room for a 2×2 pool on a map of 1×1
    <memory>: layer `stem`: expected another name, found a layer or projection that has it already
    <memory>: network: expected finite means and standard deviations above 0
    <memory>: network: expected names of 3 classes, found 1
    <memory>: its network: unknown field `surprise`, expected one of `name`, `input`, `mean`, `std`, `timesteps`, `reset`, `precision`, `classes`, `provenance`, `layers` at line 1 column 751
    <memory>: its network: invalid type: string "nothing", expected struct NetworkSpec at line 1 column 9
    "#);
}

#[test]
fn a_path_is_named_in_what_is_said_of_its_file() {
    let mut file = tempfile::Builder::new().prefix("cut").tempfile().unwrap();
    let good = small_network(1).to_bytes(Precision::Float32).unwrap();
    file.write_all(&good[..good.len() / 2]).unwrap();
    let text = |path: &std::path::Path| match Model::open(path) {
        Ok(_) => panic!("it loads"),
        Err(error) => error.to_string(),
    };
    let said = text(file.path());
    assert!(
        said.starts_with(&format!("{}: ", file.path().display())),
        "{said}"
    );
    assert_eq!(
        text("nowhere.fewstep".as_ref()),
        "nowhere.fewstep: No such file or directory (os error 2)"
    );
}

#[test]
fn a_small_file_that_needs_gigabytes_for_an_image_is_refused() {
    let said = network(|n| {
        n["input"] = json!([2, 512, 512]);
        n["timesteps"] = json!(64);
    });
    insta::assert_snapshot!(said, @"<memory>: network: expected to need at most 2147483648 bytes of buffers for an image, found 3265790976");
}
