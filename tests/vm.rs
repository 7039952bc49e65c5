//! Tests that need a kernel with NFS and project quotas. Run by `make test-vm`, in the virtual machine of `tests/vm`,
//! where `tests/vm/inside` prepares filesystems, an NFS server and its clients.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod vm {
    mod agent;
    mod docker;
    mod limits;
    mod lossy;
    mod lost_replies;
    mod nfs;
    mod pools;
    mod quota;
    mod quota_faults;
    mod quota_kills;
    mod quota_pools;
    mod quota_storm;
    mod removal;
    mod shares;
    mod workers;
}
