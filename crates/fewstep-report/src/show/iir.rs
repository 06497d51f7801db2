//! From an artificial network to one timestep.

use serde_json::Value;

use super::{fixed, large, list, percent, scientific, text};
use crate::page::{Axis, Bars, Block, Cell, Chart, Figure, Plot, Section, Series, Table};
use crate::run::Run;

pub(super) fn sections(run: &Run) -> Vec<Section> {
    let mut sections = Vec::new();
    if run.summary.is_some() {
        sections.push(Section {
            title: "Result".into(),
            blocks: result(run),
        });
    }
    let mut blocks = vec![];
    blocks.extend(accuracy(run));
    blocks.extend(training(run));
    sections.push(Section {
        title: "Training".into(),
        blocks,
    });
    let layers: Vec<_> = [rates(run), energy(run), thresholds(run)]
        .into_iter()
        .flatten()
        .collect();
    sections.push(Section {
        title: "Layer by layer".into(),
        blocks: layers,
    });
    sections
}

fn stages(run: &Run) -> &[Value] {
    list(run.summary("stages"))
}

fn result(run: &Run) -> Vec<Block> {
    let ann = run.summary("ann");
    let mut figures = Vec::new();
    if let Some(last) = stages(run).last() {
        let t = text(&last["timesteps"]);
        let lost = match (
            last["test_accuracy"].as_f64(),
            ann["test_accuracy"].as_f64(),
        ) {
            (Some(snn), Some(ann)) => format!(
                "{:+.2} points against the artificial network",
                100. * (snn - ann)
            ),
            _ => String::new(),
        };
        figures.push(
            Figure::new(
                &format!("test accuracy, T={t}"),
                percent(&last["test_accuracy"]),
                "%",
            )
            .note(lost),
        );
        figures.push(
            Figure::new(
                "energy of an image",
                fixed(&last["energy"]["snn_uj"], 3),
                "µJ",
            )
            .note(format!(
                "{}× less than {} µJ of the artificial network (45 nm estimate)",
                fixed(&last["energy_ratio"], 1),
                fixed(&last["energy"]["ann_uj"], 3)
            )),
        );
        figures.push(
            Figure::new("spikes per neuron", fixed(&last["spike_rate_mean"], 4), "")
                .note("mean over all spiking neurons, all timesteps"),
        );
        let latency = run.summary("latency_ms");
        figures.push(
            Figure::new("latency, batch 1", fixed(&latency["snn"], 3), "ms").note(format!(
                "libtorch, dense; the artificial network {} ms",
                fixed(&latency["ann"], 3)
            )),
        );
    }
    if let Some(n) = run.summary("parameters").as_f64() {
        figures.push(Figure::new("parameters", large(n), ""));
    }
    if let Some(n) = run.summary("macs").as_f64() {
        figures.push(Figure::new("MACs of an image", large(n), ""));
    }
    let row = |name: &str, t: String, s: &Value| -> Vec<Cell> {
        vec![
            name.into(),
            t.into(),
            percent(&s["val_accuracy"]).into(),
            percent(&s["test_accuracy"]).into(),
            fixed(&s["spike_rate_mean"], 4).into(),
            fixed(&s["energy"]["snn_uj"], 3).into(),
            fixed(&s["energy_ratio"], 2).into(),
            fixed(&s["latency_ms"]["median_ms"], 3).into(),
            fixed(&s["train_seconds"], 0).into(),
        ]
    };
    let mut rows = vec![row("ann", "-".into(), ann)];
    for s in stages(run).iter().chain(list(run.summary("direct"))) {
        rows.push(row(&text(&s["name"]), text(&s["timesteps"]), s));
    }
    let header = [
        "stage",
        "T",
        "validation %",
        "test %",
        "spikes/neuron",
        "energy µJ",
        "energy ratio",
        "ms/image",
        "trained s",
    ];
    let table = Table {
        caption: "Every stage".into(),
        header: header.map(str::to_owned).to_vec(),
        rows,
    };
    vec![Block::Figures(figures), Block::Table(table)]
}

/// From the summary, or from the ends of phases so far.
fn accuracy(run: &Run) -> Option<Block> {
    let ended: Vec<(String, &Value)> = match stages(run) {
        [] => run
            .events_of("phase_ended")
            .map(|e| (text(&e["phase"]), e))
            .collect(),
        stages => {
            let ann = ("ann".to_owned(), run.summary("ann"));
            let others = stages
                .iter()
                .chain(list(run.summary("direct")))
                .map(|s| (text(&s["name"]), s));
            std::iter::once(ann).chain(others).collect()
        }
    };
    if ended.is_empty() {
        return None;
    }
    let values = |key: &str| {
        ended
            .iter()
            .map(|(_, e)| e[key].as_f64().map(|a| 100. * a))
            .collect()
    };
    let lowest = ended
        .iter()
        .filter_map(|(_, e)| e["test_accuracy"].as_f64())
        .fold(1., f64::min);
    let plot = Plot::Bars {
        dots: true,
        x: "stage".into(),
        y: Axis::linear("accuracy (%)"),
        groups: ended.iter().map(|(name, _)| name.clone()).collect(),
        series: vec![
            Bars {
                name: "validation".into(),
                values: values("val_accuracy"),
            },
            Bars {
                name: "test".into(),
                values: values("test_accuracy"),
            },
        ],
    };
    Some(Block::Chart(Chart {
        id: "accuracy".into(),
        title: "Accuracy while T goes down".into(),
        description: format!(
            "Of the artificial network, then of each stage with the weights that were best on validation. The lowest test accuracy is {:.2} %.",
            100. * lowest
        ),
        plot,
    }))
}

fn training(run: &Run) -> Vec<Block> {
    let mut phases: Vec<String> = Vec::new();
    for e in run.events_of("epoch") {
        let phase = text(&e["phase"]);
        if !phases.contains(&phase) {
            phases.push(phase);
        }
    }
    if phases.is_empty() {
        return vec![];
    }
    // Epochs are counted over the whole run.
    let series = |key: &str, scale: f64| -> Vec<Series> {
        let mut before = 0.;
        let mut all = Vec::new();
        for phase in &phases {
            let points: Vec<(f64, f64)> = run
                .events_of("epoch")
                .filter(|e| e["phase"] == phase.as_str())
                .map(|e| {
                    (
                        before + e["epoch"].as_f64().unwrap_or(f64::NAN),
                        scale * e[key].as_f64().unwrap_or(f64::NAN),
                    )
                })
                .collect();
            before = points.last().map_or(before, |p| p.0);
            all.push(Series::new(phase.clone(), points));
        }
        all
    };
    let chart = |id: &str, title: &str, description: &str, y: Axis, series| {
        Block::Chart(Chart {
            id: id.into(),
            title: title.into(),
            description: description.into(),
            plot: Plot::Lines {
                x: Axis::linear("epoch of the whole run"),
                y,
                series,
            },
        })
    };
    vec![
        chart(
            "loss",
            "Training loss",
            "Mean over each epoch; a colour for each phase.",
            Axis::log("loss"),
            series("train_loss", 1.),
        ),
        chart(
            "validation-accuracy",
            "Validation accuracy",
            "After each epoch; a colour for each phase.",
            Axis::linear("accuracy (%)"),
            series("val_accuracy", 100.),
        ),
    ]
}

fn layers(run: &Run) -> Vec<String> {
    let first = stages(run).first().map_or(&Value::Null, |s| &s["layers"]);
    list(first).iter().map(|l| text(&l["layer"])).collect()
}

fn numbers(value: &Value) -> Vec<Option<f64>> {
    list(value).iter().map(Value::as_f64).collect()
}

fn rates(run: &Run) -> Option<Block> {
    let groups = layers(run);
    if groups.is_empty() {
        return None;
    }
    let series = stages(run).iter().map(|s| {
        let t = s["timesteps"].as_f64().unwrap_or(1.);
        Bars {
            name: format!("T={t}"),
            values: numbers(&s["spike_rate_per_layer"])
                .into_iter()
                .map(|r| Some(r? / t))
                .collect(),
        }
    });
    Some(Block::Chart(Chart {
        id: "spike-rates".into(),
        title: "Spikes per neuron and timestep".into(),
        description:
            "Mean over the neurons of a layer and over the test images. What spikes less pays less."
                .into(),
        plot: Plot::Bars {
            dots: false,
            x: "layer".into(),
            y: Axis::linear("spikes per neuron and timestep"),
            groups,
            series: series.collect(),
        },
    }))
}

fn energy(run: &Run) -> Option<Block> {
    let last = stages(run).last()?;
    let layers = list(&last["energy"]["layers"]);
    let of = |key: &str| layers.iter().map(|l| l[key].as_f64()).collect();
    let mut series = vec![Bars {
        name: "artificial".into(),
        values: of("ann_uj"),
    }];
    for s in stages(run) {
        let values = list(&s["energy"]["layers"])
            .iter()
            .map(|l| l["snn_uj"].as_f64())
            .collect();
        series.push(Bars {
            name: format!("T={}", text(&s["timesteps"])),
            values,
        });
    }
    Some(Block::Chart(Chart {
        id: "energy".into(),
        title: "Energy of an image, layer by layer".into(),
        description: format!(
            "An estimate by counted operations at 45 nm ({} pJ a multiply-accumulate, {} pJ an addition), not a measurement; first layer counted {}, pools as {}. Smallest of all: {} µJ.",
            text(&last["energy"]["mac_pj"]),
            text(&last["energy"]["ac_pj"]),
            text(&last["energy"]["first_layer"]),
            text(&last["energy"]["pool"]),
            scientific(
                &layers
                    .iter()
                    .filter_map(|l| l["snn_uj"].as_f64())
                    .reduce(f64::min)
                    .into()
            ),
        ),
        plot: Plot::Bars {
            dots: true,
            x: "layer".into(),
            y: Axis::log("energy (µJ)"),
            groups: layers.iter().map(|l| text(&l["name"])).collect(),
            series,
        },
    }))
}

fn thresholds(run: &Run) -> Option<Block> {
    let groups = layers(run);
    let last = stages(run).last()?;
    let one = |name: &str, key: &str| Bars {
        name: name.into(),
        values: numbers(&last[key]),
    };
    Some(Block::Chart(Chart {
        id: "thresholds".into(),
        title: "Threshold and leak at the last stage".into(),
        description: "As trained, a value for each layer; a leak of 1 forgets nothing.".into(),
        plot: Plot::Bars {
            dots: false,
            x: "layer".into(),
            y: Axis::linear("value"),
            groups,
            series: vec![one("threshold", "thresholds"), one("leak", "leaks")],
        },
    }))
}
