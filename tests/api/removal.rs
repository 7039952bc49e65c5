//! Removing what a filesystem lets a tenant make. Needs root, and filesystems on loop devices.
#![expect(clippy::disallowed_methods, reason = "a test may start programs")]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use orlop::fs::remove::{Slice, remove_tree};
use rustix::fs::FileType;

use super::trees::{make_node, make_symlink};
use crate::common::isolation::{in_own_process, skip};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a test in a process of its own, on a new filesystem: the mount ends with the process.
fn on_filesystem(test: &str, kind: &str, body: impl FnOnce(&Path)) {
    let mkfs = format!("mkfs.{kind}");
    if Command::new(&mkfs).arg("-V").output().is_err() {
        return skip(&format!("{mkfs} is not installed"));
    }
    in_own_process(test, || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let [image, at] = ["image", "mount"].map(|name| dir.path().join(name));
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        run(&mkfs, &["-q", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        body(&at);
        run("umount", &[at.to_str().unwrap()]);
    });
}

fn remove(parent: &Path, name: &str) {
    let (parent, stop) = (File::open(parent).unwrap(), AtomicBool::new(false));
    let slice = Slice { stop: &stop, length: Duration::MAX };
    let removed =
        remove_tree(parent.as_fd(), name, slice).unwrap_or_else(|error| panic!("{}", error.chain()));
    assert!(removed.complete);
}

#[test]
fn read_only_subvolumes_and_snapshots_of_a_tenant_are_removed() {
    let test = "api::removal::read_only_subvolumes_and_snapshots_of_a_tenant_are_removed";
    on_filesystem(test, "btrfs", |at| {
        let tenant = at.join("tenant");
        let path = |name: &str| tenant.join(name).to_str().unwrap().to_owned();
        fs::create_dir(&tenant).unwrap();
        run("btrfs", &["subvolume", "create", &path("outer")]);
        fs::create_dir_all(tenant.join("outer/deep/er")).unwrap();
        fs::write(tenant.join("outer/deep/er/file"), "x").unwrap();
        run("btrfs", &["subvolume", "create", &path("outer/deep/inner")]);
        fs::write(tenant.join("outer/deep/inner/file"), "x").unwrap();
        run("btrfs", &["subvolume", "create", &path("outer/empty")]);
        run("btrfs", &["subvolume", "snapshot", "-r", &path("outer"), &path("snapshot")]);
        for name in ["outer/deep/inner", "outer/empty", "outer"] {
            run("btrfs", &["property", "set", "-t", "subvol", &path(name), "ro", "true"]);
        }
        assert!(fs::write(tenant.join("outer/new"), "x").is_err(), "the subvolume is read-only");
        remove(at, "tenant");
        assert!(!tenant.exists());
    });
}

/// Sets the immutable flag by file_setattr(2). Prints the errno, which is 0 after a success.
const SET_IMMUTABLE: &str = "import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
attributes = ctypes.create_string_buffer(struct.pack('=QIIII', 8, 0, 0, 0, 0), 24)
failed = libc.syscall(469, -100, sys.argv[1].encode(), attributes, ctypes.c_size_t(24), 0x100)
print(ctypes.get_errno() if failed else 0)";

/// Reports whether the kernel can set the flag.
fn set_immutable(path: &Path) -> bool {
    let output = Command::new("python3").args(["-c", SET_IMMUTABLE]).arg(path).output().unwrap();
    let errno = String::from_utf8(output.stdout).unwrap();
    if errno.trim() == rustix::io::Errno::NOSYS.raw_os_error().to_string() {
        return false;
    }
    assert_eq!(errno.trim(), "0", "{}", path.display());
    true
}

#[test]
fn special_files_that_a_tenant_made_immutable_are_removed() {
    let test = "api::removal::special_files_that_a_tenant_made_immutable_are_removed";
    on_filesystem(test, "xfs", |at| {
        let tenant = at.join("tenant");
        fs::create_dir(&tenant).unwrap();
        let paths = ["fifo", "symlink", "device"].map(|name| tenant.join(name));
        make_node(&paths[0], FileType::Fifo, 0o600, (0, 0));
        make_symlink("nowhere", &paths[1]);
        make_node(&paths[2], FileType::CharacterDevice, 0o600, (1, 3));
        if !paths.iter().all(|path| set_immutable(path)) {
            return skip("file_setattr(2) needs Linux 6.17");
        }
        assert!(paths.iter().all(|path| fs::remove_file(path).is_err()), "the files are immutable");
        remove(at, "tenant");
        assert!(!tenant.exists());
    });
}
