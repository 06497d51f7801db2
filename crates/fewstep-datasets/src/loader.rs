//! Batches of normalised, augmented images, assembled by rayon ahead of the consumer.
//!
//! Each sample's randomness is a stream keyed by (seed, epoch, index), so batches do not depend on the number of threads,
//! on prefetch, or on where an epoch was taken up again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use ndarray::Array4;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use crate::augment::Table;
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
        }
    }
}

/// Some images with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// (N, C, H, W), normalised.
    pub images: Array4<f32>,
    /// N classes.
    pub labels: Vec<i64>,
    /// N places in the data set.
    pub indices: Vec<usize>,
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
    /// A batch size of 0, an empty data set, statistics for another number of channels or with a deviation that is not
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
        options.augment.check(dataset.shape())?;
        let Statistics { mean, std } = &options.statistics;
        let table = if mean.is_empty() && std.is_empty() {
            Table::new(&Statistics::identity(channels))
        } else if mean.len() != channels || std.len() != channels {
            let found = format!("{} means and {} deviations", mean.len(), std.len());
            return wrong("statistics", format!("{found}, expected {channels} of each for {}", dataset.name()));
        } else if let Some(bad) = std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return wrong("statistics", format!("a standard deviation is {bad}, expected more than 0"));
        } else {
            Table::new(&options.statistics)
        };
        let shape = options.augment.output_shape(dataset.shape());
        Ok(Self { shared: Arc::new(Shared { dataset, options, table, shape }) })
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
        if self.shared.options.drop_last { images / size } else { images.div_ceil(size) }
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
        let thread = std::thread::Builder::new().name("fewstep-loader".into()).spawn(work);
        Epoch(match thread {
            Ok(thread) => State::Ahead { receiver, thread },
            // No thread to be had: the same batches, without prefetch.
            Err(_) => State::Direct(Plan::new(self.shared.clone(), epoch, first, self.batches_per_epoch())),
        })
    }
}

/// The batches of one epoch. After an error it ends.
pub struct Epoch(State);

enum State {
    Direct(Plan),
    Ahead { receiver: Receiver<Result<Batch>>, thread: JoinHandle<()> },
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
        Self { shared, epoch, order, next: first, end: batches }
    }
}

impl Iterator for Plan {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let size = self.shared.options.batch_size;
        let start = self.next * size;
        let indices = &self.order[start..(start + size).min(self.order.len())];
        let made = catch_unwind(AssertUnwindSafe(|| self.shared.assemble(self.epoch, indices)));
        let batch = made.unwrap_or_else(|panic| {
            Err(Error::Worker { epoch: self.epoch, batch: self.next, what: message(&*panic) })
        });
        self.next = if batch.is_ok() { self.next + 1 } else { self.end };
        Some(batch)
    }
}

impl Shared {
    fn assemble(&self, epoch: u64, indices: &[usize]) -> Result<Batch> {
        let ImageShape { channels, height, width } = self.shape;
        let mut pixels = vec![0f32; indices.len() * self.shape.numel()];
        let samples = pixels.par_chunks_mut(self.shape.numel()).zip(indices).with_min_len(SAMPLES_PER_TASK);
        samples.try_for_each(|(out, &index)| {
            let image = match self.options.augment.random_resized_crop {
                Some(_) => self.dataset.uncropped(index)?,
                None => self.dataset.image(index)?,
            };
            let mut random = stream(self.options.seed, epoch, index as u64, Stream::Augment);
            self.options.augment.write(image.view(), &mut random, &self.table, out);
            Ok::<_, Error>(())
        })?;
        let labels = self.dataset.labels();
        let images = Array4::from_shape_vec((indices.len(), channels, height, width), pixels)
            .map_err(|error| Error::format(self.dataset.name(), error.to_string()))?;
        Ok(Batch {
            images,
            labels: indices.iter().map(|&index| i64::from(labels[index])).collect(),
            indices: indices.to_vec(),
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use ndarray::{CowArray, Ix3};

    use super::*;
    use crate::Synthetic;

    fn synthetic(len: usize) -> Arc<dyn Dataset> {
        Arc::new(Synthetic::new(ImageShape::new(3, 32, 32), 10, len, 0).unwrap())
    }

    fn options() -> LoaderOptions {
        LoaderOptions {
            batch_size: 16,
            shuffle: true,
            augment: Augment { cutout: 8, ..Augment::cifar() },
            statistics: Statistics::published("cifar10").unwrap(),
            seed: 3,
            ..LoaderOptions::default()
        }
    }

    fn batches(loader: &Loader, epoch: u64) -> Vec<Batch> {
        loader.epoch(epoch).map(Result::unwrap).collect()
    }

    #[test]
    fn batches_are_bitwise_the_same_for_any_number_of_threads_and_any_prefetch() {
        let set = synthetic(100);
        let ahead = batches(&Loader::new(set.clone(), LoaderOptions { prefetch: 3, ..options() }).unwrap(), 5);
        let direct = Loader::new(set, LoaderOptions { prefetch: 0, ..options() }).unwrap();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| batches(&direct, 5)) == ahead, "{threads} threads");
        }
        assert!(batches(&direct, 6) != ahead);
    }

    #[test]
    fn an_epoch_shows_every_image_once_and_the_last_batch_is_short_or_dropped() {
        let loader = Loader::new(synthetic(50), options()).unwrap();
        let all = batches(&loader, 0);
        assert_eq!(all.iter().map(|batch| batch.labels.len()).collect::<Vec<_>>(), [16, 16, 16, 2]);
        assert_eq!((loader.batches_per_epoch(), all[3].images.dim()), (4, (2, 3, 32, 32)));
        let mut seen: Vec<usize> = all.iter().flat_map(|batch| batch.indices.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert!(all.iter().all(|batch| batch.indices.iter().zip(&batch.labels).all(|(&i, &l)| i as i64 % 10 == l)));
        let loader = Loader::new(synthetic(50), LoaderOptions { drop_last: true, ..options() }).unwrap();
        assert_eq!((loader.batches_per_epoch(), batches(&loader, 0).len()), (3, 3));
    }

    #[test]
    fn an_epoch_taken_up_in_the_middle_goes_on_with_the_same_batches() {
        let loader = Loader::new(synthetic(64), options()).unwrap();
        let rest: Vec<Batch> = loader.epoch_from(2, 1).map(Result::unwrap).collect();
        assert!(rest == batches(&loader, 2)[1..]);
        let skipping = Loader::new(synthetic(64), LoaderOptions { skip: 1, ..options() }).unwrap();
        assert!(rest == batches(&skipping, 2));
        assert!(loader.epoch_from(2, 99).next().is_none());
    }

    #[test]
    fn without_shuffle_and_augmentation_pixels_are_in_order_and_normalised() {
        let set = synthetic(3);
        let loader = Loader::new(set.clone(), LoaderOptions::default()).unwrap();
        let batch = loader.epoch(0).next().unwrap().unwrap();
        assert_eq!(batch.indices, [0, 1, 2]);
        assert_eq!(batch.images[[2, 1, 4, 5]], f32::from(set.image(2).unwrap()[[1, 4, 5]]) / 255.0);
    }

    /// Fails or panics from an index on.
    struct Bad {
        inner: Arc<dyn Dataset>,
        from: usize,
        panics: bool,
        reads: AtomicUsize,
    }

    impl Dataset for Bad {
        fn name(&self) -> &str {
            "bad"
        }
        fn shape(&self) -> ImageShape {
            self.inner.shape()
        }
        fn class_names(&self) -> &[String] {
            self.inner.class_names()
        }
        fn labels(&self) -> &[u32] {
            self.inner.labels()
        }
        fn image(&self, index: usize) -> Result<CowArray<'_, u8, Ix3>> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            if index >= self.from {
                assert!(!self.panics, "the disk is on fire");
                return Err(Error::format("bad.bin", "no such image"));
            }
            self.inner.image(index)
        }
    }

    fn bad(from: usize, panics: bool) -> Arc<Bad> {
        Arc::new(Bad { inner: synthetic(1000), from, panics, reads: AtomicUsize::new(0) })
    }

    #[test]
    fn an_error_in_a_worker_arrives_after_the_good_batches_and_ends_the_epoch() {
        for prefetch in [0, 2] {
            let plain = LoaderOptions { shuffle: false, prefetch, ..options() };
            let found: Vec<_> = Loader::new(bad(20, false), plain).unwrap().epoch(0).collect();
            assert_eq!(found.len(), 2);
            assert_eq!(found[1].as_ref().unwrap_err().to_string(), "bad.bin: no such image");
        }
    }

    #[test]
    fn a_panic_in_a_worker_arrives_as_an_error() {
        let plain = LoaderOptions { shuffle: false, ..options() };
        let found: Vec<_> = Loader::new(bad(20, true), plain).unwrap().epoch(4).collect();
        assert_eq!(
            found[1].as_ref().unwrap_err().to_string(),
            "assembling batch 1 of epoch 4 panicked: the disk is on fire"
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn dropping_an_epoch_stops_its_thread() {
        let set = bad(usize::MAX, false);
        let loader = Loader::new(set.clone(), options()).unwrap();
        let mut epoch = loader.epoch(0);
        epoch.next().unwrap().unwrap();
        drop(epoch);
        // Two ahead, one handed out, one in the making, and none after the drop.
        let reads = set.reads.load(Ordering::SeqCst);
        assert!(reads <= 5 * 16, "{reads} images read");
        drop(loader);
        assert_eq!(Arc::strong_count(&set), 1, "the thread still holds the data set");
    }

    #[test]
    fn options_that_cannot_work_are_named() {
        let error = |options| Loader::new(synthetic(4), options).err().unwrap().to_string();
        assert_eq!(error(LoaderOptions { batch_size: 0, ..options() }), "option batch_size: is 0, expected at least 1");
        let statistics = Statistics { mean: vec![0.5], std: vec![0.5] };
        assert!(error(LoaderOptions { statistics, ..options() }).contains("expected 3 of each for synthetic"));
        let statistics = Statistics { mean: vec![0.5; 3], std: vec![0.5, 0.0, 0.5] };
        assert!(error(LoaderOptions { statistics, ..options() }).contains("deviation is 0, expected more than 0"));
    }

    /// Not a check of speed, only of its order of magnitude: a batch of 64 must never take as long as a training step.
    #[test]
    fn a_cifar_batch_is_assembled_in_milliseconds() {
        let images = ndarray::Array4::from_shape_fn((640, 3, 32, 32), |(n, c, y, x)| (n + c + y * x) as u8);
        let set = crate::MemoryDataset::new("m", images, vec![0; 640], vec!["a".into()]).unwrap();
        let options = LoaderOptions { batch_size: 64, prefetch: 0, augment: Augment::cifar(), ..options() };
        let loader = Loader::new(Arc::new(set), options).unwrap();
        let started = Instant::now();
        assert_eq!(loader.epoch(0).count(), 10);
        let each_ms = started.elapsed().as_secs_f64() * 100.0;
        println!("{each_ms:.3} ms a batch");
        assert!(each_ms < 50.0, "{each_ms} ms");
    }
}
