//! What every data set is: images of one shape as `u8` in channel, row, column order, with a class each.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array3, Array4, Axis, CowArray, Ix3};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::random::{Stream, stream};
use crate::{Error, Result};

/// Channels, rows and columns of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageShape {
    /// 1 for grey, 3 for red, green, blue.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageShape {
    /// A shape from its three numbers.
    pub const fn new(channels: usize, height: usize, width: usize) -> Self {
        Self {
            channels,
            height,
            width,
        }
    }

    /// Bytes of one image.
    pub const fn numel(&self) -> usize {
        self.channels * self.height * self.width
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.channels, self.height, self.width)
    }
}

/// A set of images with labels. All have [`shape`](Dataset::shape), every label is below `class_names().len()`.
pub trait Dataset: Send + Sync {
    /// A short name: `digits`, `fashion-mnist`, `cifar10`, or the folder's.
    fn name(&self) -> &str;

    /// The shape of every image.
    fn shape(&self) -> ImageShape;

    /// One name a class, in the order of the labels.
    fn class_names(&self) -> &[String];

    /// One label an image.
    fn labels(&self) -> &[u32];

    /// Image `index` as (channel, row, column). Borrowed where the data set is in memory, else decoded now.
    ///
    /// # Errors
    /// An index past the end, or a file that cannot be decoded or has another size than the first.
    fn image(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>>;

    /// Image `index` before any resize and centre crop, of whatever size its file has: what a random resized crop
    /// takes its window from. The same as [`image`](Dataset::image) where images are stored at one size.
    ///
    /// # Errors
    /// As [`image`](Dataset::image), sizes aside.
    fn uncropped(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        self.image(index)
    }

    /// All images, one after the other: (N, C, H, W).
    ///
    /// # Errors
    /// As [`image`](Dataset::image).
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(self.len() * self.shape().numel());
        for index in 0..self.len() {
            all.extend(self.image(index)?.iter());
        }
        Ok(all)
    }

    /// Whether every image is in memory, so that a pass over all is cheap.
    fn in_memory(&self) -> bool {
        true
    }

    /// The number of images.
    fn len(&self) -> usize {
        self.labels().len()
    }

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A training and a test split with the same shape and classes. Model selection belongs on a part of `train`
/// (see [`stratified_split`](crate::stratified_split)), never on `test`.
#[derive(Clone)]
pub struct Splits {
    /// What is learned from.
    pub train: Arc<dyn Dataset>,
    /// What the final figure is taken on.
    pub test: Arc<dyn Dataset>,
}

impl fmt::Debug for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, shape) = (self.train.name(), self.train.shape());
        write!(
            f,
            "Splits({name}, {shape}, {} train, {} test)",
            self.train.len(),
            self.test.len()
        )
    }
}

/// A data set held in memory as one array (image, channel, row, column).
#[derive(Debug, Clone)]
pub struct MemoryDataset {
    name: String,
    images: Array4<u8>,
    labels: Vec<u32>,
    class_names: Vec<String>,
}

impl MemoryDataset {
    /// Takes `images` (N, C, H, W) with one label each.
    ///
    /// # Errors
    /// Another number of labels than of images, or a label that is no class; `name` stands for the file.
    pub fn new(
        name: impl Into<String>,
        images: Array4<u8>,
        labels: Vec<u32>,
        class_names: Vec<String>,
    ) -> Result<Self> {
        let name = name.into();
        if images.dim().0 != labels.len() {
            let what = format!("{} images with {} labels", images.dim().0, labels.len());
            return Err(Error::format(&name, what));
        }
        check_labels(Path::new(&name), &labels, class_names.len())?;
        Ok(Self {
            name,
            images: images.as_standard_layout().into_owned(),
            labels,
            class_names,
        })
    }

    /// All images at once, (N, C, H, W).
    pub fn images(&self) -> &Array4<u8> {
        &self.images
    }
}

/// Fails on the first label that is no class.
pub(crate) fn check_labels(path: &Path, labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(index) => {
            let label = i64::from(labels[index]);
            Err(Error::Label {
                path: path.into(),
                index,
                label,
                classes,
            })
        }
        None => Ok(()),
    }
}

/// Fails on the first class that no label names.
pub(crate) fn check_classes(path: &Path, labels: &[u32], class_names: &[String]) -> Result<()> {
    let seen: HashSet<u32> = labels.iter().copied().collect();
    for (class, name) in (0u32..).zip(class_names) {
        if !seen.contains(&class) {
            return Err(Error::EmptyClass {
                path: path.into(),
                class: name.clone(),
            });
        }
    }
    Ok(())
}

impl Dataset for MemoryDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> ImageShape {
        let (_, channels, height, width) = self.images.dim();
        ImageShape {
            channels,
            height,
            width,
        }
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn image(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        if index >= self.labels.len() {
            return Err(Error::Index {
                name: self.name.clone(),
                index,
                len: self.labels.len(),
            });
        }
        Ok(self.images.index_axis(Axis(0), index).into())
    }
}

/// A view of some images of another data set, in the order given; an index may occur more than once.
#[derive(Clone)]
pub struct Subset {
    parent: Arc<dyn Dataset>,
    indices: Vec<usize>,
    labels: Vec<u32>,
}

impl Subset {
    /// The images of `parent` at `indices`.
    ///
    /// # Errors
    /// An index past the end of `parent`.
    pub fn new(parent: Arc<dyn Dataset>, indices: Vec<usize>) -> Result<Self> {
        let all = parent.labels();
        if let Some(&index) = indices.iter().find(|&&index| index >= all.len()) {
            return Err(Error::Index {
                name: parent.name().into(),
                index,
                len: all.len(),
            });
        }
        let labels = indices.iter().map(|&index| all[index]).collect();
        Ok(Self {
            parent,
            indices,
            labels,
        })
    }

    /// The places in the parent, one an image.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    fn place(&self, index: usize) -> Result<usize> {
        let name = || self.parent.name().into();
        self.indices
            .get(index)
            .copied()
            .ok_or_else(|| Error::Index {
                name: name(),
                index,
                len: self.indices.len(),
            })
    }
}

impl Dataset for Subset {
    fn name(&self) -> &str {
        self.parent.name()
    }

    fn shape(&self) -> ImageShape {
        self.parent.shape()
    }

    fn class_names(&self) -> &[String] {
        self.parent.class_names()
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn image(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        self.parent.image(self.place(index)?)
    }

    fn uncropped(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
        self.parent.uncropped(self.place(index)?)
    }

    fn in_memory(&self) -> bool {
        self.parent.in_memory()
    }
}

/// Images of uniform noise, for runs that only exercise the machinery. Image `i` has class `i % classes` and the same
/// pixels for the same seed on every machine; nothing is stored.
#[derive(Debug, Clone)]
pub struct Synthetic {
    shape: ImageShape,
    seed: u64,
    labels: Vec<u32>,
    class_names: Vec<String>,
}

impl Synthetic {
    /// `len` images of `shape` over `classes` classes.
    ///
    /// # Errors
    /// No class, no image, or a shape with a zero in it.
    pub fn new(shape: ImageShape, classes: usize, len: usize, seed: u64) -> Result<Self> {
        if classes == 0 || len == 0 || shape.numel() == 0 {
            let what =
                format!("{len} images of {shape} in {classes} classes: none of these may be 0");
            return Err(Error::Option {
                option: "synthetic",
                what,
            });
        }
        let labels = (0..len).map(|index| (index % classes) as u32).collect();
        let class_names = (0..classes).map(|class| class.to_string()).collect();
        Ok(Self {
            shape,
            seed,
            labels,
            class_names,
        })
    }
}

impl Dataset for Synthetic {
    fn name(&self) -> &str {
        "synthetic"
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
        if index >= self.labels.len() {
            return Err(Error::Index {
                name: self.name().into(),
                index,
                len: self.labels.len(),
            });
        }
        let ImageShape {
            channels,
            height,
            width,
        } = self.shape;
        let mut image = Array3::zeros((channels, height, width));
        if let Some(pixels) = image.as_slice_mut() {
            stream(self.seed, 0, index as u64, Stream::Pixels).fill_bytes(pixels);
        }
        Ok(image.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_images() -> MemoryDataset {
        let images = Array4::from_shape_fn((2, 1, 2, 2), |(n, _, y, x)| (n * 10 + y * 2 + x) as u8);
        MemoryDataset::new("two", images, vec![0, 1], vec!["a".into(), "b".into()]).unwrap()
    }

    #[test]
    fn an_index_past_the_end_is_an_error_that_names_the_set() {
        let error = two_images().image(2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "data set two: image 2 asked for, but it has 2"
        );
        assert!(Subset::new(Arc::new(two_images()), vec![0, 5]).is_err());
    }

    #[test]
    fn a_label_that_is_no_class_is_an_error_that_names_the_image() {
        let error = MemoryDataset::new(
            "two",
            Array4::zeros((2, 1, 2, 2)),
            vec![0, 7],
            vec!["a".into()],
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "two: image 1 has label 7, expected 0 to 0"
        );
    }

    #[test]
    fn a_subset_keeps_images_and_labels_together() {
        let subset = Subset::new(Arc::new(two_images()), vec![1, 0, 1]).unwrap();
        assert_eq!(subset.labels(), [1, 0, 1]);
        assert_eq!(subset.image(0).unwrap()[[0, 0, 0]], 10);
        assert_eq!(subset.image(1).unwrap()[[0, 0, 0]], 0);
        assert!(subset.image(3).is_err());
    }

    #[test]
    fn synthetic_images_depend_on_seed_and_index_only() {
        let shape = ImageShape::new(3, 4, 5);
        let set = Synthetic::new(shape, 3, 7, 1).unwrap();
        assert_eq!(
            set.image(4).unwrap(),
            Synthetic::new(shape, 3, 9, 1).unwrap().image(4).unwrap()
        );
        assert_ne!(set.image(4).unwrap(), set.image(5).unwrap());
        assert_ne!(
            set.image(4).unwrap(),
            Synthetic::new(shape, 3, 7, 2).unwrap().image(4).unwrap()
        );
        assert_eq!(set.labels(), [0, 1, 2, 0, 1, 2, 0]);
        assert!(Synthetic::new(shape, 0, 7, 1).is_err());
    }
}
