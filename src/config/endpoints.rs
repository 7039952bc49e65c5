//! The settings of the sockets for Docker and Podman.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::flags::Serve;
use super::invalid;
use crate::docker::{Scope, Settings};
use crate::engine::request::PoolSettings;
use crate::error::{Context as _, Result};
use crate::socket;
use crate::volume::PoolName;

/// The sockets of the flags: `--docker` serves the pools of this host, and all if `--docker-global` is not given.
pub(super) fn docker(flags: &Serve, pools: &[PoolSettings]) -> Result<Vec<Settings>> {
    let (local, global) = (&flags.docker, &flags.docker_global);
    if local.is_none() && global.is_none() {
        return Ok(Vec::new());
    }
    let flag = if local.is_some() { "--docker" } else { "--docker-global" };
    if flags.no_pools {
        return Err(invalid(format!("--no-pools and {flag} are both given: use only one of them")));
    }
    let targets = plain("--docker-mounts", &flags.docker_mounts)?;
    let shares = plain("--docker-shares", &flags.docker_shares)?;
    let is_of_several_hosts = |pool: &&PoolSettings| pool.share.is_some() || pool.shared;
    let names = |chosen: Vec<&PoolSettings>| chosen.into_iter().map(|pool| pool.name.clone()).collect();
    let (common, own): (Vec<_>, Vec<_>) = pools.iter().partition(is_of_several_hosts);
    let mut endpoints = Vec::new();
    if let Some(text) = local {
        let pools = if global.is_some() { names(own) } else { names(pools.iter().collect()) };
        let socket = socket::parse_path(text).context(|| "--docker")?;
        let shares = Some(shares.join(socket.file_stem().unwrap_or_default()));
        endpoints.push(Settings { socket, targets: targets.clone(), pools, scope: Scope::Local, shares });
    }
    if let Some(text) = global {
        endpoints.push(global_endpoint(text, &targets, names(common))?);
    }
    match &endpoints[..] {
        [a, b] if a.socket == b.socket => {
            Err(invalid("--docker and --docker-global are the same socket: give each driver its own name"))
        }
        _ => Ok(endpoints),
    }
}

/// Its volumes may have the names of others, so they are mounted elsewhere.
fn global_endpoint(text: &str, targets: &Path, pools: Vec<PoolName>) -> Result<Settings> {
    if pools.is_empty() {
        let text = "--docker-global: no pool is on an NFS server or has `shared = true`: use --docker for pools of this host";
        return Err(invalid(text));
    }
    let socket = socket::parse_path(text).context(|| "--docker-global")?;
    let mut targets: OsString = targets.as_os_str().to_owned();
    targets.push("-global");
    Ok(Settings { socket, targets: targets.into(), pools, scope: Scope::Global, shares: None })
}

/// A directory whose path is compared with the paths of mounts.
fn plain(flag: &str, path: &Path) -> Result<PathBuf> {
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && is_plain {
        return Ok(path.components().collect());
    }
    Err(invalid(format!("{flag} is not an absolute path without \"..\"")))
}
