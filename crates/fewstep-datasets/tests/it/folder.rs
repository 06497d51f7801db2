//! Image folders.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fewstep_datasets::{
    Augment, DataSpec, FolderOptions, ImageShape, Loader, LoaderOptions, info, info_with, open,
};
use tempfile::TempDir;

use crate::files::{image, write};

/// Two classes, red and blue: three training images of each as PNG, one test image of each as JPEG.
fn split_set(root: &Path, test: &str) {
    for (class, colour) in [("blue", [0, 0, 200]), ("red", [200, 0, 0])] {
        (0..3).for_each(|i| image(&root.join(format!("train/{class}/{i}.png")), 6, 4, colour));
        image(&root.join(format!("{test}/{class}/0.JPG")), 6, 4, colour);
    }
}

fn with(path: &Path, folder: FolderOptions) -> fewstep_datasets::Result<fewstep_datasets::Splits> {
    DataSpec {
        folder,
        ..DataSpec::new("folder", Some(path))
    }
    .open()
}

#[test]
fn a_split_folder_is_read_in_memory_and_lazily_alike() {
    for test in ["test", "val"] {
        let root = TempDir::new().unwrap();
        split_set(root.path(), test);
        let kept = open("folder", Some(root.path())).unwrap();
        let lazy = with(
            root.path(),
            FolderOptions {
                keep_bytes: 0,
                ..FolderOptions::default()
            },
        )
        .unwrap();
        assert!(kept.train.in_memory() && !lazy.train.in_memory());
        assert_eq!(
            (kept.train.shape(), kept.train.labels()),
            (ImageShape::new(3, 4, 6), &[0, 0, 0, 1, 1, 1][..])
        );
        assert_eq!(
            (kept.train.class_names(), kept.test.labels()),
            (&["blue".into(), "red".into()][..], &[0, 1][..])
        );
        for index in 0..6 {
            assert_eq!(
                kept.train.image(index).unwrap(),
                lazy.train.image(index).unwrap()
            );
        }
        assert_eq!(kept.train.image(5).unwrap()[[0, 3, 5]], 200);
        assert!(kept.train.image(6).is_err() && lazy.train.image(6).is_err());
        // JPEG is near, not equal.
        assert!(lazy.test.image(0).unwrap()[[2, 0, 0]].abs_diff(200) < 4);
    }
}

#[test]
fn a_folder_of_classes_is_split_by_seed() {
    let root = TempDir::new().unwrap();
    for class in ["a", "b"] {
        (0..10).for_each(|i| {
            image(
                &root.path().join(format!("{class}/{i}.png")),
                2,
                2,
                [i * 20; 3],
            )
        });
    }
    let splits = open("folder", Some(root.path())).unwrap();
    assert_eq!(
        (splits.train.len(), splits.test.labels()),
        (16, &[0, 0, 1, 1][..])
    );
    let again = with(
        root.path(),
        FolderOptions {
            split_seed: 1,
            ..FolderOptions::default()
        },
    )
    .unwrap();
    assert_eq!(again.test.len(), 4);
    assert!(
        info(root.path())
            .unwrap()
            .to_string()
            .contains("image folder, split by seed")
    );
}

#[test]
fn an_image_of_another_size_is_named_unless_a_resize_is_asked_for() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    let odd = root.path().join("train/red/9.png");
    image(&odd, 12, 10, [200, 0, 0]);
    let expected = format!(
        "{}: image is 3×10×12, expected 3×4×6 as the first one; ask for `resize` and `crop` to mix sizes",
        odd.display()
    );
    assert_eq!(
        open("folder", Some(root.path())).unwrap_err().to_string(),
        expected
    );
    let lazy = with(
        root.path(),
        FolderOptions {
            keep_bytes: 0,
            ..FolderOptions::default()
        },
    )
    .unwrap();
    assert_eq!(lazy.train.image(6).unwrap_err().to_string(), expected);

    let options = FolderOptions {
        resize: Some(5),
        crop: Some(4),
        ..FolderOptions::default()
    };
    let mixed = with(root.path(), options).unwrap();
    assert_eq!(mixed.train.shape(), ImageShape::new(3, 4, 4));
    assert_eq!(mixed.train.image(6).unwrap().dim(), (3, 4, 4));
    assert_eq!(mixed.train.uncropped(6).unwrap().dim(), (3, 10, 12));
    assert_eq!(
        info_with(root.path(), &options).unwrap().shape,
        ImageShape::new(3, 4, 4)
    );

    // Training on random windows of the whole image, as ImageNet does.
    let augment = Augment {
        random_resized_crop: Some(3),
        ..Augment::default()
    };
    let loader = Loader::new(
        mixed.train,
        LoaderOptions {
            augment,
            ..LoaderOptions::default()
        },
    )
    .unwrap();
    assert_eq!(
        loader.epoch(0).next().unwrap().unwrap().images.dim(),
        (7, 3, 3, 3)
    );
}

#[test]
fn an_unreadable_image_is_named() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    let bad = root.path().join("train/red/1.png");
    let bytes = fs::read(&bad).unwrap();
    write(&bad, &bytes[..bytes.len() / 2]);
    let error = open("folder", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}: unreadable image: ", bad.display())),
        "{error}"
    );
}

#[test]
fn an_error_on_disk_reaches_the_consumer_of_a_loader() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    let lazy = with(
        root.path(),
        FolderOptions {
            keep_bytes: 0,
            ..FolderOptions::default()
        },
    )
    .unwrap();
    write(&root.path().join("train/red/1.png"), b"not an image");
    let loader = Loader::new(
        Arc::clone(&lazy.train),
        LoaderOptions {
            batch_size: 2,
            ..LoaderOptions::default()
        },
    )
    .unwrap();
    let found: Vec<_> = loader.epoch(0).collect();
    assert_eq!(found.len(), 3);
    assert!(
        found[2]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("red/1.png: unreadable image")
    );
}

#[test]
fn an_empty_class_is_named() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    let empty = root.path().join("train/green");
    fs::create_dir(&empty).unwrap();
    let error = open("folder", Some(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}: class \"green\" has no images", empty.display())
    );
}

#[test]
fn a_test_class_that_training_does_not_have_is_named() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    image(&root.path().join("test/green/0.png"), 6, 4, [0, 200, 0]);
    let error = open("folder", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.ends_with("test/green: a class that the training part does not have"),
        "{error}"
    );
}

#[test]
fn grey_images_stay_grey_and_colour_among_them_is_named() {
    let root = TempDir::new().unwrap();
    for (class, value) in [("a", 10), ("b", 90)] {
        for i in 0..5 {
            let path = root.path().join(format!("{class}/{i}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::GrayImage::from_pixel(3, 3, image::Luma([value]))
                .save(path)
                .unwrap();
        }
    }
    let splits = open("folder", Some(root.path())).unwrap();
    assert_eq!(splits.train.shape(), ImageShape::new(1, 3, 3));
    assert_eq!(splits.test.image(1).unwrap()[[0, 1, 1]], 90);
    image(&root.path().join("b/0.png"), 3, 3, [1, 2, 3]);
    let error = open("folder", Some(root.path())).unwrap_err().to_string();
    assert!(
        error.contains("b/0.png: image is 3×3×3, expected 1×3×3"),
        "{error}"
    );
}

#[test]
fn options_that_cannot_work_are_named() {
    let root = TempDir::new().unwrap();
    split_set(root.path(), "test");
    let error = |options| with(root.path(), options).unwrap_err().to_string();
    let crop = FolderOptions {
        crop: Some(9),
        ..FolderOptions::default()
    };
    assert!(error(crop).contains("4×6 is too small to crop 9×9 from"));
    assert_eq!(
        error(FolderOptions {
            resize: Some(5),
            ..crop
        }),
        "option crop: is 9, more than `resize` = 5"
    );
    assert!(
        error(FolderOptions {
            resize: Some(0),
            ..FolderOptions::default()
        })
        .starts_with("option resize: is 0")
    );
    let fraction = FolderOptions {
        test_fraction: 1.0,
        ..FolderOptions::default()
    };
    assert!(error(fraction).starts_with("option test_fraction: is 1"));
}

#[test]
fn a_spec_is_read_from_toml_and_refuses_unknown_keys() {
    let spec: DataSpec =
        toml::from_str("name = 'imagenet'\n[folder]\nresize = 256\ncrop = 224\n").unwrap();
    assert_eq!(spec.folder, FolderOptions::imagenet());
    assert!(toml::from_str::<DataSpec>("name = 'digits'\npaht = 'x'\n").is_err());
}
