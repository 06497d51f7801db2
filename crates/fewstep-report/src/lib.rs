//! Reports that people want to open: one HTML file for a run, a comparison of runs, and a live view while training goes on. No libtorch.
//!
//! A [`Page`] is plain data (figures, charts, tables, pictures, code), and [`Page::to_html`] makes one file of it that loads nothing
//! from anywhere. [`Run::read`] takes what a run has written so far, [`Run::page`] says what there is to see in it, [`compare`] puts pages
//! beside each other, and [`serve`] keeps them up to date in a browser on the same machine.
//!
//! ```
//! use fewstep_report::{Axis, Block, Chart, Figure, Page, Plot, Section, Series};
//!
//! let loss = Chart {
//!     id: "loss".into(),
//!     title: "Training loss".into(),
//!     description: "Mean over an epoch.".into(),
//!     plot: Plot::Lines {
//!         x: Axis::linear("epoch"),
//!         y: Axis::log("loss"),
//!         series: vec![Series::new("train", [(1., 0.9), (2., 0.4), (3., 0.2)])],
//!     },
//! };
//! let figures = Block::Figures(vec![Figure::new("test accuracy", "98.2", "%")]);
//! let section = Section { title: "Training".into(), blocks: vec![figures, Block::Chart(loss)] };
//! let page = Page { title: "mine".into(), sections: vec![section], ..Page::default() };
//! assert!(page.to_html().starts_with("<!DOCTYPE html>"));
//! ```

mod compare;
mod error;
#[cfg(test)]
mod fixture;
mod html;
mod page;
mod run;
mod serve;
mod show;
#[cfg(test)]
mod tests;

pub use compare::compare;
pub use error::Error;
pub use page::{
    Axis, Bars, Block, Cell, Cells, Chart, Choice, Code, Family, Figure, Heatmap, Page, Picture,
    Pictures, Plot, Section, Series, Table, front,
};
pub use run::{CONFIG, EVENTS, LOCK, PLOTS, Run, SUMMARY, State, is_run_name};
pub use serve::{Dashboard, serve};

/// What can go wrong here.
pub type Result<T> = std::result::Result<T, Error>;
