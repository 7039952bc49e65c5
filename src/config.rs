//! The configuration of `orlop serve`: flags and the configuration file, checked and merged.

pub mod flags;

mod file;

use std::collections::HashSet;
use std::path::PathBuf;

use crate::csi::{self, Identity, Registration};
use crate::engine::request::{PoolSettings, Tuning};
use crate::error::{Context, Error, Kind, Result};
use crate::http::Address;
use crate::socket;
use crate::volume::shorten;
use file::{ConfigFile, PoolSection, TuningSection};
use flags::{PoolFlag, Serve};

/// The settings of `orlop serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the driver and of this node.
    pub identity: Identity,
    /// The pools of the flags, then those of the file. The one named "default", or the first, is used when a request
    /// names none.
    pub pools: Vec<PoolSettings>,
    /// Timeouts and concurrency.
    pub tuning: Tuning,
    /// The CSI socket.
    pub csi: PathBuf,
    /// Address of metrics and health; `None`: they are not served.
    pub http: Option<Address>,
    /// Registration with kubelet; `None`: another program registers the driver.
    pub registration: Option<Registration>,
    /// Whether to move claims to the node of their source.
    #[cfg(feature = "kube")]
    pub follow_sources: bool,
}

impl TryFrom<Serve> for Settings {
    type Error = Error;

    fn try_from(flags: Serve) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => file::read(path)?,
            None => ConfigFile::default(),
        };
        let endpoint = flags
            .endpoint()
            .ok_or_else(|| invalid("--csi is required, such as --csi unix:///run/orlop/csi.sock"))?;
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
            (true, false) => {
                return Err(invalid(
                    "name the pools to serve by --pool NAME=DIR or --config, or use --no-pools",
                ));
            }
            (false, true) => return Err(invalid("--no-pools and pools are both given: use one of them")),
            (true, true) | (false, false) => {}
        }
        // csi-resizer in front of a process without volumes must leave the expansion to the nodes.
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

fn pools(flags: &[PoolFlag], file: Vec<PoolSection>) -> Result<Vec<PoolSettings>> {
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
            return Err(invalid(format!("pool {} is configured twice", pool.name)));
        }
        if !paths.insert(&pool.path) {
            return Err(invalid(format!("two pools have the directory {}", pool.path.display())));
        }
        if !pool.path.is_absolute() {
            return Err(invalid(format!("pool {}: its directory is not an absolute path", pool.name)));
        }
    }
    Ok(pools)
}

fn tuning(section: TuningSection) -> Result<Tuning> {
    let usual = Tuning::default();
    let copies = section.copies.unwrap_or(usual.copies);
    if copies == 0 {
        return Err(invalid("tuning: copies must be at least 1"));
    }
    Ok(Tuning {
        copy_wait: section.copy_wait.map_or(usual.copy_wait, |span| span.0),
        copies,
        lock_wait: section.lock_wait.map_or(usual.lock_wait, |span| span.0),
        usage_age: section.usage_age.map_or(usual.usage_age, |span| span.0),
    })
}

/// Checks a driver's name: a domain of at most 63 characters, in lower case since it is also a label prefix.
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
    Err(invalid(format!(
        "--driver {:?} is not a lower-case domain name of at most 63 characters",
        shorten(text)
    )))
}

/// Checks a node's name, which is also a topology value: a label value of at most 63 characters.
fn node(text: String) -> Result<String> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 63 && text.chars().all(inside) && text.starts_with(end) && text.ends_with(end) {
        return Ok(text);
    }
    Err(invalid(format!(
        "node name {:?} is not a label value of at most 63 letters, digits, '-', '_' and '.': set --node-id",
        shorten(&text)
    )))
}

fn registration(flags: &Serve, driver: &str) -> Result<Option<Registration>> {
    let Some(text) = &flags.kubelet_registration else { return Ok(None) };
    let socket = socket::path(text).context(|| "--kubelet-registration")?;
    csi::check_registration(&socket).context(|| "--kubelet-registration")?;
    let endpoint = flags.kubelet_csi_path.clone().filter(|path| path.is_absolute());
    let endpoint = endpoint.ok_or_else(|| {
        invalid("--kubelet-csi-path is required: the absolute path of the CSI socket on the host")
    })?;
    Ok(Some(Registration { driver: driver.to_owned(), endpoint, socket }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
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
    fn a_pool_and_a_socket_are_sufficient() {
        let settings = settings("--pool a=/x --pool b=/y --csi unix:///run/csi.sock --node-id n1").unwrap();
        assert_eq!(settings.identity.driver, "dir.orlop.dev");
        assert!(settings.identity.controller_expand);
        assert_eq!(settings.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(settings.csi, Path::new("/run/csi.sock"));
        assert!(settings.http.is_none() && settings.registration.is_none());
    }

    #[test]
    fn an_invalid_flag_is_named_in_the_error() {
        let base = "--csi unix:///run/csi.sock --node-id n";
        let cases = [
            ("--pool a=/x --node-id n".to_owned(), "--csi"),
            (base.to_owned(), "--no-pools"),
            (format!("{base} --no-pools --pool a=/x"), "--no-pools"),
            (format!("{base} --pool a=/x --pool a=/y"), "configured twice"),
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
    fn the_file_configures_pools_and_tuning() {
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
    fn an_invalid_key_of_the_file_is_named_in_the_error() {
        let pool = "[[pool]]\nname = \"a\"\npath = \"/a\"\n";
        let cases = [
            (format!("{pool}colour = \"red\"\n"), "colour"),
            (format!("{pool}reserve = \"much\"\n"), "much"),
            (format!("{pool}overcommit = 0\n"), "overcommit"),
            (format!("{pool}overcommit = 1e9\n"), "overcommit"),
            ("[[pool]]\nname = \"a\"\npath = \"rel\"\n".to_owned(), "not an absolute path"),
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
