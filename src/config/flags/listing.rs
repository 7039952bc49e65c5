//! The flags of the commands that show volumes.

use clap::{Args, ValueEnum};

use super::Pools;

/// Flags of `orlop ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Print the ids only, one for each line
    #[arg(long, short, conflicts_with_all = ["output", "format"])]
    pub quiet: bool,

    /// List only some volumes: dangling=true|false, label=KEY or label=KEY=VALUE, name=PART, pool=NAME. Repeat the flag
    /// for more
    #[arg(long = "filter", short = 'f', value_name = "FILTER")]
    pub filters: Vec<String>,

    /// Print a line for each volume by a template of Docker's kind, such as '{{.Name}} {{.Mountpoint}}', or json
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    pub format: Option<String>,

    /// List the deleted volumes that are still in the trash
    #[arg(long, conflicts_with_all = ["filters", "format"])]
    pub trash: bool,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: ListOutput,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub cluster: InCluster,
}

/// Flags of a command that asks the cluster whether it still has the volumes of claims. The chart sets their variables.
#[derive(Debug, Args)]
pub struct InCluster {
    /// In a cluster: the CSI driver whose PersistentVolumes tell which volumes are orphans
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER", default_value = "dir.orlop.dev")]
    pub driver: String,

    /// In a cluster: the name of this node, so that volumes of other nodes do not count
    #[arg(long, value_name = "NAME", env = "ORLOP_NODE_ID")]
    pub node_id: Option<String>,
}

/// A format of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ListOutput {
    /// Text for people
    #[default]
    Text,
    /// The same with more details
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// The names only, one for each line
    Name,
}

/// A format of the details of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum InspectOutput {
    /// JSON
    #[default]
    Json,
    /// YAML
    Yaml,
    /// The ids only, one for each line
    Name,
}

/// Flags of `orlop inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,

    /// Print a line for each volume by a template of Docker's kind, such as '{{.Mountpoint}}', or json
    #[arg(long, short, value_name = "TEMPLATE", conflicts_with = "output")]
    pub format: Option<String>,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: InspectOutput,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub cluster: InCluster,
}

/// Flags of `orlop df`.
#[derive(Debug, Args)]
pub struct Df {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Print the space that each volume takes
    #[arg(long, short)]
    pub verbose: bool,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: ListOutput,
}

/// Flags of `orlop doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: ListOutput,
}
