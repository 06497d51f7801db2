//! What the fuzz targets do for minutes, in a second and always the same.

use std::path::Path;

use fewstep_events::{Model, Precision};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed};
use serde_json::{Value, json};

use crate::forge::{Parts, mend};
use crate::small_network;
use crate::subject::{Choices, run_what_loads};

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(4),
        ..Config::default()
    }
}

fn file(int8: bool) -> Vec<u8> {
    let precision = if int8 {
        Precision::Int8
    } else {
        Precision::Float32
    };
    small_network(2).to_bytes(precision).unwrap()
}

/// Refused in one sentence, or loads and runs.
fn judge(file: &[u8]) {
    if let Err(error) = Model::from_bytes(file) {
        let text = error.to_string();
        assert!(text.len() > 15 && !text.contains('\n'), "{text:?}");
    }
    run_what_loads(file, &mut Choices(&[1, 40, 200, 90]));
}

#[test]
fn every_single_flipped_bit_of_the_tensors_and_any_cut_is_noticed() {
    let good = file(true);
    let begin = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in (begin..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Model::from_bytes(&bad).is_err(), "byte {at}");
    }
    for at in (0..good.len()).step_by(13) {
        assert!(Model::from_bytes(&good[..at]).is_err(), "{at} bytes");
    }
}

#[test]
fn a_flipped_bit_of_the_header_is_noticed_or_has_no_meaning() {
    let good = file(false);
    let begin = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let expected = Model::from_bytes(&good).unwrap().run(&[77; 96]).unwrap();
    for at in 0..begin {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        if let Ok(model) = Model::from_bytes(&bad) {
            assert_eq!(model.run(&[77; 96]).unwrap(), expected, "byte {at}");
        }
    }
}

/// Numbers of a network's JSON become others; lists lose, repeat or swap their elements.
fn edit(value: &mut Value, choices: &mut Choices) {
    match value {
        Value::Array(list) if !list.is_empty() => {
            let n = list.len();
            match choices.below(8) {
                0 => drop(list.remove(choices.below(n))),
                1 => list.push(list[choices.below(n)].clone()),
                2 => list.swap(choices.below(n), choices.below(n)),
                _ => edit(&mut list[choices.below(n)], choices),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(choices.below(map.len())).unwrap().clone();
            match choices.below(16) {
                0 => drop(map.remove(&key)),
                _ => edit(&mut map[&key], choices),
            }
        }
        other => {
            let any = [
                json!(0),
                json!(1),
                json!(2),
                json!(3),
                json!(63),
                json!(65),
                json!(1 << 28),
                json!(u64::MAX),
                json!(-1),
                json!(0.5),
                json!(null),
                json!(true),
                json!("stem"),
                json!({"from": 0, "projection": null}),
                json!({"kind": "linear"}),
            ];
            *other = any[choices.below(any.len())].clone();
        }
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn mutated_bytes_are_refused_or_run(int8: bool, changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut in prop::option::of(any::<usize>())) {
        let mut bytes = file(int8);
        let n = bytes.len();
        for (at, value) in changes {
            // Half of them in the header, which is shorter than the tensors.
            let at = if at % 2 == 0 { at % n } else { at % 2000 };
            bytes[at] = value;
        }
        bytes.truncate(cut.map_or(n, |cut| cut % n));
        judge(&bytes);
        mend(&mut bytes);
        judge(&bytes);
    }

    #[test]
    fn an_edited_network_is_refused_or_runs(int8: bool, choices in prop::collection::vec(any::<u8>(), 1..24)) {
        let mut parts = Parts::of(&file(int8)).unwrap();
        let mut network = parts.network();
        let mut choices = Choices(&choices);
        for _ in 0..1 + choices.below(3) {
            edit(&mut network, &mut choices);
        }
        parts.set_network(&network);
        judge(&parts.file(true));
    }

    #[test]
    fn swapped_missing_and_other_tensors_are_refused_or_run(int8: bool, a: usize, b: usize, how in 0..5) {
        let mut parts = Parts::of(&file(int8)).unwrap();
        let n = parts.tensors.len();
        let (a, b) = (a % n, b % n);
        match how {
            0 => {
                let name = parts.tensors[a].name.clone();
                parts.tensors[a].name = parts.tensors[b].name.clone();
                parts.tensors[b].name = name;
            }
            1 => parts.tensors.swap(a, b),
            2 => drop(parts.tensors.remove(a)),
            3 => parts.tensors[a].bytes = parts.tensors[b].bytes.clone(),
            _ => parts.tensors[a].dtype = ["F32", "I8", "U8", "I32"][b % 4].into(),
        }
        judge(&parts.file(true));
    }

    #[test]
    fn any_network_is_refused_or_runs(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let mut choices = Choices(&bytes);
        let precision = choices.precision();
        if let Ok(file) = choices.network().to_bytes(precision) {
            let file = choices.spoil(&file);
            run_what_loads(&file, &mut choices);
        }
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_load() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/file");
    let mut n = 0;
    for entry in std::fs::read_dir(seeds).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        Model::from_bytes(&bytes).unwrap();
        judge(&bytes);
        n += 1;
    }
    assert!(n >= 4);
}
