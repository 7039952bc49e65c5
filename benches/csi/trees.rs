//! What is on the disk before a figure is taken: pools full of volumes, volumes full of files.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use orlop::volume::{Enforced, Labels, Owner, Policy, Timestamp, Volume};
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};

use crate::server::SIZE;

/// Files in one folder.
const FOLDER: usize = 1000;

/// A record as orlop writes it.
pub(crate) fn record(name: &str) -> Vec<u8> {
    let volume = Volume {
        schema: 1,
        id: format!("p/{name}").parse().unwrap(),
        requested_name: name.to_owned(),
        size: SIZE,
        enforced: Enforced::No,
        owner: Owner::default(),
        policy: Policy::default(),
        labels: Labels::new(),
        source: None,
        created: Timestamp::now(),
        managed: true,
        ephemeral: false,
    };
    serde_json::to_vec_pretty(&volume).unwrap()
}

/// Puts so many volumes into a pool that nobody serves.
pub(crate) fn volumes(pool: &Path, count: usize) {
    let folder = pool.join("volumes");
    fs::create_dir_all(&folder).unwrap();
    let folder = OwnedFd::from(File::open(&folder).unwrap());
    halves(count, |number| {
        let name = format!("pvc-{number:08}");
        mkdirat(&folder, &name, Mode::RWXU).unwrap();
        mkdirat(&folder, format!("{name}/data"), Mode::from_raw_mode(0o777)).unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let file = openat(&folder, format!("{name}/volume.json"), flags, Mode::RUSR | Mode::WUSR).unwrap();
        File::from(file).write_all(&record(&name)).unwrap();
    });
}

/// Fills a directory with files of `bytes` bytes, a thousand in a folder; one in a hundred is a symlink if they are
/// to be empty.
pub(crate) fn files(dir: &Path, count: usize, bytes: usize) {
    let contents = vec![b'x'; bytes];
    let top = OwnedFd::from(File::open(dir).unwrap());
    halves(count.div_ceil(FOLDER), |number| {
        let name = format!("folder-{number}");
        mkdirat(&top, &name, Mode::RWXU).unwrap();
        let folder = openat(&top, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for file in 0..FOLDER.min(count - number * FOLDER) {
            let name = format!("file-{file}");
            if bytes == 0 && file % 100 == 99 {
                symlinkat("nowhere", &folder, &name).unwrap();
                continue;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let made = openat(&folder, &name, flags, Mode::RUSR | Mode::WUSR).unwrap();
            if bytes > 0 {
                File::from(made).write_all(&contents).unwrap();
            }
        }
    });
}

/// Removes a tree with two threads: one would take as long as all the rest.
pub(crate) fn remove(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let rest = folders.split_off(folders.len() / 2);
    let each = |paths: Vec<std::path::PathBuf>| {
        for path in paths {
            if path.is_dir() {
                let _ = fs::remove_dir_all(path);
            } else {
                let _ = fs::remove_file(path);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| each(rest));
        each(folders);
    });
    let _ = fs::remove_dir(dir);
}

fn halves(count: usize, make: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        let make = &make;
        scope.spawn(move || (count / 2..count).for_each(make));
        (0..count / 2).for_each(make);
    });
}
