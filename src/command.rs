//! Commands on volumes, the frontend of people and scripts: the results of the engine as text and JSON.

pub mod archive;
pub mod df;
pub mod filter;
pub mod inspect;
pub mod ls;
pub mod progress;
pub mod session;
pub mod snapshots;
pub mod template;
pub mod trash;

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// Replaces the characters that a terminal interprets, such as the start of an escape sequence, by JSON's `\u` escapes.
/// Labels, records and process names are foreign text, which must not control the terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() || changes_direction(char) {
            let _ = write!(shown, "\\u{:04x}", u32::from(char));
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Whether a character breaks the line or changes the direction of the characters after it.
fn changes_direction(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Formats a value as JSON for people and programs.
///
/// # Errors
/// `Internal` when the value cannot be represented.
pub fn to_json(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Error::caused(Kind::Internal, "format the result", error))?;
    // A line break in a string is escaped by JSON already.
    Ok(json.lines().map(|line| printable(line) + "\n").collect())
}

/// Formats a value as YAML. Strings are quoted as in JSON, so that none is read as another type.
///
/// # Errors
/// `Internal` when the value cannot be represented.
pub fn to_yaml(value: &impl Serialize) -> Result<String> {
    let value = serde_json::to_value(value)
        .map_err(|error| Error::caused(Kind::Internal, "format the result", error))?;
    let mut yaml = String::new();
    write_yaml(&mut yaml, &value, 0);
    Ok(yaml.lines().map(|line| printable(line) + "\n").collect())
}

/// Writes a value whose first line is indented already.
fn write_yaml(yaml: &mut String, value: &Value, indent: usize) {
    let separate = |yaml: &mut String, is_first: bool| {
        if !is_first {
            let _ = write!(yaml, "{:indent$}", "");
        }
    };
    if !is_nested(value) {
        let _ = writeln!(yaml, "{value}");
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        separate(yaml, i == 0);
        yaml.push_str("- ");
        write_yaml(yaml, item, indent + 2);
    }
    for (i, (key, item)) in value.as_object().into_iter().flatten().enumerate() {
        separate(yaml, i == 0);
        let _ = write!(yaml, "{}:", Value::from(key.as_str()));
        if is_nested(item) {
            let _ = write!(yaml, "\n{:1$}", "", indent + 2);
        } else {
            yaml.push(' ');
        }
        write_yaml(yaml, item, indent + 2);
    }
}

fn is_nested(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty())
        || value.as_object().is_some_and(|map| !map.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_printed() {
        assert_eq!(printable("a\x1b[31m\u{9b}\u{202e}\n\x7fü"), "a\\u001b[31m\\u009b\\u202e\\u000a\\u007fü");
        assert_eq!(printable("\u{61c}"), "\\u061c");
        let value = ["a\x1b\u{9b}\u{202e}\n\x7f\"ü"];
        let json = to_json(&value).unwrap();
        assert!(!json.chars().any(|char| (char.is_control() && char != '\n') || changes_direction(char)));
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), value);
    }
}
