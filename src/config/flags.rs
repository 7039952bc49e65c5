//! The flags. Every one has an environment variable; CSI asks for `CSI_ENDPOINT`, which is honoured too.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, shorten};

/// Named, sized volumes kept as plain directories, for Kubernetes and other orchestrators.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What orlop can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve volumes from pools over CSI until SIGTERM
    Serve(Box<Serve>),
    /// Ask a running orlop whether it is ready: exit code 0 means yes
    Probe(Probe),
    /// Show what this kernel and these pools can do; changes nothing
    Check(Check),
    /// Release the claims of a Kubernetes node that is gone for good, so that their owners make new ones elsewhere
    #[cfg(feature = "kube")]
    ReleaseNode(ReleaseNode),
}

/// Flags of `orlop serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// A pool: its name and an existing directory. May be given several times, or once with commas; the one
    /// named "default", or else the first, is used where none is asked for. Pools with more settings stand in the file of --config
    #[arg(long = "pool", value_name = "NAME=DIR", env = "ORLOP_POOL", value_delimiter = ',')]
    pub pools: Vec<PoolFlag>,

    /// Serve no pools: an instance for sidecars that need the driver's name and capabilities only, such as one
    /// csi-resizer for a whole cluster
    #[arg(long, env = "ORLOP_NO_POOLS")]
    pub no_pools: bool,

    /// Socket to serve CSI on, such as unix:///run/orlop/csi.sock. Default: the environment's CSI_ENDPOINT
    #[arg(long, value_name = "SOCKET", env = "ORLOP_CSI")]
    pub csi: Option<String>,

    /// CSI's own name for it
    #[arg(long, env = "CSI_ENDPOINT", hide = true)]
    pub csi_endpoint: Option<String>,

    /// Name of the CSI driver
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER", default_value = "dir.orlop.dev")]
    pub driver: String,

    /// Name of this node, as the orchestrator knows it. Default: the host's name
    #[arg(long, value_name = "NAME", env = "ORLOP_NODE_ID")]
    pub node_id: Option<String>,

    /// A TOML file of pools, each a `[[pool]]`, and of tuning, `[tuning]`
    #[arg(long, value_name = "FILE", env = "ORLOP_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where to serve /metrics, /livez and /readyz: 127.0.0.1:9810, :9810 or unix:///…/http.sock
    #[arg(long, value_name = "ADDRESS", env = "ORLOP_HTTP")]
    pub http: Option<String>,

    /// Socket to register the driver with kubelet on, in kubelet's folder: unix:///registration/NAME@reg.sock.
    /// It stands in for node-driver-registrar
    #[arg(long, value_name = "SOCKET", env = "ORLOP_KUBELET_REGISTRATION", requires = "kubelet_csi_path")]
    pub kubelet_registration: Option<String>,

    /// The CSI socket as kubelet sees it on the host: /var/lib/kubelet/plugins/NAME/csi.sock
    #[arg(long, value_name = "PATH", env = "ORLOP_KUBELET_CSI_PATH")]
    pub kubelet_csi_path: Option<PathBuf>,

    /// Send a Kubernetes claim whose source is on another node there, by the annotation that the scheduler obeys. Needs
    /// to run in the cluster with the right to patch claims
    #[cfg(feature = "kube")]
    #[arg(long, env = "ORLOP_FOLLOW_SOURCES")]
    pub follow_sources: bool,

    /// Whether to advertise the controller's EXPAND_VOLUME. Say false where one csi-resizer serves many nodes:
    /// volumes are then expanded on their node only
    #[arg(long, env = "ORLOP_CONTROLLER_EXPAND", default_value_t = true, action = clap::ArgAction::Set)]
    pub controller_expand: bool,

    /// How the log looks
    #[arg(long, value_name = "FORMAT", env = "ORLOP_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: Output,

    /// What to log: error, warn, info, debug, or as tracing's filters
    #[arg(long, value_name = "FILTER", env = "ORLOP_LOG", default_value = "info")]
    pub log: String,
}

impl Serve {
    /// The CSI endpoint: the flag, its variable, or CSI's variable.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.csi.as_deref().or(self.csi_endpoint.as_deref())
    }
}

/// Flags of `orlop probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// The CSI socket
    #[arg(long, value_name = "SOCKET", env = "ORLOP_CSI")]
    pub csi: Option<String>,

    /// CSI's own name for it
    #[arg(long, env = "CSI_ENDPOINT", hide = true)]
    pub csi_endpoint: Option<String>,
}

/// Flags of `orlop check`.
#[derive(Debug, Args)]
pub struct Check {
    /// A pool to look at; may be given several times
    #[arg(long = "pool", value_name = "NAME=DIR", env = "ORLOP_POOL", value_delimiter = ',')]
    pub pools: Vec<PoolFlag>,

    /// How to print
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `orlop release-node`.
#[cfg(feature = "kube")]
#[derive(Debug, Args)]
pub struct ReleaseNode {
    /// The node's name; its Node object must be deleted already
    pub node: String,

    /// Name of the CSI driver whose volumes it had
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER", default_value = "dir.orlop.dev")]
    pub driver: String,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For machines
    Json,
}

/// `NAME=DIR`.
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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for flag in serve.get_arguments().filter(|flag| flag.get_id() != "csi_endpoint") {
            let variable = format!("ORLOP_{}", flag.get_long().unwrap().replace('-', "_").to_uppercase());
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn pools_of_the_command_line() {
        let pool: PoolFlag = "ssd=/mnt/a=b".parse().unwrap();
        assert_eq!((pool.name.as_str(), pool.path.to_str().unwrap()), ("ssd", "/mnt/a=b"));
        for bad in ["", "ssd", "ssd=", "ssd=rel", "=/a", "A=/a"] {
            assert_eq!(bad.parse::<PoolFlag>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }
}
