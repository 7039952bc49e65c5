//! The flags of a mount: as words of a request, as bits for the kernel, and as words of the mount table.

use rustix::mount::MountFlags as Classic;

use crate::error::{Error, Kind, Result};
use crate::sys::mount_setattr::{self as attr, Change};

/// What `mount_flags` may hold, for the text of an error.
const ALLOWED: &str = "ro rw suid nosuid dev nodev exec noexec atime noatime diratime nodiratime relatime \
                       strictatime symfollow nosymfollow";

/// The rule for access times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atime {
    /// Now and then (the kernel's own rule).
    Relative,
    /// Never.
    Never,
    /// At every read.
    Strict,
}

/// The flags of one mount. A flag that is set here is set on the mount; one that is not set here is as the source's
/// own mount has it, for what the administrator of a host forbids on a disk is not a request's to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountFlags {
    /// No write through this mount.
    pub read_only: bool,
    /// No set-user-id, set-group-id or file capabilities.
    pub nosuid: bool,
    /// No device nodes.
    pub nodev: bool,
    /// No programs.
    pub noexec: bool,
    /// No symbolic link is followed.
    pub nosymfollow: bool,
    /// No access times of directories.
    pub nodiratime: bool,
    /// Access times; `None` is as the source has it.
    pub atime: Option<Atime>,
}

impl Default for MountFlags {
    /// Writable, without set-user-id and without devices: what data needs.
    fn default() -> Self {
        Self { nosuid: true, nodev: true, ..Self::NONE }
    }
}

impl MountFlags {
    /// No flag at all.
    const NONE: Self = Self {
        read_only: false,
        nosuid: false,
        nodev: false,
        noexec: false,
        nosymfollow: false,
        nodiratime: false,
        atime: None,
    };

    /// Reads the `mount_flags` of a request. A word may hold several, joined by commas; of two that conflict the
    /// last holds, as in mount(8); words that only mean something in fstab are passed over.
    ///
    /// # Errors
    /// `Invalid` for a word that is not a flag of a bind mount.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self> {
        let mut flags = Self::default();
        for word in words.iter().flat_map(|words| words.as_ref().split(',')).map(str::trim) {
            if !word.is_empty() && !flags.take(word) && !is_for_fstab(word) {
                let text =
                    format!("mount flag `{word}` is not one of a directory volume; allowed: {ALLOWED}");
                return Err(Error::new(Kind::Invalid, text));
            }
        }
        Ok(flags)
    }

    /// Reads the options of a mount as the mount table has them.
    #[must_use]
    pub fn observed(options: &[u8]) -> Self {
        let mut flags = Self { atime: Some(Atime::Strict), ..Self::NONE };
        for word in options.split(|byte| *byte == b',') {
            let _known = std::str::from_utf8(word).is_ok_and(|word| flags.take(word));
        }
        flags
    }

    /// These flags on a mount whose source's own mount has `source`.
    #[must_use]
    pub fn over(self, source: Self) -> Self {
        Self {
            read_only: self.read_only || source.read_only,
            nosuid: self.nosuid || source.nosuid,
            nodev: self.nodev || source.nodev,
            noexec: self.noexec || source.noexec,
            nosymfollow: self.nosymfollow || source.nosymfollow,
            nodiratime: self.nodiratime || source.nodiratime,
            atime: self.atime.or(source.atime),
        }
    }

    /// Applies one word; false if it is not a flag.
    fn take(&mut self, word: &str) -> bool {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "nosymfollow" => self.nosymfollow = true,
            "symfollow" => self.nosymfollow = false,
            "nodiratime" => self.nodiratime = true,
            "diratime" => self.nodiratime = false,
            "noatime" => self.atime = Some(Atime::Never),
            "atime" | "relatime" => self.atime = Some(Atime::Relative),
            "strictatime" => self.atime = Some(Atime::Strict),
            _ => return false,
        }
        true
    }

    /// The change that gives a fresh clone these flags, and makes it private.
    pub(super) fn change(self) -> Change {
        let bits = [
            (self.read_only, attr::RDONLY),
            (self.nosuid, attr::NOSUID),
            (self.nodev, attr::NODEV),
            (self.noexec, attr::NOEXEC),
            (self.nosymfollow, attr::NOSYMFOLLOW),
            (self.nodiratime, attr::NODIRATIME),
        ];
        let set = bits.iter().filter(|(on, _)| *on).fold(0, |set, (_, bit)| set | bit);
        let (clear, atime) = match self.atime {
            None => (0, 0),
            Some(Atime::Relative) => (attr::ATIME, attr::RELATIME),
            Some(Atime::Never) => (attr::ATIME, attr::NOATIME),
            Some(Atime::Strict) => (attr::ATIME, attr::STRICTATIME),
        };
        Change { set: set | atime, clear, propagation: attr::PRIVATE }
    }

    /// The flags as mount(2) wants them.
    pub(super) fn classic(self) -> Classic {
        let bits = [
            (self.read_only, Classic::RDONLY),
            (self.nosuid, Classic::NOSUID),
            (self.nodev, Classic::NODEV),
            (self.noexec, Classic::NOEXEC),
            (self.nosymfollow, Classic::NOSYMFOLLOW),
            (self.nodiratime, Classic::NODIRATIME),
        ];
        let set = bits.iter().filter(|(on, _)| *on).fold(Classic::empty(), |set, (_, bit)| set | *bit);
        set | match self.atime {
            None => Classic::empty(),
            Some(Atime::Relative) => Classic::RELATIME,
            Some(Atime::Never) => Classic::NOATIME,
            Some(Atime::Strict) => Classic::STRICTATIME,
        }
    }
}

/// Whether a word says something to mount(8) or systemd, and nothing to the kernel.
fn is_for_fstab(word: &str) -> bool {
    ["defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser"].contains(&word)
        || ["x-", "X-", "comment="].iter().any(|prefix| word.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_flags_and_the_last_holds() {
        let plain = MountFlags::default();
        let cases: [(&[&str], MountFlags); 12] = [
            (&[], plain),
            (&["", "defaults,_netdev", "x-systemd.automount", "comment=a"], plain),
            (&["ro"], MountFlags { read_only: true, ..plain }),
            (&["ro,rw"], plain),
            (&["rw", "ro"], MountFlags { read_only: true, ..plain }),
            (&["suid", "dev"], MountFlags { nosuid: false, nodev: false, ..plain }),
            (&["suid,nosuid,dev, nodev"], plain),
            (&["noexec,nosymfollow"], MountFlags { noexec: true, nosymfollow: true, ..plain }),
            (&["noexec", "exec", "nosymfollow", "symfollow"], plain),
            (&["noatime"], MountFlags { atime: Some(Atime::Never), ..plain }),
            (&["noatime,atime"], MountFlags { atime: Some(Atime::Relative), ..plain }),
            (
                &["strictatime,nodiratime"],
                MountFlags { nodiratime: true, atime: Some(Atime::Strict), ..plain },
            ),
        ];
        for (words, flags) in cases {
            assert_eq!(MountFlags::parse(words).unwrap(), flags, "{words:?}");
        }
    }

    #[test]
    fn an_unknown_word_is_named() {
        for word in ["sync", "RO", "nfsvers=4", "uid=0", "ro rw", "bind", "remount", "é"] {
            let error = MountFlags::parse(&["noexec", word]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(&format!("`{word}`")), "{}", error.chain());
            assert!(error.chain().contains("nosymfollow"), "{}", error.chain());
        }
    }

    #[test]
    fn the_table_gives_back_what_was_set() {
        let flags = MountFlags::observed(b"ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,idmapped");
        assert_eq!(
            flags,
            MountFlags {
                read_only: true,
                nosuid: true,
                nodev: true,
                noexec: true,
                nosymfollow: true,
                nodiratime: true,
                atime: Some(Atime::Never),
            }
        );
        assert_eq!(MountFlags::observed(b"rw").atime, Some(Atime::Strict));
        assert_eq!(MountFlags::observed(b"rw,relatime").atime, Some(Atime::Relative));
    }
}
