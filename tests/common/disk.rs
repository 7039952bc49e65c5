//! Filesystems in files, mounted by loop devices.
#![expect(clippy::disallowed_methods, reason = "makes and mounts a filesystem")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::wait::within_seconds;

/// Runs a program that must succeed, and returns its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The commands of `BTRFS_IOC_QUOTA_CTL`; btrfs-progs before 6.7 has no option for the second one.
pub(crate) const QUOTA_GROUPS: u64 = 1;
pub(crate) const SIMPLE_QUOTAS: u64 = 4;

/// Switches quotas of btrfs on; false if the kernel does not have them.
pub(crate) fn enable_quotas(pool: &Path, command: u64) -> bool {
    let script = "import fcntl, os, struct, sys
pool = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(pool, 0xc0109428, struct.pack('=QQ', int(sys.argv[2]), 0))";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(pool).arg(command.to_string()).status().unwrap().success()
}

/// A filesystem of its own, which is unmounted when this is dropped.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Makes a filesystem of this many MiB by a command like `mkfs.ext4 -m 0`, and mounts it at a new directory.
    pub(crate) fn new(path: &Path, mebibytes: u64, mkfs: &[&str]) -> Self {
        let image = path.with_extension("img");
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        let (program, options) = mkfs.split_first().unwrap();
        run(program, &[options, &["-q", image.to_str().unwrap()]].concat());
        fs::create_dir(path).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), path.to_str().unwrap()]);
        let _ = fs::remove_dir(path.join("lost+found"));
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Remounts it with these options, as soon as no file is open for writing.
    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let remount =
            || Command::new("mount").args(["-o", &options, self.text()]).status().unwrap().success();
        within_seconds(60, "the filesystem is remounted", remount);
    }

    /// Makes ext4 find an error.
    pub(crate) fn fail(&self) {
        let device = run("findmnt", &["--noheadings", "--output", "SOURCE", self.text()]);
        let device = Path::new(&device).file_name().unwrap();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(trigger, "injected").unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", self.text()]).status();
    }
}
