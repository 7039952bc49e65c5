//! Mounts an NFS share, as mount.nfs(8) would, but without it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::nfs::NfsShare;
use super::ping::{self, ping};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::namespace::MountNamespace;

/// How long the lookup of a server's name may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// A refused mount.
struct Refused {
    errno: Errno,
    error: Error,
}

impl NfsShare {
    /// Mounts the share in a namespace of its own. Its server's name is looked up, and the server asked whether it responds,
    /// each time: neither may be as it was.
    ///
    /// # Errors
    /// `Unavailable`, naming the server, when it is unknown or does not respond, or when it or the kernel refuses the mount.
    pub fn mount(&self) -> Result<MountNamespace> {
        let address = self.responding_address()?;
        let mut refused = None;
        for version in &self.versions {
            match self.mount_version(&address, version) {
                Ok(mount) => return MountNamespace::new(mount.as_fd()),
                Err(Refused { errno: Errno::PROTONOSUPPORT, error }) => refused = Some(error),
                Err(Refused { error, .. }) => return Err(error),
            }
        }
        let text =
            format!("the server {} has none of the NFS versions {}", self.server, self.versions.join(", "));
        let error = refused.unwrap_or_else(|| Error::new(Kind::Unavailable, "no version was tried"));
        Err(Error::caused(Kind::Unavailable, text, error))
    }

    /// Asks the server whether it responds, without a mount. Ends by itself. One that is not reached by TCP counts as
    /// responding if it has an address.
    ///
    /// # Errors
    /// `Unavailable`, naming the server, when it is unknown or does not respond.
    pub fn ping(&self) -> Result<()> {
        self.responding_address().map(drop)
    }

    fn responding_address(&self) -> Result<SocketAddr> {
        let addresses = resolve(&self.server, self.options.port())?;
        if !self.options.is_tcp() {
            return addresses.first().copied().ok_or_else(|| unknown(&self.server));
        }
        let version = if self.is_without_locks() { 3 } else { 4 };
        let mut failed = unknown(&self.server);
        for address in addresses {
            match ping(&address, version) {
                Ok(()) => return Ok(address),
                Err(error) => {
                    let seconds = ping::DEADLINE.as_secs();
                    let text = format!(
                        "the NFS server {} at {address} does not respond within {seconds} s: check that it runs and that \
                         a firewall lets this host reach it",
                        self.server
                    );
                    failed = Error::caused(Kind::Unavailable, text, error);
                }
            }
        }
        Err(failed)
    }

    /// Mounts it detached.
    fn mount_version(&self, address: &SocketAddr, version: &str) -> Result<OwnedFd, Refused> {
        let refused = |what: String, messages: &str, errno: Errno| {
            let text = if messages.is_empty() { what } else { format!("{what}: {messages}") };
            let error = Error::caused(Kind::Unavailable, text, std::io::Error::from(errno));
            Refused { errno, error }
        };
        let fs = fsopen("nfs", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| refused("this kernel has no NFS client (modprobe nfs)".to_owned(), "", errno))?;
        let set = |name: &str, value: Option<&str>| {
            let set = match value {
                Some(value) => fsconfig_set_string(&fs, name, value),
                None => fsconfig_set_flag(&fs, name),
            };
            set.map_err(|errno| refused(format!("the kernel refuses option `{name}`"), &messages(&fs), errno))
        };
        set("source", Some(&self.to_string()))?;
        set("addr", Some(&text_of(address)))?;
        set("vers", Some(version))?;
        if let Some(transport) = self.options.transport(address) {
            set("proto", Some(transport))?;
        }
        for (name, value) in self.options.parameters() {
            set(name, value)?;
        }
        let made = fsconfig_create(&fs).and_then(|()| {
            let flags = MountAttrFlags::from_bits_retain(self.options.flags.attributes());
            fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
        });
        made.map_err(|errno| {
            let next = match errno {
                Errno::NOENT => " (check that the path exists on the server)",
                Errno::ACCESS | Errno::PERM => " (check the exports of the server)",
                _ => "",
            };
            refused(format!("mount {self} with NFS {version}{next}"), &messages(&fs), errno)
        })
    }
}

/// The address of a server, without its port. An IPv6 address of a link keeps its interface.
fn text_of(address: &SocketAddr) -> String {
    match (address, address.ip()) {
        (SocketAddr::V6(v6), ip) if v6.scope_id() != 0 => format!("{ip}%{}", v6.scope_id()),
        (_, ip) => ip.to_string(),
    }
}

fn unknown(server: &str) -> Error {
    let text = format!("the NFS server {server} has no address: check the name and the name service");
    Error::new(Kind::Unavailable, text)
}

/// Looks a name up in a thread of its own: the name service may not respond.
fn resolve(server: &str, port: u16) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = server.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (send, receive) = mpsc::channel();
    let name = server.to_owned();
    let lookup = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let _ = send.send(found);
    };
    thread::Builder::new().name("lookup".to_owned()).spawn(lookup).context(|| "start a thread")?;
    let found = match receive.recv_timeout(LOOKUP) {
        Ok(found) => found,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
    };
    found.map_err(|error| {
        let text = format!("look up the NFS server {server}: check the name and the name service");
        Error::caused(Kind::Unavailable, text, error)
    })
}

/// What the kernel says about a mount that it refuses, without the letters that mark errors and warnings.
fn messages(fs: &OwnedFd) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(fs, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let message = text.trim_end();
        all.push(
            message
                .get(2..)
                .filter(|_| message.as_bytes().get(1) == Some(&b' '))
                .unwrap_or(message)
                .to_owned(),
        );
        if length == 0 || all.len() >= 8 {
            break;
        }
    }
    all.join("; ")
}
