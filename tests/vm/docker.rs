//! Shares of the NFS server that `tests/vm/inside` has started, as volumes of Docker.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use serde_json::json;

use crate::common::container::Program;
use crate::common::isolation::in_own_process;
use crate::common::plugin::Plugin;
use crate::common::wait::within_seconds;

const EXPORT: &str = "/mnt/xfs";
const SERVER: &str = "10.80.0.1";
/// An id as Docker makes it.
const ID: &str = "9c1185a5c5e9fc54612808977ee8f548b2258d319d4fb1cba7c9f3b6b4a0ee11";

#[test]
fn a_share_is_mounted_for_engines_and_its_server_keeps_everything() {
    in_own_process("vm::docker::a_share_is_mounted_for_engines_and_its_server_keeps_everything", || {
        let exported = Path::new(EXPORT).join("docker");
        fs::create_dir_all(&exported).unwrap();
        fs::write(exported.join("file"), "kept").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        rustix::mount::mount_bind(&base, &base).unwrap();
        rustix::mount::mount_change(&base, MountPropagationFlags::SHARED).unwrap();
        let mut plugin = Plugin::start(&base);
        let options = format!("addr={SERVER},rw,nfsvers=4.2,soft,timeo=300");
        let opts = json!({"type": "nfs", "o": options, "device": ":/docker"});
        plugin.ok("Create", &json!({"Name": "nas", "Opts": opts}));
        let mount = json!({"Name": "nas", "ID": ID});
        let at = PathBuf::from(plugin.ok("Mount", &mount)["Mountpoint"].as_str().unwrap());
        assert_eq!(at, base.join("mounts/nas").join(ID));
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "kept");
        fs::write(at.join("new"), "written").unwrap();
        File::open(at.join("new")).unwrap().sync_all().unwrap();

        // A restart, and the same request again.
        plugin.kill();
        plugin = Plugin::start(&base);
        assert_eq!(plugin.ok("Mount", &mount)["Mountpoint"], json!(at));
        // An emulated processor may need longer than Path and Get wait for what they tell.
        let path_tells_it = || {
            let (_, answer) = plugin.call("VolumeDriver.Path", &json!({"Name": "nas"}).to_string());
            answer["Mountpoint"] == json!(at)
        };
        within_seconds(60, "Path tells the mount", path_tells_it);
        plugin.ok("Mount", &json!({"Name": "nas", "ID": "other"}));
        plugin.ok("Unmount", &json!({"Name": "nas", "ID": "other"}));
        plugin.ok("Unmount", &json!({"Name": "nas", "ID": "other"}));
        assert!(at.join("file").exists() && !base.join("mounts/nas/other").exists());

        // A mount of the administrator's is no use of the volume; a container's is.
        let elsewhere = base.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        rustix::mount::mount_bind(&at, &elsewhere).unwrap();
        let script = format!(
            "exec unshare --mount --propagation private sh -ec 'mkdir {0}/c; mount --bind {1} {0}/c; echo ready; cat'",
            base.display(),
            at.display()
        );
        let container = Program::run(&script);
        let error = plugin.error("Remove", &json!({"Name": "nas"}));
        assert!(error.contains(&format!("nas is in use by process {}", container.pid())), "{error}");
        let get_names_it = || {
            let users = plugin.ok("Get", &json!({"Name": "nas"}))["Volume"]["Status"]["users"].clone();
            users[0].as_str().is_some_and(|user| user.contains("/c"))
        };
        within_seconds(60, "Get names the container", get_names_it);
        assert!(at.join("file").exists(), "nothing was unmounted");
        drop(container);
        plugin.ok("Remove", &json!({"Name": "nas"}));
        assert!(!base.join("mounts/nas").exists() && plugin.names().is_empty());
        rustix::mount::unmount(&elsewhere, UnmountFlags::empty()).unwrap();
        assert_eq!(fs::read_to_string(exported.join("file")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(exported.join("new")).unwrap(), "written");
        plugin.kill();
        rustix::mount::unmount(&base, UnmountFlags::DETACH).unwrap();
    });
}
