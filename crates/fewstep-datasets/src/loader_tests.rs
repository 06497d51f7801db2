//! The loader: the same batches whatever the machine, and errors that arrive.

use std::sync::atomic::{AtomicUsize, Ordering};

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
        augment: Augment {
            cutout: 8,
            ..Augment::cifar()
        },
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
    let ahead = batches(
        &Loader::new(
            set.clone(),
            LoaderOptions {
                prefetch: 3,
                ..options()
            },
        )
        .unwrap(),
        5,
    );
    let direct = Loader::new(
        set,
        LoaderOptions {
            prefetch: 0,
            ..options()
        },
    )
    .unwrap();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert!(
            pool.install(|| batches(&direct, 5)) == ahead,
            "{threads} threads"
        );
    }
    assert!(batches(&direct, 6) != ahead);
}

#[test]
fn an_epoch_shows_every_image_once_and_the_last_batch_is_short_or_dropped() {
    let loader = Loader::new(synthetic(50), options()).unwrap();
    let all = batches(&loader, 0);
    assert_eq!(
        all.iter()
            .map(|batch| batch.labels.len())
            .collect::<Vec<_>>(),
        [16, 16, 16, 2]
    );
    assert_eq!(
        (loader.batches_per_epoch(), all[3].images.dim()),
        (4, (2, 3, 32, 32))
    );
    let mut seen: Vec<usize> = all.iter().flat_map(|batch| batch.indices.clone()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert!(all.iter().all(|batch| {
        batch
            .indices
            .iter()
            .zip(&batch.labels)
            .all(|(&i, &l)| i as i64 % 10 == l)
    }));
    let loader = Loader::new(
        synthetic(50),
        LoaderOptions {
            drop_last: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(
        (loader.batches_per_epoch(), batches(&loader, 0).len()),
        (3, 3)
    );
}

#[test]
fn an_epoch_taken_up_in_the_middle_goes_on_with_the_same_batches() {
    let loader = Loader::new(synthetic(64), options()).unwrap();
    let rest: Vec<Batch> = loader.epoch_from(2, 1).map(Result::unwrap).collect();
    assert!(rest == batches(&loader, 2)[1..]);
    let skipping = Loader::new(
        synthetic(64),
        LoaderOptions {
            skip: 1,
            ..options()
        },
    )
    .unwrap();
    assert!(rest == batches(&skipping, 2));
    assert!(loader.epoch_from(2, 99).next().is_none());
}

#[test]
fn the_parts_of_all_ranks_one_behind_the_other_are_the_batches_of_one() {
    for (images, batch_size, drop_last) in [(50, 16, false), (50, 16, true), (23, 4, false)] {
        let of = |shard| {
            let options = LoaderOptions {
                batch_size,
                drop_last,
                shard,
                ..options()
            };
            let loader = Loader::new(synthetic(images), options).unwrap();
            (batches(&loader, 7), loader)
        };
        let (whole, loader) = of(Shard::default());
        for world in [1, 2, 3, 5, 8, 17] {
            let parts: Vec<_> = (0..world).map(|rank| of(Shard { rank, world }).0).collect();
            for (i, batch) in whole.iter().enumerate() {
                let found: Vec<&Batch> = parts.iter().map(|part| &part[i]).collect();
                let sizes = found.iter().map(|part| part.labels.len());
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
                assert_eq!(loader.images_in(i), batch.labels.len());
                let views: Vec<_> = found.iter().map(|part| part.images.view()).collect();
                let images = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
                assert!(images == batch.images, "{world} ranks, batch {i}");
                let indices: Vec<_> = found.iter().flat_map(|part| part.indices.clone()).collect();
                let labels: Vec<_> = found.iter().flat_map(|part| part.labels.clone()).collect();
                assert_eq!((&indices, &labels), (&batch.indices, &batch.labels));
            }
            assert!(parts.iter().all(|part| part.len() == whole.len()));
        }
    }
}

#[test]
fn without_shuffle_and_augmentation_pixels_are_in_order_and_normalised() {
    let set = synthetic(3);
    let loader = Loader::new(set.clone(), LoaderOptions::default()).unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    assert_eq!(batch.indices, [0, 1, 2]);
    assert_eq!(
        batch.images[[2, 1, 4, 5]],
        f32::from(set.image(2).unwrap()[[1, 4, 5]]) / 255.0
    );
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
    Arc::new(Bad {
        inner: synthetic(1000),
        from,
        panics,
        reads: AtomicUsize::new(0),
    })
}

#[test]
fn an_error_in_a_worker_arrives_after_the_good_batches_and_ends_the_epoch() {
    for prefetch in [0, 2] {
        let plain = LoaderOptions {
            shuffle: false,
            prefetch,
            ..options()
        };
        let found: Vec<_> = Loader::new(bad(20, false), plain)
            .unwrap()
            .epoch(0)
            .collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1].as_ref().unwrap_err().to_string(),
            "bad.bin: no such image"
        );
    }
}

#[test]
fn a_panic_in_a_worker_arrives_as_an_error() {
    let plain = LoaderOptions {
        shuffle: false,
        ..options()
    };
    let found: Vec<_> = Loader::new(bad(20, true), plain)
        .unwrap()
        .epoch(4)
        .collect();
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
    assert_eq!(
        Arc::strong_count(&set),
        1,
        "the thread still holds the data set"
    );
}

#[test]
fn options_that_cannot_work_are_named() {
    let error = |options| {
        Loader::new(synthetic(4), options)
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        error(LoaderOptions {
            batch_size: 0,
            ..options()
        }),
        "option batch_size: is 0, expected at least 1"
    );
    assert_eq!(
        error(LoaderOptions {
            shard: Shard { rank: 2, world: 2 },
            ..options()
        }),
        "option shard: has rank 2 of 2, expected less"
    );
    let statistics = Statistics {
        mean: vec![0.5],
        std: vec![0.5],
    };
    assert!(
        error(LoaderOptions {
            statistics,
            ..options()
        })
        .contains("expected 3 of each for synthetic")
    );
    let statistics = Statistics {
        mean: vec![0.5; 3],
        std: vec![0.5, 0.0, 0.5],
    };
    assert!(
        error(LoaderOptions {
            statistics,
            ..options()
        })
        .contains("deviation is 0, expected more than 0")
    );
}

#[test]
fn what_was_drawn_becomes_eight_rows_of_numbers() {
    let choice = |down, mirrored, from| Choice {
        down,
        right: -1,
        mirrored,
        hole: [from..from + 2, 3..5],
    };
    let drawn = Drawn {
        indices: vec![7, 4],
        choices: vec![choice(-2, true, 0), choice(2, false, 1)],
    };
    let rows = [7, 4, -2, 2, -1, -1, 1, 0, 0, 1, 2, 3, 3, 3, 5, 5];
    assert_eq!(drawn.numbers(), rows);
}

#[test]
fn the_bytes_of_a_data_set_are_its_images_one_after_the_other() {
    let set = synthetic(3);
    let bytes = set.bytes().unwrap();
    assert_eq!(bytes.len(), 3 * set.shape().numel());
    let last: Vec<u8> = set.image(2).unwrap().iter().copied().collect();
    assert_eq!(bytes[2 * set.shape().numel()..], last);
}
