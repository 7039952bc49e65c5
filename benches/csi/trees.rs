//! Pools full of volumes and volumes full of files, made before a measurement.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};

use crate::server::TEMPLATE;

/// Files per directory.
const PER_DIRECTORY: usize = 1000;

/// Puts `count` volumes into a pool that no process serves. `record` is the record of the volume [`TEMPLATE`].
pub(crate) fn volumes(pool: &Path, record: &[u8], count: usize) {
    let volumes = OwnedFd::from(File::open(pool.join("volumes")).unwrap());
    let record = str::from_utf8(record).unwrap();
    on_two_threads(count, |number| {
        let name = format!("pvc-{number:08}");
        mkdirat(&volumes, &name, Mode::RWXU).unwrap();
        mkdirat(&volumes, format!("{name}/data"), Mode::from_raw_mode(0o777)).unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let file = openat(&volumes, format!("{name}/volume.json"), flags, Mode::RUSR | Mode::WUSR).unwrap();
        File::from(file).write_all(record.replace(TEMPLATE, &name).as_bytes()).unwrap();
    });
}

/// Fills a directory with `count` files of `bytes` bytes each. If the files are empty, one in a hundred is a symlink.
pub(crate) fn files(dir: &Path, count: usize, bytes: usize) {
    let contents = vec![b'x'; bytes];
    let top = OwnedFd::from(File::open(dir).unwrap());
    on_two_threads(count.div_ceil(PER_DIRECTORY), |number| {
        let name = format!("dir-{number}");
        mkdirat(&top, &name, Mode::RWXU).unwrap();
        let dir = openat(&top, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for file in 0..PER_DIRECTORY.min(count - number * PER_DIRECTORY) {
            let name = format!("file-{file}");
            if bytes == 0 && file % 100 == 99 {
                symlinkat("nowhere", &dir, &name).unwrap();
                continue;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = openat(&dir, &name, flags, Mode::RUSR | Mode::WUSR).unwrap();
            if bytes > 0 {
                File::from(file).write_all(&contents).unwrap();
            }
        }
    });
}

/// Removes a tree. Two threads halve the time, which would otherwise exceed that of the measurement.
pub(crate) fn remove(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut left: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let right = left.split_off(left.len() / 2);
    let remove_all = |paths: Vec<PathBuf>| {
        for path in paths {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| remove_all(right));
        remove_all(left);
    });
    let _ = fs::remove_dir(dir);
}

fn on_two_threads(count: usize, make: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        let make = &make;
        scope.spawn(move || (count / 2..count).for_each(make));
        (0..count / 2).for_each(make);
    });
}
