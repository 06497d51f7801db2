//! The book: `docs/` as HTML, by mdBook. `cargo xtask book` runs the program of this crate.
//!
//! ```no_run
//! use std::path::Path;
//!
//! // The folder with book.toml and SUMMARY.md, and the folder that is to hold the pages; what was in it is removed.
//! let pages = fewstep_book::build(Path::new("docs"), Path::new("target/book"))?;
//! println!("{pages} pages; begin with target/book/index.html");
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! The tests of this crate are the Rust examples of the chapters. What else is checked of the book, and where, is said in
//! `tests/book/README.md`.

use std::fs;
use std::path::{Path, absolute};

use anyhow::{Context, Result, bail};
use mdbook_driver::MDBook;
use mdbook_driver::book::BookItem;

/// A folder with this file in it is taken for an earlier book, which may be replaced.
const INDEX: &str = "index.html";

/// Builds the book of the folder `docs` into the folder `out`, which is replaced. Returns the number of pages.
///
/// # Errors
/// No book.toml, a chapter of SUMMARY.md that is not there, or `out` can't be written or holds something else than a book.
pub fn build(docs: &Path, out: &Path) -> Result<usize> {
    if !docs.join("book.toml").is_file() {
        bail!(
            "{}: expected a folder with book.toml, found none there",
            docs.display()
        );
    }
    let filled = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if filled && !out.join(INDEX).is_file() {
        bail!(
            "{}: expected an empty folder or an earlier book, found other files",
            out.display()
        );
    }
    let mut book = MDBook::load(docs).with_context(|| format!("{}: no book", docs.display()))?;
    book.config.build.build_dir = absolute(out)?;
    book.build()
        .with_context(|| format!("{}: the book does not build", docs.display()))?;
    // mdBook takes whatever lies beside the chapters.
    fs::remove_file(out.join("book.toml")).context("the copy of book.toml stays")?;
    let chapter =
        |item: &&BookItem| matches!(item, BookItem::Chapter(chapter) if chapter.path.is_some());
    Ok(book.iter().filter(chapter).count())
}

/// Chapters with Rust in them, each as the documentation of a module.
macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!(concat!("../../../docs/", $file))]
            mod $name {}
        )*
    };
}

chapters! {
    checkpoint: "checkpoint.md",
    data: "data.md",
    deploy: "deploy.md",
    distributed: "distributed.md",
    harmonica: "harmonica.md",
    iir: "iir.md",
}
