//! `fewstep-book DOCS OUT`: builds the book in DOCS into OUT. `cargo xtask book` calls it.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [docs, out] = &arguments[..] else {
        eprintln!("usage: fewstep-book DOCS OUT");
        return ExitCode::from(2);
    };
    match fewstep_book::build(Path::new(docs), Path::new(out)) {
        Ok(pages) => {
            println!(
                "{pages} pages: {}",
                Path::new(out).join("index.html").display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
