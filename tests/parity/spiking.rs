//! Neurons, networks, surrogates, optimisers and schedules against what snnTorch, SpikingJelly and PyTorch compute
//! (`spiking.safetensors`, made by `spiking.py`; the layout is in README.md).

#![allow(clippy::unwrap_used)] // a fixture that is not as expected is a failed test

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_spiking::{
    Forward, Input, LeakOptions, Network, Neuron, NeuronOptions, Reset, Surrogate, zoo,
};
use fewstep_torch::{Checkpoint, LearningRate, Optimiser, OptimiserConfig, ParameterGroup};
use tch::{Device, Kind, Tensor};

fn fixture() -> Checkpoint {
    Checkpoint::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/spiking.safetensors"),
    )
    .unwrap()
}

/// Largest difference as a share of the largest expected element.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.numel(), expected.numel());
    let (found, expected) = (
        found.to_kind(Kind::Double).flatten(0, -1),
        expected.to_kind(Kind::Double).flatten(0, -1),
    );
    let scale = expected.abs().max().double_value(&[]).max(1e-12);
    (found - expected).abs().max().double_value(&[]) / scale
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let off = off(found, expected);
    assert!(
        off <= tolerance,
        "{what} is off by {off:e} of its largest element"
    );
}

/// Reset and surrogate of a case, from its name (tests/parity/README.md).
fn semantics(variant: &str) -> (Reset, Surrogate) {
    let reset = if variant.starts_with("hard") {
        Reset::Hard
    } else if variant == "none" {
        Reset::None
    } else {
        Reset::Soft
    };
    let surrogate = match variant.rsplit_once("native-").map(|(_, s)| s) {
        None => Surrogate::default(),
        Some("triangular") => Surrogate::Triangular {
            height: 1.,
            width: 1.,
        },
        Some("rectangular") => Surrogate::Rectangular { width: 0.625 },
        Some("sigmoid") => Surrogate::Sigmoid { slope: 4. },
        Some("fast-sigmoid") => Surrogate::FastSigmoid { slope: 5. },
        Some("arctan") => Surrogate::Arctangent { slope: 2. },
        Some(other) => panic!("unknown surrogate {other}"),
    };
    (reset, surrogate)
}

/// All cases: `<library>/<variant>/T<k>` and its tensors.
fn cases(all: &Checkpoint) -> BTreeMap<String, BTreeMap<String, Tensor>> {
    let mut cases: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (name, t) in all.section("case/") {
        let (case, what) = name.rsplit_once('/').unwrap();
        cases
            .entry(case.to_owned())
            .or_default()
            .insert(what.to_owned(), t);
    }
    cases
}

#[test]
fn spikes_membranes_and_every_gradient_equal_those_of_snntorch_and_spikingjelly() {
    let all = fixture();
    let weights = all.section("weights/");
    let cases = cases(&all);
    assert!(cases.len() >= 30, "{} cases", cases.len());
    for (case, expected) in &cases {
        let variant = case.split('/').nth(1).unwrap();
        let timesteps: u32 = case.rsplit_once("/T").unwrap().1.parse().unwrap();
        let (reset, surrogate) = semantics(variant);
        let kind = expected["membrane1"].kind();
        let leaf = |t: &Tensor| t.to_kind(kind).copy().set_requires_grad(true);
        let value =
            |name: &str, layer: i64| expected[name].to_kind(Kind::Double).double_value(&[layer]);
        let louder = if case.starts_with("snntorch/hard-native") {
            "-louder"
        } else {
            ""
        };
        let (w1, w2) = (
            leaf(&weights[&format!("conv1{louder}")]),
            leaf(&weights[&format!("conv2{louder}")]),
        );
        let fc = leaf(&weights["fc"]);
        let sequence = variant.ends_with("-sequence");
        let input = leaf(&weights[if sequence { "sequence" } else { "image" }]);

        let neuron = |layer: i64| {
            let leak = LeakOptions {
                initial: 0.5,
                learnable: true,
            };
            let mut n = Neuron::new(
                &NeuronOptions {
                    reset,
                    surrogate,
                    leak,
                    ..Default::default()
                },
                1,
                Device::Cpu,
            )
            .unwrap();
            n.threshold = Tensor::from_slice(&[value("threshold", layer)])
                .to_kind(kind)
                .set_requires_grad(true);
            n.leak = Tensor::from_slice(&[value("leak", layer)])
                .to_kind(kind)
                .set_requires_grad(true);
            n
        };
        let (n1, n2) = (neuron(0), neuron(1));
        let steps = i64::from(timesteps);
        let conv = |x: &Tensor, w: &Tensor| x.conv2d(w, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1);
        let current = if sequence {
            conv(&input.flatten(0, 1), &w1).view([steps, 2, 4, 4, 4])
        } else {
            conv(&input, &w1).unsqueeze(0)
        };
        let (s1, u1) = n1.forward_with_membrane(&current, timesteps).unwrap();
        let pooled = s1
            .flatten(0, 1)
            .avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        let (s2, u2) = n2
            .forward_with_membrane(&conv(&pooled, &w2).view([steps, 2, 6, 2, 2]), timesteps)
            .unwrap();
        let logits = s2
            .flatten(2, -1)
            .sum_dim_intlist([0i64].as_slice(), false, kind)
            .linear(&fc, None::<Tensor>);
        let loss = logits.cross_entropy_for_logits(&weights["labels"]);
        loss.backward();

        let tolerance = 1e-5;
        let check = |what: &str, found: &Tensor| {
            if let Some(expected) = expected.get(what) {
                assert_close(&format!("{case}: {what}"), found, expected, tolerance);
            }
        };
        for (what, found) in [("spikes1", &s1), ("spikes2", &s2)] {
            assert_eq!(off(found, &expected[what]), 0., "{case}: {what} differ");
        }
        check("membrane1", &u1);
        check("membrane2", &u2);
        check("logits", &logits);
        check("loss", &loss);
        for (what, found) in [
            ("conv1", &w1),
            ("conv2", &w2),
            ("fc", &fc),
            ("input", &input),
        ] {
            check(&format!("grad.{what}"), &found.grad());
        }
        if timesteps > 1 {
            check(
                "grad.leak",
                &Tensor::cat(&[n1.leak.grad(), n2.leak.grad()], 0),
            );
        }
        check(
            "grad.threshold",
            &Tensor::cat(&[n1.threshold.grad(), n2.threshold.grad()], 0),
        );
    }
}

#[test]
fn a_whole_network_gives_the_logits_of_the_peers() {
    let all = fixture();
    let weights = all.section("weights/");
    for (case, expected) in cases(&all)
        .iter()
        .filter(|(c, _)| c.contains("/soft/") || c.contains("/hard/"))
    {
        let timesteps: u32 = case.rsplit_once("/T").unwrap().1.parse().unwrap();
        let plan = zoo::vgg("4 A 6", [2, 4, 4], &[], 5, 1., false).unwrap();
        let mut n = Network::new(plan, Device::Cpu).unwrap();
        n.add_neurons(&NeuronOptions {
            reset: semantics(case.split('/').nth(1).unwrap()).0,
            ..Default::default()
        })
        .unwrap();
        let mut tensors = BTreeMap::new();
        for (i, name) in ["conv1", "conv2", "fc"].into_iter().enumerate() {
            let own = if name == "fc" { "fc1" } else { name };
            tensors.insert(format!("{own}.weight"), weights[name].shallow_clone());
            if i < 2 {
                for what in ["threshold", "leak"] {
                    tensors.insert(
                        format!("{own}.{what}"),
                        expected[what].narrow(0, i as i64, 1),
                    );
                }
            }
        }
        n.load(&tensors, case).unwrap();
        let out = n
            .forward(
                Input::Direct(&weights["image"]),
                &Forward::spiking(timesteps),
                None,
            )
            .unwrap();
        assert_close(case, &out.logits, &expected["logits"], 1e-5);
    }
}

#[test]
fn surrogates_equal_the_derivatives_of_the_libraries() {
    let all = fixture();
    let z = Vec::<f64>::try_from(all.tensor("surrogate/z").unwrap().to_kind(Kind::Double)).unwrap();
    let mut matched = 0;
    for (name, expected) in all.section("surrogate/") {
        let Some((function, parameter)) = name.rsplit_once('/') else {
            continue;
        };
        let value: f64 = parameter.split_once('=').unwrap().1.parse().unwrap();
        let s = match function.split_once('/').unwrap().1 {
            "fast_sigmoid" => Surrogate::FastSigmoid { slope: value },
            "atan" | "ATan" => Surrogate::Arctangent { slope: value },
            "sigmoid" | "Sigmoid" => Surrogate::Sigmoid { slope: value },
            "PiecewiseQuadratic" => Surrogate::Triangular {
                height: value,
                width: 1. / value,
            },
            "Rect" => Surrogate::Rectangular { width: 0.5 / value },
            _ => continue,
        };
        let found = Tensor::from_slice(&z.iter().map(|&z| s.gradient(z)).collect::<Vec<_>>());
        assert_close(&name, &found, &expected, 1e-5);
        matched += 1;
    }
    assert!(matched >= 8, "{matched}");
}

#[test]
fn optimisers_take_the_steps_of_torch() {
    let all = fixture();
    let adam = |amsgrad| OptimiserConfig::Adam {
        betas: [0.9, 0.999],
        eps: 1e-8,
        amsgrad,
        decoupled: false,
    };
    let runs = [
        ("adam", adam(false), 0.),
        ("adam_amsgrad", adam(true), 0.),
        ("adam_amsgrad_wd", adam(true), 5e-4),
        (
            "sgd",
            OptimiserConfig::Sgd {
                momentum: 0.9,
                nesterov: false,
            },
            5e-4,
        ),
    ];
    for (name, config, weight_decay) in runs {
        let p = all
            .tensor("optim/initial")
            .unwrap()
            .to_kind(Kind::Float)
            .copy()
            .set_requires_grad(true);
        let group = ParameterGroup {
            parameters: vec![("p".into(), p.shallow_clone())],
            weight_decay,
            lr_factor: 1.,
        };
        let mut optimiser = Optimiser::new(config, vec![group]).unwrap();
        for step in 0..10 {
            optimiser.zero_grad();
            (&p * all.tensor("optim/grads").unwrap().get(step))
                .sum(Kind::Float)
                .backward();
            optimiser.step(0.01).unwrap();
            let expected = all.tensor(&format!("optim/{name}")).unwrap().get(step);
            assert_close(
                &format!("{name}, step {step}"),
                &p.detach(),
                &expected,
                1e-6,
            );
        }
    }
}

#[test]
fn learning_rates_equal_those_of_torch() {
    let all = fixture();
    let check = |name: &str, rate: &LearningRate| {
        let expected = all.tensor(name).unwrap();
        let epochs = expected.size()[0] as u32;
        let found: Vec<f64> = (0..epochs)
            .map(|e| 0.01 * rate.factor(f64::from(e), epochs))
            .collect();
        assert_close(name, &Tensor::from_slice(&found), expected, 1e-12);
    };
    check(
        "schedule/multistep",
        &LearningRate::MultiStep {
            milestones: vec![0.6, 0.8, 0.9],
            factor: 5.,
        },
    );
    check(
        "schedule/cosine",
        &LearningRate::Cosine {
            floor: 0.,
            warmup_epochs: 0.,
        },
    );
    check(
        "schedule/cosine-min",
        &LearningRate::Cosine {
            floor: 0.01,
            warmup_epochs: 0.,
        },
    );
}
