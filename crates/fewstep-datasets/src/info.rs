//! What a folder holds: layout, counts, shapes, class balance, mean and standard deviation.

use std::fmt;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::open::{Kind, detect};
use crate::statistics::statistics_of;
use crate::{Dataset, Error, FolderOptions, ImageShape, Result, Splits, digits};

/// Images that mean and deviation of a set on disk are taken over.
const SAMPLED_IMAGES: usize = 10_000;
/// Classes that the table lists one by one.
const LISTED_CLASSES: usize = 20;

/// What was found at a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// The path.
    pub path: PathBuf,
    /// How the data is stored.
    pub kind: Kind,
    /// The same in words.
    pub layout: String,
    /// Shape of every image.
    pub shape: ImageShape,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// `train` and `test`.
    pub splits: Vec<SplitInfo>,
}

/// One split of a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitInfo {
    /// `train` or `test`.
    pub split: String,
    /// Number of images.
    pub images: usize,
    /// Images of every class.
    pub class_counts: Vec<usize>,
    /// Mean of every channel, from 0 to 1.
    pub mean: Vec<f32>,
    /// Standard deviation of every channel.
    pub std: Vec<f32>,
    /// Images that mean and deviation were taken over: all, or an evenly spread sample of a set that is read from disk
    /// image by image.
    pub sampled_images: usize,
}

/// Recognises the data set at `path`, reads it and describes it. The path `digits` stands for the embedded digits.
///
/// # Errors
/// A path that holds nothing known (the sentence lists what is), or data that is damaged.
pub fn info(path: &Path) -> Result<Info> {
    info_with(path, &FolderOptions::default())
}

/// As [`info`], with images of a folder resized and cropped as asked.
///
/// # Errors
/// As [`info`].
pub fn info_with(path: &Path, options: &FolderOptions) -> Result<Info> {
    if path == Path::new("digits") && !path.exists() {
        return describe(
            path,
            Kind::Digits,
            "embedded, split by a fixed seed".into(),
            &digits()?,
        );
    }
    if !path.exists() {
        return Err(Error::Io {
            path: path.into(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let layout = if path.is_dir() { detect(path)? } else { None };
    let Some(layout) = layout else {
        return Err(Error::Unrecognised { path: path.into() });
    };
    let folder = path.canonicalize().map_err(Error::io(path))?;
    let name = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    describe(
        path,
        layout.kind(),
        layout.describe(),
        &layout.read(&name, options)?,
    )
}

fn describe(path: &Path, kind: Kind, layout: String, splits: &Splits) -> Result<Info> {
    let train = &*splits.train;
    Ok(Info {
        path: path.into(),
        kind,
        layout,
        shape: train.shape(),
        classes: train.class_names().to_vec(),
        splits: vec![
            describe_split("train", train)?,
            describe_split("test", &*splits.test)?,
        ],
    })
}

fn describe_split(split: &str, dataset: &dyn Dataset) -> Result<SplitInfo> {
    let mut class_counts = vec![0; dataset.class_names().len()];
    for &label in dataset.labels() {
        class_counts[label as usize] += 1;
    }
    let stride = if dataset.in_memory() {
        1
    } else {
        dataset.len().div_ceil(SAMPLED_IMAGES).max(1)
    };
    let found = statistics_of(dataset, stride)?;
    Ok(SplitInfo {
        split: split.into(),
        images: dataset.len(),
        class_counts,
        mean: found.mean,
        std: found.std,
        sampled_images: dataset.len().div_ceil(stride),
    })
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.layout)?;
        writeln!(
            f,
            "images {} (channels×rows×columns), {} classes\n",
            self.shape,
            self.classes.len()
        )?;
        let mut table = table([
            "split",
            "images",
            "images a class",
            "mean",
            "standard deviation",
        ]);
        for split in &self.splits {
            let (low, high) = (
                split.class_counts.iter().min(),
                split.class_counts.iter().max(),
            );
            let balance = match (low, high) {
                (Some(low), Some(high)) if low == high => low.to_string(),
                (Some(low), Some(high)) => format!("{low} to {high}"),
                _ => "none".into(),
            };
            let row = [
                &split.split,
                &split.images.to_string(),
                &balance,
                &numbers(&split.mean),
                &numbers(&split.std),
            ];
            table.add_row(row);
        }
        align(&mut table, &[1]);
        writeln!(f, "{}", table.trim_fmt())?;
        for split in self
            .splits
            .iter()
            .filter(|split| split.sampled_images < split.images)
        {
            let (split, sampled) = (&split.split, split.sampled_images);
            writeln!(
                f,
                "{split}: mean and deviation over {sampled} images, evenly spread"
            )?;
        }
        self.write_classes(f)
    }
}

impl Info {
    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["label", "class"]
            .into_iter()
            .chain(self.splits.iter().map(|split| split.split.as_str()));
        let mut table = table(titles);
        for (label, class) in self.classes.iter().enumerate().take(LISTED_CLASSES) {
            let counts = self
                .splits
                .iter()
                .map(|split| split.class_counts[label].to_string());
            table.add_row([label.to_string(), class.clone()].into_iter().chain(counts));
        }
        align(&mut table, &[0, 2, 3]);
        write!(f, "\n{}", table.trim_fmt())?;
        match self.classes.len().saturating_sub(LISTED_CLASSES) {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more classes"),
        }
    }
}

fn table<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(header);
    table
}

fn align(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn numbers(values: &[f32]) -> String {
    values
        .iter()
        .map(|value| format!("{value:.4}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_digits_are_described() {
        let found = info(Path::new("digits")).unwrap();
        assert_eq!(
            (found.shape, found.splits[0].images, found.splits[1].images),
            (ImageShape::new(1, 8, 8), 1437, 360)
        );
        assert_eq!(found.splits[0].class_counts.iter().sum::<usize>(), 1437);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            (json["kind"].as_str(), json["shape"]["width"].as_u64()),
            (Some("digits"), Some(8))
        );
        let text = found.to_string();
        assert!(
            text.contains("1×8×8") && text.contains("standard deviation"),
            "{text}"
        );
    }

    #[test]
    fn a_path_that_holds_nothing_known_lists_what_is() {
        let folder = tempfile::tempdir().unwrap();
        let error = info(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("no data set recognised; known are CIFAR-10 and CIFAR-100"),
            "{error}"
        );
        assert!(info(&folder.path().join("absent")).is_err());
    }
}
