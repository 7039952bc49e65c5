//! An NFS share as the settings describe it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::nfs_options::NfsOptions;
use crate::error::{Error, Kind, Result};

/// The versions that are tried when the settings name none.
const NEGOTIATED: [&str; 3] = ["4.2", "4.1", "4.0"];

/// A directory of an NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsShare {
    /// The name or address of the server.
    pub server: String,
    /// The directory, as the server exports it.
    pub path: String,
    pub(super) options: NfsOptions,
    /// The versions to try, in this order.
    pub(super) versions: Vec<String>,
}

impl NfsShare {
    /// Checks the settings of a share. `options` are separated by commas, as in fstab(5).
    ///
    /// # Errors
    /// `Invalid`, naming the setting.
    pub fn new(server: &str, path: &str, options: &str, version: Option<&str>) -> Result<Self> {
        check_server(server)?;
        if !path.starts_with('/') || path.contains(|c: char| c.is_control()) {
            return Err(invalid(format!("path {path:?} is not an absolute path of the server {server}")));
        }
        let versions: Vec<String> = match version {
            None => NEGOTIATED.map(str::to_owned).into(),
            Some(version) if version == "3" || NEGOTIATED.contains(&version) => vec![version.to_owned()],
            Some(version) => {
                let text = format!("version {version:?} is none of \"4.2\", \"4.1\", \"4.0\" and \"3\"");
                return Err(invalid(text));
            }
        };
        let mut options = NfsOptions::parse(options)?;
        if versions == ["3"] {
            // Its locks need other programs on both hosts.
            options.add("nolock");
        }
        Ok(Self { server: server.to_owned(), path: path.to_owned(), options, versions })
    }

    /// Whether the locks of other hosts are unknown here: with NFS 3.
    #[must_use]
    pub fn is_without_locks(&self) -> bool {
        self.versions == ["3"]
    }

    /// The share as the source of its mount, such as `nas:/export/pool`. An IPv6 address is in brackets.
    #[must_use]
    pub fn location(&self) -> PathBuf {
        self.to_string().into()
    }
}

impl fmt::Display for NfsShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.server.contains(':') {
            true => write!(f, "[{}]:{}", self.server, self.path),
            false => write!(f, "{}:{}", self.server, self.path),
        }
    }
}

fn check_server(server: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if !server.is_empty() && server.len() <= 253 && server.chars().all(allowed) {
        return Ok(());
    }
    Err(invalid(format!(
        "server {server:?} is not the name or the address of a host (IPv6 without brackets)"
    )))
}

fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_shown_as_the_source_of_its_mount() {
        let shown = |server, path| NfsShare::new(server, path, "", None).unwrap().to_string();
        assert_eq!(shown("nas", "/export/pool"), "nas:/export/pool");
        assert_eq!(shown("fd00::1", "/"), "[fd00::1]:/");
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let cases = [
            (("", "/a", "", None), "server"),
            (("a b", "/a", "", None), "server"),
            (("[::1]", "/a", "", None), "server"),
            (("nas", "a", "", None), "path"),
            (("nas", "/a\n", "", None), "path"),
            (("nas", "/a", "", Some("2")), "version"),
            (("nas", "/a", "vers=4.1", None), "vers=4.1"),
        ];
        for ((server, path, options, version), expected) in cases {
            let error = NfsShare::new(server, path, options, version).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(expected), "{server} {path}: {}", error.chain());
        }
    }

    #[test]
    fn version_3_has_no_locks_of_other_hosts() {
        let share = NfsShare::new("nas", "/a", "", Some("3")).unwrap();
        assert!(share.is_without_locks());
        assert!(share.options.parameters().any(|parameter| parameter == ("nolock", None)));
        assert!(!NfsShare::new("nas", "/a", "", None).unwrap().is_without_locks());
    }
}
