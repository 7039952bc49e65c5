//! System calls that rustix lacks, each behind a safe function. The only module that contains `unsafe`.

pub mod btrfs;
pub mod file_flags;
pub mod file_handle;
pub mod mappings;
pub mod mount_setattr;
pub mod namespace;
pub mod passed_file;
pub mod probe;
pub mod program_text;
pub mod project;
pub mod quota;
pub mod write_back;
