//! The flags of the commands that keep pools in order, and of `orlop exec`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::Pools;

/// Flags of `orlop prune`.
#[derive(Debug, Args)]
pub struct Prune {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Delete all volumes that are not in use, not only anonymous ones
    #[arg(long, short)]
    pub all: bool,

    /// Remove the volumes in the trash for good, also those that are to be kept
    #[arg(long, conflicts_with = "all")]
    pub trash: bool,

    /// Delete only volumes with this label: label=KEY or label=KEY=VALUE. Repeat the flag for more
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,

    /// Do not ask
    #[arg(long, short)]
    pub force: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop rename`.
#[derive(Debug, Args)]
pub struct Rename {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    pub volume: String,

    /// The new name
    pub name: String,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop undelete`.
#[derive(Debug, Args)]
pub struct Undelete {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A deleted volume: POOL/NAME, or NAME if one pool only has it in its trash. The one deleted last is taken, unless
    /// this is its entry in the list of `orlop ls --trash`
    pub volume: String,

    /// The name of the restored volume [default: the name that it had]
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop adopt`.
#[derive(Debug, Args)]
pub struct Adopt {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A directory on the filesystem of the pool, by an absolute path or one that begins with ./; or an unmanaged volume
    #[arg(value_name = "DIRECTORY")]
    pub directory: String,

    /// Name of the volume [default: that of the directory]
    pub name: Option<String>,

    /// An option: size=10G, pool, ondelete, trashfor, limit, label.KEY. Repeat the flag or separate options by commas
    #[arg(long = "opt", short = 'o', value_name = "NAME=VALUE", value_delimiter = ',')]
    pub options: Vec<String>,

    /// A label of the volume. Repeat the flag for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop exec`.
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    pub volume: String,

    /// The directory of this host at which the command sees the volume. The command starts there
    #[arg(long, value_name = "DIR", default_value = "/mnt")]
    pub at: PathBuf,

    /// Mount the volume read-only
    #[arg(long)]
    pub read_only: bool,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
