//! Downloads the wheels with pip, unpacks what is needed, and puts it in its place in one step.
//!
//! Everything happens in `<cache>/libtorch.partial`, under a lock; the last step is one rename. Whatever is killed
//! before leaves no folder with a final name, and the wheels that pip had finished are used again.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use zip::ZipArchive;

use super::pins::{Flavour, PIP_TAGS, Take, VERSION, Wheel};
use super::tree::{damage, write_manifest};

/// Installs `flavour` into `cache` unless it is there and whole; returns its folder.
pub fn install(cache: &Path, flavour: Flavour, verbose: bool) -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "setup installs libtorch on Linux x86_64 only; elsewhere set LIBTORCH to the folder of a libtorch {VERSION}, or LIBTORCH_USE_PYTORCH=1"
        );
    }
    let home = cache.join(flavour.folder());
    if damage(&home).is_none() {
        return Ok(home);
    }
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = lock(cache)?;
    match damage(&home) {
        None => return Ok(home), // another set-up has done it while we waited
        Some(fault) if home.exists() => {
            eprintln!("libtorch is damaged ({fault}); installing it again")
        }
        Some(_) => {}
    }

    let partial = Partial::new(cache)?;
    eprintln!(
        "downloading libtorch {VERSION} ({}, {} MB) to {}",
        flavour.title(),
        flavour.megabytes(),
        cache.display()
    );
    download(&partial, cache, flavour, verbose)?;
    eprintln!("unpacking");
    unpack(&partial, flavour)?;
    partial.publish(&home)?;
    Ok(home)
}

/// Only one set-up at a time; the lock ends with the process, however that ends.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("libtorch.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another set-up to end ({})", path.display());
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(file)
}

/// The folder in which an install comes into being.
struct Partial {
    root: PathBuf,
}

impl Partial {
    /// Takes over what a killed set-up left: whole wheels stay (pip checks their hashes), all else goes.
    fn new(cache: &Path) -> Result<Self> {
        let partial = Self {
            root: cache.join("libtorch.partial"),
        };
        for folder in [partial.tree(), partial.scratch()] {
            remove(&folder)?;
        }
        for folder in [partial.tree(), partial.scratch(), partial.wheels()] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(partial)
    }

    /// What will become the install.
    fn tree(&self) -> PathBuf {
        self.root.join("tree")
    }

    /// Whole downloads.
    fn wheels(&self) -> PathBuf {
        self.root.join("wheels")
    }

    /// Where pip downloads to: the same disk, because `/tmp` is often small.
    fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Gives the tree its final name and clears the rest away.
    fn publish(self, home: &Path) -> Result<()> {
        remove(home)?;
        fs::rename(self.tree(), home).with_context(|| {
            format!(
                "cannot rename {} to {}",
                self.tree().display(),
                home.display()
            )
        })?;
        remove(&self.root)
    }
}

/// Removes a folder that may not be there.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Has pip download every wheel whose hash is the pinned one.
fn download(partial: &Partial, cache: &Path, flavour: Flavour, verbose: bool) -> Result<()> {
    let requirements = partial.scratch().join("requirements.txt");
    fs::write(&requirements, flavour.requirements())
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ])
    .args([
        "--disable-pip-version-check",
        "--no-input",
        "--no-cache-dir",
    ])
    .args(PIP_TAGS)
    .arg("--dest")
    .arg(partial.wheels())
    .arg("--requirement")
    .arg(&requirements)
    .env("TMPDIR", partial.scratch())
    .stdin(Stdio::null());
    if verbose {
        let status = pip.status().context(NO_PYTHON)?;
        return if status.success() {
            Ok(())
        } else {
            Err(anyhow!(
                "pip could not download libtorch: its own words are above"
            ))
        };
    }

    let mut child = pip
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(NO_PYTHON)?;
    let errors = child.stderr.take().map(collect);
    let noise = child.stdout.take().map(collect);
    let bar = ProgressBar::new(u64::from(flavour.megabytes()) * 1_000_000); // hidden where there is no terminal
    if let Ok(style) =
        ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for pip")? {
            break status;
        }
        if !bar.is_hidden() {
            bar.set_position(bytes_below(&partial.root));
        }
        thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    let words = [noise, errors]
        .into_iter()
        .flatten()
        .filter_map(|reader| reader.join().ok())
        .collect::<String>();
    Err(anyhow!(explain(&words, cache, flavour)))
}

/// Reads a pipe to its end beside us, so that pip never waits for us.
fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What has been downloaded so far.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

const NO_PYTHON: &str = "cannot start python3, whose pip downloads libtorch; install Python 3 with pip (Debian: `apt install python3 python3-pip`)";

/// One sentence for what pip said in many.
fn explain(words: &str, cache: &Path, flavour: Flavour) -> String {
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if says(&["No module named pip"]) {
        return "python3 has no pip, which downloads libtorch; install it (Debian: `apt install python3-pip`, elsewhere `python3 -m ensurepip`)".to_owned();
    }
    if says(&["DO NOT MATCH THE HASHES"]) {
        let file = words
            .lines()
            .find_map(|line| {
                line.trim()
                    .strip_suffix(':')
                    .filter(|line| line.contains("=="))
            })
            .and_then(|line| line.split_whitespace().next())
            .unwrap_or("a package");
        return format!(
            "the download of {file} is refused, because its SHA-256 is not the pinned one; nothing was installed. A proxy or a mirror of packages has changed the file: run `{} --verbose` to see both hashes",
            flavour.command()
        );
    }
    if says(&["No space left on device"]) {
        return format!(
            "the disk is full; free some space (libtorch needs {} MB to download and as much again or more to unpack) or set XDG_CACHE_HOME to a folder on a larger disk",
            flavour.megabytes()
        );
    }
    // Without `--verbose`, pip hides that it could not connect and only says that it found no version at all.
    if says(&[
        "from versions: none",
        "Connection",
        "connection",
        "name resolution",
        "Max retries",
        "timed out",
        "SSLError",
        "ProxyError",
    ]) {
        return format!(
            "pip reaches no package index that has libtorch {VERSION} (is there a network?), and it is not in the cache {}; run `{}` once where there is a network, or set LIBTORCH to the folder of a libtorch {VERSION}, or LIBTORCH_USE_PYTORCH=1 where Python has torch {VERSION}",
            cache.display(),
            flavour.command()
        );
    }
    let last = words
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("ERROR: "))
        .unwrap_or("it gave no reason");
    format!(
        "pip could not download libtorch: {last} (`{} --verbose` shows all that it says)",
        flavour.command()
    )
}

/// Fills the tree from the wheels.
fn unpack(partial: &Partial, flavour: Flavour) -> Result<()> {
    let tree = partial.tree();
    for wheel in flavour.wheels() {
        let path = find(&partial.wheels(), wheel)?;
        unpack_wheel(&path, flavour.takes(wheel), &tree)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
    }
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    // The wheel's own libtorch.so is empty but for the names of the CUDA libraries.
    write("lib/libtorch.so", "INPUT ( -ltorch_cpu -lc10 )\n")?;
    write("build-version", &format!("{VERSION}\n"))?;
    write_manifest(&tree).with_context(|| format!("cannot list the files of {}", tree.display()))
}

/// The file that pip has downloaded for `wheel`.
fn find(wheels: &Path, wheel: &Wheel) -> Result<PathBuf> {
    let prefix = wheel.prefix();
    fs::read_dir(wheels)
        .with_context(|| format!("cannot read {}", wheels.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| {
            format!(
                "pip reported success, but {} has no {prefix}*.whl",
                wheels.display()
            )
        })
}

/// Unpacks the parts that are wanted; each must give at least one file. The archive's checksums are verified.
fn unpack_wheel<'a>(path: &Path, takes: impl Iterator<Item = &'a Take>, tree: &Path) -> Result<()> {
    let mut archive = ZipArchive::new(io::BufReader::new(File::open(path)?))?;
    let names: Vec<String> = archive.file_names().map(str::to_owned).collect();
    for take in takes {
        let mut found = false;
        for name in names.iter().filter(|name| !name.ends_with('/')) {
            let Some(to) = destination(take, name) else {
                continue;
            };
            found = true;
            let to = tree.join(to);
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file =
                File::create(&to).with_context(|| format!("cannot create {}", to.display()))?;
            io::copy(&mut archive.by_name(name)?, &mut file)
                .with_context(|| format!("cannot write {}", to.display()))?;
        }
        if !found {
            bail!("it holds nothing that matches {take:?}");
        }
    }
    Ok(())
}

/// Where in the tree the wheel's file `name` goes, if `take` wants it. The pins choose the folders, and the part of the
/// name below them must not climb out again.
fn destination(take: &Take, name: &str) -> Option<PathBuf> {
    let base = name.rsplit('/').next()?;
    let to = match take {
        Take::File(path, to) => (*path == name).then(|| Path::new(to).join(base))?,
        Take::Tree(prefix, to) => Path::new(to).join(name.strip_prefix(prefix)?),
        Take::Libraries(to) => {
            let library =
                name.contains("/lib/") && (base.ends_with(".so") || base.contains(".so."));
            library.then(|| Path::new(to).join(base))?
        }
    };
    to.components()
        .all(|part| matches!(part, std::path::Component::Normal(_)))
        .then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_cannot_write_outside_the_tree() {
        let take = Take::Tree("torch/include/", "include");
        assert_eq!(
            destination(&take, "torch/include/a/b.h"),
            Some(PathBuf::from("include/a/b.h"))
        );
        assert_eq!(destination(&take, "torch/include/../../../b.h"), None);
        assert_eq!(destination(&take, "torch/include//etc/b.h"), None);
    }

    #[test]
    fn libraries_go_flat_and_nothing_else_does() {
        let take = Take::Libraries("cuda/lib");
        assert_eq!(
            destination(&take, "nvidia/cudnn/lib/libcudnn.so.9"),
            Some(PathBuf::from("cuda/lib/libcudnn.so.9"))
        );
        assert_eq!(destination(&take, "nvidia/cudnn/include/cudnn.h"), None);
    }
}
