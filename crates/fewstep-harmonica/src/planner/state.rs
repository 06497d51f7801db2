//! What a search has found so far, so that it can go on after an interruption.

use std::path::Path;

use fewstep_torch::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};

use super::{PlannerOptions, Tried};
use crate::{Conditions, Error, Result};

const FILE: &str = "search.json";
/// The plan that learning starts from.
pub(super) const START: &str = "start.toml";
/// The folder of its checkpoints.
pub(super) const ROUTER: &str = "router";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    options: PlannerOptions,
    conditions: Conditions,
    /// Stages that are over.
    pub(super) done: Vec<String>,
    pub(super) tried: Vec<Tried>,
    pub(super) seconds: f64,
    pub(super) learning_seconds: f64,
    pub(super) trajectories: f64,
}

impl State {
    /// What `folder` holds of this search, or its beginning.
    pub(super) fn open(
        folder: &Path,
        options: &PlannerOptions,
        conditions: &Conditions,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, e.to_string()))?;
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self {
                options: options.clone(),
                conditions: conditions.clone(),
                done: vec![],
                tried: vec![],
                seconds: 0.,
                learning_seconds: 0.,
                trajectories: 0.,
            });
        }
        let state = Self::read(&path)?;
        state
            .conditions
            .check_fits(conditions, &path.display().to_string())?;
        if state.options != *options {
            let reason = "expected the options that this search began with, found others";
            return Err(Error::file(&path, reason));
        }
        Ok(state)
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| {
            let reason = format!("expected a search for a plan, found something else ({e})");
            Error::file(path, reason)
        })
    }

    pub(super) fn has(&self, stage: &str) -> bool {
        self.done.iter().any(|d| d == stage)
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string(self).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }
}

/// The target of the unfinished search in a folder; none where there is none.
///
/// # Errors
/// Its file can't be read.
pub fn target_of(folder: &Path) -> Result<Option<f64>> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(State::read(&path)?.options.target_mac_saving))
}

/// Removes what a search left in its folder, and the folder if nothing else is in it.
///
/// # Errors
/// The system refuses.
pub fn forget(folder: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::file(folder, e.to_string());
    std::fs::remove_file(folder.join(FILE)).map_err(failed)?;
    for name in [START, ROUTER] {
        let path = folder.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(failed)?;
        } else if path.exists() {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    // Something else may lie there.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// A plan as the text of its file.
pub(super) mod as_toml {
    use std::path::Path;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::{CachePlan, plan};

    pub(in super::super) fn serialize<S: Serializer>(
        of: &Option<CachePlan>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let text = of.as_ref().map(CachePlan::to_toml).transpose();
        text.map_err(serde::ser::Error::custom)?.serialize(s)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<CachePlan>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| plan::parse(&t, Path::new("a plan of the search"), None))
            .transpose()
            .map_err(serde::de::Error::custom)
    }
}
