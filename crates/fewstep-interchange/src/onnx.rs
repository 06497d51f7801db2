//! ONNX (<https://onnx.ai>), for onnxruntime and whatever else reads it: the artificial network with ReLU, or the spiking one at T = 1,
//! where a neuron that starts from 0 is a comparison: `Cast(Greater(current, threshold))`. Leak, reset and surrogate have no part in that.
//!
//! Input `image`, float `[N, C, H, W]` normalised as in training (the notes say how); output `logits`, float `[N, classes]`. N is free.
//! Notes become the model's `metadata_props`.

mod proto;
#[cfg(test)]
mod tests;

use std::path::Path;

use fewstep_spiking::plan::{Connection, UnitPlan};
use fewstep_spiking::{Network, Synapse, Unit};
use fewstep_torch::checkpoint::write_atomically;
use prost::Message;
use tch::Tensor;

use self::proto::{
    Attribute, Dimension, Entry, FLOAT, Graph, Model, Node, OperatorSet, Shape, Size, TensorType,
    Type, ValueInfo,
};
use crate::{Error, Notes, Result, expect_folded, values};

/// Old enough for every runtime in use, and it has all that is needed.
const OPSET: i64 = 17;
/// The format's version that belongs to it.
const IR_VERSION: i64 = 8;
/// protobuf can't hold more.
const LARGEST_BYTES: usize = i32::MAX as usize;

/// Writes the artificial network.
///
/// # Errors
/// Its batch norm is not folded, it is larger than 2 GiB, or the file can't be written.
pub fn export_ann(network: &Network, notes: &Notes, path: &Path) -> Result<()> {
    write(&model(network, false, notes)?, path)
}

/// Writes the spiking network as it runs at one timestep.
///
/// # Errors
/// It has no neurons, its batch norm is not folded, it is larger than 2 GiB, or the file can't be written.
pub fn export_snn(network: &Network, notes: &Notes, path: &Path) -> Result<()> {
    write(&model(network, true, notes)?, path)
}

fn write(model: &Model, path: &Path) -> Result<()> {
    let size = model.encoded_len();
    if size > LARGEST_BYTES {
        return Err(Error::Unsupported(format!(
            "expected a network of at most 2 GiB, which is as much as ONNX holds in one file, found {size} bytes"
        )));
    }
    Ok(write_atomically(path, &model.encode_to_vec())?)
}

fn model(network: &Network, spiking: bool, notes: &Notes) -> Result<Model> {
    expect_folded(network)?;
    let plan = network.plan();
    let mut b = Builder::default();
    let mut x = "image".to_owned();
    let mut flat = false;
    let mut outputs: Vec<String> = Vec::new();
    for (unit, planned) in network.units().iter().zip(&plan.units) {
        let linear = matches!(planned.connection, Connection::Linear { .. });
        if linear && !flat {
            x = b.node("Flatten", "flatten", &[&x], vec![int("axis", 1)]);
            flat = true;
        }
        if !planned.active {
            b.connection(&unit.name, "logits", &unit.synapse, &x)?;
            break;
        }
        let name = &unit.name;
        let mut current = b.connection(name, &format!("{name}.current"), &unit.synapse, &x)?;
        if let Some(shortcut) = planned.shortcut {
            let from = outputs.get(shortcut.from).cloned().ok_or_else(|| {
                Error::Unsupported(format!("layer `{name}`: its shortcut comes from nowhere"))
            })?;
            let side = match &unit.projection {
                Some(p) => {
                    let name = format!("{name}.projection");
                    b.connection(&name, &format!("{name}.current"), p, &from)?
                }
                None => from,
            };
            current = b.node("Add", &format!("{name}.sum"), &[&current, &side], vec![]);
        }
        x = if spiking {
            b.spikes(unit, planned, &current)?
        } else {
            b.node("Relu", &format!("{name}.relu"), &[&current], vec![])
        };
        if planned.pool {
            let sizes = vec![ints("kernel_shape", [2; 2]), ints("strides", [2; 2])];
            x = b.node("AveragePool", &format!("{name}.pool"), &[&x], sizes);
        }
        outputs.push(x.clone());
    }
    let (input, classes) = (plan.input, plan.classes());
    let graph = Graph {
        name: plan.name.clone(),
        input: vec![value("image", &input)],
        output: vec![value("logits", &[classes])],
        ..b.graph
    };
    Ok(Model {
        ir_version: IR_VERSION,
        producer_name: "fewstep".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSet {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: notes
            .iter()
            .map(|(key, value)| Entry {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
    })
}

#[derive(Default)]
struct Builder {
    graph: Graph,
}

impl Builder {
    /// Adds a node with one output of its own name; returns that.
    fn node(&mut self, op: &str, name: &str, inputs: &[&str], attribute: Vec<Attribute>) -> String {
        self.graph.node.push(Node {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute,
        });
        name.to_owned()
    }

    fn constant(&mut self, name: String, tensor: &Tensor, dims: Vec<i64>) -> Result<String> {
        let raw_data = values(tensor)?
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        self.graph.initializer.push(proto::Tensor {
            dims,
            data_type: FLOAT,
            name: name.clone(),
            raw_data,
        });
        Ok(name)
    }

    fn connection(
        &mut self,
        layer: &str,
        output: &str,
        synapse: &Synapse,
        input: &str,
    ) -> Result<String> {
        let shape = synapse.connection.weight_shape();
        let mut inputs = vec![
            input.to_owned(),
            self.constant(format!("{layer}.weight"), &synapse.weight, shape)?,
        ];
        if let Some(bias) = &synapse.bias {
            let n = synapse.connection.outputs();
            inputs.push(self.constant(format!("{layer}.bias"), bias, vec![n])?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(match synapse.connection {
            Connection::Conv {
                kernel,
                stride,
                padding,
                ..
            } => {
                let sizes = vec![
                    ints("kernel_shape", [kernel; 2]),
                    ints("strides", [stride; 2]),
                    ints("pads", [padding; 4]),
                ];
                self.node("Conv", output, &inputs, sizes)
            }
            Connection::Linear { .. } => self.node("Gemm", output, &inputs, vec![int("transB", 1)]),
        })
    }

    fn spikes(&mut self, unit: &Unit, planned: &UnitPlan, current: &str) -> Result<String> {
        let name = &unit.name;
        let neuron = unit.neuron.as_ref().ok_or_else(|| {
            Error::Unsupported(format!(
                "layer `{name}`: expected neurons, found none; the artificial network is exported with export_ann"
            ))
        })?;
        // [C, 1, 1] goes with [N, C, H, W], [C] with [N, C]; one value goes with either.
        let mut dims = neuron.threshold.size();
        if dims != [1] && matches!(planned.connection, Connection::Conv { .. }) {
            dims.extend([1, 1]);
        }
        let threshold = self.constant(format!("{name}.threshold"), &neuron.threshold, dims)?;
        let above = self.node(
            "Greater",
            &format!("{name}.above"),
            &[current, &threshold],
            vec![],
        );
        let to_float = vec![int("to", i64::from(FLOAT))];
        Ok(self.node("Cast", &format!("{name}.spikes"), &[&above], to_float))
    }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute {
        name: name.into(),
        i,
        r#type: 2,
        ..Attribute::default()
    }
}

fn ints<const N: usize>(name: &str, ints: [i64; N]) -> Attribute {
    Attribute {
        name: name.into(),
        ints: ints.into(),
        r#type: 7,
        ..Attribute::default()
    }
}

/// Float `[N, …]`.
fn value(name: &str, sizes: &[i64]) -> ValueInfo {
    let sizes = sizes.iter().map(|&n| Size::Value(n));
    let dim = std::iter::once(Size::Name("N".into()))
        .chain(sizes)
        .map(|size| Dimension { value: Some(size) })
        .collect();
    ValueInfo {
        name: name.into(),
        r#type: Some(Type {
            tensor_type: Some(TensorType {
                elem_type: FLOAT,
                shape: Some(Shape { dim }),
            }),
        }),
    }
}
