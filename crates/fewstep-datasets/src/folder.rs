//! Image folders: `train/<class>/*.jpg|png` with `test/` or `val/` beside it, or `<class>/*` alone with a split by seed.
//!
//! A set that is small once decoded is decoded at once, in parallel, and kept; a large one (ImageNet) is decoded image
//! by image when asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::DynamicImage;
use image::imageops::FilterType;
use ndarray::{Array3, Array4, Axis, CowArray, Ix3};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Dataset, Error, ImageShape, Result, Splits, Subset, stratified_split};

/// Decoded sets below this many bytes are kept in memory.
const KEEP_BYTES: usize = 1 << 30;
/// Names of a test split, the first that is there counts.
const TEST_NAMES: [&str; 3] = ["test", "val", "valid"];

/// How an image folder is read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FolderOptions {
    /// Resize so that the shorter side has this many pixels (bilinear with antialiasing). Default: none.
    pub resize: Option<usize>,
    /// Then cut a square of this many pixels from the centre. Default: none.
    pub crop: Option<usize>,
    /// Part of every class that is test where the folder has no split of its own. Default: 0.2.
    pub test_fraction: f64,
    /// Seed of that split. Default: 0.
    pub split_seed: u64,
    /// Largest decoded size in bytes that is kept in memory. Default: 1 GiB.
    pub keep_bytes: usize,
}

impl Default for FolderOptions {
    fn default() -> Self {
        Self {
            resize: None,
            crop: None,
            test_fraction: 0.2,
            split_seed: 0,
            keep_bytes: KEEP_BYTES,
        }
    }
}

impl FolderOptions {
    /// The published evaluation of ImageNet: shorter side 256, centre 224.
    pub fn imagenet() -> Self {
        Self {
            resize: Some(256),
            crop: Some(224),
            ..Self::default()
        }
    }
}

/// The folders of a split set, or the one folder of classes.
#[derive(Debug)]
pub(crate) enum FolderLayout {
    Split { train: PathBuf, test: PathBuf },
    Single { root: PathBuf },
}

/// `None` where `folder` holds neither layout.
pub(crate) fn find(folder: &Path) -> Result<Option<FolderLayout>> {
    let train = folder.join("train");
    if train.is_dir() && has_classes(&train)? {
        for name in TEST_NAMES {
            let test = folder.join(name);
            if test.is_dir() && has_classes(&test)? {
                return Ok(Some(FolderLayout::Split { train, test }));
            }
        }
        // A training part alone is divided like a single folder.
        return Ok(Some(FolderLayout::Single { root: train }));
    }
    Ok(has_classes(folder)?.then(|| FolderLayout::Single {
        root: folder.into(),
    }))
}

/// Whether a subfolder has an image in it.
fn has_classes(folder: &Path) -> Result<bool> {
    for class in subfolders(folder)? {
        if !images_in(&class)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every image of a layout, by class and name.
pub(crate) fn files(layout: &FolderLayout) -> Result<Vec<PathBuf>> {
    let roots = match layout {
        FolderLayout::Split { train, test } => vec![train, test],
        FolderLayout::Single { root } => vec![root],
    };
    let mut found = Vec::new();
    for root in roots {
        for class in subfolders(root)? {
            found.extend(images_in(&class)?);
        }
    }
    Ok(found)
}

/// Reads a layout as splits named `name`.
pub(crate) fn read(layout: &FolderLayout, name: &str, options: &FolderOptions) -> Result<Splits> {
    check_options(options)?;
    match layout {
        FolderLayout::Split { train, test } => {
            let mut train = ImageFolder::list(name, train, None, options)?;
            let mut test = ImageFolder::list(name, test, Some(&train), options)?;
            let numel = train.shape.numel();
            if (train.paths.len() + test.paths.len()).saturating_mul(numel) <= options.keep_bytes {
                train.keep()?;
                test.keep()?;
            }
            Ok(Splits {
                train: Arc::new(train),
                test: Arc::new(test),
            })
        }
        FolderLayout::Single { root } => {
            let mut all = ImageFolder::list(name, root, None, options)?;
            if all.paths.len().saturating_mul(all.shape.numel()) <= options.keep_bytes {
                all.keep()?;
            }
            let (train, test) =
                stratified_split(&all.labels, options.test_fraction, options.split_seed);
            let all: Arc<dyn Dataset> = Arc::new(all);
            Ok(Splits {
                train: Arc::new(Subset::new(all.clone(), train)?),
                test: Arc::new(Subset::new(all, test)?),
            })
        }
    }
}

fn check_options(options: &FolderOptions) -> Result<()> {
    for (option, value) in [("resize", options.resize), ("crop", options.crop)] {
        if value == Some(0) {
            return Err(Error::Option {
                option,
                what: "is 0, expected at least 1 pixel".into(),
            });
        }
    }
    if !(options.test_fraction > 0.0 && options.test_fraction < 1.0) {
        let what = format!(
            "is {}, expected more than 0 and less than 1",
            options.test_fraction
        );
        return Err(Error::Option {
            option: "test_fraction",
            what,
        });
    }
    match (options.resize, options.crop) {
        (Some(resize), Some(crop)) if crop > resize => Err(Error::Option {
            option: "crop",
            what: format!("is {crop}, more than `resize` = {resize}"),
        }),
        _ => Ok(()),
    }
}

/// One split of an image folder.
#[derive(Debug)]
struct ImageFolder {
    name: String,
    shape: ImageShape,
    class_names: Vec<String>,
    labels: Vec<u32>,
    paths: Vec<PathBuf>,
    options: FolderOptions,
    kept: Option<Array4<u8>>,
}

impl ImageFolder {
    /// Lists the images by class; shape and classes are those of `like`, where given, else found here.
    fn list(name: &str, root: &Path, like: Option<&Self>, options: &FolderOptions) -> Result<Self> {
        let folders = subfolders(root)?;
        let class_names = match like {
            Some(like) => like.class_names.clone(),
            None => folders.iter().map(|folder| file_name(folder)).collect(),
        };
        let (mut labels, mut paths) = (Vec::new(), Vec::new());
        for folder in folders {
            let class = file_name(&folder);
            let Some(label) = class_names.iter().position(|known| *known == class) else {
                return Err(Error::format(
                    &folder,
                    "a class that the training part does not have",
                ));
            };
            let images = images_in(&folder)?;
            if images.is_empty() {
                return Err(Error::EmptyClass {
                    path: folder,
                    class,
                });
            }
            labels.resize(labels.len() + images.len(), label as u32);
            paths.extend(images);
        }
        let Some(first) = paths.first() else {
            return Err(Error::format(root, "no images"));
        };
        let shape = match like {
            Some(like) => like.shape,
            None => shape_of(&prepare(first, decode(first)?, options)?),
        };
        Ok(Self {
            name: name.into(),
            shape,
            class_names,
            labels,
            paths,
            options: *options,
            kept: None,
        })
    }

    /// Decodes everything, in parallel.
    fn keep(&mut self) -> Result<()> {
        let ImageShape {
            channels,
            height,
            width,
        } = self.shape;
        let mut images = vec![0u8; self.paths.len() * self.shape.numel()];
        images
            .par_chunks_mut(self.shape.numel())
            .enumerate()
            .try_for_each(|(index, pixels)| {
                let image = self.decoded(index)?;
                pixels
                    .iter_mut()
                    .zip(&image)
                    .for_each(|(slot, &value)| *slot = value);
                Ok(())
            })?;
        let images = Array4::from_shape_vec((self.paths.len(), channels, height, width), images);
        self.kept = Some(images.map_err(|error| Error::format(&self.name, error.to_string()))?);
        Ok(())
    }

    fn decoded(&self, index: usize) -> Result<Array3<u8>> {
        let path = &self.paths[index];
        let image = to_array(
            path,
            &prepare(path, decode(path)?, &self.options)?,
            self.shape.channels,
        )?;
        let (channels, height, width) = image.dim();
        let found = ImageShape {
            channels,
            height,
            width,
        };
        if found != self.shape {
            return Err(Error::Size {
                path: path.clone(),
                expected: self.shape,
                found,
            });
        }
        Ok(image)
    }

    fn check(&self, index: usize) -> Result<()> {
        if index < self.paths.len() {
            return Ok(());
        }
        Err(Error::Index {
            name: self.name.clone(),
            index,
            len: self.paths.len(),
        })
    }
}

impl Dataset for ImageFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> ImageShape {
        self.shape
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn image(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        self.check(index)?;
        match &self.kept {
            Some(images) => Ok(images.index_axis(Axis(0), index).into()),
            None => Ok(self.decoded(index)?.into()),
        }
    }

    fn uncropped(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        self.check(index)?;
        if self.options.resize.is_none() && self.options.crop.is_none() {
            return self.image(index);
        }
        let path = &self.paths[index];
        Ok(to_array(path, &decode(path)?, self.shape.channels)?.into())
    }

    fn in_memory(&self) -> bool {
        self.kept.is_some()
    }
}

/// Decodes by content, not by the name's ending: ImageNet has PNG files named `.JPEG`.
fn decode(path: &Path) -> Result<DynamicImage> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    image::load_from_memory(&bytes).map_err(|error| Error::Image {
        path: path.into(),
        what: error.to_string(),
    })
}

/// Resize and centre crop, as asked for.
fn prepare(path: &Path, mut image: DynamicImage, options: &FolderOptions) -> Result<DynamicImage> {
    if let Some(side) = options.resize {
        let (width, height) = (u64::from(image.width()), u64::from(image.height()));
        let scaled =
            |longer: u64, shorter: u64| (side as u64 * longer / shorter.max(1)).max(1) as u32;
        let (width, height) = if width < height {
            (side as u32, scaled(height, width))
        } else {
            (scaled(width, height), side as u32)
        };
        image = image.resize_exact(width, height, FilterType::Triangle);
    }
    if let Some(side) = options.crop {
        let side = side as u32;
        if image.width() < side || image.height() < side {
            let what = format!(
                "{}×{} is too small to crop {side}×{side} from",
                image.height(),
                image.width()
            );
            return Err(Error::Image {
                path: path.into(),
                what,
            });
        }
        image = image.crop_imm(
            (image.width() - side) / 2,
            (image.height() - side) / 2,
            side,
            side,
        );
    }
    Ok(image)
}

fn shape_of(image: &DynamicImage) -> ImageShape {
    let channels = if image.color().has_color() { 3 } else { 1 };
    ImageShape {
        channels,
        height: image.height() as usize,
        width: image.width() as usize,
    }
}

/// Channel, row, column. Grey becomes three equal channels in a colour set; colour in a grey set is an error.
fn to_array(path: &Path, image: &DynamicImage, channels: usize) -> Result<Array3<u8>> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    if channels == 1 && image.color().has_color() {
        let expected = ImageShape {
            channels: 1,
            height,
            width,
        };
        return Err(Error::Size {
            path: path.into(),
            expected,
            found: ImageShape {
                channels: 3,
                ..expected
            },
        });
    }
    let pixels = if channels == 1 {
        image.to_luma8().into_raw()
    } else {
        image.to_rgb8().into_raw()
    };
    let interleaved =
        Array3::from_shape_vec((height, width, channels), pixels).map_err(|error| {
            Error::Image {
                path: path.into(),
                what: error.to_string(),
            }
        })?;
    Ok(interleaved
        .permuted_axes([2, 0, 1])
        .as_standard_layout()
        .into_owned())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Folders in a folder by name, hidden ones aside.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    entries(folder, |path| path.is_dir())
}

/// Image files in a folder by name.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    entries(folder, |path| {
        let end = path
            .extension()
            .and_then(|end| end.to_str())
            .unwrap_or_default();
        ["jpg", "jpeg", "png"]
            .iter()
            .any(|known| end.eq_ignore_ascii_case(known))
    })
}

fn entries(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if !file_name(&path).starts_with('.') && wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
