//! The command line: runs the subcommand, prints its result and returns the exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::config::Settings;
#[cfg(feature = "kube")]
use crate::config::flags::ReleaseNode;
use crate::config::flags::{Check, Cli, Command, Output, Probe, Serve};
use crate::error::{Context, Error, Kind, Result};
use crate::{check, run, socket, telemetry};

/// Parses and runs the command line. Exit codes: 0 success, 1 failure, 2 invalid usage.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(flags) => serve(*flags),
        Command::Probe(flags) => probe(&flags),
        Command::Check(flags) => check(&flags),
        #[cfg(feature = "kube")]
        Command::ReleaseNode(flags) => release_node(flags),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "orlop: {}", error.chain());
            ExitCode::from(if error.kind() == Kind::Invalid { 2 } else { 1 })
        }
    }
}

fn serve(flags: Serve) -> Result<ExitCode> {
    telemetry::init(flags.log_format == Output::Json, &flags.log)?;
    run::serve(Settings::try_from(flags)?)?;
    Ok(ExitCode::SUCCESS)
}

fn probe(flags: &Probe) -> Result<ExitCode> {
    let endpoint = flags.csi.as_deref().or(flags.csi_endpoint.as_deref());
    let endpoint = endpoint.ok_or_else(|| {
        Error::new(Kind::Invalid, "--csi is required, such as --csi unix:///run/orlop/csi.sock")
    })?;
    run::probe(&socket::parse_path(endpoint)?, Duration::from_secs(3))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "kube")]
fn release_node(flags: ReleaseNode) -> Result<ExitCode> {
    let ReleaseNode { node, driver, dry_run } = flags;
    run::release_node(&crate::kube::Release { node, driver, dry_run }, |line| {
        let _ = writeln!(io::stdout(), "{line}");
    })?;
    Ok(ExitCode::SUCCESS)
}

fn check(flags: &Check) -> Result<ExitCode> {
    let facts = check::inspect(flags.pools.iter().map(|pool| (&pool.name, pool.path.as_path())));
    let text = match flags.output {
        Output::Text => check::to_text(&facts),
        Output::Json => check::to_json(&facts),
    };
    io::stdout().write_all(text.as_bytes()).context(|| "print")?;
    Ok(if check::is_usable(&facts) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
