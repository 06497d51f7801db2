//! `summary.json`, the plots, and the table at the end of a run.

use anyhow::Result;
use fewstep_datasets::ImageShape;
use fewstep_iir::{Data, Report, StageResult};
use fewstep_torch::device;
use serde_json::{Value, json};
use tch::Device;

use crate::experiment::Experiment;
use crate::plot;
use crate::report::{self, ReportRow, Style};
use crate::run::RunFolder;

/// Writes `summary.json`, `table.md` and the plots. The summary comes last: it says that the run is finished.
pub(crate) fn write(
    folder: &mut RunFolder,
    experiment: &Experiment,
    data: &Data,
    stand_in: bool,
    device: Device,
    report: &Report,
    ranks: usize,
) -> Result<()> {
    plots(folder, report)?;
    let (train, validation, test) = data.counts();
    let ImageShape {
        channels,
        height,
        width,
    } = data.shape();
    let statistics = data.statistics();
    let last = report.stages.last();
    let summary = json!({
        "method": experiment.method,
        "name": experiment.name,
        "dataset": data.name(),
        // Noise took the data's place: accuracies mean nothing.
        "synthetic_data": stand_in,
        // What a network that is taken elsewhere must know of its images.
        "images": {
            "train": train, "validation": validation, "test": test, "shape_chw": [channels, height, width],
            "mean": statistics.mean, "std": statistics.std, "classes": data.class_names(),
        },
        "network": experiment.network.architecture,
        "parameters": report.parameters,
        "macs": report.macs,
        "seed": experiment.seed,
        "device": device::name(device),
        "threads": tch::get_num_threads(),
        "ranks": ranks,
        "limited_to_batches": experiment.limits.batches,
        "seconds": folder.elapsed_s(),
        "ann": report.ann,
        "calibrated_thresholds": report.calibrated,
        "stages": report.stages,
        "direct": report.direct,
        "energy": last.map(|s| json!({"ann_uj": s.energy.ann_uj, "snn_uj": s.energy.snn_uj, "timesteps": s.timesteps, "first_layer": s.energy.first_layer, "pool": s.energy.pool})),
        "latency_ms": {"ann": report.ann.latency_ms.median_ms, "snn": last.map(|s| s.latency_ms.median_ms), "batch": 1},
        "versions": crate::run::versions(),
    });
    folder.write_table(&report::to_markdown(&rows(report)))?;
    folder.write_summary(&summary)?;
    super::report::of_run(folder);
    Ok(())
}

/// Prints the table and what was won, or the summary.
pub(crate) fn print(folder: &RunFolder, report: &Report, as_json: bool) -> Result<()> {
    if as_json {
        return super::print(std::fs::read_to_string(folder.path("summary.json"))?.trim_end());
    }
    super::print(&report::table(&rows(report), Style::detect()))?;
    if let Some(last) = report.stages.last() {
        super::print(&format!(
            "one image at T={}: {:.3} µJ against {:.3} µJ of the artificial network (45 nm estimate), {:.1} times less, at {:+.2} points of test accuracy",
            last.timesteps,
            last.energy.snn_uj,
            last.energy.ann_uj,
            last.energy_ratio,
            100. * (last.test_accuracy - report.ann.test_accuracy),
        ))?;
        for s in report.stages.iter().chain(&report.direct) {
            for w in &s.warnings {
                super::print(&format!("{}: {w}", s.name))?;
            }
        }
    }
    super::print(&format!(
        "figures, plots and checkpoints: {}; to look at: {}",
        folder.path("").display(),
        folder.path("report.html").display()
    ))
}

fn rows(report: &Report) -> Vec<ReportRow> {
    let ann = ReportRow {
        stage: "ann".into(),
        timesteps: None,
        val_accuracy: Some(report.ann.val_accuracy),
        test_accuracy: Some(report.ann.test_accuracy),
        spike_rate_mean: None,
        energy_ratio: None,
        ms_per_image: Some(report.ann.latency_ms.median_ms),
    };
    let row = |s: &StageResult| ReportRow {
        stage: s.name.clone(),
        timesteps: Some(s.timesteps),
        val_accuracy: Some(s.val_accuracy),
        test_accuracy: Some(s.test_accuracy),
        spike_rate_mean: Some(s.spike_rate_mean),
        energy_ratio: Some(s.energy_ratio),
        ms_per_image: Some(s.latency_ms.median_ms),
    };
    std::iter::once(ann)
        .chain(report.stages.iter().chain(&report.direct).map(row))
        .collect()
}

fn plots(folder: &mut RunFolder, report: &Report) -> Result<()> {
    let name = folder.name().to_owned();
    let point = |s: &StageResult| plot::StagePoint {
        label: s.name.clone(),
        timesteps: s.timesteps,
        val_accuracy: s.val_accuracy,
        test_accuracy: s.test_accuracy,
    };
    let accuracy = plot::accuracy_over_timesteps(&plot::AccuracyPlot {
        title: format!("{name}: accuracy while T goes down"),
        ann_test_accuracy: Some(report.ann.test_accuracy),
        stages: report.stages.iter().map(point).collect(),
        direct: report.direct.iter().map(point).collect(),
    })?;
    folder.plot("accuracy", &accuracy)?;
    let layers = report
        .stages
        .first()
        .map(|s| s.layers.iter().map(|l| l.layer.clone()).collect())
        .unwrap_or_default();
    let rates = plot::spike_rates(&plot::SpikeRatePlot {
        title: format!("{name}: spikes per neuron and timestep"),
        layers,
        stages: report
            .stages
            .iter()
            .map(|s| plot::SpikeRateStage {
                label: format!("T={}", s.timesteps),
                rates: s
                    .spike_rate_per_layer
                    .iter()
                    .map(|r| r / f64::from(s.timesteps))
                    .collect(),
            })
            .collect(),
    })?;
    folder.plot("spike-rates", &rates)?;
    let energy = plot::energy_bars(&plot::EnergyPlot {
        title: format!("{name}: energy of one image (45 nm estimate)"),
        ann_uj: report.stages.first().map_or(0., |s| s.energy.ann_uj),
        stages: report
            .stages
            .iter()
            .map(|s| plot::EnergyBar {
                label: format!("T={}", s.timesteps),
                energy_uj: s.energy.snn_uj,
            })
            .collect(),
    })?;
    folder.plot("energy", &energy)?;
    let number = |e: &Value, key: &str| e[key].as_f64().unwrap_or(f64::NAN);
    let epochs = folder
        .events()?
        .iter()
        .filter(|e| e["kind"] == "epoch")
        .map(|e| plot::EpochPoint {
            stage: e["phase"].as_str().unwrap_or_default().to_owned(),
            train_loss: number(e, "train_loss"),
            val_accuracy: number(e, "val_accuracy"),
        })
        .collect();
    let loss = plot::loss_curves(&plot::LossPlot {
        title: format!("{name}: training"),
        epochs,
    })?;
    folder.plot("loss", &loss)?;
    Ok(())
}
