//! IDX files, plain and gzip.

use std::fs;
use std::path::Path;

use fewstep_datasets::{ImageShape, Kind, info, open};
use tempfile::TempDir;

use crate::files::{idx, write};

fn set(folder: &Path, end: &str, prefix: &str, first_label: u8) {
    let put =
        |name: String, bytes: &[u8]| write(&folder.join(format!("{prefix}{name}{end}")), bytes);
    put(
        "train-images-idx3-ubyte".into(),
        &idx(&[4, 2, 3], &(0..24).collect::<Vec<_>>()),
    );
    put(
        "train-labels-idx1-ubyte".into(),
        &idx(&[4], &[0, 1, 2, 1].map(|label| label + first_label)),
    );
    put("t10k-images-idx3-ubyte".into(), &idx(&[1, 2, 3], &[9; 6]));
    put(
        "t10k-labels-idx1-ubyte".into(),
        &idx(&[1], &[2 + first_label]),
    );
}

#[test]
fn plain_and_packed_files_are_read_alike() {
    for end in ["", ".gz"] {
        let root = TempDir::new().unwrap();
        set(root.path(), end, "", 0);
        let splits = open("idx", Some(root.path())).unwrap();
        assert_eq!(
            (splits.train.shape(), splits.train.name()),
            (ImageShape::new(1, 2, 3), "idx")
        );
        assert_eq!(
            (splits.train.labels(), splits.test.labels()),
            (&[0u32, 1, 2, 1][..], &[2u32][..])
        );
        assert_eq!(
            splits
                .train
                .image(2)
                .unwrap()
                .iter()
                .copied()
                .collect::<Vec<_>>(),
            [12, 13, 14, 15, 16, 17]
        );
        assert_eq!(info(root.path()).unwrap().kind, Kind::Idx);
    }
}

#[test]
fn labels_that_start_at_one_keep_their_names_and_move_down() {
    let root = TempDir::new().unwrap();
    set(root.path(), ".gz", "emnist-letters-", 1);
    let splits = open("idx", Some(root.path())).unwrap();
    assert_eq!(splits.train.labels(), [0, 1, 2, 1]);
    assert_eq!(splits.train.class_names(), ["1", "2", "3"]);
}

#[test]
fn a_plain_file_is_taken_before_the_packed_one_and_two_sets_in_one_folder_are_refused() {
    let root = TempDir::new().unwrap();
    set(root.path(), "", "", 0);
    write(&root.path().join("train-labels-idx1-ubyte.gz"), b"junk");
    open("idx", Some(root.path())).unwrap();
    set(root.path(), "", "other-", 0);
    let error = open("idx", Some(root.path())).unwrap_err().to_string();
    assert!(error.contains("two candidates for one file"), "{error}");
}

/// The error after one file of a sound set was replaced.
fn damaged(name: &str, bytes: &[u8]) -> String {
    let root = TempDir::new().unwrap();
    set(root.path(), "", "", 0);
    let path = root.path().join(name);
    write(&path, bytes);
    let error = open("idx", Some(root.path())).unwrap_err().to_string();
    error.replace(&format!("{}/", root.path().display()), "")
}

#[test]
fn damage_is_named_with_the_file_and_the_place() {
    let images = "train-images-idx3-ubyte";
    let labels = "train-labels-idx1-ubyte";
    let whole = idx(&[4, 2, 3], &[0; 24]);
    assert_eq!(
        damaged(images, &whole[..30]),
        "train-images-idx3-ubyte: truncated at byte 30: item 2 of 4 (all of them) needs 40 bytes"
    );
    assert_eq!(
        damaged(images, &whole[..9]),
        "train-images-idx3-ubyte: truncated at byte 9: the IDX header needs 16 bytes"
    );
    assert_eq!(
        damaged(images, &[whole.clone(), vec![1]].concat()),
        "train-images-idx3-ubyte: more bytes after offset 40, where the header says it ends"
    );
    assert_eq!(
        damaged(images, &idx(&[4], &[0; 4])),
        "train-images-idx3-ubyte: IDX magic at offset 0 is [00, 00, 08, 01], expected [00, 00, 08, 03] \
         (u8, 3 dimensions)"
    );
    assert!(
        damaged(images, &idx(&[u32::MAX, u32::MAX, 9], &[]))
            .contains("the IDX header at offset 4 asks for")
    );
    assert_eq!(
        damaged(labels, &idx(&[3], &[0, 1, 2])),
        "train-labels-idx1-ubyte: 3 labels, but train-images-idx3-ubyte has 4 images"
    );
    assert_eq!(
        damaged("t10k-labels-idx1-ubyte", &idx(&[1], &[7])),
        "t10k-labels-idx1-ubyte: image 0 has label 7, expected 0 to 2"
    );
    assert_eq!(
        damaged(labels, &idx(&[4], &[0, 2, 2, 0])),
        "train-labels-idx1-ubyte: class \"1\" has no images"
    );
    assert_eq!(
        damaged("t10k-images-idx3-ubyte", &idx(&[1, 3, 2], &[0; 6])),
        "t10k-images-idx3-ubyte: images are 3×2, expected 2×3 as in training"
    );
}

#[test]
fn a_gzip_stream_that_breaks_off_is_named_with_its_place() {
    let root = TempDir::new().unwrap();
    set(root.path(), ".gz", "", 0);
    let path = root.path().join("train-images-idx3-ubyte.gz");
    let packed = fs::read(&path).unwrap();
    fs::write(&path, &packed[..packed.len() - 12]).unwrap();
    let error = open("idx", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.contains("train-images-idx3-ubyte.gz: truncated at byte"),
        "{error}"
    );
}

#[test]
fn a_missing_companion_is_named() {
    let root = TempDir::new().unwrap();
    set(root.path(), "", "", 0);
    fs::remove_file(root.path().join("t10k-labels-idx1-ubyte")).unwrap();
    let error = open("mnist", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.ends_with("IDX files, but none named t10k-labels-…"),
        "{error}"
    );
}
