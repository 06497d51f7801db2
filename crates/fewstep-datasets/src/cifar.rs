//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in the official binary layout, and the names both layouts share.
//!
//! A record of CIFAR-10 is a label and 3×32×32 bytes; of CIFAR-100 a coarse label, a fine label and the same. The fine
//! label is the class. <https://www.cs.toronto.edu/~kriz/cifar.html>

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array4;

use crate::dataset::{check_classes, check_labels};
use crate::{Error, MemoryDataset, Result, Splits, cifar_pickle};

const IMAGE_BYTES: usize = 3 * 32 * 32;
const CIFAR10: &str = "airplane automobile bird cat deer dog frog horse ship truck";
const CIFAR100: &str = "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus \
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup \
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion \
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear \
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark \
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone \
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Ten,
    Hundred,
}

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ten => "cifar10",
            Self::Hundred => "cifar100",
        }
    }

    /// The classes in the order of the labels.
    pub(crate) fn class_names(self) -> Vec<String> {
        let names = match self {
            Self::Ten => CIFAR10,
            Self::Hundred => CIFAR100,
        };
        names.split_whitespace().map(str::to_owned).collect()
    }

    /// Bytes before the pixels; the last of them is the class.
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    /// The folders that the official archives unpack to.
    pub(crate) fn folders(self) -> [&'static str; 2] {
        match self {
            Self::Ten => ["cifar-10-batches-bin", "cifar-10-batches-py"],
            Self::Hundred => ["cifar-100-binary", "cifar-100-python"],
        }
    }
}

/// A layout found in a folder.
#[derive(Debug)]
pub(crate) struct CifarFiles {
    pub(crate) variant: Variant,
    pub(crate) pickle: bool,
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
}

impl CifarFiles {
    /// All of them.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.train[..], &self.test].concat()
    }
}

/// Looks for either layout of either set in `folder` or in the subfolder that the official archive unpacks to.
///
/// Only the given variants count.
pub(crate) fn find(folder: &Path, variants: &[Variant]) -> Option<CifarFiles> {
    let inner = variants
        .iter()
        .flat_map(|variant| variant.folders())
        .map(|name| folder.join(name));
    inner
        .chain([folder.to_owned()])
        .find_map(|folder| find_here(&folder, variants))
}

fn find_here(folder: &Path, variants: &[Variant]) -> Option<CifarFiles> {
    let has = |name: &str| folder.join(name).is_file();
    let paths = |names: &[&str]| {
        names
            .iter()
            .map(|name| folder.join(name))
            .collect::<Vec<_>>()
    };
    let batches = |end: &str| {
        (1..=5)
            .map(|batch| folder.join(format!("data_batch_{batch}{end}")))
            .collect::<Vec<_>>()
    };
    for (end, pickle) in [(".bin", false), ("", true)] {
        let (train, test) = (batches(end), folder.join(format!("test_batch{end}")));
        let any = test.is_file() || train.iter().any(|path| path.is_file());
        if variants.contains(&Variant::Ten) && any {
            return Some(CifarFiles {
                variant: Variant::Ten,
                pickle,
                train,
                test: vec![test],
            });
        }
        let (train, test) = (format!("train{end}"), format!("test{end}"));
        if variants.contains(&Variant::Hundred) && has(&train) && has(&test) {
            let (train, test) = (paths(&[&train]), paths(&[&test]));
            return Some(CifarFiles {
                variant: Variant::Hundred,
                pickle,
                train,
                test,
            });
        }
    }
    None
}

/// Looks for files of the CIFAR-10 record format named `train_*.bin` and `test_*.bin`: parts of the official ones.
pub(crate) fn find_subset(folder: &Path) -> Result<Option<CifarFiles>> {
    let (train, test) = (starting(folder, "train_")?, starting(folder, "test_")?);
    let found = !train.is_empty() && !test.is_empty();
    Ok(found.then_some(CifarFiles {
        variant: Variant::Ten,
        pickle: false,
        train,
        test,
    }))
}

/// The `.bin` files whose name starts with `start`, by name.
fn starting(folder: &Path, start: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with(start) && name.ends_with(".bin") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads both splits.
pub(crate) fn read(files: &CifarFiles) -> Result<Splits> {
    let train = read_split(files, &files.train)?;
    let folder = files
        .train
        .first()
        .and_then(|path| path.parent())
        .unwrap_or(Path::new("."));
    check_classes(
        folder,
        crate::Dataset::labels(&train),
        &files.variant.class_names(),
    )?;
    Ok(Splits {
        train: Arc::new(train),
        test: Arc::new(read_split(files, &files.test)?),
    })
}

fn read_split(files: &CifarFiles, paths: &[PathBuf]) -> Result<MemoryDataset> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let class_names = files.variant.class_names();
    for path in paths {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let (some_pixels, some_labels) = if files.pickle {
            cifar_pickle::parse(path, &bytes, files.variant)?
        } else {
            parse(path, &bytes, files.variant)?
        };
        check_labels(path, &some_labels, class_names.len())?;
        pixels.extend_from_slice(&some_pixels);
        labels.extend_from_slice(&some_labels);
    }
    let images = Array4::from_shape_vec((labels.len(), 3, 32, 32), pixels).map_err(|error| {
        Error::format(
            paths.first().cloned().unwrap_or_default(),
            error.to_string(),
        )
    })?;
    MemoryDataset::new(files.variant.name(), images, labels, class_names)
}

/// Whole records, at least one.
fn parse(path: &Path, bytes: &[u8], variant: Variant) -> Result<(Vec<u8>, Vec<u32>)> {
    let record = variant.label_bytes() + IMAGE_BYTES;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        let index = bytes.len() / record;
        let (expected, found) = (((index + 1) * record) as u64, bytes.len() as u64);
        return Err(Error::Truncated {
            path: path.into(),
            what: format!("record {index}"),
            expected,
            found,
        });
    }
    let mut pixels = Vec::with_capacity(bytes.len());
    let mut labels = Vec::with_capacity(bytes.len() / record);
    for record in bytes.chunks_exact(record) {
        let (label, image) = record.split_at(variant.label_bytes());
        labels.push(u32::from(label[label.len() - 1]));
        pixels.extend_from_slice(image);
    }
    Ok((pixels, labels))
}
