//! `orlop expand --shrink`: a volume becomes smaller.

use super::{print, print_error};
use crate::command::printable;
use crate::command::session::Session;
use crate::error::Result;
use crate::volume::{Size, Volume, VolumeId};

/// Makes a volume smaller, when it is known what it uses.
pub(super) fn shrink(session: &Session, id: &VolumeId, size: u64, dry_run: bool) -> Result<()> {
    let what = format!("shrink volume {id}");
    let volume = loop {
        let asked = id.clone();
        let shrunk = session.call(&what, move |engine| {
            if dry_run { engine.check_shrink(&asked, size) } else { engine.shrink(&asked, size) }
        })?;
        // Its usage is being measured.
        if let Some(volume) = shrunk {
            break volume;
        }
    };
    note_claim(&volume);
    if dry_run {
        let (from, to) = (Size(volume.size), Size(size));
        return print(&format!("would shrink volume {id} from {from} to {to}\n"));
    }
    print(&format!("{id} {}\n", Size(volume.size).to_short()))
}

/// Kubernetes does not learn of the new size.
fn note_claim(volume: &Volume) {
    if let Some(claim) = volume.claim() {
        let text = format!(
            "volume {} is that of claim {claim}, which Kubernetes goes on to show with its old size",
            volume.id
        );
        print_error(&printable(&text));
    }
}
