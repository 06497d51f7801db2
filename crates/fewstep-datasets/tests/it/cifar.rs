//! CIFAR-10 and CIFAR-100 in both layouts.

use std::path::Path;

use fewstep_datasets::{ImageShape, Kind, Splits, info, open};
use tempfile::TempDir;

use crate::files::{cifar_pickle, cifar_records, write};

const TRAIN: [u8; 10] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

fn cifar10_binary(folder: &Path) {
    let labels: Vec<&[u8]> = TRAIN.iter().map(std::slice::from_ref).collect();
    for (batch, labels) in labels.chunks(2).enumerate() {
        write(
            &folder.join(format!("data_batch_{}.bin", batch + 1)),
            &cifar_records(labels),
        );
    }
    write(
        &folder.join("test_batch.bin"),
        &cifar_records(&[&[4], &[5], &[6]]),
    );
}

fn check(splits: &Splits, name: &str, train: &[u32], test: &[u32]) {
    assert_eq!(
        (splits.train.name(), splits.train.shape()),
        (name, ImageShape::new(3, 32, 32))
    );
    assert_eq!((splits.train.labels(), splits.test.labels()), (train, test));
    let last = splits.test.image(test.len() - 1).unwrap();
    assert!(
        last.iter()
            .all(|&value| usize::from(value) == test.len() - 1)
    );
}

#[test]
fn cifar10_is_read_from_both_layouts_and_from_around_the_official_folder() {
    let root = TempDir::new().unwrap();
    let (binary, python) = (
        root.path().join("b/cifar-10-batches-bin"),
        root.path().join("p/cifar-10-batches-py"),
    );
    cifar10_binary(&binary);
    for (batch, labels) in TRAIN.chunks(2).enumerate() {
        write(
            &python.join(format!("data_batch_{}", batch + 1)),
            &cifar_pickle("labels", labels),
        );
    }
    write(
        &python.join("test_batch"),
        &cifar_pickle("labels", &[4, 5, 6]),
    );
    for path in [
        &binary,
        &python,
        &root.path().join("b"),
        &root.path().join("p"),
    ] {
        let splits = open("cifar10", Some(path)).unwrap();
        check(&splits, "cifar10", &TRAIN.map(u32::from), &[4, 5, 6]);
        assert_eq!(splits.train.class_names()[9], "truck");
        let found = info(path).unwrap();
        assert_eq!(
            (found.kind, found.splits[0].class_counts.as_slice()),
            (Kind::Cifar10, &[1usize; 10][..])
        );
    }
    assert!(
        info(&python)
            .unwrap()
            .to_string()
            .contains("CIFAR-10, Python layout")
    );
}

#[test]
fn cifar100_is_read_from_both_layouts_with_the_fine_label() {
    let root = TempDir::new().unwrap();
    let (binary, python) = (
        root.path().join("cifar-100-binary"),
        root.path().join("cifar-100-python"),
    );
    let pairs: Vec<[u8; 2]> = (0..100).map(|fine| [fine / 5, fine]).collect();
    let labels: Vec<&[u8]> = pairs.iter().map(|pair| pair.as_slice()).collect();
    write(&binary.join("train.bin"), &cifar_records(&labels));
    write(&binary.join("test.bin"), &cifar_records(&labels[7..9]));
    write(
        &python.join("train"),
        &cifar_pickle("fine_labels", &(0..100).collect::<Vec<_>>()),
    );
    write(&python.join("test"), &cifar_pickle("fine_labels", &[7, 8]));
    for path in [&binary, &python] {
        let splits = open("cifar100", Some(path)).unwrap();
        check(&splits, "cifar100", &(0..100).collect::<Vec<_>>(), &[7, 8]);
        assert_eq!(
            (
                splits.train.class_names().len(),
                splits.train.class_names()[99].as_str()
            ),
            (100, "worm")
        );
    }
    let error = open("cifar10", Some(&binary)).unwrap_err().to_string();
    assert!(error.contains("no data set recognised"), "{error}");
}

#[test]
fn parts_of_cifar10_in_its_record_format_are_read() {
    let root = TempDir::new().unwrap();
    let labels: Vec<&[u8]> = TRAIN.iter().map(std::slice::from_ref).collect();
    write(
        &root.path().join("train_subset.bin"),
        &cifar_records(&labels),
    );
    write(
        &root.path().join("test_first3.bin"),
        &cifar_records(&[&[4], &[5], &[6]]),
    );
    check(
        &open("cifar10", Some(root.path())).unwrap(),
        "cifar10",
        &TRAIN.map(u32::from),
        &[4, 5, 6],
    );
}

#[test]
fn a_truncated_file_is_named_with_the_record_and_the_offset() {
    let root = TempDir::new().unwrap();
    cifar10_binary(root.path());
    let path = root.path().join("data_batch_3.bin");
    write(&path, &cifar_records(&[&[5], &[4]])[..4000]);
    let error = open("cifar10", Some(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{}: truncated at byte 4000: record 1 needs 6146 bytes",
            path.display()
        )
    );
    write(&path, &[]);
    let error = open("cifar10", Some(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{}: truncated at byte 0: record 0 needs 3073 bytes",
            path.display()
        )
    );
    std::fs::remove_file(&path).unwrap();
    let error = open("cifar10", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}: No such file", path.display())),
        "{error}"
    );
}

#[test]
fn a_label_out_of_range_is_named_with_its_file_and_index() {
    let root = TempDir::new().unwrap();
    cifar10_binary(root.path());
    let path = root.path().join("test_batch.bin");
    write(&path, &cifar_records(&[&[4], &[10]]));
    let error = open("cifar10", Some(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}: image 1 has label 10, expected 0 to 9", path.display())
    );
}

#[test]
fn a_class_without_training_images_is_named() {
    let root = TempDir::new().unwrap();
    cifar10_binary(root.path());
    write(
        &root.path().join("data_batch_5.bin"),
        &cifar_records(&[&[0]]),
    );
    let error = open("cifar10", Some(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{}: class \"automobile\" has no images",
            root.path().display()
        )
    );
}
