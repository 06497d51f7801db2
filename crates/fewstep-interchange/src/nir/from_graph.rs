//! A NIR graph as a network: the chain of units is found by walking from `Input`, shortcuts are what enters a neuron beside it.

mod layers;

use std::collections::{BTreeMap, BTreeSet};

use fewstep_spiking::plan::{Connection, Plan, Shortcut, UnitPlan};
use fewstep_spiking::{Reset, Surrogate};
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};

use self::layers::{Layer, NeuronValues};
use super::graph::{Array, Graph, Named};
use super::{DT, ImportOptions, OWN};
use crate::checkpoint::assemble;
use crate::{Error, Imported, Notes, Result};

/// Neurons at the end of a network that a read-out may count.
const MOST_COUNTED: i64 = 4096;

const KNOWN: [&str; 9] = [
    "Input",
    "Output",
    "Conv2d",
    "Linear",
    "Affine",
    "IF",
    "LIF",
    "AvgPool2d",
    "Flatten",
];

pub(super) fn network(graph: &Graph, options: &ImportOptions, device: Device) -> Result<Imported> {
    let reset = match options.reset {
        Some(reset) => reset,
        None => word::<Reset>(graph, "reset", false)?.unwrap_or(Reset::Hard),
    };
    let surrogate = word::<Surrogate>(graph, "surrogate", true)?.unwrap_or_default();
    let timesteps = match options.timesteps {
        Some(t) => t,
        None => word::<u32>(graph, "timesteps", true)?.unwrap_or(1),
    };
    let dt = match options.dt {
        Some(dt) => dt,
        None => word::<f64>(graph, "dt", true)?.unwrap_or(DT),
    };
    if timesteps == 0 || !(dt > 0. && dt.is_finite()) {
        return Err(Error::Graph(format!(
            "expected at least one timestep and a positive dt, found {timesteps} and {dt}"
        )));
    }
    let joined = Joined::new(graph)?;
    let mut walk = Walk {
        joined: &joined,
        dt,
        timesteps,
        units: Vec::new(),
        tensors: BTreeMap::new(),
        taps: BTreeMap::new(),
    };
    let input = walk.run()?;
    let name = graph.metadata.get("architecture").and_then(Array::as_text);
    let plan = Plan {
        name: name.unwrap_or("imported").to_owned(),
        input,
        units: walk.units,
    };
    let network = assemble(plan, reset, surrogate, &walk.tensors, "the graph", device)?;
    let notes: Notes = graph
        .metadata
        .iter()
        .filter(|(key, _)| !OWN.contains(&key.as_str()))
        .filter_map(|(key, value)| Some((key.clone(), value.as_text()?.to_owned())))
        .collect();
    Ok(Imported {
        network,
        timesteps,
        notes,
    })
}

/// An entry of the graph's metadata: JSON, or a plain word.
fn word<T: DeserializeOwned>(graph: &Graph, key: &str, is_json: bool) -> Result<Option<T>> {
    let Some(value) = graph.metadata.get(key) else {
        return Ok(None);
    };
    let text = value.as_text().unwrap_or_default();
    let parsed = if is_json {
        serde_json::from_str(text)
    } else {
        serde_json::from_value(text.into())
    };
    parsed.map(Some).map_err(|e| {
        Error::Graph(format!(
            "its metadata `{key}` can't be understood ({e}), found {text:?}"
        ))
    })
}

/// A graph whose edges are sound: every end exists, nothing lies on a cycle or loose.
struct Joined<'a> {
    graph: &'a Graph,
    into: BTreeMap<&'a str, Vec<&'a str>>,
    out_of: BTreeMap<&'a str, Vec<&'a str>>,
    input: &'a str,
}

impl<'a> Joined<'a> {
    fn new(graph: &'a Graph) -> Result<Self> {
        for (name, node) in &graph.nodes {
            if !KNOWN.contains(&node.kind.as_str()) {
                let reason = format!(
                    "its type `{}` is none that Fewstep has a layer for ({})",
                    node.kind,
                    KNOWN.join(", ")
                );
                return Err(Error::node(name, reason));
            }
        }
        let mut into: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut out_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (a, b) in &graph.edges {
            for end in [a, b] {
                if !graph.nodes.contains_key(end) {
                    return Err(Error::node(
                        end,
                        "an edge names it, but there is no such node",
                    ));
                }
            }
            if !seen.insert((a, b)) {
                return Err(Error::node(
                    b,
                    format!("the edge from `{a}` is there twice"),
                ));
            }
            into.entry(b).or_default().push(a);
            out_of.entry(a).or_default().push(b);
        }
        let only = |kind: &str| -> Result<&'a str> {
            let mut found = graph.nodes.iter().filter(|(_, n)| n.kind == kind);
            match (found.next(), found.next()) {
                (Some((name, _)), None) => Ok(name),
                (None, _) => Err(Error::Graph(format!(
                    "expected one {kind} node, found none"
                ))),
                (Some(_), Some((second, _))) => Err(Error::node(
                    second,
                    format!("a second {kind} node, expected one"),
                )),
            }
        };
        let (input, output) = (only("Input")?, only("Output")?);
        for name in graph.nodes.keys().map(String::as_str) {
            if name != input && !into.contains_key(name) {
                return Err(Error::node(name, "expected an edge into it, found none"));
            }
            if name != output && !out_of.contains_key(name) {
                return Err(Error::node(name, "expected an edge out of it, found none"));
            }
        }
        let joined = Self {
            graph,
            into,
            out_of,
            input,
        };
        joined.refuse_cycles()?;
        Ok(joined)
    }

    /// Takes away what nothing waits for until nothing is left; what stays lies on a cycle or behind one.
    fn refuse_cycles(&self) -> Result<()> {
        let mut waits: BTreeMap<&str, usize> =
            self.into.iter().map(|(n, v)| (*n, v.len())).collect();
        let mut free = vec![self.input];
        while let Some(node) = free.pop() {
            for &next in self.after(node) {
                if let Some(left) = waits.get_mut(next) {
                    *left -= 1;
                    if *left == 0 {
                        waits.remove(next);
                        free.push(next);
                    }
                }
            }
        }
        match waits.keys().next() {
            Some(name) => Err(Error::node(
                name,
                "it lies on a cycle or behind one; recurrent networks can't be imported",
            )),
            None => Ok(()),
        }
    }

    fn named(&self, name: &'a str) -> Named<'a> {
        Named {
            name,
            node: &self.graph.nodes[name],
        }
    }

    fn kind(&self, name: &str) -> &str {
        &self.graph.nodes[name].kind
    }

    fn after(&self, name: &str) -> &[&'a str] {
        self.out_of.get(name).map_or(&[], Vec::as_slice)
    }

    fn before(&self, name: &str) -> &[&'a str] {
        self.into.get(name).map_or(&[], Vec::as_slice)
    }

    fn is_neuron(&self, name: &str) -> bool {
        matches!(self.kind(name), "IF" | "LIF")
    }

    fn is_connection(&self, name: &str) -> bool {
        matches!(self.kind(name), "Conv2d" | "Linear" | "Affine")
    }

    /// The one node of a kind among those that follow; it must then be the only one to follow.
    fn then(&self, name: &'a str, kind: &str) -> Result<Option<&'a str>> {
        let after = self.after(name);
        match after.iter().find(|n| self.kind(n) == kind) {
            Some(next) if after.len() == 1 && self.before(next).len() == 1 => Ok(Some(next)),
            Some(next) => Err(Error::node(
                next,
                format!("expected `{name}` to lead to this {kind} alone, and nothing else into it"),
            )),
            None => Ok(None),
        }
    }
}

struct Walk<'a> {
    joined: &'a Joined<'a>,
    dt: f64,
    timesteps: u32,
    units: Vec<UnitPlan>,
    tensors: BTreeMap<String, Tensor>,
    /// Nodes that give out what a unit puts out, and which unit.
    taps: BTreeMap<&'a str, usize>,
}

impl<'a> Walk<'a> {
    /// Follows the chain from `Input` to `Output`; returns the input's shape.
    fn run(&mut self) -> Result<[i64; 3]> {
        let joined = self.joined;
        let mut tail = joined.input;
        let (mut shape, mut flat) = layers::input_shape(joined.named(tail))?;
        let input = shape;
        loop {
            if joined.is_neuron(tail) {
                if let Some(pool) = joined.then(tail, "AvgPool2d")? {
                    layers::check_pool(joined.named(pool), shape, flat)?;
                    shape = [shape[0], shape[1] / 2, shape[2] / 2];
                    if let Some(last) = self.units.last_mut() {
                        (last.pool, last.dropout) = (true, false);
                    }
                    tail = pool;
                }
                self.taps.insert(tail, self.units.len() - 1);
                if joined.then(tail, "Output")?.is_some() {
                    self.count_spikes(tail, shape, flat)?;
                    return Ok(input);
                }
            }
            let before_flat = tail;
            if let Some(flatten) = joined.then(tail, "Flatten")? {
                (tail, flat) = (flatten, true);
            }
            let (main, beside, target) = self.next(tail)?;
            let layer = Layer::read(joined.named(main), shape, flat)?;
            let active = joined.is_neuron(target);
            let shortcut = match beside {
                Some(node) => {
                    Some(self.shortcut(node, before_flat, joined.named(target), &layer)?)
                }
                None => None,
            };
            self.push(main, &layer, shortcut, joined.named(target), active)?;
            if !active {
                return Ok(input);
            }
            (tail, shape) = (target, layer.output);
            flat = matches!(layer.connection, Connection::Linear { .. });
        }
    }

    /// The connection that goes on from `tail`, what else enters its target, and the target.
    fn next(&self, tail: &'a str) -> Result<(&'a str, Option<&'a str>, &'a str)> {
        let joined = self.joined;
        let mut ready: Vec<(&str, &str)> = Vec::new();
        for &node in joined.after(tail) {
            if !joined.is_connection(node) {
                if joined.is_neuron(node) && self.taps.contains_key(tail) {
                    continue; // A shortcut that is taken up where it enters.
                }
                let reason = format!(
                    "a {} can't follow `{tail}`: expected a Conv2d, Linear or Affine there",
                    joined.kind(node)
                );
                return Err(Error::node(node, reason));
            }
            if joined.before(node).len() > 1 {
                let reason = "several nodes enter it; sums are for neurons alone";
                return Err(Error::node(node, reason));
            }
            let &[target] = joined.after(node) else {
                return Err(Error::node(
                    node,
                    "expected it to lead to one node, found several",
                ));
            };
            if !joined.is_neuron(target) && joined.kind(target) != "Output" {
                let reason = format!(
                    "a {} can't follow `{node}`: expected neurons (IF, LIF) or Output there",
                    joined.kind(target)
                );
                return Err(Error::node(target, reason));
            }
            let placed = |n: &str| {
                let source = if joined.is_connection(n) {
                    joined.before(n)[0]
                } else {
                    n
                };
                source == tail || self.taps.contains_key(source)
            };
            if joined.before(target).iter().all(|n| placed(n)) {
                ready.push((node, target));
            }
        }
        let Some(&(main, target)) = ready.first() else {
            return Err(Error::node(
                tail,
                "the layers that follow it wait for each other: expected a chain with shortcuts",
            ));
        };
        if let Some(&(other, _)) = ready.iter().find(|(_, t)| *t != target) {
            let reason =
                format!("it and `{main}` fork the network: expected a chain with shortcuts");
            return Err(Error::node(other, reason));
        }
        let mut beside = joined.before(target).iter().filter(|n| **n != main);
        let second = beside.next().copied();
        if let Some(third) = beside.next() {
            let reason = format!("`{third}` is a third input, expected one shortcut at most");
            return Err(Error::node(target, reason));
        }
        if second.is_some() && !joined.is_neuron(target) {
            return Err(Error::node(target, "expected one edge into it, found two"));
        }
        Ok((main, second, target))
    }

    fn shortcut(
        &mut self,
        node: &'a str,
        tail: &'a str,
        target: Named,
        main: &Layer,
    ) -> Result<(Shortcut, Option<Layer>)> {
        let joined = self.joined;
        let projects = joined.is_connection(node);
        let source = if projects {
            joined.before(node)[0]
        } else {
            node
        };
        let Some(&from) = self.taps.get(source) else {
            let reason = format!(
                "its shortcut comes from `{source}`: expected neurons, or the pool behind them{}",
                if source == tail {
                    ""
                } else {
                    ", before any Flatten"
                }
            );
            return Err(target.fault(reason));
        };
        let planned = &self.units[from];
        let [c, h, w] = planned.output;
        let shape = if planned.pool {
            [c, h / 2, w / 2]
        } else {
            [c, h, w]
        };
        let flat = matches!(planned.connection, Connection::Linear { .. });
        let layer = match projects {
            true => Some(Layer::read(joined.named(node), shape, flat)?),
            false => None,
        };
        let enters = layer.as_ref().map_or(shape, |l| l.output);
        if enters != main.output {
            let reason = format!(
                "what enters it has shapes {:?} and {enters:?}, expected one shape",
                main.output
            );
            return Err(target.fault(reason));
        }
        let projection = layer.as_ref().map(|l| l.connection);
        Ok((Shortcut { from, projection }, layer))
    }

    fn push(
        &mut self,
        name: &str,
        layer: &Layer,
        shortcut: Option<(Shortcut, Option<Layer>)>,
        target: Named,
        active: bool,
    ) -> Result<()> {
        let (shortcut, projected) = match shortcut {
            Some((s, layer)) => (Some(s), layer),
            None => (None, None),
        };
        // Both have a bias or none.
        let bias = layer.has_bias() || projected.as_ref().is_some_and(Layer::has_bias);
        let scale = if active { 1. } else { self.timesteps as f32 };
        layer.tensors(name, bias, scale, &mut self.tensors)?;
        if let Some(p) = &projected {
            p.tensors(&format!("{name}.projection"), bias, 1., &mut self.tensors)?;
        }
        if active {
            NeuronValues::read(target, layer, self.dt)?.tensors(name, &mut self.tensors)?;
        } else {
            layers::check_output(target, layer)?;
        }
        self.units.push(UnitPlan {
            name: name.to_owned(),
            connection: layer.connection,
            batch_norm: false,
            bias,
            shortcut,
            active,
            pool: false,
            dropout: active && shortcut.is_none(),
            output: layer.output,
        });
        Ok(())
    }

    /// A network that ends in neurons: an identity sums their spikes.
    fn count_spikes(&mut self, tail: &str, shape: [i64; 3], flat: bool) -> Result<()> {
        if !flat && shape[1..] != [1, 1] {
            let reason =
                format!("it leads to Output with shape {shape:?}, expected a vector of classes");
            return Err(Error::node(tail, reason));
        }
        // As many weights squared: a short file shall not ask for all memory.
        if shape[0] > MOST_COUNTED {
            let reason = format!(
                "it leads to Output with {} neurons, expected at most {MOST_COUNTED}",
                shape[0]
            );
            return Err(Error::node(tail, reason));
        }
        let layer = Layer::identity(shape[0]);
        layer.tensors("spike_counts", false, 1., &mut self.tensors)?;
        self.units.push(UnitPlan {
            name: "spike_counts".into(),
            connection: layer.connection,
            batch_norm: false,
            bias: false,
            shortcut: None,
            active: false,
            pool: false,
            dropout: false,
            output: layer.output,
        });
        Ok(())
    }
}
