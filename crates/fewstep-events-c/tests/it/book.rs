//! The programs in C and in Python of the book's chapter on deployment give the scores that Rust gives.

use std::path::Path;
use std::process::{Command, Output};

use fewstep_events::{Model, Precision};

use super::{here, library, network};

#[path = "../../../../tests/book/page.rs"]
mod page;

/// The chapter's only block of this kind.
fn block(kind: &str) -> String {
    let pages = page::all(&page::root(env!("CARGO_MANIFEST_DIR")));
    let chapter = pages.iter().find(|p| p.name == "docs/deploy.md").unwrap();
    let mut found = chapter.blocks().into_iter().filter(|b| b.info == kind);
    let block = found.next().unwrap();
    assert!(found.next().is_none(), "a second block of {kind}");
    block.text
}

/// Lines of class and score for a black image.
fn agrees(output: &Output, model: &Path) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = Model::open(model).unwrap().run(&[0; 72]).unwrap();
    let scores: Vec<f32> = said
        .lines()
        .enumerate()
        .map(|(number, line)| {
            let (class, score) = line.split_once(' ').unwrap();
            assert_eq!(class, number.to_string());
            score.parse().unwrap()
        })
        .collect();
    assert_eq!(scores.len(), expected.values().len(), "{said}");
    for (score, expected) in scores.iter().zip(expected.values()) {
        assert!(
            (score - expected).abs() <= 1e-4 * expected.abs().max(1.),
            "{said}"
        );
    }
}

#[test]
fn the_c_program_of_the_book_gives_the_scores_that_rust_gives() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    network()
        .save(at("small.events"), Precision::Float32)
        .unwrap();
    std::fs::write(at("infer.c"), block("c")).unwrap();
    let built = Command::new(compiler)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([at("infer"), at("infer.c")])
        .arg("-I")
        .args([here("include"), library()])
        .args(["-lpthread", "-ldl", "-lm"])
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let output = Command::new(at("infer")).arg(at("small.events")).output();
    agrees(&output.unwrap(), &at("small.events"));
}

#[test]
fn the_python_program_of_the_book_gives_the_scores_that_rust_gives() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    network()
        .save(at("small.events"), Precision::Float32)
        .unwrap();
    let output = Command::new("python3")
        .args(["-c", &block("python")])
        .args([library().with_extension("so"), at("small.events")])
        .output()
        .unwrap();
    agrees(&output, &at("small.events"));
    let output = Command::new("python3")
        .args(["-c", &block("python")])
        .args([library().with_extension("so"), at("nowhere.events")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with(&*at("nowhere.events").to_string_lossy()),
        "{said}"
    );
}
