//! The folder of a bundle: made aside, listed with sizes and SHA-256, put in its place in one step, and replaced only where nothing of the
//! user's would go with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tar::Header;

/// The list of everything, which also says that the folder is a bundle.
const MANIFEST: &str = "bundle.json";
const FORMAT: &str = "fewstep bundle 1";
/// What `run.py` unpacks to begins so.
const UNPACKED: &str = "unpacked-";
/// What a file takes on disk is a multiple of this, bytes.
const BLOCK: u64 = 4096;

/// A file of an archive.
pub struct Member {
    /// Where it is unpacked to.
    pub path: PathBuf,
    /// What it holds.
    pub content: Content,
}

/// What is packed.
pub enum Content {
    /// A program or library.
    Program(Vec<u8>),
    /// A file on disk.
    File(PathBuf),
}

/// A bundle that is being made. Dropped, it is gone.
pub struct Partial {
    out: PathBuf,
    root: PathBuf,
    /// Size and SHA-256 of each file.
    files: Map<String, Value>,
    /// Bytes that each archive takes, unpacked.
    archives: Map<String, Value>,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing is left to do about it; the next bundle clears it away.
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Partial {
    /// Begins beside `out`, which must be [`replaceable`].
    pub fn new(out: &Path) -> Result<Self> {
        let root = beside(out, "partial")?;
        remove(&root)?;
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self {
            out: out.into(),
            root,
            files: Map::new(),
            archives: Map::new(),
        })
    }

    /// A path for a file that somebody needs for a moment.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Makes `name`, a `.tar.gz` that the same members give bit for bit again. Gives up beyond `limit` bytes. Returns its size.
    pub fn pack(&mut self, name: &str, mut members: Vec<Member>, limit: u64) -> Result<u64> {
        members.sort_by(|a, b| a.path.cmp(&b.path));
        let mut room = 1 << 20; // for folders
        let path = self.root.join(name);
        let unwritable = || format!("cannot write {}", path.display());
        let file = File::create(&path).with_context(unwritable)?;
        let packed = GzEncoder::new(Counted::new(BufWriter::new(file)), Compression::best());
        let mut archive = tar::Builder::new(packed);
        for member in members {
            let (length, mode, mut content): (u64, u32, Box<dyn Read>) = match member.content {
                Content::Program(bytes) => {
                    (bytes.len() as u64, 0o755, Box::new(io::Cursor::new(bytes)))
                }
                Content::File(path) => {
                    let unreadable = || format!("cannot read {}", path.display());
                    let file = File::open(&path).with_context(unreadable)?;
                    let length = file.metadata().with_context(unreadable)?.len();
                    (length, 0o644, Box::new(BufReader::new(file).take(length)))
                }
            };
            let mut header = Header::new_gnu();
            header.set_size(length);
            header.set_mode(mode);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            archive
                .append_data(&mut header, &member.path, &mut content)
                .with_context(|| format!("cannot pack {}", member.path.display()))?;
            room += length.next_multiple_of(BLOCK);
            let written = archive.get_ref().get_ref().bytes;
            if written > limit {
                return Ok(written);
            }
        }
        let counted = archive
            .into_inner()
            .and_then(GzEncoder::finish)
            .with_context(unwritable)?;
        let bytes = self.list(name, counted).with_context(unwritable)?;
        self.archives.insert(name.into(), room.into());
        Ok(bytes)
    }

    /// Takes in a file as it is.
    pub fn copy(&mut self, from: &Path, name: &str) -> Result<()> {
        let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(name, file, 0o644)
            .with_context(|| format!("cannot copy {}", from.display()))
    }

    /// Writes a file of ours.
    pub fn write(&mut self, name: &str, mut content: impl Read, mode: u32) -> Result<()> {
        if self.files.contains_key(name) || name == MANIFEST {
            bail!("it would take the place of the bundle's own {name}");
        }
        let path = self.root.join(name);
        let mut write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = File::create(&path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            let mut counted = Counted::new(BufWriter::new(file));
            io::copy(&mut content, &mut counted)?;
            self.list(name, counted)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }

    fn list(&mut self, name: &str, counted: Counted) -> io::Result<u64> {
        let (bytes, sha256) = counted.finish()?;
        self.files
            .insert(name.into(), json!({"bytes": bytes, "sha256": sha256}));
        Ok(bytes)
    }

    /// Writes the list, `about` in it, and gives the folder its name, unless it has more than `limit` bytes. Returns how many.
    pub fn publish(self, about: &BTreeMap<&str, &str>, limit: u64) -> Result<u64> {
        let mut manifest =
            json!({"format": FORMAT, "files": self.files, "archives": self.archives});
        for (key, value) in about {
            manifest[key] = (*value).into();
        }
        let text = format!("{manifest:#}\n");
        let path = self.root.join(MANIFEST);
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        let listed: u64 = self
            .files
            .values()
            .filter_map(|entry| entry["bytes"].as_u64())
            .sum();
        let bytes = listed + text.len() as u64;
        if bytes > limit {
            bail!(
                "with the list of its files the bundle has {bytes} bytes, more than {limit}; leave out a file"
            );
        }

        replaceable(&self.out)?;
        let old = beside(&self.out, "old")?;
        remove(&old)?;
        let unnamed = |error| {
            Err::<(), io::Error>(error).with_context(|| {
                format!(
                    "cannot rename {} to {}",
                    self.root.display(),
                    self.out.display()
                )
            })
        };
        if self.out.exists() {
            fs::rename(&self.out, &old).or_else(unnamed)?;
        }
        fs::rename(&self.root, &self.out).or_else(unnamed)?;
        remove(&old)?;
        Ok(bytes)
    }
}

/// `NAME.END` beside a folder.
fn beside(folder: &Path, end: &str) -> Result<PathBuf> {
    let name = folder
        .file_name()
        .with_context(|| format!("{} is no name for a folder", folder.display()))?;
    let mut name = name.to_owned();
    name.push(".");
    name.push(end);
    Ok(folder.with_file_name(name))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Refuses a folder that holds anything but a bundle as it was made, and what that has unpacked.
pub fn replaceable(out: &Path) -> Result<()> {
    const REMEDY: &str = "move it away, or name another folder with --out";
    let Ok(metadata) = fs::metadata(out) else {
        return Ok(());
    };
    if !metadata.is_dir() {
        bail!("{} is no folder; {REMEDY}", out.display());
    }
    let found = files_below(out)?;
    if found.is_empty() {
        return Ok(());
    }
    let manifest = fs::read(out.join(MANIFEST)).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    if manifest["format"] != FORMAT {
        bail!(
            "{} is no bundle of `cargo xtask bundle`; {REMEDY}",
            out.display()
        );
    }
    for name in found {
        let path = out.join(&name);
        let text = name.to_string_lossy();
        if text == MANIFEST || text.starts_with(UNPACKED) {
            continue;
        }
        let entry = &manifest["files"][text.as_ref()];
        if entry.is_null() {
            bail!(
                "{} was not there when the bundle was made; {REMEDY}",
                path.display()
            );
        }
        let read = || {
            let mut counted = Counted::new(io::sink());
            io::copy(&mut File::open(&path)?, &mut counted)?;
            counted.finish()
        };
        let (_, sha256) = read().with_context(|| format!("cannot read {}", path.display()))?;
        if entry["sha256"] != sha256.as_str() {
            bail!(
                "{} was changed since the bundle was made; {REMEDY}",
                path.display()
            );
        }
    }
    Ok(())
}

/// Every file below a folder, as paths from there, sorted. Links are followed.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    fn walk(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(root.join(below))? {
            let name = below.join(entry?.file_name());
            if fs::metadata(root.join(&name))?.is_dir() {
                walk(root, &name, found)?;
            } else {
                found.push(name);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, Path::new(""), &mut found)
        .with_context(|| format!("cannot list {}", folder.display()))?;
    found.sort();
    Ok(found)
}

/// Counts and sums up what is written through it.
struct Counted<W = BufWriter<File>> {
    inner: W,
    bytes: u64,
    sha256: Sha256,
}

impl<W: Write> Counted<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            bytes: 0,
            sha256: Sha256::new(),
        }
    }

    /// Size and SHA-256.
    fn finish(mut self) -> io::Result<(u64, String)> {
        self.inner.flush()?;
        let mut text = String::new();
        for byte in self.sha256.finalize().iter() {
            let _ = write!(text, "{byte:02x}"); // a String takes everything
        }
        Ok((self.bytes, text))
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.bytes += count as u64;
        self.sha256.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
