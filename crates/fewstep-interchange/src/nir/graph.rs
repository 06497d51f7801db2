//! A NIR graph in memory.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Nodes by name, and edges.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) edges: Vec<(String, String)>,
    pub(super) metadata: BTreeMap<String, Array>,
}

/// One node: `Conv2d`, `LIF`, … with its parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) kind: String,
    pub(super) values: BTreeMap<String, Array>,
    pub(super) metadata: BTreeMap<String, Array>,
}

/// Numbers or strings of a shape; a single one has shape `[]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<u64>,
    pub(super) data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Int(Vec<i64>),
    Text(Vec<String>),
}

impl Array {
    pub(super) fn text(text: &str) -> Self {
        Self {
            shape: vec![],
            data: Data::Text(vec![text.to_owned()]),
        }
    }

    pub(super) fn ints(values: &[i64]) -> Self {
        Self {
            shape: vec![values.len() as u64],
            data: Data::Int(values.to_vec()),
        }
    }

    pub(super) fn int(value: i64) -> Self {
        Self {
            shape: vec![],
            data: Data::Int(vec![value]),
        }
    }

    pub(super) fn floats(values: Vec<f32>, shape: &[i64]) -> Self {
        Self {
            shape: shape.iter().map(|d| d.unsigned_abs()).collect(),
            data: Data::F32(values),
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(t) if t.len() == 1 => t.first().map(String::as_str),
            _ => None,
        }
    }

    /// Its numbers, in double precision.
    pub(super) fn numbers(&self) -> Option<Vec<f64>> {
        match &self.data {
            Data::F32(v) => Some(v.iter().map(|&x| f64::from(x)).collect()),
            Data::F64(v) => Some(v.clone()),
            Data::Int(v) => Some(v.iter().map(|&x| x as f64).collect()),
            Data::Text(_) => None,
        }
    }

    /// Whether it is an array in which one number is repeated at least once for each channel's area.
    pub(super) fn constant(&self) -> bool {
        let rows = self.shape.last().map_or(1, |&n| n.max(1) as usize);
        match &self.data {
            Data::F32(v) => {
                v.len() >= 16 && v.chunks(rows).all(|row| row.iter().all(|x| *x == row[0]))
            }
            _ => false,
        }
    }
}

impl Node {
    pub(super) fn new<const N: usize>(kind: &str, values: [(&str, Array); N]) -> Self {
        Self {
            kind: kind.into(),
            values: values
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            metadata: BTreeMap::new(),
        }
    }
}

impl Error {
    pub(super) fn node(name: &str, reason: impl Into<String>) -> Self {
        Self::Node {
            node: name.to_owned(),
            reason: reason.into(),
        }
    }
}

/// A node together with its name, to say what is wrong with it.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
}

impl Named<'_> {
    pub(super) fn fault(&self, reason: impl Into<String>) -> Error {
        Error::node(self.name, reason)
    }

    fn value(&self, key: &str) -> Result<&Array> {
        self.node
            .values
            .get(key)
            .ok_or_else(|| self.fault(format!("expected a value `{key}`, found none")))
    }

    /// Numbers and their shape.
    pub(super) fn numbers(&self, key: &str) -> Result<(Vec<f64>, &[u64])> {
        let value = self.value(key)?;
        let numbers = value
            .numbers()
            .ok_or_else(|| self.fault(format!("expected numbers in `{key}`, found text")))?;
        if let Some(x) = numbers.iter().find(|x| x.is_nan()) {
            return Err(self.fault(format!("expected numbers in `{key}`, found {x}")));
        }
        Ok((numbers, &value.shape))
    }

    /// Finite weights of a shape.
    pub(super) fn weights(&self, key: &str) -> Result<(Vec<f32>, Vec<i64>)> {
        let value = self.value(key)?;
        let numbers = match &value.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::Int(v) => v.iter().map(|&x| x as f32).collect(),
            Data::Text(_) => {
                return Err(self.fault(format!("expected numbers in `{key}`, found text")));
            }
        };
        if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
            return Err(self.fault(format!("expected finite numbers in `{key}`, found {x}")));
        }
        Ok((numbers, value.shape.iter().map(|&d| d as i64).collect()))
    }

    /// The one whole number that a scalar or all elements of a small array have, such as stride `[2, 2]`.
    pub(super) fn same(&self, key: &str) -> Result<i64> {
        match &self.value(key)?.data {
            Data::Int(v) if !v.is_empty() && v.iter().all(|x| *x == v[0]) => Ok(v[0]),
            Data::Int(v) => Err(self.fault(format!(
                "expected the same `{key}` in height and width, found {v:?}"
            ))),
            _ => Err(self.fault(format!("expected whole numbers in `{key}`"))),
        }
    }

    /// A word, where the value may be one instead of a number.
    pub(super) fn word(&self, key: &str) -> Option<&str> {
        self.node.values.get(key).and_then(Array::as_text)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.node.values.contains_key(key)
    }
}
