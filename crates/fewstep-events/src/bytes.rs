//! The bytes of a model, at an address that a vector register's load likes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

pub(crate) enum Bytes {
    Memory {
        lines: Vec<Line>,
        len: usize,
    },
    #[cfg(feature = "mmap")]
    Map(memmap2::Mmap),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: a line is 64 plain bytes, and `len` is at most 64 times their number.
            Self::Memory { lines, len } => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), *len)
            },
            #[cfg(feature = "mmap")]
            Self::Map(map) => map,
        }
    }
}

impl Bytes {
    /// A copy.
    pub fn copy(bytes: &[u8]) -> Result<Self> {
        let count = bytes.len().div_ceil(64);
        let mut lines = Vec::new();
        lines
            .try_reserve_exact(count)
            .map_err(|_| Error::Memory(format!("a model of {} bytes", bytes.len())))?;
        lines.extend(bytes.chunks(64).map(|chunk| {
            let mut line = Line([0; 64]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            line
        }));
        Ok(Self::Memory {
            lines,
            len: bytes.len(),
        })
    }

    /// A file, mapped where that is possible.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() || about.len() == 0 {
            return Err(Error::File {
                path: path.into(),
                reason: "expected a model, found an empty file, a folder or a device".into(),
            });
        }
        #[cfg(feature = "mmap")]
        // SAFETY: nothing but bytes is read from the map. Who shortens or rewrites the file while it is open gets wrong results or a bus
        // error, as with any mapped file; `Model::open` says so.
        if let Ok(map) = unsafe { memmap2::Mmap::map(&file) } {
            return Ok(Self::Map(map));
        }
        let mut all = Vec::new();
        file.read_to_end(&mut all).map_err(io)?;
        Self::copy(&all)
    }
}
