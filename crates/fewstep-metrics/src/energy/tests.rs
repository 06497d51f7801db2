//! The networks and ratios of the published method (arXiv 2110.05929 and the energies of its follow-up).

use super::*;

/// 3×3 convolutions at stride 1 with 2×2 average pools ('None'), then fully connected layers.
fn vgg(
    config: &[Option<u64>],
    mut side: u64,
    hidden: u64,
    classes: u64,
    last_pool: bool,
) -> Vec<LayerOps> {
    let (mut layers, mut channels, mut area) = (Vec::new(), 3, 1);
    for step in config {
        if let Some(out) = *step {
            let name = format!("conv{}", layers.len() + 1);
            let macs = 9 * channels * out * side * side;
            layers.push(LayerOps::conv(name, macs, out * side * side).pooled(area));
            (channels, area) = (out, 1);
        } else {
            (side, area) = (side / 2, 4);
        }
    }
    if last_pool {
        (side, area) = (side / 2, 4);
    }
    let flat = channels * side * side;
    layers.push(LayerOps::linear("fc1", flat * hidden, hidden).pooled(area));
    layers.push(LayerOps::linear("fc2", hidden * hidden, hidden));
    layers.push(LayerOps::linear("fc3", hidden * classes, 0));
    layers
}

fn vgg6() -> Vec<LayerOps> {
    vgg(
        &[Some(64), None, Some(128), Some(128), None],
        32,
        4096,
        10,
        false,
    )
}

fn vgg16(side: u64, classes: u64, last_pool: bool) -> Vec<LayerOps> {
    let widths: [&[u64]; 5] = [&[64; 2], &[128; 2], &[256; 3], &[512; 3], &[512; 3]];
    let blocks: Vec<Vec<Option<u64>>> = widths
        .iter()
        .map(|w| w.iter().copied().map(Some).collect())
        .collect();
    vgg(&blocks.join(&None), side, 4096, classes, last_pool)
}

/// The paper's ResNet20: three stem convolutions, a pool, four stages of two blocks, 1×1 projections at stride 2.
fn resnet20() -> Vec<LayerOps> {
    let mut layers = vec![LayerOps::conv("stem1", 9 * 3 * 64 * 1024, 65_536)];
    for name in ["stem2", "stem3"] {
        layers.push(LayerOps::conv(name, 9 * 64 * 64 * 1024, 65_536));
    }
    let (mut channels, mut side) = (64, 16);
    for (stage, width) in [64, 128, 256, 512].into_iter().enumerate() {
        if stage > 0 {
            side /= 2;
            layers.push(LayerOps::conv(
                format!("stage{stage}.project"),
                channels * width * side * side,
                0,
            ));
        }
        for conv in 0..4 {
            let macs = 9 * channels * width * side * side;
            layers.push(LayerOps::conv(
                format!("stage{stage}.conv{conv}"),
                macs,
                width * side * side,
            ));
            channels = width;
        }
    }
    layers.push(LayerOps::linear("fc", 512 * 2 * 2 * 10, 0));
    layers
}

fn uniform(layers: &[LayerOps], rate: f64, options: EnergyOptions) -> EnergyReport {
    let activity = vec![LayerActivity::new(rate); layers.len()];
    EnergyModel::default()
        .report(layers, &activity, options)
        .unwrap()
}

fn ratio(layers: &[LayerOps], rate: f64) -> f64 {
    uniform(layers, rate, EnergyOptions::timesteps(1)).ratio
}

#[test]
fn vgg16_layers_are_those_of_the_published_table() {
    let millions: Vec<f64> = vgg16(32, 10, false)
        .iter()
        .map(|l| (l.macs as f64 / 1e3).round() / 1e3)
        .collect();
    let table = [
        1.769, 37.749, 18.874, 37.749, 18.874, 37.749, 37.749, 18.874, 37.749, 37.749, 9.437,
        9.437, 9.437, 8.389, 16.777, 0.041,
    ];
    assert_eq!(millions, table);
    let total: u64 = vgg16(32, 10, false).iter().map(|l| l.macs).sum();
    assert!((total as f64 / 3.3840e8 - 1.0).abs() < 1e-4);
}

#[test]
fn vgg16_at_uniform_rates_gives_the_published_ratios() {
    let layers = vgg16(32, 10, false);
    for (rate, expected) in [
        (0.05, 66.8),
        (0.08, 48.1),
        (0.10, 40.5),
        (0.15, 29.1),
        (0.20, 22.6),
    ] {
        let found = ratio(&layers, rate);
        assert!(
            (found - expected).abs() <= 0.05,
            "rate {rate}: {found}, expected {expected}"
        );
    }
}

#[test]
fn the_abstracts_25_and_33_times_need_the_tabulated_rates() {
    let rows = [
        ("VGG16", vgg16(32, 10, false), 0.179, 0.129),
        ("VGG16 CIFAR-100", vgg16(32, 100, false), 0.179, 0.129),
        ("VGG16 ImageNet", vgg16(224, 1000, true), 0.177, 0.127),
        ("ResNet20", resnet20(), 0.164, 0.114),
        ("VGG6", vgg6(), 0.123, 0.073),
    ];
    for (name, layers, at_25, at_33) in rows {
        for (rate, expected) in [(at_25, 25.0), (at_33, 33.0)] {
            let found = ratio(&layers, rate);
            // The table's rates are rounded to 0.001.
            let (low, high) = (ratio(&layers, rate + 0.0005), ratio(&layers, rate - 0.0005));
            assert!(
                low <= expected && expected <= high,
                "{name} at rate {rate}: {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn the_first_convolution_caps_the_ratio() {
    assert_eq!(ratio(&vgg16(32, 10, false), 0.0).round(), 191.0);
    assert_eq!(ratio(&vgg6(), 0.0).round(), 61.0);
}

#[test]
fn ann_energies_agree_with_published_ones() {
    let ann = |layers: &[LayerOps]| uniform(layers, 0.1, EnergyOptions::timesteps(1)).ann_uj;
    assert!((ann(&vgg16(32, 10, false)) / 1.56e3 - 1.0).abs() < 5e-3);
    assert!((ann(&vgg16(224, 1000, true)) / 7.12e4 - 1.0).abs() < 5e-3);
    assert!((ann(&resnet20()) / 992.0 - 1.0).abs() < 5e-4);
}

#[test]
fn the_rate_is_already_summed_over_time() {
    let layers = vgg6();
    let (one, five) = (EnergyOptions::timesteps(1), EnergyOptions::timesteps(5));
    assert_eq!(
        uniform(&layers, 0.4, one).snn_uj,
        uniform(&layers, 0.4, five).snn_uj
    );
    let repeated = EnergyOptions {
        first_layer: FirstLayer::EveryTimestep,
        ..five
    };
    let extra = uniform(&layers, 0.4, repeated).snn_uj - uniform(&layers, 0.4, five).snn_uj;
    assert!((extra - 4.0 * layers[0].macs as f64 * 4.6e-6).abs() < 1e-9);
}

#[test]
fn strict_pool_count_equals_spikes_times_their_targets() {
    // 8 neurons before a 2×2 pool, 2 pooled inputs, 3 outputs: 6 multiply-accumulates. Four spikes reach 3 outputs each.
    let layers = [
        LayerOps::conv("conv1", 100, 8),
        LayerOps::linear("fc", 2 * 3, 0).pooled(4),
    ];
    let strict = EnergyOptions {
        pool: PoolConvention::PrePool,
        ..EnergyOptions::timesteps(1)
    };
    let (spikes, neurons, targets) = (4.0, 8.0, 3.0);
    assert_eq!(
        uniform(&layers, spikes / neurons, strict).snn_accumulates,
        spikes * targets
    );
    // The published count is a quarter of it.
    assert_eq!(
        uniform(&layers, spikes / neurons, EnergyOptions::timesteps(1)).snn_accumulates,
        3.0
    );
}

#[test]
fn totals_are_the_sums_of_the_layers() {
    let report = uniform(&vgg6(), 0.1, EnergyOptions::timesteps(3));
    assert_eq!(
        report.ann_macs,
        report.layers.iter().map(|l| l.ann_macs).sum::<u64>()
    );
    assert_eq!(report.snn_macs, report.layers[0].ann_macs);
    assert_eq!(report.layers[0].snn_accumulates, 0.0);
    assert!((report.snn_uj - report.layers.iter().map(|l| l.snn_uj).sum::<f64>()).abs() < 1e-9);
    assert_eq!(report.ratio, report.ann_uj / report.snn_uj);
}

#[test]
fn the_report_survives_json_with_units_in_its_keys() {
    let report = uniform(&vgg6(), 0.1, EnergyOptions::timesteps(1));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["mac_pj"], 4.6);
    assert_eq!(json["first_layer"], "once");
    assert_eq!(json["pool"], "published");
    assert!(json["ann_uj"].is_f64() && json["layers"][1]["snn_uj"].is_f64());
    assert!(json["layers"][0].get("input_spikes_per_neuron").is_none());
    let text = serde_json::to_string(&report).unwrap();
    let back: EnergyReport = serde_json::from_str(&text).unwrap();
    assert_eq!(back.layers.len(), report.layers.len());
    assert_eq!((back.model, back.ann_macs), (report.model, report.ann_macs));
}

#[test]
fn impossible_input_is_named() {
    let layers = vgg6();
    let model = EnergyModel::default();
    let text = |activity: &[LayerActivity], options| {
        model
            .report(&layers, activity, options)
            .unwrap_err()
            .to_string()
    };
    let mut activity = vec![LayerActivity::new(0.1); layers.len()];
    assert_eq!(
        text(&activity[1..], EnergyOptions::timesteps(1)),
        "5 activities were given where 6 belong to the layers"
    );
    assert_eq!(
        text(&activity, EnergyOptions::timesteps(0)),
        "there are no timesteps; at least 1 is needed"
    );
    activity[3] = LayerActivity::new(1.5);
    assert_eq!(
        text(&activity, EnergyOptions::timesteps(1)),
        "input_spikes_per_neuron of layer fc1 is 1.5; expected between 0 and 1 (the timesteps)"
    );
    activity[3] = LayerActivity::new(f64::NAN);
    assert!(text(&activity, EnergyOptions::timesteps(1)).contains("NaN"));
    let free = EnergyModel {
        ac_pj: 0.0,
        ..model
    };
    assert_eq!(
        free.report(&layers, &activity, EnergyOptions::timesteps(1))
            .unwrap_err()
            .to_string(),
        "ac_pj is 0; expected a finite energy above 0"
    );
    assert_eq!(
        model
            .report(&[], &[], EnergyOptions::timesteps(1))
            .unwrap_err()
            .to_string(),
        "there are no layers; at least 1 is needed"
    );
}
