//! What the book says about `cargo xtask` is what `cargo xtask` takes.

use clap::{CommandFactory, Parser};

use crate::Cli;

#[path = "../../tests/book/page.rs"]
mod page;

use page::Call;

#[test]
fn every_command_of_the_book_is_one_that_xtask_takes() {
    let mut seen = 0;
    for page in page::all(&page::root(env!("CARGO_MANIFEST_DIR"))) {
        for (line, call) in page.calls() {
            let Call::Xtask(words) = call else { continue };
            let parsed = Cli::try_parse_from([&["xtask".to_owned()], &words[..]].concat());
            if let Err(error) = parsed {
                panic!(
                    "{}:{line}: cargo xtask {}: {error}",
                    page.name,
                    words.join(" ")
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} commands");
}

#[test]
fn every_flag_that_the_text_names_after_a_command_of_xtask_is_one_of_its_flags() {
    let mut seen = 0;
    for page in page::all(&page::root(env!("CARGO_MANIFEST_DIR"))) {
        for (line, code) in page.inline_code() {
            let Some(rest) = code.strip_prefix("cargo xtask ") else {
                continue;
            };
            let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
            if page::handed_on(&words).is_some() {
                continue;
            }
            let cli = Cli::command();
            let command = cli
                .find_subcommand(&words[0])
                .expect("a word of xtask's own");
            for flag in words.iter().filter_map(|w| w.strip_prefix("--")) {
                assert!(
                    command.get_arguments().any(|a| a.get_long() == Some(flag)),
                    "{}:{line}: `{code}`: there is no --{flag}",
                    page.name
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen} commands");
}

#[test]
fn words_of_its_own_are_those_that_are_not_handed_on() {
    // run, demo and data are words of xtask, and go to fewstep with all that follows.
    let handed = ["run", "demo", "data", "launch"];
    for command in Cli::command().get_subcommands() {
        let name = command.get_name().to_owned();
        let own = page::handed_on(std::slice::from_ref(&name)).is_none();
        assert_eq!(own, !handed.contains(&name.as_str()), "{name}");
    }
}
