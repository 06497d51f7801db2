//! A TOML document as a tree in which every value knows where it was set.

use serde::de::Unexpected;
use toml::de::{DeTable, DeValue};

/// Where a value was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A line of the file, from 1.
    Line(usize),
    /// The override of this index.
    Override(usize),
    /// The document itself.
    Root,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    /// In the order of the file, so that the first mistake is the first to be reported.
    Table(Vec<(String, Node)>),
}

/// Text that is not TOML: what and at which byte.
pub(super) struct SyntaxFault {
    pub(super) message: String,
    pub(super) offset: usize,
}

impl Node {
    /// The member of a table, or the element of an array (`segment` a decimal index).
    pub(super) fn child(&self, segment: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries
                .iter()
                .find_map(|(key, node)| (key == segment).then_some(node)),
            Value::Array(nodes) => nodes.get(segment.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// Paths, relative to this node, of all nodes below it that match.
    pub(super) fn search(
        &self,
        matches: &impl Fn(&Node) -> bool,
        here: &mut Vec<String>,
        hits: &mut Vec<Vec<String>>,
    ) {
        let mut visit = |segment: String, node: &Node| {
            here.push(segment);
            if matches(node) {
                hits.push(here.clone());
            }
            node.search(matches, here, hits);
            here.pop();
        };
        match &self.value {
            Value::Table(entries) => {
                for (key, node) in entries {
                    visit(key.clone(), node);
                }
            }
            Value::Array(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    visit(index.to_string(), node);
                }
            }
            _ => {}
        }
    }

    pub(super) fn is_string(&self, text: &str) -> bool {
        matches!(&self.value, Value::String(own) if own == text)
    }

    /// For people: "the string \"fast\"", "a table".
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::String(text) => format!("the string {text:?}"),
            Value::Integer(number) => format!("the whole number {number}"),
            Value::Float(number) => format!("the number {number:?}"),
            Value::Boolean(flag) => format!("{flag}"),
            Value::Datetime(text) => format!("the date {text}"),
            Value::Array(nodes) => format!("an array of length {}", nodes.len()),
            Value::Table(_) => "a table".to_owned(),
        }
    }

    /// As serde names this value in its messages.
    pub(super) fn unexpected(&self) -> String {
        match &self.value {
            Value::String(text) | Value::Datetime(text) => Unexpected::Str(text),
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::Boolean(flag) => Unexpected::Bool(*flag),
            Value::Array(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
        .to_string()
    }
}

/// `stages[0].epochs` and `stages.0.epochs` alike to `["stages", "0", "epochs"]`.
pub(super) fn split_key(key: &str) -> Vec<String> {
    key.split(['.', '[', ']'])
        .map(str::trim)
        .filter(|segment| !segment.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Line and column, both from 1, of a byte offset.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

pub(super) fn parse(text: &str) -> Result<Node, SyntaxFault> {
    let document = DeTable::parse(text).map_err(|error| SyntaxFault {
        message: error.message().replace('\n', ", "),
        offset: error.span().map_or(0, |span| span.start),
    })?;
    let origin = |offset: usize| Origin::Line(line_and_column(text, offset).0);
    Ok(Node {
        value: Value::Table(convert_table(document.get_ref(), &origin)?),
        origin: Origin::Root,
    })
}

fn convert_table(
    table: &DeTable<'_>,
    origin: &impl Fn(usize) -> Origin,
) -> Result<Vec<(String, Node)>, SyntaxFault> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
        .into_iter()
        .map(|(key, value)| {
            let offset = key.span().start;
            let value = convert(value.get_ref(), value.span().start, origin)?;
            let origin = origin(offset);
            Ok((key.get_ref().to_string(), Node { value, origin }))
        })
        .collect()
}

fn convert(
    value: &DeValue<'_>,
    offset: usize,
    origin: &impl Fn(usize) -> Origin,
) -> Result<Value, SyntaxFault> {
    let out_of_range = |text: &str| SyntaxFault {
        message: format!("the number {text} is too large"),
        offset,
    };
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| out_of_range(number.as_str()))?,
        ),
        DeValue::Float(number) => Value::Float(
            number
                .as_str()
                .parse()
                .map_err(|_| out_of_range(number.as_str()))?,
        ),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(values) => Value::Array(
            values
                .iter()
                .map(|value| {
                    let offset = value.span().start;
                    Ok(Node {
                        value: convert(value.get_ref(), offset, origin)?,
                        origin: origin(offset),
                    })
                })
                .collect::<Result<_, SyntaxFault>>()?,
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, origin)?),
    })
}

/// Lays `key.path=value` over `root`. Tables on the way that are not there are made; arrays are not extended.
pub(super) fn apply_override(root: &mut Node, argument: &str, index: usize) -> Result<(), String> {
    let origin = Origin::Override(index);
    let (key, text) = argument
        .split_once('=')
        .ok_or("expected key.path=value, found no `=`")?;
    let path = split_key(key);
    if path.is_empty() {
        return Err("expected key.path=value, found no key before the `=`".to_owned());
    }
    let value = override_value(text.trim(), origin)?;
    let mut node = root;
    for (depth, segment) in path.iter().enumerate() {
        let description = node.describe();
        node = match &mut node.value {
            Value::Table(entries) => {
                let at = entries.iter().position(|(key, _)| key == segment);
                let at = at.unwrap_or_else(|| {
                    let value = Value::Table(Vec::new());
                    entries.push((segment.clone(), Node { value, origin }));
                    entries.len() - 1
                });
                &mut entries[at].1
            }
            Value::Array(nodes) => {
                let length = nodes.len();
                let slot = segment
                    .parse::<usize>()
                    .ok()
                    .and_then(|at| nodes.get_mut(at));
                slot.ok_or_else(|| {
                    format!(
                        "`{}` is an array of length {length}, so `{segment}` must be an index below {length}",
                        path[..depth].join(".")
                    )
                })?
            }
            _ => {
                return Err(format!(
                    "`{}` is {description}, it has no `{segment}` inside",
                    path[..depth].join(".")
                ));
            }
        };
    }
    *node = Node { value, origin };
    Ok(())
}

/// The value as TOML; anything that does not look like TOML is a string ("bare word").
fn override_value(text: &str, origin: Origin) -> Result<Value, String> {
    let document = format!("value = {text}");
    match DeTable::parse(&document) {
        // More than one key: the text had a line break and went on with another setting.
        Ok(table) if table.get_ref().len() == 1 => {
            let entries = convert_table(table.get_ref(), &|_| origin);
            let mut entries = entries.map_err(|fault| fault.message)?;
            Ok(entries.remove(0).1.value)
        }
        Ok(_) => Err("expected one value, found several lines".to_owned()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(format!(
            "the value is not valid TOML: {} (words inside an array need quotes)",
            error.message().replace('\n', ", ")
        )),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}
