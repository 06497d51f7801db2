//! The three splits of a data set: training, validation (cut from training by seed, for model selection) and test (looked at once a stage).

use std::sync::Arc;

use fewstep_datasets::{
    Augment, DataSpec, Dataset, Drawn, ImageShape, Loader, LoaderOptions, Shard, Statistics,
    Subset, statistics, stratified_split, stratified_take,
};
use fewstep_torch::device::send;
use fewstep_torch::{Augmenter, Resident};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::{Error, Result};

/// How a data set is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// Part of the training split that becomes the validation split, stratified by class.
    pub validation_fraction: f64,
    /// Use only this many images of the training split, stratified (the validation split is cut from them).
    pub train_images: Option<usize>,
    /// Use only this many images of the test split, stratified.
    pub test_images: Option<usize>,
    /// Augmentation of training images.
    pub augment: Augment,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            validation_fraction: 0.1,
            train_images: None,
            test_images: None,
            augment: Augment::default(),
        }
    }
}

/// A data set, split.
#[derive(Clone)]
pub struct Data {
    name: String,
    train: Arc<dyn Dataset>,
    validation: Arc<dyn Dataset>,
    test: Arc<dyn Dataset>,
    statistics: Statistics,
    augment: Augment,
}

/// One of the splits that are evaluated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    Validation,
    Test,
}

impl Data {
    /// Opens a data set with the default options and this validation fraction.
    ///
    /// # Errors
    /// The data is not there or damaged.
    pub fn open(spec: &DataSpec, validation_fraction: f64, seed: u64) -> Result<Self> {
        Self::open_with(
            spec,
            &DataOptions {
                validation_fraction,
                ..DataOptions::default()
            },
            seed,
        )
    }

    /// Opens a data set. The seed decides which images are for validation.
    ///
    /// # Errors
    /// The data is not there or damaged; an option out of range.
    pub fn open_with(spec: &DataSpec, options: &DataOptions, seed: u64) -> Result<Self> {
        if !(options.validation_fraction > 0. && options.validation_fraction < 1.) {
            let reason = format!(
                "expected a number between 0 and 1, found {}",
                options.validation_fraction
            );
            return Err(Error::Recipe {
                key: "data.validation_fraction".into(),
                reason,
            });
        }
        let splits = spec.open()?;
        let taken =
            |set: Arc<dyn Dataset>, n: Option<usize>, key: &str| -> Result<Arc<dyn Dataset>> {
                match n {
                    Some(n) if n == 0 || n > set.len() => {
                        let reason =
                            format!("expected 1 to {} (what there is), found {n}", set.len());
                        Err(Error::Recipe {
                            key: format!("data.{key}"),
                            reason,
                        })
                    }
                    Some(n) => {
                        let indices = stratified_take(set.labels(), n, seed);
                        Ok(Arc::new(Subset::new(set, indices)?))
                    }
                    None => Ok(set),
                }
            };
        let all = taken(splits.train, options.train_images, "train_images")?;
        let test = taken(splits.test, options.test_images, "test_images")?;
        let (train, validation) = stratified_split(all.labels(), options.validation_fraction, seed);
        if train.is_empty() || validation.is_empty() {
            let (t, v) = (train.len(), validation.len());
            let reason = format!(
                "leaves {t} images for training and {v} for validation, expected some of both"
            );
            let key = "data.validation_fraction".into();
            return Err(Error::Recipe { key, reason });
        }
        let train: Arc<dyn Dataset> = Arc::new(Subset::new(all.clone(), train)?);
        let validation: Arc<dyn Dataset> = Arc::new(Subset::new(all, validation)?);
        let statistics = match Statistics::published(&spec.name) {
            Some(s) => s,
            None => statistics(train.as_ref())?,
        };
        let data = Self {
            name: test.name().to_owned(),
            train,
            validation,
            test,
            statistics,
            augment: options.augment,
        };
        if data.shape() != data.test.shape() {
            let (trained, tested) = (data.shape(), data.test.shape());
            return Err(Error::Recipe {
                key: "data.augment.random_resized_crop".into(),
                reason: format!(
                    "makes training images of {trained}, but images to evaluate on are {tested}"
                ),
            });
        }
        // An augmentation that does not fit the images is said here, before anything is written.
        match data.training(1, seed, Shard::default()) {
            Ok(_) => Ok(data),
            Err(Error::Data(fewstep_datasets::Error::Option { option, what }))
                if ["crop_padding", "cutout", "random_resized_crop"].contains(&option) =>
            {
                let key = format!("data.augment.{option}");
                Err(Error::Recipe { key, reason: what })
            }
            Err(e) => Err(e),
        }
    }

    /// The data set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the classes.
    pub fn class_names(&self) -> &[String] {
        self.test.class_names()
    }

    /// Images for training, validation and test.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.train.len(), self.validation.len(), self.test.len())
    }

    /// Images for training, without augmentation.
    pub fn train(&self) -> &Arc<dyn Dataset> {
        &self.train
    }

    /// Images for test.
    pub fn test(&self) -> &Arc<dyn Dataset> {
        &self.test
    }

    /// Augmentation of training images.
    pub fn augment(&self) -> &Augment {
        &self.augment
    }

    /// What pixels are normalised with.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Shape of the images that enter the network.
    pub fn shape(&self) -> ImageShape {
        self.augment.output_shape(self.train.shape())
    }

    /// Training batches, shuffled and augmented; the last one is left out where it is not full (batch norm dislikes a single image).
    pub(crate) fn training(&self, batch_size: usize, seed: u64, shard: Shard) -> Result<Loader> {
        let options = LoaderOptions {
            batch_size,
            shuffle: true,
            drop_last: self.train.len() >= batch_size,
            augment: self.augment,
            statistics: self.statistics.clone(),
            seed,
            shard,
            ..LoaderOptions::default()
        };
        Ok(Loader::new(self.train.clone(), options)?)
    }

    pub(crate) fn evaluation(
        &self,
        split: Split,
        batch_size: usize,
        shard: Shard,
    ) -> Result<Loader> {
        let set = match split {
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        };
        let options = LoaderOptions {
            batch_size,
            statistics: self.statistics.clone(),
            shard,
            ..LoaderOptions::default()
        };
        Ok(Loader::new(set.clone(), options)?)
    }
}

/// A batch as tensors: images `[N, C, H, W]`, labels `[N]`.
pub(crate) fn to_tensors(
    batch: &fewstep_datasets::Batch,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let shape: Vec<i64> = batch.images.shape().iter().map(|&d| d as i64).collect();
    let images = batch.images.as_standard_layout();
    let images =
        Tensor::f_from_slice(images.as_slice().unwrap_or_default())?.f_view(shape.as_slice())?;
    Ok((
        send(&images, device)?,
        send(&Tensor::f_from_slice(&batch.labels)?, device)?,
    ))
}

/// This rank's parts of an epoch's batches, images `[n, C, H, W]` and labels `[n]` on the device; `None` where a part is empty.
pub(crate) enum Batches {
    /// Made by the loader.
    Loaded(fewstep_datasets::Epoch, Device),
    /// Made on the device.
    Resident(Box<dyn Iterator<Item = Drawn>>, Box<Augmenter>),
}

impl Batches {
    /// The batches that `loader` makes of `epoch`, on the device; of images that lie there where there are any.
    pub(crate) fn new(
        loader: &Loader,
        epoch: u64,
        device: Device,
        resident: Option<&Resident>,
    ) -> Result<Self> {
        Ok(match resident {
            Some(resident) => {
                let augmenter = resident.augmenter(loader.normalised())?;
                Self::Resident(Box::new(loader.drawn(epoch)?), Box::new(augmenter))
            }
            None => Self::Loaded(loader.epoch(epoch), device),
        })
    }
}

impl Iterator for Batches {
    type Item = Result<Option<(Tensor, Tensor)>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Loaded(epoch, device) => Some(match epoch.next()? {
                Ok(batch) if batch.labels.is_empty() => Ok(None),
                Ok(batch) => to_tensors(&batch, *device).map(Some),
                Err(e) => Err(e.into()),
            }),
            Self::Resident(epoch, augmenter) => {
                let drawn = epoch.next()?;
                Some(match drawn.indices.is_empty() {
                    true => Ok(None),
                    false => augmenter
                        .batch(&drawn.numbers())
                        .map(Some)
                        .map_err(Error::from),
                })
            }
        }
    }
}
