//! Checks of single fields, each naming the field it refuses.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::proto;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{SizeRange, VolumeId, shorten};

/// The specification's bound of a string.
const TEXT: usize = 128;
/// The specification's bound of a map, keys and values together.
pub(super) const MAP: usize = 4096;
/// Linux's bound of a path, with its final NUL.
const PATH: usize = 4096;

/// A refusal of one field.
pub(super) fn refuse(field: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("{field} {why}"))
}

/// A field that must be there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| refuse(field, "is required"))
}

fn filled(field: &str, text: String) -> Result<String> {
    required(field, Some(text).filter(|text| !text.is_empty()))
}

/// A requested name: at most 128 bytes, without the control characters that the specification forbids.
pub(super) fn name(text: String) -> Result<String> {
    let text = filled("name", text)?;
    if text.len() > TEXT {
        return Err(refuse("name", "is longer than 128 bytes"));
    }
    // The specification bans these but for tab, newline and carriage return.
    if text.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err(refuse("name", &format!("{:?} has a control character", shorten(&text))));
    }
    Ok(text)
}

/// An id that must be there, as it was sent.
pub(super) fn raw_id(field: &str, text: String) -> Result<String> {
    filled(field, text)
}

/// The id of a volume or snapshot; one that does not parse is the id of nothing.
pub(super) fn id(field: &str, text: String) -> Result<VolumeId> {
    crate::telemetry::about(&text);
    filled(field, text)?.parse()
}

/// As [`id`], for the calls to which "does not exist" is no error: an id that does not parse is `None`.
pub(super) fn id_if_any(field: &str, text: String) -> Result<Option<VolumeId>> {
    match id(field, text) {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A path as the kernel takes it, relative or not.
pub(super) fn path(field: &str, text: String) -> Result<PathBuf> {
    let text = filled(field, text)?;
    if text.len() >= PATH || text.contains('\0') {
        return Err(refuse(field, "is longer than 4095 bytes or holds a NUL"));
    }
    Ok(PathBuf::from(text))
}

/// A path that something is to be made or removed at: absolute and without `..`.
pub(super) fn target(text: String) -> Result<PathBuf> {
    let path = path("target_path", text)?;
    let plain = |path: &Path| !path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || !plain(&path) || path.parent().is_none() {
        let shown = shorten(&path.to_string_lossy());
        return Err(refuse("target_path", &format!("{shown:?} is not an absolute path without '..'")));
    }
    Ok(path)
}

/// A map within the specification's 4 KiB.
pub(super) fn map(field: &str, map: &HashMap<String, String>) -> Result<()> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAP {
        return Err(refuse(field, &format!("holds {bytes} bytes; at most 4096 are allowed")));
    }
    Ok(())
}

/// The requested size. Without a range, any size is acceptable.
pub(super) fn size(range: Option<proto::CapacityRange>) -> Result<SizeRange> {
    let range = range.unwrap_or_default();
    let bytes = |field: &str, value: i64| {
        u64::try_from(value)
            .map_err(|_| Error::new(Kind::OutOfRange, format!("{field} is negative: {value}")))
    };
    let required = bytes("required_bytes", range.required_bytes)?;
    let limit = bytes("limit_bytes", range.limit_bytes)?;
    SizeRange::new(required, limit).context(|| format!("required_bytes {required}, limit_bytes {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "../etc", "ü/ñ", "a\tb", &"x".repeat(128)] {
            assert_eq!(name(good.to_owned()).unwrap(), good);
        }
        for bad in ["", "a\0", "a\u{1b}[m", "a\u{85}", "\u{7f}", &"x".repeat(129), &"ü".repeat(65)] {
            let error = name(bad.to_owned()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{bad:?}");
            assert!(error.chain().starts_with("name "), "{error}");
        }
    }

    #[test]
    fn ids() {
        let table = [("", Kind::Invalid), ("fake-vol-id", Kind::NotFound), ("../x/y", Kind::NotFound)];
        for (text, kind) in table {
            assert_eq!(id("volume_id", text.to_owned()).unwrap_err().kind(), kind, "{text:?}");
        }
        assert_eq!(id_if_any("volume_id", "fake".to_owned()).unwrap(), None);
        assert_eq!(id_if_any("volume_id", String::new()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn targets() {
        assert!(target(format!("/{}", "x".repeat(4094))).is_ok());
        for bad in ["", "a/b", "./a", "/a/../b", "/", "/a\0b", &format!("/{}", "x".repeat(4095))] {
            let error = target(bad.to_owned()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{bad:?}");
            assert!(error.chain().starts_with("target_path "), "{error}");
        }
    }

    #[test]
    fn maps_and_sizes() {
        let of = |bytes: usize| HashMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert!(map("parameters", &of(4096)).is_ok());
        assert_eq!(map("parameters", &of(4097)).unwrap_err().kind(), Kind::Invalid);
        let range = |required_bytes, limit_bytes| Some(proto::CapacityRange { required_bytes, limit_bytes });
        assert_eq!(size(None).unwrap(), SizeRange::default());
        for bad in [range(-1, 0), range(0, -1), range(2, 1), range(i64::MIN, i64::MAX)] {
            assert_eq!(size(bad).unwrap_err().kind(), Kind::OutOfRange, "{bad:?}");
        }
    }
}
