//! Copying and removing real trees: unusual, random and huge ones, and trees that change at the same time. Needs root.
#![expect(clippy::disallowed_methods, reason = "a test may start programs, and wait")]
#![expect(clippy::print_stderr, reason = "prints figures for the log")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Kind, Result};
use orlop::fs::copy::{Manifest, Progress, copy_tree};
use orlop::fs::remove::{Removed, Slice, remove_tree};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, mkdirat, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::trees::{
    self, Facts, acl, facts, make_node, make_sparse, make_symlink, set_mode, set_times, set_xattr,
};
use crate::common::isolation::{in_own_mount_namespace, in_own_process, is_root};
use crate::common::wait::{StopOnDrop, sleep_ms};

/// A temporary directory with the empty directories `from` and `to`. It is on the filesystem of the build, or in
/// `ORLOP_TEST_DIR`.
pub(crate) fn workspace() -> TempDir {
    let parent = std::env::var_os("ORLOP_TEST_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let dir = tempfile::tempdir_in(parent).unwrap();
    set_mode(dir.path(), 0o700);
    for name in ["from", "to"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    dir
}

fn copy(from: &Path, to: &Path, progress: &Progress) -> Result<Manifest> {
    let (from, to) = (File::open(from).unwrap(), File::open(to).unwrap());
    copy_tree(from.as_fd(), to.as_fd(), progress)
}

fn remove(parent: &Path, name: &str) -> Result<u64> {
    let parent = File::open(parent).unwrap();
    let removed = remove_tree(parent.as_fd(), name, slice(&AtomicBool::new(false)))?;
    assert!(removed.complete, "nothing ends this removal early");
    Ok(removed.entries)
}

/// A slice that ends when `stop` is set.
fn slice(stop: &AtomicBool) -> Slice<'_> {
    Slice { stop, length: Duration::MAX }
}

/// Copies `from` to `to`, checks that nothing differs, removes the copy, and checks that nothing is left.
fn check_copy(workspace: &Path) {
    let (from, to) = (workspace.join("from"), workspace.join("to"));
    let before = facts(&from);
    let progress = Progress::default();
    let manifest = copy(&from, &to, &progress).unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_same(&before, &facts(&to));
    assert_same(&before, &facts(&from));
    let entries = u64::try_from(before.len()).unwrap() - 1;
    assert_eq!((manifest.entries, manifest.skipped_xattrs), (entries, 0));
    assert_eq!(progress.entries(), entries);
    let size = |facts: &Facts| facts.data.as_ref().map_or(0, |data| u64::try_from(data.len()).unwrap());
    if before.values().all(|facts| facts.data.as_ref().is_none_or(|data| !data.is_empty())) {
        assert_eq!(manifest.bytes, before.values().map(size).sum::<u64>());
    }
    assert_eq!(remove(workspace, "to").unwrap(), entries + 1);
    assert!(!to.exists());
    assert_eq!(remove(workspace, "to").unwrap(), 0, "removing a missing tree succeeds");
}

pub(crate) fn assert_same(expected: &BTreeMap<PathBuf, Facts>, actual: &BTreeMap<PathBuf, Facts>) {
    let names = |facts: &BTreeMap<PathBuf, _>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(actual));
    for (path, expected) in expected {
        let actual = &actual[path];
        assert_eq!(
            expected.without_data(actual),
            actual.without_data(expected),
            "attributes of {}",
            path.display()
        );
        assert!(expected.data == actual.data, "data of {}", path.display());
    }
}

#[test]
fn unusual_trees_are_copied_as_by_cp() {
    if !is_root() {
        return;
    }
    for (name, make) in trees::UNUSUAL {
        eprintln!("tree: {name}");
        let workspace = workspace();
        let from = workspace.path().join("from");
        make(&from);
        let before = facts(&from);
        check_copy(workspace.path());
        let by_cp = workspace.path().join("cp");
        assert!(Command::new("cp").arg("-a").args([&from, &by_cp]).status().unwrap().success());
        // cp fills the hole of a small file.
        let without_holes = |facts: BTreeMap<PathBuf, Facts>| {
            facts.into_iter().map(|(path, facts)| (path, facts.without_holes())).collect()
        };
        assert_same(&without_holes(before), &without_holes(facts(&by_cp)));
    }
}

#[test]
fn attributes_of_the_destination_are_not_inherited() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
    fs::create_dir(from.join("directory")).unwrap();
    fs::write(from.join("directory/file"), "x").unwrap();
    set_xattr(&to, "system.posix_acl_default", &acl(1));
    set_xattr(&to, "system.posix_acl_access", &acl(2));
    set_mode(&to, 0o2777);
    check_copy(workspace.path());
}

#[test]
fn a_copy_to_another_filesystem_is_the_same() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let workspace = workspace();
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        fs::write(from.join("small"), "x").unwrap();
        fs::write(from.join("big"), vec![b'z'; 3 << 20]).unwrap();
        make_sparse(&from.join("sparse"), 1 << 20, &[(0, 4096), (1 << 19, 4096)]);
        fs::hard_link(from.join("small"), from.join("again")).unwrap();
        set_xattr(&from.join("big"), "trusted.a", b"b");
        tmpfs(&to, "size=16m");
        let before = facts(&from);
        copy(&from, &to, &Progress::default()).unwrap();
        assert_same(&before, &facts(&to));
    });
}

/// One entry of a random tree.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    parent: usize,
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    parts: Vec<(u64, usize)>,
    tail: u64,
    xattr: Option<Vec<u8>>,
    acl: bool,
}

pub(crate) fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let part = (0_u64..64, 1_usize..3000).prop_map(|(block, length)| (block * 4096, length));
    let entry = (
        any::<usize>(),
        0_u8..8,
        0_u32..0o10000,
        (0_u32..70_000, 0_u32..70_000),
        (-1_000_000_i64..9_000_000_000, 0_i64..1_000_000_000),
        (prop::collection::vec(part, 0..4), 0_u64..300_000),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        any::<bool>(),
    );
    let entry = entry.prop_map(|(parent, kind, mode, owner, mtime, (parts, tail), xattr, acl)| Entry {
        parent,
        kind,
        mode,
        owner,
        mtime,
        parts,
        tail,
        xattr,
        acl,
    });
    prop::collection::vec(entry, 0..60)
}

pub(crate) fn make_tree(root: &Path, entries: &[Entry]) {
    let mut directories = vec![root.to_owned()];
    let mut others = Vec::new();
    let mut made = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let path = directories[entry.parent % directories.len()].join(format!("n{at}"));
        match entry.kind {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            3 if !others.is_empty() => {
                let first: &PathBuf = &others[entry.parent % others.len()];
                fs::hard_link(first, &path).unwrap();
                continue;
            }
            4 => {
                make_symlink(format!("n{}", entry.parent % 60), &path);
                std::os::unix::fs::lchown(&path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
                continue;
            }
            5 => make_node(&path, FileType::Fifo, 0o600, (0, 0)),
            _ => {
                let end = entry.parts.iter().map(|(start, length)| start + u64::try_from(*length).unwrap());
                make_sparse(&path, end.max().unwrap_or(0) + entry.tail, &entry.parts);
            }
        }
        if entry.kind > 2 {
            others.push(path.clone());
        }
        made.push((path, entry));
    }
    for (path, entry) in made.iter().rev() {
        std::os::unix::fs::chown(path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
        set_mode(path, entry.mode);
        if let Some(value) = &entry.xattr {
            set_xattr(path, "trusted.random", value);
        }
        if entry.acl {
            set_xattr(path, "system.posix_acl_access", &acl(entry.owner.0));
            if path.is_dir() {
                set_xattr(path, "system.posix_acl_default", &acl(entry.owner.1));
            }
        }
        set_times(path, (entry.mtime.1, entry.mtime.1), entry.mtime);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_trees_are_copied_exactly(entries in entries()) {
        if is_root() {
            let workspace = workspace();
            make_tree(&workspace.path().join("from"), &entries);
            check_copy(workspace.path());
        }
    }
}

const DEPTH: u64 = 5000;

fn make_deep(root: &Path) {
    let mut here: OwnedFd = File::open(root).unwrap().into();
    for _ in 0..DEPTH {
        mkdirat(&here, c"a-level-of-the-deep-tree", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        here = openat(&here, c"a-level-of-the-deep-tree", flags, Mode::empty()).unwrap();
        openat(&here, c"file", OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR).unwrap();
    }
}

#[test]
fn a_deep_tree_needs_few_open_files() {
    in_own_process("api::copy::a_deep_tree_needs_few_open_files", || {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
        let workspace = workspace();
        make_deep(&workspace.path().join("from"));
        let manifest =
            copy(&workspace.path().join("from"), &workspace.path().join("to"), &Progress::default()).unwrap();
        assert_eq!(manifest.entries, 2 * DEPTH);
        for name in ["from", "to"] {
            assert_eq!(remove(workspace.path(), name).unwrap(), 2 * DEPTH + 1);
        }
    });
}

/// The memory that this process uses, in bytes.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_large_tree_needs_little_memory() {
    in_own_process("api::copy::a_large_tree_needs_little_memory", || {
        const FILES: u64 = 200_000;
        let workspace = workspace();
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        for at in 0..FILES / 2 {
            File::create(from.join(format!("{at}"))).unwrap();
            fs::hard_link(from.join(format!("{at}")), from.join(format!("again-{at}"))).unwrap();
        }
        let before = resident_bytes();
        let done = AtomicBool::new(false);
        let peak = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = peak.max(resident_bytes());
                    sleep_ms(5);
                }
                peak
            });
            let stop = StopOnDrop(&done);
            assert_eq!(copy(&from, &to, &Progress::default()).unwrap().entries, FILES);
            assert_eq!(remove(workspace.path(), "from").unwrap(), FILES + 1);
            assert_eq!(remove(workspace.path(), "to").unwrap(), FILES + 1);
            drop(stop);
            watcher.join().unwrap()
        });
        let grown = peak.saturating_sub(before);
        eprintln!("memory grew by {} KiB", grown >> 10);
        assert!(grown < 16 << 20, "{grown}");
    });
}

const SECRET: &str = "this is outside the volume";

/// Copies repeatedly while another thread changes the tree, and checks that nothing from outside is copied. The tree is
/// in memory, so that copies and changes interleave often.
fn copy_during_changes(prepare: impl FnOnce(&Path) + Send, change: impl Fn(&Path, u64) + Sync + Send) {
    in_own_mount_namespace(|| {
        let workspace = workspace();
        tmpfs(workspace.path(), "size=256m");
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        let outside = workspace.path().join("outside");
        for directory in [&from.join("inside"), &to, &outside] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(outside.join("secret"), SECRET).unwrap();
        for at in 0..50 {
            fs::write(from.join(format!("file-{at}")), "x").unwrap();
            fs::write(from.join(format!("inside/file-{at}")), "x").unwrap();
        }
        prepare(&from);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    change(&from, round);
                }
            });
            let _stop = StopOnDrop(&done);
            copy_for_three_seconds(workspace.path());
        });
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), SECRET);
    });
}

fn copy_for_three_seconds(workspace: &Path) {
    let (from, to) = (workspace.join("from"), workspace.join("to"));
    let start = Instant::now();
    let (mut complete, mut busy) = (0, 0);
    while start.elapsed() < Duration::from_secs(3) {
        match copy(&from, &to, &Progress::default()) {
            Ok(_) => complete += 1,
            Err(error) if error.kind() == Kind::Busy => busy += 1,
            Err(error) => panic!("{}", error.chain()),
        }
        for (path, facts) in facts(&to) {
            let data = facts.data.unwrap_or_default();
            assert!(!data.starts_with(SECRET.as_bytes()), "{} was followed", path.display());
        }
        remove(workspace, "to").unwrap();
        fs::create_dir(&to).unwrap();
    }
    eprintln!("{complete} complete copies, {busy} gave up");
}

/// Replaces an entry atomically.
fn swap(root: &Path, name: &str, make: impl Fn(&Path)) {
    let new = root.join(".new");
    make(&new);
    let old = root.join(name);
    if new.is_symlink() || !new.is_dir() {
        let _ = fs::remove_dir(&old);
    }
    fs::rename(&new, &old).unwrap();
}

#[test]
fn a_name_that_keeps_changing_does_not_lead_outside() {
    if !is_root() {
        return;
    }
    copy_during_changes(
        |_| {},
        |from, round| match round % 6 {
            0 => swap(from, "victim", |new| fs::write(new, "mine").unwrap()),
            1 => swap(from, "victim", |new| std::os::unix::fs::symlink("../outside/secret", new).unwrap()),
            2 => swap(from, "victim", |new| make_node(new, FileType::Fifo, 0o666, (0, 0))),
            3 => swap(from, "victim", |new| std::os::unix::fs::symlink("../outside", new).unwrap()),
            4 => {
                fs::remove_file(from.join("victim")).unwrap();
                swap(from, "victim", |new| fs::create_dir(new).unwrap());
            }
            _ => swap(from, "victim", |new| make_node(new, FileType::CharacterDevice, 0o666, (250, 250))),
        },
    );
}

#[test]
fn directories_that_keep_moving_do_not_lead_outside() {
    if !is_root() {
        return;
    }
    copy_during_changes(
        |from| {
            fs::create_dir_all(from.join("a").join("d/".repeat(30))).unwrap();
            fs::create_dir_all(from.join("b/c")).unwrap();
        },
        |from, round| {
            let paths = ["a/d/d/d", "b/c/d"];
            let (old, new) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
            fs::rename(from.join(paths[old]), from.join(paths[new])).unwrap();
            let names = ["inside", "elsewhere"];
            fs::rename(from.join(names[old]), from.join(names[new])).unwrap();
            if round % 2 == 0 {
                std::os::unix::fs::symlink("../outside", from.join("inside")).unwrap();
                fs::remove_file(from.join("inside")).unwrap();
            }
        },
    );
}

#[test]
fn files_that_change_during_the_copy_do_not_fail_it() {
    if !is_root() {
        return;
    }
    copy_during_changes(
        |_| {},
        |from, round| {
            let name = from.join(format!("inside/new-{}", round % 100));
            if fs::remove_file(&name).is_err() {
                fs::write(&name, vec![b'x'; 200_000]).unwrap();
                fs::hard_link(&name, from.join("linked"))
                    .or_else(|_| fs::remove_file(from.join("linked")))
                    .unwrap();
            }
            let file = File::options().write(true).open(from.join("file-1")).unwrap();
            file.set_len(if round % 2 == 0 { 1 << 22 } else { 10 }).unwrap();
        },
    );
}

fn tmpfs(at: &Path, options: &str) {
    let options = std::ffi::CString::new(options).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
}

#[test]
fn a_mount_inside_the_tree_is_neither_copied_nor_removed() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let workspace = workspace();
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        let outside = workspace.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::create_dir_all(from.join("a/mounted")).unwrap();
        fs::write(from.join("a/file"), "x").unwrap();
        for (source, target) in [(outside.clone(), "a/mounted"), (outside.join("secret"), "a/file")] {
            mount_bind(&source, from.join(target)).unwrap();
            let error = copy(&from, &to, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
            assert!(error.chain().starts_with(&format!("copy {target}: ")), "{}", error.chain());
            remove(workspace.path(), "to").unwrap();
            fs::create_dir(&to).unwrap();
            let error = remove(workspace.path(), "from").unwrap_err();
            assert_eq!(error.kind(), Kind::InUse, "{}", error.chain());
            assert!(error.chain().starts_with(&format!("remove from: {target}: ")), "{}", error.chain());
            unmount(from.join(target), UnmountFlags::DETACH).unwrap();
            if !from.join("a/file").exists() {
                fs::write(from.join("a/file"), "x").unwrap();
            }
        }
        mount_bind(&outside, &from).unwrap();
        assert_eq!(remove(workspace.path(), "from").unwrap_err().kind(), Kind::InUse);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), SECRET);
    });
}

#[test]
fn a_full_destination_fails_with_no_space() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let workspace = workspace();
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        fs::create_dir(from.join("directory")).unwrap();
        fs::write(from.join("directory/file"), vec![1; 3 << 20]).unwrap();
        tmpfs(&to, "size=1m");
        let error = copy(&from, &to, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        assert!(error.chain().starts_with("copy directory/file: "), "{}", error.chain());
    });
}

#[test]
fn attributes_that_cannot_be_stored_are_counted_or_refused() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let from = workspace.path().join("from");
    fs::write(from.join("file"), "x").unwrap();
    set_xattr(&from.join("file"), "user.a", b"b");
    in_own_mount_namespace(|| {
        let to = workspace.path().join("to");
        // ramfs stores owners and modes, but neither user attributes nor ACLs.
        if let Err(error) = mount("ramfs", &to, "ramfs", MountFlags::empty(), None) {
            panic!("mount a ramfs: {error}");
        }
        let manifest =
            copy(&from, &to, &Progress::default()).unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!((manifest.entries, manifest.skipped_xattrs), (1, 1));
        fs::remove_file(to.join("file")).unwrap();
        set_xattr(&from.join("file"), "system.posix_acl_access", &acl(1));
        let error = copy(&from, &to, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
    });
}

#[test]
fn hard_links_beyond_the_limit_become_files() {
    if !is_root() {
        return;
    }
    const LIMIT: u32 = 65_000; // of ext4
    in_own_mount_namespace(|| {
        let workspace = workspace();
        let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
        tmpfs(&from, "size=64m");
        fs::write(from.join("0"), "x").unwrap();
        for at in 1..LIMIT + 2 {
            fs::hard_link(from.join("0"), from.join(format!("{at}"))).unwrap();
        }
        let manifest =
            copy(&from, &to, &Progress::default()).unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(manifest.entries, u64::from(LIMIT + 2));
        assert_eq!(manifest.bytes, u64::from(LIMIT + 2));
    });
}

#[test]
fn a_cancelled_copy_stops() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let (from, to) = (workspace.path().join("from"), workspace.path().join("to"));
    for at in 0..5000 {
        fs::write(from.join(format!("{at}")), "x").unwrap();
    }
    let progress = Progress::default();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while progress.entries() < 100 && start.elapsed() < Duration::from_secs(60) {
                std::hint::spin_loop();
            }
            progress.cancel();
        });
        copy(&from, &to, &progress).unwrap_err()
    });
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(error.chain(), "cancelled");
    assert!(progress.entries() < 5000);
}

#[test]
fn a_stopped_removal_can_be_resumed() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    make_deep(&workspace.path().join("from"));
    let parent = File::open(workspace.path()).unwrap();
    let stop = AtomicBool::new(true);
    let removed = remove_tree(parent.as_fd(), "from", slice(&stop)).unwrap();
    assert_eq!(removed, Removed { entries: 0, complete: false });
    for _ in 0..3 {
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep_ms(20);
                stop.store(true, Ordering::Relaxed);
            });
            remove_tree(parent.as_fd(), "from", slice(&stop)).unwrap();
        });
    }
    remove(workspace.path(), "from").unwrap();
    assert!(!workspace.path().join("from").exists());
}

#[test]
fn each_slice_of_a_removal_makes_the_tree_smaller() {
    let workspace = workspace();
    let from = workspace.path().join("from");
    for directory in ["a/b/c/d", "a/e", "f"] {
        fs::create_dir_all(from.join(directory)).unwrap();
        fs::write(from.join(directory).join("file"), "x").unwrap();
    }
    let parent = File::open(workspace.path()).unwrap();
    let stop = AtomicBool::new(false);
    // A slice without length ends after its first removed name.
    let slice = Slice { stop: &stop, length: Duration::ZERO };
    for _ in 0..10 {
        let removed = remove_tree(parent.as_fd(), "from", slice).unwrap();
        assert_eq!(removed, Removed { entries: 1, complete: !from.exists() });
    }
    assert!(!from.exists(), "the tree has ten names");
}

#[test]
fn removal_clears_immutable_and_append_only_flags() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let from = workspace.path().join("from");
    fs::create_dir_all(from.join("locked/inside")).unwrap();
    fs::write(from.join("locked/file"), "x").unwrap();
    fs::write(from.join("locked/log"), "x").unwrap();
    make_symlink("nowhere", &from.join("locked/symlink"));
    let flags = [
        ("locked/inside", IFlags::IMMUTABLE),
        ("locked/file", IFlags::IMMUTABLE),
        ("locked/log", IFlags::APPEND),
        ("locked", IFlags::APPEND | IFlags::IMMUTABLE),
        ("", IFlags::IMMUTABLE),
    ];
    for (path, flag) in flags {
        let file = File::open(from.join(path)).unwrap();
        ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | flag).unwrap();
    }
    assert_eq!(remove(workspace.path(), "from").unwrap(), 6);
}

#[test]
fn removal_truncates_big_files_unless_they_have_another_link() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let from = workspace.path().join("from");
    for name in ["big", "linked"] {
        let file = File::create(from.join(name)).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 5 << 29).unwrap();
    }
    fs::hard_link(from.join("linked"), workspace.path().join("other")).unwrap();
    make_sparse(&from.join("sparse"), 15 << 40, &[(7 << 40, 4096)]);
    assert_eq!(remove(workspace.path(), "from").unwrap(), 4);
    assert_eq!(fs::metadata(workspace.path().join("other")).unwrap().len(), 5 << 29);
}

#[test]
fn removal_accepts_only_direct_entries() {
    let workspace = workspace();
    for name in ["", ".", "..", "from/x", "/", "a\0b"] {
        assert_eq!(remove(workspace.path(), name).unwrap_err().kind(), Kind::Invalid, "{name:?}");
    }
    make_symlink("from", &workspace.path().join("symlink"));
    assert_eq!(remove(workspace.path(), "symlink").unwrap(), 1);
    assert!(workspace.path().join("from").exists());
}

#[test]
fn a_tree_that_is_written_to_is_removed_in_the_end() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    let from = workspace.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    let here: OwnedFd =
        openat(CWD, from.join("a/b"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            for at in 0_u64.. {
                if start.elapsed() > Duration::from_millis(300) {
                    break;
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
                let _ = openat(&here, format!("{}", at % 50), flags, Mode::RUSR);
            }
        });
        loop {
            match remove(workspace.path(), "from") {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), Kind::Busy, "{}", error.chain()),
            }
        }
    });
    assert!(!from.exists());
}
