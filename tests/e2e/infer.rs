//! `fewstep infer`: images as files through a model file.

use std::path::Path;

use fewstep_events::{Connection, Dense, Layer, Network, Precision};
use image::{DynamicImage, GrayImage, RgbImage};
use serde_json::Value;

use crate::common::{Done, Sandbox};

/// Tells whether the left or the right half of a grey image of 4×2 pixels is brighter.
fn model(sandbox: &Sandbox, classes: &[&str]) {
    let halves: Vec<f32> = [1., 1., 0., 0., 1., 1., 0., 0.].into();
    let weight = [halves.clone(), halves.iter().map(|w| 1. - w).collect()].concat();
    let layer = |name: &str, weight: Vec<f32>, threshold: &[f32]| Layer {
        name: name.into(),
        connection: Connection::Linear,
        outputs: 2,
        dense: Dense {
            weight,
            bias: vec![],
        },
        threshold: threshold.into(),
        leak: vec![1.; threshold.len()],
        pool: false,
        shortcut: None,
    };
    let network = Network {
        name: "halves".into(),
        input: [1, 2, 4],
        mean: vec![0.],
        std: vec![1.],
        classes: classes.iter().map(|c| c.to_string()).collect(),
        layers: vec![
            layer("hidden", weight, &[2.]),
            layer("readout", vec![1.5, 0., 0., 1.5], &[]),
        ],
        ..Network::default()
    };
    network
        .save(sandbox.path("halves.events"), Precision::Float32)
        .unwrap();
}

fn picture(right: bool) -> GrayImage {
    GrayImage::from_fn(4, 2, |x, _| {
        [if (x >= 2) == right { 255 } else { 0 }].into()
    })
}

fn save(sandbox: &Sandbox, path: &str, image: impl Into<DynamicImage>) {
    let path = sandbox.path(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(path).unwrap();
}

fn infer(sandbox: &Sandbox, arguments: &[&str]) -> Done {
    sandbox.fewstep(&[&["infer", "halves.events"], arguments].concat())
}

fn lines(done: &Done) -> Vec<Value> {
    assert!(done.ok, "{}", done.stderr);
    done.stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn each_image_gets_its_class_and_score_and_a_folder_of_classes_a_top_1() {
    let sandbox = Sandbox::new();
    model(&sandbox, &["west", "east"]);
    for n in 0..3 {
        save(&sandbox, &format!("set/west/{n}.png"), picture(false));
        save(&sandbox, &format!("set/east/{n}.png"), picture(n != 1));
    }
    save(&sandbox, "set/east/.hidden.png", picture(true));
    std::fs::write(sandbox.path("set/east/notes.txt"), "no image").unwrap();
    let done = infer(&sandbox, &["set", "--threads", "1", "--batch", "2"]);
    assert!(done.ok, "{}", done.stderr);
    let said: Vec<_> = done.stdout.lines().collect();
    assert_eq!(
        said[..6],
        [
            "set/east/0.png  east  1.500",
            "set/east/1.png  west  1.500",
            "set/east/2.png  east  1.500",
            "set/west/0.png  west  1.500",
            "set/west/1.png  west  1.500",
            "set/west/2.png  west  1.500"
        ]
    );
    assert!(
        said[6].starts_with("6 images by halves (T=1, float32) on 1 thread: "),
        "{}",
        said[6]
    );
    assert_eq!(said[7..], ["top-1: 83.33 % (5 of 6)"]);
    assert_eq!(done.stderr, "");

    let all = lines(&infer(&sandbox, &["set", "set/east/0.png", "--json"]));
    assert_eq!(all.len(), 8);
    assert_eq!(
        all[1].to_string(),
        r#"{"class":0,"image":"set/east/1.png","label":1,"name":"west","score":1.5,"scores":[1.5,0.0]}"#
    );
    assert_eq!(all[6]["label"], Value::Null);
    let summary = &all[7];
    assert_eq!(
        (
            &summary["images"],
            &summary["labelled"],
            &summary["correct"]
        ),
        (&7.into(), &6.into(), &5.into())
    );
    assert!(summary["images_per_second"].as_f64().unwrap() > 0.);

    let quiet = infer(&sandbox, &["set", "--quiet"]);
    assert_eq!(quiet.stdout.lines().count(), 2, "{}", quiet.stdout);
}

#[test]
fn folders_of_other_names_are_classes_in_their_order_and_that_is_said() {
    let sandbox = Sandbox::new();
    model(&sandbox, &["west", "east"]);
    save(&sandbox, "set/1-left/a.png", picture(false));
    save(&sandbox, "set/2-right/a.png", picture(true));
    let done = infer(&sandbox, &["set"]);
    assert!(
        done.stdout.ends_with("top-1: 100.00 % (2 of 2)\n"),
        "{}",
        done.stdout
    );
    assert_eq!(
        done.stderr,
        "set: the names of its 2 subfolders are not those of the model's classes; they are taken for classes 0 to 1 in the order of their names\n"
    );
    save(&sandbox, "set/3-up/a.png", picture(true));
    let done = infer(&sandbox, &["set"]);
    assert!(!done.stdout.contains("top-1"), "{}", done.stdout);
    assert_eq!(
        done.stderr,
        "set: its 3 subfolders do not have names of the model's 2 classes; there is no top-1\n"
    );
    model(&sandbox, &[]);
    let done = infer(&sandbox, &["set/2-right"]);
    assert!(
        done.stdout.starts_with("set/2-right/a.png  1  1.500\n"),
        "{}",
        done.stdout
    );
}

#[test]
fn an_image_that_the_model_can_not_take_ends_in_one_sentence() {
    let sandbox = Sandbox::new();
    model(&sandbox, &["west", "east"]);
    save(&sandbox, "large.png", GrayImage::new(8, 4));
    save(&sandbox, "colour.png", RgbImage::new(4, 2));
    std::fs::write(sandbox.path("text.png"), "no image").unwrap();
    save(&sandbox, "whole.png", picture(true));
    let whole = std::fs::read(sandbox.path("whole.png")).unwrap();
    std::fs::write(sandbox.path("half.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    let cases = [
        (
            "large.png",
            "error: large.png: expected 4×2 pixels, found 8×4 (--resize scales images)",
        ),
        (
            "colour.png",
            "error: colour.png: expected an image in grey, found colour (--resize converts images)",
        ),
        (
            "text.png",
            "error: text.png: not a PNG or JPEG that can be read: ",
        ),
        (
            "half.png",
            "error: half.png: not a PNG or JPEG that can be read: ",
        ),
        ("none.png", "error: none.png: "),
        (
            "empty",
            "error: empty: expected images (.png, .jpg, .jpeg) here or in subfolders, found none",
        ),
    ];
    for (path, expected) in cases {
        let done = infer(&sandbox, &[path]);
        assert!(done.sentence().starts_with(expected), "{}", done.stderr);
    }
    let done = sandbox.fewstep(&["infer", "whole.png", "whole.png"]);
    assert!(
        done.sentence()
            .starts_with("error: whole.png: expected a model of fewstep-events"),
        "{}",
        done.stderr
    );
    let all = lines(&infer(
        &sandbox,
        &["large.png", "colour.png", "whole.png", "--resize", "--json"],
    ));
    assert_eq!(
        (&all[2]["name"], &all[3]["images"]),
        (&"east".into(), &3.into())
    );
}

#[test]
fn counts_are_a_table_for_each_layer_and_the_same_in_json() {
    let sandbox = Sandbox::new();
    model(&sandbox, &["west", "east"]);
    save(&sandbox, "set/a.png", picture(false));
    save(&sandbox, "set/b.png", picture(true));
    let done = infer(&sandbox, &["set", "--counts", "--quiet"]);
    assert!(done.ok, "{}", done.stderr);
    let table: Vec<Vec<&str>> = done
        .stdout
        .lines()
        .take(4)
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(table[0][..2], ["layer", "dense"]);
    // The image: 8 pixels for 2 neurons; one of two neurons fires and adds to 2 outputs.
    assert_eq!(
        table[1][..5],
        ["hidden", "image", "image", "16", "16"],
        "{}",
        done.stdout
    );
    assert_eq!(
        table[2][..5],
        ["readout", "0", "%", "0.500", "2"],
        "{}",
        done.stdout
    );
    assert_eq!(table[3][0], "all");
    let summary = lines(&infer(&sandbox, &["set", "--counts", "--quiet", "--json"])).remove(0);
    let readout = &summary["counts"][1];
    assert_eq!(
        (
            &readout["additions"],
            &readout["spike_additions"],
            &readout["spikes"]
        ),
        (&4.into(), &4.into(), &2.into())
    );
    let uj = |key: &str| readout[key].as_f64().unwrap();
    assert!((uj("uj_per_image") - 2. * 0.9e-6).abs() < 1e-12);
    assert!((uj("dense_uj_per_image") - 4. * 4.6e-6).abs() < 1e-12);
}

#[test]
fn an_exported_run_classifies_its_test_images_as_its_summary_says() {
    let sandbox = Sandbox::new();
    sandbox.succeed(&["--quiet"]);
    let done = sandbox.fewstep(&["export", "runs/tiny", "--to", "events"]);
    assert!(done.ok, "{}", done.stderr);
    assert!(
        done.stdout
            .starts_with("runs/tiny/t1.events: t1 of runs/tiny, 4 layers, T=1, float32, "),
        "{}",
        done.stdout
    );
    let (trained, data) =
        fewstep::trained::open_with_data(&sandbox.tiny(""), None, tch::Device::Cpu).unwrap();
    for (index, label) in data.test().labels().iter().enumerate() {
        let pixels = data.test().image(index).unwrap();
        let pixels = pixels.iter().copied().collect();
        let image = GrayImage::from_raw(8, 8, pixels).unwrap();
        save(
            &sandbox,
            &format!(
                "digits/{}/{index:04}.png",
                data.class_names()[*label as usize]
            ),
            image,
        );
    }
    let arguments = [
        "infer",
        "runs/tiny/t1.events",
        "digits",
        "--json",
        "--quiet",
    ];
    let summary = lines(&sandbox.fewstep(&arguments)).remove(0);
    assert_eq!(summary["top1"].as_f64(), trained.test_accuracy);
    assert_eq!(summary["labelled"], 100);

    let sentence = |arguments: &[&str], expected: &str| {
        let done = sandbox.fewstep(&[&["export", "runs/tiny", "--to"], arguments].concat());
        assert!(done.sentence().starts_with(expected), "{}", done.stderr);
    };
    sentence(
        &["events", "--ann"],
        "error: --to events: expected a spiking stage, found the artificial network",
    );
    sentence(
        &["nir", "--precision", "int8"],
        "error: --precision: expected --to events with it",
    );
    assert!(Path::new(&sandbox.tiny("t1.events")).exists());
}
