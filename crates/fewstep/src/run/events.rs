//! `events.jsonl`: one JSON object a line, appended one whole line at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::RunError;

#[derive(Debug)]
pub(super) struct EventLog {
    path: PathBuf,
    file: File,
    length: u64,
    last_time_s: f64,
}

impl EventLog {
    /// Opens or makes the log. A last line without its line break was torn by a kill, and is dropped.
    pub(super) fn open(path: &Path) -> Result<Self, RunError> {
        let failed = |source| RunError::io("open", path, source);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        let last_line = bytes[..whole].split(|&byte| byte == b'\n').rev().nth(1);
        let last_time_s = last_line.and_then(|line| serde_json::from_slice::<Value>(line).ok());
        Ok(Self {
            path: path.to_path_buf(),
            file,
            length: whole as u64,
            last_time_s: last_time_s.map_or(0.0, |event| time_of(&event)),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// `time_s` of the last event; 0 without one.
    pub(super) fn last_time_s(&self) -> f64 {
        self.last_time_s
    }

    pub(super) fn append(
        &mut self,
        time_s: f64,
        kind: &str,
        fields: Value,
    ) -> Result<(), RunError> {
        let mut event = Map::new();
        event.insert("time_s".to_owned(), time_s.into());
        event.insert("kind".to_owned(), kind.into());
        match fields {
            Value::Object(fields) => {
                for (key, value) in fields {
                    event.entry(key).or_insert(value);
                }
            }
            Value::Null => {}
            other => {
                event.insert("value".to_owned(), other);
            }
        }
        let mut line = Value::Object(event).to_string();
        line.push('\n');
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // Half a line (full disk) would spoil the next one. If this fails too, the next open drops it.
            let _ = self.file.set_len(self.length);
            return Err(RunError::io("write", &self.path, source));
        }
        self.length += line.len() as u64;
        self.last_time_s = time_s;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.file
            .sync_data()
            .map_err(|source| RunError::io("sync", &self.path, source))
    }

    pub(super) fn read(&self) -> Result<Vec<Value>, RunError> {
        Ok(self.lines()?.into_iter().map(|(event, _)| event).collect())
    }

    /// Drops everything after the last mark that is at most `number`, and returns what is left. A log without such a
    /// mark is emptied.
    pub(super) fn truncate_after_mark(&mut self, number: u64) -> Result<Vec<Value>, RunError> {
        let mut lines = self.lines()?;
        let is_mark = |event: &Value| event["mark"].as_u64().is_some_and(|mark| mark <= number);
        let keep = lines
            .iter()
            .rposition(|(event, _)| is_mark(event))
            .map_or(0, |at| at + 1);
        lines.truncate(keep);
        let length = lines.last().map_or(0, |(_, end)| *end);
        let failed = |source| RunError::io("truncate", &self.path, source);
        self.file.set_len(length).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        self.length = length;
        self.last_time_s = lines.last().map_or(0.0, |(event, _)| time_of(event));
        Ok(lines.into_iter().map(|(event, _)| event).collect())
    }

    /// Each event with the byte offset of its line's end.
    fn lines(&self) -> Result<Vec<(Value, u64)>, RunError> {
        let text =
            fs::read(&self.path).map_err(|source| RunError::io("read", &self.path, source))?;
        let mut end = 0;
        text.split_inclusive(|&byte| byte == b'\n')
            .enumerate()
            .map(|(index, line)| {
                end += line.len() as u64;
                serde_json::from_slice::<Map<String, Value>>(line)
                    .map(|event| (Value::Object(event), end))
                    .map_err(|error| RunError::BadEvent {
                        path: self.path.clone(),
                        line: index + 1,
                        message: error.to_string(),
                    })
            })
            .collect()
    }
}

fn time_of(event: &Value) -> f64 {
    event["time_s"].as_f64().unwrap_or(0.0)
}
