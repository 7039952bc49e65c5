//! `orlop doctor`: what keeps volumes and pools from working, each with the next step.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::{print, report};
use crate::check::{self, Fact, Verdict};
use crate::command::session::{FromPools, Session};
use crate::command::{printable, to_json, to_yaml};
use crate::config;
use crate::config::flags::{Doctor, ListOutput};
use crate::engine::Engine;
use crate::error::Result;
use crate::volume::{DATA, PoolName};

/// Something that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What it is about, such as `pool ssd` or `volume ssd/data`.
    object: String,
    found: String,
    next: String,
}

/// Looks at the host, the pools and their volumes. Changes nothing.
pub(super) fn run(flags: &Doctor) -> Result<ExitCode> {
    let (pools, tuning) = config::for_check(&flags.pools)?;
    let facts = check::inspect(&pools);
    let mut findings: Vec<Finding> = facts
        .iter()
        .filter(|fact| fact.verdict != Verdict::Ok)
        .map(|fact| Finding {
            verdict: fact.verdict,
            object: fact.object.clone(),
            found: format!("{}: {}", fact.property, fact.found),
            next: check::next_step(fact).to_owned(),
        })
        .collect();
    let session = Session::new(Engine::open_for_command(pools, tuning)?, Arc::new(AtomicBool::new(false)));
    let FromPools { items, unavailable } = session.each_pool("check the volumes", findings_of_pool);
    findings.extend(items);
    let is_well = findings.iter().all(|finding| finding.verdict != Verdict::Bad) && unavailable.is_empty();
    print(&match flags.output {
        ListOutput::Json => to_json(&findings)?,
        ListOutput::Yaml => to_yaml(&findings)?,
        ListOutput::Name => names(&findings),
        ListOutput::Text => to_text(&findings),
        ListOutput::Wide => right(&facts) + &to_text(&findings),
    })?;
    report(&unavailable);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    let lines = findings.iter().map(|Finding { verdict, object, found, next }| {
        let verdict = if *verdict == Verdict::Bad { "BAD" } else { "note" };
        format!("{verdict:<5} {}: {}\n      next: {}\n", printable(object), printable(found), printable(next))
    });
    lines.collect()
}

/// What was looked at and is right.
fn right(facts: &[Fact]) -> String {
    let right = facts.iter().filter(|fact| fact.verdict == Verdict::Ok);
    let line = |fact: &Fact| {
        format!(
            "ok    {}: {}: {}\n",
            printable(&fact.object),
            printable(&fact.property),
            printable(&fact.found)
        )
    };
    right.map(line).collect()
}

/// What the findings are about, each object once.
fn names(findings: &[Finding]) -> String {
    let objects: BTreeSet<_> = findings.iter().map(|finding| printable(&finding.object)).collect();
    objects.into_iter().map(|object| object + "\n").collect()
}

/// Volumes whose record or data is not right, and deleted volumes whose record is not.
fn findings_of_pool(engine: &Engine, pool: &PoolName) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut add = |verdict, object: String, found: &str, next: &str| {
        findings.push(Finding { verdict, object, found: found.to_owned(), next: next.to_owned() });
    };
    for stored in engine.records(pool)? {
        let object = format!("volume {}", stored.id);
        match &stored.record {
            Err(error) => {
                let next = "restore volume.json from a backup or upgrade orlop; the data is in the directory beside it";
                add(Verdict::Bad, object, &error.chain(), next);
            }
            Ok(volume) if !volume.managed => {
                let next = format!("make it a volume: orlop adopt {}", stored.id);
                add(Verdict::Note, object, "it has no record, and is never deleted", &next);
            }
            Ok(_) => match engine.has_data(&stored.id) {
                Ok(true) => {}
                Ok(false) => {
                    let next = "restore it from a snapshot or a backup, or delete the volume: orlop rm";
                    add(Verdict::Bad, object, &format!("its directory {DATA} is missing"), next);
                }
                Err(error) => add(Verdict::Bad, object, &error.chain(), "see the message"),
            },
        }
    }
    for stored in engine.snapshot_records(pool)? {
        if let Err(error) = &stored.record {
            let next = "restore snapshot.json from a backup, or move the directory out of the pool";
            add(Verdict::Bad, format!("snapshot {}", stored.id), &error.chain(), next);
        }
    }
    Ok(findings)
}
