//! The pages of the book as its tests see them: code blocks, links, commands. Each test program includes this file.

// None of them needs all of it, and all of them are tests.
#![allow(dead_code, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A Markdown file.
pub struct Page {
    /// From the root of the checkout, such as `docs/iir.md`.
    pub name: String,
    pub text: String,
}

/// What stands between two fences.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Line of the opening fence, from 1.
    pub line: usize,
    /// What follows the opening fence: `sh`, `sh,run`, …
    pub info: &'a str,
    pub text: String,
}

/// Who is called by a line of a `sh` block.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// `cargo xtask WORDS`.
    Xtask(Vec<String>),
    /// `fewstep WORDS`, by whatever way the program is started.
    Fewstep(Vec<String>),
    /// Some other program.
    Other(Vec<String>),
}

/// The root of the checkout, as seen from the crate whose manifest is in `manifest_dir`.
pub fn root(manifest_dir: &str) -> PathBuf {
    let above = Path::new(manifest_dir).ancestors();
    let found = above
        .skip(1)
        .find(|folder| folder.join("docs/SUMMARY.md").exists());
    found.expect("a folder with docs/SUMMARY.md").to_path_buf()
}

/// Every page below docs/, and README.md, sorted by name.
pub fn all(root: &Path) -> Vec<Page> {
    let mut open = vec![root.join("docs")];
    let mut found = vec![root.join("README.md")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder of pages") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    let page = |path: PathBuf| Page {
        name: path
            .strip_prefix(root)
            .expect("below the root")
            .display()
            .to_string(),
        text: fs::read_to_string(&path).expect("a page in UTF-8"),
    };
    found.into_iter().map(page).collect()
}

impl Page {
    /// The code blocks.
    pub fn blocks(&self) -> Vec<Block<'_>> {
        self.walk().0
    }

    /// The lines outside code blocks, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        self.walk().1
    }

    fn walk(&self) -> (Vec<Block<'_>>, Vec<(usize, &str)>) {
        let (mut blocks, mut prose) = (Vec::new(), Vec::new());
        let mut open: Option<Block<'_>> = None;
        for (index, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (Some(_), Some("")) => blocks.extend(open.take()),
                (Some(block), _) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, Some(info)) => {
                    open = Some(Block {
                        line: index + 1,
                        info,
                        text: String::new(),
                    });
                }
                (None, None) => prose.push((index + 1, line)),
            }
        }
        assert!(open.is_none(), "{}: a code block has no end", self.name);
        (blocks, prose)
    }

    /// What stands between single backticks in the prose, with its line. It may go on on the next line.
    pub fn inline_code(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut open: Option<(usize, String)> = None;
        for (number, line) in self.prose() {
            if line.is_empty() {
                open = None;
            }
            for (index, part) in line.split('`').enumerate() {
                if index > 0 {
                    match open.take() {
                        Some(code) => found.push(code),
                        None => open = Some((number, String::new())),
                    }
                }
                if let Some((_, code)) = &mut open {
                    if index == 0 {
                        code.push(' ');
                    }
                    code.push_str(part);
                }
            }
        }
        found
    }

    /// Where links of the prose lead, with their lines.
    pub fn links(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (number, line) in self.prose() {
            let mut rest = line;
            while let Some((_, after)) = rest.split_once("](") {
                let Some((target, behind)) = after.split_once(')') else {
                    break;
                };
                found.push((number, target));
                rest = behind;
            }
        }
        found
    }

    /// The headings as mdBook names them in an address.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().into_iter().filter(|(_, l)| l.starts_with('#'));
        headings.map(|(_, line)| anchor(line)).collect()
    }

    /// The calls in its `sh` blocks, each with its line.
    pub fn calls(&self) -> Vec<(usize, Call)> {
        let blocks = self.blocks();
        let shell = blocks
            .iter()
            .filter(|b| b.info == "sh" || b.info == "sh,run");
        shell
            .flat_map(|block| {
                calls(&block.text)
                    .into_iter()
                    .map(|(line, call)| (block.line + line, call))
            })
            .collect()
    }
}

/// `## How equal?` becomes `how-equal`.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The calls of a shell text, each with its line, from 1.
pub fn calls(text: &str) -> Vec<(usize, Call)> {
    let mut found = Vec::new();
    let mut joined = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part);
            continue;
        }
        joined.push_str(line);
        for words in commands(&joined) {
            found.push((index + 1, call(words)));
        }
        joined.clear();
    }
    found
}

/// The words of each command of a line: quotes taken off, comments left out, cut at `&&`, `|` and `;`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => {
                let Some(done) = word.take() else { continue };
                if ["&&", "|", ";"].contains(&done.as_str()) {
                    commands.push(std::mem::take(&mut words));
                } else {
                    words.push(done);
                }
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.filter(|w| !w.is_empty()));
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

fn call(mut words: Vec<String>) -> Call {
    let variable = |word: &str| {
        word.split_once('=')
            .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let first = words.iter().position(|w| !variable(w));
    words.drain(..first.unwrap_or(words.len()));
    let behind = |count: usize, words: Vec<String>| words.into_iter().skip(count).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match texts[..] {
        ["cargo", "xtask", ..] => Call::Xtask(behind(2, words)),
        ["cargo", "run", "-p" | "--package", "fewstep", "--", ..] => {
            Call::Fewstep(behind(5, words))
        }
        // The one option that is the bundle's own.
        ["./run", "--check"] => Call::Other(words),
        ["./run" | "fewstep" | "target/debug/fewstep", ..] => Call::Fewstep(behind(1, words)),
        ["sbatch", "docs/distributed/slurm.sh", ..] => Call::Fewstep(behind(2, words)),
        ["torchrun", ..] => match texts.iter().position(|w| *w == "--") {
            Some(place) => call(behind(place + 1, words)),
            None => Call::Other(words),
        },
        _ => Call::Other(words),
    }
}

/// What `cargo xtask WORDS` hands on to fewstep; `None` where xtask does it itself.
pub fn handed_on(words: &[String]) -> Option<Vec<String>> {
    let first = words.first()?.as_str();
    let own = ["setup", "doctor", "bundle", "test", "ci", "bench", "book"];
    if own.contains(&first) {
        return None;
    }
    if first == "launch" {
        // Options of launch have a value each.
        let rest = &words[1..];
        let options = rest.iter().step_by(2).take_while(|w| w.starts_with("--"));
        return Some(rest[2 * options.count()..].to_vec());
    }
    Some(words.to_vec())
}
