//! The command-line flags. Each one has an environment variable. CSI's own `CSI_ENDPOINT` is honoured too.

mod archive;
mod listing;
mod upkeep;
mod volumes;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Kind, Result};
use crate::pause::HELPER_COMMAND;
use crate::volume::{PoolName, shorten};
use crate::worker::WORKER_COMMAND;
pub use archive::{ArchiveFile, Archives, Backup, Format, NewBackup};
pub use listing::{Df, Doctor, InCluster, Inspect, InspectOutput, ListOutput, Ls};
pub use upkeep::{Adopt, Exec, Prune, Rename, Undelete};
pub use volumes::{
    CloneVolume, ConsistencyFlag, Create, CreateSnapshot, Expand, Label, LsSnapshots, NewCopy, NewVolume,
    Restore, RmSnapshots, Snapshots, Volumes,
};

/// Named, sized volumes kept as plain directories, for Kubernetes and other orchestrators.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the volumes of pools over CSI until SIGTERM or SIGINT
    Serve(Box<Serve>),
    /// Ask a running orlop whether it is ready; the exit code is 0 if it is
    Probe(Probe),
    /// A command on volumes
    #[command(flatten)]
    Volumes(Volumes),
    /// The same commands on volumes, as Docker groups them
    #[command(subcommand)]
    Volume(Volumes),
    /// Print the completions for a shell, such as `orlop completions bash >/etc/bash_completion.d/orlop`
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory, which exists
        dir: PathBuf,
    },
    /// Release the claims of a permanently lost Kubernetes node, so that their owners create new ones on other nodes
    #[cfg(feature = "kube")]
    ReleaseNode(ReleaseNode),
    /// Freeze and thaw cgroups for another process of orlop, which starts this and sends what to do
    #[command(name = HELPER_COMMAND, hide = true)]
    FreezeHelper,
    /// Serve pools for another process of orlop, which starts this and sends the calls
    #[command(name = WORKER_COMMAND, hide = true)]
    Worker,
}

/// Flags of `orlop serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// A pool: its name and an existing directory. Repeat the flag or separate pools by commas. A request without a
    /// pool uses the one named "default", or else the first. For more settings of a pool, use --config
    #[arg(long = "pool", value_name = "NAME=DIR", env = "ORLOP_POOL", value_delimiter = ',')]
    pub pools: Vec<PoolFlag>,

    /// Serve no pools. For an instance whose sidecars need the driver's name and capabilities only, such as one
    /// csi-resizer for the whole cluster
    #[arg(long, env = "ORLOP_NO_POOLS")]
    pub no_pools: bool,

    /// Socket to serve CSI on, such as unix:///run/orlop/csi.sock [default: $CSI_ENDPOINT]
    #[arg(long, value_name = "SOCKET", env = "ORLOP_CSI")]
    pub csi: Option<String>,

    /// The same socket, by the variable that CSI specifies
    #[arg(long, env = "CSI_ENDPOINT", hide = true)]
    pub csi_endpoint: Option<String>,

    /// Socket to serve volumes to Docker and Podman on: unix:///run/docker/plugins/NAME.sock, for volumes of --driver NAME
    #[arg(long, value_name = "SOCKET", env = "ORLOP_DOCKER")]
    pub docker: Option<String>,

    /// Socket to serve the volumes of pools on NFS servers, and of pools with `shared = true`, to Docker and Podman on, as
    /// those of a driver with the scope `global`. --docker then serves the other pools
    #[arg(long, value_name = "SOCKET", env = "ORLOP_DOCKER_GLOBAL")]
    pub docker_global: Option<String>,

    /// Directory in which the shares that Docker mounts with type=nfs are recorded. It should survive a reboot
    #[arg(
        long,
        value_name = "DIR",
        env = "ORLOP_DOCKER_SHARES",
        default_value = "/var/lib/orlop-docker-shares"
    )]
    pub docker_shares: PathBuf,

    /// Directory in which volumes are mounted for Docker and Podman
    #[arg(long, value_name = "DIR", env = "ORLOP_DOCKER_MOUNTS", default_value = "/run/orlop/docker")]
    pub docker_mounts: PathBuf,

    /// Directory in which this host's pools are recorded, so that the empty mount point of a missing disk never becomes
    /// a new pool. It should survive a reboot [default: known-pools beside the CSI socket, or
    /// /var/lib/orlop-known-pools without one]
    #[arg(long, value_name = "DIR", env = "ORLOP_KNOWN_POOLS")]
    pub known_pools: Option<PathBuf>,

    /// Name of the CSI driver
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER", default_value = "dir.orlop.dev")]
    pub driver: String,

    /// Name of this node in the orchestrator [default: the hostname]
    #[arg(long, value_name = "NAME", env = "ORLOP_NODE_ID")]
    pub node_id: Option<String>,

    /// TOML file with pools (`[[pool]]`) and tuning options (`[tuning]`)
    #[arg(long, value_name = "FILE", env = "ORLOP_CONFIG")]
    pub config: Option<PathBuf>,

    /// Address to serve /metrics, /livez and /readyz on: 127.0.0.1:9810, :9810 or unix:///…/http.sock
    #[arg(long, value_name = "ADDRESS", env = "ORLOP_HTTP")]
    pub http: Option<String>,

    /// Socket for registering the driver with kubelet, in kubelet's directory of plugin registrations:
    /// unix:///registration/NAME@reg.sock. Replaces node-driver-registrar
    #[arg(long, value_name = "SOCKET", env = "ORLOP_KUBELET_REGISTRATION", requires = "kubelet_csi_path")]
    pub kubelet_registration: Option<String>,

    /// Path of the CSI socket on the host, for kubelet: /var/lib/kubelet/plugins/NAME/csi.sock
    #[arg(long, value_name = "PATH", env = "ORLOP_KUBELET_CSI_PATH")]
    pub kubelet_csi_path: Option<PathBuf>,

    /// Relocate a Kubernetes claim whose source is on another node to that node, by the annotation that the scheduler
    /// uses. Requires running in the cluster with permission to patch claims
    #[cfg(feature = "kube")]
    #[arg(long, env = "ORLOP_FOLLOW_SOURCES")]
    pub follow_sources: bool,

    /// Tell a Kubernetes claim by an event that the size of its volume is not enforced. Requires running in the cluster
    /// with permission to get claims and to create events
    #[cfg(feature = "kube")]
    #[arg(long, env = "ORLOP_CLAIM_EVENTS")]
    pub claim_events: bool,

    /// Make the group snapshots that Kubernetes asks for, if their volumes are on this node: the snapshot-controller does not
    /// pass them to the csi-snapshotter of one node. Requires running in the cluster with permission to watch and to patch
    /// VolumeGroupSnapshotContents
    #[cfg(feature = "kube")]
    #[arg(long, env = "ORLOP_GROUP_SNAPSHOTS")]
    pub group_snapshots: bool,

    /// Whether to advertise the controller capability EXPAND_VOLUME. Set it to false if one csi-resizer serves many
    /// nodes: volumes are then expanded on their node only
    #[arg(long, env = "ORLOP_CONTROLLER_EXPAND", default_value_t = true, action = clap::ArgAction::Set)]
    pub controller_expand: bool,

    /// Whether a volume can be used only on the node that made it. Set it to false if every node has the same pools, as
    /// on a file server: the driver then has no topology
    #[arg(long, env = "ORLOP_TOPOLOGY", default_value_t = true, action = clap::ArgAction::Set)]
    pub topology: bool,

    /// Format of the log
    #[arg(long, value_name = "FORMAT", env = "ORLOP_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: Output,

    /// Log level (error, warn, info or debug) or a filter in the syntax of tracing's EnvFilter
    #[arg(long, value_name = "FILTER", env = "ORLOP_LOG", default_value = "info")]
    pub log: String,
}

impl Serve {
    /// Returns the CSI endpoint of the flag, its variable, or CSI's variable.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.csi.as_deref().or(self.csi_endpoint.as_deref())
    }
}

/// Flags of `orlop probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// The CSI socket of the process to ask [default: $CSI_ENDPOINT]
    #[arg(long, value_name = "SOCKET", env = "ORLOP_CSI")]
    pub csi: Option<String>,

    /// The same socket, by the variable that CSI specifies
    #[arg(long, env = "CSI_ENDPOINT", hide = true)]
    pub csi_endpoint: Option<String>,
}

/// Flags of `orlop check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Search the volumes for files that have left their project, so that no size limits them
    #[arg(long)]
    pub audit: bool,

    /// Have the project quotas of the filesystem enforce the sizes of existing pools and volumes, as far as these are not in use;
    /// with --audit, put the files back that it finds
    #[arg(long)]
    pub fix: bool,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of a command that works on pools directly.
#[derive(Debug, Args)]
pub struct Pools {
    /// A pool: its name and its directory. Repeat the flag or separate pools by commas
    #[arg(long = "pool", value_name = "NAME=DIR", env = "ORLOP_POOL", value_delimiter = ',')]
    pub pools: Vec<PoolFlag>,

    /// TOML file with pools (`[[pool]]`), as for serve [default: /etc/orlop/orlop.toml, unless --pool is given]
    #[arg(long, value_name = "FILE", env = "ORLOP_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Flags of `orlop rm`.
#[derive(Debug, Args)]
pub struct Rm {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,

    /// Succeed for volumes that do not exist, too. A volume in use is not deleted
    #[arg(short, long)]
    pub force: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop release-node`.
#[cfg(feature = "kube")]
#[derive(Debug, Args)]
pub struct ReleaseNode {
    /// Name of the node. Its Node object must already be deleted
    pub node: String,

    /// Name of the CSI driver of the volumes to release
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER", default_value = "dir.orlop.dev")]
    pub driver: String,

    /// Only print what would be released
    #[arg(long)]
    pub dry_run: bool,
}

/// A format of printed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Plain text
    #[default]
    Text,
    /// JSON
    Json,
}

/// A shell that has completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// A pool as `NAME=DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFlag {
    /// The pool's name.
    pub name: PoolName,
    /// Its directory.
    pub path: PathBuf,
}

impl FromStr for PoolFlag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let pair = text.split_once('=').filter(|(_, path)| path.starts_with('/'));
        let (name, path) = pair.ok_or_else(|| {
            let shown = shorten(text);
            Error::new(Kind::Invalid, format!("{shown:?} is not NAME=DIR with an absolute DIR"))
        })?;
        Ok(Self { name: name.parse()?, path: PathBuf::from(path) })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistyped_word_suggests_neither_a_command_that_deletes_nor_a_hidden_flag() {
        for words in
            [["orlop", "remov", "a"], ["orlop", "serve", "--endpoint=/a.sock"], ["orlop", "rmm", "a"]]
        {
            let text = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(text.contains(words[1]) || text.contains("--endpoint"), "{text}");
            assert!(!text.contains("'rm'") && !text.contains("'remove'"), "{text}");
            assert!(!text.contains("csi-endpoint"), "{text}");
        }
    }

    #[test]
    fn every_flag_of_serve_has_an_environment_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for flag in serve.get_arguments().filter(|flag| flag.get_id() != "csi_endpoint") {
            let variable = format!("ORLOP_{}", flag.get_long().unwrap().replace('-', "_").to_uppercase());
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn a_pool_flag_is_a_name_and_an_absolute_path() {
        let pool: PoolFlag = "ssd=/mnt/a=b".parse().unwrap();
        assert_eq!((pool.name.as_str(), pool.path.to_str().unwrap()), ("ssd", "/mnt/a=b"));
        for bad in ["", "ssd", "ssd=", "ssd=rel", "=/a", "A=/a"] {
            assert_eq!(bad.parse::<PoolFlag>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }
}
