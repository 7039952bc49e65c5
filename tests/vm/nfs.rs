//! Two NFS clients of one server: the network namespaces `a` and `b`, which `tests/vm/inside` has made.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, c_int, c_short, flock};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::isolation::{in_own_mount_namespace, unmount_all};

/// Mounts the server's root on a host and opens this file there. The mount ends with the file.
fn open_on(host: &str, name: &str) -> File {
    let mut opened = None;
    in_own_mount_namespace(|| {
        let network = File::open(Path::new("/run/netns").join(host)).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // Without `soft`, a server that is gone would hold this test for ever.
        let options = CString::new("addr=10.80.0.1,vers=4.2,soft,timeo=300").unwrap();
        timed(&format!("mount on {host}"), || {
            mount("10.80.0.1:/", dir.path(), "nfs4", MountFlags::empty(), options.as_c_str()).unwrap();
        });
        let path = dir.path().join(name);
        opened =
            Some(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap());
        unmount_all(dir.path());
    });
    opened.unwrap()
}

/// Changes the lock of the first byte without waiting.
fn lock(file: &File, kind: c_int) -> Result<(), Errno> {
    #[expect(clippy::cast_possible_truncation, reason = "the constants are small, and the field is a short")]
    let range =
        flock { l_type: kind as c_short, l_whence: SEEK_SET as c_short, l_start: 0, l_len: 1, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop)
}

/// The time that a call takes, for the figures in tests/vm/README.md.
#[expect(clippy::print_stderr, reason = "the suite shows figures")]
fn timed<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    eprintln!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    result
}

#[test]
fn a_range_lock_of_one_client_excludes_the_other() {
    let (a, b) = (open_on("a", "lock"), open_on("b", "lock"));
    timed("first lock", || lock(&a, F_WRLCK)).unwrap();
    assert_eq!(timed("first conflict", || lock(&b, F_WRLCK)), Err(Errno::EAGAIN));
    assert_eq!(timed("next conflict", || lock(&b, F_WRLCK)), Err(Errno::EAGAIN));
    assert_eq!(lock(&b, F_RDLCK), Err(Errno::EAGAIN));
    lock(&a, F_UNLCK).unwrap();
    lock(&b, F_RDLCK).unwrap();
    lock(&a, F_RDLCK).unwrap();
    assert_eq!(lock(&a, F_WRLCK), Err(Errno::EAGAIN));
    // A process on the server sees the locks of the clients.
    let local = File::options().read(true).write(true).open("/mnt/xfs/lock").unwrap();
    assert_eq!(lock(&local, F_WRLCK), Err(Errno::EAGAIN));
    drop((a, b));
    lock(&local, F_WRLCK).unwrap();
}

#[test]
fn data_written_by_one_client_is_on_the_server_and_on_the_other_client() {
    let a = open_on("a", "data");
    a.write_all_at(b"written by a", 0).unwrap();
    a.sync_all().unwrap();
    assert_eq!(fs::read("/mnt/xfs/data").unwrap(), b"written by a");
    let mut seen = [0; 12];
    open_on("b", "data").read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"written by a");
}
