//! Removal of trees over a slow link to an NFS server, by the client `a` that `tests/vm/inside` has made.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use orlop::fs::remove::{Slice, remove_tree};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::disk::run;
use crate::common::isolation::{in_own_mount_namespace, unmount_all};

/// On the server.
const EXPORT: &str = "/mnt/xfs";
const DIRECTORIES: usize = 24;
const FILES: usize = 10;

/// The link to the client with 10 ms of latency, until this is dropped.
struct SlowLink;

impl SlowLink {
    fn new() -> Self {
        run("modprobe", &["sch_netem"]);
        run("tc", &["qdisc", "add", "dev", "a", "root", "netem", "delay", "10ms"]);
        Self
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        run("tc", &["qdisc", "delete", "dev", "a", "root"]);
    }
}

/// Makes a tree on the server, without the link.
fn make_tree(name: &str) {
    for directory in 0..DIRECTORIES {
        let directory = Path::new(EXPORT).join(name).join(directory.to_string());
        fs::create_dir_all(&directory).unwrap();
        for file in 0..FILES {
            File::create(directory.join(file.to_string())).unwrap();
        }
    }
}

/// The shortest way for one thread: nothing but the removals, and the reading of the directories.
fn remove_by_one(tree: &Path) {
    for directory in fs::read_dir(tree).unwrap() {
        let directory = directory.unwrap().path();
        for file in fs::read_dir(&directory).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        fs::remove_dir(directory).unwrap();
    }
    fs::remove_dir(tree).unwrap();
}

#[test]
fn several_threads_remove_a_tree_at_least_three_times_faster_than_one() {
    make_tree("one");
    make_tree("several");
    let _slow = SlowLink::new();
    in_own_mount_namespace(|| {
        let network = File::open("/run/netns/a").unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = CString::new("addr=10.80.0.1,vers=4.2,soft,timeo=300").unwrap();
        mount("10.80.0.1:/", dir.path(), "nfs4", MountFlags::empty(), options.as_c_str()).unwrap();

        let began = Instant::now();
        remove_by_one(&dir.path().join("one"));
        let one = began.elapsed();
        let (parent, stop) = (File::open(dir.path()).unwrap(), AtomicBool::new(false));
        let began = Instant::now();
        let removed =
            remove_tree(parent.as_fd(), "several", Slice { stop: &stop, length: Duration::MAX }).unwrap();
        let several = began.elapsed();
        assert!(removed.complete && removed.entries == (1 + DIRECTORIES * (1 + FILES)) as u64, "{removed:?}");
        let ratio = one.as_secs_f64() / several.as_secs_f64();
        eprintln!(
            "{} files over a link with 10 ms: bare calls of one thread {one:?}, orlop {several:?}, {ratio:.1} times faster",
            DIRECTORIES * FILES
        );
        unmount_all(dir.path());
        assert!(ratio >= 3.0, "{ratio}");
    });
}
