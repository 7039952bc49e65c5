//! The objects of a pool, and what is locked for them.

use std::fmt;

use super::locks::LockKey;
use crate::volume::Name;

/// The kinds of object in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Volumes, in `volumes/`.
    Volumes,
    /// Snapshots, in `snapshots/`.
    Snapshots,
}

impl ObjectKind {
    /// The name of the file with the record of an object, in the directory of the object.
    #[must_use]
    pub fn record(self) -> &'static str {
        match self {
            Self::Volumes => "volume.json",
            Self::Snapshots => "snapshot.json",
        }
    }

    /// The name of the directory that holds the objects of this kind.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volumes => "volume",
            Self::Snapshots => "snapshot",
        })
    }
}

/// What a lock in a pool protects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// An object, while a call changes or publishes it. Held for that call only.
    Object(ObjectKind, Name),
    /// The name of an object that a copy creates, until the copy ends.
    CopyTo(ObjectKind, Name),
    /// The data of an object: shared by the copies that read it, exclusive while it is deleted.
    Data(ObjectKind, Name),
    /// An entry of `work/`, or a new record, while its creator is at work.
    Draft(String),
    /// An entry of `trash/`, while it is removed.
    Trash(String),
    /// The pool's sum of provisioned sizes, from its check to the rename that changes it.
    Commit,
    /// The counter of project ids, while a block of them is taken.
    ProjectIds,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(kind, name) => write!(f, "{kind} {name}"),
            Self::CopyTo(kind, name) => write!(f, "the copy to {kind} {name}"),
            Self::Data(kind, name) => write!(f, "the data of {kind} {name}"),
            Self::Draft(nonce) => write!(f, "work/{nonce}"),
            Self::Trash(entry) => write!(f, "trash/{entry}"),
            Self::Commit => f.write_str("the pool's sum of sizes"),
            Self::ProjectIds => f.write_str("the pool's counter of project ids"),
        }
    }
}

impl LockKey for ObjectKey {
    fn lock_name(&self) -> String {
        let of = |what: &str, kind: &ObjectKind, name: &Name| format!("{what}{}/{name}", kind.directory());
        match self {
            Self::Object(kind, name) => of("", kind, name),
            Self::CopyTo(kind, name) => of("copy to ", kind, name),
            Self::Data(kind, name) => of("data of ", kind, name),
            Self::Draft(nonce) => format!("work/{nonce}"),
            Self::Trash(entry) => format!("trash/{entry}"),
            Self::Commit => "commit".to_owned(),
            Self::ProjectIds => "project ids".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_lock_never_changes() {
        let name: Name = "a".parse().unwrap();
        let keys = [
            (ObjectKey::Object(ObjectKind::Volumes, name.clone()), "volumes/a"),
            (ObjectKey::Object(ObjectKind::Snapshots, name.clone()), "snapshots/a"),
            (ObjectKey::CopyTo(ObjectKind::Volumes, name.clone()), "copy to volumes/a"),
            (ObjectKey::Data(ObjectKind::Snapshots, name), "data of snapshots/a"),
            (ObjectKey::Draft("17ab".to_owned()), "work/17ab"),
            (ObjectKey::Trash("a.0.17ab".to_owned()), "trash/a.0.17ab"),
            (ObjectKey::Commit, "commit"),
            (ObjectKey::ProjectIds, "project ids"),
        ];
        for (key, expected) in keys {
            assert_eq!(key.lock_name(), expected);
        }
    }
}
