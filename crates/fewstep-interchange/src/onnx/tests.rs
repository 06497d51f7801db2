use std::collections::BTreeSet;

use fewstep_spiking::{Network, NeuronOptions, zoo};
use prost::Message;
use tch::Device;

use super::{Model, export_ann, export_snn};
use crate::Notes;
use crate::nir::tests::random_network;

/// Writes a network and decodes the file.
fn decoded(network: &Network, spiking: bool) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    let notes = Notes::from([("run".into(), "ours".into())]);
    if spiking {
        export_snn(network, &notes, &path).unwrap();
    } else {
        export_ann(network, &notes, &path).unwrap();
    }
    Model::decode(std::fs::read(&path).unwrap().as_slice()).unwrap()
}

fn operators(model: &Model) -> Vec<&str> {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().map(|n| n.op_type.as_str()).collect()
}

#[test]
fn the_artificial_network_has_relu_where_the_spiking_one_compares() {
    let plan = zoo::vgg("4 A 6", [3, 8, 8], &[5], 3, 1., false).unwrap();
    let network = random_network(plan, &NeuronOptions::default(), 1);
    let ann = decoded(&network, false);
    assert_eq!(
        operators(&ann),
        [
            "Conv",
            "Relu",
            "AveragePool",
            "Conv",
            "Relu",
            "Flatten",
            "Gemm",
            "Relu",
            "Gemm"
        ]
    );
    let snn = decoded(&network, true);
    assert_eq!(
        operators(&snn),
        [
            "Conv",
            "Greater",
            "Cast",
            "AveragePool",
            "Conv",
            "Greater",
            "Cast",
            "Flatten",
            "Gemm",
            "Greater",
            "Cast",
            "Gemm"
        ]
    );
    assert_eq!(snn.opset_import[0].version, 17);
    assert_eq!(snn.metadata_props[0].key, "run");
}

#[test]
fn every_input_of_a_node_is_there_before_it_and_every_initialiser_has_its_bytes() {
    for (name, per_channel) in [("resnet20", true), ("4 A 6", false)] {
        let plan = zoo::by_name(name, [3, 16, 16], &[5], 3, 0.125, false).unwrap();
        let neuron = NeuronOptions {
            per_channel,
            ..Default::default()
        };
        let network = random_network(plan, &neuron, 1);
        for spiking in [false, true] {
            let model = decoded(&network, spiking);
            let graph = model.graph.unwrap();
            let mut known: BTreeSet<&str> = BTreeSet::from(["image"]);
            for tensor in &graph.initializer {
                let elements: i64 = tensor.dims.iter().product();
                assert_eq!(
                    tensor.raw_data.len() as i64,
                    4 * elements,
                    "{}",
                    tensor.name
                );
                assert!(known.insert(&tensor.name), "{} twice", tensor.name);
            }
            for node in &graph.node {
                for input in &node.input {
                    assert!(
                        known.contains(input.as_str()),
                        "{} before {input}",
                        node.name
                    );
                }
                assert!(known.insert(&node.output[0]), "{} twice", node.output[0]);
            }
            assert!(known.contains("logits"));
            let weights: Vec<f32> = graph
                .initializer
                .iter()
                .find(|t| t.name == network.units()[1].name.clone() + ".weight")
                .unwrap()
                .raw_data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let own = &network.units()[1].synapse.weight;
            assert_eq!(
                weights,
                Vec::<f32>::try_from(own.detach().flatten(0, -1)).unwrap()
            );
        }
    }
}

#[test]
fn a_network_with_batch_norm_or_without_neurons_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    let unfolded = Network::new(
        zoo::vgg("4", [1, 4, 4], &[], 3, 1., true).unwrap(),
        Device::Cpu,
    )
    .unwrap();
    assert_eq!(
        export_ann(&unfolded, &Notes::new(), &path)
            .unwrap_err()
            .to_string(),
        "layer `conv1`: expected batch norm folded into its weights, found it beside them"
    );
    let analog = Network::new(
        zoo::vgg("4", [1, 4, 4], &[], 3, 1., false).unwrap(),
        Device::Cpu,
    )
    .unwrap();
    assert_eq!(
        export_snn(&analog, &Notes::new(), &path)
            .unwrap_err()
            .to_string(),
        "layer `conv1`: expected neurons, found none; the artificial network is exported with export_ann"
    );
    assert!(!path.exists());
}
