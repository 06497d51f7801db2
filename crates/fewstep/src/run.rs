//! The run folder `runs/<name>/`: everything that one run writes, and what makes it safe to be killed and resumed.
//!
//! ```text
//! config.toml      the resolved config, written first; a resumed run must have the same
//! events.jsonl     one JSON object per logged figure: time_s (since the start), kind, and the fields of that kind
//! tb/              the same scalars, and the plots, for TensorBoard
//! checkpoints/     for the method to fill, see [`RunFolder::checkpoints`]
//! plots/*.png
//! table.md         the table that the terminal shows, as Markdown
//! summary.json     written last: its presence says that the run is finished
//! report.html      all of that to look at, made from the others and at any time again (`fewstep report`)
//! run.lock         held (by the operating system) while a process works on the folder; left behind, it means nothing
//! ```
//!
//! Whole files are written to a temporary name, synced and renamed, so they are there in full or not at all. The event
//! log is appended to; [`RunFolder::mark`] puts a mark into it **before** each checkpoint is written, and a resumed run
//! calls [`RunFolder::rewind`] with the number of the checkpoint it found, which drops what was logged after it.

mod config_diff;
mod error;
mod events;

#[cfg(test)]
mod tests;

use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use fewstep_report::{CONFIG, EVENTS, LOCK, PLOTS, SUMMARY, is_run_name};
use fewstep_torch::checkpoint::{ASIDE, write_atomically};

use crate::tensorboard::{self, EventWriter};

pub(crate) use config_diff::first_difference;
pub use error::RunError;
use events::EventLog;

const TENSORBOARD: &str = "tb";
const CHECKPOINTS: &str = "checkpoints";
const TABLE: &str = "table.md";
const REPORT: &str = "report.html";

/// What to do when the folder already holds a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Stop with a sentence.
    #[default]
    Refuse,
    /// Go on with it (`--resume`). A folder without a run starts a new one.
    Resume,
    /// Delete what that run wrote, and nothing else, and start anew (`--force`).
    Replace,
}

/// An open run folder. The lock is held until this value is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    name: String,
    resumed: bool,
    events: EventLog,
    tensorboard: Option<EventWriter>,
    started: Instant,
    /// Seconds that earlier processes spent on this run.
    earlier_s: f64,
    _lock: File,
}

impl RunFolder {
    /// Opens `root/name` for a run of `config`, which is written to `config.toml` as TOML.
    ///
    /// # Errors
    /// The name is no plain folder name; another process holds the folder; the folder holds a run and `existing` is
    /// [`Existing::Refuse`]; with [`Existing::Resume`], the config differs from the one of that run (the first key that
    /// differs is named); or the file system fails.
    pub fn create(
        root: &Path,
        name: &str,
        config: &impl Serialize,
        existing: Existing,
    ) -> Result<Self, RunError> {
        check_name(name)?;
        let config = toml::to_string_pretty(config).map_err(RunError::ConfigToToml)?;
        let path = root.join(name);
        fs::create_dir_all(&path)
            .map_err(|source| RunError::io("make the folder", &path, source))?;
        let lock = lock(&path)?;
        let held = Contents::of(&path);
        let mut resumed = false;
        match existing {
            Existing::Refuse if held.any() => {
                return Err(RunError::Exists {
                    path,
                    state: held.state(),
                });
            }
            Existing::Resume if held.config => {
                config_diff::require_same(&path.join(CONFIG), &config)?;
                resumed = true;
            }
            Existing::Resume if held.any() => return Err(RunError::NoConfig { path }),
            Existing::Replace => delete_run(&path)?,
            Existing::Refuse | Existing::Resume => {}
        }
        if !resumed {
            write_atomically(&path.join(CONFIG), config.as_bytes())?;
        }
        let events = EventLog::open(&path.join(EVENTS))?;
        let mut run = Self {
            earlier_s: events.last_time_s(),
            name: name.to_owned(),
            resumed,
            events,
            tensorboard: None,
            started: Instant::now(),
            _lock: lock,
            path,
        };
        if run.events.is_empty() {
            let unix_s = tensorboard::unix_seconds();
            let start = json!({
                "mark": 0, "unix_s": unix_s, "run": name,
                "command": command(), "machine": machine(), "versions": versions(),
            });
            run.event("start", start)?;
        }
        Ok(run)
    }

    /// The run's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this goes on with a run that was there before.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Whether `summary.json` is there, that is, the run came to its end.
    pub fn finished(&self) -> bool {
        self.path.join(SUMMARY).exists()
    }

    /// A path inside the run folder; `""` is the folder itself.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// The folder for checkpoints. The caller makes it; `--force` deletes the plain files in it.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Seconds of work on this run, those of earlier processes included.
    pub fn elapsed_s(&self) -> f64 {
        self.earlier_s + self.started.elapsed().as_secs_f64()
    }

    /// Appends one line to `events.jsonl`: `time_s`, `kind`, then `fields` (a JSON object; any other value is kept
    /// under `value`). NaN and infinities become `null`.
    ///
    /// # Errors
    /// If the line cannot be written; the log then ends with the line before.
    pub fn event(&mut self, kind: &str, fields: Value) -> Result<(), RunError> {
        let time_s = (self.elapsed_s() * 1e3).round() / 1e3;
        self.events.append(time_s, kind, fields)
    }

    /// One point of a curve, to `events.jsonl` (kind `scalar`) and to TensorBoard.
    ///
    /// # Errors
    /// If either file cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<(), RunError> {
        self.event("scalar", json!({"tag": tag, "step": step, "value": value}))?;
        let wall_time_s = tensorboard::unix_seconds();
        self.with_tensorboard(|writer| writer.scalar(tag, signed(step), value, wall_time_s))
    }

    /// Marks that everything up to checkpoint `number` (1, 2, 3 … over the whole run) has been logged, and syncs the
    /// log to disk. Call it **before** that checkpoint is written: then a checkpoint that is there always has its mark.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn mark(&mut self, number: u64) -> Result<(), RunError> {
        self.event("mark", json!({"mark": number}))?;
        self.events.sync()
    }

    /// Goes back to the state of the log at checkpoint `number` (0: the start): drops every later event, makes the
    /// TensorBoard files anew from what is left, and deletes `summary.json` and `report.html`. Call it once after resuming.
    ///
    /// # Errors
    /// If a file cannot be written, or a line of the log in front of the mark is not JSON.
    pub fn rewind(&mut self, number: u64) -> Result<(), RunError> {
        let summary = self.path.join(SUMMARY);
        remove_if_there(&summary)?;
        remove_if_there(&self.path.join(REPORT))?;
        let kept = self.events.truncate_after_mark(number)?;
        self.earlier_s = self.events.last_time_s();
        self.started = Instant::now();
        self.tensorboard = None;
        delete_files(&self.path.join(TENSORBOARD), is_tensorboard_file)?;
        let first_unix_s = kept.iter().find_map(|event| event["unix_s"].as_f64());
        let first_unix_s = first_unix_s.unwrap_or_else(tensorboard::unix_seconds);
        for event in kept.iter().filter(|event| event["kind"] == "scalar") {
            let (Some(tag), Some(step)) = (event["tag"].as_str(), event["step"].as_u64()) else {
                continue;
            };
            let value = event["value"].as_f64().unwrap_or(f64::NAN);
            let wall_time_s = first_unix_s + event["time_s"].as_f64().unwrap_or(0.0);
            self.with_tensorboard(|writer| writer.scalar(tag, signed(step), value, wall_time_s))?;
        }
        self.event(
            "resume",
            json!({"from_mark": number, "unix_s": tensorboard::unix_seconds()}),
        )
    }

    /// All events so far, oldest first.
    ///
    /// # Errors
    /// If the log cannot be read or a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>, RunError> {
        self.events.read()
    }

    /// Writes `plots/<name>.png`, and the same image to TensorBoard as `plots/<name>`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn plot(&mut self, name: &str, png: &[u8]) -> Result<PathBuf, RunError> {
        let folder = self.path.join(PLOTS);
        fs::create_dir_all(&folder)
            .map_err(|source| RunError::io("make the folder", &folder, source))?;
        let path = folder.join(format!("{name}.png"));
        write_atomically(&path, png)?;
        let wall_time_s = tensorboard::unix_seconds();
        self.with_tensorboard(|writer| {
            writer.image(&format!("plots/{name}"), 0, png, wall_time_s)
        })?;
        Ok(path)
    }

    /// Writes `table.md`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_table(&self, markdown: &str) -> Result<(), RunError> {
        Ok(write_atomically(
            &self.path.join(TABLE),
            format!("{markdown}\n").as_bytes(),
        )?)
    }

    /// Writes `summary.json`, which ends the run. NaN and infinities become `null`.
    ///
    /// # Errors
    /// If the summary cannot be serialised or written; an older one is then still there.
    pub fn write_summary(&mut self, summary: &impl Serialize) -> Result<(), RunError> {
        let path = self.path.join(SUMMARY);
        let mut text = serde_json::to_string_pretty(summary).map_err(RunError::ToJson)?;
        text.push('\n');
        self.events.sync()?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// Writes `report.html` from what is in the folder.
    ///
    /// # Errors
    /// If a file of the folder cannot be read, or the report cannot be written.
    pub fn write_report(&self) -> Result<PathBuf, RunError> {
        write_report(&self.path)
    }

    fn with_tensorboard(
        &mut self,
        write: impl FnOnce(&mut EventWriter) -> io::Result<()>,
    ) -> Result<(), RunError> {
        let folder = self.path.join(TENSORBOARD);
        let failed = |source| RunError::io("write the TensorBoard file in", &folder, source);
        let writer = match &mut self.tensorboard {
            Some(writer) => writer,
            None => {
                let writer = EventWriter::create(&folder).map_err(failed)?;
                self.tensorboard.insert(writer)
            }
        };
        write(writer).map_err(failed)
    }
}

/// Writes `report.html` into a run folder.
///
/// # Errors
/// If it is no run folder, a file of it cannot be read, or the report cannot be written.
pub fn write_report(folder: &Path) -> Result<PathBuf, RunError> {
    let page = fewstep_report::Run::read(folder)?.page();
    let path = folder.join(REPORT);
    write_atomically(&path, page.to_html().as_bytes())?;
    Ok(path)
}

/// What this program and the libraries below it are.
pub(crate) fn versions() -> Value {
    let mut versions =
        json!({"fewstep": env!("CARGO_PKG_VERSION"), "libtorch": fewstep_torch::LIBTORCH_VERSION});
    // xtask knows it.
    if let Ok(commit) = env::var("FEWSTEP_COMMIT") {
        versions["commit"] = commit.into();
    }
    versions
}

/// The words that this process was started with.
fn command() -> Vec<String> {
    let words = env::args_os().map(|word| word.to_string_lossy().into_owned());
    let mut words: Vec<_> = words.collect();
    if let Some(program) = words.first_mut() {
        // Where it lies is this machine's business.
        let name = Path::new(program.as_str()).file_name();
        *program = name.unwrap_or_default().to_string_lossy().into_owned();
    }
    words
}

/// As the driver names them.
fn gpus() -> Vec<String> {
    let all = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .flatten();
    let model = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("information")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("Model:"))?;
        Some(line.trim().to_owned())
    };
    all.filter_map(|entry| model(entry.path())).collect()
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str, between: char| {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        Some(
            line.trim_start_matches(['\t', ' ', between])
                .trim_matches('"')
                .to_owned(),
        )
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal", ':');
    let memory_kib = memory.and_then(|m| m.trim_end_matches(" kB").trim().parse::<f64>().ok());
    json!({
        "cpu": value(&read("/proc/cpuinfo"), "model name", ':'),
        "cores": thread::available_parallelism().ok(),
        "memory_gib": memory_kib.map(|kib| (kib / 1024. / 102.4).round() / 10.),
        "system": value(&read("/etc/os-release"), "PRETTY_NAME", '='),
        "gpus": gpus(),
    })
}

fn check_name(name: &str) -> Result<(), RunError> {
    if !is_run_name(name) {
        return Err(RunError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| RunError::io("open", &path, source))?;
    // Who looks at a run holds its lock for a moment.
    let mut tries = 0;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if tries < 10 => {
                tries += 1;
                thread::sleep(Duration::from_millis(20));
            }
            other => break other,
        }
    };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Locked {
            path: folder.to_path_buf(),
        }),
        // Some network file systems have no locks; a run there is better than none.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(source)) => Err(RunError::io("lock", &path, source)),
    }
}

/// Which of a run's files a folder has.
struct Contents {
    config: bool,
    summary: bool,
    other: bool,
}

impl Contents {
    fn of(folder: &Path) -> Self {
        let has = |name: &str| folder.join(name).symlink_metadata().is_ok();
        let has_files = |name: &str| {
            fs::read_dir(folder.join(name)).is_ok_and(|mut entries| entries.next().is_some())
        };
        Self {
            config: has(CONFIG),
            summary: has(SUMMARY),
            other: has(EVENTS) || has_files(CHECKPOINTS) || has_files(TENSORBOARD),
        }
    }

    fn any(&self) -> bool {
        self.config || self.summary || self.other
    }

    fn state(&self) -> &'static str {
        if self.summary {
            "a finished"
        } else {
            "an unfinished"
        }
    }
}

/// Deletes what a run writes and nothing else. The config goes last: a folder without it is never resumed, so a kill in
/// the middle cannot leave old checkpoints for a new run to find.
fn delete_run(folder: &Path) -> Result<(), RunError> {
    remove_if_there(&folder.join(SUMMARY))?;
    remove_if_there(&folder.join(TABLE))?;
    remove_if_there(&folder.join(REPORT))?;
    remove_if_there(&folder.join(EVENTS))?;
    delete_files(&folder.join(TENSORBOARD), is_tensorboard_file)?;
    delete_files(&folder.join(PLOTS), |name| name.ends_with(".png"))?;
    delete_files(folder, is_of_a_comparison)?;
    let checkpoints = folder.join(CHECKPOINTS);
    for phase in fs::read_dir(&checkpoints).into_iter().flatten().flatten() {
        delete_files(&phase.path(), is_checkpoint)?;
    }
    delete_files(&checkpoints, is_checkpoint)?;
    remove_if_there(&folder.join(CONFIG))
}

/// Plans, routers and tables, which a report would show for those of the new run.
fn is_of_a_comparison(name: &str) -> bool {
    let between = |start: &str, end: &str| name.starts_with(start) && name.ends_with(end);
    between("plan-", ".toml")
        || between("router-", ".safetensors")
        || between("matched-", ".md")
        || between("matched-", ".csv")
        || name == "table.csv"
}

fn is_checkpoint(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "result.json" || name.starts_with(ASIDE)
}

fn is_tensorboard_file(name: &str) -> bool {
    name.starts_with(tensorboard::FILE_PREFIX)
}

/// Deletes the plain files of `folder` (not of folders inside it) whose names are wanted; a folder left empty goes too.
fn delete_files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), RunError> {
    // A link leads to files that may not be ours.
    match folder.symlink_metadata() {
        Ok(found) if found.is_dir() => {}
        _ => return Ok(()),
    }
    let failed = |source| RunError::io("clear the folder", folder, source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        if !is_folder && wanted(&entry.file_name().to_string_lossy()) {
            remove_if_there(&entry.path())?;
        }
    }
    // Not empty: something of somebody else is in it.
    let _ = fs::remove_dir(folder);
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), RunError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RunError::io("delete", path, source))
        }
        _ => Ok(()),
    }
}

fn signed(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}
