//! What the calls and references mean that torch's own files make. All others are kept as they stand.

use std::io::BufRead;

use tch::Kind;

use super::pickle::{Id, Machine, Node, Object, Reason, Storage, View};

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

impl<R: BufRead> Machine<'_, R> {
    /// Says what a call would make.
    pub(super) fn call(&mut self, mut callee: Id, mut args: Id) -> Reason<()> {
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
                    return Err("expected plain tensors, found a conjugated or negated view".into());
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
    pub(super) fn persistent(&mut self, id: Id) -> Reason<()> {
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
                "its pickle describes storage `{}` in two ways: {:?} in {} bytes and {kind:?} in {bytes}",
                known.key, known.kind, known.bytes
            ));
        }
        self.add(Node::Storage { index, offset })
    }
}

fn unread(name: &str) -> String {
    let known = DTYPES.map(|(name, _)| name.trim_start_matches("torch."));
    format!(
        "expected tensors of {}, found `{name}`",
        known.join(", ").replace(", bool", " or bool")
    )
}
