//! The configuration file: TOML with `[[pool]]` and `[tuning]` sections.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::request::PoolSettings;
use crate::error::{Context as _, Error, Kind, Result};
use crate::quantity::{Bytes, HumanDuration};
use crate::remote::NfsShare;
use crate::volume::PoolName;

/// Maximum size of the file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The contents of the file that `--config` names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ConfigFile {
    #[serde(default, rename = "pool")]
    pub(super) pools: Vec<PoolSection>,
    #[serde(default)]
    pub(super) tuning: TuningSection,
}

/// A `[[pool]]` section.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct PoolSection {
    /// Its name: lower-case letters, digits and '-'.
    pub(super) name: PoolName,
    /// An existing directory, as an absolute path: of this host, or of `server`.
    pub(super) path: PathBuf,
    /// The name or address of the NFS server that has the pool.
    pub(super) server: Option<String>,
    /// On the server itself: the directory that it exports as `path`, as an absolute path of its own. The pool is used there, and
    /// not mounted.
    pub(super) local: Option<PathBuf>,
    /// Mount options of the share, separated by commas.
    pub(super) options: Option<String>,
    /// The version of NFS, such as `4.2`. By default the newest that the server has.
    pub(super) version: Option<String>,
    /// Whether the directory must be a mount point. If so, the empty directory below an unmounted disk is never used.
    #[serde(default)]
    pub(super) mounted: bool,
    /// The UUID that the pool's marker must have.
    pub(super) uuid: Option<String>,
    /// The size that may be provisioned, as a multiple of the filesystem's size.
    #[serde(default)]
    pub(super) overcommit: Overcommit,
    /// Bytes that are never provisioned, such as `10Gi`.
    #[serde(default)]
    pub(super) reserve: Bytes,
    /// Whether no other process and no other host uses the pool. Required on a filesystem that is not known to let
    /// processes exclude each other, such as FUSE.
    #[serde(default)]
    pub(super) exclusive: bool,
    /// Whether a worker process of its own serves the pool, which is killed when the disk hangs. The pools of an NFS server
    /// have one in any case.
    #[serde(default)]
    pub(super) isolated: bool,
    /// Whether other hosts use the directory, too. Set it for cluster filesystems; NFS is recognized without it.
    #[serde(default)]
    pub(super) shared: bool,
}

impl PoolSection {
    /// The settings of the pool.
    ///
    /// # Errors
    /// `Invalid`, naming the pool and the key.
    pub(super) fn settings(self) -> Result<PoolSettings> {
        let share = self.share().context(|| format!("pool {}", self.name))?;
        let exported = self.local.is_some();
        let share = share.filter(|_| !exported);
        let path = match (self.local, &share) {
            (Some(local), _) => local,
            (None, Some(share)) => share.location(),
            (None, None) => self.path,
        };
        if self.isolated && share.is_some() {
            let text = "isolated = true is for a directory of this host: remove it, since a worker process serves the pools of \
                        an NFS server anyway";
            return Err(Error::new(Kind::Invalid, text)).context(|| format!("pool {}", self.name));
        }
        let worker = match &share {
            Some(share) => Some(format!("nfs:{}", share.server)),
            None => self.isolated.then(|| self.name.to_string()),
        };
        Ok(PoolSettings {
            share,
            mounted: self.mounted,
            uuid: self.uuid,
            overcommit_percent: self.overcommit.0,
            reserve: self.reserve.0,
            exclusive: self.exclusive,
            worker,
            shared: self.shared || exported,
            exported,
            ..PoolSettings::new(self.name, path)
        })
    }

    fn share(&self) -> Result<Option<NfsShare>> {
        let invalid = |text: &str| Err(Error::new(Kind::Invalid, text));
        let Some(server) = &self.server else {
            return match (&self.options, &self.version, &self.local) {
                (None, None, None) => Ok(None),
                (Some(_), _, _) => invalid("options are for a share: name its server"),
                (None, Some(_), _) => invalid("version is for a share: name its server"),
                (None, None, Some(_)) => invalid(
                    "local is for the server of a share: name it by server, and what it exports by path, as on the other hosts",
                ),
            };
        };
        let Some(path) = self.path.to_str() else { return invalid("path is not UTF-8") };
        let options = self.options.as_deref().unwrap_or_default();
        let share = NfsShare::new(server, path, options, self.version.as_deref())?;
        if let Some(local) = &self.local {
            self.check_local(local)?;
        } else if self.mounted {
            return invalid(
                "mounted = true is for a directory of this host: remove it, since orlop mounts the share",
            );
        }
        if share.is_without_locks() && !self.exclusive {
            return invalid(
                "version \"3\" has no locks that other hosts see: use version 4.0 or newer, or set `exclusive = true` \
                 if no other host uses the pool",
            );
        }
        Ok(Some(share))
    }

    /// Checks the settings of a pool on the server itself.
    fn check_local(&self, local: &Path) -> Result<()> {
        let text = if !local.is_absolute() {
            format!("local {:?} is not an absolute path", local.display().to_string())
        } else if self.exclusive {
            "exclusive = true and local exclude each other: local is for a pool that other hosts mount"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Invalid, text))
    }
}

/// The `[tuning]` section.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct TuningSection {
    /// How long a request waits for a copy before it reports that the copy still runs.
    pub(super) copy_wait: Option<HumanDuration>,
    /// Number of copies within one pool, or between the same two pools, that run at once.
    pub(super) copies: Option<usize>,
    /// How long a request waits for another one on the same volume.
    pub(super) lock_wait: Option<HumanDuration>,
    /// Age at which a measured usage is measured again.
    pub(super) usage_age: Option<HumanDuration>,
    /// How often volumes are searched for files that have left their project; 0s: never.
    pub(super) audit_every: Option<HumanDuration>,
    /// How long a caller waits for a pool that does not respond.
    pub(super) call_timeout: Option<HumanDuration>,
}

/// A ratio such as 1.5, stored in percent.
#[derive(Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct Overcommit(pub(super) u32);

impl Default for Overcommit {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<f64> for Overcommit {
    type Error = Error;

    fn try_from(ratio: f64) -> Result<Self> {
        // Goes through text, because floats have no checked conversion to integers.
        let percent =
            format!("{:.0}", ratio * 100.0).parse().ok().filter(|percent| (1..=100_000).contains(percent));
        percent.map(Self).ok_or_else(|| {
            Error::new(Kind::Invalid, format!("overcommit {ratio} is not between 0.01 and 1000"))
        })
    }
}

/// Reads and parses the file.
pub(super) fn read(path: &Path) -> Result<ConfigFile> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("configuration file {} does not exist", path.display());
            return Err(Error::new(Kind::Invalid, text));
        }
        read => drop(read.context(|| format!("read {}", path.display()))?),
    }
    if text.len() as u64 > MAX_BYTES {
        let text = format!("configuration file {} is larger than {MAX_BYTES} bytes", path.display());
        return Err(Error::new(Kind::Invalid, text));
    }
    toml::from_str(&text).map_err(|error| {
        Error::caused(Kind::Invalid, format!("configuration file {}", path.display()), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_size_bound_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let error = read(file.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.chain().ends_with("is larger than 1048576 bytes"), "{error}");
    }
}
