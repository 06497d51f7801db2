//! What is printed.

use std::fmt::{self, Display, Formatter, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{LayerCounts, Model, Precision};

/// Energy of a float32 addition and of a float32 multiplication in picojoule at 45 nm (Horowitz 2014), as in fewstep-metrics, whose
/// multiply-accumulate is one of each.
const ADDITION_PJ: f64 = 0.9;
const MULTIPLICATION_PJ: f64 = 3.7;
const UJ_PER_PJ: f64 = 1e-6;

/// One image's result.
pub(super) struct Line<'a> {
    pub path: &'a Path,
    pub class: usize,
    pub name: Option<&'a str>,
    pub scores: &'a [f32],
    pub label: Option<usize>,
}

impl Line<'_> {
    pub fn json(&self) -> Value {
        let mut all = json!({
            "image": self.path.to_string_lossy(),
            "class": self.class,
            "name": self.name,
            "score": self.scores[self.class],
            "scores": self.scores,
        });
        if let Some(label) = self.label {
            all["label"] = label.into();
        }
        all
    }
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}  ", self.path.display())?;
        match self.name {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "{}", self.class)?,
        }
        write!(f, "  {:.3}", self.scores[self.class])
    }
}

/// All images' results.
pub(super) struct Done {
    pub threads: usize,
    pub images: usize,
    pub labelled: usize,
    pub correct: usize,
    /// In the network.
    pub network: Duration,
    /// With decoding and printing.
    pub all: Duration,
}

impl Done {
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            images: 0,
            labelled: 0,
            correct: 0,
            network: Duration::ZERO,
            all: Duration::ZERO,
        }
    }

    /// Takes up an image; `correct` where its class is known.
    pub fn add(&mut self, correct: Option<bool>) {
        self.images += 1;
        self.labelled += usize::from(correct.is_some());
        self.correct += usize::from(correct == Some(true));
    }

    fn rate(&self, time: Duration) -> f64 {
        self.images as f64 / time.as_secs_f64().max(1e-9)
    }

    fn top1(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.correct as f64 / self.labelled as f64)
    }

    pub fn json(&self, model: &Model, counts: Option<&[LayerCounts]>) -> Value {
        let mut all = json!({
            "model": model.name(),
            "timesteps": model.timesteps(),
            "precision": model.precision(),
            "threads": self.threads,
            "images": self.images,
            "labelled": self.labelled,
            "correct": self.correct,
            "top1": self.top1(),
            "seconds": self.all.as_secs_f64(),
            "images_per_second": self.rate(self.all),
            "network_seconds": self.network.as_secs_f64(),
            "network_images_per_second": self.rate(self.network),
        });
        if let Some(counts) = counts {
            let rows = model
                .layers()
                .zip(counts)
                .enumerate()
                .map(|(place, ((name, macs), c))| {
                    let energy = Energy::of(c, macs, self.images, place == 0);
                    json!({
                        "layer": name,
                        "inputs": c.inputs,
                        "spikes": c.spikes,
                        "additions": c.additions,
                        "multiplications": c.multiplications,
                        "spike_additions": c.spike_additions,
                        "weight_bytes": c.weight_bytes,
                        "dense_images": c.dense_images,
                        "dense_macs_per_image": macs,
                        "uj_per_image": energy.counted,
                        "spike_uj_per_image": energy.spikes,
                        "dense_uj_per_image": energy.dense,
                    })
                });
            all["counts"] = rows.collect();
        }
        all
    }

    pub fn text(&self, model: &Model, counts: Option<&[LayerCounts]>) -> String {
        let mut text = String::new();
        if let Some(counts) = counts {
            text += &table(model, counts, self.images);
            text += "\n\n";
        }
        let precision = match model.precision() {
            Precision::Float32 => "float32",
            Precision::Int8 => "int8",
        };
        let _ = write!(
            text,
            "{} {} by {} (T={}, {precision}) on {} {}: {:.0} a second, {:.0} a second in the network alone",
            self.images,
            if self.images == 1 { "image" } else { "images" },
            model.name(),
            model.timesteps(),
            self.threads,
            if self.threads == 1 {
                "thread"
            } else {
                "threads"
            },
            self.rate(self.all),
            self.rate(self.network),
        );
        if let Some(top1) = self.top1() {
            let _ = write!(
                text,
                "\ntop-1: {:.2} % ({} of {})",
                100. * top1,
                self.correct,
                self.labelled
            );
        }
        text
    }
}

/// Microjoule for an image.
struct Energy {
    /// What the engine did.
    counted: f64,
    /// One addition for each spike and target, as a machine that only adds would do; the first layer as counted.
    spikes: f64,
    /// Every multiply-accumulate of the artificial network.
    dense: f64,
}

impl Energy {
    /// The `first` layer reads an image: it has no spikes.
    fn of(c: &LayerCounts, macs: u64, images: usize, first: bool) -> Self {
        let each = UJ_PER_PJ / images.max(1) as f64;
        let additions = |n: u64| n as f64 * ADDITION_PJ;
        let counted =
            (additions(c.additions) + c.multiplications as f64 * MULTIPLICATION_PJ) * each;
        Self {
            counted,
            spikes: if first {
                counted
            } else {
                additions(c.spike_additions) * each
            },
            dense: macs as f64 * (ADDITION_PJ + MULTIPLICATION_PJ) * UJ_PER_PJ,
        }
    }
}

const HEADER: [&str; 9] = [
    "layer",
    "dense",
    "spikes/input",
    "additions",
    "multiplications",
    "weights read",
    "counted µJ",
    "spikes µJ",
    "dense µJ",
];

/// Everything is for one image.
fn table(model: &Model, counts: &[LayerCounts], images: usize) -> String {
    let n = images.max(1) as f64;
    let mut rows = vec![HEADER.map(String::from)];
    let mut sums = [0.; 6];
    for (place, ((name, macs), c)) in model.layers().zip(counts).enumerate() {
        let energy = Energy::of(c, macs, images, place == 0);
        let each = [c.additions, c.multiplications, c.weight_bytes].map(|v| v as f64 / n);
        let figures = [
            each[0],
            each[1],
            each[2],
            energy.counted,
            energy.spikes,
            energy.dense,
        ];
        for (sum, figure) in sums.iter_mut().zip(figures) {
            *sum += figure;
        }
        let share = c.spikes as f64 / c.inputs.max(1) as f64;
        let [dense, share] = match place {
            0 => ["image".into(), "image".into()],
            _ => [
                format!("{:.0} %", 100. * c.dense_images as f64 / n),
                format!("{share:.3}"),
            ],
        };
        rows.push(row(name, dense, share, figures));
    }
    rows.push(row("all", String::new(), String::new(), sums));
    let widths: [usize; HEADER.len()] =
        std::array::from_fn(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0));
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(c, (cell, width))| match c {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
        cells.collect::<Vec<_>>().join("  ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn row(name: &str, dense: String, share: String, figures: [f64; 6]) -> [String; 9] {
    let [additions, multiplications, bytes, counted, spikes, all] = figures;
    [
        name.into(),
        dense,
        share,
        short(additions, ""),
        short(multiplications, ""),
        short(bytes, "B"),
        format!("{counted:.4}"),
        format!("{spikes:.4}"),
        format!("{all:.4}"),
    ]
}

/// Three digits or more, k, M or G, and the unit.
fn short(value: f64, unit: &str) -> String {
    let text = match value {
        v if v < 1e3 => format!("{v:.0} {unit}"),
        v if v < 1e6 => format!("{:.1} k{unit}", v / 1e3),
        v if v < 1e9 => format!("{:.1} M{unit}", v / 1e6),
        v => format!("{:.1} G{unit}", v / 1e9),
    };
    text.trim_end().to_owned()
}
