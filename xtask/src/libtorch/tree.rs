//! Is a folder a libtorch, of the right version, and whole?

use std::fs;
use std::io;
use std::path::Path;

use super::VERSION;

/// The list of an install's files, `size<TAB>path` a line. Written last.
pub const MANIFEST: &str = "fewstep-files.tsv";

/// Writes the list of everything below `root`.
pub fn write_manifest(root: &Path) -> io::Result<()> {
    fn walk(root: &Path, folder: &Path, lines: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                walk(root, &path, lines)?;
            } else if let Ok(relative) = path.strip_prefix(root) {
                lines.push(format!(
                    "{}\t{}\n",
                    entry.metadata()?.len(),
                    relative.display()
                ));
            }
        }
        Ok(())
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines)?;
    lines.sort_unstable();
    fs::write(root.join(MANIFEST), lines.concat())
}

/// What is wrong with an install in the cache; `None` if every file of its list is there in its size.
pub fn damage(root: &Path) -> Option<String> {
    let Ok(manifest) = fs::read_to_string(root.join(MANIFEST)) else {
        return Some(format!("{} has no readable {MANIFEST}", root.display()));
    };
    if manifest.is_empty() {
        return Some(format!("{} lists no files", root.join(MANIFEST).display()));
    }
    manifest.lines().find_map(|line| {
        let Some((size, path)) = line.split_once('\t') else {
            return Some(format!(
                "{} has a line without a tab: {line:?}",
                root.join(MANIFEST).display()
            ));
        };
        let path = root.join(path);
        match fs::metadata(&path) {
            Err(_) => Some(format!("{} is missing", path.display())),
            Ok(found) if found.len().to_string() != size => Some(format!(
                "{} has {} bytes instead of {size}",
                path.display(),
                found.len()
            )),
            Ok(_) => None,
        }
    })
}

/// What is wrong with a libtorch that setup did not install; `None` if it can be linked to.
pub fn foreign_fault(root: &Path) -> Option<String> {
    if !root.is_dir() {
        return Some(format!("{} is not a folder", root.display()));
    }
    for needed in ["include/torch", "lib/libtorch_cpu.so", "lib/libc10.so"] {
        if !root.join(needed).exists() {
            return Some(format!(
                "{} is no libtorch: it has no {needed}",
                root.display()
            ));
        }
    }
    match version(root) {
        Some(version) if version == VERSION => None,
        Some(version) => Some(format!(
            "{} is libtorch {version}, and {VERSION} is needed",
            root.display()
        )),
        None => Some(format!(
            "{} does not say which version of libtorch it is",
            root.display()
        )),
    }
}

/// The version that a libtorch folder names: in its headers, or in `build-version` of an official archive.
/// A suffix such as `+cu130` is cut.
pub fn version(root: &Path) -> Option<String> {
    let header =
        fs::read_to_string(root.join("include/torch/headeronly/version.h")).unwrap_or_default();
    let quoted = header
        .split_once("#define TORCH_VERSION ")
        .and_then(|(_, rest)| rest.split('"').nth(1))
        .map(str::to_owned);
    quoted
        .or_else(|| fs::read_to_string(root.join("build-version")).ok())
        .map(|text| text.trim().split('+').next().unwrap_or_default().to_owned())
        .filter(|version| !version.is_empty())
}
