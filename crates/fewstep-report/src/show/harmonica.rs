//! Routers that are learned, and cache policies beside each other.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{duration, fixed, list, scientific, text};
use crate::page::{
    Axis, Block, Cell, Cells, Chart, Choice, Family, Figure, Heatmap, Plot, Section, Series, Table,
    front,
};
use crate::run::{PlanFile, Run};

pub(super) fn sections(run: &Run) -> Vec<Section> {
    let section = |title: &str, blocks| Section {
        title: title.into(),
        blocks,
    };
    vec![
        section("Result", result(run)),
        section(
            "Speed and quality",
            [tradeoff(run), error_per_step(run)]
                .into_iter()
                .flatten()
                .collect(),
        ),
        section("Where work is skipped", heatmaps(run)),
        section("Learning", learning(run)),
    ]
}

/// A column of the table of policies: its heading, the key in the summary, and how the value is written.
type Column = (&'static str, &'static str, fn(&Value) -> String);

fn policies(run: &Run) -> &[Value] {
    list(run.summary("policies"))
}

fn named(policy: &Value) -> String {
    format!("{} {}", text(&policy["name"]), text(&policy["label"]))
        .trim()
        .to_owned()
}

fn result(run: &Run) -> Vec<Block> {
    let mut figures = Vec::new();
    if let Some(uncached) = policies(run).iter().find(|p| p["name"] == "none") {
        figures.push(
            Figure::new(
                "uncached",
                fixed(&uncached["latency_ms_per_image"], 2),
                "ms an image",
            )
            .note(format!("{} steps", text(run.summary("steps")))),
        );
    }
    // What the run was for: the learned router at its own threshold; without one, the nearest to the uncached run at the first asked saving.
    let learned = policies(run)
        .iter()
        .find(|p| p["name"] == "harmonica" && text(&p["label"]).contains("r >"));
    let matched = list(run.summary("matched_saving")).first();
    if let Some(p) = learned.or(matched) {
        let name = named(p);
        figures.push(
            Figure::new("MAC saving", fixed(&p["mac_saving_percent"], 1), "%").note(name.clone()),
        );
        figures.push(Figure::new("speed-up", fixed(&p["speedup"], 2), "×").note(name.clone()));
        figures.push(
            Figure::new("error of x0", scientific(&p["x0_mse_vs_uncached"]), "MSE")
                .note("against the uncached run from the same noise"),
        );
        for (key, label) in [("fd", "fd"), ("fd_resnet56", "fd-resnet56")] {
            if p[key].is_number() {
                let uncached = policies(run)
                    .iter()
                    .find(|p| p["name"] == "none")
                    .map_or(&Value::Null, |p| &p[key]);
                figures.push(
                    Figure::new(label, fixed(&p[key], 3), "")
                        .note(format!("uncached {}", fixed(uncached, 3))),
                );
            }
        }
    }
    for router in list(run.summary("routers")) {
        if let Some(s) = router["train_seconds"].as_f64() {
            figures.push(
                Figure::new(
                    &format!("learning of {}", text(&router["name"])),
                    duration(s),
                    "",
                )
                .note(format!("{} trajectories", text(&router["trajectories"]))),
            );
        }
    }
    let mut blocks = Vec::new();
    if !figures.is_empty() {
        blocks.push(Block::Figures(figures));
    }
    if !policies(run).is_empty() {
        let some = |key: &str| policies(run).iter().any(|p| p[key].is_number());
        let mut columns: Vec<Column> = vec![
            ("CUR %", "cur_percent", |v| fixed(v, 1)),
            ("MAC saving %", "mac_saving_percent", |v| fixed(v, 1)),
            ("ms/image", "latency_ms_per_image", |v| fixed(v, 2)),
            ("speed-up", "speedup", |v| fixed(v, 2)),
            ("x0 MSE", "x0_mse_vs_uncached", scientific),
            ("fd", "fd", |v| fixed(v, 3)),
            ("fd-resnet56", "fd_resnet56", |v| fixed(v, 4)),
            ("recognised %", "recognised_percent", |v| fixed(v, 1)),
        ];
        columns.retain(|(_, key, _)| some(key));
        let header = ["policy", "setting"]
            .into_iter()
            .chain(columns.iter().map(|(name, ..)| *name));
        let row = |p: &Value| -> Vec<Cell> {
            let first = [text(&p["name"]).into(), text(&p["label"]).into()];
            first
                .into_iter()
                .chain(columns.iter().map(|(_, key, show)| show(&p[*key]).into()))
                .collect()
        };
        blocks.push(Block::Table(Table {
            caption: format!(
                "All policies, {} images from the same noise",
                text(run.summary("images"))
            ),
            header: header.map(str::to_owned).collect(),
            rows: policies(run).iter().map(row).collect(),
        }));
    }
    blocks.extend(matched_table(run));
    blocks
}

fn matched_table(run: &Run) -> Option<Block> {
    let all = list(run.summary("matched_latency"));
    if all.is_empty() {
        return None;
    }
    let rows = all
        .iter()
        .map(|m| {
            vec![
                Cell::from(format!("{}×", fixed(&m["speedup"], 2))),
                text(&m["name"]).into(),
                text(&m["from"]).into(),
                fixed(&m["latency_ms_per_image"], 2).into(),
                scientific(&m["x0_mse_vs_uncached"]).into(),
            ]
        })
        .collect();
    Some(Block::Table(Table {
        caption: "At the same time (between two measured settings of a policy)".into(),
        header: ["speed-up", "policy", "between", "ms/image", "x0 MSE"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    }))
}

fn tradeoff(run: &Run) -> Option<Block> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for p in policies(run).iter().filter(|p| p["name"] != "none") {
        let (Some(ms), Some(mse)) = (
            p["latency_ms_per_image"].as_f64(),
            p["x0_mse_vs_uncached"].as_f64(),
        ) else {
            continue;
        };
        let name = text(&p["name"]);
        let family = families.entry(name.clone()).or_insert_with(|| Family {
            name,
            labels: vec![],
            points: vec![],
        });
        family.labels.push(text(&p["label"]));
        family.points.push((ms, mse));
    }
    if families.is_empty() {
        return None;
    }
    Some(Block::Chart(Chart {
        id: "speed-against-quality".into(),
        title: "Speed against quality".into(),
        description: "Each point is a policy at one setting: to the left is faster, below is nearer to the uncached run. The dashed line joins those that none beats in both.".into(),
        plot: Plot::Points {
            x: Axis::linear("milliseconds an image"),
            y: Axis::log("x0 MSE against the uncached run"),
            front: front(families.values().flat_map(|f| f.points.clone())),
            families: families.into_values().collect(),
        },
    }))
}

fn error_per_step(run: &Run) -> Option<Block> {
    let series: Vec<_> = policies(run)
        .iter()
        .filter(|p| p["name"] != "none")
        .filter_map(|p| {
            let errors = list(&p["error_per_step"]);
            let points = errors
                .iter()
                .enumerate()
                .map(|(n, e)| (n as f64 + 1., e.as_f64().unwrap_or(f64::NAN)));
            (!errors.is_empty()).then(|| Series::new(named(p), points))
        })
        .collect();
    (!series.is_empty()).then(|| {
        Block::Chart(Chart {
            id: "error-per-step".into(),
            title: "How the error grows from step to step".into(),
            description: "Mean squared error of the latents after each executed step against the uncached run.".into(),
            plot: Plot::Lines {
                x: Axis::linear("executed step"),
                y: Axis::log("MSE of x_t"),
                series,
            },
        })
    })
}

/// A1, M1, A2 … for sub-modules in the order of a plan's letters.
fn sub_modules(n: usize) -> Vec<String> {
    let name = |m: usize| {
        format!(
            "block {} {}",
            m / 2 + 1,
            if m.is_multiple_of(2) {
                "attention"
            } else {
                "MLP"
            }
        )
    };
    (0..n).map(name).collect()
}

fn columns(timesteps: &[f64]) -> Vec<String> {
    timesteps
        .iter()
        .enumerate()
        .map(|(n, t)| format!("{} (t = {t:.0})", n + 1))
        .collect()
}

fn heatmaps(run: &Run) -> Vec<Block> {
    let mut blocks = Vec::new();
    let routers: Vec<_> = list(run.summary("routers"))
        .iter()
        .filter_map(router)
        .collect();
    if !routers.is_empty() {
        blocks.push(Block::Charts(Choice {
            id: "routers".into(),
            label: "Router".into(),
            charts: routers,
        }));
    }
    let skips = |p: &&PlanFile| p.steps.iter().any(|s| s.bytes().any(|b| b != b'C'));
    let plans: Vec<_> = run
        .plans
        .iter()
        .filter(skips)
        .enumerate()
        .map(|(n, p)| plan(n, p))
        .collect();
    if !plans.is_empty() {
        blocks.push(Block::Charts(Choice {
            id: "plans".into(),
            label: "Cache plan".into(),
            charts: plans,
        }));
    }
    blocks
}

fn router(told: &Value) -> Option<(String, Chart)> {
    let name = text(&told["name"]);
    let by_step: Vec<Vec<f64>> = list(&told["probabilities"])
        .iter()
        .map(|row| list(row).iter().filter_map(Value::as_f64).collect())
        .collect();
    let modules = by_step.first()?.len();
    let timesteps: Vec<f64> = list(&told["timesteps"])
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    if timesteps.len() != by_step.len() || by_step.iter().any(|row| row.len() != modules) {
        return None;
    }
    let threshold = told["threshold"].as_f64()?;
    let reused = by_step
        .iter()
        .flatten()
        .filter(|p| **p <= threshold)
        .count();
    let chart = Chart {
        id: format!("router-{}", id(&name)),
        title: format!("Router {name}"),
        description: format!(
            "The probability that a sub-module is computed, as learned; at or below the threshold {threshold} it is reused ({reused} of {} cells).",
            modules * by_step.len()
        ),
        plot: Plot::Heatmap(Heatmap {
            x: "executed step".into(),
            columns: columns(&timesteps),
            y: "sub-module".into(),
            rows: sub_modules(modules),
            cells: Cells::Probabilities {
                values: (0..modules)
                    .map(|m| by_step.iter().map(|row| row[m]).collect())
                    .collect(),
                threshold,
            },
        }),
    };
    Some((name, chart))
}

fn plan(n: usize, plan: &PlanFile) -> (String, Chart) {
    let modules = plan.steps.first().map_or(0, String::len);
    let letter = |m: usize, step: &String| char::from(step.as_bytes()[m]);
    let computed = plan
        .steps
        .iter()
        .flat_map(|s| s.bytes())
        .filter(|b| *b == b'C')
        .count();
    let all = modules * plan.steps.len();
    let chart = Chart {
        id: format!("plan-{n}"),
        title: format!("Cache plan {}", plan.name),
        description: format!(
            "What is computed at each executed step; {} of {all} cells are reused or forecast.",
            all - computed
        ),
        plot: Plot::Heatmap(Heatmap {
            x: "executed step".into(),
            columns: columns(&plan.timesteps),
            y: "sub-module".into(),
            rows: sub_modules(modules),
            cells: Cells::Decisions {
                rows: (0..modules)
                    .map(|m| plan.steps.iter().map(|s| letter(m, s)).collect())
                    .collect(),
            },
        }),
    };
    (plan.name.clone(), chart)
}

fn id(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect()
}

fn learning(run: &Run) -> Vec<Block> {
    let mut routers: Vec<String> = Vec::new();
    for e in run.events_of("scalar") {
        if let Some((router, "loss")) = e["tag"].as_str().and_then(|t| t.split_once('/'))
            && !routers.iter().any(|r| r == router)
        {
            routers.push(router.to_owned());
        }
    }
    if routers.is_empty() {
        return vec![];
    }
    let chart = |id: &str, title: &str, description: &str, y: Axis, curve: &str| {
        let series = routers
            .iter()
            .map(|r| Series::new(r.clone(), run.curve(&format!("{r}/{curve}"))));
        Block::Chart(Chart {
            id: id.into(),
            title: title.into(),
            description: description.into(),
            plot: Plot::Lines {
                x: Axis::linear("trajectory"),
                y,
                series: series.collect(),
            },
        })
    };
    let mut blocks = vec![
        chart(
            "learning-loss",
            "Loss of the router",
            "Of each trajectory that it was trained on.",
            Axis::log("loss"),
            "loss",
        ),
        chart(
            "learning-saving",
            "MAC saving while learning",
            "What the router of that moment would save.",
            Axis::linear("MAC saving (%)"),
            "mac_saving_percent",
        ),
    ];
    if routers
        .iter()
        .any(|r| run.curve(&format!("{r}/x0_mse")).iter().any(|p| p.1 > 0.))
    {
        blocks.push(chart(
            "learning-x0",
            "Error of x0 while learning",
            "Measured at each checkpoint.",
            Axis::log("x0 MSE"),
            "x0_mse",
        ));
    }
    blocks
}
