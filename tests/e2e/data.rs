//! Data that is damaged or not there.

use std::path::Path;

use crate::common::Sandbox;

/// CIFAR-10 in the official binary layout, ten images a file, one of each class.
fn cifar(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let names = (1..=5)
        .map(|n| format!("data_batch_{n}.bin"))
        .chain(["test_batch.bin".into()]);
    for (seed, name) in names.enumerate() {
        let mut bytes = Vec::new();
        for label in 0..10_u8 {
            bytes.push(label);
            bytes.extend((0..3072_usize).map(|i| (i * (7 + seed) + 31 * usize::from(label)) as u8));
        }
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn a_truncated_cifar_file_is_named_by_info_and_by_a_run() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("data/cifar-10-batches-bin");
    cifar(&folder);
    let info = sandbox.fewstep(&["data", "info", "data/cifar-10-batches-bin"]);
    assert!(
        info.ok && info.stdout.contains("CIFAR-10, binary layout"),
        "{}{}",
        info.stdout,
        info.stderr
    );
    let file = folder.join("data_batch_3.bin");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    let expected = "data_batch_3.bin: truncated at byte 30630: record 9 needs 30730 bytes";
    let info = sandbox.fewstep(&["data", "info", "data/cifar-10-batches-bin"]);
    assert!(info.sentence().ends_with(expected), "{}", info.stderr);
    let run = sandbox.run(&[
        "--set",
        "data.name=cifar10",
        "--set",
        "data.train_images=40",
        "--set",
        "data.test_images=10",
    ]);
    assert!(run.sentence().ends_with(expected), "{}", run.stderr);
    assert!(!sandbox.path("runs").exists());
}

/// Whoever packs them needs all of them and no others.
#[test]
fn the_files_of_a_data_set_make_the_same_set_elsewhere() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("elsewhere/cifar-10-batches-bin");
    cifar(&folder);
    std::fs::write(folder.join("notes.txt"), "no part of it").unwrap();
    let files = |words: &[&str]| {
        let mut command = sandbox.command(&[&["data", "files"], words].concat());
        // Several folders, as in PATH; the first is not there.
        let output = command
            .env("FEWSTEP_DATA", "nowhere:elsewhere")
            .output()
            .unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let listed = files(&["cifar10"]);
    assert_eq!(listed.lines().count(), 6, "{listed}");
    for file in listed.lines() {
        let to = sandbox
            .path("packed/cifar10")
            .join(Path::new(file).file_name().unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(sandbox.path(file), to).unwrap();
    }
    let info = |path: &str| {
        let said = sandbox.fewstep(&["data", "info", path]).stdout;
        said.replace(path, "")
    };
    assert_eq!(
        info("packed/cifar10"),
        info("elsewhere/cifar-10-batches-bin")
    );
    assert_eq!(
        files(&["digits", "--json"]),
        "{\"folder\":\"\",\"files\":[]}\n"
    );
    std::fs::remove_file(folder.join("data_batch_2.bin")).unwrap();
    assert!(files(&["cifar10"]).contains("data_batch_2.bin: entity not found"));
    assert!(files(&["cifar11"]).contains("did you mean \"cifar10\""));
}

#[test]
fn a_missing_data_set_is_answered_with_where_it_was_looked_for_and_how_to_get_it() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["--set", "data.name=cifar10"]);
    let said = done.sentence();
    assert!(
        said.contains("cifar10 not found: looked for data/cifar10"),
        "{said}"
    );
    assert!(
        said.ends_with("`cargo xtask data fetch cifar10` downloads it"),
        "{said}"
    );
    assert!(!sandbox.path("runs").exists());
    // A stand-in is for a quick look only.
    let done = sandbox.run(&[
        "--set",
        "data.name=cifar10",
        "--set",
        "data.stand_in=synthetic:3x8x8:10:60",
    ]);
    assert!(done.sentence().contains("not found"), "{}", done.stderr);
}

#[test]
fn under_a_limit_noise_stands_in_for_missing_data_and_the_summary_says_so() {
    let sandbox = Sandbox::new();
    let noise = [
        "--set",
        "data.name=cifar10",
        "--set",
        "data.stand_in=synthetic:3x8x8:10:60",
    ];
    let done = sandbox.succeed(&[&noise[..], &["--set", "limits.batches=2"]].concat());
    assert!(
        done.stderr
            .contains("cifar10 is not there: noise takes its place"),
        "{}",
        done.stderr
    );
    let summary = sandbox.summary();
    assert_eq!(
        (&summary["synthetic_data"], &summary["limited_to_batches"]),
        (&true.into(), &2.into())
    );
    assert_eq!(summary["stages"].as_array().unwrap().len(), 2);
}

#[test]
fn info_describes_the_embedded_digits_as_text_and_as_json() {
    let sandbox = Sandbox::new();
    let text = sandbox.fewstep(&["data", "info", "digits"]);
    assert!(text.ok && text.stdout.contains("1437"), "{}", text.stdout);
    let json = sandbox.fewstep(&["data", "info", "digits", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["kind"], "digits");
    let absent = sandbox.fewstep(&["data", "info", "nowhere"]);
    assert!(
        absent.sentence() == "error: nowhere: entity not found",
        "{}",
        absent.stderr
    );
}
