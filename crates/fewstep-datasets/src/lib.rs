//! Image data sets as ndarray: readers, splits, augmentation and a parallel loader. No libtorch.
//!
//! A file becomes a [`Dataset`] (images as `u8` in channel, row, column order), a [`Loader`] makes augmented, normalised
//! `f32` batches (N, C, H, W) of it. The same seed gives the same batches, bit for bit, on any number of threads.
//!
//! ```
//! use fewstep_datasets::{Augment, Loader, LoaderOptions, Subset, open, statistics, stratified_split};
//! use std::sync::Arc;
//!
//! let digits = open("digits", None)?; // also cifar10, mnist, … or a path
//! let (train, validation) = stratified_split(digits.train.labels(), 0.1, 0);
//! assert_eq!((train.len(), validation.len()), (1293, 144));
//! let train = Arc::new(Subset::new(digits.train, train)?);
//! let statistics = statistics(&*train)?;
//! let augment = Augment { crop_padding: 1, ..Augment::default() };
//! let options = LoaderOptions { batch_size: 32, shuffle: true, augment, statistics, ..LoaderOptions::default() };
//! for batch in Loader::new(train, options)?.epoch(0).take(1) {
//!     assert_eq!(batch?.images.dim(), (32, 1, 8, 8));
//! }
//! # Ok::<(), fewstep_datasets::Error>(())
//! ```

mod augment;
mod cifar;
mod cifar_pickle;
mod dataset;
mod digits;
mod error;
mod fetch;
mod files;
mod folder;
mod idx;
mod info;
mod loader;
mod open;
mod random;
mod split;
mod statistics;

pub use augment::{Augment, Choice};
pub use dataset::{Dataset, ImageShape, MemoryDataset, Splits, Subset, Synthetic};
pub use digits::digits;
pub use error::{Error, Result};
pub use fetch::{FetchProgress, FetchStage, fetch, fetchable, find_weights};
pub use files::{DataFiles, files};
pub use folder::FolderOptions;
pub use info::{Info, SplitInfo, info, info_with};
pub use loader::{Batch, Drawn, Epoch, Loader, LoaderOptions, Shard};
pub use open::{DataSpec, Kind, open};
pub use split::{stratified_split, stratified_take};
pub use statistics::{Statistics, statistics};
