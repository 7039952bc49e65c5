//! The names of the pods of this host. Only their UIDs are in mount points and cgroups.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{self, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The directory in which kubelet makes `<namespace>_<name>_<uid>/` for each pod of the host. Only pods that have it as a hostPath
/// volume can change it: names are shown, and nothing is decided by them.
const LOGS: &str = "var/log/pods";
/// Maximum number of entries that are read. A kubelet runs some hundred pods, and keeps the logs of deleted ones for a while.
const MOST: usize = 16_384;

/// How long the names are waited for: they only make a message clearer.
const WAIT: Duration = Duration::from_millis(200);
/// Number of lookups that may wait for a filesystem that does not respond.
const MOST_LOOKUPS: usize = 4;

/// The name of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in the namespace.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// As [`names`]; empty if the filesystem of the host does not respond soon.
pub(super) fn names_soon(proc: &Path) -> BTreeMap<String, PodName> {
    static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
    let proc = proc.to_owned();
    soon(&LOOKUPS, move || names(&proc))
}

/// The result of a lookup in a thread of its own; the default if it is late, or too many others have not returned yet.
fn soon<T: Default + Send + 'static>(
    lookups: &'static AtomicUsize,
    look: impl FnOnce() -> T + Send + 'static,
) -> T {
    if lookups.fetch_add(1, Ordering::Relaxed) >= MOST_LOOKUPS {
        lookups.fetch_sub(1, Ordering::Relaxed);
        return T::default();
    }
    let (sender, found) = mpsc::channel();
    let run = move || {
        let result = look();
        lookups.fetch_sub(1, Ordering::Relaxed);
        drop(sender.send(result));
    };
    match thread::Builder::new().name("pod-names".to_owned()).spawn(run) {
        Ok(_) => found.recv_timeout(WAIT).unwrap_or_default(),
        Err(_) => {
            lookups.fetch_sub(1, Ordering::Relaxed);
            T::default()
        }
    }
}

/// The names of the pods of the host, by UID. Empty on a host without kubelet, and for a process that does not see the first
/// process of the host.
pub(super) fn names(proc: &Path) -> BTreeMap<String, PodName> {
    let mut found = BTreeMap::new();
    let Ok(entries) = open_logs(proc).and_then(|logs| Dir::read_from(&logs)) else { return found };
    for entry in entries.flatten().take(MOST) {
        let entry = entry.file_name().to_str().ok().and_then(parse);
        found.extend(entry);
    }
    found
}

/// Opens the directory as the first process sees it, so that a container with the PID namespace of the host finds it, too.
fn open_logs(proc: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open(proc.join("1/root"), flags | OFlags::PATH, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(root, LOGS, flags, Mode::empty(), inside)
}

/// The UID and the name in the name of a directory.
fn parse(entry: &str) -> Option<(String, PodName)> {
    let mut parts = entry.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let is_valid = parts.next().is_none()
        && is_name(namespace, 63, false)
        && is_name(name, 253, true)
        && is_name(uid, 64, false);
    is_valid.then(|| {
        let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
        (uid.to_owned(), pod)
    })
}

/// Whether a text can be a name in Kubernetes: lower-case letters, digits, `-` and perhaps `.`.
fn is_name(text: &str, longest: usize, may_have_dots: bool) -> bool {
    let is_valid = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || (may_have_dots && byte == b'.')
    };
    (1..=longest).contains(&text.len()) && text.bytes().all(is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6fd0a7-5d3c-4c3e-9d7c-2a8f1d1f0a11";

    #[test]
    fn a_host_that_does_not_respond_delays_a_lookup_briefly_and_occupies_few_threads() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let start = std::time::Instant::now();
        let senders: Vec<_> = (0..MOST_LOOKUPS + 10)
            .map(|_| {
                let (resume, resumed) = mpsc::channel::<()>();
                assert!(!soon(&LOOKUPS, move || resumed.recv().is_err()));
                resume
            })
            .collect();
        let waited = u32::try_from(MOST_LOOKUPS).unwrap() * WAIT;
        assert!(start.elapsed() < waited + 5 * WAIT, "those beyond the limit do not wait");
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), MOST_LOOKUPS);
        drop(senders);
        while LOOKUPS.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        assert!(soon(&LOOKUPS, || true), "it responds again");
    }

    #[test]
    fn a_pod_is_named_by_its_directory_of_logs() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(names(proc.path()), BTreeMap::new(), "the first process is not visible");
        let root = proc.path().join("1/root");
        std::fs::create_dir_all(&root).unwrap();
        assert_eq!(names(proc.path()), BTreeMap::new(), "no kubelet");
        // An absolute link leads to a directory of the host, and not of this process.
        let logs = root.join("data/pods");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::create_dir_all(root.join("var/log")).unwrap();
        std::os::unix::fs::symlink("/data/pods", root.join("var/log/pods")).unwrap();
        let long = "x".repeat(64);
        for entry in [
            format!("shop_web-0.a_{UID}"),
            "kube-system_etcd-n1_7f3c2a".to_owned(),
            format!("_web_{UID}x"),
            format!("{long}_web_long"),
            "shop_web_a_b".to_owned(),
            "shop_we\u{1b}b_c".to_owned(),
            "Shop_web_d".to_owned(),
            "shop_web".to_owned(),
            "shop_web_".to_owned(),
        ] {
            std::fs::create_dir(logs.join(entry)).unwrap();
        }
        let found = names(proc.path());
        let shown: Vec<_> = found.iter().map(|(uid, pod)| format!("{uid} {pod}")).collect();
        assert_eq!(shown, [format!("{UID} shop/web-0.a"), "7f3c2a kube-system/etcd-n1".to_owned()]);
    }
}
