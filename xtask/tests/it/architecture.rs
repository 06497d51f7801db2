//! The documentation tells the truth about the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::sandbox::Sandbox;

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The lines `- **crate** (→ crate, crate): text` of the page: the crate, its arrows, the text.
fn crate_lines(page: &str) -> Vec<(String, BTreeSet<String>, String)> {
    page.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("- **")?.split_once("** (→ ")?;
            let (arrows, text) = rest.split_once("): ")?;
            let arrows = arrows
                .split(", ")
                .filter(|to| *to != "nothing")
                .map(str::to_owned)
                .collect();
            Some((name.to_owned(), arrows, text.to_owned()))
        })
        .collect()
}

/// What the manifests say: each member and the members it depends on, development aside.
fn arrows_of_manifests(metadata: &Value) -> Arrows {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let packages: Vec<Value> = list(&metadata["packages"])
        .into_iter()
        .filter(|package| package["source"].is_null())
        .collect();
    let names: BTreeSet<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    packages
        .iter()
        .map(|package| {
            let to = list(&package["dependencies"])
                .iter()
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
                .filter(|name| names.contains(name.as_str()))
                .collect();
            (package["name"].as_str().unwrap().to_owned(), to)
        })
        .collect()
}

#[test]
fn the_architecture_page_lists_every_crate_with_its_true_arrows() {
    let said: Arrows = crate_lines(&page("docs/architecture.md"))
        .into_iter()
        .map(|(name, arrows, _)| (name, arrows))
        .collect();
    assert_eq!(
        said,
        arrows_of_manifests(&metadata()),
        "left: docs/architecture.md, right: the manifests"
    );
}

/// Each package of Cargo.lock and the names it depends on, on any system and in tests too.
fn locked() -> Arrows {
    let text = page("Cargo.lock");
    let quoted = |line: &str| Some(line.split('"').nth(1)?.split(' ').next()?.to_owned());
    let mut packages = Arrows::new();
    for block in text.split("[[package]]").skip(1) {
        let name = block
            .lines()
            .find(|line| line.starts_with("name = "))
            .and_then(quoted);
        let to = block
            .lines()
            .filter(|line| line.starts_with(" \""))
            .filter_map(quoted);
        packages.entry(name.unwrap()).or_default().extend(to);
    }
    packages
}

#[test]
fn crates_that_claim_no_libtorch_cannot_reach_it() {
    let locked = locked();
    let claims = crate_lines(&page("docs/architecture.md"));
    let claims: Vec<_> = claims
        .iter()
        .filter(|(_, _, text)| text.contains("No libtorch."))
        .collect();
    assert!(claims.len() >= 3, "the page claims it for {claims:?} only");
    for (name, _, _) in claims {
        let mut open = vec![name.as_str()];
        let mut seen = BTreeSet::new();
        while let Some(package) = open.pop() {
            assert_ne!(package, "torch-sys", "{name} reaches libtorch");
            if seen.insert(package) {
                open.extend(locked[package].iter().map(String::as_str));
            }
        }
    }
}

#[test]
fn the_readme_shows_only_commands_that_exist() {
    let readme = page("README.md");
    let mut shown = 0;
    for line in readme
        .lines()
        .filter_map(|line| line.strip_prefix("cargo xtask "))
    {
        let word = line.split_whitespace().next().unwrap();
        // Words that xtask does not know go to the program, which has a file for each.
        let handed_on = root().join(format!("crates/fewstep/src/commands/{word}.rs"));
        let own = [
            "setup", "doctor", "run", "demo", "test", "book", "ci", "bench", "data", "bundle",
        ];
        if !own.contains(&word) {
            assert!(handed_on.exists(), "{line}: fewstep has no such command");
            shown += 1;
            continue;
        }
        let answer = Sandbox::new().says(&[word, "--help"]);
        assert!(
            answer.out.contains(&format!("Usage: cargo xtask {word}")),
            "{line}: {answer:?}"
        );
        shown += 1;
    }
    assert!(shown >= 2, "README.md shows {shown} commands");
    let start = readme.split("## Quick start").nth(1).unwrap();
    let block = start
        .split("```sh\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    assert_eq!(block, "cargo xtask demo\ncargo xtask test\n");
}

#[test]
fn the_tables_of_the_scaling_page_are_what_its_script_prints() {
    let output = Command::new("python3")
        .args(["docs/scaling.py", "--check", "docs/scaling.md"])
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
