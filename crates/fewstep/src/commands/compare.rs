//! `fewstep compare CONFIG`: the cache policies of a config beside each other, at matched MAC saving and at matched latency.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use fewstep_harmonica::Router;
use fewstep_harmonica::learn::Learned;

use super::at;
use super::harmonica::{Named, follow_with};
use super::ranks::Here;
use super::run::Common;
use crate::config::ConfigSource;
use crate::experiment::{HarmonicaExperiment, Method, MethodOnly};

/// Options of `fewstep compare`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "docs/policies.md says what each policy does. Routers of the config are learned first, unless an earlier run's are \
                  taken.\n\n\
                  Example: fewstep compare configs/harmonica/digits-compare.toml --routers-from runs/harmonica-digits"
)]
pub struct Options {
    /// A config with method = "harmonica", such as configs/harmonica/digits-compare.toml
    pub config: PathBuf,
    /// Take the routers that this run learned, and learn none
    #[arg(long, value_name = "FOLDER")]
    pub routers_from: Option<PathBuf>,
    /// What run takes as well
    #[command(flatten)]
    pub common: Common,
}

/// Compares.
///
/// # Errors
/// The config, a router or the folder is at fault; one sentence.
pub fn compare(options: &Options) -> Result<()> {
    let common = &options.common;
    let source = ConfigSource::read(&options.config, &common.overrides())?;
    if source.deserialize::<MethodOnly>()?.method != Method::Harmonica {
        let reason = "expected \"harmonica\", whose policies can be compared";
        return Err(source.invalid("method", reason.to_owned()).into());
    }
    let mut experiment: HarmonicaExperiment = source.deserialize()?;
    let mut routers = BTreeMap::new();
    if let Some(folder) = &options.routers_from {
        let own = common.runs.join(&experiment.name);
        if folder.canonicalize().ok() == own.canonicalize().ok() && own.exists() {
            bail!(
                "{} is the folder that the comparison would write to: give it another name (--set name=…)",
                folder.display()
            );
        }
        let wanted = std::mem::take(&mut experiment.routers);
        routers = read(folder)?;
        if let Some(name) = wanted.keys().find(|n| !routers.contains_key(*n)) {
            bail!(
                "{}: expected router-{name}.safetensors, because the config has [routers.{name}], found none",
                folder.display()
            );
        }
        routers.retain(|name, _| wanted.is_empty() || wanted.contains_key(name));
        if routers.is_empty() {
            bail!(
                "{}: expected a run folder with routers, found no router-*.safetensors",
                folder.display()
            );
        }
    }
    let routers = routers.into_values().collect();
    follow_with(&experiment, &source, common, &Here::alone(), routers, true)
}

/// The routers of a run folder by name, each with its file.
fn read(folder: &Path) -> Result<BTreeMap<String, (PathBuf, Named)>> {
    let unreadable = at(folder, "could not be read");
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(&unreadable)? {
        let path = entry.map_err(&unreadable)?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = file
            .strip_prefix("router-")
            .and_then(|rest| rest.strip_suffix(".safetensors"))
        else {
            continue;
        };
        let name = name.to_owned();
        let router = Router::load(&path)?;
        let told = router.training();
        let training = serde_json::from_value(told["training"].clone()).unwrap_or_default();
        let trajectories = told["trajectories"].as_u64().unwrap_or(0);
        let named = Named {
            name: name.clone(),
            training,
            trajectories: u32::try_from(trajectories).unwrap_or(u32::MAX),
            learned: Learned {
                router,
                seconds: f64::NAN,
            },
        };
        all.insert(name, (path, named));
    }
    Ok(all)
}
