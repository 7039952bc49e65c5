//! Checks of single fields. Every error names its field.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::proto;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{SizeRange, VolumeId, shorten};

/// Maximum bytes of a string in the specification.
const MAX_TEXT: usize = 128;
/// Maximum bytes of a map in the specification, keys and values together.
pub(super) const MAX_MAP: usize = 4096;
/// Maximum bytes of a path on Linux, with its final NUL.
const MAX_PATH: usize = 4096;

/// Creates the error for a field; `reason` follows its name.
pub(super) fn invalid(field: &str, reason: &str) -> Error {
    Error::new(Kind::Invalid, format!("{field} {reason}"))
}

/// Checks that a field is present.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| invalid(field, "is required"))
}

fn not_empty(field: &str, text: String) -> Result<String> {
    required(field, Some(text).filter(|text| !text.is_empty()))
}

/// Checks a requested name: at most 128 bytes, without the control characters that the specification forbids.
pub(super) fn name(text: String) -> Result<String> {
    let text = not_empty("name", text)?;
    if text.len() > MAX_TEXT {
        return Err(invalid("name", "is longer than 128 bytes"));
    }
    // The specification allows these three.
    if text.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err(invalid("name", &format!("{:?} contains a control character", shorten(&text))));
    }
    Ok(text)
}

/// Checks that an id is present, without parsing it.
pub(super) fn raw_id(field: &str, text: String) -> Result<String> {
    not_empty(field, text)
}

/// Parses the id of a volume or snapshot, and adds it to the log. `NotFound`: no object can have this id.
pub(super) fn id(field: &str, text: String) -> Result<VolumeId> {
    crate::telemetry::record_volume_id(&text);
    not_empty(field, text)?.parse()
}

/// Like [`id`], but returns `None` for an id that no object can have. For calls that succeed without the object.
pub(super) fn possible_id(field: &str, text: String) -> Result<Option<VolumeId>> {
    match id(field, text) {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks a path, absolute or relative, against the limits of the kernel.
pub(super) fn path(field: &str, text: String) -> Result<PathBuf> {
    let text = not_empty(field, text)?;
    if text.len() >= MAX_PATH || text.contains('\0') {
        return Err(invalid(field, "is longer than 4095 bytes or contains a NUL"));
    }
    Ok(PathBuf::from(text))
}

/// Checks a path where a mount is made or removed: absolute and without `..`.
pub(super) fn target(text: String) -> Result<PathBuf> {
    let path = path("target_path", text)?;
    let has_parent_dir = |path: &Path| path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || has_parent_dir(&path) || path.parent().is_none() {
        let shown = shorten(&path.to_string_lossy());
        return Err(invalid("target_path", &format!("{shown:?} is not an absolute path without '..'")));
    }
    Ok(path)
}

/// Checks the size of a map.
pub(super) fn check_map(field: &str, map: &HashMap<String, String>) -> Result<()> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP {
        return Err(invalid(field, &format!("has {bytes} bytes; at most 4096 are allowed")));
    }
    Ok(())
}

/// Parses the requested size in bytes. Without a range, any size is acceptable.
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
    fn names_are_bounded_and_have_no_control_characters() {
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
    fn an_id_that_does_not_parse_does_not_exist() {
        let table = [("", Kind::Invalid), ("fake-vol-id", Kind::NotFound), ("../x/y", Kind::NotFound)];
        for (text, kind) in table {
            assert_eq!(id("volume_id", text.to_owned()).unwrap_err().kind(), kind, "{text:?}");
        }
        assert_eq!(possible_id("volume_id", "fake".to_owned()).unwrap(), None);
        assert_eq!(possible_id("volume_id", String::new()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn targets_are_absolute_paths_without_parent_directories() {
        assert!(target(format!("/{}", "x".repeat(4094))).is_ok());
        for bad in ["", "a/b", "./a", "/a/../b", "/", "/a\0b", &format!("/{}", "x".repeat(4095))] {
            let error = target(bad.to_owned()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{bad:?}");
            assert!(error.chain().starts_with("target_path "), "{error}");
        }
    }

    #[test]
    fn maps_are_bounded_and_sizes_are_checked() {
        let with_bytes = |bytes: usize| HashMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert!(check_map("parameters", &with_bytes(4096)).is_ok());
        assert_eq!(check_map("parameters", &with_bytes(4097)).unwrap_err().kind(), Kind::Invalid);
        let range = |required_bytes, limit_bytes| Some(proto::CapacityRange { required_bytes, limit_bytes });
        assert_eq!(size(None).unwrap(), SizeRange::default());
        for bad in [range(-1, 0), range(0, -1), range(2, 1), range(i64::MIN, i64::MAX)] {
            assert_eq!(size(bad).unwrap_err().kind(), Kind::OutOfRange, "{bad:?}");
        }
    }
}
