//! The configuration of `orlop serve` and of commands: flags and the configuration file, validated and merged.

pub mod flags;

mod endpoints;
mod file;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::csi::{self, Identity, Registration};
use crate::docker;
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
    /// Names of the driver and of this node, and what the driver advertises.
    pub identity: Identity,
    /// The pools of the flags, then those of the file. A request without a pool uses the one named "default", or the
    /// first.
    pub pools: Vec<PoolSettings>,
    /// Timeouts and concurrency.
    pub tuning: Tuning,
    /// Path of the CSI socket; `None` if CSI is not served.
    pub csi: Option<PathBuf>,
    /// Where volumes are served to Docker and Podman.
    pub docker: Vec<docker::Settings>,
    /// Directory in which the host's pools are recorded.
    pub known_pools: PathBuf,
    /// Filter of the log, for worker processes.
    pub log: String,
    /// Whether the log is JSON.
    pub log_as_json: bool,
    /// Address of the HTTP endpoints; `None` if they are not served.
    pub http: Option<Address>,
    /// Registration with kubelet; `None` if another program registers the driver.
    pub registration: Option<Registration>,
    /// Whether to relocate claims to the node of their source.
    #[cfg(feature = "kube")]
    pub follow_sources: bool,
    /// Whether to record events about claims.
    #[cfg(feature = "kube")]
    pub claim_events: bool,
    /// Whether to make the group snapshots that the cluster asks for.
    #[cfg(feature = "kube")]
    pub group_snapshots: bool,
}

impl TryFrom<Serve> for Settings {
    type Error = Error;

    fn try_from(flags: Serve) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => file::read(path)?,
            None => ConfigFile::default(),
        };
        let csi = flags.endpoint().map(socket::parse_path).transpose().context(|| "--csi")?;
        if csi.is_none() && flags.docker.is_none() && flags.docker_global.is_none() {
            return Err(invalid(
                "--csi is required, such as --csi unix:///run/orlop/csi.sock; or --docker for Docker and Podman",
            ));
        }
        let default = csi.as_ref().map(|csi| csi.with_file_name("known-pools"));
        let known_pools = flags.known_pools.clone().or(default).unwrap_or_else(|| KNOWN_POOLS.into());
        if !known_pools.is_absolute() {
            return Err(invalid("--known-pools is not an absolute path"));
        }
        let http = flags.http.as_deref().map(str::parse::<Address>).transpose().context(|| "--http")?;
        let driver = check_driver_name(&flags.driver)?;
        let registration = registration(&flags, &driver)?;
        let node = match &flags.node_id {
            Some(name) => check_node_name(name.clone())?,
            None => check_node_name(rustix::system::uname().nodename().to_string_lossy().into_owned())?,
        };
        let mut pools = pools(&flags.pools, file.pools)?;
        let docker = endpoints::docker(&flags, &pools)?;
        pools.iter_mut().for_each(|pool| pool.node = Some(node.clone()));
        match (pools.is_empty(), flags.no_pools) {
            (true, false) => {
                return Err(invalid(
                    "no pools: name them with --pool NAME=DIR or --config, or use --no-pools",
                ));
            }
            (false, true) => {
                return Err(invalid("--no-pools and pools are both given: use only one of them"));
            }
            (true, true) | (false, false) => {}
        }
        // A csi-resizer in front of a process without volumes must leave expansion to the nodes.
        let controller_expand = flags.controller_expand && !flags.no_pools;
        let identity = Identity { driver, node, controller_expand, topology: flags.topology };
        Ok(Self {
            identity,
            pools,
            tuning: tuning(file.tuning)?,
            csi,
            docker,
            known_pools,
            log: flags.log,
            log_as_json: flags.log_format == flags::Output::Json,
            http,
            registration,
            #[cfg(feature = "kube")]
            follow_sources: flags.follow_sources,
            #[cfg(feature = "kube")]
            claim_events: flags.claim_events,
            #[cfg(feature = "kube")]
            group_snapshots: flags.group_snapshots,
        })
    }
}

/// Where the host's pools are recorded if only Docker is served: its socket is in a directory that a reboot empties.
pub const KNOWN_POOLS: &str = "/var/lib/orlop-known-pools";

/// The file that commands read the pools from if neither `--pool` nor `--config` is given.
const DEFAULT_FILE: &str = "/etc/orlop/orlop.toml";

/// The pool of a host without any settings. The first command that makes a volume makes it.
const DEFAULT_POOL: &str = "/var/lib/orlop";

/// The pool that the first volume of a host needs: `None` if there are settings, or if it exists.
///
/// # Errors
/// `Internal` when the name of the pool is wrong.
pub fn first_pool(flags: &flags::Pools) -> Result<Option<PoolSettings>> {
    let has_settings = !flags.pools.is_empty()
        || flags.config.is_some()
        || Path::new(DEFAULT_FILE).try_exists().unwrap_or(true)
        || has_default_pool();
    (!has_settings).then(default_pool).transpose()
}

fn default_pool() -> Result<PoolSettings> {
    Ok(PoolSettings::new("default".parse()?, DEFAULT_POOL.into()))
}

fn has_default_pool() -> bool {
    Path::new(DEFAULT_POOL).join("orlop.json").try_exists().unwrap_or(true)
}

/// Returns the pools of a command, at least one, and the tuning of its engine.
///
/// # Errors
/// `Invalid` when no pools are given or a setting is wrong; the error of the system call when the file cannot be read.
pub fn for_command(flags: &flags::Pools) -> Result<(Vec<PoolSettings>, Tuning)> {
    let (pools, tuning) = for_check(flags)?;
    if pools.is_empty() {
        let text = format!(
            "no pools: name them with --pool NAME=DIR or --config FILE, or in {DEFAULT_FILE}; `orlop create` makes a first one in {DEFAULT_POOL}"
        );
        return Err(invalid(text));
    }
    Ok((pools, tuning))
}

/// Like [`for_command`], for a command that needs no pool.
///
/// # Errors
/// `Invalid` when a setting is wrong; the error of the system call when the file cannot be read.
pub fn for_check(flags: &flags::Pools) -> Result<(Vec<PoolSettings>, Tuning)> {
    let default = Path::new(DEFAULT_FILE);
    // A file that cannot be looked up counts as existing: reading it then reports why.
    let has_default = || flags.pools.is_empty() && default.try_exists().unwrap_or(true);
    let path = flags.config.as_deref().or_else(|| has_default().then_some(default));
    let file = path.map(file::read).transpose()?.unwrap_or_default();
    let mut pools = pools(&flags.pools, file.pools)?;
    if path.is_none() && pools.is_empty() && has_default_pool() {
        pools.push(default_pool()?);
    }
    Ok((pools, tuning(file.tuning)?))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, text)
}

fn pools(flags: &[PoolFlag], file: Vec<PoolSection>) -> Result<Vec<PoolSettings>> {
    let from_flags = flags.iter().map(|flag| Ok(PoolSettings::new(flag.name.clone(), flag.path.clone())));
    let from_file = file.into_iter().map(PoolSection::settings);
    let pools: Vec<_> = from_flags.chain(from_file).collect::<Result<_>>()?;
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for pool in &pools {
        if !names.insert(pool.name.as_str()) {
            return Err(invalid(format!("pool {} is configured twice", pool.name)));
        }
        if pool.exclusive && pool.shared {
            return Err(invalid(format!(
                "pool {}: exclusive and shared are both true: other hosts use the pool, or none does",
                pool.name
            )));
        }
        if !paths.insert(&pool.path) {
            return Err(invalid(format!("two pools use the directory {}", pool.path.display())));
        }
        if pool.share.is_none() && !pool.path.is_absolute() {
            return Err(invalid(format!("pool {}: its directory is not an absolute path", pool.name)));
        }
        let is_outer = |other: &&PoolSettings| other.path != pool.path && pool.path.starts_with(&other.path);
        if let Some(outer) = pools.iter().find(is_outer) {
            return Err(invalid(format!(
                "pool {} at {} is inside pool {}: name a directory that is in no other pool",
                pool.name,
                pool.path.display(),
                outer.name
            )));
        }
    }
    Ok(pools)
}

fn tuning(section: TuningSection) -> Result<Tuning> {
    let defaults = Tuning::default();
    let copies = section.copies.unwrap_or(defaults.copies);
    if copies == 0 {
        return Err(invalid("tuning: copies must be at least 1"));
    }
    let tuning = Tuning {
        copy_wait: section.copy_wait.map_or(defaults.copy_wait, |duration| duration.0),
        copies,
        lock_wait: section.lock_wait.map_or(defaults.lock_wait, |duration| duration.0),
        usage_age: section.usage_age.map_or(defaults.usage_age, |duration| duration.0),
        audit_every: section.audit_every.map_or(defaults.audit_every, |duration| duration.0),
        call_timeout: section.call_timeout.map_or(defaults.call_timeout, |duration| duration.0),
    };
    // A call that waits for a copy and locks would count as one that hangs. No call waits for more than four locks.
    let waits = tuning.copy_wait.saturating_add(tuning.lock_wait).max(tuning.lock_wait.saturating_mul(4));
    if tuning.call_timeout <= waits {
        let text = "tuning: call-timeout must be longer than copy-wait and lock-wait together, and than four times lock-wait";
        return Err(invalid(text));
    }
    Ok(tuning)
}

/// Checks a driver name: a domain name of at most 63 characters, in lower case because it is also a label prefix.
fn check_driver_name(text: &str) -> Result<String> {
    let is_label = |label: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(allowed) && !label.starts_with('-') && !label.ends_with('-')
    };
    let ends_valid = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.ends_with(|c: char| c.is_ascii_lowercase());
    if text.len() <= 63 && ends_valid && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(invalid(format!(
        "--driver {:?} is not a lower-case domain name of at most 63 characters",
        shorten(text)
    )))
}

/// Checks a node name. It is also a topology value, so it must be a label value of at most 63 characters.
fn check_node_name(text: String) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let at_ends = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 63 && text.chars().all(allowed) && text.starts_with(at_ends) && text.ends_with(at_ends) {
        return Ok(text);
    }
    Err(invalid(format!(
        "node name {:?} is not a label value of at most 63 letters, digits, '-', '_' and '.': set --node-id",
        shorten(&text)
    )))
}

fn registration(flags: &Serve, driver: &str) -> Result<Option<Registration>> {
    let Some(text) = &flags.kubelet_registration else { return Ok(None) };
    let socket = socket::parse_path(text).context(|| "--kubelet-registration")?;
    csi::check_registration(&socket).context(|| "--kubelet-registration")?;
    let endpoint = flags.kubelet_csi_path.clone().filter(|path| path.is_absolute());
    let endpoint = endpoint.ok_or_else(|| {
        invalid("--kubelet-csi-path is required: the absolute path of the CSI socket on the host")
    })?;
    Ok(Some(Registration { driver: driver.to_owned(), endpoint, socket }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TestCli {
        #[command(flatten)]
        serve: Serve,
    }

    fn settings(arguments: &str) -> Result<Settings> {
        TestCli::try_parse_from(format!("orlop {arguments}").split_whitespace()).unwrap().serve.try_into()
    }

    #[test]
    fn a_pool_and_a_socket_are_sufficient() {
        let settings = settings("--pool a=/x --pool b=/y --csi unix:///run/csi.sock --node-id n1").unwrap();
        assert_eq!(settings.identity.driver, "dir.orlop.dev");
        assert!(settings.identity.controller_expand);
        assert_eq!(settings.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(settings.csi.as_deref(), Some(Path::new("/run/csi.sock")));
        assert_eq!(settings.known_pools, Path::new("/run/known-pools"));
        assert!(settings.http.is_none() && settings.registration.is_none());
    }

    #[test]
    fn docker_is_served_with_and_without_csi() {
        let docker = "--pool a=/x --docker unix:///run/docker/plugins/orlop.sock --node-id n";
        let alone = settings(docker).unwrap();
        assert!(alone.csi.is_none());
        assert_eq!(alone.known_pools, Path::new(KNOWN_POOLS));
        let [served] = &alone.docker[..] else { panic!("{:?}", alone.docker) };
        assert_eq!(served.socket, Path::new("/run/docker/plugins/orlop.sock"));
        assert_eq!(served.targets, Path::new("/run/orlop/docker"));
        assert_eq!(served.shares.as_deref(), Some(Path::new("/var/lib/orlop-docker-shares/orlop")));
        let both = settings(&format!("{docker} --csi /run/csi.sock --docker-mounts /m/")).unwrap();
        assert_eq!(both.known_pools, Path::new("/run/known-pools"));
        assert_eq!(both.docker[0].targets, Path::new("/m"));
    }

    #[test]
    fn pools_of_several_hosts_have_a_driver_of_their_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[[pool]]\nname = \"nas\"\npath = \"/n\"\nserver = \"nas\"\n\n\
                    [[pool]]\nname = \"cluster\"\npath = \"/c\"\nshared = true\n";
        std::fs::write(file.path(), text).unwrap();
        let flags = |more: &str| format!("--pool a=/x --config {} --node-id n {more}", file.path().display());
        let pools = |settings: &docker::Settings| {
            settings.pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let local = settings(&flags("--docker /p/orlop.sock")).unwrap().docker;
        assert_eq!(local.iter().map(pools).collect::<Vec<_>>(), ["a nas cluster"]);
        let both =
            settings(&flags("--docker /p/orlop.sock --docker-global /p/orlop-nfs.sock")).unwrap().docker;
        assert_eq!(both.iter().map(pools).collect::<Vec<_>>(), ["a", "nas cluster"]);
        assert_eq!((both[0].scope, both[1].scope), (docker::Scope::Local, docker::Scope::Global));
        assert_eq!(both[1].targets, Path::new("/run/orlop/docker-global"));
        assert_eq!(both[1].shares, None);
        assert_eq!(settings(&flags("--docker-global /p/orlop-nfs.sock")).unwrap().docker.len(), 1);
        let error = settings(&flags("--docker /p/o.sock --docker-global /p/o.sock")).unwrap_err();
        assert!(error.chain().contains("the same socket"), "{}", error.chain());
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
            (format!("{base} --pool a=/x --known-pools rel"), "--known-pools"),
            (format!("{base} --pool a=/x/y/ --pool b=/x/y/volumes/v/data"), "pool b at"),
            (format!("{base} --pool a=/x/y --pool b=/x"), "inside pool b"),
            (format!("{base} --pool a=/x --http nowhere"), "--http"),
            (format!("{base} --pool a=/x --docker orlop"), "--docker"),
            (format!("{base} --pool a=/x --docker /o.sock --docker-mounts /a/../b"), "--docker-mounts"),
            (format!("{base} --no-pools --docker /o.sock"), "--docker"),
            (format!("{base} --no-pools --docker-global /o.sock"), "--docker-global"),
            (format!("{base} --pool a=/x --docker-global /o.sock"), "no pool is on an NFS server"),
            (format!("{base} --pool a=/x --docker /o.sock --docker-shares rel"), "--docker-shares"),
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
        for (arguments, expected) in cases {
            let error = settings(&arguments).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{arguments}");
            assert!(error.chain().contains(expected), "{arguments}: {}", error.chain());
        }
    }

    fn with_file(text: &str) -> Result<Settings> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orlop.toml");
        std::fs::write(&path, text).unwrap();
        settings(&format!("--csi /c.sock --node-id n --config {}", path.display()))
    }

    #[test]
    fn the_file_configures_pools_and_tuning() {
        let settings = with_file(
            "[[pool]]\nname = \"z\"\npath = \"/z\"\nmounted = true\nuuid = \"u\"\novercommit = 1.5\n\
             reserve = \"10Gi\"\n[[pool]]\nname = \"a\"\npath = \"/a\"\n[tuning]\ncopies = 4\ncopy-wait = \"9s\"\n\
             call-timeout = \"12s\"\n",
        )
        .unwrap();
        assert_eq!(settings.pools[0].reserve, 10 << 30);
        assert_eq!((settings.pools[0].overcommit_percent, settings.pools[1].overcommit_percent), (150, 100));
        assert_eq!(settings.pools[1].name.as_str(), "a");
        let tuning = settings.tuning;
        assert_eq!((tuning.copies, tuning.copy_wait), (4, Duration::from_secs(9)));
        assert_eq!(tuning.call_timeout, Duration::from_secs(12));
    }

    #[test]
    fn the_shortest_call_timeout_of_the_chart_is_accepted() {
        let schema = include_str!("../charts/orlop/values.schema.json");
        assert!(schema.contains("\"^([5-9]s|[1-9][0-9]{1,5}s|[1-9][0-9]{0,5}[mh])?$\""), "see callTimeout");
        let text = "[[pool]]\nname = \"a\"\npath = \"/a\"\n[tuning]\ncall-timeout = \"5s\"\n";
        assert_eq!(with_file(text).unwrap().tuning.call_timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_pool_of_a_server_is_shown_as_its_share() {
        let settings = with_file(
            "[[pool]]\nname = \"a\"\nserver = \"nas\"\npath = \"/a\"\noptions = \"nconnect=4\"\n[[pool]]\n\
             name = \"b\"\npath = \"/a\"\n[[pool]]\nname = \"c\"\nserver = \"fd00::1\"\npath = \"/a\"\n\
             version = \"3\"\nexclusive = true\n",
        )
        .unwrap();
        let paths: Vec<_> = settings.pools.iter().map(|pool| pool.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["nas:/a", "/a", "[fd00::1]:/a"]);
        let workers: Vec<_> = settings.pools.iter().map(|pool| pool.worker.as_deref()).collect();
        assert_eq!(workers, [Some("nfs:nas"), None, Some("nfs:fd00::1")]);
        let inner = "[[pool]]\nname = \"a\"\nserver = \"nas\"\npath = \"/a\"\n[[pool]]\nname = \"b\"\n\
                     server = \"nas\"\npath = \"/a/b\"\n";
        assert!(with_file(inner).unwrap_err().chain().contains("inside pool a"));
    }

    #[test]
    fn a_pool_on_the_server_itself_is_its_directory_and_shared() {
        let settings = with_file(
            "[[pool]]\nname = \"a\"\nserver = \"nas\"\npath = \"/a\"\noptions = \"nconnect=4\"\n\
             local = \"/export/a\"\nmounted = true\n[[pool]]\nname = \"b\"\nserver = \"nas\"\npath = \"/b\"\n\
             local = \"/export/b\"\nisolated = true\n",
        )
        .unwrap();
        let [a, b] = &settings.pools[..] else { panic!("{:?}", settings.pools) };
        assert_eq!((a.path.to_str(), b.path.to_str()), (Some("/export/a"), Some("/export/b")));
        assert!([a, b].iter().all(|pool| pool.share.is_none() && pool.shared && pool.exported));
        assert!(a.mounted);
        assert_eq!((a.worker.as_deref(), b.worker.as_deref()), (None, Some("b")));
    }

    #[test]
    fn an_error_in_the_file_names_the_invalid_key_or_value() {
        let pool = "[[pool]]\nname = \"a\"\npath = \"/a\"\n";
        let cases = [
            (format!("{pool}colour = \"red\"\n"), "colour"),
            (format!("{pool}options = \"soft\"\n"), "pool a: options"),
            (format!("{pool}version = \"4.1\"\n"), "pool a: version"),
            (format!("{pool}server = \"a b\"\n"), "pool a: server"),
            (format!("{pool}server = \"nas\"\nversion = \"4.3\"\n"), "pool a: version"),
            (format!("{pool}server = \"nas\"\nversion = \"3\"\n"), "exclusive = true"),
            (format!("{pool}server = \"nas\"\nmounted = true\n"), "pool a: mounted"),
            (format!("{pool}server = \"nas\"\noptions = \"vers=4\"\n"), "vers=4"),
            (format!("{pool}server = \"nas\"\nisolated = true\n"), "pool a: isolated"),
            (format!("{pool}local = \"/b\"\n"), "pool a: local is for the server of a share"),
            (
                format!("{pool}server = \"nas\"\nlocal = \"b\"\n"),
                "pool a: local \"b\" is not an absolute path",
            ),
            (format!("{pool}server = \"nas\"\nlocal = \"/b\"\nexclusive = true\n"), "pool a: exclusive"),
            (format!("{pool}server = \"nas\"\nlocal = \"/b\"\nversion = \"3\"\n"), "exclusive"),
            (format!("{pool}reserve = \"much\"\n"), "much"),
            (format!("{pool}overcommit = 0\n"), "overcommit"),
            (format!("{pool}overcommit = 1e9\n"), "overcommit"),
            ("[[pool]]\nname = \"a\"\npath = \"rel\"\n".to_owned(), "not an absolute path"),
            (format!("{pool}exclusive = true\nshared = true\n"), "exclusive and shared"),
            (format!("{pool}[tuning]\ncopies = 0\n"), "copies"),
            (format!("{pool}[tuning]\ncopy-wait = \"7s\"\n"), "call-timeout"),
            (format!("{pool}[tuning]\nlock-wait = \"2s\"\n"), "call-timeout"),
            (format!("{pool}[tuning]\ncall-timeout = \"4s\"\n"), "call-timeout"),
            (format!("pools = 1\n{pool}"), "pools"),
        ];
        for (text, expected) in cases {
            let error = with_file(&text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(error.chain().contains(expected), "{text}: {}", error.chain());
        }
    }
}
