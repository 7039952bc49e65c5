//! The command line: does what its flags say, and tells how that went.

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

/// Reads the command line and does what it says. Exit codes: 0 done, 1 failed, 2 asked wrongly.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(flags) => serve(*flags),
        Command::Probe(flags) => probe(&flags),
        Command::Check(flags) => check(&flags),
        #[cfg(feature = "kube")]
        Command::ReleaseNode(flags) => release_node(flags),
    };
    match done {
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
    let endpoint = endpoint.ok_or_else(|| Error::new(Kind::Invalid, "say which socket: --csi unix:///…"))?;
    run::probe(&socket::path(endpoint)?, Duration::from_secs(3))?;
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
    let facts = check::look(flags.pools.iter().map(|pool| (&pool.name, pool.path.as_path())));
    let text = match flags.output {
        Output::Text => check::lines(&facts),
        Output::Json => check::json(&facts),
    };
    io::stdout().write_all(text.as_bytes()).context(|| "print")?;
    Ok(if check::usable(&facts) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
