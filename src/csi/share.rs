//! Static shares: PersistentVolumes that name a directory of an NFS server, with the attributes of csi-driver-nfs.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::params::EPHEMERAL;
use super::proto::NodePublishVolumeRequest;
use super::{access, fields};
use crate::engine::share::PublishShare;
use crate::error::{Context as _, Result};
use crate::remote::NfsShare;

/// Whether the `volume_context` of a publish names a share. An inline volume cannot be one: a pod would choose the server.
pub(super) fn is_share(context: &HashMap<String, String>) -> bool {
    attribute(context, "server").is_some() && context.get(EPHEMERAL).map(String::as_str) != Some("true")
}

/// Parses NodePublishVolume for a share. The attributes `mountPermissions` and `onDelete` have no effect, since orlop neither
/// changes nor deletes the directory.
pub(super) fn publish(request: NodePublishVolumeRequest) -> Result<PublishShare> {
    let id = fields::raw_id("volume_id", request.volume_id)?;
    let target = fields::target(request.target_path)?;
    fields::check_map("volume_context", &request.volume_context)?;
    let (options, sharing, read_only) = access::parse_share(request.volume_capability)?;
    let of = |name: &str| attribute(&request.volume_context, name).unwrap_or_default();
    let path = fields::required("volume attribute \"share\"", attribute(&request.volume_context, "share"))?;
    let share = NfsShare::with_mount_options(of("server"), path, &options).context(|| "static share")?;
    let mut flags = share.flags();
    flags.read_only |= read_only || request.readonly;
    Ok(PublishShare { id, share, directory: directory(of("subDir"))?, target, flags, sharing })
}

/// The value of an attribute. csi-driver-nfs ignores the case of their names.
fn attribute<'c>(context: &'c HashMap<String, String>, name: &str) -> Option<&'c str> {
    let mut found = context.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.as_str())
}

/// The directory below the share, as a relative path.
fn directory(text: &str) -> Result<PathBuf> {
    let path = Path::new(text.trim_matches('/'));
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.components().all(is_plain) && !text.contains('\0') {
        return Ok(path.to_owned());
    }
    Err(fields::invalid("volume attribute \"subDir\"", "must be a path without '..'"))
}

#[cfg(test)]
mod tests {
    use super::super::proto::VolumeCapability;
    use super::super::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    use super::*;
    use crate::error::Kind;

    type Pairs<'p> = &'p [(&'p str, &'p str)];

    fn request(attributes: Pairs<'_>, options: &[&str]) -> NodePublishVolumeRequest {
        let mount_flags = options.iter().map(|option| (*option).to_owned()).collect();
        NodePublishVolumeRequest {
            volume_id: "nas#export##".into(),
            target_path: "/t".into(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() })),
            }),
            volume_context: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NodePublishVolumeRequest::default()
        }
    }

    #[test]
    fn a_manifest_of_csi_driver_nfs_is_understood() {
        let attributes = [
            ("Server", "nas"),
            ("share", "/export"),
            ("subdir", "/a/b/"),
            ("mountPermissions", "0777"),
            ("onDelete", "delete"),
            ("csi.storage.k8s.io/pv/name", "pv"),
        ];
        let request = request(&attributes, &["nfsvers=4.1", "hard", "ro"]);
        assert!(is_share(&request.volume_context));
        let publish = publish(request).unwrap();
        assert_eq!(publish.share.to_string(), "nas:/export");
        assert_eq!(publish.directory, Path::new("a/b"));
        assert!(publish.flags.read_only && publish.flags.nodev);
    }

    #[test]
    fn a_wrong_attribute_is_named() {
        let cases: [(Pairs<'_>, &[&str], &str); 5] = [
            (&[("server", "nas")], &[], "\"share\" is required"),
            (&[("server", "a b"), ("share", "/a")], &[], "server"),
            (&[("server", "nas"), ("share", "a")], &[], "path"),
            (&[("server", "nas"), ("share", "/a"), ("subDir", "b/../../c")], &[], "subDir"),
            (&[("server", "nas"), ("share", "/a")], &["nfsvers=2"], "version"),
        ];
        for (attributes, options, expected) in cases {
            let error = publish(request(attributes, options)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
            assert!(error.chain().contains(expected), "{}", error.chain());
        }
    }

    #[test]
    fn an_inline_volume_is_no_share() {
        let request = request(&[("server", "nas"), ("share", "/a"), (EPHEMERAL, "true")], &[]);
        assert!(!is_share(&request.volume_context));
    }
}
