//! JSON files of a pool: written whole, read with a bound.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::open_inside;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::rename;
use crate::volume::SCHEMA;

/// The largest record or marker in bytes. A usual one has a few hundred.
const RECORD_MAX: u64 = 64 << 10;

/// Reads a file of at most 64 KiB; `None` if it does not exist.
///
/// # Errors
/// `Unreadable` when it is larger or not a regular file; `Unavailable` when something is mounted there; otherwise the error of the failed system call.
pub fn read_file<P: Arg + Copy>(dir: impl AsFd, path: P) -> Result<Option<Vec<u8>>> {
    read_bounded(dir, path, RECORD_MAX)
}

/// Like [`read_file`], for a file of at most this many bytes.
pub(super) fn read_bounded<P: Arg + Copy>(dir: impl AsFd, path: P, max: u64) -> Result<Option<Vec<u8>>> {
    // O_NONBLOCK: opening a FIFO would block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match open_inside(dir, path, flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Err(not_a_file()),
        Err(Errno::XDEV) => {
            return Err(Error::new(Kind::Unavailable, "something is mounted there: unmount it"));
        }
        file => std::fs::File::from(file.context(|| "open")?),
    };
    if !file.metadata().context(|| "stat")?.is_file() {
        return Err(not_a_file());
    }
    let mut bytes = Vec::with_capacity(1024);
    file.take(max + 1).read_to_end(&mut bytes).context(|| "read")?;
    if bytes.len() as u64 > max {
        return Err(Error::new(Kind::Unreadable, format!("it is larger than {max} bytes")));
    }
    Ok(Some(bytes))
}

fn not_a_file() -> Error {
    Error::new(Kind::Unreadable, "it is not a regular file")
}

/// Parses a record or marker of the schema that this version knows.
///
/// # Errors
/// `Unreadable` when it is damaged or has another schema.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Header {
        schema: u32,
    }
    let damaged = |error| Error::caused(Kind::Unreadable, "it is damaged", error);
    let Header { schema } = serde_json::from_slice(bytes).map_err(damaged)?;
    if schema > SCHEMA {
        let text = format!("it has schema {schema}, and this version of orlop reads {SCHEMA}: upgrade orlop");
        return Err(Error::new(Kind::Unreadable, text));
    }
    if schema != SCHEMA {
        return Err(Error::new(Kind::Unreadable, format!("it is damaged: schema {schema} does not exist")));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// `record` as JSON, with those fields of the stored record that this version does not know.
///
/// # Errors
/// `Unreadable` when the stored record is.
pub(super) fn with_unknown_fields<T: Serialize + DeserializeOwned>(
    record: &T,
    stored: &[u8],
) -> Result<Value> {
    let known: T = parse(stored)?;
    let value = |record: &T| {
        serde_json::to_value(record)
            .map_err(|error| Error::caused(Kind::Internal, "serialize the record", error))
    };
    let mut merged = value(record)?;
    let stored = serde_json::from_slice(stored)
        .map_err(|error| Error::caused(Kind::Unreadable, "it is damaged", error))?;
    add_unknown(&mut merged, &value(&known)?, stored);
    Ok(merged)
}

/// Adds the fields of `stored` that are missing in `known`, at every depth.
fn add_unknown(merged: &mut Value, known: &Value, stored: Value) {
    let (Value::Object(merged), Value::Object(known), Value::Object(stored)) = (merged, known, stored) else {
        return;
    };
    for (key, value) in stored {
        match (known.get(&key), merged.get_mut(&key)) {
            (None, None) => {
                merged.insert(key, value);
            }
            (Some(known), Some(merged)) => add_unknown(merged, known, value),
            (None, Some(_)) | (Some(_), None) => {}
        }
    }
}

/// Writes `value` as JSON to `name` in `dir`: to a new file first, synced, then renamed over the old one.
///
/// # Errors
/// The error of the failed call. An existing file is then unchanged, unless only the sync of the directory failed.
pub fn replace_file<T: Serialize>(dir: BorrowedFd<'_>, name: &str, value: &T) -> Result<()> {
    replace_bytes(dir, name, &to_bytes(value)?)
}

/// Like [`replace_file`], with these bytes.
pub(super) fn replace_bytes(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let new = format!("{name}.new");
    let _ = fs::unlinkat(dir, &new, AtFlags::empty());
    let written = write_bytes(dir, &new, bytes)
        .and_then(|()| rename(dir, &new, dir, name).context(|| format!("rename {new} to {name}")));
    if written.is_err() {
        let _ = fs::unlinkat(dir, &new, AtFlags::empty());
    }
    written?;
    fs::fsync(dir).context(|| "sync the directory")
}

/// Writes `value` as JSON to a new file and syncs it.
///
/// # Errors
/// `Invalid` when it would be larger than [`read_file`] reads; otherwise the error of the failed system call.
pub(in crate::pool) fn write_file<T: Serialize>(dir: BorrowedFd<'_>, name: &str, value: &T) -> Result<()> {
    write_bytes(dir, name, &to_bytes(value)?)
}

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let failed = |error| Error::caused(Kind::Internal, "serialize the record", error);
    let mut bytes = serde_json::to_vec_pretty(value).map_err(failed)?;
    bytes.push(b'\n');
    if bytes.len() as u64 > RECORD_MAX {
        bytes = serde_json::to_vec(value).map_err(failed)?;
    }
    if bytes.len() as u64 > RECORD_MAX {
        let text = format!(
            "the record would have {} bytes, more than {RECORD_MAX}: request fewer or shorter labels",
            bytes.len()
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(bytes)
}

/// Writes a new file and syncs it.
///
/// # Errors
/// The error of the failed system call.
pub(super) fn write_bytes(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).context(|| format!("create {name}"))?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).context(|| format!("write {name}"))?;
    file.sync_all().context(|| format!("sync {name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::volume::Volume;

    fn stored() -> Value {
        json!({
            "schema": 1, "uid": uuid::Uuid::nil(), "id": "p/v", "requestedName": "v", "size": 1,
            "owner": {"uid": 0, "gid": 0, "mode": "0700"}, "policy": {"onDelete": "retain", "trashFor": 0,
            "limit": "auto", "colour": "red"}, "labels": {"a": "1", "b": "2"},
            "created": "2026-01-02T03:04:05.6Z", "managed": true, "tags": ["x"],
        })
    }

    #[test]
    fn fields_of_a_newer_version_are_kept_when_a_record_is_rewritten() {
        let bytes = serde_json::to_vec(&stored()).unwrap();
        let mut volume: Volume = parse(&bytes).unwrap();
        volume.size = 2;
        volume.labels.remove("b");
        let merged = with_unknown_fields(&volume, &bytes).unwrap();
        assert_eq!(merged["tags"], json!(["x"]));
        assert_eq!(merged["policy"]["colour"], "red");
        assert_eq!(merged["policy"]["onDelete"], "retain");
        assert_eq!((&merged["size"], &merged["labels"]), (&json!(2), &json!({"a": "1"})));
        assert_eq!(merged["created"], "2026-01-02T03:04:05.6Z");
    }

    #[test]
    fn records_that_are_damaged_or_of_another_schema_are_unreadable() {
        let mut newer = stored();
        newer["schema"] = json!(2);
        newer["size"] = json!("changed");
        let error = parse::<Volume>(&serde_json::to_vec(&newer).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unreadable);
        assert!(error.chain().contains("schema 2"), "{error}");
        for damaged in ["", "{", "{}", "null", r#"{"schema": 0}"#, r#"{"schema": 1}"#] {
            assert_eq!(
                parse::<Volume>(damaged.as_bytes()).unwrap_err().kind(),
                Kind::Unreadable,
                "{damaged}"
            );
        }
    }

    #[test]
    fn a_file_larger_than_the_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        let write = |bytes: usize| std::fs::write(dir.path().join("f"), vec![b' '; bytes]).unwrap();
        write(64 << 10);
        assert_eq!(read_file(&open, "f").unwrap().unwrap().len(), 64 << 10);
        write((64 << 10) + 1);
        assert!(read_file(&open, "f").unwrap_err().chain().contains("larger than 65536"));
        assert!(read_file(&open, "missing").unwrap().is_none());
    }
}
