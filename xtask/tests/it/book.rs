//! The book is whole: every page has its place, every link leads somewhere, every block is of a kind that something checks.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use super::sandbox::Sandbox;

#[path = "../../../tests/book/page.rs"]
mod page;

use page::{Call, Page};

fn root() -> PathBuf {
    page::root(env!("CARGO_MANIFEST_DIR"))
}

/// `docs/results/../iir.md` is `docs/iir.md`.
fn normal(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(found.pop()),
            Component::CurDir => {}
            other => found.push(other),
        }
    }
    found
}

/// The chapters of the book, as SUMMARY.md has them.
fn chapters(pages: &[Page]) -> BTreeSet<String> {
    let summary = pages.iter().find(|p| p.name == "docs/SUMMARY.md").unwrap();
    let links = summary.links();
    let listed: BTreeSet<_> = links.iter().map(|(_, to)| format!("docs/{to}")).collect();
    assert_eq!(listed.len(), links.len(), "SUMMARY.md names a page twice");
    listed
}

#[test]
fn every_page_below_docs_has_its_place_in_the_summary() {
    let pages = page::all(&root());
    let there: BTreeSet<_> = pages
        .iter()
        .map(|p| p.name.clone())
        .filter(|name| name != "README.md" && name != "docs/SUMMARY.md")
        .collect();
    assert_eq!(
        chapters(&pages),
        there,
        "left: docs/SUMMARY.md, right: the pages"
    );
}

#[test]
fn every_link_leads_to_a_page_a_heading_or_a_file() {
    let root = root();
    let pages = page::all(&root);
    let mut seen = 0;
    for page in &pages {
        for (line, target) in page.links() {
            let place = format!("{}:{line}: {target}", page.name);
            seen += 1;
            if target.starts_with("https://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&page.name).parent().unwrap();
            let path = match file {
                "" => PathBuf::from(&page.name),
                file => normal(&folder.join(file)),
            };
            assert!(root.join(&path).exists(), "{place}: there is no such file");
            // The pages of the book lie without the rest of the checkout around them.
            assert!(
                page.name == "README.md" || path.starts_with("docs"),
                "{place}: leads out of docs/; name the file in backticks instead"
            );
            if !anchor.is_empty() {
                let to = pages.iter().find(|p| Path::new(&p.name) == path).unwrap();
                assert!(
                    to.anchors().contains(&anchor.to_owned()),
                    "{place}: its headings are {:?}",
                    to.anchors()
                );
            }
        }
    }
    assert!(seen > 60, "{seen} links");
}

/// Paths of the repository that the text names, such as `configs/iir/demo.toml`.
#[test]
fn every_file_of_the_repository_that_the_text_names_is_there() {
    let root = root();
    let mut seen = 0;
    for page in page::all(&root) {
        for (line, code) in page.inline_code() {
            let named = code.split_whitespace().filter(|word| {
                ["configs/", "crates/", "tests/", "xtask/", "docs/"]
                    .iter()
                    .any(|folder| word.starts_with(folder))
            });
            for word in named {
                // `configs/harmonica/…`: some file of that folder.
                let path = word.split(['…', '*', '<', ':', ',']).next().unwrap();
                assert!(
                    root.join(path.trim_end_matches('.')).exists(),
                    "{}:{line}: {word} is not there",
                    page.name
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen} paths");
}

#[test]
fn every_code_block_is_of_a_kind_that_something_checks() {
    let root = root();
    let doctests = fs::read_to_string(root.join("tests/book/src/lib.rs")).unwrap();
    let mut seen = 0;
    for page in page::all(&root) {
        for block in page.blocks() {
            let place = format!("{}:{}: ```{}", page.name, block.line, block.info);
            match block.info {
                // Checked by tests/e2e/book.rs and the book_tests of xtask and fewstep.
                "sh" | "sh,run" | "toml,config" | "toml,part" => {}
                // By crates/fewstep-events-c/tests/it/book.rs.
                "c" => assert_eq!(page.name, "docs/deploy.md", "{place}"),
                // By doctests of fewstep-book.
                "rust" | "rust,no_run" => {
                    let chapter = page.name.strip_prefix("docs/").unwrap();
                    assert!(
                        doctests.contains(&format!("\"{chapter}\"")),
                        "{place}: tests/book/src/lib.rs does not have the chapter"
                    );
                }
                "python" => assert!(is_python(&block.text), "{place}: is no Python"),
                // What a program printed.
                "text" => {}
                _ => panic!("{place}: a kind that nothing checks"),
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} blocks");
}

fn is_python(text: &str) -> bool {
    let mut python = Command::new("python3")
        .args(["-c", "import ast, sys; ast.parse(sys.stdin.read())"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = python.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    python.wait().unwrap().success()
}

#[test]
fn other_programs_in_shell_blocks_are_ones_that_we_know() {
    let root = root();
    let known = [
        "cargo build",
        "cargo clean",
        "cargo fuzz",
        "cargo test",
        "./run --check",
        "cat",
        "cc",
        "cd",
        "cp",
        "ls",
        "mkdir",
        "mv",
        "nohup",
        "pip install",
        "python3",
        "scp",
        "target/dist/fewstep-infer",
    ];
    for page in page::all(&root) {
        for (line, call) in page.calls() {
            let Call::Other(words) = call else { continue };
            let text = words.join(" ");
            let place = format!("{}:{line}: {text}", page.name);
            let is_known = |name: &&str| text == **name || text.starts_with(&format!("{name} "));
            assert!(known.iter().any(is_known), "{place}");
            let packages = words
                .windows(2)
                .filter(|pair| words[0] == "cargo" && pair[0] == "-p");
            for pair in packages {
                let folder = root.join("crates").join(&pair[1]);
                assert!(folder.exists(), "{place}: there is no crate {}", pair[1]);
            }
        }
    }
}

#[test]
fn the_book_is_built_by_a_program_of_its_own_into_the_target_folder() {
    let sandbox = Sandbox::new();
    let log = sandbox.path("asked");
    let fake = sandbox.script(
        "fake-cargo",
        &format!("echo \"$*\" >> {}\nexit ${{FAIL:-0}}", log.display()),
    );
    let book = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = sandbox.xtask(&[&["book"], words].concat());
        command.env("CARGO", &fake).envs(variables.to_vec());
        super::sandbox::said(&mut command)
    };
    let answer = book(&[], &[]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let (docs, out) = (sandbox.path("root/docs"), sandbox.path("root/target/book"));
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        format!(
            "run --package fewstep-book -- {} {}\n",
            docs.display(),
            out.display()
        )
    );
    let answer = book(&[], &[("FAIL", "1")]);
    assert_eq!(answer.code, Some(1));
    assert!(
        answer
            .err
            .ends_with("error: the book does not build: see above\n")
    );
    let answer = book(&["--open"], &[("BROWSER", "false")]);
    assert!(
        answer.err.contains("`false` did not open") && answer.err.contains("book/index.html"),
        "{answer:?}"
    );
    assert_eq!(book(&["--open"], &[("BROWSER", "true")]).code, Some(0));
}

/// Whoever opens the documentation of a crate sees it at work first.
#[test]
fn the_documentation_of_every_crate_opens_with_an_example() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path().join("src/lib.rs");
        let text = fs::read_to_string(&path).unwrap();
        let opening = text.lines().map_while(|line| line.strip_prefix("//!"));
        let opening: Vec<&str> = opening.map(str::trim).collect();
        let begin = opening
            .iter()
            .position(|l| ["```", "```no_run"].contains(l));
        let begin = begin.unwrap_or_else(|| panic!("{} opens without one", path.display()));
        let lines = opening[begin + 1..].iter().take_while(|l| **l != "```");
        let lines = lines.count();
        assert!(
            (4..=40).contains(&lines),
            "{}: {lines} lines",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 12, "{seen} crates");
}
