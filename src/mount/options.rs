//! Mount options: parsed from a request or from the mount table, and converted to the kernel's flags.

use rustix::mount::MountFlags as MsFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::sys::mount_setattr::{self as attr, Change};

/// The mount options that a request may contain, for error messages.
const ALLOWED: &str = "ro rw suid nosuid dev nodev exec noexec atime noatime diratime nodiratime relatime \
                       strictatime symfollow nosymfollow";

/// When access times are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Atime {
    /// `relatime`, the kernel's default: if they are older than the last change or than a day.
    Relative,
    /// `noatime`.
    Never,
    /// `strictatime`: at every read.
    Strict,
}

/// The flags of one mount. A flag that is not set is inherited from the mount of the source: a request cannot allow
/// what the administrator forbids on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Writes through this mount fail.
    pub read_only: bool,
    /// Set-user-id bits, set-group-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be executed.
    pub noexec: bool,
    /// Symbolic links are not followed.
    pub nosymfollow: bool,
    /// Access times of directories are not updated.
    pub nodiratime: bool,
    /// When access times are updated; `None`: as on the mount of the source.
    pub atime: Option<Atime>,
}

impl Default for MountFlags {
    /// Writable, with `nosuid` and `nodev`: data needs neither set-user-id programs nor device nodes.
    fn default() -> Self {
        Self { nosuid: true, nodev: true, ..Self::NONE }
    }
}

impl MountFlags {
    /// No flags.
    pub(super) const NONE: Self = Self {
        read_only: false,
        nosuid: false,
        nodev: false,
        noexec: false,
        nosymfollow: false,
        nodiratime: false,
        atime: None,
    };

    /// Parses the mount options of a request. An element may contain several options, separated by commas. Of
    /// conflicting options the last one wins, as in mount(8). Options for mount(8) or systemd only are ignored.
    ///
    /// # Errors
    /// `Invalid` for an option that a bind mount does not have.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self> {
        let mut flags = Self::default();
        for option in options.iter().flat_map(|list| list.as_ref().split(',')).map(str::trim) {
            if !option.is_empty() && !flags.apply(option) && !is_userspace_option(option) {
                let text = format!(
                    "mount option `{option}` cannot be set for one volume; allowed: {ALLOWED}; parameters of NFS, such as \
                     nfsvers and nconnect, are settings of the pool (`version`, `options`) and hold for all its volumes"
                );
                return Err(Error::new(Kind::Invalid, text));
            }
        }
        Ok(flags)
    }

    /// Adds an option, or ignores it if it is for mount(8) or systemd only. Reports whether it is one of these: another one
    /// is a parameter of the filesystem.
    pub fn add(&mut self, option: &str) -> bool {
        self.apply(option) || is_userspace_option(option)
    }

    /// Returns the flags as the attributes of a new mount.
    #[must_use]
    pub fn attributes(self) -> u32 {
        u32::try_from(self.attr_change().set).unwrap_or_default()
    }

    /// Parses the options of a mount in the mount table. Ignores unknown options.
    #[must_use]
    pub fn from_table(options: &[u8]) -> Self {
        let mut flags = Self { atime: Some(Atime::Strict), ..Self::NONE };
        for option in options.split(|byte| *byte == b',') {
            let _is_known = std::str::from_utf8(option).is_ok_and(|option| flags.apply(option));
        }
        flags
    }

    /// Returns the flags of a mount with these flags whose source is on a mount with the flags `source`.
    #[must_use]
    pub fn inherit(self, source: Self) -> Self {
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

    /// Whether a mount with the flags `found` fulfils a request for these flags, whose source is on a mount with the flags
    /// `source`. What the request leaves open is not compared: the source may have been remounted since.
    #[must_use]
    pub fn is_fulfilled_by(self, found: Self, source: Self) -> bool {
        let is_same = |asked: bool, found: bool, source: bool| found == asked || found && source;
        let has = |asked: bool, found: bool| found || !asked;
        is_same(self.read_only, found.read_only, source.read_only)
            && is_same(self.nosuid, found.nosuid, source.nosuid)
            && is_same(self.nodev, found.nodev, source.nodev)
            && has(self.noexec, found.noexec)
            && has(self.nosymfollow, found.nosymfollow)
            && has(self.nodiratime, found.nodiratime)
            && self.atime.is_none_or(|atime| found.atime == Some(atime))
    }

    /// Applies one option; reports whether it is known.
    fn apply(&mut self, option: &str) -> bool {
        match option {
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

    /// Returns the change that gives a new clone these flags and makes it private.
    pub(super) fn attr_change(self) -> Change {
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

    /// Returns the flags as the `MS_*` flags of mount(2).
    pub(super) fn ms_flags(self) -> MsFlags {
        let bits = [
            (self.read_only, MsFlags::RDONLY),
            (self.nosuid, MsFlags::NOSUID),
            (self.nodev, MsFlags::NODEV),
            (self.noexec, MsFlags::NOEXEC),
            (self.nosymfollow, MsFlags::NOSYMFOLLOW),
            (self.nodiratime, MsFlags::NODIRATIME),
        ];
        let set = bits.iter().filter(|(on, _)| *on).fold(MsFlags::empty(), |set, (_, bit)| set | *bit);
        set | match self.atime {
            None => MsFlags::empty(),
            Some(Atime::Relative) => MsFlags::RELATIME,
            Some(Atime::Never) => MsFlags::NOATIME,
            Some(Atime::Strict) => MsFlags::STRICTATIME,
        }
    }
}

/// Reports whether an option is for mount(8), mount.nfs(8) or systemd and not for the kernel.
fn is_userspace_option(option: &str) -> bool {
    ["defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "bg", "fg"].contains(&option)
        || ["x-", "X-", "comment=", "retry="].iter().any(|prefix| option.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_and_the_last_one_wins() {
        let default = MountFlags::default();
        let cases: [(&[&str], MountFlags); 12] = [
            (&[], default),
            (&["", "defaults,_netdev", "x-systemd.automount", "comment=a,bg,retry=2"], default),
            (&["ro"], MountFlags { read_only: true, ..default }),
            (&["ro,rw"], default),
            (&["rw", "ro"], MountFlags { read_only: true, ..default }),
            (&["suid", "dev"], MountFlags { nosuid: false, nodev: false, ..default }),
            (&["suid,nosuid,dev, nodev"], default),
            (&["noexec,nosymfollow"], MountFlags { noexec: true, nosymfollow: true, ..default }),
            (&["noexec", "exec", "nosymfollow", "symfollow"], default),
            (&["noatime"], MountFlags { atime: Some(Atime::Never), ..default }),
            (&["noatime,atime"], MountFlags { atime: Some(Atime::Relative), ..default }),
            (
                &["strictatime,nodiratime"],
                MountFlags { nodiratime: true, atime: Some(Atime::Strict), ..default },
            ),
        ];
        for (options, flags) in cases {
            assert_eq!(MountFlags::parse(options).unwrap(), flags, "{options:?}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused_and_named() {
        for option in ["sync", "RO", "nfsvers=4", "uid=0", "ro rw", "bind", "remount", "é"] {
            let error = MountFlags::parse(&["noexec", option]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(&format!("`{option}`")), "{}", error.chain());
            assert!(error.chain().contains("nosymfollow"), "{}", error.chain());
        }
    }

    #[test]
    fn options_of_the_mount_table_are_parsed() {
        let flags = MountFlags::from_table(b"ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,idmapped");
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
        assert_eq!(MountFlags::from_table(b"rw").atime, Some(Atime::Strict));
        assert_eq!(MountFlags::from_table(b"rw,relatime").atime, Some(Atime::Relative));
    }
}
