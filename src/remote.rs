//! Shares of other hosts, mounted by the kernel without helper programs.

mod nfs;
mod nfs_client;
mod nfs_mount;
mod nfs_options;
mod nfs_static;
mod ping;

pub use nfs::NfsShare;
pub use nfs_client::NfsClient;
pub use nfs_static::check_network;
