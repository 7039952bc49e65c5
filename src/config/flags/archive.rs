//! The flags of the commands on backups.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConsistencyFlag, Pools};
use crate::archive::compression::Compression;

/// Flags of `orlop backup`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Backup {
    /// A command on archives.
    #[command(subcommand)]
    pub archive: Option<Archives>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub backup: NewBackup,
}

/// Flags of a new backup.
#[derive(Debug, Args)]
pub struct NewBackup {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would replace the description of the command")]
    pub pools: Pools,

    /// A volume or a snapshot: POOL/NAME, or NAME if one pool only has it. One that is named verify or ls needs its pool
    #[arg(value_name = "VOLUME|SNAPSHOT", required = true)]
    pub source: Option<String>,

    /// The file to write, with its SHA-256 in FILE.sha256 beside it; - for standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,

    /// The format [default: by the name of the file; tar.zst for standard output]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,

    /// What the backup of a volume in use shows
    #[arg(long, value_name = "WHAT", value_enum, default_value = "crash")]
    pub consistency: ConsistencyFlag,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The commands on archives, which need no pool.
#[derive(Debug, Subcommand)]
pub enum Archives {
    /// Read an archive to its end, and compare it with FILE.sha256 if that exists
    Verify(ArchiveFile),
    /// List the entries of an archive
    #[command(visible_alias = "list")]
    Ls(ArchiveFile),
}

/// An archive to read.
#[derive(Debug, Args)]
pub struct ArchiveFile {
    /// The archive; - for standard input
    pub file: PathBuf,
}

/// A format of archives, as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Without compression
    Tar,
    /// Compressed by gzip
    #[value(name = "tar.gz")]
    TarGz,
    /// Compressed by Zstandard
    #[value(name = "tar.zst")]
    TarZst,
}

impl From<Format> for Compression {
    fn from(format: Format) -> Self {
        match format {
            Format::Tar => Self::None,
            Format::TarGz => Self::Gzip,
            Format::TarZst => Self::Zstd,
        }
    }
}
