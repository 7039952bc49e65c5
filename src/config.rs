//! Flags and the file, checked and put together: all that a running orlop is told.

pub mod flags;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::csi::{self, Identity, Registration};
use crate::engine::request::{PoolSettings, Tuning};
use crate::error::{Context, Error, Kind, Result};
use crate::http::Address;
use crate::quantity::{Bytes, HumanDuration};
use crate::socket;
use crate::volume::{PoolName, shorten};
use flags::{PoolFlag, Serve};

/// What `orlop serve` does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who we are.
    pub identity: Identity,
    /// Flags' pools, then the file's; the one named "default", or the first, is for volumes that name none.
    pub pools: Vec<PoolSettings>,
    /// How long to wait for what.
    pub tuning: Tuning,
    /// The CSI socket.
    pub csi: PathBuf,
    /// Where metrics and health are served.
    pub http: Option<Address>,
    /// What to tell kubelet.
    pub registration: Option<Registration>,
    /// Whether to send claims to the node of their source.
    #[cfg(feature = "kube")]
    pub follow_sources: bool,
}

/// The file of `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    #[serde(default, rename = "pool")]
    pools: Vec<Pool>,
    #[serde(default)]
    tuning: Tunes,
}

/// A `[[pool]]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Pool {
    /// Its name: a lower-case word.
    name: PoolName,
    /// An existing, absolute directory.
    path: PathBuf,
    /// Whether the directory must be a mount point: then a disk that failed to mount is never replaced by the
    /// folder below it.
    #[serde(default)]
    mounted: bool,
    /// The UUID that the pool's marker must have.
    uuid: Option<String>,
    /// How many times the filesystem's size may be promised.
    #[serde(default)]
    overcommit: Overcommit,
    /// Bytes that are never promised, as `10Gi`.
    #[serde(default)]
    reserve: Bytes,
}

/// `[tuning]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Tunes {
    /// How long a call waits for a copy before it answers "still running".
    copy_wait: Option<HumanDuration>,
    /// Copies at once.
    copies: Option<usize>,
    /// How long a call waits for another one on the same volume.
    lock_wait: Option<HumanDuration>,
    /// How old a measured usage may be.
    usage_age: Option<HumanDuration>,
}

/// A ratio such as 1.5, kept in percent.
#[derive(Debug, Deserialize)]
#[serde(try_from = "f64")]
struct Overcommit(u32);

impl Default for Overcommit {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<f64> for Overcommit {
    type Error = Error;

    fn try_from(ratio: f64) -> Result<Self> {
        // Text on the way: there is no checked conversion from a float.
        let percent =
            format!("{:.0}", ratio * 100.0).parse().ok().filter(|percent| (1..=100_000).contains(percent));
        percent.map(Self).ok_or_else(|| invalid(format!("overcommit {ratio} is not between 0 and 1000")))
    }
}

impl TryFrom<Serve> for Settings {
    type Error = Error;

    fn try_from(flags: Serve) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let endpoint =
            flags.endpoint().ok_or_else(|| invalid("say where to serve CSI: --csi unix:///…/csi.sock"))?;
        let csi = socket::path(endpoint).context(|| "--csi")?;
        let http = flags.http.as_deref().map(str::parse::<Address>).transpose().context(|| "--http")?;
        let driver = driver(&flags.driver)?;
        let registration = registration(&flags, &driver)?;
        let node = match flags.node_id {
            Some(name) => node(name)?,
            None => node(rustix::system::uname().nodename().to_string_lossy().into_owned())?,
        };
        let pools = pools(&flags.pools, file.pools)?;
        match (pools.is_empty(), flags.no_pools) {
            (true, false) => return Err(invalid("say which pools to serve: --pool NAME=DIR, or --no-pools")),
            (false, true) => return Err(invalid("--no-pools contradicts the pools that are given")),
            (true, true) | (false, false) => {}
        }
        // A resizer in front of an instance without volumes must leave the growing to the nodes.
        let controller_expand = flags.controller_expand && !flags.no_pools;
        let identity = Identity { driver, node, controller_expand };
        Ok(Self {
            identity,
            pools,
            tuning: tuning(file.tuning)?,
            csi,
            http,
            registration,
            #[cfg(feature = "kube")]
            follow_sources: flags.follow_sources,
        })
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, text)
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
    toml::from_str(&text)
        .map_err(|error| Error::caused(Kind::Invalid, format!("settings in {}", path.display()), error))
}

fn pools(flags: &[PoolFlag], file: Vec<Pool>) -> Result<Vec<PoolSettings>> {
    let of_flags = flags.iter().map(|flag| PoolSettings {
        name: flag.name.clone(),
        path: flag.path.clone(),
        mounted: false,
        uuid: None,
        overcommit_percent: 100,
        reserve: 0,
    });
    let of_file = file.into_iter().map(|pool| PoolSettings {
        name: pool.name,
        path: pool.path,
        mounted: pool.mounted,
        uuid: pool.uuid,
        overcommit_percent: pool.overcommit.0,
        reserve: pool.reserve.0,
    });
    let pools: Vec<_> = of_flags.chain(of_file).collect();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for pool in &pools {
        if !names.insert(pool.name.as_str()) {
            return Err(invalid(format!("pool {} is given twice", pool.name)));
        }
        if !paths.insert(&pool.path) {
            return Err(invalid(format!("{} is given to two pools", pool.path.display())));
        }
        if !pool.path.is_absolute() {
            return Err(invalid(format!("pool {}: its path is not absolute", pool.name)));
        }
    }
    Ok(pools)
}

fn tuning(tunes: Tunes) -> Result<Tuning> {
    let usual = Tuning::default();
    let copies = tunes.copies.unwrap_or(usual.copies);
    if copies == 0 {
        return Err(invalid("tuning: copies is 0; at least 1 is needed"));
    }
    Ok(Tuning {
        copy_wait: tunes.copy_wait.map_or(usual.copy_wait, |span| span.0),
        copies,
        lock_wait: tunes.lock_wait.map_or(usual.lock_wait, |span| span.0),
        usage_age: tunes.usage_age.map_or(usual.usage_age, |span| span.0),
    })
}

/// A driver's name: a domain of at most 63 characters, lower case because it is also a topology key's prefix.
fn driver(text: &str) -> Result<String> {
    let label = |label: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let ends = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.ends_with(|c: char| c.is_ascii_lowercase());
    if text.len() <= 63 && ends && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(invalid(format!("--driver {:?} is not a lower-case domain of at most 63 letters", shorten(text))))
}

/// A node's name, which is also a topology value: at most 63 characters of a label.
fn node(text: String) -> Result<String> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 63 && text.chars().all(inside) && text.starts_with(end) && text.ends_with(end) {
        return Ok(text);
    }
    Err(invalid(format!(
        "node name {:?} is not a label of at most 63 letters, digits, '-', '_' and '.': give one with --node-id",
        shorten(&text)
    )))
}

fn registration(flags: &Serve, driver: &str) -> Result<Option<Registration>> {
    let Some(text) = &flags.kubelet_registration else { return Ok(None) };
    let socket = socket::path(text).context(|| "--kubelet-registration")?;
    csi::check_registration(&socket).context(|| "--kubelet-registration")?;
    let endpoint = flags.kubelet_csi_path.clone().filter(|path| path.is_absolute());
    let endpoint =
        endpoint.ok_or_else(|| invalid("--kubelet-csi-path is needed: the CSI socket's path on the host"))?;
    Ok(Some(Registration { driver: driver.to_owned(), endpoint, socket }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        serve: Serve,
    }

    fn settings(words: &str) -> Result<Settings> {
        Words::try_parse_from(format!("orlop {words}").split_whitespace()).unwrap().serve.try_into()
    }

    #[test]
    fn a_pool_and_a_socket_are_enough() {
        let settings = settings("--pool a=/x --pool b=/y --csi unix:///run/csi.sock --node-id n1").unwrap();
        assert_eq!(settings.identity.driver, "dir.orlop.dev");
        assert!(settings.identity.controller_expand);
        assert_eq!(settings.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(settings.csi, Path::new("/run/csi.sock"));
        assert!(settings.http.is_none() && settings.registration.is_none());
    }

    #[test]
    fn refusals_name_the_setting() {
        let base = "--csi unix:///run/csi.sock --node-id n";
        let cases = [
            ("--pool a=/x --node-id n".to_owned(), "--csi"),
            (base.to_owned(), "--no-pools"),
            (format!("{base} --no-pools --pool a=/x"), "--no-pools"),
            (format!("{base} --pool a=/x --pool a=/y"), "given twice"),
            (format!("{base} --pool a=/x --pool b=/x"), "two pools"),
            ("--pool a=/x --csi relative.sock".to_owned(), "--csi"),
            (format!("{base} --pool a=/x --http nowhere"), "--http"),
            (format!("{base} --pool a=/x --driver 0.orlop"), "--driver"),
            (format!("{base} --pool a=/x --driver Dir.dev"), "--driver"),
            ("--pool a=/x --csi /c.sock --node-id n/1".to_owned(), "--node-id"),
            (
                format!("{base} --pool a=/x --kubelet-registration /d@reg.sock --kubelet-csi-path c"),
                "--kubelet-csi-path",
            ),
            (
                format!("{base} --pool a=/x --kubelet-registration r --kubelet-csi-path /c"),
                "--kubelet-registration",
            ),
            (
                format!("{base} --pool a=/x --kubelet-registration /a@b/reg.sock --kubelet-csi-path /c"),
                "must have an @",
            ),
        ];
        for (words, expected) in cases {
            let error = settings(&words).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{words}");
            assert!(error.chain().contains(expected), "{words}: {}", error.chain());
        }
    }

    fn with_file(text: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orlop.toml");
        std::fs::write(&path, text).unwrap();
        settings(&format!("--csi /c.sock --node-id n --config {}", path.display()))
    }

    #[test]
    fn the_file_has_pools_and_tuning() {
        let settings = with_file(
            "[[pool]]\nname = \"z\"\npath = \"/z\"\nmounted = true\nuuid = \"u\"\novercommit = 1.5\n\
             reserve = \"10Gi\"\n[[pool]]\nname = \"a\"\npath = \"/a\"\n[tuning]\ncopies = 4\ncopy-wait = \"9s\"\n",
        )
        .unwrap();
        assert_eq!(settings.pools[0].reserve, 10 << 30);
        assert_eq!((settings.pools[0].overcommit_percent, settings.pools[1].overcommit_percent), (150, 100));
        assert_eq!(settings.pools[1].name.as_str(), "a");
        assert_eq!((settings.tuning.copies, settings.tuning.copy_wait), (4, Duration::from_secs(9)));
    }

    #[test]
    fn unknown_keys_of_the_file_are_refused_by_name() {
        let pool = "[[pool]]\nname = \"a\"\npath = \"/a\"\n";
        let cases = [
            (format!("{pool}colour = \"red\"\n"), "colour"),
            (format!("{pool}reserve = \"much\"\n"), "much"),
            (format!("{pool}overcommit = 0\n"), "overcommit"),
            (format!("{pool}overcommit = 1e9\n"), "overcommit"),
            ("[[pool]]\nname = \"a\"\npath = \"rel\"\n".to_owned(), "not absolute"),
            (format!("{pool}[tuning]\ncopies = 0\n"), "copies"),
            (format!("pools = 1\n{pool}"), "pools"),
        ];
        for (text, expected) in cases {
            let error = with_file(&text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(error.chain().contains(expected), "{text}: {}", error.chain());
        }
    }
}
