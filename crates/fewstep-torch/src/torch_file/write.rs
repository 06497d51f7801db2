//! The zip format of torch.save.

use std::io::{Cursor, Write};

use tch::{Device, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::pickle::Reason;
use super::{MAX_DEPTH, Value, calls};

/// The whole file. Numbers are little-endian, as on every machine that libtorch runs on.
pub(super) fn archive(value: &Value) -> Reason<Vec<u8>> {
    let mut pickle = Pickle {
        bytes: vec![0x80, 2],
        storages: Vec::new(),
    };
    pickle.value(value, 0)?;
    pickle.bytes.push(b'.');
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    put(&mut zip, "data.pkl", &pickle.bytes)?;
    put(&mut zip, "byteorder", b"little")?;
    for (i, tensor) in pickle.storages.iter().enumerate() {
        let bytes = bytes_of(tensor).map_err(of_torch)?;
        put(&mut zip, &format!("data/{i}"), &bytes)?;
    }
    put(&mut zip, "version", b"3\n")?;
    Ok(zip.finish().map_err(|e| e.to_string())?.into_inner())
}

fn put(zip: &mut ZipWriter<Cursor<Vec<u8>>>, name: &str, bytes: &[u8]) -> Reason<()> {
    // torch wants storages at multiples of 64 bytes to map them into memory.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64)
        .large_file(bytes.len() >= u32::MAX as usize);
    zip.start_file(format!("archive/{name}"), options)
        .map_err(|e| e.to_string())?;
    zip.write_all(bytes).map_err(|e| e.to_string())
}

fn bytes_of(tensor: &Tensor) -> std::result::Result<Vec<u8>, tch::TchError> {
    let tensor = tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn of_torch(e: tch::TchError) -> String {
    format!("libtorch: {}", crate::error::first_line(&e.to_string()))
}

struct Pickle {
    bytes: Vec<u8>,
    storages: Vec<Tensor>,
}

impl Pickle {
    fn value(&mut self, value: &Value, depth: usize) -> Reason<()> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "can't be written: the value is nested deeper than {MAX_DEPTH} levels"
            ));
        }
        match value {
            Value::None => self.bytes.push(b'N'),
            Value::Bool(b) => self.bytes.push(if *b { 0x88 } else { 0x89 }),
            Value::Int(n) => self.int(*n),
            Value::Float(x) => {
                self.bytes.push(b'G');
                self.bytes.extend(x.to_be_bytes());
            }
            Value::Str(s) => self.text(s)?,
            Value::Bytes(b) => {
                // Protocol 2 has no bytes; this is what Python 3 writes.
                self.bytes.extend(b"c_codecs\nencode\n");
                self.text(&b.iter().map(|b| char::from(*b)).collect::<String>())?;
                self.text("latin1")?;
                self.bytes.extend([0x86, b'R']);
            }
            Value::List(items) => {
                self.bytes.extend(b"](");
                self.values(items, depth)?;
                self.bytes.push(b'e');
            }
            Value::Tuple(items) => self.tuple(items, depth)?,
            Value::Dict(items) => {
                self.bytes.extend(b"}(");
                for (k, v) in items {
                    self.value(k, depth + 1)?;
                    self.value(v, depth + 1)?;
                }
                self.bytes.push(b'u');
            }
            Value::Tensor(t) => self.tensor(t)?,
            Value::Object { class, args, state } => match (class.as_str(), args.as_slice()) {
                ("int", [Value::Bytes(b)]) => self.big_int(b)?,
                ("(call)", [callee, args @ ..]) => {
                    self.value(callee, depth + 1)?;
                    self.tuple(args, depth)?;
                    self.bytes.push(b'R');
                    self.state(state.as_deref(), depth)?;
                }
                _ => {
                    self.global(class)?;
                    if !args.is_empty() {
                        self.tuple(args, depth)?;
                        self.bytes.push(b'R');
                    } else if state.is_some() {
                        self.bytes.extend([b')', 0x81]);
                    }
                    self.state(state.as_deref(), depth)?;
                }
            },
        }
        Ok(())
    }

    fn values(&mut self, items: &[Value], depth: usize) -> Reason<()> {
        items.iter().try_for_each(|v| self.value(v, depth + 1))
    }

    fn tuple(&mut self, items: &[Value], depth: usize) -> Reason<()> {
        if items.is_empty() {
            self.bytes.push(b')');
            return Ok(());
        }
        self.bytes.push(b'(');
        self.values(items, depth)?;
        self.bytes.push(b't');
        Ok(())
    }

    fn state(&mut self, state: Option<&Value>, depth: usize) -> Reason<()> {
        if let Some(state) = state {
            self.value(state, depth + 1)?;
            self.bytes.push(b'b');
        }
        Ok(())
    }

    fn int(&mut self, n: i64) {
        if let Ok(n) = i32::try_from(n) {
            self.bytes.push(b'J');
            self.bytes.extend(n.to_le_bytes());
        } else {
            self.bytes.extend([0x8a, 8]);
            self.bytes.extend(n.to_le_bytes());
        }
    }

    fn big_int(&mut self, b: &[u8]) -> Reason<()> {
        // torch's restricted reader knows only the short form.
        match u8::try_from(b.len()) {
            Ok(n) => self.bytes.extend([0x8a, n]),
            Err(_) => {
                self.bytes.push(0x8b);
                self.length(b.len())?;
            }
        }
        self.bytes.extend(b);
        Ok(())
    }

    fn text(&mut self, s: &str) -> Reason<()> {
        self.bytes.push(b'X');
        self.length(s.len())?;
        self.bytes.extend(s.as_bytes());
        Ok(())
    }

    fn length(&mut self, n: usize) -> Reason<()> {
        // Python reads the four bytes with a sign in some places.
        let n = i32::try_from(n)
            .map_err(|_| format!("can't be written: {n} bytes of text or number in one piece"))?;
        self.bytes.extend(n.to_le_bytes());
        Ok(())
    }

    fn global(&mut self, class: &str) -> Reason<()> {
        let parts = class.rsplit_once('.').filter(|(module, name)| {
            !module.is_empty() && !name.is_empty() && !class.contains(['\n', '\r'])
        });
        let (module, name) = parts.ok_or_else(|| {
            format!("can't be written: expected a class as `module.name`, found `{class}`")
        })?;
        // Python 3 reads protocol 2 with Python 2's names, and torch's restricted reader knows no others.
        let module = if module == "builtins" {
            "__builtin__"
        } else {
            module
        };
        self.bytes
            .extend(format!("c{module}\n{name}\n").into_bytes());
        Ok(())
    }

    fn tensor(&mut self, t: &Tensor) -> Reason<()> {
        let storage = calls::storage_class(t.kind()).ok_or_else(|| {
            format!(
                "can't be written: a tensor has type {:?}, which is not among those that are read",
                t.kind()
            )
        })?;
        if t.is_sparse() {
            return Err("can't be written: expected dense tensors, found another".into());
        }
        self.global("torch._utils._rebuild_tensor_v2")?;
        self.bytes.extend(b"((");
        self.text("storage")?;
        self.global(storage)?;
        self.text(&self.storages.len().to_string())?;
        self.text("cpu")?;
        self.int(t.numel() as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        let size = t.size();
        let mut strides = vec![1; size.len()];
        for d in (1..size.len()).rev() {
            strides[d - 1] = strides[d] * size[d].max(1);
        }
        for numbers in [&size, &strides] {
            self.bytes.push(b'(');
            numbers.iter().for_each(|n| self.int(*n));
            self.bytes.push(b't');
        }
        // No gradient, no hooks.
        self.bytes.extend([0x89]);
        self.global("collections.OrderedDict")?;
        self.bytes.extend(b")RtR");
        self.storages.push(t.shallow_clone());
        Ok(())
    }
}
