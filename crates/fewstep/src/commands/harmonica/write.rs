//! `summary.json`, plans, plots and the table of a comparison.

use anyhow::Result;
use fewstep_harmonica::{CachePlan, Router, Setting};
use fewstep_torch::checkpoint::write_atomically;
use fewstep_torch::device;
use serde_json::json;
use tch::Device;

use super::Named;
use super::compare::Compared;
use super::matched::{self, AtLatency, AtSaving};
use crate::experiment::HarmonicaExperiment;
use crate::images;
use crate::plot::{self, PlanCells};
use crate::report::{self, Style};
use crate::run::RunFolder;

/// Images of each grid that is shown side by side.
const SHOWN: usize = 40;

/// Policies whose samples become pictures of their own, and about how many pixels such a picture may have.
const MOST_SAMPLED: usize = 16;
const MOST_PIXELS: usize = 1 << 20;

/// Writes everything; the summary comes last: it says that the run is finished.
pub(super) fn write(
    folder: &mut RunFolder,
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    routers: &[Named],
    all: &[Compared],
    device: Device,
    ranks: usize,
) -> Result<()> {
    for router in routers {
        let title = format!("{}: router {}", folder.name(), router.name);
        let plan = all
            .iter()
            .find(|c| {
                c.plan
                    .as_ref()
                    .is_some_and(|p| settled(p, &router.learned.router))
            })
            .and_then(|c| c.plan.as_ref());
        let picture = plot::plan_heatmap(&router_plot(&title, &router.learned.router, plan))?;
        folder.plot(&format!("router-{}", router.name), &picture)?;
        curves(folder, &router.name)?;
    }
    for compared in all {
        if let Some(plan) = &compared.plan {
            let name = file_name(compared);
            plan.save(&folder.path(format!("plan-{name}.toml")))?;
            if ["harmonica", "l2c"].contains(&compared.name.as_str()) {
                let title = format!("{}: {} {}", folder.name(), compared.name, compared.label);
                folder.plot(
                    &format!("plan-{name}"),
                    &plot::plan_heatmap(&plan_plot(&title, plan))?,
                )?;
            }
        }
    }
    pictures(folder, all)?;
    folder.write_table(&report::markdown(&HEADER, &rows(all)))?;
    write_atomically(
        &folder.path("table.csv"),
        report::csv(&HEADER, &rows(all)).as_bytes(),
    )?;
    let matched = Matched::new(experiment, all);
    matched.write(folder)?;
    let router = routers
        .iter()
        .find(|r| r.name == "harmonica")
        .or(routers.first());
    let told = |r: &Named| {
        json!({
            "name": r.name,
            "train_seconds": r.learned.seconds,
            "trajectories": r.trajectories,
            "threshold": r.learned.router.threshold(),
            "training": r.learned.router.training(),
            "file": format!("router-{}.safetensors", r.name),
            // In the order of execution, a row for each step.
            "timesteps": in_order(&r.learned.router.made_for().timesteps),
            "probabilities": in_order(&r.learned.router.probabilities()),
        })
    };
    folder.write_summary(&json!({
        "method": experiment.method,
        "name": experiment.name,
        "model": {
            "checkpoint": experiment.model.checkpoint,
            "fingerprint": setting.conditions.model,
            "shape": setting.dit.config(),
            "parameters": setting.dit.config().parameters(),
            "macs": setting.dit.config().macs().total(),
        },
        "steps": setting.conditions.steps(),
        "sampler": setting.conditions.sampler,
        "guidance": experiment.guidance,
        "images": experiment.evaluation.images,
        "batch_size": experiment.evaluation.batch_size,
        "classifier": experiment.evaluation.classifier,
        "policies": all,
        "matched_saving": matched.savings,
        "matched_latency": matched.latencies,
        "router": router.map(told),
        "routers": routers.iter().map(told).collect::<Vec<_>>(),
        "seed": experiment.seed,
        "device": device::name(device),
        "threads": tch::get_num_threads(),
        "ranks": ranks,
        "seconds": folder.elapsed_s(),
        "versions": crate::run::versions(),
    }))?;
    super::super::report::of_run(folder);
    Ok(())
}

/// The policies beside each other at the same saving and at the same time.
pub(super) struct Matched {
    savings: Vec<AtSaving>,
    latencies: Vec<AtLatency>,
}

impl Matched {
    pub(super) fn new(experiment: &HarmonicaExperiment, all: &[Compared]) -> Self {
        let mut asked = experiment.evaluation.mac_savings_percent.clone();
        asked.retain(|saving| *saving > 0.);
        asked.sort_by(f64::total_cmp);
        Self {
            savings: matched::at_savings(all, &asked),
            latencies: matched::at_latencies(all, &asked),
        }
    }

    /// Nothing where no saving was asked for.
    fn write(&self, folder: &RunFolder) -> Result<()> {
        if self.savings.is_empty() {
            return Ok(());
        }
        let files = [
            (
                "matched-saving",
                report::markdown(&AtSaving::HEADER, &self.saving_rows()),
                report::csv(&AtSaving::HEADER, &self.saving_rows()),
            ),
            (
                "matched-latency",
                report::markdown(&AtLatency::HEADER, &self.latency_rows()),
                report::csv(&AtLatency::HEADER, &self.latency_rows()),
            ),
        ];
        for (name, markdown, csv) in files {
            let markdown = format!("{markdown}\n");
            write_atomically(&folder.path(format!("{name}.md")), markdown.as_bytes())?;
            write_atomically(&folder.path(format!("{name}.csv")), csv.as_bytes())?;
        }
        Ok(())
    }

    fn saving_rows(&self) -> Vec<[String; 8]> {
        self.savings.iter().map(AtSaving::row).collect()
    }

    fn latency_rows(&self) -> Vec<[String; 5]> {
        self.latencies.iter().map(AtLatency::row).collect()
    }

    /// Both tables as text.
    pub(super) fn print(&self) -> Result<()> {
        if self.savings.is_empty() {
            return Ok(());
        }
        let style = Style::detect();
        super::super::print("At the same MAC saving, nearest to the uncached run first:")?;
        let table = report::text(&AtSaving::HEADER, &self.saving_rows(), style);
        super::super::print(&table)?;
        super::super::print("At the same time:")?;
        super::super::print(&report::text(
            &AtLatency::HEADER,
            &self.latency_rows(),
            style,
        ))
    }
}

/// Prints the table and where the rest is, or the summary.
pub(super) fn print(folder: &RunFolder, all: &[Compared], as_json: bool) -> Result<()> {
    if as_json {
        return super::super::print(
            std::fs::read_to_string(folder.path("summary.json"))?.trim_end(),
        );
    }
    super::super::print(&report::text(&HEADER, &rows(all), Style::detect()))?;
    super::super::print(&format!(
        "plans, routers and plots: {}; to look at: {}",
        folder.path("").display(),
        folder.path("report.html").display()
    ))
}

const HEADER: [&str; 10] = [
    "policy",
    "",
    "CUR %",
    "MAC saving %",
    "ms/image",
    "speed-up",
    "x0 MSE",
    "fd",
    "fd-resnet56",
    "recognised %",
];

fn rows(all: &[Compared]) -> Vec<[String; 10]> {
    let or_none =
        |v: Option<f64>, digits: usize| v.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"));
    all.iter()
        .map(|c| {
            [
                c.name.clone(),
                c.label.clone(),
                format!("{:.1}", c.cur_percent),
                format!("{:.1}", c.mac_saving_percent),
                format!("{:.2}", c.latency_ms_per_image),
                format!("{:.2}", c.speedup),
                match c.x0_mse_vs_uncached {
                    0. => "0".into(),
                    mse => format!("{mse:.2e}"),
                },
                or_none(c.fd, 3),
                or_none(c.fd_resnet56, 4),
                or_none(c.recognised_percent, 1),
            ]
        })
        .collect()
}

/// `harmonica`, `fora-every-2`, …
fn file_name(compared: &Compared) -> String {
    let name = format!("{} {}", compared.name, compared.label);
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-');
    words
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// Whether the plan is what this router says at its own threshold.
fn settled(plan: &CachePlan, router: &Router) -> bool {
    let settings = plan.settings();
    settings.get("router").and_then(|v| v.as_str()) == Some(&router.fingerprint())
        && settings.get("threshold").and_then(|v| v.as_float()) == Some(router.threshold())
}

/// The probabilities of a router, in the order of execution.
pub(crate) fn router_plot(
    title: &str,
    router: &Router,
    plan: Option<&CachePlan>,
) -> plot::PlanPlot {
    let mut values = router.probabilities();
    values.reverse();
    plot::PlanPlot {
        title: title.to_owned(),
        timesteps: timesteps(&router.made_for().timesteps),
        parts: vec!["A".into(), "M".into()],
        parts_meaning: PARTS.into(),
        cells: PlanCells::Probabilities {
            values,
            threshold: router.threshold(),
        },
        utilisation: plan.map_or(0., CachePlan::utilisation),
        mac_saving: plan.map_or(0., CachePlan::mac_saving),
    }
}

/// A plan, in the order of execution.
pub(crate) fn plan_plot(title: &str, plan: &CachePlan) -> plot::PlanPlot {
    let computed = |row| plan.row(row).iter().map(|reused| !reused).collect();
    plot::PlanPlot {
        title: title.to_owned(),
        timesteps: timesteps(&plan.made_for().timesteps),
        parts: vec!["A".into(), "M".into()],
        parts_meaning: PARTS.into(),
        cells: PlanCells::Decisions((0..plan.steps()).rev().map(computed).collect()),
        utilisation: plan.utilisation(),
        mac_saving: plan.mac_saving(),
    }
}

const PARTS: &str = "A attention, M MLP";

/// Rows go from the last executed call to the first.
fn in_order<T: Clone>(rows: &[T]) -> Vec<T> {
    rows.iter().rev().cloned().collect()
}

/// Of each executed call; rows are the other way round.
fn timesteps(rows: &[f64]) -> Vec<u32> {
    rows.iter().rev().map(|t| t.round() as u32).collect()
}

fn curves(folder: &mut RunFolder, router: &str) -> Result<()> {
    let mut points: Vec<plot::LearningPoint> = Vec::new();
    for event in folder.events()?.iter().filter(|e| e["kind"] == "scalar") {
        let Some(curve) = event["tag"]
            .as_str()
            .and_then(|tag| tag.strip_prefix(router)?.strip_prefix('/'))
        else {
            continue;
        };
        let value = event["value"].as_f64().unwrap_or(f64::NAN);
        let trajectory = event["step"].as_u64().unwrap_or(0);
        match (curve, points.last_mut()) {
            ("loss", _) => points.push(plot::LearningPoint {
                trajectory,
                loss: value,
                utilisation: 0.,
                mac_saving: 0.,
            }),
            ("utilisation_percent", Some(last)) => last.utilisation = value / 100.,
            ("mac_saving_percent", Some(last)) => last.mac_saving = value / 100.,
            _ => {}
        }
    }
    if points.is_empty() {
        // Learned by another run.
        return Ok(());
    }
    let picture = plot::learning(&plot::LearningPlot {
        title: format!("{}: learning {router}", folder.name()),
        points,
    })?;
    folder.plot(&format!("learning-{router}"), &picture)?;
    Ok(())
}

fn pictures(folder: &mut RunFolder, all: &[Compared]) -> Result<()> {
    let name = folder.name().to_owned();
    let named = |c: &Compared| format!("{} {}", c.name, c.label).trim().to_owned();
    let errors = plot::error_per_step(&plot::StepErrorPlot {
        title: format!("{name}: error of x_t against the uncached run"),
        policies: all
            .iter()
            .filter(|c| c.name != "none" && !c.error_per_step.is_empty())
            .map(|c| plot::StepErrors {
                family: c.name.clone(),
                label: named(c),
                mse: c.error_per_step.clone(),
            })
            .collect(),
    });
    // Fewer steps alone have no error at the steps of the uncached run.
    if let Ok(errors) = errors {
        folder.plot("error-per-step", &errors)?;
    }
    let tradeoff = plot::speed_against_quality(&plot::TradeoffPlot {
        title: format!("{name}: speed against quality"),
        speed: plot::Speed::LatencyMs,
        points: all
            .iter()
            .map(|c| plot::TradeoffPoint {
                family: c.name.clone(),
                label: c.label.clone(),
                speed: c.latency_ms_per_image,
                mse: c.x0_mse_vs_uncached,
            })
            .collect(),
    })?;
    folder.plot("speed-against-quality", &tradeoff)?;
    // The uncached run, each learned router at its own threshold, and the first of the simple ways.
    let mut simple = vec!["fewer-steps", "fora"];
    let shown = all.iter().filter(|c| {
        let first = simple.iter().position(|name| *name == c.name);
        first.map(|i| simple.remove(i)).is_some() || c.name == "none" || c.label.contains("r >")
    });
    let panels: Vec<_> = shown
        .filter_map(|c| {
            let pixels = c.pixels.as_ref()?;
            let n = SHOWN.min(pixels.dim().0);
            Some(plot::CaptionedImages {
                name: named(c),
                latency_ms: Some(c.latency_ms_per_image),
                mse: Some(c.x0_mse_vs_uncached),
                images: pixels.slice(ndarray::s![..n, .., .., ..]).to_owned(),
            })
        })
        .take(6)
        .collect();
    samples(folder, all)?;
    if !panels.is_empty() {
        let picture = plot::side_by_side(&plot::SideBySidePlot {
            title: format!("{name}: the same noise under each policy"),
            panels,
            columns: Some(10),
        })?;
        folder.plot("side-by-side", &picture)?;
    }
    Ok(())
}

/// The first images of each policy as a picture of its own: a report shows any two behind a slider.
fn samples(folder: &mut RunFolder, all: &[Compared]) -> Result<()> {
    for compared in all.iter().take(MOST_SAMPLED) {
        let Some(pixels) = &compared.pixels else {
            continue;
        };
        let (count, height, width, _) = pixels.dim();
        let n = (MOST_PIXELS / (height * width).max(1))
            .clamp(4, SHOWN)
            .min(count);
        let layout = images::GridLayout {
            columns: Some(n.div_ceil(4).clamp(2, 10)),
            ..images::GridLayout::default()
        };
        let grid = images::grid(pixels.slice(ndarray::s![..n, .., .., ..]), layout)?;
        folder.plot(
            &format!("samples-{}", file_name(compared)),
            &images::png(grid.view())?,
        )?;
    }
    Ok(())
}
