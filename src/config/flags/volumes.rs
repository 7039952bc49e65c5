//! The flags of the commands that make and change volumes and snapshots.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    Adopt, Backup, Check, Df, Doctor, Exec, Inspect, ListOutput, Ls, Pools, Prune, Rename, Rm, Undelete,
};
use crate::volume::Consistency;

/// The commands on volumes. Each one is also a command of `orlop volume`.
#[derive(Debug, Subcommand)]
pub enum Volumes {
    /// Create a volume, and print its id
    Create(Create),
    /// List the volumes of pools
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show the record, the directory and the users of volumes
    Inspect(Inspect),
    /// Delete volumes by their policy; refused while anything on this host uses them
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Delete volumes that are not in use
    Prune(Prune),
    /// Show the space of pools and volumes
    Df(Df),
    /// Rename a volume that is not in use
    Rename(Rename),
    /// Restore a deleted volume from the trash
    Undelete(Undelete),
    /// Make an existing directory a volume, without a copy
    Adopt(Adopt),
    /// Run a command that sees a volume at a path
    Exec(Exec),
    /// Create a volume with the data of another one
    Clone(CloneVolume),
    /// Create a volume with the data of a snapshot or an archive
    Restore(Restore),
    /// Write a volume or a snapshot into an archive, which tar can extract
    Backup(Box<Backup>),
    /// Make a volume larger, also while it is in use
    Expand(Expand),
    /// Set and remove labels of a volume
    Label(Label),
    /// Create, list and delete snapshots
    #[command(subcommand)]
    Snapshot(Snapshots),
    /// Report what keeps volumes and pools from working, each with the next step
    Doctor(Doctor),
    /// Report what this kernel and the given pools support, without changing anything unless --fix is given
    Check(Check),
}

/// The commands on snapshots.
#[derive(Debug, Subcommand)]
pub enum Snapshots {
    /// Create a snapshot of a volume, and print its id
    Create(CreateSnapshot),
    /// List the snapshots of pools
    #[command(visible_alias = "list")]
    Ls(LsSnapshots),
    /// Delete snapshots
    #[command(visible_alias = "remove")]
    Rm(RmSnapshots),
}

/// Options of a new volume.
#[derive(Debug, Args)]
pub struct NewVolume {
    /// An option: size=10G, pool, mode, uid, gid, ondelete, trashfor, limit, consistency, maxpause, snapshotcost, label.KEY. Repeat the
    /// flag or separate options by commas
    #[arg(long = "opt", short = 'o', value_name = "NAME=VALUE", value_delimiter = ',')]
    pub options: Vec<String>,

    /// A label of the volume. Repeat the flag for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop create`.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Name of the volume [default: 64 random hexadecimal digits, as Docker's anonymous volumes have]
    pub name: Option<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub new: NewVolume,

    /// For scripts that were written for Docker: the driver, which must be orlop
    #[arg(long, short, value_name = "DRIVER", value_parser = ["orlop"], hide_possible_values = true)]
    pub driver: Option<String>,
}

/// Flags of `orlop clone`.
#[derive(Debug, Args)]
pub struct CloneVolume {
    /// The volume to copy: POOL/NAME, or NAME if one pool only has it
    #[arg(value_name = "VOLUME")]
    pub source: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub copy: NewCopy,
}

/// Flags of `orlop restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The snapshot to copy: POOL/NAME, or NAME if one pool only has it. Or the archive to extract: - for standard input, a
    /// path that begins with /, ./ or ../, or an existing file whose name ends with .tar, .tar.gz, .tgz, .tar.zst or .tzst
    #[arg(value_name = "SNAPSHOT|FILE")]
    pub source: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub copy: NewCopy,

    /// Create the device nodes of an archive, which is refused otherwise
    #[arg(long)]
    pub devices: bool,

    /// The directory of the archive that becomes the volume; . for the whole archive [default: recognized]
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,

    /// Replace the contents of the existing volume NAME by those of the archive, at once and completely. The old contents go
    /// to the trash if the policy of the volume says so
    #[arg(long, conflicts_with_all = ["options", "labels"])]
    pub replace: bool,
}

/// The volume that a copy becomes.
#[derive(Debug, Args)]
pub struct NewCopy {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Name of the new volume
    pub name: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub new: NewVolume,
}

/// Flags of `orlop expand`.
#[derive(Debug, Args)]
pub struct Expand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    pub volume: String,

    /// The new size, such as 20G
    pub size: String,

    /// Make the volume smaller, at least as large as what it uses
    #[arg(long)]
    pub shrink: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop label`.
#[derive(Debug, Args)]
pub struct Label {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume: POOL/NAME, or NAME if one pool only has it
    pub volume: String,

    /// KEY=VALUE sets a label, and KEY- removes it
    #[arg(value_name = "LABEL", required = true)]
    pub changes: Vec<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `orlop snapshot create`.
#[derive(Debug, Args)]
pub struct CreateSnapshot {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// The volume to copy: POOL/NAME, or NAME if one pool only has it
    pub volume: String,

    /// Name of the snapshot
    pub name: String,

    /// A label of the snapshot. Repeat the flag for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,

    /// What the copy of a volume in use shows
    #[arg(long, value_name = "WHAT", value_enum, default_value = "crash")]
    pub consistency: ConsistencyFlag,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What a copy shows, as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsistencyFlag {
    /// One instant; the containers that use the volume are paused shortly
    Crash,
    /// Each file at another moment; nothing is paused
    None,
}

impl From<ConsistencyFlag> for Consistency {
    fn from(flag: ConsistencyFlag) -> Self {
        match flag {
            ConsistencyFlag::Crash => Self::Crash,
            ConsistencyFlag::None => Self::None,
        }
    }
}

/// Flags of `orlop snapshot ls`.
#[derive(Debug, Args)]
pub struct LsSnapshots {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// Print the ids only, one for each line
    #[arg(long, short, conflicts_with = "output")]
    pub quiet: bool,

    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: ListOutput,
}

/// Flags of `orlop snapshot rm`.
#[derive(Debug, Args)]
pub struct RmSnapshots {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A snapshot: POOL/NAME, or NAME if one pool only has it
    #[arg(value_name = "SNAPSHOT", required = true)]
    pub snapshots: Vec<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}
