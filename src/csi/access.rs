//! Volume capabilities: the ones that a directory can have, and the mounts that they ask for.

use super::fields::{MAX_MAP, invalid, required};
use super::proto::VolumeCapability;
use super::proto::volume_capability::{AccessType, MountVolume, access_mode::Mode};
use crate::engine::request::Sharing;
use crate::error::Result;
use crate::mount::options::MountFlags;

/// The mount that a capability asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// Flags of the mount. Read-only for the modes without a writer.
    pub(super) flags: MountFlags,
    /// Number of targets that the volume may have at once.
    pub(super) sharing: Sharing,
}

/// Parses a required capability.
///
/// # Errors
/// `Invalid`, naming the field, if it is missing or a directory cannot have it.
pub(super) fn parse(capability: Option<VolumeCapability>) -> Result<Access> {
    let (mount, mode) = split(capability)?;
    if !mount.fs_type.is_empty() {
        return Err(invalid(
            "volume_capability.mount.fs_type",
            "must be empty: a directory has the filesystem of its pool; remove csi.storage.k8s.io/fstype",
        ));
    }
    let (sharing, read_only) = sharing(mode)?;
    let mut flags = MountFlags::parse(&mount.mount_flags)?;
    flags.read_only |= read_only;
    Ok(Access { flags, sharing })
}

/// Parses the capability of a share: the mount options, which are those of mount.nfs(8), the number of targets, and whether
/// it is read-only.
pub(super) fn parse_share(capability: Option<VolumeCapability>) -> Result<(Vec<String>, Sharing, bool)> {
    let (mount, mode) = split(capability)?;
    if !matches!(mount.fs_type.as_str(), "" | "nfs" | "nfs4") {
        return Err(invalid("volume_capability.mount.fs_type", "must be empty or nfs"));
    }
    let (sharing, read_only) = sharing(mode)?;
    Ok((mount.mount_flags, sharing, read_only))
}

/// Splits a capability into its mount and its mode.
fn split(capability: Option<VolumeCapability>) -> Result<(MountVolume, i32)> {
    let capability = required("volume_capability", capability)?;
    let mode = required("volume_capability.access_mode", capability.access_mode)?.mode;
    let mount = match required("volume_capability.access_type", capability.access_type)? {
        AccessType::Mount(mount) => mount,
        AccessType::Block(_) => {
            return Err(invalid(
                "volume_capability.block",
                "is not supported: volumes are directories; set volumeMode: Filesystem",
            ));
        }
    };
    if !mount.volume_mount_group.is_empty() {
        return Err(invalid(
            "volume_capability.mount.volume_mount_group",
            "is not supported: this driver does not advertise VOLUME_MOUNT_GROUP; use fsGroup",
        ));
    }
    if mount.mount_flags.iter().map(String::len).sum::<usize>() > MAX_MAP {
        return Err(invalid("volume_capability.mount.mount_flags", "are longer than 4096 bytes"));
    }
    Ok((mount, mode))
}

/// Parses a list of capabilities, which must not be empty.
pub(super) fn parse_all(capabilities: Vec<VolumeCapability>) -> Result<Vec<Access>> {
    if capabilities.is_empty() {
        return Err(invalid("volume_capabilities", "is required"));
    }
    capabilities.into_iter().map(|capability| parse(Some(capability))).collect()
}

/// The meaning of an access mode: the number of targets on this node, and whether they are read-only.
///
/// An orchestrator that ignores the driver's `SINGLE_NODE_MULTI_WRITER` capability sends `SINGLE_NODE_WRITER`, and the
/// specification requires that a second target of that mode is refused.
fn sharing(mode: i32) -> Result<(Sharing, bool)> {
    match Mode::try_from(mode).unwrap_or(Mode::Unknown) {
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter => Ok((Sharing::OneTarget, false)),
        Mode::SingleNodeReaderOnly => Ok((Sharing::OneTarget, true)),
        Mode::SingleNodeMultiWriter | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
            Ok((Sharing::ManyTargets, false))
        }
        Mode::MultiNodeReaderOnly => Ok((Sharing::ManyTargets, true)),
        Mode::Unknown => Err(invalid("volume_capability.access_mode", &format!("{mode} is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::volume_capability::{AccessMode, BlockVolume};
    use super::*;
    use crate::error::Kind;

    fn capability(mode: Mode, mount: MountVolume) -> Option<VolumeCapability> {
        Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        })
    }

    #[test]
    fn each_access_mode_has_its_sharing_and_flags() {
        let table = [
            (Mode::SingleNodeWriter, Sharing::OneTarget, false),
            (Mode::SingleNodeReaderOnly, Sharing::OneTarget, true),
            (Mode::SingleNodeSingleWriter, Sharing::OneTarget, false),
            (Mode::SingleNodeMultiWriter, Sharing::ManyTargets, false),
            (Mode::MultiNodeReaderOnly, Sharing::ManyTargets, true),
            (Mode::MultiNodeSingleWriter, Sharing::ManyTargets, false),
            (Mode::MultiNodeMultiWriter, Sharing::ManyTargets, false),
        ];
        for (mode, sharing, read_only) in table {
            let access = parse(capability(mode, MountVolume::default())).unwrap();
            assert_eq!((access.sharing, access.flags.read_only), (sharing, read_only), "{mode:?}");
        }
    }

    #[test]
    fn unsupported_capabilities_are_refused_by_field() {
        let mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
        let mount = || Some(AccessType::Mount(MountVolume::default()));
        let with = |mount| capability(Mode::SingleNodeWriter, mount);
        let cases = [
            ("volume_capability is", None),
            ("access_mode is", Some(VolumeCapability { access_mode: None, access_type: mount() })),
            ("access_type is", Some(VolumeCapability { access_mode: mode, access_type: None })),
            ("access_mode 0", capability(Mode::Unknown, MountVolume::default())),
            (
                "access_mode 99",
                Some(VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), access_type: mount() }),
            ),
            (
                "volumeMode: Filesystem",
                Some(VolumeCapability {
                    access_mode: mode,
                    access_type: Some(AccessType::Block(BlockVolume {})),
                }),
            ),
            ("fs_type", with(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() })),
            (
                "volume_mount_group",
                with(MountVolume { volume_mount_group: "7".into(), ..MountVolume::default() }),
            ),
            (
                "mount_flags",
                with(MountVolume { mount_flags: vec!["x".repeat(4097)], ..MountVolume::default() }),
            ),
            ("bogus", with(MountVolume { mount_flags: vec!["bogus".into()], ..MountVolume::default() })),
        ];
        for (expected, unsupported) in cases {
            let error = parse(unsupported).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{expected}");
            assert!(error.chain().contains(expected), "{expected}: {error}");
        }
        assert!(parse_all(Vec::new()).unwrap_err().chain().starts_with("volume_capabilities "));
    }
}
