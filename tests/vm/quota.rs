//! Project quotas of xfs and ext4, as the kernel enforces them.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use crate::common::disk::run;

const LIMIT: u64 = 8 << 20;

/// The filesystems with project quotas that `tests/vm/inside` has mounted.
fn each_filesystem(test: impl Fn(&Path)) {
    for kind in ["xfs", "ext4"] {
        test(&Path::new("/mnt").join(kind));
    }
}

/// Makes a directory in which this project is limited to 8 MiB.
fn limited_directory(filesystem: &Path, project: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(filesystem).unwrap();
    run("xfs_io", &["-c", &format!("chproj {project}"), "-c", "chattr +P", dir.path().to_str().unwrap()]);
    let limit = format!("limit -p bhard=8m ihard=100 {project}");
    run("xfs_quota", &["-f", "-x", "-c", &limit, filesystem.to_str().unwrap()]);
    dir
}

/// Runs a command with `sh` as a tenant runs it: root, but without the right to exceed quotas.
fn as_tenant(command: &str) -> String {
    run("setpriv", &["--bounding-set", "-sys_resource", "sh", "-c", command])
}

#[test]
fn a_writer_is_stopped_at_the_limit_of_its_project() {
    each_filesystem(|filesystem| {
        let dir = limited_directory(filesystem, "42");
        let file = dir.path().join("file");
        let report = as_tenant(&format!("head -c 20M /dev/zero 2>&1 >{} || true", file.display()));
        let stopped = report.contains("No space left") || report.contains("Disk quota exceeded");
        assert!(stopped, "{}: {report}", filesystem.display());
        let size = fs::metadata(&file).unwrap().len();
        assert!((LIMIT - (1 << 20)..=LIMIT).contains(&size), "{}: {size} bytes", filesystem.display());
        let beside = tempfile::tempdir_in(filesystem).unwrap();
        File::create(beside.path().join("file")).unwrap().write_all(&vec![1; 10 << 20]).unwrap();
    });
}

#[test]
fn a_project_is_stopped_at_its_number_of_files() {
    each_filesystem(|filesystem| {
        let dir = limited_directory(filesystem, "43");
        let create = "for n in $(seq 200); do true >$n || break; done 2>/dev/null; ls | wc -l";
        let made = as_tenant(&format!("cd {} && {create}", dir.path().display()));
        // The directory is one of them.
        assert_eq!(made, "99", "{}", filesystem.display());
    });
}

#[test]
fn statfs_shows_the_limit_of_a_project() {
    each_filesystem(|filesystem| {
        let dir = limited_directory(filesystem, "44");
        let shown = rustix::fs::statvfs(dir.path()).unwrap();
        assert_eq!(shown.f_blocks * shown.f_frsize, LIMIT, "{}", filesystem.display());
    });
}

#[test]
fn a_rename_into_another_project_is_refused() {
    each_filesystem(|filesystem| {
        let dir = limited_directory(filesystem, "45");
        let file = tempfile::NamedTempFile::new_in(filesystem).unwrap();
        let error = fs::rename(file.path(), dir.path().join("file")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CrossesDevices, "{}", filesystem.display());
    });
}
