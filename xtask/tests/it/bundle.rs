//! `bundle`, and the folder it makes, started as its user starts it: by Python, with a torch that is never imported.

mod faults;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sandbox::{Said, Sandbox, said};

/// Stands for fewstep: lists the files of one data set, else says what it was started with.
const PROGRAM: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "data")) {
        if (!strcmp(words[count - 1], "digits")) return !puts("{\"folder\": \"\", \"files\": []}");
        if (!strcmp(words[count - 1], "letters"))
            return !puts("{\"folder\": \"letters\", \"files\": [\"b/2.txt\", \"a/1.txt\"]}");
        return fprintf(stderr, "error: unknown data set %s\n", words[count - 1]), 1;
    }
    if (count > 1 && !strcmp(words[1], "die")) raise(SIGTERM);
    for (int i = 1; i < count; i++) printf("[%s]", words[i]);
    printf("\nlibraries %s\ndata %s\n", getenv("LD_LIBRARY_PATH"), getenv("FEWSTEP_DATA"));
    return 7;
}
"#;

/// A checkout with a program, a data set, a config and a run, and beside it a Python package torch.
fn with_program() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.libtorch("root/.libtorch", "2.11.0");
    for (name, text) in [
        ("root/letters/a/1.txt", "one"),
        ("root/letters/b/2.txt", "two"),
        ("root/letters/left.txt", "no part of it"),
        ("root/configs/iir/demo.toml", "name = \"demo\""),
        (
            "root/configs/weights/large.safetensors",
            "carried by the program",
        ),
        ("root/runs/mine/t1.safetensors", "weights"),
        ("root/runs/mine/plots/loss.png", "plot"),
        ("elsewhere/own.toml", "name = \"own\""),
        ("program.c", PROGRAM),
    ] {
        write(&sandbox.path(name), text);
    }
    cc(&sandbox, &["-o", "fewstep"]);
    torch(&sandbox, "2.11.0+cu130");
    let message = format!(
        r#"{{"target": {{"name": "fewstep"}}, "executable": "{}"}}"#,
        sandbox.path("fewstep").display()
    );
    write(&sandbox.path("messages"), &message);
    sandbox.script(
        "fake-cargo",
        &format!("cat {}", sandbox.path("messages").display()),
    );
    sandbox
}

fn cc(sandbox: &Sandbox, arguments: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let done = Command::new(compiler)
        .args(["-g", "-Wl,-rpath,/where/it/was/built", "program.c"])
        .args(arguments)
        .current_dir(sandbox.path(""))
        .status()
        .unwrap();
    assert!(done.success());
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A package that must not be imported.
fn torch(sandbox: &Sandbox, version: &str) {
    let version =
        format!("from typing import Optional\n__version__ = '{version}'\ngit_version = '1.2.3'\n");
    for (name, text) in [
        ("__init__.py", "raise SystemExit('torch was imported')"),
        ("version.py", &version),
        ("lib/libtorch_cpu.so", ""),
        ("lib/libc10.so", ""),
    ] {
        write(&sandbox.path("site/torch").join(name), text);
    }
}

fn bundle(sandbox: &Sandbox, arguments: &[&str]) -> Said {
    let mut command = sandbox.xtask(&[&["bundle"], arguments].concat());
    said(command.env("CARGO", sandbox.path("bin/fake-cargo")))
}

/// The same, and it must succeed; the folder.
fn made(sandbox: &Sandbox, arguments: &[&str]) -> PathBuf {
    let answer = bundle(sandbox, arguments);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    sandbox.path("root/bundle")
}

/// `./run` of a bundle, in a folder and with a home of its own.
fn start(sandbox: &Sandbox, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    let here = sandbox.path("here");
    fs::create_dir_all(&here).unwrap();
    command
        .arg(folder.join("run"))
        .args(arguments)
        .current_dir(here)
        .env("PYTHONPATH", sandbox.path("site"))
        .env("XDG_CACHE_HOME", sandbox.path("user-cache"));
    for name in ["LIBTORCH", "FEWSTEP_DATA", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command
}

/// The only folder of this prefix.
fn unpacked(place: &Path) -> PathBuf {
    let mut found: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("unpacked-")
        })
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_bundle_runs_wherever_it_is_with_what_was_asked_for_and_nothing_of_the_builder() {
    let sandbox = with_program();
    let own = sandbox.path("elsewhere/own.toml");
    let made = made(
        &sandbox,
        &[
            "--data",
            "letters",
            "--data",
            "digits",
            "--checkpoint",
            "runs/mine",
            "--config",
            own.to_str().unwrap(),
        ],
    );
    let folder = sandbox.path("moved here");
    fs::rename(made, &folder).unwrap();
    for (name, text) in [
        ("configs/iir/demo.toml", "name = \"demo\""),
        ("configs/own.toml", "name = \"own\""),
        ("runs/mine/t1.safetensors", "weights"),
        ("runs/mine/plots/loss.png", "plot"),
    ] {
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), text);
    }
    assert!(!folder.join("configs/weights").exists());
    assert_eq!(
        fs::metadata(folder.join("run"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o755
    );
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(
        !readme.contains('{') && readme.contains("torch==2.11.0"),
        "{readme}"
    );

    let mut command = start(&sandbox, &folder, &["run", "a b", "--check"]);
    command
        .env("LD_LIBRARY_PATH", "/own/lib")
        .env("FEWSTEP_DATA", "/own/data");
    let first = said(&mut command);
    assert_eq!(first.code, Some(7), "{first:?}");
    assert!(first.err.starts_with("unpacking into "), "{first:?}");
    let unpacked = unpacked(&folder);
    let lib = sandbox.path("site/torch/lib");
    let (lib, data) = (lib.to_str().unwrap(), unpacked.join("data"));
    assert!(
        first
            .out
            .starts_with(&format!("[run][a b][--check]\nlibraries {lib}:/own/lib")),
        "{first:?}"
    );
    assert!(
        first
            .out
            .ends_with(&format!("\ndata /own/data:{}\n", data.display())),
        "{first:?}"
    );
    assert_eq!(
        fs::read_to_string(data.join("letters/a/1.txt")).unwrap(),
        "one"
    );
    assert_eq!(
        fs::read_to_string(data.join("letters/b/2.txt")).unwrap(),
        "two"
    );
    assert!(!data.join("letters/left.txt").exists());

    let again = said(&mut start(&sandbox, &folder, &[]));
    assert_eq!((again.code, again.err.as_str()), (Some(7), ""), "{again:?}");
    assert!(
        again.out.ends_with(&format!("\ndata {}\n", data.display())),
        "{again:?}"
    );
    let killed = start(&sandbox, &folder, &["die"]).output().unwrap();
    assert_eq!(killed.status.signal(), Some(libc::SIGTERM));
    let checked = said(&mut start(&sandbox, &folder, &["--check"]));
    assert!(
        checked.out.contains("torch 2.11.0+cu130: ") && checked.out.contains("\n[devices]\n"),
        "{checked:?}"
    );
    assert!(checked.out.contains("data sets: letters\n"), "{checked:?}");

    let bytes = fs::read(unpacked.join("fewstep")).unwrap();
    for trace in ["/where/it/was/built", "program.c"] {
        assert!(
            !bytes
                .windows(trace.len())
                .any(|window| window == trace.as_bytes()),
            "{trace}"
        );
    }
}

#[test]
fn the_library_for_several_gpus_lies_beside_the_program_where_the_build_has_made_one() {
    let sandbox = with_program();
    cc(&sandbox, &["-shared", "-fPIC", "-o", "libfewstep_cuda.so"]);
    let library = sandbox.path("libfewstep_cuda.so");
    let messages = sandbox.path("messages");
    let text = fs::read_to_string(&messages).unwrap();
    let script = format!(
        r#"{{"reason": "build-script-executed", "env": [["FEWSTEP_CUDA", "{}"]]}}"#,
        library.display()
    );
    write(&messages, &format!("{script}\n{text}"));
    let folder = made(&sandbox, &[]);
    assert_eq!(said(&mut start(&sandbox, &folder, &[])).code, Some(7));
    assert!(unpacked(&folder).join("libfewstep_cuda.so").exists());
}

#[test]
fn the_same_inputs_make_the_same_bundle_bit_for_bit() {
    let sandbox = with_program();
    let arguments = ["--data", "letters", "--checkpoint", "runs/mine"];
    let folder = made(&sandbox, &arguments);
    let touched = fs::File::options()
        .write(true)
        .open(sandbox.path("root/letters/a/1.txt"))
        .unwrap();
    touched.set_modified(std::time::UNIX_EPOCH).unwrap();
    made(
        &sandbox,
        &[&arguments[..], &["--out", "again/and/again"]].concat(),
    );
    let same = Command::new("diff")
        .args(["-r"])
        .args([folder, sandbox.path("root/again/and/again")])
        .output()
        .unwrap();
    assert!(
        same.status.success(),
        "{}",
        String::from_utf8_lossy(&same.stdout)
    );
}

#[test]
fn only_an_untouched_bundle_is_replaced() {
    let sandbox = with_program();
    let folder = made(&sandbox, &[]);
    assert_eq!(said(&mut start(&sandbox, &folder, &[])).code, Some(7));
    made(&sandbox, &["--data", "letters"]); // with what was unpacked
    assert!(folder.join("data-letters.tar.gz").exists());
    let refuses = |what: &str| {
        let answer = bundle(&sandbox, &[]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(
            answer.err.contains(what) && answer.err.contains("--out"),
            "{answer:?}"
        );
        assert!(folder.join("data-letters.tar.gz").exists());
    };
    write(&folder.join("runs/new/summary.json"), "{}");
    refuses("bundle/runs/new/summary.json was not there when the bundle was made");
    fs::remove_dir_all(folder.join("runs")).unwrap();
    write(&folder.join("configs/iir/demo.toml"), "name = \"mine\"");
    refuses("bundle/configs/iir/demo.toml was changed since");
    fs::remove_file(folder.join("bundle.json")).unwrap();
    refuses("is no bundle of `cargo xtask bundle`");
}

#[test]
fn what_cannot_be_bundled_is_named_and_no_folder_is_left() {
    let sandbox = with_program();
    let large = fs::File::create(sandbox.path("root/large.safetensors")).unwrap();
    large.set_len(61_000_000).unwrap();
    write(&sandbox.path("root/run"), "not the script");
    for (arguments, expected) in [
        (
            &["--data", "leters"][..],
            "--data leters: unknown data set leters",
        ),
        (&["--data", "a/b"], "--data a/b: expected a name"),
        (
            &["--checkpoint", "runs/none"],
            "--checkpoint runs/none cannot be read: No such file",
        ),
        (
            &["--checkpoint", "."],
            "--checkpoint .: expected the path of a file",
        ),
        (
            &["--checkpoint", "run"],
            "cannot copy run: it would take the place of the bundle's own run",
        ),
        (
            &["--config", "configs"],
            "--config configs is a folder, expected a file",
        ),
        (
            &["--data", "letters", "--checkpoint", "large.safetensors"],
            "--checkpoint large.safetensors 61.0 MB, --data letters 0.0 MB; leave out --checkpoint large.safetensors",
        ),
    ] {
        let answer = bundle(&sandbox, arguments);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let last = answer.err.lines().last().unwrap();
        assert!(
            last.starts_with("error: ") && last.contains(expected),
            "{answer:?}"
        );
        for left in ["bundle", "bundle.partial", "bundle.old"] {
            assert!(
                !sandbox.path("root").join(left).exists(),
                "{arguments:?}: {left}"
            );
        }
    }
}

/// The whole way: the program of this workspace on this workspace's libtorch, which stands for Python's torch.
#[test]
fn a_bundle_of_fewstep_itself_samples_what_fewstep_samples() {
    let program = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("fewstep");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let libtorch = std::env::var_os("LIBTORCH")
        .map_or_else(|| root.join(".libtorch"), |folder| root.join(folder));
    if !program.exists() || !libtorch.join("lib/libtorch_cpu.so").exists() {
        eprintln!("skipped: fewstep is not built, or libtorch is not set up");
        return;
    }
    let sandbox = with_program();
    let message = format!(
        r#"{{"target": {{"name": "fewstep"}}, "executable": "{}"}}"#,
        program.display()
    );
    write(&sandbox.path("messages"), &message);
    let folder = made(&sandbox, &[]);
    fs::remove_dir_all(sandbox.path("site/torch/lib")).unwrap();
    std::os::unix::fs::symlink(libtorch.join("lib"), sandbox.path("site/torch/lib")).unwrap();

    let words = [
        "sample",
        "--checkpoint",
        "digits",
        "--steps",
        "2",
        "--n",
        "2",
        "--quiet",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--out",
    ];
    let answer = said(&mut start(
        &sandbox,
        &folder,
        &[&words[..], &["bundle.npz"]].concat(),
    ));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let direct = Command::new(program)
        .args(words)
        .arg("direct.npz")
        .current_dir(sandbox.path("here"))
        .env("LD_LIBRARY_PATH", libtorch.join("lib"))
        .output()
        .unwrap();
    assert!(
        direct.status.success(),
        "{}",
        String::from_utf8_lossy(&direct.stderr)
    );
    let read = |name| fs::read(sandbox.path("here").join(name)).unwrap();
    assert!(read("bundle.npz") == read("direct.npz"));
    let checked = said(&mut start(&sandbox, &folder, &["--check"]));
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.out.contains("\ncpu: computes, "), "{checked:?}");
}
