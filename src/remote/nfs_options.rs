//! The options of an NFS share: attributes of the mount, parameters of NFS, and words for mount(8), which are dropped.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::mount::options::MountFlags;

/// Parameters that orlop sets itself.
const OWN: [&str; 8] = ["vers", "nfsvers", "minorversion", "v3", "v4", "addr", "mountaddr", "source"];

/// The options of a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NfsOptions {
    /// Attributes of the mount.
    pub(super) flags: MountFlags,
    /// What the kernel's NFS client gets, as it is: it knows which parameters exist.
    parameters: Vec<String>,
}

impl NfsOptions {
    /// Parses a list as in fstab(5).
    pub(super) fn parse(list: &str) -> Result<Self> {
        let mut options = Self { flags: MountFlags::default(), parameters: Vec::new() };
        for option in list.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let name = name(option);
            if OWN.contains(&name) {
                let text =
                    format!("option {option:?} is set by orlop: use the settings `version` and `server`");
                return Err(Error::new(Kind::Invalid, text));
            }
            if option.contains(char::is_control) {
                return Err(Error::new(Kind::Invalid, format!("option {option:?} has a control character")));
            }
            if !options.flags.add(option) {
                options.parameters.push(option.to_owned());
            }
        }
        Ok(options)
    }

    pub(super) fn add(&mut self, parameter: &str) {
        self.parameters.push(parameter.to_owned());
    }

    /// The parameters and their values.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.parameters.iter().map(|option| match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        })
    }

    /// The transport to this address; `None` if an option names it.
    pub(super) fn transport(&self, address: &SocketAddr) -> Option<&'static str> {
        let is_named = self.parameters().any(|(name, _)| matches!(name, "proto" | "tcp" | "udp" | "rdma"));
        (!is_named).then_some(if address.is_ipv6() { "tcp6" } else { "tcp" })
    }

    /// The port of the server, and whether it is reached by TCP.
    pub(super) fn port(&self) -> u16 {
        let port =
            self.parameters().find(|(name, _)| *name == "port").and_then(|(_, port)| port?.parse().ok());
        // 0 asks the server's portmapper.
        port.filter(|port| *port != 0).unwrap_or(2049)
    }

    /// Whether the server is reached by TCP, so that it can be asked whether it responds.
    pub(super) fn is_tcp(&self) -> bool {
        !self.parameters().any(|(name, value)| {
            matches!(name, "rdma" | "udp")
                || name == "proto" && value.is_some_and(|value| !value.starts_with("tcp"))
        })
    }
}

fn name(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_for_the_mount_for_nfs_or_dropped() {
        let text =
            "noatime, hard,nconnect=4,bg,retry=2,_netdev,auto,nofail,x-systemd.automount,noexec,sec=krb5p";
        let options = NfsOptions::parse(text).unwrap();
        assert!(options.flags.noexec && options.flags.nodev && options.flags.nosuid);
        let parameters: Vec<_> = options.parameters().collect();
        assert_eq!(parameters, [("hard", None), ("nconnect", Some("4")), ("sec", Some("krb5p"))]);
    }

    #[test]
    fn an_option_that_orlop_sets_is_refused() {
        for option in ["vers=4", "nfsvers=3", "minorversion=1", "addr=10.0.0.1", "source=a:/b"] {
            let error = NfsOptions::parse(&format!("hard,{option}")).unwrap_err();
            assert!(error.chain().contains(option), "{}", error.chain());
        }
    }

    #[test]
    fn the_transport_follows_the_address_and_the_options() {
        let (four, six) = ("10.0.0.1:2049".parse().unwrap(), "[::1]:2049".parse().unwrap());
        let options = |text| NfsOptions::parse(text).unwrap();
        assert_eq!(options("").transport(&four), Some("tcp"));
        assert_eq!(options("").transport(&six), Some("tcp6"));
        assert_eq!(options("proto=rdma").transport(&four), None);
        assert!(!options("proto=rdma").is_tcp() && options("proto=tcp6").is_tcp() && options("").is_tcp());
        assert_eq!((options("port=111").port(), options("port=0").port()), (111, 2049));
    }
}
