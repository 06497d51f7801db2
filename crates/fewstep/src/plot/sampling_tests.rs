use ndarray::Array4;

use super::tests::{check, check_page};
use super::*;

/// Deterministic values in [0, 1).
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn plan(steps: usize, blocks: usize, cells: impl Fn(Vec<Vec<f64>>) -> PlanCells) -> PlanPlot {
    let mut next = noise(7);
    let mut value = |step: usize| match step {
        0 => 0.993,
        _ => 1.0 / (1.0 + (8.0 * (next() - 0.55)).exp()),
    };
    let values: Vec<Vec<f64>> = (0..steps)
        .map(|step| (0..2 * blocks).map(|_| value(step)).collect())
        .collect();
    PlanPlot {
        title: format!("harmonica: what is computed at which of {steps} DDIM steps"),
        timesteps: (0..steps)
            .map(|step| (999 - 999 * step / (steps - 1).max(1)) as u32)
            .collect(),
        parts: vec!["A".to_owned(), "M".to_owned()],
        parts_meaning: "A attention, M MLP".to_owned(),
        cells: cells(values),
        utilisation: 0.375,
        mac_saving: 0.3612,
    }
}

fn decided(values: Vec<Vec<f64>>) -> PlanCells {
    let row = |row: Vec<f64>| row.into_iter().map(|value| value > 0.5).collect();
    PlanCells::Decisions(values.into_iter().map(row).collect())
}

fn routed(threshold: f64) -> impl Fn(Vec<Vec<f64>>) -> PlanCells {
    move |values| PlanCells::Probabilities { values, threshold }
}

#[test]
fn plans_and_routers_are_drawn_from_one_cell_to_xl() {
    check("plan-20x16", plan_heatmap(&plan(20, 8, decided)));
    check("plan-50x56", plan_heatmap(&plan(50, 28, decided)));
    check("plan-5x2", plan_heatmap(&plan(5, 1, decided)));
    check("router-20x16", plan_heatmap(&plan(20, 8, routed(0.1))));
    check("router-50x56", plan_heatmap(&plan(50, 28, routed(0.5))));
    check("router-250x56", plan_heatmap(&plan(250, 28, routed(0.9))));
    let mut gaps = plan(10, 28, routed(0.0));
    if let PlanCells::Probabilities { values, .. } = &mut gaps.cells {
        values[3][4] = f64::NAN;
        values[4][4] = 0.0;
    }
    gaps.utilisation = f64::NAN;
    check("router-gaps", plan_heatmap(&gaps));
}

fn errors(family: &str, label: &str, scale: f64, steps: usize) -> StepErrors {
    let mut next = noise(label.len() as u64);
    let growth = |step: usize| scale * (0.3 * step as f64).exp() / (1.0 + 0.02 * step as f64);
    StepErrors {
        family: family.to_owned(),
        label: label.to_owned(),
        mse: (0..steps)
            .map(|step| {
                if step == 0 {
                    0.0
                } else {
                    growth(step) * (0.8 + 0.4 * next())
                }
            })
            .collect(),
    }
}

#[test]
fn errors_per_step_are_drawn_for_many_policies() {
    let policies = |steps| {
        vec![
            errors("fora", "fora, every 2nd step", 3e-5, steps),
            errors("fora", "fora, every 3rd step", 8e-5, steps),
            errors("fora", "fora, every 4th step", 2e-4, steps),
            errors("random", "random, 37.5 %", 1e-4, steps),
            errors("l2c", "l2c, 36.9 %", 5e-5, steps),
            errors("harmonica", "harmonica, 37.5 %", 1e-5, steps),
            errors("windowed", "windowed, 40 %", 1.5e-5, steps),
        ]
    };
    let plot = |steps| StepErrorPlot {
        title: "digits: error of cached sampling".to_owned(),
        policies: policies(steps),
    };
    check("error-20", error_per_step(&plot(20)));
    check("error-50", error_per_step(&plot(50)));
    let mut odd = plot(3);
    odd.policies.truncate(2);
    odd.policies[0].mse = vec![0.0, 0.0, 0.0];
    odd.policies[1].mse = vec![1e-3, f64::NAN, f64::INFINITY];
    check("error-odd", error_per_step(&odd));
}

fn tradeoff(speed: Speed) -> TradeoffPlot {
    let figures = [
        ("none", "20 steps", 41.0, 0.0),
        ("fewer-steps", "18 steps", 37.0, 2.1e-3),
        ("fewer-steps", "16 steps", 33.0, 3.9e-3),
        ("fewer-steps", "14 steps", 29.2, 5.8e-3),
        ("fewer-steps", "12 steps", 25.0, 8.7e-3),
        ("fewer-steps", "10 steps", 21.1, 1.3e-2),
        ("fora", "every 2nd", 22.5, 1.1e-2),
        ("fora", "every 3rd", 16.4, 3.1e-2),
        ("random", "25 %", 32.1, 1.9e-2),
        ("random", "37.5 %", 27.9, 4.4e-2),
        ("random", "50 %", 23.0, 9.0e-2),
        ("l2c", "22 %", 33.2, 3.0e-3),
        ("l2c", "36 %", 28.6, 6.4e-3),
        ("l2c", "44 %", 25.4, 1.1e-2),
        ("harmonica", "β 1e-7", 33.4, 1.5e-3),
        ("harmonica", "β 3e-7", 28.4, 3.1e-3),
        ("harmonica", "β 1e-6", 24.9, 6.0e-3),
        ("harmonica", "β 3e-6", 20.9, 1.22e-2),
    ];
    TradeoffPlot {
        title: "digits, DiT 8×128, 20 DDIM steps: speed against error".to_owned(),
        speed,
        points: figures
            .iter()
            .map(|&(family, label, latency, mse)| TradeoffPoint {
                family: family.to_owned(),
                label: label.to_owned(),
                speed: match speed {
                    Speed::LatencyMs => latency,
                    Speed::MacSavingPercent => 100.0 * (1.0 - latency / 41.0),
                },
                mse,
            })
            .collect(),
    }
}

#[test]
fn speed_against_quality_is_drawn_over_latency_and_over_macs() {
    check(
        "tradeoff-ms",
        speed_against_quality(&tradeoff(Speed::LatencyMs)),
    );
    check(
        "tradeoff-macs",
        speed_against_quality(&tradeoff(Speed::MacSavingPercent)),
    );
    let mut crowded = tradeoff(Speed::LatencyMs);
    for (at, point) in crowded.points.iter_mut().enumerate() {
        point.speed = 20.0 + 0.3 * at as f64;
        point.mse = 1e-3 * (1.0 + 0.05 * at as f64);
    }
    crowded.points[3].mse = f64::NAN;
    crowded.points[4].speed = f64::INFINITY;
    check("tradeoff-crowded", speed_against_quality(&crowded));
    let mut many = tradeoff(Speed::LatencyMs);
    for family in [
        "taylorseer",
        "first-block",
        "dual-block",
        "tea",
        "delta",
        "interval",
    ] {
        for at in 0..4 {
            let latency = 18. + 5. * f64::from(at);
            many.points.push(TradeoffPoint {
                family: family.to_owned(),
                label: format!("every {at}"),
                speed: latency,
                mse: 2e-1 / (latency * latency) * (1. + family.len() as f64 / 9.),
            });
        }
    }
    check("tradeoff-many", speed_against_quality(&many));
    let mut lone = tradeoff(Speed::MacSavingPercent);
    lone.points.truncate(1);
    check("tradeoff-lone", speed_against_quality(&lone));
}

fn learned(trajectories: u64) -> LearningPlot {
    let mut next = noise(trajectories);
    LearningPlot {
        title: "harmonica: what the router learns".to_owned(),
        points: (1..=trajectories)
            .map(|trajectory| {
                let progress = 6.0 * trajectory as f64 / trajectories as f64;
                LearningPoint {
                    trajectory,
                    loss: 1e-5 * (0.3 + (-progress).exp()) * (0.4 + 1.5 * next()),
                    utilisation: 0.41 * (1.0 - (-progress).exp()),
                    mac_saving: 0.38 * (1.0 - (-0.9 * progress).exp()),
                }
            })
            .collect(),
    }
}

#[test]
fn learning_is_drawn_for_short_and_long_runs() {
    check("learning-12", learning(&learned(12)));
    check("learning-2000", learning(&learned(2000)));
    check("learning-1", learning(&learned(1)));
    let mut odd = learned(200);
    odd.points[20].loss = f64::NAN;
    odd.points[30].loss = 0.0;
    odd.points[40].utilisation = f64::INFINITY;
    check("learning-odd", learning(&odd));
}

/// Rings of a size and colour that differ from image to image.
fn rings(count: usize, side: usize, channels: usize) -> Array4<u8> {
    Array4::from_shape_fn((count, side, side, channels), |(n, y, x, c)| {
        let middle = (side as f64 - 1.0) / 2.0;
        let distance = (y as f64 - middle).hypot(x as f64 - middle) / side as f64;
        let radius = 0.15 + 0.25 * (n % 10) as f64 / 10.0;
        let near = (1.0 - 8.0 * (distance - radius).abs()).max(0.0);
        (255.0 * near * if (n + c).is_multiple_of(3) { 1.0 } else { 0.6 }) as u8
    })
}

fn panels(count: usize, images: &Array4<u8>) -> SideBySidePlot {
    let names = [
        "none",
        "fewer-steps, 14",
        "fora, every 2nd step",
        "random, 37.5 %",
        "l2c",
        "harmonica",
    ];
    SideBySidePlot {
        title: "The same noise, cached and uncached".to_owned(),
        panels: (0..count)
            .map(|at| CaptionedImages {
                name: names[at % names.len()].to_owned(),
                latency_ms: Some(41.0 / (1.0 + at as f64)),
                mse: (at > 0).then_some(2.4e-3 * at as f64),
                images: images.clone(),
            })
            .collect(),
        columns: None,
    }
}

#[test]
fn images_stand_side_by_side_from_digits_to_large_pictures() {
    let height = |name, plot| check_page(name, side_by_side(&plot));
    let digits = height("side-digits", panels(4, &rings(64, 8, 1)));
    assert!(digits < 700, "one row needs no page of {digits} pixels");
    let six = height("side-cifar", panels(6, &rings(36, 32, 3)));
    let large = height("side-large", panels(2, &rings(4, 512, 3)));
    let lone = height("side-one", panels(1, &rings(10, 28, 1)));
    assert!(six.max(large).max(lone) <= 1200);
    let strips = SideBySidePlot {
        columns: Some(10),
        ..panels(6, &rings(10, 32, 3))
    };
    height("side-strips", strips);
}

#[test]
fn plots_of_nothing_are_errors_that_say_what_is_missing() {
    let empty = PlanPlot {
        timesteps: Vec::new(),
        cells: PlanCells::Decisions(Vec::new()),
        ..plan(1, 1, decided)
    };
    let errors = [
        plan_heatmap(&empty),
        error_per_step(&StepErrorPlot::default()),
        speed_against_quality(&TradeoffPlot::default()),
        learning(&LearningPlot::default()),
        side_by_side(&SideBySidePlot::default()),
    ];
    for error in errors {
        assert!(matches!(error, Err(PlotError::Empty { .. })), "{error:?}");
    }
}

#[test]
fn plans_of_the_wrong_shape_are_errors_that_name_the_place() {
    let mut uneven = plan(4, 2, routed(0.1));
    if let PlanCells::Probabilities { values, .. } = &mut uneven.cells {
        values[2].pop();
    }
    let message = plan_heatmap(&uneven).unwrap_err().to_string();
    insta::assert_snapshot!(message, @"the plot of a plan: expected 4 cells in the row of step 3, found 3");
    let mut short = plan(4, 2, decided);
    short.timesteps.pop();
    let message = plan_heatmap(&short).unwrap_err().to_string();
    insta::assert_snapshot!(message, @"the plot of a plan: expected 3 rows, one for each timestep, found 4");
    let message = side_by_side(&panels(1, &rings(0, 8, 1)))
        .unwrap_err()
        .to_string();
    insta::assert_snapshot!(message, @"the plot of images: there is no image to show: expected at least one of at least 1×1 pixels, found 0 of 8×8 pixels");
}
