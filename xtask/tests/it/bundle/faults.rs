//! What a bundle says where it cannot start, and where it starts all the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::super::sandbox::said;
use super::{made, start, torch, unpacked, with_program, write};

/// The sentence of a start that fails.
fn refused(command: &mut Command) -> String {
    let answer = said(command);
    assert_eq!(
        (answer.code, answer.out.as_str()),
        (Some(1), ""),
        "{answer:?}"
    );
    let lines: Vec<_> = answer
        .err
        .lines()
        .filter(|line| !line.starts_with("unpacking into "))
        .collect();
    assert_eq!(lines.len(), 1, "{}", answer.err);
    lines[0].strip_prefix("error: ").unwrap().to_owned()
}

fn check(sentence: &str, expected: &[&str]) {
    for part in expected {
        assert!(sentence.contains(part), "{sentence}\nhas no {part}");
    }
}

#[test]
fn a_machine_without_the_right_torch_is_told_so_in_one_sentence() {
    let sandbox = with_program();
    let folder = made(&sandbox, &[]);
    // Isolated: neither PYTHONPATH nor site-packages.
    let mut bare = Command::new("python3");
    bare.args(["-I", "-S"])
        .arg(folder.join("run"))
        .env_remove("LIBTORCH");
    check(
        &refused(&mut bare),
        &["has no package torch", "pip install torch==2.11.0"],
    );

    torch(&sandbox, "2.10.0");
    check(
        &refused(&mut start(&sandbox, &folder, &[])),
        &["site/torch is torch 2.10.0, and 2.11.0 is needed"],
    );
    torch(&sandbox, "2.11.0");
    fs::remove_file(sandbox.path("site/torch/lib/libc10.so")).unwrap();
    check(
        &refused(&mut start(&sandbox, &folder, &[])),
        &["site/torch/lib has no libc10.so"],
    );

    let with = |root: PathBuf| {
        let mut command = start(&sandbox, &folder, &[]);
        command.env("LIBTORCH", root);
        command
    };
    let (good, old) = (
        sandbox.libtorch("good", "2.11.0"),
        sandbox.libtorch("old", "2.9.1"),
    );
    check(
        &refused(&mut with(old)),
        &["LIBTORCH is ", "old is torch 2.9.1, and 2.11.0 is needed"],
    );
    check(
        &refused(&mut with("/nowhere".into())),
        &["LIBTORCH is /nowhere, but /nowhere/lib has no libtorch_cpu.so"],
    );
    assert!(!fs::read_dir(&folder).unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("unpacked-")
    }));
    let answer = said(&mut with(good.clone()));
    assert_eq!(answer.code, Some(7), "{answer:?}");
    assert!(
        answer
            .out
            .contains(&format!("libraries {}/lib", good.display())),
        "{answer:?}"
    );
}

/// Changes the list of a bundle.
fn edit(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

#[test]
fn a_system_that_is_too_old_or_too_full_is_told_so_in_one_sentence() {
    let sandbox = with_program();
    let folder = made(&sandbox, &[]);
    let with = |key: &str, value: Value| {
        edit(&folder, |manifest| manifest[key] = value.clone());
        refused(&mut start(&sandbox, &folder, &[]))
    };
    check(
        &with(
            "archives",
            serde_json::json!({"program.tar.gz": 1_000_000_000_000_000_000_u64}),
        ),
        &[
            "no room to unpack: 1000000000000 MB are needed in ",
            "bundle, and ",
            " MB are free",
        ],
    );
    check(
        &with("glibc", "2.999".into()),
        &["of this system is too old: the program needs 2.999 or newer"],
    );
    check(
        &with("machine", "pdp11".into()),
        &["and the program is for pdp11"],
    );
}

#[test]
fn a_bundle_that_is_not_whole_says_which_file_and_unpacks_nothing() {
    let sandbox = with_program();
    let folder = made(
        &sandbox,
        &["--data", "letters", "--checkpoint", "runs/mine"],
    );
    let path = folder.join("data-letters.tar.gz");
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    let run = || refused(&mut start(&sandbox, &folder, &[]));
    for (bytes, what) in [
        (&flipped[..], "data-letters.tar.gz is not what was packed"),
        (&whole[..30], "data-letters.tar.gz has 30 bytes instead of "),
    ] {
        fs::write(&path, bytes).unwrap();
        check(
            &run(),
            &["the bundle is damaged: ", what, "copy the bundle again"],
        );
    }
    fs::remove_file(&path).unwrap();
    check(
        &run(),
        &[
            "the bundle is not whole: ",
            "data-letters.tar.gz: No such file",
        ],
    );
    fs::write(&path, whole).unwrap();
    // Not read at a start, but by a check; a config is its user's.
    write(&folder.join("configs/iir/demo.toml"), "name = \"changed\"");
    fs::write(folder.join("runs/mine/t1.safetensors"), "WEIGHTS").unwrap();
    let checked = refused(&mut start(&sandbox, &folder, &["--check"]));
    check(&checked, &["t1.safetensors is not what was packed"]);
    fs::write(folder.join("runs/mine/t1.safetensors"), "weights").unwrap();
    let answer = said(&mut start(&sandbox, &folder, &["--check"]));
    assert_eq!(answer.code, Some(7), "{answer:?}");
    unpacked(&folder);
    fs::write(folder.join("bundle.json"), "{").unwrap();
    check(&run(), &["bundle.json cannot be read"]);
}

#[test]
fn what_an_interrupted_start_left_goes_and_starts_at_the_same_time_share_one_folder() {
    let sandbox = with_program();
    let folder = made(&sandbox, &["--data", "letters"]);
    let answer = said(&mut start(&sandbox, &folder, &[]));
    assert_eq!(answer.code, Some(7), "{answer:?}");
    let whole = unpacked(&folder);
    let left = PathBuf::from(format!("{}.abc123", whole.display()));
    fs::rename(&whole, &left).unwrap();
    fs::remove_file(left.join("data/letters/a/1.txt")).unwrap();

    let starts: Vec<_> = (0..4)
        .map(|_| {
            let mut command = start(&sandbox, &folder, &[]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut unpackers = 0;
    for start in starts {
        let output = start.wait_with_output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(7), "{words}");
        unpackers += usize::from(words.starts_with("unpacking into "));
    }
    assert_eq!(unpackers, 1);
    assert_eq!(unpacked(&folder), whole);
    assert!(whole.join("data/letters/a/1.txt").exists());
}

#[test]
fn a_read_only_bundle_unpacks_into_the_users_cache() {
    let sandbox = with_program();
    let folder = made(&sandbox, &["--data", "letters"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write everywhere, unless that is taken from it.
    let writable = fs::write(folder.join("probe"), "").is_ok();
    let mut python = start(&sandbox, &folder, &[]);
    if writable {
        fs::remove_file(folder.join("probe")).unwrap();
        let mut command = Command::new("setpriv");
        command.args([
            "--bounding-set=-dac_override",
            "--inh-caps=-dac_override",
            "python3",
        ]);
        command
            .args(python.get_args())
            .current_dir(python.get_current_dir().unwrap());
        for (name, value) in python.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        python = command;
        let setpriv = Command::new("setpriv")
            .args(["--bounding-set=-dac_override", "true"])
            .output();
        if !setpriv.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: root, and without setpriv");
            return;
        }
    }
    let answer = said(&mut python);
    assert_eq!(answer.code, Some(7), "{answer:?}");
    let place = unpacked(&sandbox.path("user-cache/fewstep"));
    assert!(
        answer
            .out
            .contains(&format!("data {}/data\n", place.display())),
        "{answer:?}"
    );
    fs::remove_dir_all(sandbox.path("user-cache")).unwrap();
    fs::write(sandbox.path("user-cache"), "no folder").unwrap();
    let answer = said(&mut python);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(
        answer.err.contains("unpacking into ") && answer.err.contains("user-cache"),
        "{answer:?}"
    );
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
}
