//! A NIR graph as it lies in a file: HDF5 with a string `version` and a group `node`, which holds `type`, `edges` (pairs of names), a
//! group `nodes` with one group a node, and `metadata`. Every value of a node is a dataset named as in NIR's Python package.

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_torch::checkpoint::write_atomically;
use hdf5_pure::{DType, File, FileBuilder, Group, GroupBuilder};

use super::graph::{Array, Data, Graph, Node};
use crate::{Error, Result};

/// The version of NIR's Python package whose layout this is.
const VERSION: &str = "1.0.8";
/// Constant arrays of one value a neuron shrink to nothing; weights do not, and are left as they are.
const COMPRESSION: u32 = 4;

/// Writes the graph, whole or not at all.
pub(super) fn write(graph: &Graph, path: &Path) -> Result<()> {
    let mut file = FileBuilder::new();
    file.create_dataset("version")
        .with_vlen_strings(&[VERSION])
        .with_shape(&[]);
    let mut root = file.create_group("node");
    put(&mut root, "type", &Array::text("NIRGraph"));
    let ends: Vec<String> = graph
        .edges
        .iter()
        .flat_map(|(a, b)| [a.clone(), b.clone()])
        .collect();
    let edges = Array {
        shape: vec![graph.edges.len() as u64, 2],
        data: Data::Text(ends),
    };
    put(&mut root, "edges", &edges);
    put_metadata(&mut root, &graph.metadata);
    let mut nodes = root.create_group("nodes");
    for (name, node) in &graph.nodes {
        let mut group = nodes.create_group(name);
        put(&mut group, "type", &Array::text(&node.kind));
        for (key, value) in &node.values {
            put(&mut group, key, value);
        }
        put_metadata(&mut group, &node.metadata);
        nodes.add_group(group.finish());
    }
    root.add_group(nodes.finish());
    file.add_group(root.finish());
    let bytes = file.finish().map_err(|e| Error::File {
        path: path.into(),
        reason: format!("could not be written as HDF5: {e}"),
    })?;
    Ok(write_atomically(path, &bytes)?)
}

fn put(group: &mut GroupBuilder, key: &str, value: &Array) {
    let dataset = group.create_dataset(key);
    match &value.data {
        Data::F32(v) => dataset.with_f32_data(v),
        Data::F64(v) => dataset.with_f64_data(v),
        Data::Int(v) => dataset.with_i64_data(v),
        Data::Text(v) => {
            dataset.with_vlen_strings(&v.iter().map(String::as_str).collect::<Vec<_>>())
        }
    };
    dataset.with_shape(&value.shape);
    if value.constant() {
        dataset.with_chunks(&value.shape).with_deflate(COMPRESSION);
    }
}

fn put_metadata(group: &mut GroupBuilder, metadata: &BTreeMap<String, Array>) {
    if !metadata.is_empty() {
        let mut inner = group.create_group("metadata");
        for (key, value) in metadata {
            put(&mut inner, key, value);
        }
        group.add_group(inner.finish());
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Graph> {
    let at_fault = |reason: String| Error::File {
        path: path.into(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| at_fault(e.to_string()))?;
    let file = File::from_bytes(bytes).map_err(|e| {
        at_fault(format!(
            "expected a NIR file (HDF5), found something else: {e}"
        ))
    })?;
    graph(&file).map_err(|e| match e {
        Error::Graph(reason) => at_fault(reason),
        other => other,
    })
}

fn graph(file: &File) -> Result<Graph> {
    let root = file
        .group("node")
        .map_err(|_| Error::Graph("expected a NIR graph, found no group `node`".into()))?;
    let whole = group(&root, "of the graph")?;
    let kind = whole.values.get("type").and_then(Array::as_text);
    if kind != Some("NIRGraph") {
        return Err(Error::Graph(format!(
            "expected `node` to be a NIRGraph, found {}",
            kind.unwrap_or("no type")
        )));
    }
    let edges = match whole.values.get("edges") {
        Some(Array {
            shape,
            data: Data::Text(ends),
        }) if shape.len() == 2 && shape[1] == 2 => ends
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect(),
        _ => {
            return Err(Error::Graph(
                "expected `node/edges` to hold pairs of names, found something else".into(),
            ));
        }
    };
    let nodes = root
        .group("nodes")
        .map_err(|_| Error::Graph("expected a NIR graph, found no group `node/nodes`".into()))?;
    let mut all = BTreeMap::new();
    for name in nodes.groups().map_err(damaged)? {
        let inner = nodes.group(&name).map_err(damaged)?;
        let mut node = group(&inner, &name)?;
        node.kind = match node.values.remove("type").as_ref().and_then(Array::as_text) {
            Some(kind) => kind.to_owned(),
            None => return Err(Error::node(&name, "expected a string `type`, found none")),
        };
        all.insert(name, node);
    }
    Ok(Graph {
        nodes: all,
        edges,
        metadata: whole.metadata,
    })
}

/// The datasets of a group and of its `metadata`.
fn group(group: &Group, name: &str) -> Result<Node> {
    let metadata = match group.groups().map_err(damaged)? {
        names if names.iter().any(|n| n == "metadata") => {
            arrays(&group.group("metadata").map_err(damaged)?, name)?
        }
        _ => BTreeMap::new(),
    };
    Ok(Node {
        kind: String::new(),
        values: arrays(group, name)?,
        metadata,
    })
}

fn arrays(group: &Group, node: &str) -> Result<BTreeMap<String, Array>> {
    let mut all = BTreeMap::new();
    for key in group.datasets().map_err(damaged)? {
        let at_fault =
            |e: hdf5_pure::Error| Error::node(node, format!("its `{key}` can't be read: {e}"));
        let dataset = group.dataset(&key).map_err(at_fault)?;
        let shape = dataset.shape().map_err(at_fault)?;
        let data = match dataset.dtype().map_err(at_fault)? {
            DType::F32 => Data::F32(dataset.read_f32().map_err(at_fault)?),
            DType::F64 => Data::F64(dataset.read_f64().map_err(at_fault)?),
            DType::String | DType::VariableLengthString => {
                Data::Text(dataset.read_string().map_err(at_fault)?)
            }
            DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64 => Data::Int(dataset.read_i64().map_err(at_fault)?),
            // Something that no node of ours reads (a user's own metadata, say).
            _ => continue,
        };
        all.insert(key, Array { shape, data });
    }
    Ok(all)
}

fn damaged(e: hdf5_pure::Error) -> Error {
    Error::Graph(format!(
        "expected a whole HDF5 file, found a damaged one: {e}"
    ))
}
