//! Real data, where it is there: below `FEWSTEP_DATA`, or Debian's package of Fashion-MNIST. Says so where it skips.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fewstep_datasets::{Augment, Loader, LoaderOptions, Statistics, info, open};

fn data(inner: &str) -> Option<PathBuf> {
    let found = std::env::var_os("FEWSTEP_DATA")
        .map(|root| Path::new(&root).join(inner))
        .filter(|path| path.exists());
    if found.is_none() {
        println!("skipped: FEWSTEP_DATA has no {inner}");
    }
    found
}

#[test]
fn fashion_mnist_of_debian_is_found_by_name() {
    let Ok(splits) = open("fashion-mnist", None) else {
        println!("skipped: no Fashion-MNIST here");
        return;
    };
    assert_eq!((splits.train.len(), splits.test.len()), (60_000, 10_000));
    assert_eq!(
        splits.train.class_names()[splits.train.labels()[0] as usize],
        "Ankle boot"
    );
}

#[test]
fn cifar10_jpeg_opens_in_seconds_and_an_epoch_is_quick() {
    if data("train/airplane").is_none() {
        return;
    }
    let started = Instant::now();
    let splits = open("cifar10-jpeg", None).unwrap();
    println!("opened in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!((splits.train.len(), splits.test.len()), (50_000, 10_000));
    let statistics = Statistics::published("cifar10").unwrap();
    let options = LoaderOptions {
        shuffle: true,
        augment: Augment::cifar(),
        statistics,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(splits.train, options).unwrap();
    let started = Instant::now();
    assert_eq!(loader.epoch(0).map(Result::unwrap).count(), 782);
    println!(
        "{:.3} ms a batch of 64",
        started.elapsed().as_secs_f64() * 1000.0 / 782.0
    );
}

#[test]
fn the_lossless_part_of_cifar10_is_described() {
    let Some(path) = data("test_first1000.bin") else {
        return;
    };
    let splits = open("cifar10", path.parent()).unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (7_728, 1_000));
    println!("{}", info(path.parent().unwrap()).unwrap());
}
