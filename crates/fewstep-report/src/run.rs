//! What a run has written so far.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use crate::page::Picture;
use crate::{Error, Result};

/// Larger files are left out of a report.
const LARGEST_PICTURE: u64 = 8 << 20;

/// Files of a run folder that both who writes it and who shows it know: its config as it was run,
pub const CONFIG: &str = "config.toml";
/// its log, a JSON object a line,
pub const EVENTS: &str = "events.jsonl";
/// its figures, written last,
pub const SUMMARY: &str = "summary.json";
/// the lock that a process holds while it works on the run,
pub const LOCK: &str = "run.lock";
/// and the folder of its pictures.
pub const PLOTS: &str = "plots";

/// Whether a run may have this name: letters, digits, `-`, `_` and `.`, and none of `.`, `..` or a hidden folder.
pub fn is_run_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

/// Whether somebody works on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A process holds its lock, and there is no summary yet.
    Running,
    /// Its summary is there.
    Finished,
    /// Neither: it was stopped, and `--resume` goes on with it.
    Stopped,
}

impl State {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
        }
    }

    /// Of this run folder.
    pub(crate) fn of(folder: &Path) -> Self {
        // The summary is written last.
        if folder.join(SUMMARY).is_file() {
            return Self::Finished;
        }
        // A read-only handle: looking at a run must not make its lock.
        let lock = folder.join(LOCK);
        if !lock.is_file() {
            return Self::Stopped;
        }
        let lock = File::open(lock);
        match lock.map(|lock| lock.try_lock_shared()) {
            Ok(Err(TryLockError::WouldBlock)) => Self::Running,
            _ => Self::Stopped,
        }
    }
}

/// A cache plan of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlanFile {
    /// The file's name without `plan-` and `.toml`.
    pub(crate) name: String,
    /// A line for each executed step, a letter for each sub-module.
    pub(crate) steps: Vec<String>,
    /// Of each executed step.
    pub(crate) timesteps: Vec<f64>,
}

/// A run folder as it is now.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) config: String,
    pub(crate) settings: toml::Table,
    pub(crate) summary: Option<Value>,
    pub(crate) events: Vec<Value>,
    /// `plots/samples*.png`.
    pub(crate) samples: Vec<Picture>,
    pub(crate) plans: Vec<PlanFile>,
}

impl Run {
    /// Reads `folder`, also one that a process is writing to: a last line of the log without its end is left out.
    ///
    /// # Errors
    /// It is no run folder, a file in it is damaged or leads out of the folder, or the file system fails.
    pub fn read(folder: &Path) -> Result<Self> {
        let log = Self::read_log(folder)?;
        Ok(Self {
            samples: samples(folder)?,
            plans: plans(folder)?,
            ..log
        })
    }

    /// The same without pictures and plans.
    pub(crate) fn read_log(folder: &Path) -> Result<Self> {
        let no_run = |found| Error::NoRun {
            path: folder.to_owned(),
            found,
        };
        match fs::metadata(folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(no_run("a file")),
            Err(_) => return Err(no_run("nothing")),
        }
        let state = State::of(folder);
        let config = text(folder, CONFIG)?.ok_or_else(|| no_run("none"))?;
        let settings: toml::Table = config.parse().map_err(|e: toml::de::Error| {
            content(&folder.join(CONFIG), "TOML", e.message().to_owned())
        })?;
        let summary = match text(folder, SUMMARY)? {
            Some(text) => Some(
                serde_json::from_str(&text)
                    .map_err(|e| content(&folder.join(SUMMARY), "JSON", e.to_string()))?,
            ),
            None => None,
        };
        let of_folder = || folder.file_name().unwrap_or_default().to_string_lossy();
        let name = match settings.get("name").and_then(toml::Value::as_str) {
            Some(name) => name.to_owned(),
            None => of_folder().into_owned(),
        };
        Ok(Self {
            name,
            state,
            config,
            settings,
            summary,
            events: events(folder)?,
            samples: vec![],
            plans: vec![],
        })
    }

    /// As the config names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether somebody works on it.
    pub fn state(&self) -> State {
        self.state
    }

    /// A value of the summary; null where there is none.
    pub(crate) fn summary(&self, key: &str) -> &Value {
        self.summary.as_ref().map_or(&Value::Null, |s| &s[key])
    }

    /// A value of the config; the key may have dots.
    pub(crate) fn setting(&self, key: &str) -> Option<&toml::Value> {
        let mut parts = key.split('.');
        let first = self.settings.get(parts.next()?)?;
        parts.try_fold(first, |table, part| table.get(part))
    }

    pub(crate) fn events_of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |e| e["kind"] == kind)
    }

    /// (step, value) of the curve `tag`.
    pub(crate) fn curve(&self, tag: &str) -> Vec<(f64, f64)> {
        let of_tag = self.events_of("scalar").filter(|e| e["tag"] == tag);
        of_tag
            .filter_map(|e| Some((e["step"].as_f64()?, e["value"].as_f64()?)))
            .collect()
    }
}

/// Something that changes when a run writes: sizes and times of its log and summary, and whether it is worked on.
pub(crate) type Version = Vec<(u64, u128)>;

pub(crate) fn version(folder: &Path) -> Version {
    let stat = |name: &str| {
        let found = fs::metadata(folder.join(name)).ok()?;
        let changed = found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some((found.len(), changed.as_nanos()))
    };
    let mut all: Vec<_> = [CONFIG, EVENTS, SUMMARY, PLOTS]
        .iter()
        .map(|name| stat(name).unwrap_or_default())
        .collect();
    all.push((State::of(folder) as u64, 0));
    all
}

fn content(path: &Path, expected: &'static str, found: String) -> Error {
    Error::Content {
        path: path.to_owned(),
        expected,
        found,
    }
}

/// The bytes of a file that is in `folder` for real; `None` where there is none.
fn inside(folder: &Path, path: &Path) -> Result<Option<Vec<u8>>> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    let root = folder.canonicalize().map_err(Error::io(folder, "read"))?;
    if !real.starts_with(&root) {
        return Err(Error::Outside {
            path: path.to_owned(),
            folder: folder.to_owned(),
        });
    }
    if !real.is_file() {
        return Err(content(
            path,
            "a file",
            "something else of that name".to_owned(),
        ));
    }
    let mut bytes = Vec::new();
    let mut file = File::open(&real).map_err(Error::io(path, "read"))?;
    file.read_to_end(&mut bytes)
        .map_err(Error::io(path, "read"))?;
    Ok(Some(bytes))
}

/// A file of `folder` as text; `None` where there is none.
fn text(folder: &Path, name: &str) -> Result<Option<String>> {
    let path = folder.join(name);
    inside(folder, &path)?
        .map(|bytes| utf8(&path, bytes))
        .transpose()
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        content(path, "UTF-8", format!("byte {at} that is none"))
    })
}

fn events(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join(EVENTS);
    let mut bytes = inside(folder, &path)?.unwrap_or_default();
    // A last line that is still being written may end within a letter.
    let whole = bytes.iter().rposition(|b| *b == b'\n');
    bytes.truncate(whole.map_or(0, |end| end + 1));
    let read = |(n, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            let found = format!("line {}: {e}", n + 1);
            content(&path, "one JSON object a line", found)
        })
    };
    let text = utf8(&path, bytes)?;
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(read)
        .collect()
}

/// Names of `folder` that begin and end so, sorted.
fn named(folder: &Path, start: &str, end: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with(start) && name.ends_with(end))
        .collect();
    names.sort();
    names
}

fn samples(folder: &Path) -> Result<Vec<Picture>> {
    let plots = folder.join(PLOTS);
    let mut all = Vec::new();
    for file in named(&plots, "samples", ".png") {
        let path = plots.join(&file);
        if fs::metadata(&path).is_ok_and(|found| found.len() > LARGEST_PICTURE) {
            continue;
        }
        let name = file
            .trim_start_matches("samples")
            .trim_start_matches('-')
            .trim_end_matches(".png");
        if let Some(png) = inside(folder, &path)? {
            let name = if name.is_empty() { "samples" } else { name }.to_owned();
            all.push(Picture { name, png });
        }
    }
    all.retain(|picture| picture.size().is_some());
    // The uncached run is what the others are held against.
    all.sort_by_key(|picture| picture.name != "none");
    Ok(all)
}

fn plans(folder: &Path) -> Result<Vec<PlanFile>> {
    let mut all = Vec::new();
    for file in named(folder, "plan-", ".toml") {
        let path = folder.join(&file);
        let Some(bytes) = inside(folder, &path)? else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes);
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| content(&path, "a cache plan", e.message().to_owned()))?;
        let list = |value: Option<&toml::Value>| {
            value
                .and_then(toml::Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let steps: Vec<String> = list(table.get("steps"))
            .iter()
            .filter_map(|s| Some(s.as_str()?.replace(' ', "")))
            .collect();
        // From the last executed step to the first, as a checkpoint has them.
        let rows = list(table.get("made_for").and_then(|m| m.get("timesteps")));
        let mut timesteps: Vec<f64> = rows
            .iter()
            .filter_map(|t| t.as_float().or_else(|| t.as_integer().map(|t| t as f64)))
            .collect();
        timesteps.reverse();
        if timesteps.is_empty() {
            // Written by hand, for any sampler: there is nothing to name its columns by.
            continue;
        }
        let width = steps.first().map_or(0, String::len);
        if width == 0
            || steps.len() != timesteps.len()
            || steps.iter().any(|s| s.len() != width || !s.is_ascii())
        {
            return Err(content(
                &path,
                "a cache plan with a line of equal length for each timestep",
                format!("{} lines, {} timesteps", steps.len(), timesteps.len()),
            ));
        }
        let name = file
            .trim_start_matches("plan-")
            .trim_end_matches(".toml")
            .to_owned();
        all.push(PlanFile {
            name,
            steps,
            timesteps,
        });
    }
    Ok(all)
}
