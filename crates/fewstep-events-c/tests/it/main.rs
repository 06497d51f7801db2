//! The header says what the library has, and a C program that includes it gets the same scores as Rust.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod book;

use std::path::{Path, PathBuf};
use std::process::Command;

use fewstep_events::{Connection, Dense, Images, Layer, Model, Network, Options, Precision};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_header_is_what_cbindgen_makes_of_the_source() {
    let config = cbindgen::Config::from_file(here("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new()
        .with_config(config)
        .with_src(here("src/lib.rs"))
        .generate()
        .unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let path = here("include/fewstep_events.h");
    if std::env::var_os("FEWSTEP_RENEW").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(
        std::fs::read(&path).unwrap_or_default() == text,
        "include/fewstep_events.h is not what cbindgen makes of src/lib.rs: `FEWSTEP_RENEW=1 cargo test -p fewstep-events-c` renews it"
    );
}

/// A network on images of 6×4 pixels with 3 channels.
fn network() -> Network {
    let numbers = |n: usize| {
        (0..n)
            .map(|i| ((i * 29 + 7) % 41) as f32 / 20. - 1.)
            .collect()
    };
    let layer = |name: &str, connection, rows: usize, outputs: usize, threshold: &[f32]| Layer {
        name: name.into(),
        connection,
        outputs,
        dense: Dense {
            weight: numbers(rows * outputs),
            bias: numbers(outputs),
        },
        threshold: threshold.into(),
        leak: vec![1.; threshold.len()],
        pool: false,
        shortcut: None,
    };
    let conv = Connection::Conv {
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    Network {
        name: "small".into(),
        input: [3, 4, 6],
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        classes: vec!["cat".into(), "dog".into(), "größer".into()],
        layers: vec![
            layer("stem", conv, 27, 20, &[0.4]),
            layer("conv", conv, 180, 17, &[0.5]),
            layer("readout", Connection::Linear, 17 * 24, 3, &[]),
        ],
        ..Network::default()
    }
}

/// Where cargo puts this crate's static library: two folders up from this test, or (where only tests were built) beside it.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    let name = "libfewstep_events_c.a";
    [deps.join(name), deps.with_file_name(name)]
        .into_iter()
        .find(|path| path.exists())
        .expect("the static library beside the tests")
}

#[test]
fn a_c_program_gets_the_scores_that_rust_gets_and_sentences_for_errors() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("skipped: there is no C compiler `{compiler}`");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let compile = |source: PathBuf, name: &str| {
        let program = folder.path().join(name);
        let done = Command::new(&compiler)
            .args([
                "-std=c11",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                "-o",
            ])
            .arg(&program)
            .arg(source)
            .arg("-I")
            .arg(here("include"))
            .arg(library())
            .args(["-lpthread", "-ldl", "-lm"])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        program
    };

    let network = network();
    let path = folder.path().join("small.fewstep");
    network.save(&path, Precision::Float32).unwrap();
    let pixels: Vec<u8> = (0..3 * 72).map(|i| (i * 91 % 256) as u8).collect();
    let image = folder.path().join("pixels");
    std::fs::write(&image, &pixels).unwrap();

    let infer = compile(here("examples/infer.c"), "infer");
    let model = Model::open(&path).unwrap();
    for threads in ["1", "2"] {
        let out = Command::new(&infer)
            .arg(&path)
            .arg(&image)
            .arg(threads)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let mut scores = [0.; 9];
        let mut session = model.session(Options::default()).unwrap();
        session.run(Images::Pixels(&pixels), &mut scores).unwrap();
        let expected: String = scores
            .chunks(3)
            .map(|s| {
                let name = &network.classes[fewstep_events::best(s)];
                format!("{name} {s:?}\n").replace(['[', ']', ','], "")
            })
            .collect();
        let numbers = |text: &str| -> Vec<(String, Vec<f32>)> {
            let line = |line: &str| {
                let (name, rest) = line.split_once(' ').unwrap();
                (
                    name.into(),
                    rest.split(' ').map(|n| n.parse().unwrap()).collect(),
                )
            };
            text.lines().map(line).collect()
        };
        assert_eq!(
            numbers(&String::from_utf8(out.stdout).unwrap()),
            numbers(&expected)
        );
    }

    let out = Command::new(&infer)
        .arg(&image)
        .arg(&image)
        .output()
        .unwrap();
    assert!(!out.status.success());
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("expected a model of fewstep-events"),
        "{said}"
    );

    let misuse = compile(here("tests/it/misuse.c"), "misuse");
    let out = Command::new(misuse).arg(&path).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "1 model: expected a pointer, found NULL\n\
         1 path: expected a pointer, found NULL\n\
         2 nowhere.fewstep: No such file or directory (os error 2)\n\
         1 bytes: expected a pointer, found NULL\n\
         1 model: expected a pointer, found NULL\n\
         1 pixels: expected a pointer, found NULL\n\
         1 scores: expected a pointer, found NULL\n\
         1 expected 72 values (6×4 pixels, 3 channels) for each image, found 71 values in all\n\
         1 expected room for 3 scores for each image, found room for 2 scores of 1 images\n\
         1 threads: expected 1 to 1024, found 0\n\
         1 number: expected a class from 0 to 2, found 3\n\
         0 größer\n"
    );
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
