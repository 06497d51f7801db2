//! Where things are: the checkout, its target folder, the per-user cache, the programs to call.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The checkout that this xtask works on, and the user's cache.
#[derive(Debug, Clone)]
pub struct Checkout {
    /// Folder of the workspace's root manifest.
    pub root: PathBuf,
    /// Folder that holds everything installed once per user.
    pub cache: PathBuf,
}

impl Checkout {
    /// Finds the checkout (`FEWSTEP_ROOT`, else where cargo says that xtask's manifest is) and the cache
    /// (`$XDG_CACHE_HOME/fewstep`, else `~/.cache/fewstep`).
    pub fn find() -> Result<Self> {
        let root = match env::var_os("FEWSTEP_ROOT") {
            Some(root) => PathBuf::from(root),
            None => {
                let manifest = env::var_os("CARGO_MANIFEST_DIR")
                    .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
                Path::new(&manifest)
                    .parent()
                    .with_context(|| {
                        format!(
                            "the folder above {} is not a checkout of fewstep",
                            manifest.display()
                        )
                    })?
                    .to_path_buf()
            }
        };
        // XDG: a relative path is to be ignored.
        let base = match env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
        {
            Some(cache) => cache,
            None => env::home_dir()
                .context("neither XDG_CACHE_HOME nor HOME is set, so there is no place to install libtorch to; set one of them")?
                .join(".cache"),
        };
        Ok(Self {
            root,
            cache: base.join("fewstep"),
        })
    }

    /// The link through which everything finds libtorch.
    pub fn link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Where cargo builds to.
    pub fn target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => PathBuf::from(target),
            None => self.root.join("target"),
        }
    }

    /// The cargo that runs this xtask.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }
}

/// Standard output of a program, trimmed; `None` if it cannot be started or fails.
pub fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
