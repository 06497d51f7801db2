use super::*;

fn stage(label: &str, timesteps: u32, val_accuracy: f64, test_accuracy: f64) -> StagePoint {
    StagePoint {
        label: label.to_owned(),
        timesteps,
        val_accuracy,
        test_accuracy,
    }
}

fn full_accuracy() -> AccuracyPlot {
    AccuracyPlot {
        title: "demo-iir: accuracy while T goes down".to_owned(),
        ann_test_accuracy: Some(0.9861),
        stages: vec![
            stage("T=5", 5, 0.9841, 0.9815),
            stage("T=4", 4, 0.9801, 0.9822),
            stage("T=3", 3, 0.9790, 0.9806),
            stage("T=2", 2, 0.9795, 0.9789),
            stage("T=1", 1, 0.9760, 0.9744),
        ],
        direct: vec![
            stage("direct, carried thresholds", 1, 0.96, 0.9540),
            stage("direct, calibrated at T=1", 1, 0.965, 0.9588),
            stage("direct, from scratch", 1, 0.94, 0.9411),
        ],
    }
}

fn rates(layers: usize, stages: &[u32]) -> SpikeRatePlot {
    SpikeRatePlot {
        title: "demo-iir: spike rate per layer and T".to_owned(),
        layers: (0..layers)
            .map(|layer| format!("conv{}.{}", layer / 3 + 1, layer % 3 + 1))
            .collect(),
        stages: stages
            .iter()
            .map(|timesteps| SpikeRateStage {
                label: format!("T={timesteps}"),
                rates: (0..layers)
                    .map(|layer| 0.31 / (1.0 + 0.3 * layer as f64) + 0.01 * f64::from(*timesteps))
                    .collect(),
            })
            .collect(),
    }
}

fn energy(stages: &[(&str, f64)]) -> EnergyPlot {
    EnergyPlot {
        title: "demo-iir: energy per image".to_owned(),
        ann_uj: 14.2,
        stages: stages
            .iter()
            .map(|&(label, energy_uj)| EnergyBar {
                label: label.to_owned(),
                energy_uj,
            })
            .collect(),
    }
}

fn curves(stages: &[(&str, usize)]) -> LossPlot {
    let mut epochs = Vec::new();
    for (number, &(name, count)) in stages.iter().enumerate() {
        for epoch in 0..count {
            let progress = epoch as f64 / count as f64;
            epochs.push(EpochPoint {
                stage: name.to_owned(),
                train_loss: (1.4 - 0.2 * number as f64) * (-2.0 * progress).exp() + 0.1,
                val_accuracy: 0.98 - 0.2 * (-4.0 * progress - number as f64).exp(),
            });
        }
    }
    LossPlot {
        title: "demo-iir: training".to_owned(),
        epochs,
    }
}

/// Where `FEWSTEP_PLOTS` names a folder, the pictures are left there to be looked at.
pub(super) fn check(name: &str, png: Result<Vec<u8>, PlotError>) {
    let height = check_page(name, png);
    assert_eq!(height, 1200, "{name}");
}

/// As [`check`], for pages of any height; returns it.
pub(super) fn check_page(name: &str, png: Result<Vec<u8>, PlotError>) -> u32 {
    let png = png.unwrap();
    let picture = image::load_from_memory(&png).unwrap().to_rgb8();
    assert_eq!(picture.width(), 1800, "{name}");
    let inked = picture.pixels().filter(|pixel| pixel.0 != [255; 3]).count();
    assert!(inked > 20_000, "{name} is nearly blank: {inked} pixels");
    // Nothing is cut off: the outermost pixels are paper.
    let (width, height) = picture.dimensions();
    let edge = picture
        .enumerate_pixels()
        .filter(|(x, y, _)| *x == 0 || *y == 0 || *x == width - 1 || *y == height - 1);
    assert!(
        edge.into_iter().all(|(_, _, pixel)| pixel.0 == [255; 3]),
        "{name} touches the edge"
    );
    if let Some(folder) = std::env::var_os("FEWSTEP_PLOTS") {
        std::fs::write(
            std::path::Path::new(&folder).join(format!("{name}.png")),
            png,
        )
        .unwrap();
    }
    height
}

#[test]
fn accuracy_is_drawn_for_a_full_run_a_single_stage_and_gaps() {
    check("accuracy", accuracy_over_timesteps(&full_accuracy()));
    let single = AccuracyPlot {
        title: "one stage, and a title that is much too long for the page and so has to be cut somewhere near here, or there".to_owned(),
        stages: vec![stage("T=1", 1, 0.5, f64::NAN), stage("T=8", 8, 0.5, 0.5)],
        ..AccuracyPlot::default()
    };
    check("accuracy-gaps", accuracy_over_timesteps(&single));
    let low = AccuracyPlot {
        direct: vec![stage(
            "direct, from scratch, with a rather long name for an arm",
            1,
            0.1,
            0.1,
        )],
        ..full_accuracy()
    };
    check("accuracy-low", accuracy_over_timesteps(&low));
}

#[test]
fn spike_rates_are_drawn_for_few_and_for_many_layers() {
    check("rates", spike_rates(&rates(7, &[5, 4, 3, 2, 1])));
    let mut many = rates(33, &[5, 4, 3, 2, 1]);
    many.stages[1].rates[4] = f64::NAN;
    many.stages[4].rates[20] = 0.0;
    check("rates-many", spike_rates(&many));
    check("rates-single", spike_rates(&rates(1, &[1])));
}

#[test]
fn energy_is_drawn_for_one_stage_and_for_many() {
    let five = [
        ("T=5", 3.9),
        ("T=4", 3.0),
        ("T=3", 2.12),
        ("T=2", 1.35),
        ("T=1", 0.5632),
    ];
    check("energy", energy_bars(&energy(&five)));
    check("energy-single", energy_bars(&energy(&[("T=1", 0.000_4)])));
    let labels: Vec<String> = (1..=12)
        .rev()
        .map(|timesteps| format!("T={timesteps}"))
        .collect();
    let many: Vec<(&str, f64)> = labels
        .iter()
        .enumerate()
        .map(|(at, label)| (label.as_str(), 30.0 / (at + 1) as f64))
        .collect();
    check("energy-many", energy_bars(&energy(&many)));
    check(
        "energy-nan",
        energy_bars(&energy(&[("T=2", f64::NAN), ("T=1", 0.0)])),
    );
}

#[test]
fn training_curves_are_drawn_for_short_and_long_runs() {
    let stages = [
        ("ANN", 12),
        ("T=5", 6),
        ("T=4", 4),
        ("T=3", 4),
        ("T=2", 4),
        ("T=1", 4),
    ];
    check("loss", loss_curves(&curves(&stages)));
    let mut long = curves(&[
        ("ANN", 300),
        ("T=5", 120),
        ("T=4", 6),
        ("T=3", 60),
        ("T=2", 60),
        ("T=1", 60),
    ]);
    long.epochs[50].train_loss = f64::NAN;
    check("loss-long", loss_curves(&long));
    check("loss-single", loss_curves(&curves(&[("ANN", 1)])));
}

#[test]
fn values_beyond_reason_still_make_a_plot() {
    let mut exploded = curves(&[("ANN", 4)]);
    exploded.epochs[3].train_loss = 3.7e30;
    exploded.epochs[2].val_accuracy = f64::INFINITY;
    check("loss-exploded", loss_curves(&exploded));
    let mut nan = full_accuracy();
    nan.ann_test_accuracy = Some(f64::NAN);
    nan.direct[1].test_accuracy = f64::NAN;
    check("accuracy-nan", accuracy_over_timesteps(&nan));
    let unnamed = EnergyPlot {
        ann_uj: 0.0,
        ..energy(&[("", 0.0)])
    };
    check("energy-zero", energy_bars(&unnamed));
}

#[test]
fn nothing_to_show_is_an_error_that_says_what_is_missing() {
    let errors = [
        accuracy_over_timesteps(&AccuracyPlot::default()),
        spike_rates(&SpikeRatePlot::default()),
        energy_bars(&EnergyPlot::default()),
        loss_curves(&LossPlot::default()),
    ];
    for error in errors {
        assert!(matches!(error, Err(PlotError::Empty { .. })), "{error:?}");
    }
    let mut uneven = rates(3, &[2, 1]);
    uneven.stages[1].rates.pop();
    let message = spike_rates(&uneven).unwrap_err().to_string();
    insta::assert_snapshot!(message, @"the plot of spike rates: stage `T=1` must have 3 rates, one for each layer, but has 2");
}
