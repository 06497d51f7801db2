//! Batches of normalised, augmented images, assembled by rayon ahead of the consumer.
//!
//! Each sample's randomness is a stream keyed by (seed, epoch, index), so batches do not depend on the number of threads,
//! on prefetch, on where an epoch was taken up again, or on how many processes share them.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use ndarray::Array4;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::augment::{Choice, Table};
use crate::random::{Stream, stream};
use crate::{Augment, Dataset, Error, ImageShape, Result, Statistics};

/// Samples that one rayon task takes at least: a CIFAR image is microseconds.
const SAMPLES_PER_TASK: usize = 4;

/// How batches are made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Images in a batch, at least 1. Default: 64.
    pub batch_size: usize,
    /// Visit the images in a new random order every epoch. Default: false.
    pub shuffle: bool,
    /// Leave out the last batch where it is not full. Default: false.
    pub drop_last: bool,
    /// What is done to each image at random. Default: nothing.
    pub augment: Augment,
    /// What pixels are normalised with. Default (empty): nothing, pixels are from 0 to 1.
    pub statistics: Statistics,
    /// Seed of order and augmentation. Default: 0.
    pub seed: u64,
    /// Batches made ahead on a thread of their own; 0 makes each when it is asked for. Default: 2.
    pub prefetch: usize,
    /// Batches left out at the start of each [`epoch`](Loader::epoch), the others unchanged. Default: 0.
    pub skip: usize,
    /// Which images of each batch are made, where several processes work on it. Default: all.
    pub shard: Shard,
}

/// One of several processes that share each batch: its part is contiguous, sizes differ by one image at most, and the parts
/// of ranks 0, 1, … one behind the other are the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { rank: 0, world: 1 }
    }
}

impl Shard {
    /// Which of `images` images are this process's; none where there are fewer images than processes.
    pub fn of(self, images: usize) -> Range<usize> {
        self.rank * images / self.world..(self.rank + 1) * images / self.world
    }
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 64,
            shuffle: false,
            drop_last: false,
            augment: Augment::default(),
            statistics: Statistics::default(),
            seed: 0,
            prefetch: 2,
            skip: 0,
            shard: Shard::default(),
        }
    }
}

/// Some images with their labels; none where a [`Shard`] has no part in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// (N, C, H, W), normalised.
    pub images: Array4<f32>,
    /// N classes.
    pub labels: Vec<i64>,
    /// N places in the data set.
    pub indices: Vec<usize>,
}

/// A batch before anything is done: for whoever has the images and follows the choices with other means.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// N places in the data set.
    pub indices: Vec<usize>,
    /// What was drawn for each.
    pub choices: Vec<Choice>,
}

impl Drawn {
    /// All of it as eight rows of N: places; the rows, then the columns, that become the first; 1 where left and right change places; the
    /// first row and the one after the last, the first column and the one after the last, of the hole.
    pub fn numbers(&self) -> Vec<i64> {
        const ROWS: [fn(usize, &Choice) -> i64; 8] = [
            |index, _| index as i64,
            |_, choice| choice.down,
            |_, choice| choice.right,
            |_, choice| i64::from(choice.mirrored),
            |_, choice| choice.hole[0].start as i64,
            |_, choice| choice.hole[0].end as i64,
            |_, choice| choice.hole[1].start as i64,
            |_, choice| choice.hole[1].end as i64,
        ];
        ROWS.iter()
            .flat_map(|row| {
                let each = self.indices.iter().zip(&self.choices);
                each.map(move |(&index, choice)| row(index, choice))
            })
            .collect()
    }
}

/// Makes the batches of a data set, epoch by epoch.
#[derive(Clone)]
pub struct Loader {
    shared: Arc<Shared>,
}

struct Shared {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
    table: Table,
    shape: ImageShape,
}

impl Loader {
    /// A loader over the whole of `dataset`.
    ///
    /// # Errors
    /// A batch size of 0, an empty data set, a rank that is not below the world size, statistics for another number of channels or with a deviation that is not
    /// above 0, or an augmentation that does not fit the images.
    pub fn new(dataset: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Self> {
        let wrong = |option, what: String| Err(Error::Option { option, what });
        let channels = dataset.shape().channels;
        if options.batch_size == 0 {
            return wrong("batch_size", "is 0, expected at least 1".into());
        }
        if dataset.is_empty() {
            return wrong("dataset", format!("{} has no images", dataset.name()));
        }
        let Shard { rank, world } = options.shard;
        if rank >= world {
            return wrong(
                "shard",
                format!("has rank {rank} of {world}, expected less"),
            );
        }
        options.augment.check(dataset.shape())?;
        let Statistics { mean, std } = &options.statistics;
        let table = if mean.is_empty() && std.is_empty() {
            Table::new(&Statistics::identity(channels))
        } else if mean.len() != channels || std.len() != channels {
            let found = format!("{} means and {} deviations", mean.len(), std.len());
            return wrong(
                "statistics",
                format!(
                    "{found}, expected {channels} of each for {}",
                    dataset.name()
                ),
            );
        } else if let Some(bad) = std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return wrong(
                "statistics",
                format!("a standard deviation is {bad}, expected more than 0"),
            );
        } else {
            Table::new(&options.statistics)
        };
        let shape = options.augment.output_shape(dataset.shape());
        Ok(Self {
            shared: Arc::new(Shared {
                dataset,
                options,
                table,
                shape,
            }),
        })
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.shared.dataset
    }

    /// The shape of the images in a batch.
    pub fn shape(&self) -> ImageShape {
        self.shared.shape
    }

    /// Batches in an epoch, those skipped included.
    pub fn batches_per_epoch(&self) -> usize {
        let (images, size) = (self.shared.dataset.len(), self.shared.options.batch_size);
        if self.shared.options.drop_last {
            images / size
        } else {
            images.div_ceil(size)
        }
    }

    /// Images of batch `batch` of an epoch, those of other ranks included.
    pub fn images_in(&self, batch: usize) -> usize {
        let (images, size) = (self.shared.dataset.len(), self.shared.options.batch_size);
        images.saturating_sub(batch * size).min(size)
    }

    /// What [`Batch`]es hold for every byte of a pixel, one row a channel.
    pub fn normalised(&self) -> &[[f32; 256]] {
        &self.shared.table.0
    }

    /// What the batches of epoch `epoch` are made of: `Choice`s that, followed, give what [`epoch`](Self::epoch) gives.
    ///
    /// # Errors
    /// The augmentation is a random resized crop, which is more than a choice.
    pub fn drawn(&self, epoch: u64) -> Result<impl Iterator<Item = Drawn> + use<>> {
        let shared = self.shared.clone();
        if shared.options.augment.random_resized_crop.is_some() {
            return Err(Error::Option {
                option: "random_resized_crop",
                what: "resizes images, which is done on the CPU alone; expected none where images are augmented on the device".into(),
            });
        }
        let size = (self.shared.shape.height, self.shared.shape.width);
        let skip = self.shared.options.skip;
        let plan = Plan::new(shared.clone(), epoch, skip, self.batches_per_epoch());
        Ok((skip..plan.end).map(move |batch| {
            let indices = plan.indices(batch).to_vec();
            let choices = indices.iter().map(|&index| {
                let mut random = shared.random(epoch, index);
                shared.options.augment.draw(size, &mut random)
            });
            let choices = choices.collect();
            Drawn { indices, choices }
        }))
    }

    /// The batches of epoch `epoch`, in order. Dropping the iterator stops its thread.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, self.shared.options.skip)
    }

    /// The batches of an epoch from batch `first` on: the very ones that [`epoch`](Self::epoch) would have given there.
    pub fn epoch_from(&self, epoch: u64, first: usize) -> Epoch {
        let plan = Plan::new(self.shared.clone(), epoch, first, self.batches_per_epoch());
        let prefetch = self.shared.options.prefetch;
        if prefetch == 0 {
            return Epoch(State::Direct(plan));
        }
        let (sender, receiver) = sync_channel(prefetch);
        let work = move || {
            for batch in plan {
                // Sending fails when the consumer is gone: then there is nothing left to do.
                if sender.send(batch).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("fewstep-loader".into())
            .spawn(work);
        Epoch(match thread {
            Ok(thread) => State::Ahead { receiver, thread },
            // No thread to be had: the same batches, without prefetch.
            Err(_) => State::Direct(Plan::new(
                self.shared.clone(),
                epoch,
                first,
                self.batches_per_epoch(),
            )),
        })
    }
}

/// The batches of one epoch. After an error it ends.
pub struct Epoch(State);

enum State {
    Direct(Plan),
    Ahead {
        receiver: Receiver<Result<Batch>>,
        thread: JoinHandle<()>,
    },
    Over,
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            State::Direct(plan) => plan.next(),
            State::Ahead { receiver, .. } => receiver.recv().ok(),
            State::Over => None,
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        if let State::Ahead { receiver, thread } = std::mem::replace(&mut self.0, State::Over) {
            drop(receiver);
            // It ends after the batch at hand; its panics were caught and sent as errors.
            let _ = thread.join();
        }
    }
}

/// The order of an epoch and how far it has come.
struct Plan {
    shared: Arc<Shared>,
    epoch: u64,
    order: Vec<usize>,
    next: usize,
    end: usize,
}

impl Plan {
    fn new(shared: Arc<Shared>, epoch: u64, first: usize, batches: usize) -> Self {
        let mut order: Vec<usize> = (0..shared.dataset.len()).collect();
        if shared.options.shuffle {
            order.shuffle(&mut stream(shared.options.seed, epoch, 0, Stream::Shuffle));
        }
        Self {
            shared,
            epoch,
            order,
            next: first,
            end: batches,
        }
    }

    /// Places in the data set of this rank's part of a batch.
    fn indices(&self, batch: usize) -> &[usize] {
        let options = &self.shared.options;
        let start = batch * options.batch_size;
        let end = (start + options.batch_size).min(self.order.len());
        let indices = &self.order[start..end];
        &indices[options.shard.of(indices.len())]
    }
}

impl Iterator for Plan {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let made = catch_unwind(AssertUnwindSafe(|| {
            self.shared.assemble(self.epoch, self.indices(self.next))
        }));
        let batch = made.unwrap_or_else(|panic| {
            Err(Error::Worker {
                epoch: self.epoch,
                batch: self.next,
                what: message(&*panic),
            })
        });
        self.next = if batch.is_ok() {
            self.next + 1
        } else {
            self.end
        };
        Some(batch)
    }
}

impl Shared {
    /// The stream of one image's augmentation.
    fn random(&self, epoch: u64, index: usize) -> ChaCha8Rng {
        stream(self.options.seed, epoch, index as u64, Stream::Augment)
    }

    fn assemble(&self, epoch: u64, indices: &[usize]) -> Result<Batch> {
        let ImageShape {
            channels,
            height,
            width,
        } = self.shape;
        let mut pixels = vec![0f32; indices.len() * self.shape.numel()];
        let samples = pixels
            .par_chunks_mut(self.shape.numel())
            .zip(indices)
            .with_min_len(SAMPLES_PER_TASK);
        samples.try_for_each(|(out, &index)| {
            let image = match self.options.augment.random_resized_crop {
                Some(_) => self.dataset.uncropped(index)?,
                None => self.dataset.image(index)?,
            };
            let mut random = self.random(epoch, index);
            self.options
                .augment
                .write(image.view(), &mut random, &self.table, out);
            Ok::<_, Error>(())
        })?;
        let labels = self.dataset.labels();
        let images = Array4::from_shape_vec((indices.len(), channels, height, width), pixels)
            .map_err(|error| Error::format(self.dataset.name(), error.to_string()))?;
        Ok(Batch {
            images,
            labels: indices
                .iter()
                .map(|&index| i64::from(labels[index]))
                .collect(),
            indices: indices.to_vec(),
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
