//! The templates of `--format`: the part of Docker's that people type.

use std::path::Path;
use std::str::FromStr;

use serde_json::Value;

use super::ls::aligned;
use super::printable;
use crate::error::{Error, Kind, Result};
use crate::volume::{Volume, VolumeId, shorten};

/// The driver of all volumes, as Docker names it.
pub(super) const DRIVER: &str = "orlop";

/// The placeholders.
const FIELDS: [&str; 10] =
    ["Name", "ID", "Pool", "Driver", "Scope", "Mountpoint", "Labels", "Size", "CreatedAt", "State"];

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// Whether it began with the word `table`: tabs separate columns, which have a header.
    is_table: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// One of [`FIELDS`], as text.
    Field(String),
    /// The same as JSON.
    Json(String),
    /// `json .`
    Whole,
    /// `.Label "KEY"`
    Label(String),
}

/// A volume to be printed.
#[derive(Debug)]
pub struct Item<'a> {
    /// Its id.
    pub id: &'a VolumeId,
    /// Its data directory.
    pub path: &'a Path,
    /// Its record, if that can be read.
    pub volume: Option<&'a Volume>,
    /// Its state.
    pub state: &'a str,
    /// What `-o json` prints of it.
    pub whole: &'a Value,
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "json" {
            return Ok(Self { parts: vec![Part::Whole], is_table: false });
        }
        let columns = text.strip_prefix("table ");
        let (mut parts, mut rest) = (Vec::new(), columns.unwrap_or(text));
        while let Some((before, after)) = rest.split_once("{{") {
            let wrong = || invalid(text, "a placeholder has no end");
            let (placeholder, after) = after.split_once("}}").ok_or_else(wrong)?;
            parts.push(Part::Text(unescaped(before)));
            parts.push(placeholder_of(text, placeholder.trim())?);
            rest = after;
        }
        parts.push(Part::Text(unescaped(rest)));
        Ok(Self { parts, is_table: columns.is_some() })
    }
}

fn placeholder_of(template: &str, text: &str) -> Result<Part> {
    let field = |text: &str| {
        let name = text.strip_prefix('.').filter(|name| FIELDS.contains(name));
        name.map(str::to_owned).ok_or_else(|| {
            let known = FIELDS.map(|name| format!(".{name}")).join(", ");
            let why = format!(
                "{:?} is no placeholder: those are {known}, .Label \"KEY\", json and one of these, and json .",
                shorten(text)
            );
            invalid(template, &why)
        })
    };
    let quoted = |text: &str| Some(text.trim().strip_prefix('"')?.strip_suffix('"')?.to_owned());
    match text.split_once(char::is_whitespace) {
        Some(("json", rest)) if rest.trim() == "." => Ok(Part::Whole),
        Some(("json", rest)) => field(rest.trim()).map(Part::Json),
        Some((".Label", rest)) => {
            quoted(rest).map(Part::Label).ok_or_else(|| invalid(template, ".Label needs a key in quotes"))
        }
        _ => field(text).map(Part::Field),
    }
}

fn invalid(template: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("template {:?}: {why}", shorten(template)))
}

/// The text with tabs and line breaks for `\t` and `\n`, as Docker has it.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

impl Template {
    /// Whether it prints the state of a volume, which depends on its users.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Field(name) | Part::Json(name) => name == "State",
            Part::Whole => true,
            Part::Text(_) | Part::Label(_) => false,
        })
    }

    /// Whether it prints all of a volume, also what it takes.
    #[must_use]
    pub fn has_usage(&self) -> bool {
        self.parts.contains(&Part::Whole)
    }

    /// The lines of some volumes that [`Template::line`] has made.
    #[must_use]
    pub fn join(&self, lines: impl Iterator<Item = String>) -> String {
        if !self.is_table {
            return lines.map(|line| line + "\n").collect();
        }
        let rows = std::iter::once(self.header()).chain(lines);
        let rows = rows.map(|line| line.split('\t').map(str::to_owned).collect());
        aligned(&rows.collect::<Vec<Vec<String>>>())
    }

    /// The names of the columns, as Docker has them.
    fn header(&self) -> String {
        let name = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(name) | Part::Json(name) => match name.as_str() {
                "Name" => "VOLUME NAME".to_owned(),
                "CreatedAt" => "CREATED AT".to_owned(),
                _ => name.to_uppercase(),
            },
            Part::Whole => "VOLUME".to_owned(),
            Part::Label(key) => printable(key),
        };
        self.parts.iter().map(name).collect()
    }

    /// The line of a volume, without its end.
    #[must_use]
    pub fn line(&self, item: &Item<'_>) -> String {
        let mut line = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field(name) => line.push_str(&printable(&as_text(&value_of(item, name)))),
                Part::Json(name) => line.push_str(&printable(&value_of(item, name).to_string())),
                Part::Whole => line.push_str(&printable(&item.whole.to_string())),
                Part::Label(key) => {
                    let label = item.volume.and_then(|volume| volume.labels.get(key));
                    line.push_str(&printable(label.map_or("", String::as_str)));
                }
            }
        }
        line
    }
}

fn value_of(item: &Item<'_>, name: &str) -> Value {
    match name {
        "Name" => item.id.name.as_str().into(),
        "ID" => item.id.to_string().into(),
        "Pool" => item.id.pool.as_str().into(),
        "Driver" => DRIVER.into(),
        "Scope" => "local".into(),
        "Mountpoint" => item.path.display().to_string().into(),
        "Labels" => item.volume.and_then(|volume| serde_json::to_value(&volume.labels).ok()).into(),
        "Size" => item.volume.map(|volume| volume.size).into(),
        "CreatedAt" => {
            item.volume.filter(|volume| volume.managed).map(|volume| volume.created.to_string()).into()
        }
        _ => item.state.into(),
    }
}

/// Labels as `a=b,c=d`; nothing for what is unknown.
fn as_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            let labels: Vec<_> = map.iter().map(|(key, value)| format!("{key}={}", as_text(value))).collect();
            labels.join(",")
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_templates_are_refused_with_the_placeholders() {
        for (text, expected) in [
            ("{{.Name", "has no end"),
            ("{{.Nmae}}", "\".Nmae\" is no placeholder: those are .Name, .ID"),
            ("{{range .Labels}}", "is no placeholder"),
            ("{{json .Nope}}", "is no placeholder"),
            ("{{.Label key}}", "key in quotes"),
            ("{{}}", "is no placeholder"),
        ] {
            let error = text.parse::<Template>().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(expected), "{text}: {}", error.chain());
        }
    }
}
