//! Reading a config: TOML text, `--set key.path=value` overrides on top, and errors that say where.
//!
//! Serde decides what is valid (`#[serde(deny_unknown_fields)]` structs); this module keeps, for every value, the line of
//! the file or the `--set` argument it came from, so that each error names the key, the place and the nearest valid key.
//! Rules that serde cannot express are checked by the caller, who turns a finding into the same kind of error with
//! [`ConfigSource::invalid`].
//!
//! ```
//! # use fewstep::config;
//! #[derive(Debug, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Small { seed: u64 }
//!
//! let error = config::from_str::<Small>("a.toml", "seeed = 1", &[]).unwrap_err();
//! assert_eq!(error.to_string(), "a.toml:1: unknown key `seeed`; did you mean `seed`?");
//! ```

mod deserialize;
mod nearest;
mod tree;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use deserialize::{Fault, FaultKind};
use tree::{Node, Origin, Value};

pub use nearest::nearest;

/// What can be wrong with a config. Every message is one sentence that begins with the place: `file:line`, or the
/// `--set` argument that the value came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, may not be read, or is not UTF-8.
    #[error("cannot read the config {}: {source}{hint}", path.display())]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
        /// Empty, or "; did you mean …?" with a file of the same folder.
        hint: String,
    },
    /// The text is not TOML.
    #[error("{}:{line}:{column}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The parser's reason.
        message: String,
    },
    /// A `--set` argument that is not `key.path=value`, or whose path leads nowhere.
    #[error("--set {argument}: {message}")]
    Override {
        /// The argument as it was given.
        argument: String,
        /// What is wrong with it.
        message: String,
    },
    /// A key that no setting has.
    #[error("{place}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// `file:line` or the `--set` argument.
        place: String,
        /// The whole key, e.g. `snn.timestep`.
        key: String,
        /// The nearest valid key, or all of them.
        hint: String,
    },
    /// A word that is none of a setting's choices.
    #[error("{place}: `{key}` is \"{found}\", which it cannot be; {hint}")]
    UnknownChoice {
        /// `file:line` or the `--set` argument.
        place: String,
        /// The whole key.
        key: String,
        /// The word that was found.
        found: String,
        /// The nearest choice and the list of choices.
        hint: String,
    },
    /// A value of the wrong type, or outside of what the type can hold.
    #[error("{place}: `{key}` must be {expected}, but is {found}")]
    WrongType {
        /// `file:line` or the `--set` argument.
        place: String,
        /// The whole key.
        key: String,
        /// What the setting takes.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A setting without default that nobody set.
    #[error("{place}: the key `{key}` is missing, and it has no default")]
    MissingKey {
        /// The file, with the line of the table that lacks the key.
        place: String,
        /// The whole key.
        key: String,
    },
    /// A value of the right type that makes no sense.
    #[error("{place}: `{key}`: {message}")]
    Invalid {
        /// `file:line` or the `--set` argument.
        place: String,
        /// The whole key.
        key: String,
        /// What was expected and what was found.
        message: String,
    },
}

/// A config's text and overrides, parsed and merged, with the origin of each value.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    path: PathBuf,
    overrides: Vec<String>,
    root: Node,
}

impl ConfigSource {
    /// Reads the file at `path` and lays `overrides` (`key.path=value`, later ones win) over it.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Syntax`] or [`ConfigError::Override`].
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            hint: missing_file_hint(path, &source),
            source,
        })?;
        Self::parse(path, &text, overrides)
    }

    /// The same from text in memory; `path` is only used in messages.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Override`].
    pub fn parse(
        path: impl AsRef<Path>,
        text: &str,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        let path = path.as_ref().to_path_buf();
        let mut root = match tree::parse(text) {
            Ok(root) => root,
            Err(fault) => {
                let (line, column) = tree::line_and_column(text, fault.offset);
                let message = fault.message;
                return Err(ConfigError::Syntax {
                    path,
                    line,
                    column,
                    message,
                });
            }
        };
        for (index, argument) in overrides.iter().enumerate() {
            tree::apply_override(&mut root, argument, index).map_err(|message| {
                ConfigError::Override {
                    argument: argument.clone(),
                    message,
                }
            })?;
        }
        Ok(Self {
            path,
            overrides: overrides.to_vec(),
            root,
        })
    }

    /// The file this config was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `--set` arguments that were laid over the file, in the order given.
    pub fn overrides(&self) -> &[String] {
        &self.overrides
    }

    /// The merged config as a `T`.
    ///
    /// # Errors
    /// The first thing serde objects to, with its place.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(deserialize::NodeDeserializer::new(&self.root))
            .map_err(|fault| self.explain(fault))
    }

    /// Where the value of `key` (`snn.timesteps`, `stages.0.epochs` or `stages[0].epochs`) was set: `file:line`, or
    /// `--set …`. For a key that was left to its default: the innermost table around it that is there; for a key
    /// of the top level, the file.
    pub fn describe(&self, key: &str) -> String {
        self.place(self.find(&tree::split_key(key)).0.origin)
    }

    /// The line of the file (from 1) that [`describe`](Self::describe) would name; `None` for an override or a key of
    /// the top level that is not in the file.
    pub fn locate(&self, key: &str) -> Option<usize> {
        match self.find(&tree::split_key(key)).0.origin {
            Origin::Line(line) => Some(line),
            Origin::Override(_) | Origin::Root => None,
        }
    }

    /// An error about the value of `key`, for rules that the types do not express.
    pub fn invalid(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            place: self.describe(key),
            key: key.to_owned(),
            message: message.into(),
        }
    }

    /// The deepest node on the way to `path`, and whether that is the whole way.
    fn find(&self, path: &[String]) -> (&Node, bool) {
        let mut node = &self.root;
        for segment in path {
            match node.child(segment) {
                Some(child) => node = child,
                None => return (node, false),
            }
        }
        (node, true)
    }

    fn place(&self, origin: Origin) -> String {
        match origin {
            Origin::Line(line) => format!("{}:{line}", self.path.display()),
            Origin::Override(index) => {
                let argument = self.overrides.get(index).map_or("", String::as_str);
                format!("--set {argument}")
            }
            Origin::Root => self.path.display().to_string(),
        }
    }

    /// Puts place, whole key and hints to what serde said.
    fn explain(&self, fault: Fault) -> ConfigError {
        let Fault { mut path, kind } = fault;
        match kind {
            FaultKind::UnknownKey { key, valid } => {
                self.descend(&mut path, |node| node.child(&key).is_some());
                let hint = match nearest(&key, valid) {
                    Some(near) => format!("did you mean `{}`?", joined(&path, near)),
                    None if valid.is_empty() => "no keys are allowed here".to_owned(),
                    None => format!("the keys here are {}", nearest::list(valid, "`")),
                };
                path.push(key);
                let place = self.place(self.find(&path).0.origin);
                ConfigError::UnknownKey {
                    place,
                    key: path.join("."),
                    hint,
                }
            }
            FaultKind::MissingKey(key) => ConfigError::MissingKey {
                place: self.place(self.find(&path).0.origin),
                key: joined(&path, key),
            },
            FaultKind::UnknownChoice { found, valid } => {
                self.descend(&mut path, |node| node.is_string(&found));
                let choices = nearest::list(valid, "\"");
                let hint = match nearest(&found, valid) {
                    Some(near) => format!("did you mean \"{near}\"? (choices: {choices})"),
                    None => format!("the choices are {choices}"),
                };
                ConfigError::UnknownChoice {
                    place: self.place(self.find(&path).0.origin),
                    key: path.join("."),
                    found,
                    hint,
                }
            }
            FaultKind::WrongType { expected, found } => {
                self.descend(&mut path, |node| node.unexpected() == found);
                let (node, whole) = self.find(&path);
                ConfigError::WrongType {
                    place: self.place(node.origin),
                    key: name_of(&path),
                    expected,
                    found: if whole { node.describe() } else { found },
                }
            }
            FaultKind::Custom(message) => ConfigError::Invalid {
                place: self.place(self.find(&path).0.origin),
                key: name_of(&path),
                message,
            },
        }
    }

    /// Serde reads tagged and untagged enums through a buffer that forgets where inside it went wrong. If exactly one
    /// node below `path` matches what was complained about, that is the one.
    fn descend(&self, path: &mut Vec<String>, matches: impl Fn(&Node) -> bool) {
        let (node, whole) = self.find(path);
        if !whole || matches(node) {
            return;
        }
        let mut hits = Vec::new();
        node.search(&matches, &mut Vec::new(), &mut hits);
        if let [only] = hits.as_slice() {
            path.extend(only.iter().cloned());
        }
    }
}

/// Reads a `T` from the TOML file at `path` with `overrides` (`key.path=value`) laid over it.
///
/// # Errors
/// See [`ConfigError`]; each names the place and the key.
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T, ConfigError> {
    Ok(load_with_source(path, overrides)?.0)
}

/// As [`load`], with the source, which knows where each value was set.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_with_source<T: DeserializeOwned>(
    path: &Path,
    overrides: &[String],
) -> Result<(T, ConfigSource), ConfigError> {
    let source = ConfigSource::read(path, overrides)?;
    Ok((source.deserialize()?, source))
}

/// As [`load`], from text in memory; `path` is only used in messages.
///
/// # Errors
/// See [`ConfigError`].
pub fn from_str<T: DeserializeOwned>(
    path: impl AsRef<Path>,
    text: &str,
    overrides: &[String],
) -> Result<T, ConfigError> {
    ConfigSource::parse(path, text, overrides)?.deserialize()
}

fn joined(path: &[String], key: &str) -> String {
    let mut path = path.to_vec();
    path.push(key.to_owned());
    path.join(".")
}

fn name_of(path: &[String]) -> String {
    if path.is_empty() {
        "(the whole config)".to_owned()
    } else {
        path.join(".")
    }
}

/// "; did you mean …?" with the nearest TOML file of the same folder.
fn missing_file_hint(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return String::new();
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let readable = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let mut names: Vec<String> = std::fs::read_dir(readable)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort_unstable();
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let stems: Vec<&str> = names
        .iter()
        .map(|name| name.trim_end_matches(".toml"))
        .collect();
    match nearest(wanted.trim_end_matches(".toml"), &stems) {
        Some(stem) => format!(
            "; did you mean {}?",
            folder.join(format!("{stem}.toml")).display()
        ),
        None => String::new(),
    }
}
