//! What the book says about `fewstep` is what `fewstep` takes.

use clap::{CommandFactory, Parser};

use crate::Cli;

#[path = "../../../tests/book/page.rs"]
mod page;

use page::Call;

#[test]
fn every_command_of_the_book_is_one_that_fewstep_takes() {
    let mut seen = 0;
    for page in page::all(&page::root(env!("CARGO_MANIFEST_DIR"))) {
        for (line, call) in page.calls() {
            let words = match call {
                Call::Fewstep(words) => words,
                Call::Xtask(words) => match page::handed_on(&words) {
                    Some(words) => words,
                    None => continue,
                },
                Call::Other(_) => continue,
            };
            let words: Vec<_> = words.into_iter().filter(|w| w != "--").collect();
            let parsed = Cli::try_parse_from([&["fewstep".to_owned()], &words[..]].concat());
            if let Err(error) = parsed
                && error.use_stderr()
            {
                panic!("{}:{line}: fewstep {}: {error}", page.name, words.join(" "));
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} commands");
}

/// In the text a command may be cut short (`fewstep compare`), but what is there must be right.
#[test]
fn every_flag_that_the_text_names_after_a_command_of_fewstep_is_one_of_its_flags() {
    let mut seen = 0;
    for page in page::all(&page::root(env!("CARGO_MANIFEST_DIR"))) {
        for (line, code) in page.inline_code() {
            let words = [
                "cargo xtask ",
                "fewstep ",
                "./run ",
                "target/debug/fewstep ",
            ]
            .iter()
            .find_map(|program| code.strip_prefix(program));
            let Some(rest) = words.filter(|rest| *rest != "--check") else {
                continue;
            };
            let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
            let Some(words) = page::handed_on(&words).filter(|w| !w.is_empty()) else {
                continue;
            };
            let cli = Cli::command();
            let place = format!("{}:{line}: `{code}`", page.name);
            let mut command = &cli;
            for word in words.iter().take_while(|w| !w.starts_with('-')) {
                match command.find_subcommand(word) {
                    Some(found) => command = found,
                    None => break,
                }
            }
            assert!(command.get_name() != "fewstep", "{place}: no such command");
            for flag in words.iter().filter_map(|w| w.strip_prefix("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                assert!(
                    flag.is_empty()
                        || flag == "help"
                        || command.get_arguments().any(|a| a.get_long() == Some(flag)),
                    "{place}: there is no --{flag}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} commands");
}
