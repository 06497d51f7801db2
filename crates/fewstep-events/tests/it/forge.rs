//! Model files that are wrong in one place only: taken apart, changed, and put together again with a checksum that fits.

use serde_json::{Map, Value, json};

/// What a model file consists of, in the order of the file.
#[derive(Clone)]
pub struct Parts {
    /// `__metadata__`: format, version, network, checksum.
    pub texts: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub bytes: Vec<u8>,
}

impl Parts {
    /// None where the bytes have no safetensors header or the header points outside them.
    pub fn of(file: &[u8]) -> Option<Self> {
        let (header, data) = header(file)?;
        let mut header: Map<String, Value> = serde_json::from_slice(header).ok()?;
        let Some(Value::Object(texts)) = header.remove("__metadata__") else {
            return None;
        };
        let mut tensors = header
            .into_iter()
            .map(|(name, entry)| {
                let at = |i: usize| usize::try_from(entry["data_offsets"][i].as_u64()?).ok();
                let (begin, end) = (at(0)?, at(1)?);
                let tensor = Tensor {
                    name,
                    dtype: entry["dtype"].as_str()?.into(),
                    bytes: data.get(begin..end)?.to_vec(),
                };
                Some((begin, tensor))
            })
            .collect::<Option<Vec<_>>>()?;
        tensors.sort_by_key(|(begin, _)| *begin);
        Some(Self {
            texts,
            tensors: tensors.into_iter().map(|(_, t)| t).collect(),
        })
    }

    /// The file. Its checksum fits unless the parts name one of their own.
    pub fn file(&self, with_checksum: bool) -> Vec<u8> {
        let mut texts = self.texts.clone();
        if with_checksum {
            texts.insert("checksum".into(), format!("{:08x}", self.checksum()).into());
        }
        let mut header = Map::new();
        let mut data = Vec::new();
        for t in &self.tensors {
            let begin = data.len();
            data.extend_from_slice(&t.bytes);
            let width = if t.dtype.ends_with('8') { 1 } else { 4 };
            let entry = json!({"dtype": t.dtype, "shape": [t.bytes.len() / width], "data_offsets": [begin, data.len()]});
            header.insert(t.name.clone(), entry);
        }
        header.insert("__metadata__".into(), Value::Object(texts));
        let mut text = Value::Object(header).to_string();
        while !(8 + text.len()).is_multiple_of(64) {
            text.push(' ');
        }
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(text.as_bytes());
        file.extend_from_slice(&data);
        file
    }

    fn checksum(&self) -> u32 {
        let network = self
            .texts
            .get("network")
            .and_then(Value::as_str)
            .unwrap_or("");
        let start = crc32c::crc32c(network.as_bytes());
        self.tensors.iter().fold(start, |sum, t| {
            let sum = crc32c::crc32c_append(sum, t.name.as_bytes());
            let kind: &[u8] = if t.dtype == "F32" { b"F32" } else { b"I8" };
            crc32c::crc32c_append(crc32c::crc32c_append(sum, kind), &t.bytes)
        })
    }

    /// The network's JSON.
    pub fn network(&self) -> Value {
        let text = self
            .texts
            .get("network")
            .and_then(Value::as_str)
            .unwrap_or("");
        serde_json::from_str(text).unwrap_or_default()
    }

    pub fn set_network(&mut self, network: &Value) {
        self.texts
            .insert("network".into(), network.to_string().into());
    }
}

fn header(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// Writes the checksum that fits over the one that is there, all else as it is, so that a fuzzer's mutations come past it.
pub fn mend(file: &mut [u8]) {
    let Some(sum) = Parts::of(file).map(|p| format!("{:08x}", p.checksum())) else {
        return;
    };
    let key: &[u8] = b"\"checksum\":\"";
    if let Some(at) = file.windows(key.len()).position(|w| w == key)
        && let Some(place) = file.get_mut(at + key.len()..at + key.len() + 8)
    {
        place.copy_from_slice(sum.as_bytes());
    }
}
