//! Checkpoints: safetensors files with a string table beside the tensors, written so that a kill or a full disk never leaves a
//! torn file under the final name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Named tensors and named strings.
#[derive(Debug, Default)]
pub struct Checkpoint {
    tensors: BTreeMap<String, Tensor>,
    strings: BTreeMap<String, String>,
}

impl Checkpoint {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor. It is shared, not copied: save before it changes.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, tensor: &Tensor) -> Self {
        self.tensors.insert(name.into(), tensor.shallow_clone());
        self
    }

    /// Adds tensors under `prefix` + name.
    #[must_use]
    pub fn with_all(
        mut self,
        prefix: &str,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Self {
        self.tensors.extend(
            tensors
                .into_iter()
                .map(|(name, t)| (format!("{prefix}{name}"), t)),
        );
        self
    }

    /// Adds a string.
    #[must_use]
    pub fn with_string(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.strings.insert(name.into(), value.into());
        self
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::Mismatch(format!("the checkpoint has no tensor `{name}`")))
    }

    /// The string of this name.
    pub fn string(&self, name: &str) -> Option<&str> {
        self.strings.get(name).map(String::as_str)
    }

    /// All tensors whose name starts with `prefix`, without it.
    pub fn section(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, t)| {
                name.strip_prefix(prefix)
                    .map(|rest| (rest.to_owned(), t.shallow_clone()))
            })
            .collect()
    }

    /// Writes the file: a temporary one beside it, flushed to the disk, then renamed over it.
    ///
    /// # Errors
    /// The folder can't be written, the disk is full, or a tensor has a type that safetensors lacks. What stood there before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file_error = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let views = self
            .tensors
            .iter()
            .map(|(name, t)| {
                Ok((
                    name.as_str(),
                    OnCpu::new(t).map_err(|e| file_error(format!("tensor `{name}`: {e}")))?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let strings =
            (!self.strings.is_empty()).then(|| self.strings.clone().into_iter().collect());
        let bytes =
            safetensors::serialize(views, strings).map_err(|e| file_error(e.to_string()))?;
        write_atomically(path, &bytes)
    }

    /// Reads a file onto the CPU.
    ///
    /// # Errors
    /// The file is absent, truncated, not safetensors, or holds a type that libtorch lacks.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::File {
            path: path.into(),
            reason: e.to_string(),
        })?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads the bytes of a file onto the CPU; `path` names them in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let file_error = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let not_ours = |e: safetensors::SafeTensorError| {
            file_error(format!(
                "expected a whole safetensors file, found {} bytes that are not one ({e})",
                bytes.len()
            ))
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_ours)?;
        let strings = header
            .metadata()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(not_ours)?.iter() {
            let kind = kind_of(view.dtype()).ok_or_else(|| {
                file_error(format!(
                    "tensor `{name}` has type {:?}, which libtorch lacks",
                    view.dtype()
                ))
            })?;
            let shape = view.shape().iter().map(|&d| d as i64).collect::<Vec<_>>();
            tensors.insert(
                name.to_owned(),
                Tensor::f_from_data_size(view.data(), &shape, kind)?,
            );
        }
        Ok(Self { tensors, strings })
    }
}

/// Copies `from` into the tensors of `into`, which must be the same names and shapes.
///
/// # Errors
/// Lists every missing, extra and misshaped tensor; nothing is copied then.
pub fn copy_into(
    into: &[(String, Tensor)],
    from: &BTreeMap<String, Tensor>,
    what: &str,
) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, t) in into {
        match from.get(name) {
            None => wrong.push(format!("`{name}` is missing")),
            Some(f) if f.size() != t.size() => {
                wrong.push(format!(
                    "`{name}` is {:?}, expected {:?}",
                    f.size(),
                    t.size()
                ));
            }
            Some(_) => {}
        }
    }
    wrong.extend(
        from.keys()
            .filter(|k| !into.iter().any(|(name, _)| name == *k))
            .map(|k| format!("`{k}` is not expected")),
    );
    if !wrong.is_empty() {
        return Err(Error::Mismatch(format!(
            "{what} does not fit: {}",
            wrong.join("; ")
        )));
    }
    let _guard = tch::no_grad_guard();
    for (name, t) in into {
        t.shallow_clone().f_copy_(&from[name])?;
    }
    Ok(())
}

/// What the name of something begins with while it is being written; it gets its own when it is whole.
pub const ASIDE: &str = ".writing-";

/// Removes what a kill in the middle of a write left in a folder; it is never read.
///
/// # Errors
/// The folder can't be read.
pub fn remove_torn(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(ASIDE) {
            let path = entry.path();
            // What can't be removed is in nobody's way.
            let _ = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
        }
    }
    Ok(())
}

/// Replaces a file as a whole or not at all.
///
/// # Errors
/// The folder can't be written or the disk is full; what stood there before stays.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let file_error = |e: std::io::Error| Error::File {
        path: path.into(),
        reason: format!("could not be written: {e}"),
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // tempfile makes files that only their owner can read; results are for others as well (less the umask).
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut temporary = tempfile::Builder::new()
        .prefix(ASIDE)
        .permissions(readable)
        .tempfile_in(folder)
        .map_err(file_error)?;
    temporary.write_all(bytes).map_err(file_error)?;
    temporary.as_file().sync_all().map_err(file_error)?;
    temporary.persist(path).map_err(|e| file_error(e.error))?;
    // The rename itself reaches the disk with the folder.
    std::fs::File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(file_error)
}

/// The bytes of a tensor, as safetensors wants them.
struct OnCpu {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl OnCpu {
    fn new(t: &Tensor) -> Result<Self> {
        let dtype = dtype_of(t.kind())
            .ok_or_else(|| Error::Mismatch(format!("no safetensors type for {:?}", t.kind())))?;
        let t = t.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
        t.f_copy_data_u8(&mut bytes, t.numel())?;
        Ok(Self {
            dtype,
            shape: t.size().iter().map(|&d| d as usize).collect(),
            bytes,
        })
    }
}

impl View for OnCpu {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

const TYPES: [(Kind, Dtype); 10] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

fn dtype_of(kind: Kind) -> Option<Dtype> {
    TYPES.iter().find(|(k, _)| *k == kind).map(|(_, d)| *d)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(k, _)| *k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let all = [
            Kind::Float,
            Kind::Double,
            Kind::Int64,
            Kind::Uint8,
            Kind::BFloat16,
            Kind::Bool,
        ];
        let mut c = Checkpoint::new().with_string("epoch", "3");
        for kind in all {
            c = c.with(
                format!("{kind:?}"),
                &Tensor::arange(6, (Kind::Float, Device::Cpu))
                    .view([2, 3])
                    .to_kind(kind),
            );
        }
        c.save(&path).unwrap();
        let back = Checkpoint::load(&path).unwrap();
        assert_eq!(back.string("epoch"), Some("3"));
        for kind in all {
            let name = format!("{kind:?}");
            assert_eq!(
                back.tensor(&name).unwrap(),
                c.tensor(&name).unwrap(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_truncated_file_is_refused_by_name_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.safetensors");
        Checkpoint::new()
            .with("w", &Tensor::ones([4], (Kind::Float, Device::Cpu)))
            .save(&path)
            .unwrap();
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let e = Checkpoint::load(&path).unwrap_err().to_string();
            assert!(
                e.contains("cut.safetensors: expected a whole safetensors file"),
                "{e}"
            );
        }
    }

    #[test]
    fn a_checkpoint_of_another_shape_lists_every_tensor_that_does_not_fit_and_copies_none() {
        let zeros = |n| Tensor::zeros([n], (Kind::Float, Device::Cpu));
        let into = [
            ("a".to_owned(), zeros(2)),
            ("b".to_owned(), zeros(3)),
            ("c".to_owned(), zeros(1)),
        ];
        let from = BTreeMap::from([
            ("a".into(), zeros(2) + 1.),
            ("b".into(), zeros(4)),
            ("d".into(), zeros(1)),
        ]);
        let e = copy_into(&into, &from, "model.safetensors")
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "model.safetensors does not fit: `b` is [4], expected [3]; `c` is missing; `d` is not expected"
        );
        assert_eq!(into[0].1, zeros(2));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        write_atomically(&path, b"old").unwrap();
        assert!(write_atomically(&dir.path().join("absent/kept"), b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
