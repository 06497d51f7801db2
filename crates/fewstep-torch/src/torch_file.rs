//! Files of `torch.save`: read without running any of the pickle code in them, and written.
//!
//! A pickle is a program that may call any function of Python. Here it only builds data: tensors, numbers, text, lists and
//! dicts; what else it would call becomes a [`Value::Object`] that says so. Both containers are read (the zip archive of
//! torch ≥ 1.6 and the older one), with tensors of ten types in any layout, from any device. What a damaged or hostile file
//! asks for is checked before it is done, so that such a file ends in an error and not in a crash or a full memory.
//!
//! ```
//! use fewstep_torch::torch_file::{self, Value};
//! use tch::{Device, Kind, Tensor};
//!
//! # let dir = tempfile::tempdir()?;
//! let path = dir.path().join("model.pt");
//! let weight = Tensor::f_ones([2, 3], (Kind::Float, Device::Cpu))?;
//! let model = Value::dict([("weight", Value::Tensor(weight))]);
//! torch_file::save(&path, &Value::dict([("ema", model), ("epoch", Value::Int(3))]))?;
//!
//! let file = torch_file::load(&path)?;
//! assert_eq!(file.get("epoch").and_then(Value::as_i64), Some(3));
//! let ema = torch_file::load_tensors(&path, &["ema", "model"])?;
//! assert_eq!(ema["weight"].size(), [2, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calls;
mod pickle;
mod source;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use self::pickle::{Id, MAX_OBJECTS, Node, Reason};
use self::source::{Budget, Source};
use crate::{Error, Result};

/// Deeper than any checkpoint, and no danger to the stack.
const MAX_DEPTH: usize = 100;

/// What a file of `torch.save` holds.
#[derive(Debug)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An int of up to 64 bits. A longer one is an object of class `int` whose argument is its bytes, little-endian two's
    /// complement.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dict in its order; an `OrderedDict` or `defaultdict` as well. Where a key comes twice, the last counts.
    Dict(Vec<(Value, Value)>),
    /// A tensor or parameter: contiguous, on the CPU, without gradient. A tensor that the file refers to twice is one tensor;
    /// tensors that share a storage are copies.
    Tensor(Tensor),
    /// Anything else: a name (`torch.float32`, without arguments and state), the object that a call would have made, or an
    /// instance with its state (`argparse.Namespace`).
    Object {
        /// Module and name.
        class: String,
        /// Arguments of the call. What the file then appends to the object or sets on it follows as one list or dict.
        args: Vec<Value>,
        /// The state set on the instance, mostly a dict of its attributes.
        state: Option<Box<Value>>,
    },
}

impl Value {
    /// A dict with text keys.
    pub fn dict<K: Into<String>>(items: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self::Dict(
            items
                .into_iter()
                .map(|(k, v)| (Self::Str(k.into()), v))
                .collect(),
        )
    }

    /// The value of a text key of a dict, or of an attribute of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Dict(items) => items
                .iter()
                .rev()
                .find(|(k, _)| k.as_str() == Some(key))
                .map(|(_, v)| v),
            Self::Object {
                state: Some(state), ..
            } => match state.as_ref() {
                dict @ Self::Dict(_) => dict.get(key),
                _ => None,
            },
            _ => None,
        }
    }

    /// The bool, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The int, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The float, or an int as one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The items of a list or tuple.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The items of a dict.
    pub fn as_dict(&self) -> Option<&[(Value, Value)]> {
        match self {
            Self::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// The tensors of a state dict by name; names inside nested dicts are joined by `.`. Everything else is left out. The
    /// tensors are shared, not copied.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        self.collect("", &mut tensors);
        tensors
    }

    fn collect(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        for (key, value) in self.as_dict().unwrap_or_default() {
            let name = match key {
                Self::Str(s) => format!("{prefix}{s}"),
                Self::Int(n) => format!("{prefix}{n}"),
                _ => continue,
            };
            match value {
                Self::Tensor(t) => drop(into.insert(name, t.shallow_clone())),
                Self::Dict(_) => value.collect(&format!("{name}."), into),
                _ => {}
            }
        }
    }
}

/// Reads a file of `torch.save` onto the CPU. At its peak it holds the tensors and the largest storage.
///
/// # Errors
/// [`Error::File`]: the file is absent, damaged or of another format, holds a tensor that is sparse, quantised or of a type
/// other than those of [`Value::Tensor`], or asks for more memory or depth than an honest file does.
pub fn load(path: &Path) -> Result<Value> {
    read(path, |source| Ok(source.graph.root))
}

/// Reads the tensors of one state dict in the file: the first of the keys `inside` that the file has (`"ema"`, or `"a.b"`
/// for a dict in a dict), or the outermost dict where `inside` is empty or the key is `""`. Storages of the rest are not
/// read. Names are those of [`Value::tensors`].
///
/// # Errors
/// As [`load`]; also where none of the keys is there, or what is there has no tensors.
pub fn load_tensors(path: &Path, inside: &[&str]) -> Result<BTreeMap<String, Tensor>> {
    let mut place = "at its top".to_owned();
    let found = read(path, |source| {
        let nodes = &source.graph.nodes;
        let root = source.graph.root;
        if inside.is_empty() {
            return Ok(root);
        }
        let found = inside
            .iter()
            .find_map(|key| find(nodes, root, key).map(|id| (key, id)));
        let (key, id) = found.ok_or_else(|| {
            format!(
                "expected `{}` inside, found {}",
                inside.join("` or `"),
                keys(nodes, root)
            )
        })?;
        if !key.is_empty() {
            place = format!("in `{key}`");
        }
        Ok(id)
    })?;
    let tensors = found.tensors();
    if tensors.is_empty() {
        return Err(Error::File {
            path: path.into(),
            reason: format!("expected a dict of tensors {place}, found none"),
        });
    }
    Ok(tensors)
}

/// Writes the zip format with a pickle of protocol 2, which every torch since 1.6 opens; `weights_only=True` too, where
/// no [`Value::Object`] is in it that torch does not know. Tensors are written contiguous, each with a storage of its own.
/// The whole file is put together in memory.
///
/// # Errors
/// [`Error::File`]: the file can't be written, a tensor has a type other than those that [`load`] reads, an object's class
/// is no `module.name`, or the value is nested deeper than 100 levels. What stood there before stays.
pub fn save(path: &Path, value: &Value) -> Result<()> {
    let bytes = write::archive(value).map_err(|reason| Error::File {
        path: path.into(),
        reason,
    })?;
    crate::checkpoint::write_atomically(path, &bytes)
}

fn read(path: &Path, choose: impl FnOnce(&Source) -> Reason<Id>) -> Result<Value> {
    let read = || {
        let mut source = Source::open(path)?;
        let root = choose(&source)?;
        let wanted = reachable(&source, root);
        let tensors = source.tensors(&wanted)?;
        Conversion {
            nodes: &source.graph.nodes,
            tensors: &tensors,
            budget: &mut source.budget,
            made: 0,
        }
        .value(root, 0)
    };
    read().map_err(|reason| Error::File {
        path: path.into(),
        reason,
    })
}

/// Which tensors a node leads to.
fn reachable(source: &Source, root: Id) -> Vec<bool> {
    let nodes = &source.graph.nodes;
    let mut tensors = vec![false; source.graph.views.len()];
    let mut seen = vec![false; nodes.len()];
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut seen[id as usize], true) {
            continue;
        }
        match &nodes[id as usize] {
            Node::Tensor(index) => tensors[*index] = true,
            Node::List(items) | Node::Tuple(items) => open.extend(items),
            Node::Dict(items) => open.extend(items.iter().flat_map(|(k, v)| [k, v])),
            Node::Object(o) => {
                open.extend(o.args.iter().chain(&o.items).chain(&o.state));
            }
            _ => {}
        }
    }
    tensors
}

/// The value of a key of a dict; where there is none, a key with dots goes through several.
fn find(nodes: &[Node], id: Id, key: &str) -> Option<Id> {
    let get = |key: &str| match &nodes[id as usize] {
        Node::Dict(items) => items
            .iter()
            .rev()
            .find(|(k, _)| matches!(&nodes[*k as usize], Node::Str(k) if k == key))
            .map(|(_, v)| *v),
        _ => None,
    };
    if key.is_empty() {
        return Some(id);
    }
    get(key).or_else(|| {
        let (first, rest) = key.split_once('.')?;
        find(nodes, get(first)?, rest)
    })
}

/// The first keys, for people.
fn keys(nodes: &[Node], id: Id) -> String {
    let Node::Dict(items) = &nodes[id as usize] else {
        return "no dict".into();
    };
    let names = items.iter().filter_map(|(k, _)| match &nodes[*k as usize] {
        Node::Str(k) if k.len() <= 100 => Some(format!("`{k}`")),
        _ => None,
    });
    let names = names.take(8).collect::<Vec<_>>().join(", ");
    match items.len() {
        0 => "an empty dict".into(),
        n if n > 8 => format!("{names} and others ({n} in all)"),
        _ => names,
    }
}

/// From nodes that refer to each other to a tree.
struct Conversion<'a> {
    nodes: &'a [Node],
    tensors: &'a [Option<Tensor>],
    budget: &'a mut Budget,
    made: usize,
}

impl Conversion<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Reason<Value> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its pickle is nested deeper than {MAX_DEPTH} levels, or contains itself"
            ));
        }
        self.made += 1;
        if self.made > MAX_OBJECTS {
            return Err(format!(
                "its pickle unfolds into more than {MAX_OBJECTS} objects"
            ));
        }
        Ok(match &self.nodes[id as usize] {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::Float(x) => Value::Float(*x),
            Node::BigInt(bytes) => Value::Object {
                class: "int".into(),
                args: vec![Value::Bytes(self.paid(bytes)?.to_vec())],
                state: None,
            },
            Node::Str(s) => {
                self.paid(s.as_bytes())?;
                Value::Str(s.clone())
            }
            Node::Bytes(bytes) => Value::Bytes(self.paid(bytes)?.to_vec()),
            Node::List(items) => Value::List(self.values(items, depth)?),
            Node::Tuple(items) => Value::Tuple(self.values(items, depth)?),
            Node::Dict(items) => Value::Dict(
                items
                    .iter()
                    .map(|(k, v)| Ok((self.value(*k, depth + 1)?, self.value(*v, depth + 1)?)))
                    .collect::<Reason<_>>()?,
            ),
            Node::Tensor(index) => Value::Tensor(
                self.tensors[*index]
                    .as_ref()
                    .ok_or("its pickle has a tensor that was not read")?
                    .shallow_clone(),
            ),
            Node::Global(name) => {
                self.paid(name.as_bytes())?;
                Value::Object {
                    class: name.clone(),
                    args: Vec::new(),
                    state: None,
                }
            }
            Node::Object(o) => {
                self.paid(o.class.as_bytes())?;
                let mut args = self.values(&o.args, depth)?;
                if let Some(items) = o.items {
                    args.push(self.value(items, depth + 1)?);
                }
                let state = o.state.map(|s| self.value(s, depth + 1)).transpose()?;
                Value::Object {
                    class: o.class.clone(),
                    args,
                    state: state.map(Box::new),
                }
            }
            Node::Storage { .. } => {
                return Err("expected tensors, found a storage without one".into());
            }
        })
    }

    fn values(&mut self, items: &[Id], depth: usize) -> Reason<Vec<Value>> {
        items.iter().map(|i| self.value(*i, depth + 1)).collect()
    }

    fn paid<'b>(&mut self, bytes: &'b [u8]) -> Reason<&'b [u8]> {
        self.budget.take(bytes.len() as u64)?;
        Ok(bytes)
    }
}
