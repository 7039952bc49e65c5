//! What an NFS server takes this host for.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the kernel has the identifier of a network namespace, below the root of sysfs.
const IDENTIFIER: &str = "fs/nfs/net/nfs_client/identifier";

/// The NFS client of a network of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsClient {
    /// What tells it from others: the identifier that an administrator has set, and the host name. The server takes two
    /// hosts that have the same for one, and gives each the locks of the other.
    pub identity: String,
    /// The number of its network namespace, among those of a boot.
    pub network: u64,
}

impl NfsClient {
    /// The client of the network of this thread. An identifier that cannot be read counts as empty.
    #[must_use]
    pub fn own() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let identity = format!("{}/{host}", identifier().unwrap_or_default().trim());
        let network = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |network| network.ino());
        Self { identity, network }
    }
}

/// The identifier as a sysfs that is mounted now shows it: one that is mounted already may be that of another network.
fn identifier() -> Option<String> {
    let of_this_network = sysfs().and_then(|root| {
        let file = openat(&root, IDENTIFIER, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(std::io::read_to_string(std::fs::File::from(file)))
    });
    let set = of_this_network.unwrap_or_else(|_| std::fs::read_to_string(format!("/sys/{IDENTIFIER}"))).ok();
    let set = set.filter(|text| !text.trim().is_empty() && text.trim() != "(null)");
    set.or_else(|| std::fs::read_to_string("/sys/module/nfs/parameters/nfs4_unique_id").ok())
}

fn sysfs() -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}
