//! A network as a NIR graph.

use fewstep_spiking::plan::{Connection, UnitPlan};
use fewstep_spiking::{Network, Neuron, Synapse};
use serde_json::json;

use super::graph::{Array, Data, Graph, Node};
use super::{DT, OWN};
use crate::checkpoint::first_neuron;
use crate::{Error, Notes, Result, expect_folded, values};

pub(super) fn graph(network: &Network, timesteps: u32, notes: &Notes) -> Result<Graph> {
    expect_folded(network)?;
    let first = first_neuron(network)?;
    if timesteps == 0 {
        return Err(Error::Unsupported(
            "timesteps: expected at least 1, found 0".into(),
        ));
    }
    let plan = network.plan();
    let mut b = Builder::default();
    let mut shape = plan.input.to_vec();
    let mut tail = b.add(
        "input",
        Node::new("Input", [("shape", Array::ints(&shape))]),
        &[],
    );
    // Where a later shortcut finds each unit's output.
    let mut taps: Vec<String> = Vec::new();
    for (unit, planned) in network.units().iter().zip(&plan.units) {
        if matches!(planned.connection, Connection::Linear { .. }) && shape.len() > 1 {
            let node = Node::new(
                "Flatten",
                [
                    ("input_type", Array::ints(&shape)),
                    ("start_dim", Array::int(0)),
                    ("end_dim", Array::int(-1)),
                ],
            );
            tail = b.add("flatten", node, &[&tail]);
        }
        let scale = if planned.active {
            1.
        } else {
            1. / timesteps as f32
        };
        let connection = b.add(
            &unit.name,
            connected(&unit.synapse, &shape, scale)?,
            &[&tail],
        );
        let mut sources = vec![connection.clone()];
        if let Some(shortcut) = planned.shortcut {
            let from = taps.get(shortcut.from).ok_or_else(|| {
                Error::Unsupported(format!(
                    "layer `{}`: its shortcut comes from nowhere",
                    unit.name
                ))
            })?;
            sources.push(match &unit.projection {
                None => from.clone(),
                Some(p) => {
                    let at = source_shape(&plan.units[shortcut.from]);
                    b.add(
                        &format!("{}.projection", unit.name),
                        connected(p, &at, 1.)?,
                        &[from],
                    )
                }
            });
        }
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let Some(neuron) = &unit.neuron else {
            let node = Node::new(
                "Output",
                [("shape", Array::ints(&[planned.connection.outputs()]))],
            );
            b.add("output", node, &sources);
            break;
        };
        tail = b.add(
            &format!("{}.neuron", unit.name),
            spiking(neuron, planned)?,
            &sources,
        );
        if planned.pool {
            let two = || Array::ints(&[2, 2]);
            let node = Node::new(
                "AvgPool2d",
                [
                    ("kernel_size", two()),
                    ("stride", two()),
                    ("padding", Array::ints(&[0, 0])),
                ],
            );
            tail = b.add(&format!("{}.pool", unit.name), node, &[&tail]);
        }
        taps.push(tail.clone());
        shape = source_shape(planned);
    }
    let mut graph = b.graph;
    let name = |v: serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let own = [
        name(json!(first.reset())),
        json!(first.surrogate()).to_string(),
        timesteps.to_string(),
        format!("{DT:e}"),
        "direct".into(),
        "summed over timesteps".into(),
        plan.name.clone(),
    ];
    let theirs = notes.iter().map(|(k, v)| (k.clone(), v.clone()));
    graph.metadata = theirs
        .chain(OWN.map(str::to_owned).into_iter().zip(own))
        .map(|(key, text)| (key, Array::text(&text)))
        .collect();
    Ok(graph)
}

/// What leaves a unit: `[C, H, W]`, pooled, or `[N]`.
fn source_shape(planned: &UnitPlan) -> Vec<i64> {
    match (planned.connection, planned.output) {
        (Connection::Linear { outputs, .. }, _) => vec![outputs],
        (_, [c, h, w]) if planned.pool => vec![c, h / 2, w / 2],
        (_, shape) => shape.to_vec(),
    }
}

fn connected(synapse: &Synapse, input: &[i64], bias_scale: f32) -> Result<Node> {
    let shape = synapse.connection.weight_shape();
    let weight = Array::floats(values(&synapse.weight)?, &shape);
    let n = synapse.connection.outputs();
    let bias = match &synapse.bias {
        Some(b) => Some(values(b)?.into_iter().map(|x| x * bias_scale).collect()),
        None => None,
    };
    Ok(match synapse.connection {
        Connection::Conv {
            stride, padding, ..
        } => Node::new(
            "Conv2d",
            [
                ("input_shape", Array::ints(&input[input.len().min(1)..])),
                ("weight", weight),
                ("stride", Array::ints(&[stride; 2])),
                ("padding", Array::ints(&[padding; 2])),
                ("dilation", Array::ints(&[1; 2])),
                ("groups", Array::int(1)),
                // NIR's convolution always has one.
                (
                    "bias",
                    Array::floats(bias.unwrap_or_else(|| vec![0.; n as usize]), &[n]),
                ),
            ],
        ),
        Connection::Linear { .. } => match bias {
            Some(bias) => Node::new(
                "Affine",
                [("weight", weight), ("bias", Array::floats(bias, &[n]))],
            ),
            None => Node::new("Linear", [("weight", weight)]),
        },
    })
}

fn spiking(neuron: &Neuron, planned: &UnitPlan) -> Result<Node> {
    let shape = match planned.connection {
        Connection::Conv { .. } => planned.output.to_vec(),
        Connection::Linear { outputs, .. } => vec![outputs],
    };
    let area = shape.iter().skip(1).product::<i64>() as usize;
    let channels = shape[0] as usize;
    // One value a neuron, as NIR wants it.
    let spread = |v: &[f32]| -> Array {
        let all = (0..channels)
            .flat_map(|c| std::iter::repeat_n(v[if v.len() == 1 { 0 } else { c }], area))
            .collect();
        Array::floats(all, &shape)
    };
    let (threshold, leak) = (values(&neuron.threshold)?, values(&neuron.leak)?);
    let mut node = if leak.iter().all(|&l| l == 1.) {
        Node::new(
            "IF",
            [
                ("r", spread(&[1.])),
                ("v_reset", spread(&[0.])),
                ("v_threshold", spread(&threshold)),
            ],
        )
    } else {
        // τ in units of Δt is R; infinite at λ = 1.
        let steps: Vec<f64> = leak
            .iter()
            .map(|&l| 1. / (1. - f64::from(l.min(1. - f32::EPSILON / 2.))))
            .collect();
        let tau: Vec<f32> = steps.iter().map(|n| (n * DT) as f32).collect();
        let r: Vec<f32> = steps.iter().map(|&n| n as f32).collect();
        Node::new(
            "LIF",
            [
                ("tau", spread(&tau)),
                ("r", spread(&r)),
                ("v_leak", spread(&[0.])),
                ("v_reset", spread(&[0.])),
                ("v_threshold", spread(&threshold)),
            ],
        )
    };
    let exact = Array {
        shape: vec![leak.len() as u64],
        data: Data::F32(leak),
    };
    node.metadata.insert("leak".into(), exact);
    Ok(node)
}

#[derive(Default)]
struct Builder {
    graph: Graph,
}

impl Builder {
    /// Adds a node behind `sources`; returns its name, which a network that was imported may make longer.
    fn add(&mut self, name: &str, node: Node, sources: &[&str]) -> String {
        let mut name = name.to_owned();
        while self.graph.nodes.contains_key(&name) {
            name.push('_');
        }
        self.graph.nodes.insert(name.clone(), node);
        let edges = sources.iter().map(|&s| (s.to_owned(), name.clone()));
        self.graph.edges.extend(edges);
        name
    }
}
