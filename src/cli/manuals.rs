//! Completions for shells, and man pages.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;

use super::print;
use crate::config::flags::{Cli, Shell};
use crate::error::{Context as _, Result};

/// The command line without hidden commands.
fn visible() -> clap::Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let about = all.get_about().cloned().unwrap_or_default();
    clap::Command::new("orlop").version(env!("CARGO_PKG_VERSION")).about(about).subcommands(shown)
}

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result<ExitCode> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "orlop", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes `orlop.1` and a page for each command into a directory.
pub(super) fn write_pages(dir: &Path) -> Result<ExitCode> {
    let written = clap_mangen::generate_to(visible(), dir);
    written.context(|| format!("write man pages into {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
