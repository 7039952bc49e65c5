//! `orlop check --audit`: files of volumes that have left their project, so that no size limits them.

use std::time::Duration;

use super::{Fact, Verdict, fact};
use crate::command::session::{FromPools, Session};
use crate::engine::Engine;
use crate::error::Result;
use crate::fs::audit::Strays;
use crate::volume::{Size, VolumeId};

/// How long a volume is read by one call.
const SLICE: Duration = Duration::from_secs(1);

/// Audits the volumes of all pools, one after another; with `mend`, puts files back that have left their project.
#[must_use]
pub fn audit(session: &Session, mend: bool) -> Vec<Fact> {
    let FromPools { items: ids, unavailable } = session.each_pool("list the volumes", Engine::ids);
    let mut facts = Vec::new();
    for id in ids {
        let (verdict, found) = match audit_volume(session, &id, mend) {
            Ok(Some(strays)) => describe(&strays),
            Ok(None) => (Verdict::Note, "none: its size is not enforced by a project".to_owned()),
            Err(error) => (Verdict::Bad, error.chain()),
        };
        facts.push(fact(verdict, &format!("volume {id}"), "project", found));
    }
    facts.extend(unavailable.iter().map(|error| fact(Verdict::Bad, "volumes", "project", error.chain())));
    facts
}

fn audit_volume(session: &Session, id: &VolumeId, mend: bool) -> Result<Option<Strays>> {
    let (what, asked) = (format!("audit volume {id}"), id.clone());
    let Some(mut audit) = session.call(&what, move |engine| engine.audit(&asked, mend))? else {
        return Ok(None);
    };
    loop {
        let (rest, found) = session.call(&what, move |_| {
            let found = audit.run(SLICE)?;
            Ok((audit, found))
        })?;
        if found.is_some() {
            return Ok(found);
        }
        audit = rest;
    }
}

fn describe(strays: &Strays) -> (Verdict, String) {
    let Strays { count, bytes, put_back, paths, failed, failure } = strays;
    let unknown =
        failure.as_ref().map(|first| format!("; {failed} cannot be read or put back, such as {first}"));
    let unknown = unknown.unwrap_or_default();
    if *count == 0 {
        let verdict = if *failed == 0 { Verdict::Ok } else { Verdict::Bad };
        return (verdict, format!("all files are in the project of the volume{unknown}"));
    }
    let more = if *count > paths.len() as u64 { ", …" } else { "" };
    let (listed, size) = (paths.join(", "), Size(*bytes).to_short());
    let files = if *count == 1 { "1 file".to_owned() } else { format!("{count} files") };
    let text = format!("{files} of {size} outside of the project of the volume");
    if put_back == count {
        let verdict = if *failed == 0 { Verdict::Ok } else { Verdict::Bad };
        return (verdict, format!("put back {text}: {listed}{more}{unknown}"));
    }
    let next = if *put_back > 0 { format!("{put_back} put back") } else { "--fix puts them back".to_owned() };
    (Verdict::Bad, format!("{text} ({next}): {listed}{more}{unknown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_audit_found_is_described_with_the_next_step() {
        let none = Strays::default();
        assert_eq!(describe(&none), (Verdict::Ok, "all files are in the project of the volume".into()));
        let paths = vec!["a".to_owned(), "d/b".to_owned()];
        let two = Strays { count: 2, bytes: 8192, paths, ..Strays::default() };
        let text = "2 files of 8Ki outside of the project of the volume (--fix puts them back): a, d/b";
        assert_eq!(describe(&two), (Verdict::Bad, text.into()));
        let mended = Strays { put_back: 2, ..two.clone() };
        let text = "put back 2 files of 8Ki outside of the project of the volume: a, d/b";
        assert_eq!(describe(&mended), (Verdict::Ok, text.into()));
        let failure = Some("d/b: Operation not permitted".to_owned());
        let partly = Strays { count: 30, put_back: 29, failed: 1, failure, ..two };
        let (verdict, text) = describe(&partly);
        assert_eq!(verdict, Verdict::Bad);
        assert!(
            text.contains("(29 put back): a, d/b, …; 1 cannot be read or put back, such as d/b: "),
            "{text}"
        );
    }
}
