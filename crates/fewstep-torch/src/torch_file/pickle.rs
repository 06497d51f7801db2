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

/// So many objects fit into half a gigabyte; published checkpoints have some ten thousands.
pub(super) const MAX_OBJECTS: usize = 8_000_000;

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

const STORAGES: [(&str, Kind); 10] = [
    ("torch.FloatStorage", Kind::Float),
    ("torch.DoubleStorage", Kind::Double),
    ("torch.HalfStorage", Kind::Half),
    ("torch.BFloat16Storage", Kind::BFloat16),
    ("torch.LongStorage", Kind::Int64),
    ("torch.IntStorage", Kind::Int),
    ("torch.ShortStorage", Kind::Int16),
    ("torch.CharStorage", Kind::Int8),
    ("torch.ByteStorage", Kind::Uint8),
    ("torch.BoolStorage", Kind::Bool),
];

const DTYPES: [(&str, Kind); 10] = [
    ("torch.float32", Kind::Float),
    ("torch.float64", Kind::Double),
    ("torch.float16", Kind::Half),
    ("torch.bfloat16", Kind::BFloat16),
    ("torch.int64", Kind::Int64),
    ("torch.int32", Kind::Int),
    ("torch.int16", Kind::Int16),
    ("torch.int8", Kind::Int8),
    ("torch.uint8", Kind::Uint8),
    ("torch.bool", Kind::Bool),
];

/// The storage class of a kind, as torch names it.
pub(super) fn storage_class(kind: Kind) -> Option<&'static str> {
    STORAGES
        .iter()
        .find(|(_, k)| *k == kind)
        .map(|(name, _)| *name)
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

struct Machine<'a, R> {
    from: &'a mut R,
    graph: Graph,
    by_key: HashMap<String, usize>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pushed: usize,
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
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.to_mark()?),
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
                let items = self.to_mark()?;
                self.add(Node::List(items))?;
            }
            b't' => {
                let items = self.to_mark()?;
                self.add(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(op - 0x84))?;
                self.add(Node::Tuple(items))?;
            }
            b'd' => {
                let items = pairs(self.to_mark()?)?;
                self.add(Node::Dict(items))?;
            }
            0x8f => self.add(Node::Object(Box::new(Object {
                class: "builtins.set".into(),
                ..Object::default()
            })))?,
            0x91 => {
                let items = self.to_mark()?;
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
                let items = self.to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.to_mark()?;
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

    /// Says what a call would make.
    fn call(&mut self, mut callee: Id, mut args: Id) -> Reason<()> {
        // The wrapper of subclasses and of tensors with attributes: (function, type, arguments, state).
        while matches!(self.at(callee), Node::Global(n) if n == "torch._tensor._rebuild_from_type_v2")
        {
            let &[function, _, inner, _] = self.tuple(args)? else {
                return Err(
                    "its pickle rebuilds a tensor by a call with the wrong arguments".into(),
                );
            };
            (callee, args) = (function, inner);
        }
        let args = self.tuple(args)?.to_vec();
        let class = match self.at(callee) {
            Node::Global(name) => name.clone(),
            // The result of one call is called in turn.
            Node::Object(_) => {
                let all = [callee].into_iter().chain(args).collect();
                return self.object("(call)".into(), all);
            }
            _ => return Err("its pickle calls something that is no function".into()),
        };
        let args = args.as_slice();
        match class.as_str() {
            "torch._utils._rebuild_tensor"
            | "torch._utils._rebuild_tensor_v2"
            | "torch._utils._rebuild_tensor_v3" => {
                let view = self.view(args)?;
                self.graph.views.push(view);
                self.add(Node::Tensor(self.graph.views.len() - 1))
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match args {
                    &[data, ..] if matches!(self.at(data), Node::Tensor(_)) => self.push(data),
                    _ => Err("its pickle has a parameter without a tensor".into()),
                }
            }
            name if name.starts_with("torch._utils._rebuild_") => Err(format!(
                "expected dense tensors, found one that torch rebuilds with `{name}`"
            )),
            "collections.OrderedDict" | "collections.defaultdict" | "builtins.dict" => {
                let items = match args.last().map(|a| self.at(*a)) {
                    Some(Node::List(list)) => list
                        .iter()
                        .map(|pair| match self.at(*pair) {
                            Node::List(p) | Node::Tuple(p) if p.len() == 2 => Ok((p[0], p[1])),
                            _ => Err("its pickle makes a dict of something other than pairs"),
                        })
                        .collect::<Result<Vec<_>, _>>()?,
                    Some(Node::Dict(items)) => items.clone(),
                    _ => Vec::new(),
                };
                // The copied items count, or a list used often would grow without bound.
                self.pushed += items.len();
                self.add(Node::Dict(items))
            }
            // How Python 3 writes bytes in protocol 2.
            "_codecs.encode" => match args {
                &[text, ..] => {
                    let Node::Str(text) = self.at(text) else {
                        return Err("its pickle encodes something that is not text".into());
                    };
                    let bytes = text
                        .chars()
                        .map(u8::try_from)
                        .collect::<Result<Vec<_>, _>>()
                        .map_err(|_| "its pickle has bytes that are no Latin-1 text")?;
                    self.pushed += bytes.len() / 32;
                    self.add(Node::Bytes(bytes))
                }
                [] => Err("its pickle encodes nothing".into()),
            },
            "builtins.bytes" if args.is_empty() => self.add(Node::Bytes(Vec::new())),
            _ => self.object(class, args.to_vec()),
        }
    }

    fn object(&mut self, class: String, args: Vec<Id>) -> Reason<()> {
        // Each call copies its name and its arguments.
        self.pushed += args.len() + class.len() / 32;
        self.add(Node::Object(Box::new(Object {
            class,
            args,
            ..Object::default()
        })))
    }

    /// `_rebuild_tensor(storage, offset, size, stride)`, v2 with (…, requires_grad, hooks[, metadata]), v3 with a dtype
    /// before the metadata.
    fn view(&self, args: &[Id]) -> Reason<View> {
        let wrong = || "its pickle rebuilds a tensor from the wrong arguments".to_owned();
        let &[storage, offset, size, stride, ref more @ ..] = args else {
            return Err(wrong());
        };
        let (&Node::Storage { index, offset: add }, &Node::Int(offset)) =
            (self.at(storage), self.at(offset))
        else {
            return Err(wrong());
        };
        let numbers = |id| {
            // torch.Size is a tuple by another name.
            let tuple = match self.at(id) {
                Node::Object(o) if o.class == "torch.Size" && o.args.len() == 1 => o.args[0],
                _ => id,
            };
            self.tuple(tuple)?
                .iter()
                .map(|n| match self.at(*n) {
                    Node::Int(n) if *n >= 0 => Ok(*n),
                    _ => Err(wrong()),
                })
                .collect::<Reason<Vec<_>>>()
        };
        let (size, stride) = (numbers(size)?, numbers(stride)?);
        let mut kind = self.graph.storages[index].kind;
        for id in more.iter().skip(2) {
            match self.at(*id) {
                Node::Global(name) => {
                    let found = DTYPES.iter().find(|(n, _)| n == name);
                    kind = Some(found.ok_or_else(|| unread(name))?.1);
                }
                Node::None => {}
                Node::Dict(flags) if flags.is_empty() => {}
                _ => {
                    return Err(
                        "expected plain tensors, found a conjugated or negated view".into()
                    );
                }
            }
        }
        let offset = offset
            .checked_add(add)
            .filter(|o| *o >= 0)
            .ok_or_else(wrong)?;
        if size.len() != stride.len() || size.len() > 64 {
            return Err(wrong());
        }
        Ok(View {
            storage: index,
            kind: kind.ok_or_else(wrong)?,
            offset,
            size,
            stride,
        })
    }

    /// `("storage", class, key, location, elements[, view of the legacy format])`. The location is where the tensor was;
    /// here it becomes one of the CPU.
    fn persistent(&mut self, id: Id) -> Reason<()> {
        let wrong = || "its pickle refers to something that is no storage".to_owned();
        let args = self.tuple(id)?;
        let text = |i: usize| match args.get(i).map(|a| self.at(*a)) {
            Some(Node::Str(s)) => Some(s.as_str()),
            _ => None,
        };
        match text(0) {
            Some("storage") => {}
            // The legacy format wraps modules to carry their source text.
            Some("module") if args.len() > 1 => {
                let inner = args[1];
                return self.push(inner);
            }
            _ => return Err(wrong()),
        }
        let (Some(Node::Global(class)), Some(key), Some(&Node::Int(elements))) = (
            args.get(1).map(|a| self.at(*a)),
            text(2),
            args.get(4).map(|a| self.at(*a)),
        ) else {
            return Err(wrong());
        };
        let kind = match STORAGES.iter().find(|(name, _)| name == class) {
            Some((_, kind)) => Some(*kind),
            None if class == "torch.storage.UntypedStorage" || class == "torch.UntypedStorage" => {
                None
            }
            None => return Err(unread(class)),
        };
        let bytes = u64::try_from(elements)
            .ok()
            .and_then(|n| n.checked_mul(kind.map_or(1, Kind::elt_size_in_bytes) as u64))
            .ok_or_else(wrong)?;
        // A legacy view is (key, offset, elements) of the storage that is written.
        let offset = match args.get(5).map(|a| self.at(*a)) {
            None | Some(Node::None) => 0,
            Some(Node::Tuple(view)) if view.len() == 3 => match self.at(view[1]) {
                Node::Int(n) if *n >= 0 => *n,
                _ => return Err(wrong()),
            },
            Some(_) => return Err(wrong()),
        };
        let index = match self.by_key.get(key) {
            Some(&index) => index,
            None => {
                let key = key.to_owned();
                self.graph.storages.push(Storage {
                    key: key.clone(),
                    kind,
                    bytes,
                });
                self.by_key.insert(key, self.graph.storages.len() - 1);
                self.graph.storages.len() - 1
            }
        };
        let known = &self.graph.storages[index];
        if known.kind != kind || known.bytes != bytes {
            return Err(format!(
                "storage `{}` is described in two ways: as {} bytes and as {bytes}",
                known.key, known.bytes
            ));
        }
        self.add(Node::Storage { index, offset })
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

    fn at(&self, id: Id) -> &Node {
        &self.graph.nodes[id as usize]
    }

    fn at_mut(&mut self, id: Id) -> &mut Node {
        &mut self.graph.nodes[id as usize]
    }

    fn tuple(&self, id: Id) -> Reason<&[Id]> {
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

    fn node(&mut self, node: Node) -> Reason<Id> {
        self.count()?;
        self.graph.nodes.push(node);
        Ok((self.graph.nodes.len() - 1) as Id)
    }

    fn add(&mut self, node: Node) -> Reason<()> {
        let id = self.node(node)?;
        self.push(id)
    }

    fn push(&mut self, id: Id) -> Reason<()> {
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

    fn to_mark(&mut self) -> Reason<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }

    fn bytes<const N: usize>(&mut self) -> Reason<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|_| cut())?;
        Ok(bytes)
    }

    /// A length in `N` bytes.
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

fn unread(name: &str) -> String {
    let known = DTYPES.map(|(name, _)| name.trim_start_matches("torch."));
    format!(
        "expected tensors of {}, found `{name}`",
        known.join(", ").replace(", bool", " or bool")
    )
}
