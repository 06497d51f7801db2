use std::collections::BTreeMap;
use std::time::Duration;

use fewstep_torch::Group;

use super::*;
use crate::{LeakOptions, zoo};

fn small(batch_norm: bool) -> Network {
    tch::manual_seed(11);
    let plan = zoo::vgg("8 A 8 16", [2, 8, 8], &[12], 4, 1., batch_norm).unwrap();
    let mut n = Network::new(plan, Device::Cpu).unwrap();
    n.add_neurons(&NeuronOptions {
        leak: LeakOptions {
            initial: 0.9,
            learnable: true,
        },
        ..Default::default()
    })
    .unwrap();
    n
}

fn images() -> Tensor {
    Tensor::rand([6, 2, 8, 8], (Kind::Float, Device::Cpu))
}

#[test]
fn a_first_layer_computed_once_equals_one_computed_at_every_timestep() {
    let n = small(false);
    let x = images();
    let run = |input: Input| {
        n.parameters().iter_mut().for_each(|(_, p)| p.zero_grad());
        let y = n.forward(input, &Forward::spiking(4), None).unwrap().logits;
        y.square().sum(Kind::Float).backward();
        (
            y,
            n.parameters()
                .iter()
                .map(|(_, p)| p.grad().copy())
                .collect::<Vec<_>>(),
        )
    };
    let (a, ga) = run(Input::Direct(&x));
    let (b, gb) = run(Input::Encoded(&x.unsqueeze(0).repeat([4, 1, 1, 1, 1])));
    assert!((a - b).abs().max().double_value(&[]) < 1e-5);
    for (p, q) in ga.iter().zip(&gb) {
        assert!((p - q).abs().max().double_value(&[]) < 1e-4);
    }
}

/// Two networks with the same values, of which the second lies channels last.
fn both_formats(architecture: &str) -> [Network; 2] {
    tch::manual_seed(5);
    let networks = [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast].map(|format| {
        let plan = zoo::by_name(architecture, [2, 8, 8], &[12], 4, 0.5, true).unwrap();
        let mut n = Network::new(plan, Device::Cpu).unwrap();
        n.set_memory_format(format).unwrap();
        n.add_neurons(&NeuronOptions {
            per_channel: true,
            ..Default::default()
        })
        .unwrap();
        n
    });
    let [contiguous, mut last] = networks;
    // As from a checkpoint, which knows no formats.
    let values = contiguous.tensors().into_iter().collect();
    last.load(&values, "the other network").unwrap();
    [contiguous, last]
}

#[test]
fn channels_last_gives_the_logits_and_gradients_of_contiguous() {
    for architecture in ["8 A 16 16", "resnet12"] {
        let networks = both_formats(architecture);
        let x = images();
        let analog = Forward {
            train: true,
            ..Forward::analog()
        };
        for options in [analog, Forward::spiking(1), Forward::spiking(3)] {
            let [(a, ga), (b, gb)] = networks.each_ref().map(|n| {
                n.parameters().iter_mut().for_each(|(_, p)| p.zero_grad());
                let y = n.forward(Input::Direct(&x), &options, None).unwrap().logits;
                y.square().sum(Kind::Float).backward();
                let gradients = n
                    .parameters()
                    .into_iter()
                    .filter(|(_, p)| p.grad().defined());
                let gradients: Vec<_> =
                    gradients.map(|(name, p)| (name, p.grad().copy())).collect();
                (y, gradients)
            });
            let near = |a: &Tensor, b: &Tensor| {
                let size = a.abs().max().double_value(&[]).max(1.);
                (a - b).abs().max().double_value(&[]) < 1e-4 * size
            };
            assert!(near(&a, &b), "{architecture} {options:?}");
            assert_eq!(ga.len(), gb.len());
            for ((name, p), (_, q)) in ga.iter().zip(&gb) {
                assert!(near(p, q), "{architecture} {options:?}: {name}");
            }
        }
    }
}

#[test]
fn what_enters_a_convolution_lies_channels_last_throughout_the_network() {
    for architecture in ["8 A 16 16", "resnet12"] {
        let [_, n] = both_formats(architecture);
        let x = images();
        for timesteps in [1, 3] {
            let mode = Mode::Spiking { timesteps };
            let mut seen = 0;
            for i in 0..n.units.len() - 1 {
                let mut state = Vec::new();
                let current = n.current(Input::Direct(&x), timesteps, i, &mut state);
                let current = current.unwrap();
                for mode in [mode, Mode::Analog] {
                    let activation = n.activate(i, &current, mode, &mut Extras::default());
                    let enters = n.after(i, activation.unwrap(), 0.5, None).unwrap();
                    if enters.dim() == 4 && enters.size()[2] > 1 {
                        assert_eq!(enters.stride()[1], 1, "{architecture} {i} {mode:?}");
                        seen += 1;
                    }
                }
            }
            assert!(seen >= 4, "{seen}");
        }
    }
}

#[test]
fn one_timestep_is_a_network_of_binary_activations() {
    let n = small(false);
    let x = images();
    let fires = |c: Tensor, u: &Unit| {
        c.gt_tensor(&u.neuron.as_ref().unwrap().threshold)
            .to_kind(Kind::Float)
    };
    let u = n.units();
    let conv = |x: &Tensor, u: &Unit| {
        x.conv2d(&u.synapse.weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1)
    };
    let a =
        fires(conv(&x, &u[0]), &u[0]).avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
    let b = fires(conv(&a, &u[1]), &u[1]);
    let c = fires(conv(&b, &u[2]), &u[2]).flatten(1, -1);
    let d = fires(c.linear(&u[3].synapse.weight, None::<Tensor>), &u[3]);
    let expected = d.linear(&u[4].synapse.weight, None::<Tensor>);
    assert_eq!(
        n.forward(Input::Direct(&x), &Forward::spiking(1), None)
            .unwrap()
            .logits,
        expected
    );
}

#[test]
fn nothing_leaks_from_batch_to_batch() {
    let n = small(false);
    let (x, other) = (images(), images());
    let before = n
        .forward(Input::Direct(&x), &Forward::spiking(3), None)
        .unwrap()
        .logits;
    n.forward(Input::Direct(&other), &Forward::spiking(5), None)
        .unwrap();
    assert_eq!(
        n.forward(Input::Direct(&x), &Forward::spiking(3), None)
            .unwrap()
            .logits,
        before
    );
}

#[test]
fn timesteps_fed_in_chunks_give_the_currents_of_one_run() {
    let n = small(false);
    let x = images();
    let all = n.current(Input::Direct(&x), 6, 2, &mut Vec::new()).unwrap();
    let mut state = Vec::new();
    let parts: Vec<_> = [2, 1, 3]
        .map(|t| n.current(Input::Direct(&x), t, 2, &mut state).unwrap())
        .into();
    assert!((all - Tensor::cat(&parts, 0)).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn the_dropout_mask_is_the_same_at_every_timestep() {
    tch::manual_seed(2);
    let n = small(false);
    let ones = Tensor::ones([3, 6, 16, 4, 4], (Kind::Float, Device::Cpu));
    let dropped = n.after(2, ones, 0.5, None).unwrap().view([3, 6, 16, 4, 4]);
    assert_eq!(dropped.get(0), dropped.get(1));
    assert_eq!(dropped.get(0), dropped.get(2));
    let values: std::collections::BTreeSet<i64> = Vec::<f32>::try_from(dropped.flatten(0, -1))
        .unwrap()
        .iter()
        .map(|v| *v as i64)
        .collect();
    assert_eq!(values, [0, 2].into());
}

#[test]
fn a_shortcut_adds_to_the_current_of_the_second_neurons() {
    tch::manual_seed(4);
    let plan = zoo::by_name("resnet12", [3, 16, 16], &[], 4, 0.125, true).unwrap();
    let mut n = Network::new(plan, Device::Cpu).unwrap();
    n.add_neurons(&NeuronOptions::default()).unwrap();
    let x = Tensor::rand([2, 3, 16, 16], (Kind::Float, Device::Cpu));
    let second = n
        .plan()
        .units
        .iter()
        .position(|u| u.shortcut.is_some())
        .unwrap();
    let with = n
        .current(Input::Direct(&x), 2, second, &mut Vec::new())
        .unwrap();
    let source = n.plan().units[second].shortcut.unwrap().from;
    let mut cut = n.plan().clone();
    cut.units[second].shortcut = None;
    let n = Network { plan: cut, ..n };
    let without = n
        .current(Input::Direct(&x), 2, second, &mut Vec::new())
        .unwrap();
    assert_eq!(source, 2);
    let added = with - without;
    // Pooled spikes are multiples of a quarter.
    assert!(
        ((&added * 4.).round() / 4. - &added)
            .abs()
            .max()
            .double_value(&[])
            < 1e-5
    );
    assert!(added.abs().max().double_value(&[]) > 0.2);
}

#[test]
fn the_share_of_operations_is_that_of_the_monitor() {
    let n = small(false);
    let x = images();
    let mut m = Monitor::new();
    let options = Forward {
        operations: true,
        ..Forward::spiking(3)
    };
    let out = n
        .forward(Input::Direct(&x), &options, Some(&mut m))
        .unwrap();
    let macs: Vec<_> = n.plan().units.iter().map(|u| u.macs() as f64).collect();
    let rates: Vec<_> = m.layers().unwrap().iter().map(|l| l.spike_rate).collect();
    let expected = rates
        .iter()
        .zip(&macs[1..])
        .map(|(r, m)| r * m)
        .sum::<f64>()
        / macs[1..].iter().sum::<f64>();
    assert!((out.operations.unwrap().double_value(&[]) - expected).abs() < 1e-5);
}

#[test]
fn an_image_of_another_size_is_refused_in_words() {
    let e = small(true).forward(
        Input::Direct(&Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu))),
        &Forward::analog(),
        None,
    );
    assert_eq!(
        e.unwrap_err().to_string(),
        "input: expected [N, 2, 8, 8], found [1, 3, 8, 8]"
    );
}

type Values = BTreeMap<String, Tensor>;

/// What one rank has after a step: all tensors, and the gradients by name.
fn trained(values: &Values, x: &Tensor, target: &Tensor, share: Share) -> (Values, Values) {
    let mut n = small(true);
    n.load(values, "the test").unwrap();
    let options = Forward {
        train: true,
        ..Forward::analog()
    };
    let logits = n.forward_share(Input::Direct(x), &options, share).unwrap();
    let loss = (logits.logits * target).sum(Kind::Float);
    (loss * f64::from(share.part.len > 0)).backward();
    let gradients = n
        .parameters()
        .into_iter()
        .filter(|(_, p)| p.grad().defined());
    let gradients = gradients.map(|(name, p)| (name, p.grad().copy())).collect();
    let tensors = n.tensors().into_iter();
    (
        tensors.map(|(name, t)| (name, t.detach().copy())).collect(),
        gradients,
    )
}

fn copied(values: &Values) -> Values {
    let each = values.iter();
    each.map(|(name, t)| (name.clone(), t.detach().copy()))
        .collect()
}

#[test]
fn batch_norm_over_uneven_and_empty_parts_is_that_over_the_whole_batch() {
    let values: Values = small(true).tensors().into_iter().collect();
    for (images, world) in [(5i64, 2i64), (2, 3)] {
        let x = Tensor::rand([images, 2, 8, 8], (Kind::Float, Device::Cpu)) * 3. + 1.;
        let target = Tensor::rand([images, 4], (Kind::Float, Device::Cpu));
        let group = Group::alone();
        let whole = Share {
            group: &group,
            part: group.part(images),
        };
        let (expected, gradients) = trained(&values, &x, &target, whole);
        // libtorch's tensors may go to other threads, but not be shared.
        let rows = |t: &Tensor, rank: i64| {
            let (before, end) = (rank * images / world, (rank + 1) * images / world);
            // An empty part gets an image that must not count.
            t.narrow(0, before, (end - before).max(1)).copy()
        };
        let parts = (0..world).map(|rank| {
            let part = (copied(&values), rows(&x, rank), rows(&target, rank));
            std::sync::Mutex::new(part)
        });
        let parts: Vec<_> = parts.collect();
        let found = Group::of_threads(world as usize, Duration::from_secs(120), |group| {
            let rank = group.rank() as i64;
            let (values, x, target) = &*parts[rank as usize].lock().unwrap();
            let share = Share {
                group,
                part: group.part(images),
            };
            trained(values, x, target, share)
        })
        .unwrap();
        let near = |a: &Tensor, b: &Tensor| {
            let scale = b.abs().max().double_value(&[]).max(1.);
            (a - b).abs().max().double_value(&[]) < 1e-5 * scale
        };
        for (tensors, _) in &found {
            for (name, t) in tensors {
                assert!(near(t, &expected[name]), "{name} of {world} ranks");
                assert_eq!(t, &found[0].0[name], "{name} differs between ranks");
            }
        }
        for (name, gradient) in &gradients {
            let sum = found.iter().map(|(_, g)| g[name].copy());
            let sum = sum.reduce(|a, b| a + b).unwrap();
            assert!(near(&sum, gradient), "gradient of {name}, {world} ranks");
        }
    }
}
