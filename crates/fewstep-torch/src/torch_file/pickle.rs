//! A pickle machine that only builds data: no name is looked up, nothing is called. The few functions that torch's own
//! files name (`_rebuild_tensor_v2`, `OrderedDict` …) have their meaning written out here; all others stay as they are.
//!
//! Objects live in one list and refer to each other by index, because a pickle remembers a dict while it is still empty and
//! fills it later.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use tch::Kind;

/// What went wrong, as the second half of a sentence whose first half is the file's name.
pub(super) type Reason<T> = Result<T, String>;

/// The index of a node.
pub(super) type Id = u32;

/// So many objects take some 100 MB; published checkpoints have some ten thousands.
pub(super) const MAX_OBJECTS: usize = 2_000_000;

/// A name in the file (`argparse.Namespace`) is at most this long.
const MAX_NAME: u64 = 1_000;

pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement, more than eight bytes.
    BigInt(Vec<u8>),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(String),
    Object(Box<Object>),
    Storage {
        index: usize,
        offset: i64,
    },
    Tensor(usize),
}

/// The result of a call that is not made.
#[derive(Default)]
pub(super) struct Object {
    pub class: String,
    pub args: Vec<Id>,
    /// A list or dict of what was appended or set on it.
    pub items: Option<Id>,
    pub state: Option<Id>,
}

/// A run of bytes that tensors look into.
pub(super) struct Storage {
    pub key: String,
    /// None where the storage has no type of its own.
    pub kind: Option<Kind>,
    pub bytes: u64,
}

/// A tensor: a window on a storage, in elements.
pub(super) struct View {
    pub storage: usize,
    pub kind: Kind,
    pub offset: i64,
    pub size: Vec<i64>,
    pub stride: Vec<i64>,
}

/// What a pickle holds.
pub(super) struct Graph {
    pub nodes: Vec<Node>,
    pub storages: Vec<Storage>,
    pub views: Vec<View>,
    pub root: Id,
}

/// Reads one pickle, up to and with its STOP.
pub(super) fn read(from: &mut impl BufRead) -> Reason<Graph> {
    Machine {
        from,
        graph: Graph {
            nodes: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
            root: 0,
        },
        by_key: HashMap::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        pushed: 0,
    }
    .run()
}

pub(super) struct Machine<'a, R> {
    from: &'a mut R,
    pub(super) graph: Graph,
    /// Storages by key.
    pub(super) by_key: HashMap<String, usize>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// What has been pushed, made or copied so far.
    pub(super) pushed: usize,
}

impl<R: BufRead> Machine<'_, R> {
    fn run(mut self) -> Reason<Graph> {
        loop {
            let [op] = self.bytes()?;
            if op == b'.' {
                self.graph.root = self.pop()?;
                return Ok(self.graph);
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Reason<()> {
        match op {
            0x80 => match self.bytes()? {
                [2..=5] => {}
                [version] => {
                    return Err(format!(
                        "expected a pickle of protocol 2 to 5, found {version}"
                    ));
                }
            },
            // The length of a frame helps only those that read ahead.
            0x95 => drop(self.bytes::<8>()?),
            b'(' => {
                self.marks.push(self.stack.len());
                self.count()?;
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.add(Node::None)?,
            0x88 | 0x89 => self.add(Node::Bool(op == 0x88))?,
            b'J' => {
                let n = i32::from_le_bytes(self.bytes()?);
                self.add(Node::Int(n.into()))?;
            }
            b'K' => {
                let [n] = self.bytes()?;
                self.add(Node::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.bytes()?);
                self.add(Node::Int(n.into()))?;
            }
            0x8a | 0x8b => {
                let n = self.length(if op == 0x8a { 1 } else { 4 })?;
                let bytes = self.many(n)?;
                self.add(integer(bytes))?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.bytes()?);
                self.add(Node::Float(x))?;
            }
            b'X' | 0x8c | 0x8d => {
                let text = self.sized(op, [0x8c, b'X', 0x8d])?;
                self.add(Node::Str(utf8(text)?))?;
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let bytes = self.sized(if op == 0x96 { 0x8e } else { op }, [b'C', b'B', 0x8e])?;
                self.add(Node::Bytes(bytes))?;
            }
            // Python 2's str: text or bytes, nobody wrote down which.
            b'T' | b'U' => {
                let bytes = self.sized(op, [b'U', b'T', 0])?;
                self.add(match String::from_utf8(bytes) {
                    Ok(text) => Node::Str(text),
                    Err(e) => Node::Bytes(e.into_bytes()),
                })?;
            }
            b']' => self.add(Node::List(Vec::new()))?,
            b')' => self.add(Node::Tuple(Vec::new()))?,
            b'}' => self.add(Node::Dict(Vec::new()))?,
            b'l' => {
                let items = self.above_mark()?;
                self.add(Node::List(items))?;
            }
            b't' => {
                let items = self.above_mark()?;
                self.add(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(op - 0x84))?;
                self.add(Node::Tuple(items))?;
            }
            b'd' => {
                let items = pairs(self.above_mark()?)?;
                self.add(Node::Dict(items))?;
            }
            0x8f => self.add(Node::Object(Box::new(Object {
                class: "builtins.set".into(),
                ..Object::default()
            })))?,
            0x91 => {
                let items = self.above_mark()?;
                let list = self.node(Node::List(items))?;
                self.add(Node::Object(Box::new(Object {
                    class: "builtins.frozenset".into(),
                    args: vec![list],
                    ..Object::default()
                })))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(items)?;
            }
            b'q' => {
                let [n] = self.bytes()?;
                let top = self.top()?;
                self.memo.insert(n.into(), top);
            }
            b'r' => {
                let n = u32::from_le_bytes(self.bytes()?);
                let top = self.top()?;
                self.memo.insert(n, top);
            }
            0x94 => {
                let top = self.top()?;
                // At most MAX_OBJECTS entries, so the count fits.
                self.memo.insert(self.memo.len() as u32, top);
                self.count()?;
            }
            b'h' => {
                let [n] = self.bytes()?;
                self.recall(n.into())?;
            }
            b'j' => {
                let n = u32::from_le_bytes(self.bytes()?);
                self.recall(n)?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.add(global(&module, &name))?;
            }
            0x93 => {
                let two = self.pop_many(2)?;
                let (Node::Str(module), Node::Str(name)) = (self.at(two[0]), self.at(two[1]))
                else {
                    return Err("its pickle names a class by something that is not text".into());
                };
                if (module.len() + name.len()) as u64 > MAX_NAME {
                    return Err(too_long());
                }
                let node = global(module, name);
                self.add(node)?;
            }
            b'R' | 0x81 => {
                let two = self.pop_many(2)?;
                self.call(two[0], two[1])?;
            }
            0x92 => {
                let three = self.pop_many(3)?;
                let args = self.tuple(three[1])?.to_vec();
                // Named arguments follow the others as one dict; no class of torch's own files has any.
                let all = args.into_iter().chain([three[2]]).collect();
                let args = self.node(Node::Tuple(all))?;
                self.call(three[0], args)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match self.at_mut(target) {
                    Node::Object(o) => o.state = Some(state),
                    // Attributes of an OrderedDict (`_metadata`) or a tensor: no data of theirs.
                    Node::Dict(_) | Node::Tensor(_) => {}
                    _ => return Err("its pickle sets the state of something that has none".into()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            _ => {
                return Err(format!(
                    "its pickle has the instruction {op:#04x}, which torch.save does not write"
                ));
            }
        }
        Ok(())
    }

    fn append(&mut self, mut items: Vec<Id>) -> Reason<()> {
        let target = self.top()?;
        let list = self.holder(target, || Node::List(Vec::new()))?;
        let Node::List(list) = self.at_mut(list) else {
            return Err("its pickle appends to something that is no list".into());
        };
        list.append(&mut items);
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Reason<()> {
        let mut items = pairs(items)?;
        let target = self.top()?;
        let dict = self.holder(target, || Node::Dict(Vec::new()))?;
        let Node::Dict(dict) = self.at_mut(dict) else {
            return Err("its pickle sets an item of something that is no dict".into());
        };
        dict.append(&mut items);
        Ok(())
    }

    /// Where items for `target` go: itself, or what an object keeps them in.
    fn holder(&mut self, target: Id, empty: fn() -> Node) -> Reason<Id> {
        let Node::Object(o) = self.at(target) else {
            return Ok(target);
        };
        if let Some(items) = o.items {
            return Ok(items);
        }
        let items = self.node(empty())?;
        if let Node::Object(o) = self.at_mut(target) {
            o.items = Some(items);
        }
        Ok(items)
    }

    fn recall(&mut self, n: u32) -> Reason<()> {
        let id = *self
            .memo
            .get(&n)
            .ok_or_else(|| format!("its pickle recalls object {n}, which it never kept"))?;
        self.push(id)
    }

    pub(super) fn at(&self, id: Id) -> &Node {
        &self.graph.nodes[id as usize]
    }

    fn at_mut(&mut self, id: Id) -> &mut Node {
        &mut self.graph.nodes[id as usize]
    }

    pub(super) fn tuple(&self, id: Id) -> Reason<&[Id]> {
        match self.at(id) {
            Node::Tuple(items) => Ok(items),
            _ => Err("its pickle has something else where a tuple is expected".into()),
        }
    }

    fn count(&mut self) -> Reason<()> {
        self.pushed += 1;
        if self.pushed > MAX_OBJECTS {
            return Err(format!("its pickle has more than {MAX_OBJECTS} objects"));
        }
        Ok(())
    }

    pub(super) fn node(&mut self, node: Node) -> Reason<Id> {
        self.count()?;
        self.graph.nodes.push(node);
        Ok((self.graph.nodes.len() - 1) as Id)
    }

    pub(super) fn add(&mut self, node: Node) -> Reason<()> {
        let id = self.node(node)?;
        self.push(id)
    }

    pub(super) fn push(&mut self, id: Id) -> Reason<()> {
        self.count()?;
        self.stack.push(id);
        Ok(())
    }

    /// What lies below the last mark is out of reach until the mark is taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Reason<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err(underflow()),
        }
    }

    fn pop(&mut self) -> Reason<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, n: usize) -> Reason<Vec<Id>> {
        if self.stack.len() < self.floor() + n {
            return Err(underflow());
        }
        Ok(self.stack.split_off(self.stack.len() - n))
    }

    fn above_mark(&mut self) -> Reason<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }

    fn bytes<const N: usize>(&mut self) -> Reason<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|_| cut())?;
        Ok(bytes)
    }

    /// A length of `width` bytes.
    fn length(&mut self, width: usize) -> Reason<u64> {
        let mut bytes = [0; 8];
        self.from
            .read_exact(&mut bytes[..width])
            .map_err(|_| cut())?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes after their length, whose width (1, 4 or 8) the instruction tells.
    fn sized(&mut self, op: u8, by_width: [u8; 3]) -> Reason<Vec<u8>> {
        let width = by_width
            .iter()
            .position(|o| *o == op)
            .map_or(1, |i| [1, 4, 8][i]);
        let n = self.length(width)?;
        self.many(n)
    }

    /// Grows with what is there, not with what is claimed.
    fn many(&mut self, n: u64) -> Reason<Vec<u8>> {
        let mut bytes = Vec::new();
        self.from
            .by_ref()
            .take(n)
            .read_to_end(&mut bytes)
            .map_err(|_| cut())?;
        if (bytes.len() as u64) < n {
            return Err(cut());
        }
        Ok(bytes)
    }

    fn line(&mut self) -> Reason<String> {
        let mut line = Vec::new();
        self.from
            .by_ref()
            .take(MAX_NAME)
            .read_until(b'\n', &mut line)
            .map_err(|_| cut())?;
        if line.pop() != Some(b'\n') {
            return Err(too_long());
        }
        utf8(line)
    }
}

fn global(module: &str, name: &str) -> Node {
    // Protocol 2 keeps Python 2's name of the module.
    let module = if module == "__builtin__" {
        "builtins"
    } else {
        module
    };
    Node::Global(format!("{module}.{name}"))
}

fn integer(bytes: Vec<u8>) -> Node {
    if bytes.len() > 8 {
        return Node::BigInt(bytes);
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(&bytes);
    Node::Int(i64::from_le_bytes(all))
}

fn pairs(items: Vec<Id>) -> Reason<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("its pickle has a dict with a key that has no value".into());
    }
    Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect())
}

fn utf8(bytes: Vec<u8>) -> Reason<String> {
    String::from_utf8(bytes).map_err(|_| "its pickle has text that is not UTF-8".into())
}

fn cut() -> String {
    "expected a whole pickle, found its end in the middle of an instruction".into()
}

fn underflow() -> String {
    "its pickle takes more from the stack than it put there".into()
}

fn too_long() -> String {
    format!("its pickle has a name that does not end within {MAX_NAME} bytes")
}
