//! System calls that rustix lacks, each behind a safe function: the only place with `unsafe`.

pub mod mount_setattr;
pub mod namespace;
pub mod probe;
