//! The command line: runs the subcommand, prints its result and returns the exit code.

mod adopt;
mod archive;
mod cluster;
mod doctor;
mod exec;
mod first_pool;
mod interrupt;
mod listing;
mod manuals;
mod removal;
mod shrink;
mod snapshots;
mod trash;
mod volumes;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser as _;

use crate::command::printable;
use crate::command::session::Session;
use crate::config::Settings;
#[cfg(feature = "kube")]
use crate::config::flags::ReleaseNode;
use crate::config::flags::{Check, Cli, Command, Output, Probe, Serve};
use crate::engine::Engine;
use crate::error::{Context, Error, Kind, Result};
use crate::{check, config, pause, run, socket, telemetry, worker};

/// Parses and runs the command line. Exit codes: 0 success, 1 failure, 2 invalid usage; for commands on volumes also
/// 3 not found, 4 in use.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(flags) => serve(*flags),
        Command::Probe(flags) => probe(&flags),
        Command::Completions { shell } => manuals::completions(shell),
        Command::Man { dir } => manuals::write_pages(&dir),
        Command::Volumes(command) | Command::Volume(command) => volumes::run(command),
        #[cfg(feature = "kube")]
        Command::ReleaseNode(flags) => release_node(flags),
        Command::Worker => work(),
        Command::FreezeHelper => pause::serve_helper().map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // An error of the configuration file has several lines.
            let lines: Vec<_> = error.chain().lines().map(printable).collect();
            print_error(&lines.join("\n"));
            ExitCode::from(if error.kind() == Kind::Invalid { 2 } else { 1 })
        }
    }
}

fn serve(flags: Serve) -> Result<ExitCode> {
    let _log = telemetry::init(flags.log_format == Output::Json, &flags.log)?;
    run::serve(Settings::try_from(flags)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a worker. Returns when its parent has ended, although calls may still hang.
fn work() -> Result<ExitCode> {
    let (worker, setup, kept) = worker::connect()?;
    let _log = telemetry::init(setup.log_as_json, &setup.log)?;
    run::work(&worker, setup, kept)?;
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
    let (pools, tuning) = config::for_check(&flags.pools)?;
    let engine = Engine::open_for_command(pools.clone(), tuning)?;
    let session = Session::new(engine, Arc::new(AtomicBool::new(false)));
    let taken_over = if flags.fix { check::takeover::take_over(&session) } else { Vec::new() };
    let mut facts = check::inspect(&pools);
    facts.extend(taken_over);
    if flags.audit {
        facts.extend(check::audit::audit(&session, flags.fix));
    }
    let text = match flags.output {
        Output::Text => check::to_text(&facts),
        Output::Json => check::to_json(&facts),
    };
    print(&text)?;
    Ok(if check::is_usable(&facts) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints to stdout. A reader that wants no more, such as `head`, is no failure.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context(|| "print"),
    }
}

fn print_error(text: &str) {
    let _ = writeln!(io::stderr(), "orlop: {text}");
}

/// Prints the errors of a command. Returns their code, or 1 if their codes differ.
fn report(errors: &[Error]) -> ExitCode {
    for error in errors {
        print_error(&printable(&error.chain()));
    }
    let code = errors.iter().map(|error| code(error.kind())).reduce(|a, b| if a == b { a } else { 1 });
    ExitCode::from(code.unwrap_or(0))
}

/// The exit code of a command on volumes: 1 failed, 2 asked wrongly, 3 not found, 4 in use.
fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Conflict
        | Kind::Busy
        | Kind::NoSpace
        | Kind::Unavailable
        | Kind::Unresponsive
        | Kind::Unreadable
        | Kind::Internal => 1,
        Kind::Invalid | Kind::OutOfRange | Kind::Unsupported => 2,
        Kind::NotFound => 3,
        Kind::InUse => 4,
    }
}
