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
        .args(["metadata", "--format-version=1", "--offline"])
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

#[test]
fn crates_that_claim_no_libtorch_cannot_reach_it() {
    let metadata = metadata();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let to = node["deps"].as_array().unwrap().iter();
        let normal = to.filter(|dep| {
            dep["dep_kinds"]
                .as_array()
                .unwrap()
                .iter()
                .any(|kind| kind["kind"] != "dev")
        });
        edges.insert(
            node["id"].as_str().unwrap(),
            normal.map(|dep| dep["pkg"].as_str().unwrap()).collect(),
        );
    }
    let package = |key: &str, value: &str| {
        metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|package| package[key] == value)
            .cloned()
    };
    let mut claims = 0;
    for (name, _, text) in crate_lines(&page("docs/architecture.md")) {
        if !text.contains("No libtorch.") {
            continue;
        }
        claims += 1;
        let start = package("name", &name).unwrap();
        let mut open = vec![start["id"].as_str().unwrap()];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                assert_ne!(
                    package("id", id).unwrap()["name"],
                    "torch-sys",
                    "{name} reaches torch-sys"
                );
                open.extend(edges.get(id).into_iter().flatten());
            }
        }
    }
    assert!(claims >= 3, "the page claims it for {claims} crates only");
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
