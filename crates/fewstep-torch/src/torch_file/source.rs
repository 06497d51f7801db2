//! The two containers of torch.save: a zip archive (since torch 1.6) and, before, pickles one after the other with the raw
//! storages behind them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use tch::{Kind, Tensor};
use zip::ZipArchive;
use zip::result::ZipError;

use super::pickle::{self, Graph, Node, Reason, Storage, View};

/// A pickle of protocol 2 with the number 0x1950a86a20f9469cfc6c. Other protocols put a frame around it.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// No more than this is unpacked from a file of so many bytes: room for tensors that are expanded or share a storage, none
/// for a bomb.
fn allowance(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(8).saturating_add(64 << 20)
}

/// The bytes that may still be unpacked.
pub(super) struct Budget {
    left: u64,
    file_bytes: u64,
}

impl Budget {
    pub(super) fn take(&mut self, bytes: u64) -> Reason<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            format!(
                "expected at most {} bytes inside a file of {}, found more",
                allowance(self.file_bytes),
                self.file_bytes
            )
        })?;
        Ok(())
    }
}

/// An open file whose pickle has been read and whose storages have not.
pub(super) struct Source {
    pub graph: Graph,
    pub budget: Budget,
    container: Container,
}

enum Container {
    Zip {
        archive: ZipArchive<BufReader<File>>,
        /// `archive/`, or whatever the folder is called.
        folder: String,
    },
    Legacy {
        file: BufReader<File>,
        /// Where the bytes of each storage start.
        places: HashMap<String, u64>,
    },
}

impl Source {
    pub(super) fn open(path: &Path) -> Reason<Self> {
        let mut file = BufReader::new(File::open(path).map_err(|e| e.to_string())?);
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
        file.rewind().map_err(|e| e.to_string())?;
        let budget = Budget {
            left: allowance(file_bytes),
            file_bytes,
        };
        let mut start = Vec::new();
        file.by_ref()
            .take(32)
            .read_to_end(&mut start)
            .map_err(|e| e.to_string())?;
        file.rewind().map_err(|e| e.to_string())?;
        if start.starts_with(b"PK") {
            Self::open_zip(file, budget)
        } else if start.starts_with(&[0x80]) && start.windows(10).any(|w| w == LEGACY_MAGIC) {
            Self::open_legacy(file, budget)
        } else {
            Err(format!(
                "expected a file of torch.save (a zip archive, or the older format), found {file_bytes} bytes that are \
                 neither"
            ))
        }
    }

    fn open_zip(file: BufReader<File>, mut budget: Budget) -> Reason<Self> {
        let mut archive = ZipArchive::new(file)
            .map_err(|e| format!("expected a whole zip archive, found a damaged one ({e})"))?;
        let folder = archive
            .file_names()
            .find_map(|name| {
                let folder = name.strip_suffix("data.pkl")?;
                (folder.ends_with('/') && folder.matches('/').count() == 1).then(|| folder.into())
            })
            .ok_or("expected a file of torch.save, found a zip archive without data.pkl")?;
        let mut unpack = |name: String| unpack(&mut archive, &name, &mut budget);
        // Absent before torch 2.1; all machines that torch runs on are little-endian.
        if let Some(order) = unpack(format!("{folder}byteorder"))?
            && order != b"little"
        {
            return Err("expected little-endian numbers, found another byte order".into());
        }
        let pickle = unpack(format!("{folder}data.pkl"))?.unwrap_or_default();
        let graph = pickle::read(&mut pickle.as_slice())?;
        Ok(Self {
            graph,
            budget,
            container: Container::Zip { archive, folder },
        })
    }

    fn open_legacy(mut file: BufReader<File>, budget: Budget) -> Reason<Self> {
        pickle::read(&mut file)?;
        let version = pickle::read(&mut file)?;
        if !matches!(version.nodes[version.root as usize], Node::Int(1001)) {
            return Err("expected version 1001 of torch's older format, found another".into());
        }
        let system = pickle::read(&mut file)?;
        let little = match &system.nodes[system.root as usize] {
            Node::Dict(items) => items.iter().any(|(k, v)| {
                matches!(&system.nodes[*k as usize], Node::Str(k) if k == "little_endian")
                    && matches!(system.nodes[*v as usize], Node::Bool(true))
            }),
            _ => false,
        };
        if !little {
            return Err("expected little-endian numbers, found another byte order".into());
        }
        let graph = pickle::read(&mut file)?;
        let keys = pickle::read(&mut file)?;
        let Node::List(ids) = &keys.nodes[keys.root as usize] else {
            return Err("expected the list of its storages, found something else".into());
        };
        let storages: HashMap<&str, &Storage> =
            graph.storages.iter().map(|s| (s.key.as_str(), s)).collect();
        let mut places = HashMap::new();
        for id in ids {
            let Node::Str(key) = &keys.nodes[*id as usize] else {
                return Err("expected storages by name, found one without".into());
            };
            let (Some(storage), false) = (storages.get(key.as_str()), places.contains_key(key))
            else {
                return Err(format!("lists storage `{key}`, which no tensor uses"));
            };
            let mut elements = [0; 8];
            file.read_exact(&mut elements).map_err(|_| cut(key))?;
            let size = storage.kind.map_or(1, Kind::elt_size_in_bytes) as u64;
            if u64::from_le_bytes(elements).checked_mul(size) != Some(storage.bytes) {
                return Err(format!(
                    "storage `{key}` is {} bytes in the pickle, and {} elements of {size} bytes where it stands",
                    storage.bytes,
                    u64::from_le_bytes(elements)
                ));
            }
            let place = file.stream_position().map_err(|e| e.to_string())?;
            let rest = budget.file_bytes.saturating_sub(place);
            if storage.bytes > rest {
                return Err(cut(key));
            }
            places.insert(key.clone(), place);
            // Below the file's length, so it fits.
            file.seek_relative(storage.bytes as i64)
                .map_err(|e| e.to_string())?;
        }
        Ok(Self {
            graph,
            budget,
            container: Container::Legacy { file, places },
        })
    }

    /// The tensors of the views that are wanted. One storage is held at a time, so that the peak is the tensors and the
    /// largest storage.
    pub(super) fn tensors(&mut self, wanted: &[bool]) -> Reason<Vec<Option<Tensor>>> {
        let mut by_storage = vec![Vec::new(); self.graph.storages.len()];
        for (i, view) in self.graph.views.iter().enumerate() {
            if wanted[i] {
                by_storage[view.storage].push(i);
            }
        }
        let mut tensors = Vec::new();
        tensors.resize_with(wanted.len(), || None);
        for (index, views) in by_storage.into_iter().enumerate() {
            if views.is_empty() {
                continue;
            }
            let bytes = self.storage(index)?;
            for i in views {
                let tensor =
                    cut_out(&self.graph.views[i], &bytes, &mut self.budget).map_err(|e| {
                        format!(
                            "a tensor in storage `{}` {e}",
                            self.graph.storages[index].key
                        )
                    })?;
                tensors[i] = Some(tensor);
            }
        }
        Ok(tensors)
    }

    fn storage(&mut self, index: usize) -> Reason<Vec<u8>> {
        let Storage { key, bytes, .. } = &self.graph.storages[index];
        match &mut self.container {
            Container::Zip { archive, folder } => {
                let name = format!("{folder}data/{key}");
                let found = unpack(archive, &name, &mut self.budget)?.ok_or_else(|| {
                    format!("the pickle names `{name}`, which is not in the archive")
                })?;
                if found.len() as u64 != *bytes {
                    return Err(format!(
                        "`{name}` has {} bytes, expected {bytes}",
                        found.len()
                    ));
                }
                Ok(found)
            }
            Container::Legacy { file, places } => {
                let place = places.get(key).ok_or_else(|| {
                    format!("the pickle names storage `{key}`, which is not there")
                })?;
                self.budget.take(*bytes)?;
                file.seek(SeekFrom::Start(*place))
                    .map_err(|e| e.to_string())?;
                let mut all = vec![0; *bytes as usize];
                file.read_exact(&mut all).map_err(|_| cut(key))?;
                Ok(all)
            }
        }
    }
}

/// One entry of the archive, its checksum compared; None where there is none of this name.
fn unpack(
    archive: &mut ZipArchive<BufReader<File>>,
    name: &str,
    budget: &mut Budget,
) -> Reason<Option<Vec<u8>>> {
    let damaged = |e: String| format!("`{name}` inside can't be read: {e}");
    let entry = match archive.by_name(name) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(e) => return Err(damaged(e.to_string())),
    };
    let (size, packed) = (entry.size(), entry.compressed_size());
    // Deflate shrinks to a thousandth at most; a stored entry does not shrink.
    if packed > budget.file_bytes || size > packed.saturating_mul(1100) {
        return Err(damaged(format!(
            "expected {size} bytes, found {packed} in the archive"
        )));
    }
    budget.take(size)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size as usize)
        .map_err(|e| damaged(e.to_string()))?;
    // One byte further, so that the reader meets the end and compares the checksum.
    entry
        .take(size + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(e.to_string()))?;
    if bytes.len() as u64 != size {
        return Err(damaged(format!(
            "expected {size} bytes, found {}",
            bytes.len()
        )));
    }
    Ok(Some(bytes))
}

/// A contiguous copy of a view. The reason goes on after "a tensor in storage …".
fn cut_out(view: &View, storage: &[u8], budget: &mut Budget) -> Reason<Tensor> {
    let element = view.kind.elt_size_in_bytes();
    let outside = || {
        format!(
            "of shape {:?}, strides {:?} and offset {} does not fit into its {} bytes",
            view.size,
            view.stride,
            view.offset,
            storage.len()
        )
    };
    let numel = view
        .size
        .iter()
        .try_fold(1_i64, |n, d| n.checked_mul((*d).max(1)))
        .ok_or_else(outside)?;
    let numel = if view.size.contains(&0) { 0 } else { numel };
    // The distance from the first element to the last.
    let reach = view
        .size
        .iter()
        .zip(&view.stride)
        .try_fold(0_i64, |sum, (d, s)| {
            sum.checked_add(d.saturating_sub(1).checked_mul(*s)?)
        });
    let range = match (numel, reach) {
        (0, _) => 0..0,
        (_, Some(reach)) => {
            let at = |elements: i64| usize::try_from(elements).ok()?.checked_mul(element);
            let end = view
                .offset
                .checked_add(reach)
                .and_then(|e| e.checked_add(1));
            match (at(view.offset), end.and_then(at)) {
                (Some(start), Some(end)) if end <= storage.len() => start..end,
                _ => return Err(outside()),
            }
        }
        _ => return Err(outside()),
    };
    budget.take((numel as u64).saturating_mul(element as u64))?;
    let bytes = &storage[range];
    let of_torch = |e: tch::TchError| {
        format!(
            "is refused by libtorch ({})",
            crate::error::first_line(&e.to_string())
        )
    };
    let make = |size: &[i64]| {
        if view.kind == Kind::Bool {
            // Any other value than 0 and 1 in a bool is undefined behaviour in C++.
            let clean: Vec<u8> = bytes.iter().map(|b| u8::from(*b != 0)).collect();
            Tensor::f_from_data_size(&clean, size, view.kind)
        } else {
            Tensor::f_from_data_size(bytes, size, view.kind)
        }
        .map_err(of_torch)
    };
    // f_from_data_size trusts that the shape fits the bytes.
    if bytes.len() as i128 == i128::from(numel) * element as i128 && is_row_major(view) {
        make(&view.size)
    } else {
        make(&[(bytes.len() / element) as i64])?
            .f_as_strided(&view.size, &view.stride, 0)
            .and_then(|t| t.f_contiguous())
            .map_err(of_torch)
    }
}

fn is_row_major(view: &View) -> bool {
    let mut expected = 1;
    view.size.iter().zip(&view.stride).rev().all(|(d, s)| {
        let fits = *d == 1 || *s == expected;
        expected *= d;
        fits
    }) || view.size.contains(&0)
}

fn cut(key: &str) -> String {
    format!("ends in the middle of storage `{key}`")
}
