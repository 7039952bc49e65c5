//! Tests of real mounts, each in a mount namespace of its own.
//!
//! They are a binary of their own because an unmount fails while a process that is being started still has copies of
//! the descriptors of this one. `mount.rs` starts its processes under a lock.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod mounts {
    mod mount;
    mod pools;
    mod private;
    mod publish;
    mod used_locks;
}
