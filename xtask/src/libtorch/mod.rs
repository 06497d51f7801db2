//! Finds libtorch or installs it, once per user, and links it at `.libtorch` in the checkout.
//!
//! In this order: `LIBTORCH_USE_PYTORCH=1` (Python's torch), `LIBTORCH` (a folder of the user's), a usable link that is
//! there already, the cache, a download. No build ever needs an environment variable: `.cargo/config.toml` points
//! torch-sys at the link.

mod install;
pub mod pins;
mod tree;

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail};

use crate::checkout::{Checkout, output_of};
pub use pins::{Flavour, VERSION};
pub use tree::{damage, foreign_fault};

/// Where the user wants libtorch to come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// `LIBTORCH_USE_PYTORCH=1`: the folder of this Python's torch.
    Python(PathBuf),
    /// `LIBTORCH`.
    Variable(PathBuf),
    /// Nothing said: the per-user cache.
    Cache,
}

/// What an [`ensure`] ended in.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The link was there and right.
    Ready(PathBuf),
    /// The link was made or moved.
    Linked(PathBuf),
}

/// Reads the user's wish from the environment.
pub fn source(checkout: &Checkout) -> Result<Source> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return python_torch().map(Source::Python);
    }
    // Cargo itself sets LIBTORCH to the link (.cargo/config.toml) where the user has not.
    match env::var_os("LIBTORCH") {
        Some(folder) if Path::new(&folder) != checkout.link() => {
            Ok(Source::Variable(folder.into()))
        }
        _ => Ok(Source::Cache),
    }
}

/// Makes `.libtorch` point to a usable libtorch, downloading it if there is none. A no-op where all is well.
pub fn ensure(checkout: &Checkout, cuda: bool, verbose: bool) -> Result<Outcome> {
    let from = match source(checkout)? {
        Source::Python(folder) => Some(("LIBTORCH_USE_PYTORCH is set", folder)),
        Source::Variable(folder) => Some(("LIBTORCH is set", folder)),
        Source::Cache => None,
    };
    if let Some((why, folder)) = from {
        if let Some(fault) = foreign_fault(&folder) {
            bail!(
                "{why}, but {fault}; give it a libtorch {VERSION}, or unset it and `cargo xtask setup` installs one"
            );
        }
        let folder = fs::canonicalize(&folder)
            .with_context(|| format!("cannot resolve {}", folder.display()))?;
        return link(checkout, &folder);
    }

    if let Some(linked) = usable_link(checkout, cuda)? {
        return Ok(Outcome::Ready(linked));
    }
    let flavour = if cuda { Flavour::Cuda } else { Flavour::Cpu };
    link(
        checkout,
        &install::install(&checkout.cache, flavour, verbose)?,
    )
}

/// Where the link leads, if that is whole and enough.
fn usable_link(checkout: &Checkout, cuda: bool) -> Result<Option<PathBuf>> {
    let path = checkout.link();
    match fs::symlink_metadata(&path) {
        Err(_) => return Ok(None),
        Ok(metadata) if !metadata.is_symlink() => {
            return match foreign_fault(&path) {
                None => Ok(Some(path)),
                Some(fault) => bail!(
                    "{fault}; it is no link, so it is left alone: move it away and run `cargo xtask setup` again"
                ),
            };
        }
        Ok(_) => {}
    }
    let Ok(linked) = fs::canonicalize(&path) else {
        return Ok(None); // it dangles
    };
    let ours = |flavour: Flavour| {
        fs::canonicalize(checkout.cache.join(flavour.folder())).is_ok_and(|home| home == linked)
    };
    let usable = if ours(Flavour::Cuda) {
        damage(&linked).is_none()
    } else if cuda {
        false
    } else if ours(Flavour::Cpu) {
        damage(&linked).is_none()
    } else {
        foreign_fault(&linked).is_none()
    };
    Ok(usable.then_some(linked))
}

/// Points the link to `folder`, in one step: a build beside us sees the old or the new one.
fn link(checkout: &Checkout, folder: &Path) -> Result<Outcome> {
    let path = checkout.link();
    if fs::read_link(&path).is_ok_and(|now| now == folder) {
        return Ok(Outcome::Ready(folder.to_path_buf()));
    }
    if path.is_dir() && !path.is_symlink() {
        bail!(
            "{} is a folder where the link to {} should be; move it away",
            path.display(),
            folder.display()
        );
    }
    let new = checkout.root.join(format!(".libtorch-{}", process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", new.display()));
        }
        _ => {}
    }
    symlink(folder, &new)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot link {} to {}", path.display(), folder.display()))?;
    Ok(Outcome::Linked(folder.to_path_buf()))
}

/// The folder of the torch that Python would import. Finds it as torch-sys does, without importing it (seconds).
fn python_torch() -> Result<PathBuf> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    };
    let script =
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    output_of(python, &["-c", script])
        .map(PathBuf::from)
        .with_context(|| format!("LIBTORCH_USE_PYTORCH is set, but {python} has no package torch; `{python} -m pip install torch=={VERSION}`, or unset it and `cargo xtask setup` installs libtorch"))
}
