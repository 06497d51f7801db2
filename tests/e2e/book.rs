//! The book's shell blocks that are marked `sh,run`, chapter by chapter as a reader follows them, and its configs.
//!
//! A chapter has a folder of its own with the checkout's `configs` in it. `cargo xtask WORDS` starts the program that these tests were
//! built with. A `toml,config` block whose first line names a file (`# mine.toml`) is written there, for the commands after it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fewstep::config;
use fewstep::experiment::{DitExperiment, Experiment, HarmonicaExperiment};

#[path = "../book/page.rs"]
mod page;

fn root() -> PathBuf {
    page::root(env!("CARGO_MANIFEST_DIR"))
}

/// The `cargo` of a chapter: xtask's words go to fewstep.
const CARGO: &str = r#"#!/bin/sh
if [ "$1" = xtask ]; then shift; exec "$FEWSTEP" "$@"; fi
echo "a block that runs calls cargo $*, which it cannot" >&2
exit 1
"#;

/// Follows a chapter of the book.
fn follow(name: &str) {
    let pages = page::all(&root());
    let page = pages.iter().find(|p| p.name == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir(here.join("bin")).unwrap();
    fs::create_dir(here.join("work")).unwrap();
    symlink(root().join("configs"), here.join("work/configs")).unwrap();
    // By a process of its own: one that another test forks meanwhile would have the file open, and nobody could start it.
    fs::write(here.join("cargo"), CARGO).unwrap();
    let installed = Command::new("install")
        .args(["-m", "755"])
        .args([here.join("cargo"), here.join("bin/cargo")])
        .status();
    assert!(installed.unwrap().success());
    let path = std::env::var("PATH").unwrap_or_default();
    let mut ran = 0;
    for block in page.blocks() {
        if let Some(file) = file_of(block.info, &block.text) {
            fs::write(here.join("work").join(file), &block.text).unwrap();
        }
        if block.info != "sh,run" {
            continue;
        }
        let output = Command::new("sh")
            .args(["-euc", &block.text])
            .current_dir(here.join("work"))
            .env("PATH", format!("{}:{path}", here.join("bin").display()))
            .env("FEWSTEP", env!("CARGO_BIN_EXE_fewstep"))
            // Several chapters are followed at a time.
            .env("OMP_NUM_THREADS", "1")
            .env_remove("FEWSTEP_DATA")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{name}:{}:\n{}{}{}",
            block.line,
            block.text,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ran += 1;
    }
    assert!(ran > 0, "{name} has no block that runs");
}

/// The file that a block is to be, by its first line.
fn file_of<'a>(info: &str, text: &'a str) -> Option<&'a str> {
    let first = text.lines().next()?;
    let name = first
        .strip_prefix("# ")
        .filter(|name| name.ends_with(".toml"))?;
    (info == "toml,config" && Path::new(name).file_name()?.to_str()? == name).then_some(name)
}

macro_rules! chapters {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $test() {
                follow($file);
            }
        )*
        /// Chapters that are followed.
        const FOLLOWED: &[&str] = &[$($file),*];
    };
}

chapters! {
    the_chapter_on_data_does_what_it_says: "docs/data.md",
    the_chapter_on_deployment_does_what_it_says: "docs/deploy.md",
    the_chapter_on_harmonica_does_what_it_says: "docs/harmonica.md",
    the_chapter_on_iir_snn_does_what_it_says: "docs/iir.md",
    the_chapter_on_own_checkpoints_does_what_it_says: "docs/checkpoint.md",
    the_chapter_on_policies_does_what_it_says: "docs/policies.md",
    the_chapter_on_reports_does_what_it_says: "docs/reports.md",
    the_quick_start_does_what_it_says: "docs/quick-start.md",
}

#[test]
fn every_chapter_with_blocks_that_run_is_followed() {
    for page in page::all(&root()) {
        let runs = page.blocks().iter().any(|block| block.info == "sh,run");
        assert_eq!(
            runs,
            FOLLOWED.contains(&page.name.as_str()),
            "{}",
            page.name
        );
    }
}

/// A config of any method, read as `fewstep run` reads it, by what it would do.
fn read(name: &str, text: &str) {
    let table: toml::Table = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let method = table.get("method").and_then(toml::Value::as_str);
    let fault = match method.unwrap_or("iir-snn") {
        "iir-snn" => config::from_str::<Experiment>(name, text, &[])
            .map(|e| {
                e.recipe()
                    .validate()
                    .unwrap_or_else(|e| panic!("{name}: {e}"))
            })
            .err(),
        "dit" => config::from_str::<DitExperiment>(name, text, &[]).err(),
        _ => config::from_str::<HarmonicaExperiment>(name, text, &[]).err(),
    };
    if let Some(fault) = fault {
        panic!("{fault}");
    }
}

/// `over` wins, table by table.
fn lay(over: toml::Table, base: &mut toml::Table) {
    for (key, value) in over {
        match (value, base.get_mut(&key)) {
            (toml::Value::Table(over), Some(toml::Value::Table(base))) => lay(over, base),
            (value, _) => drop(base.insert(key, value)),
        }
    }
}

#[test]
fn every_config_of_the_book_is_one_that_the_program_reads() {
    let mut seen = 0;
    for page in page::all(&root()) {
        for block in page.blocks() {
            let place = format!("{}:{}", page.name, block.line);
            if block.info == "toml,config" {
                read(&place, &block.text);
                seen += 1;
            }
            // A part of a config, laid over the whole one that its first line names.
            if block.info == "toml,part" {
                let first = block.text.lines().next().unwrap_or_default();
                let base = first.strip_prefix("# changes ");
                let base = base.unwrap_or_else(|| panic!("{place}: expected `# changes FILE`"));
                let text = fs::read_to_string(root().join(base)).unwrap();
                let mut table: toml::Table = toml::from_str(&text).unwrap();
                lay(toml::from_str(&block.text).unwrap(), &mut table);
                read(&place, &toml::to_string(&table).unwrap());
                seen += 1;
            }
        }
    }
    assert!(seen > 4, "{seen} configs");
}
