//! A Chromium and axe-core, with which reports are tested as a reader sees them. Nothing else needs them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::checkout::{Checkout, output_of};

/// axe-core 4.12.1 (MPL-2.0), as this wheel carries it.
const WHEEL: &str = "axe-playwright-python==0.1.8";
const AXE: &str = "axe-4.12.1.min.js";
const AXE_SHA256: &str = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc";

/// What the tests are told.
pub struct Browser {
    /// The browser's program.
    pub chromium: PathBuf,
    /// The checker of contrast, names and roles.
    pub axe: PathBuf,
}

impl Browser {
    /// What is here.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub fn find(checkout: &Checkout) -> Result<Self> {
        let how = "`cargo xtask setup --browser` installs it";
        let chromium = chromium().with_context(|| format!("no Chromium on the PATH ({how})"))?;
        let axe = checkout.cache.join(AXE);
        if !is_axe(&axe) {
            bail!("no axe-core in the cache ({how})");
        }
        Ok(Self { chromium, axe })
    }

    /// Gets what is missing: axe-core with pip into the cache, and Chromium with apt where that may be done.
    ///
    /// # Errors
    /// It cannot be got here; one sentence says how a person can.
    pub fn install(checkout: &Checkout) -> Result<Self> {
        if chromium().is_none() {
            apt()?;
        }
        if !is_axe(&checkout.cache.join(AXE)) {
            pip(checkout)?;
        }
        Self::find(checkout)
    }
}

fn chromium() -> Option<PathBuf> {
    if let Some(named) = env::var_os("FEWSTEP_CHROMIUM") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ];
    let mut all = names
        .iter()
        .flat_map(|name| env::split_paths(&path).map(move |folder| folder.join(name)));
    all.find(|program| program.is_file())
}

fn is_axe(path: &Path) -> bool {
    let digest = |bytes: Vec<u8>| {
        Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    fs::read(path).is_ok_and(|bytes| digest(bytes) == AXE_SHA256)
}

/// Debian and its kin, as root.
fn apt() -> Result<()> {
    let by_hand = "install Chromium or Chrome, or set FEWSTEP_CHROMIUM to its program";
    if output_of("id", &["-u"]).as_deref() != Some("0") {
        bail!(
            "Chromium is missing, and only root may install it: {by_hand} (Debian: `sudo apt-get install chromium`)"
        );
    }
    let call = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        apt.status().is_ok_and(|status| status.success())
    };
    let install = ["install", "-y", "-q", "--no-install-recommends", "chromium"];
    eprintln!("installing Chromium with apt-get");
    // A machine that is new has no lists yet.
    if call(&install) || (call(&["update", "-q"]) && call(&install)) {
        return Ok(());
    }
    bail!("apt-get could not install the package chromium (its words are above): {by_hand}");
}

fn pip(checkout: &Checkout) -> Result<()> {
    let aside = checkout.cache.join("axe.part");
    // What a killed set-up left.
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
    ]);
    let status = pip
        .arg(&aside)
        .arg(WHEEL)
        .status()
        .context("cannot start python3, whose pip downloads axe-core")?;
    if !status.success() {
        bail!("pip could not download {WHEEL}: its own words are above");
    }
    let wheel = fs::read_dir(&aside)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel
        .with_context(|| format!("pip reported success, but {} has no wheel", aside.display()))?;
    let mut archive = zip::ZipArchive::new(fs::File::open(&wheel)?)
        .with_context(|| format!("{} is no wheel", wheel.display()))?;
    let part = aside.join(AXE);
    let mut script = archive
        .by_name("axe_playwright_python/axe.min.js")
        .with_context(|| format!("{} has no axe.min.js", wheel.display()))?;
    std::io::copy(&mut script, &mut fs::File::create(&part)?)?;
    if !is_axe(&part) {
        bail!(
            "{}: expected axe-core with SHA-256 {AXE_SHA256}, found another file",
            wheel.display()
        );
    }
    fs::rename(&part, checkout.cache.join(AXE))?;
    Ok(fs::remove_dir_all(&aside)?)
}
