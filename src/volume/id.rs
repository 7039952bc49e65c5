//! Names and ids. A frontend parses them once, and no other text becomes a path component.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// A pool's name: `[a-z][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(Box<str>);

impl PoolName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(allowed)
        {
            return Ok(Self(text.into()));
        }
        let shown = shorten(text);
        Err(Error::new(
            Kind::Invalid,
            format!(
                "pool name {shown:?} is not 1 to 32 lower-case letters, digits and '-', starting with a letter"
            ),
        ))
    }
}

impl TryFrom<String> for PoolName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a volume's or snapshot's directory: the requested name if that matches
/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`, otherwise `_` and a digest of it. A retry thus finds the same directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

impl Name {
    /// Returns the directory name for a requested name, which may be any text.
    #[must_use]
    pub fn of(requested: &str) -> Self {
        if is_plain(requested) {
            return Self(requested.into());
        }
        let digest = Sha256::digest(requested.as_bytes());
        let mut name = String::from("_");
        for byte in digest.iter().take(20) {
            name.push_str(&format!("{byte:02x}"));
        }
        Self(name.into())
    }

    /// The name as text; safe as a single path component.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// Whether this is the requested name itself, and not the digest of one.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        is_plain(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_digest = text
            .strip_prefix('_')
            .is_some_and(|rest| rest.len() == 40 && rest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
        if is_digest || is_plain(text) {
            return Ok(Self(text.into()));
        }
        Err(Error::new(Kind::NotFound, format!("{:?} is not a name that orlop creates", shorten(text))))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Shortens a text from a request to 64 characters, for an error message.
#[must_use]
pub fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The id of a volume or snapshot: `<pool>/<name>`, at most 97 bytes.
///
/// No object can have an id that does not parse: the error is `NotFound`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    /// The name of its pool.
    pub pool: PoolName,
    /// The name of its directory in the pool.
    pub name: Name,
}

impl FromStr for VolumeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once('/')
            .and_then(|(pool, name)| Some(Self { pool: pool.parse().ok()?, name: name.parse().ok()? }));
        parsed.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{:?} does not exist: an id is <pool>/<name>", shorten(text)))
        })
    }
}

impl TryFrom<String> for VolumeId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_unchanged_and_any_other_becomes_a_digest() {
        assert_eq!(Name::of("pvc-1.a_B").as_str(), "pvc-1.a_B");
        let long = "x".repeat(128);
        for odd in ["", ".", "..", "a/b", "../../etc", "-a", "_a", "ü", "a b", "a\0", "a\n", long.as_str()] {
            let name = Name::of(odd);
            assert!(name.as_str().starts_with('_') && name.as_str().len() == 41, "{odd:?} -> {name}");
            assert_eq!(name.as_str().parse::<Name>().unwrap(), name);
        }
        assert_ne!(Name::of("a/b"), Name::of("a/c"));
    }

    #[test]
    fn an_id_that_does_not_parse_is_not_found() {
        for bad in ["", "a", "/", "a/", "/b", "a/b/c", "A/b", "a/..", "a/.", "a/_b", "../a", "a/b\0", "a/b\n"]
        {
            assert_eq!(bad.parse::<VolumeId>().unwrap_err().kind(), Kind::NotFound, "{bad:?}");
        }
        assert_eq!("p/v.1".parse::<VolumeId>().unwrap().to_string(), "p/v.1");
    }
}
