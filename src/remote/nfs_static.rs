//! A share that a request names, with the options of mount.nfs(8).

use std::fs;

use super::nfs::NfsShare;
use crate::error::{Error, Kind, Result};
use crate::mount::MountFlags;

impl NfsShare {
    /// A share with mount options as for mount.nfs(8): the version may be among them. An element may contain several options.
    ///
    /// # Errors
    /// `Invalid`, naming the option.
    pub fn with_mount_options(server: &str, path: &str, options: &[String]) -> Result<Self> {
        let server = server.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(server);
        let (mut version, mut others) = (None, Vec::new());
        for option in options.iter().flat_map(|list| list.split(',')).map(str::trim) {
            match version_of(option) {
                Some(named) => version = Some(named),
                None => others.push(option),
            }
        }
        // Version 4 is the newest of its minor versions.
        let version = version.filter(|version| *version != "4");
        Self::new(server, path, &others.join(","), version)
    }

    /// The attributes of its mount.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        self.options.flags
    }
}

fn version_of(option: &str) -> Option<&str> {
    let value = option.strip_prefix("nfsvers=").or_else(|| option.strip_prefix("vers="));
    let short = || option.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    value.or_else(short)
}

/// Refuses to mount shares for other processes if this process has a network of its own, which ends with its pod. It is
/// noticed only with the process 1 of the host.
///
/// # Errors
/// `Unavailable`, with the remedy.
pub fn check_network() -> Result<()> {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match (network("1"), network("self")) {
        (Ok(host), Ok(own)) if host != own => {
            let text = "a mount of NFS would end with the network of this pod: use the driver nfs.orlop.dev, or run orlop \
                        with hostNetwork: true";
            Err(Error::new(Kind::Unavailable, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(options: &[&str]) -> Result<NfsShare> {
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        NfsShare::with_mount_options("nas", "/a", &options)
    }

    #[test]
    fn the_version_is_taken_from_the_options() {
        let versions = |options| share(options).unwrap().versions;
        for options in [&["nfsvers=4.1"], &["vers=4.1"], &["v4.1"], &["hard,nfsvers=4.1"]] {
            assert_eq!(versions(options), ["4.1"], "{options:?}");
        }
        assert_eq!(versions(&["hard", "nfsvers=3"]), ["3"]);
        assert_eq!(versions(&[]), versions(&["nfsvers=4"]));
        assert!(share(&["nfsvers=2"]).unwrap_err().chain().contains("\"2\""));
    }

    #[test]
    fn options_are_split_as_those_of_pools_are() {
        let share = share(&["ro", "nconnect=4,_netdev,bg", "suid"]).unwrap();
        assert!(share.flags().read_only && !share.flags().nosuid && share.flags().nodev);
        assert_eq!(share.options.parameters().collect::<Vec<_>>(), [("nconnect", Some("4"))]);
    }

    #[test]
    fn an_address_may_be_in_brackets() {
        let share = NfsShare::with_mount_options("[fd00::1]", "/a", &[]).unwrap();
        assert_eq!(share.to_string(), "[fd00::1]:/a");
    }

    #[test]
    fn the_network_of_the_tests_is_that_of_their_host() {
        check_network().unwrap();
    }
}
