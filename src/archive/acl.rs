//! POSIX ACLs: the kernel's binary form, and the text that tar archives have.

use super::bad;
use crate::error::Result;

/// The name of the attribute with the ACL of a file.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The name of the attribute with the ACL that new entries of a directory get.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
/// Tags of the kernel, by their names. Those with `true` have the id of a user or group.
const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// The text of an ACL; `None` if it has none.
pub(super) fn to_text(acl: &[u8]) -> Option<String> {
    let (version, entries) = acl.split_first_chunk::<4>()?;
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    if u32::from_le_bytes(*version) != VERSION {
        return None;
    }
    let mut text = String::new();
    for [t0, t1, p0, p1, id @ ..] in entries {
        let tag = u16::from_le_bytes([*t0, *t1]);
        let (_, name, has_id) = TAGS.iter().find(|known| known.0 == tag)?;
        let id = if *has_id { u32::from_le_bytes(*id).to_string() } else { String::new() };
        let bits = u16::from_le_bytes([*p0, *p1]);
        let bit = |bit, name| if bits & bit != 0 { name } else { '-' };
        text.push_str(&format!("{name}:{id}:{}{}{}\n", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')));
    }
    Some(text)
}

/// Parses the text of an ACL, with numbers for users and groups, perhaps behind their names.
pub(super) fn from_text(text: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(text).map_err(|_| bad("an ACL is no text"))?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']).map(|entry| entry.split('#').next().unwrap_or("").trim()) {
        if !entry.is_empty() {
            entries.push(parse_entry(entry)?);
        }
    }
    // The kernel wants them in this order.
    entries.sort_unstable();
    let mut acl = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&bits.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    Ok(acl)
}

fn parse_entry(entry: &str) -> Result<(u16, u32, u16)> {
    let wrong = || bad(format!("the entry {:?} of an ACL is wrong", super::shown(entry.as_bytes())));
    let mut fields = entry.split(':');
    let name = fields.next().unwrap_or_default();
    let (who, permissions) = match (fields.next(), fields.next()) {
        (Some(who), Some(permissions)) => (who, permissions),
        // "mask:rwx" and "other:rwx".
        (Some(permissions), None) => ("", permissions),
        (None, _) => return Err(wrong()),
    };
    let name = match name {
        "u" => "user",
        "g" => "group",
        "m" => "mask",
        "o" => "other",
        name => name,
    };
    let has_id = !who.is_empty();
    let known = TAGS.iter().find(|known| known.1 == name && known.2 == has_id).ok_or_else(wrong)?;
    let id = match fields.next().unwrap_or(who) {
        "" => NO_ID,
        id => id.parse().map_err(|_| {
            let text =
                "an ACL has the name of a user or group, not its number: make the archive without --acls";
            bad(format!("{text} ({})", super::shown(entry.as_bytes())))
        })?,
    };
    let bits = permissions.chars().try_fold(0, |bits, char| match char {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    });
    Ok((known.0, id, bits.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_read_as_it_was_written() {
        let text = "user::rw-\nuser:1000:r-x\ngroup::r--\ngroup:7:rwx\nmask::rwx\nother::---\n";
        let acl = from_text(text.as_bytes()).unwrap();
        assert_eq!(to_text(&acl).unwrap(), text);
        let of_star = "user::rw-,user:joe:r-x:1000,group::r--,group:x:rwx:7,mask::rwx,other::---";
        assert_eq!(from_text(of_star.as_bytes()).unwrap(), acl);
        assert_eq!(to_text(b""), None);
    }

    #[test]
    fn a_wrong_acl_is_refused() {
        for text in ["user", "who::rwx", "user:joe:rwx", "mask:5:rwx", "other::rwz"] {
            assert!(from_text(text.as_bytes()).is_err(), "{text}");
        }
    }
}
