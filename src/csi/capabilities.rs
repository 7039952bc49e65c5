//! The capabilities that the driver advertises.

use super::proto::controller_service_capability::{self as controller, rpc::Type as C};
use super::proto::group_controller_service_capability::{self as group, rpc::Type as G};
use super::proto::node_service_capability::{self as node, rpc::Type as N};
use super::proto::plugin_capability::{self as plugin, service::Type as S, volume_expansion::Type as E};
use super::proto::{
    ControllerServiceCapability, GroupControllerServiceCapability, NodeServiceCapability, PluginCapability,
};

const CONTROLLER: [C; 13] = [
    C::CreateDeleteVolume,
    C::ListVolumes,
    C::GetCapacity,
    C::CreateDeleteSnapshot,
    C::ListSnapshots,
    C::GetSnapshot,
    C::CloneVolume,
    C::GetVolume,
    C::ModifyVolume,
    C::SingleNodeMultiWriter,
    C::GetVolumeHealth,
    C::ListVolumeHealth,
    C::ExpandVolume,
];

const NODE: [N; 5] =
    [N::GetVolumeStats, N::ExpandVolume, N::SingleNodeMultiWriter, N::GetVolumeHealth, N::GetStorageHealth];

/// Capabilities of the plugin: `VOLUME_ACCESSIBILITY_CONSTRAINTS` if its volumes have a topology.
pub(super) fn plugin(topology: bool) -> Vec<PluginCapability> {
    let service = |kind: S| plugin::Type::Service(plugin::Service { r#type: kind.into() });
    let online = plugin::Type::VolumeExpansion(plugin::VolumeExpansion { r#type: E::Online.into() });
    let constraints = topology.then(|| service(S::VolumeAccessibilityConstraints));
    let kinds = [service(S::ControllerService), service(S::GroupControllerService), online]
        .into_iter()
        .chain(constraints);
    kinds.map(|kind| PluginCapability { r#type: Some(kind) }).collect()
}

/// Capabilities of the controller. Without `EXPAND_VOLUME`, a resizer for the whole cluster leaves expansion to the
/// nodes.
pub(super) fn controller(expand: bool) -> Vec<ControllerServiceCapability> {
    let capability = |kind: C| {
        let rpc = controller::Rpc { r#type: kind.into() };
        ControllerServiceCapability { r#type: Some(controller::Type::Rpc(rpc)) }
    };
    CONTROLLER.into_iter().filter(|kind| expand || *kind != C::ExpandVolume).map(capability).collect()
}

/// Capabilities of the group controller.
pub(super) fn group_controller() -> Vec<GroupControllerServiceCapability> {
    let rpc = group::Rpc { r#type: G::CreateDeleteGetVolumeGroupSnapshot.into() };
    vec![GroupControllerServiceCapability { r#type: Some(group::Type::Rpc(rpc)) }]
}

/// Capabilities of the node.
pub(super) fn node() -> Vec<NodeServiceCapability> {
    let capability = |kind: N| {
        let rpc = node::Rpc { r#type: kind.into() };
        NodeServiceCapability { r#type: Some(node::Type::Rpc(rpc)) }
    };
    NODE.map(capability).into()
}
