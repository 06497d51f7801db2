//! Finds a data set by name or path and opens it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cifar::{self, CifarFiles, Variant};
use crate::folder::{self, FolderLayout, FolderOptions};
use crate::idx::{self, IdxFiles};
use crate::{Error, ImageShape, Result, Splits, Synthetic, digits};

/// What a path may hold, for the message about one that holds none of it.
pub(crate) const RECOGNISED: &str = "CIFAR-10 and CIFAR-100 (binary or Python layout: data_batch_1.bin, test_batch …), \
    IDX files (train-images-idx3-ubyte[.gz] …) and image folders (train/<class>/*.jpg|png with test/ or val/, or <class>/*)";

/// Where Debian's package dataset-fashion-mnist puts its files.
const DEBIAN_FASHION: &str = "/usr/share/datasets/fashion-mnist";
/// Names with a meaning of their own; any other is a folder below the data root.
const NAMES: [&str; 10] = [
    "digits",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "cifar10-jpeg",
    "imagenet",
    "idx",
    "folder",
    "synthetic",
];

/// How a data set is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// The digits embedded in this crate.
    Digits,
    /// CIFAR-10, binary or Python layout.
    Cifar10,
    /// CIFAR-100, binary or Python layout.
    Cifar100,
    /// IDX files, plain or gzip.
    Idx,
    /// A folder of images.
    Folder,
    /// Noise.
    Synthetic,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digits => "embedded digits",
            Self::Cifar10 => "CIFAR-10",
            Self::Cifar100 => "CIFAR-100",
            Self::Idx => "IDX files",
            Self::Folder => "image folder",
            Self::Synthetic => "synthetic noise",
        })
    }
}

/// A data set as a config names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// `digits`, `cifar10`, `cifar100`, `mnist`, `fashion-mnist`, `cifar10-jpeg`, `imagenet`, `idx`, `folder`,
    /// `synthetic[:CxHxW[:classes[:images]]]`, or the name of a folder below the data root.
    pub name: String,
    /// Where it is. Default: looked for below the folders of `$FEWSTEP_DATA` (a list as in `PATH`), then `./data`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// How an image folder is read. Default: as it is, `imagenet` at 256 and 224.
    #[serde(default)]
    pub folder: FolderOptions,
}

impl DataSpec {
    /// A name and, where known, a path; the rest by default.
    pub fn new(name: impl Into<String>, path: Option<&Path>) -> Self {
        Self {
            name: name.into(),
            path: path.map(Into::into),
            folder: FolderOptions::default(),
        }
    }

    /// Finds and opens it.
    ///
    /// # Errors
    /// A name that means nothing, data that is not there (the sentence says where it was looked for and how to get
    /// it), or data that is damaged.
    pub fn open(&self) -> Result<Splits> {
        let name = self.name.as_str();
        if name == "digits" {
            return digits();
        }
        if name.split(':').next() == Some("synthetic") {
            return synthetic(name);
        }
        if let Some(path) = &self.path {
            if !path.is_dir() {
                let hint = format!("expected a folder; {}", hint(name));
                return Err(Error::NotFound {
                    name: name.into(),
                    looked: vec![path.clone()],
                    hint,
                });
            }
            return match find_kind(name, path)? {
                Some(layout) => self.read(&layout),
                None => Err(Error::Unrecognised { path: path.clone() }),
            };
        }
        self.read(&self.search()?.1)
    }

    /// Looks in the usual places, in order; the folder and what is in it.
    pub(crate) fn search(&self) -> Result<(PathBuf, Layout)> {
        let name = self.name.as_str();
        let mut looked = Vec::new();
        if !["idx", "folder"].contains(&name) {
            for path in candidates(name) {
                if path.is_dir()
                    && let Some(layout) = find_kind(name, &path)?
                {
                    return Ok((path, layout));
                }
                looked.push(path);
            }
        }
        if NAMES.contains(&name) {
            return Err(if looked.is_empty() {
                Error::Option {
                    option: "path",
                    what: format!("is missing, data set {name:?} needs one"),
                }
            } else {
                Error::NotFound {
                    name: name.into(),
                    looked,
                    hint: hint(name),
                }
            });
        }
        let nearest = NAMES
            .iter()
            .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
        let nearest = nearest
            .filter(|near| strsim::jaro(near, name) > 0.8)
            .map(|&near| near.into());
        Err(Error::UnknownName {
            name: name.into(),
            nearest,
            known: NAMES.join(", "),
        })
    }

    fn read(&self, layout: &Layout) -> Result<Splits> {
        let mut options = self.folder;
        if self.name == "imagenet" && options.resize.is_none() && options.crop.is_none() {
            options = FolderOptions {
                keep_bytes: options.keep_bytes,
                ..FolderOptions::imagenet()
            };
        }
        layout.read(&self.name, &options)
    }
}

/// Opens a data set by name; see [`DataSpec`] for the names and the search.
///
/// # Errors
/// As [`DataSpec::open`].
pub fn open(name: &str, path: Option<&Path>) -> Result<Splits> {
    DataSpec::new(name, path).open()
}

/// What a folder was recognised as.
#[derive(Debug)]
pub(crate) enum Layout {
    Cifar(CifarFiles),
    Idx(IdxFiles),
    Folder(FolderLayout),
}

impl Layout {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Cifar(files) if files.variant == Variant::Ten => Kind::Cifar10,
            Self::Cifar(_) => Kind::Cifar100,
            Self::Idx(_) => Kind::Idx,
            Self::Folder(_) => Kind::Folder,
        }
    }

    pub(crate) fn describe(&self) -> String {
        let detail = match self {
            Self::Cifar(files) if files.pickle => "Python layout",
            Self::Cifar(_) => "binary layout",
            Self::Idx(_) => "MNIST naming",
            Self::Folder(FolderLayout::Split { .. }) => "with a test split",
            Self::Folder(FolderLayout::Single { .. }) => "split by seed",
        };
        format!("{}, {detail}", self.kind())
    }

    /// The files that it consists of.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Cifar(files) => Ok(files.paths()),
            Self::Idx(files) => Ok(files.paths()),
            Self::Folder(layout) => folder::files(layout),
        }
    }

    pub(crate) fn read(&self, name: &str, options: &FolderOptions) -> Result<Splits> {
        match self {
            Self::Cifar(files) => cifar::read(files),
            Self::Idx(files) => idx::read(files, name),
            Self::Folder(layout) => folder::read(layout, name, options),
        }
    }
}

/// Recognises the layout of a folder; official files win over images, images over parts of CIFAR-10.
pub(crate) fn detect(path: &Path) -> Result<Option<Layout>> {
    if let Some(files) = cifar::find(path, &[Variant::Ten, Variant::Hundred]) {
        return Ok(Some(Layout::Cifar(files)));
    }
    if let Some(files) = idx::find(path)? {
        return Ok(Some(Layout::Idx(files)));
    }
    if let Some(layout) = folder::find(path)? {
        return Ok(Some(Layout::Folder(layout)));
    }
    Ok(cifar::find_subset(path)?.map(Layout::Cifar))
}

/// The layout that `name` asks for, if `path` has it.
fn find_kind(name: &str, path: &Path) -> Result<Option<Layout>> {
    Ok(match name {
        "cifar10" => match cifar::find(path, &[Variant::Ten]) {
            Some(files) => Some(files),
            None => cifar::find_subset(path)?,
        }
        .map(Layout::Cifar),
        "cifar100" => cifar::find(path, &[Variant::Hundred]).map(Layout::Cifar),
        "mnist" | "fashion-mnist" | "idx" => idx::find(path)?.map(Layout::Idx),
        "folder" | "cifar10-jpeg" | "imagenet" => folder::find(path)?.map(Layout::Folder),
        _ => detect(path)?,
    })
}

/// The folders of `$FEWSTEP_DATA`, a list as in `PATH`, then `./data`.
pub(crate) fn data_roots() -> Vec<PathBuf> {
    let named = std::env::var_os("FEWSTEP_DATA").unwrap_or_default();
    std::env::split_paths(&named)
        .filter(|root| !root.as_os_str().is_empty())
        .chain([PathBuf::from("data")])
        .collect()
}

/// The folders that may hold a data set of this name.
fn candidates(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in data_roots() {
        found.push(root.join(name));
        match name {
            "cifar10" => found.extend(Variant::Ten.folders().map(|folder| root.join(folder))),
            "cifar100" => found.extend(Variant::Hundred.folders().map(|folder| root.join(folder))),
            // The development data unpacks to train/ and test/ without a folder around them.
            "cifar10-jpeg" if root.join("train/airplane").is_dir() => found.push(root),
            _ => {}
        }
    }
    if name == "fashion-mnist" {
        found.push(DEBIAN_FASHION.into());
    }
    found
}

/// How to get a data set.
fn hint(name: &str) -> String {
    match name {
        "fashion-mnist" => {
            "`cargo xtask data fetch fashion-mnist` downloads it, on Debian `apt-get install \
            dataset-fashion-mnist` has it"
                .into()
        }
        "cifar10" | "cifar100" | "mnist" => format!("`cargo xtask data fetch {name}` downloads it"),
        "idx" => {
            "give the path of a folder with train-images-idx3-ubyte[.gz] and its three companions"
                .into()
        }
        _ => "put train/<class>/*.jpg and test/<class>/*.jpg there, or give its path".into(),
    }
}

/// `synthetic[:CxHxW[:classes[:images]]]`, by default `synthetic:3x32x32:10:512`; test has another seed than train.
fn synthetic(name: &str) -> Result<Splits> {
    let wrong = || Error::Option {
        option: "name",
        what: format!(
            "{name:?}, expected synthetic[:CxHxW[:classes[:images]]] such as synthetic:3x32x32:10:512"
        ),
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    let mut fields = name.split(':').skip(1);
    let sides = fields
        .next()
        .unwrap_or("3x32x32")
        .split('x')
        .map(number)
        .collect::<Result<Vec<_>>>()?;
    let classes = number(fields.next().unwrap_or("10"))?;
    let images = number(fields.next().unwrap_or("512"))?;
    let (&[channels, height, width], None) = (sides.as_slice(), fields.next()) else {
        return Err(wrong());
    };
    let shape = ImageShape {
        channels,
        height,
        width,
    };
    let split = |seed| Synthetic::new(shape, classes, images, seed).map(Arc::new);
    Ok(Splits {
        train: split(0)?,
        test: split(1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_takes_shape_classes_and_images_from_its_name() {
        let splits = open("synthetic:1x8x9:4:20", None).unwrap();
        assert_eq!(
            format!("{splits:?}"),
            "Splits(synthetic, 1×8×9, 20 train, 20 test)"
        );
        assert_eq!(splits.test.class_names().len(), 4);
        assert_ne!(
            splits.train.image(0).unwrap(),
            splits.test.image(0).unwrap()
        );
        let error = open("synthetic:8x9", None).unwrap_err().to_string();
        assert!(error.contains("synthetic:3x32x32:10:512"), "{error}");
    }

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest() {
        let error = open("cifar01", None).unwrap_err().to_string();
        assert!(
            error.starts_with("unknown data set \"cifar01\", did you mean \"cifar10\"?; known are"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_set_says_where_it_was_looked_for_and_how_to_get_it() {
        let error = open("cifar100", Some(Path::new("/nonexistent/c")))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "data set cifar100 not found: looked for /nonexistent/c; expected a folder; \
             `cargo xtask data fetch cifar100` downloads it"
        );
        assert!(
            open("folder", None)
                .unwrap_err()
                .to_string()
                .contains("needs one")
        );
    }
}
