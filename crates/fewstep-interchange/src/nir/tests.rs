use std::path::Path;

use fewstep_spiking::{Forward, Input, Network, NeuronOptions, Plan, Reset, Surrogate, zoo};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::graph::{Array, Graph, Node};
use super::{ImportOptions, from_graph, hdf5, to_graph};
use crate::{Imported, Notes, checkpoint};

/// A network of random weights whose neurons differ from layer to layer, biases included.
pub(crate) fn random_network(plan: Plan, neuron: &NeuronOptions, seed: u64) -> Network {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut plan = plan;
    for unit in &mut plan.units {
        unit.bias = unit.active;
    }
    let mut network = Network::new(plan, Device::Cpu).unwrap();
    network.add_neurons(neuron).unwrap();
    let _guard = tch::no_grad_guard();
    for (name, tensor) in network.tensors() {
        let mut draw = |low: f32, high: f32| -> Vec<f32> {
            (0..tensor.numel())
                .map(|_| rng.random_range(low..high))
                .collect()
        };
        let values = match name.rsplit('.').next().unwrap() {
            "threshold" => draw(0.2, 0.9),
            "leak" if neuron.leak.initial == 1. => continue,
            "leak" => draw(0.05, 1.),
            _ => {
                let scale = (3. * tensor.size()[0] as f32 / tensor.numel() as f32).sqrt();
                draw(-scale.min(0.5), scale.min(0.5))
            }
        };
        tensor
            .shallow_clone()
            .copy_(&Tensor::from_slice(&values).view(tensor.size().as_slice()));
    }
    drop(_guard);
    network
}

pub(crate) fn random_images(shape: &[i64], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..n).map(|_| rng.random_range(-1f32..1.5)).collect();
    Tensor::from_slice(&values).view(shape)
}

pub(crate) fn logits(network: &Network, images: &Tensor, timesteps: u32) -> Tensor {
    let _guard = tch::no_grad_guard();
    network
        .forward(Input::Direct(images), &Forward::spiking(timesteps), None)
        .unwrap()
        .logits
}

fn through_a_file(network: &Network, timesteps: u32, notes: &Notes) -> Imported {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.nir");
    super::export(network, timesteps, notes, &path).unwrap();
    super::import(&path, &ImportOptions::default(), Device::Cpu).unwrap()
}

#[test]
fn a_network_comes_back_from_a_file_with_every_bit_of_its_weights_thresholds_and_leaks() {
    let leaky = |per_channel| NeuronOptions {
        leak: fewstep_spiking::LeakOptions {
            initial: 0.9,
            learnable: true,
        },
        per_channel,
        ..Default::default()
    };
    for (architecture, size, neuron, timesteps) in [
        ("6 A 8 8 A", 8, NeuronOptions::default(), 1),
        ("6 A 8", 7, leaky(true), 3),
        ("resnet12", 16, leaky(false), 2),
        (
            "resnet20",
            16,
            NeuronOptions {
                reset: Reset::Hard,
                ..leaky(true)
            },
            4,
        ),
        (
            "4",
            5,
            NeuronOptions {
                reset: Reset::None,
                surrogate: Surrogate::Arctangent { slope: 3. },
                ..Default::default()
            },
            2,
        ),
    ] {
        let plan = zoo::by_name(architecture, [3, size, size], &[12], 5, 0.125, false).unwrap();
        let network = random_network(plan, &neuron, 7);
        let notes = Notes::from([("run".into(), "ours".into())]);
        let back = through_a_file(&network, timesteps, &notes);
        assert_eq!(back.network.plan(), network.plan(), "{architecture}");
        assert_eq!((back.timesteps, &back.notes), (timesteps, &notes));
        for ((name, a), (other, b)) in network.tensors().iter().zip(back.network.tensors()) {
            assert_eq!((name, a), (&other, &b), "{architecture}");
        }
        for (a, b) in network.units().iter().zip(back.network.units()) {
            if let (Some(a), Some(b)) = (&a.neuron, &b.neuron) {
                assert_eq!((a.reset(), a.surrogate()), (b.reset(), b.surrogate()));
            }
        }
        let images = random_images(&[4, 3, size, size], 1);
        let spiking = logits(&network, &images, timesteps);
        assert_eq!(spiking, logits(&back.network, &images, timesteps));
    }
}

#[test]
fn a_leak_of_one_in_some_channels_survives() {
    let plan = zoo::vgg("4", [1, 4, 4], &[], 3, 1., false).unwrap();
    let neuron = NeuronOptions {
        per_channel: true,
        ..Default::default()
    };
    let network = random_network(plan, &neuron, 3);
    let leak = Tensor::from_slice(&[1f32, 0.5, 0., 1.]);
    tch::no_grad(|| {
        let mut own = network.units()[0]
            .neuron
            .as_ref()
            .unwrap()
            .leak
            .shallow_clone();
        own.copy_(&leak);
    });
    let back = through_a_file(&network, 2, &Notes::new());
    assert_eq!(back.network.units()[0].neuron.as_ref().unwrap().leak, leak);
}

#[test]
fn an_imported_network_comes_back_from_its_checkpoint() {
    let plan = zoo::by_name("resnet12", [3, 16, 16], &[], 4, 0.125, false).unwrap();
    let network = random_network(
        plan,
        &NeuronOptions {
            reset: Reset::Hard,
            ..Default::default()
        },
        5,
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let notes = Notes::from([("data".into(), "theirs".into())]);
    checkpoint::save(&network, 3, &notes, &path).unwrap();
    let back = checkpoint::load(&path, Device::Cpu).unwrap();
    assert_eq!((back.timesteps, &back.notes), (3, &notes));
    assert_eq!(back.network.plan(), network.plan());
    assert_eq!(back.network.tensors(), network.tensors());
    let reset = back.network.units()[0].neuron.as_ref().unwrap().reset();
    assert_eq!(reset, Reset::Hard);
}

/// A small graph to spoil: input [2, 4, 4], `conv1` 2→3, IF, pool, flatten, `fc` 12→2.
fn small() -> Graph {
    let plan = zoo::vgg("3 A", [2, 4, 4], &[], 2, 1., false).unwrap();
    let network = random_network(plan, &NeuronOptions::default(), 2);
    to_graph::graph(&network, 1, &Notes::new()).unwrap()
}

fn fault(spoil: impl FnOnce(&mut Graph)) -> String {
    let mut graph = small();
    spoil(&mut graph);
    match from_graph::network(&graph, &ImportOptions::default(), Device::Cpu) {
        Ok(_) => panic!("expected an error"),
        Err(e) => e.to_string(),
    }
}

fn set(graph: &mut Graph, node: &str, key: &str, value: Array) {
    let node = graph.nodes.get_mut(node).unwrap();
    node.values.insert(key.into(), value);
}

fn edge(a: &str, b: &str) -> (String, String) {
    (a.into(), b.into())
}

#[test]
fn what_is_wrong_with_a_graph_is_said_in_one_sentence_with_the_nodes_name() {
    assert_eq!(
        fault(|g| g.nodes.get_mut("conv1.neuron").unwrap().kind = "CubaLIF".into()),
        "node `conv1.neuron`: its type `CubaLIF` is none that Fewstep has a layer for (Input, Output, Conv2d, Linear, Affine, IF, LIF, AvgPool2d, Flatten)"
    );
    assert_eq!(
        fault(|g| g.edges.push(edge("conv1.neuron", "conv1"))),
        "node `conv1`: it lies on a cycle or behind one; recurrent networks can't be imported"
    );
    assert_eq!(
        fault(|g| g.edges.push(edge("conv1", "nowhere"))),
        "node `nowhere`: an edge names it, but there is no such node"
    );
    assert_eq!(
        fault(|g| g.edges.retain(|e| e.1 != "conv1.pool")),
        "node `conv1.neuron`: expected an edge out of it, found none"
    );
    assert_eq!(
        fault(|g| {
            g.nodes.remove("output");
            g.edges.pop();
        }),
        "graph: expected one Output node, found none"
    );
    assert_eq!(
        fault(|g| set(g, "fc1", "weight", Array::floats(vec![0.; 10], &[2, 5]))),
        "node `fc1`: its weight [2, 5] takes 5 inputs, but 12 enter"
    );
    assert_eq!(
        fault(|g| set(
            g,
            "conv1",
            "weight",
            Array::floats(vec![0.; 36], &[3, 2, 2, 3])
        )),
        "node `conv1`: expected a square kernel, found 2×3"
    );
    assert_eq!(
        fault(|g| set(g, "conv1", "stride", Array::ints(&[1, 2]))),
        "node `conv1`: expected the same `stride` in height and width, found [1, 2]"
    );
    assert_eq!(
        fault(|g| set(g, "conv1", "stride", Array::int(0))),
        "node `conv1`: expected a positive stride and no negative padding, found 0 and 1"
    );
    assert_eq!(
        fault(|g| set(g, "conv1.pool", "kernel_size", Array::ints(&[3, 3]))),
        "node `conv1.pool`: expected a 2×2 pool with stride 2 and no padding, found kernel 3, stride 2, padding 0"
    );
    assert_eq!(
        fault(|g| set(
            g,
            "conv1.neuron",
            "v_threshold",
            Array::floats(vec![1.; 4], &[4])
        )),
        "node `conv1.neuron`: expected `v_threshold` of shape [3, 4, 4], found [4]"
    );
    assert_eq!(
        fault(|g| set(
            g,
            "conv1.neuron",
            "v_threshold",
            Array::floats((0..48).map(|i| i as f32 + 1.).collect(), &[3, 4, 4])
        )),
        "node `conv1.neuron`: expected one `v_threshold` a layer or a channel, found different ones within a channel"
    );
    assert_eq!(
        fault(|g| set(g, "conv1.neuron", "v_reset", Array::floats(vec![0.5], &[]))),
        "node `conv1.neuron`: expected `v_reset` 0, found another value"
    );
    assert_eq!(
        fault(|g| set(g, "conv1.neuron", "r", Array::floats(vec![f32::NAN], &[]))),
        "node `conv1.neuron`: expected numbers in `r`, found NaN"
    );
    assert_eq!(
        fault(|g| {
            g.nodes
                .insert("extra".into(), g.nodes["conv1.neuron"].clone());
            g.edges.push(edge("conv1", "extra"));
            g.edges.push(edge("extra", "fc1"));
        }),
        "node `conv1`: expected it to lead to one node, found several"
    );
    assert_eq!(
        fault(|g| g.edges.push(edge("input", "conv1.neuron"))),
        "node `conv1.neuron`: a IF can't follow `input`: expected a Conv2d, Linear or Affine there"
    );
    assert_eq!(
        fault(|g| {
            g.metadata.insert("reset".into(), Array::text("gentle"));
        }),
        "graph: its metadata `reset` can't be understood (unknown variant `gentle`, expected one of `soft`, `hard`, `none`), found \"gentle\""
    );
}

#[test]
fn a_gain_of_the_current_becomes_a_lower_threshold() {
    let mut graph = small();
    let scaled = |x: f32| Array::floats(vec![x], &[]);
    let lif = Node::new(
        "LIF",
        [
            ("tau", scaled(0.02)),
            ("r", scaled(2.)),
            ("v_leak", scaled(0.)),
            ("v_threshold", scaled(0.1)),
        ],
    );
    graph.nodes.insert("conv1.neuron".into(), lif);
    let options = ImportOptions {
        dt: Some(0.01),
        ..Default::default()
    };
    let found = from_graph::network(&graph, &options, Device::Cpu)
        .unwrap()
        .network;
    let neuron = found.units()[0].neuron.as_ref().unwrap();
    // Δt/τ = 0.5, so the current enters with 2 · 0.5 = 1 and the leak is 0.5.
    assert!((neuron.leak.double_value(&[0]) - 0.5).abs() < 1e-7);
    assert!((neuron.threshold.double_value(&[0]) - 0.1).abs() < 1e-7);
    set(&mut graph, "conv1.neuron", "r", scaled(8.));
    let found = from_graph::network(&graph, &options, Device::Cpu)
        .unwrap()
        .network;
    let neuron = found.units()[0].neuron.as_ref().unwrap();
    assert!((neuron.threshold.double_value(&[0]) - 0.025).abs() < 1e-7);
}

#[test]
fn a_graph_that_ends_in_neurons_counts_their_spikes() {
    let mut graph = small();
    graph.nodes.insert(
        "last".into(),
        Node::new(
            "IF",
            [
                ("r", Array::floats(vec![1.], &[])),
                ("v_threshold", Array::floats(vec![0.1], &[])),
            ],
        ),
    );
    graph.edges.retain(|e| e.1 != "output");
    graph
        .edges
        .extend([edge("fc1", "last"), edge("last", "output")]);
    let found = from_graph::network(&graph, &ImportOptions::default(), Device::Cpu)
        .unwrap()
        .network;
    let counts = logits(&found, &random_images(&[8, 2, 4, 4], 4), 5);
    assert!(counts.eq_tensor(&counts.round()).all().int64_value(&[]) == 1);
    let most = counts.max().double_value(&[]);
    assert!((1. ..=5.).contains(&most), "{most}");
}

#[test]
fn a_cut_or_foreign_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.nir");
    hdf5::write(&small(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let e = super::import(&path, &ImportOptions::default(), Device::Cpu).unwrap_err();
        assert!(!e.to_string().is_empty(), "{length}");
    }
    std::fs::write(&path, b"not HDF5").unwrap();
    let e = super::import(&path, &ImportOptions::default(), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("net.nir: expected a NIR file (HDF5), found something else"),
        "{e}"
    );
}

#[test]
fn a_flipped_byte_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.nir");
    hdf5::write(&small(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= rng.random_range(1..=255u8);
        std::fs::write(&path, &bytes).unwrap();
        // Some flips only change a weight.
        let _ = super::import(Path::new(&path), &ImportOptions::default(), Device::Cpu);
    }
}

/// What NIR's package wrote, some of it from snnTorch (`nir_peer.py`), against the outputs of snnTorch.
#[test]
fn files_of_the_nir_package_are_imported_and_spike_as_in_snntorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    let expected = fewstep_torch::Checkpoint::load(&folder.join("nir.safetensors")).unwrap();
    let images = expected.tensor("images").unwrap();
    for (name, layers, tolerance) in [("sequence", 4, 0.), ("residual", 5, 1e-5)] {
        for timesteps in [1, 4] {
            let options = ImportOptions {
                timesteps: Some(timesteps),
                ..Default::default()
            };
            let path = folder.join(format!("nir-{name}.nir"));
            let imported = super::import(&path, &options, Device::Cpu).unwrap();
            assert_eq!(imported.network.plan().units.len(), layers, "{name}");
            let found = logits(&imported.network, images, timesteps);
            let wanted = expected.tensor(&format!("{name}/T{timesteps}")).unwrap();
            let off = (found - wanted).abs().max().double_value(&[]);
            assert!(off <= tolerance, "{name} T={timesteps}: off by {off:e}");
        }
    }
}
