//! CSI requests that several tests send.

use std::collections::HashMap;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop::csi::proto::{CapacityRange, CreateVolumeRequest, VolumeCapability, VolumeContentSource};

pub(crate) const MIB: i64 = 1 << 20;

pub(crate) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A capability with filesystem access.
pub(crate) fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// A capability with block access, which orlop does not support.
pub(crate) fn block() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        ..capability(Mode::SingleNodeWriter)
    }
}

pub(crate) fn size(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

pub(crate) fn from_volume(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })) })
}

pub(crate) fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })) })
}

/// A valid request for a volume of 1 MiB.
pub(crate) fn create_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: size(MIB, 0),
        volume_capabilities: vec![capability(Mode::SingleNodeMultiWriter)],
        ..CreateVolumeRequest::default()
    }
}
