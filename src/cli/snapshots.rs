//! The commands on snapshots.

use std::process::ExitCode;

use super::volumes::{in_own_words, open, open_to_copy, plain_name};
use super::{print, report};
use crate::command::session::FromPools;
use crate::command::snapshots;
use crate::config::flags::{CreateSnapshot, ListOutput, LsSnapshots, RmSnapshots, Snapshots};
use crate::engine::Engine;
use crate::engine::request::{self, ConsistencySpec};
use crate::error::{Kind, Result};
use crate::options::assignment;
use crate::volume::{Timestamp, VolumeId};

/// Runs a command on snapshots.
pub(super) fn run(command: &Snapshots) -> Result<ExitCode> {
    match command {
        Snapshots::Create(flags) => Ok(report(create(flags).err().as_slice())),
        Snapshots::Ls(flags) => list(flags),
        Snapshots::Rm(flags) => rm(flags),
    }
}

fn create(flags: &CreateSnapshot) -> Result<()> {
    let labels = flags.labels.iter().map(|label| assignment::label_of(label)).collect::<Result<_>>()?;
    let name = plain_name(&flags.name)?;
    let session = open_to_copy(&flags.pools, true)?;
    let source_volume = session.volume(&flags.volume)?;
    let id = VolumeId { pool: source_volume.pool.clone(), name };
    session.refuse_snapshot_name_of_other_pool(&id)?;
    let of = format!("snapshot {id} of volume {source_volume}");
    let consistency = ConsistencySpec { consistency: flags.consistency.into(), ..ConsistencySpec::default() };
    let request = request::CreateSnapshot { name: flags.name.clone(), source_volume, consistency, labels };
    let what = format!("create snapshot {id}");
    if flags.dry_run {
        let is_new = session.call(&what, move |engine| engine.check_create_snapshot(&request))?;
        return print(&match is_new {
            true => format!("would create {of}\n"),
            false => format!("snapshot {id} exists already\n"),
        });
    }
    let created = session.copy(&what, move |engine| {
        engine.create_snapshot(&request).map(|snapshot| snapshot.ready.then_some(()))
    });
    created.map_err(|error| in_own_words(&error, "--consistency none"))?;
    print(&format!("{id}\n"))
}

fn list(flags: &LsSnapshots) -> Result<ExitCode> {
    let FromPools { items, unavailable } =
        open(&flags.pools)?.each_pool("list the snapshots", Engine::snapshot_records);
    let now = Timestamp::now();
    print(&match (flags.quiet, flags.output) {
        (true, _) | (_, ListOutput::Name) => snapshots::to_ids(&items),
        (_, ListOutput::Text) => snapshots::to_table(&items, now, false),
        (_, ListOutput::Wide) => snapshots::to_table(&items, now, true),
        (_, ListOutput::Json) => snapshots::to_json(&items)?,
        (_, ListOutput::Yaml) => snapshots::to_yaml(&items)?,
    })?;
    Ok(report(&unavailable))
}

fn rm(flags: &RmSnapshots) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let remove = |text: &String| {
        let id = session.snapshot(text)?;
        let (what, shown, is_dry) = (format!("delete snapshot {id}"), id.clone(), flags.dry_run);
        session.call(&what, move |engine| match engine.check_removable_snapshot(&id) {
            // There is no such snapshot, but there may be a group.
            Err(error) if error.kind() == Kind::NotFound => {
                engine
                    .check_removable_group(&id)
                    .map_err(|of_group| if of_group.kind() == Kind::NotFound { error } else { of_group })?;
                if is_dry { Ok(()) } else { engine.delete_group(&id, &[]) }
            }
            removable => {
                removable?;
                if is_dry { Ok(()) } else { engine.delete_snapshot(&id) }
            }
        })?;
        print(&if is_dry { format!("would delete snapshot {shown}\n") } else { format!("{shown}\n") })
    };
    let errors: Vec<_> = flags.snapshots.iter().filter_map(|text| remove(text).err()).collect();
    Ok(report(&errors))
}
