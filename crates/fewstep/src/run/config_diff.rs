//! Whether two resolved configs are the same, and where they first differ.

use std::path::Path;

use toml::{Table, Value};

use super::RunError;

/// `Ok` if the file at `path` holds the same settings as `new_text`, in whatever order and layout.
pub(super) fn require_same(path: &Path, new_text: &str) -> Result<(), RunError> {
    let old_text =
        std::fs::read_to_string(path).map_err(|source| RunError::io("read", path, source))?;
    let table = |text: &str| -> Result<Table, RunError> {
        text.parse()
            .map_err(|error: toml::de::Error| RunError::BadConfig {
                path: path.to_path_buf(),
                message: error.message().replace('\n', ", "),
            })
    };
    let (old, new) = (table(&old_text)?, table(new_text)?);
    match difference(&Value::Table(old), &Value::Table(new), "") {
        None => Ok(()),
        Some((key, old, new)) => Err(RunError::ConfigChanged {
            path: path.to_path_buf(),
            key,
            old,
            new,
        }),
    }
}

/// The first setting that differs between two configs in TOML: its key, the old and the new value.
///
/// # Errors
/// One of them is no TOML.
pub(crate) fn first_difference(
    old: &str,
    new: &str,
) -> Result<Option<(String, String, String)>, toml::de::Error> {
    let (old, new) = (old.parse()?, new.parse()?);
    Ok(difference(&Value::Table(old), &Value::Table(new), ""))
}

/// The first key that differs, with both values.
fn difference(old: &Value, new: &Value, key: &str) -> Option<(String, String, String)> {
    let below = |segment: &str| match key {
        "" => segment.to_owned(),
        _ => format!("{key}.{segment}"),
    };
    let compare = |segment: &str, old: Option<&Value>, new: Option<&Value>| match (old, new) {
        (Some(old), Some(new)) => difference(old, new, &below(segment)),
        (None, None) => None,
        (old, new) => Some((below(segment), shown(old), shown(new))),
    };
    match (old, new) {
        (Value::Table(old), Value::Table(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            old.keys()
                .chain(added)
                .find_map(|key| compare(key, old.get(key), new.get(key)))
        }
        // Arrays of tables element by element; short ones of numbers are clearer as a whole.
        (Value::Array(olds), Value::Array(news)) if olds.iter().any(Value::is_table) => {
            (0..olds.len().max(news.len()))
                .find_map(|at| compare(&at.to_string(), olds.get(at), news.get(at)))
        }
        (Value::Float(a), Value::Float(b)) if a.to_bits() == b.to_bits() => None,
        _ if old == new => None,
        _ => Some((key.to_owned(), shown(Some(old)), shown(Some(new)))),
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "not set".to_owned(),
        Some(Value::Table(_)) => "a table".to_owned(),
        Some(value) => value.to_string(),
    }
}
