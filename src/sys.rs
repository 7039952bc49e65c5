//! System calls that rustix lacks, each behind a safe function. The only module that contains `unsafe`.

pub mod file_flags;
pub mod mount_setattr;
pub mod namespace;
pub mod probe;
pub mod project;
pub mod write_back;
