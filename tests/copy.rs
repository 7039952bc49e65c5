//! Copies and deletes real trees: odd ones, random ones, huge ones, and such as change meanwhile. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::disallowed_methods, reason = "a test may start programs, and wait")]
#![expect(clippy::print_stderr, reason = "a test says why it is skipped")]

#[path = "ground/stop.rs"]
mod stop;
#[path = "copy/trees.rs"]
mod trees;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Kind, Result};
use orlop::fs::copy::{Manifest, Progress, copy_tree};
use orlop::fs::remove::remove_tree;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, mkdirat, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;
use stop::Stop;
use tempfile::TempDir;
use trees::{acl, facts, link, node, set_mode, set_times, set_xattr, sparse};

/// Whether the test can run; if not it says why, which is a failure where everything must run.
fn able() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let why = "skipped: it takes root to make owners, devices and mounts";
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
        eprintln!("{why}");
    }
    root
}

/// `from/` to be filled, `to/` to be copied into; on the filesystem of the build, or where `ORLOP_TEST_DIR` says.
fn scene() -> TempDir {
    let place = std::env::var_os("ORLOP_TEST_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let dir = tempfile::tempdir_in(place).unwrap();
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
    remove_tree(parent.as_fd(), name, &AtomicBool::new(false)).map(|removed| removed.entries)
}

/// Copies in a scene and checks that nothing differs; then deletes the copy and checks that nothing is left.
fn copies_truly(scene: &Path) {
    let (from, to) = (scene.join("from"), scene.join("to"));
    let before = facts(&from);
    let progress = Progress::default();
    let manifest = copy(&from, &to, &progress).unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_same(&before, &facts(&to));
    assert_same(&before, &facts(&from));
    let entries = u64::try_from(before.len()).unwrap() - 1;
    assert_eq!((manifest.entries, manifest.dropped), (entries, 0));
    assert_eq!(progress.entries(), entries);
    let size =
        |facts: &trees::Facts| facts.data.as_ref().map_or(0, |data| u64::try_from(data.len()).unwrap());
    if before.values().all(|facts| facts.data.as_ref().is_none_or(|data| !data.is_empty())) {
        assert_eq!(manifest.bytes, before.values().map(size).sum::<u64>());
    }
    assert_eq!(remove(scene, "to").unwrap(), entries + 1);
    assert!(!to.exists());
    assert_eq!(remove(scene, "to").unwrap(), 0, "what is gone is gone");
}

fn assert_same(
    wanted: &BTreeMap<std::path::PathBuf, trees::Facts>,
    got: &BTreeMap<std::path::PathBuf, trees::Facts>,
) {
    let names = |facts: &BTreeMap<std::path::PathBuf, _>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(wanted), names(got));
    for (path, wanted) in wanted {
        assert_eq!(wanted.brief(&got[path]), got[path].brief(wanted), "{}", path.display());
        assert!(wanted.data == got[path].data, "the data of {}", path.display());
    }
}

#[test]
fn odd_trees_are_copied_as_they_are_and_as_cp_does() {
    if !able() {
        return;
    }
    for (name, make) in trees::ODD {
        eprintln!("tree: {name}");
        let scene = scene();
        let from = scene.path().join("from");
        make(&from);
        let before = facts(&from);
        copies_truly(scene.path());
        let by_cp = scene.path().join("cp");
        assert!(Command::new("cp").arg("-a").args([&from, &by_cp]).status().unwrap().success());
        assert_same(&before, &facts(&by_cp));
    }
}

#[test]
fn what_the_destination_has_already_is_not_inherited() {
    if !able() {
        return;
    }
    let scene = scene();
    let (from, to) = (scene.path().join("from"), scene.path().join("to"));
    fs::create_dir(from.join("folder")).unwrap();
    fs::write(from.join("folder/file"), "x").unwrap();
    set_xattr(&to, "system.posix_acl_default", &acl(1));
    set_xattr(&to, "system.posix_acl_access", &acl(2));
    set_mode(&to, 0o2777);
    copies_truly(scene.path());
}

#[test]
fn another_filesystem_gets_the_same() {
    if !able() {
        return;
    }
    in_own_mounts(|| {
        let scene = scene();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        fs::write(from.join("small"), "x").unwrap();
        fs::write(from.join("big"), vec![b'z'; 3 << 20]).unwrap();
        sparse(&from.join("sparse"), 1 << 20, &[(0, 4096), (1 << 19, 4096)]);
        fs::hard_link(from.join("small"), from.join("again")).unwrap();
        set_xattr(&from.join("big"), "trusted.a", b"b");
        tmpfs(&to, "size=16m");
        let before = facts(&from);
        copy(&from, &to, &Progress::default()).unwrap();
        assert_same(&before, &facts(&to));
    });
}

#[derive(Debug, Clone)]
struct Wish {
    folder: usize,
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    parts: Vec<(u64, usize)>,
    tail: u64,
    xattr: Option<Vec<u8>>,
    acl: bool,
}

fn options() -> impl Strategy<Value = Vec<Wish>> {
    let part = (0_u64..64, 1_usize..3000).prop_map(|(block, length)| (block * 4096, length));
    let one = (
        any::<usize>(),
        0_u8..8,
        0_u32..0o10000,
        (0_u32..70_000, 0_u32..70_000),
        (-1_000_000_i64..9_000_000_000, 0_i64..1_000_000_000),
        (prop::collection::vec(part, 0..4), 0_u64..300_000),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        any::<bool>(),
    );
    let one = one.prop_map(|(folder, kind, mode, owner, mtime, (parts, tail), xattr, acl)| Wish {
        folder,
        kind,
        mode,
        owner,
        mtime,
        parts,
        tail,
        xattr,
        acl,
    });
    prop::collection::vec(one, 0..60)
}

fn grant(root: &Path, options: &[Wish]) {
    let mut folders = vec![root.to_owned()];
    let mut others = Vec::new();
    let mut made = Vec::new();
    for (at, request) in options.iter().enumerate() {
        let path = folders[request.folder % folders.len()].join(format!("n{at}"));
        match request.kind {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            3 if !others.is_empty() => {
                let first: &std::path::PathBuf = &others[request.folder % others.len()];
                fs::hard_link(first, &path).unwrap();
                continue;
            }
            4 => {
                link(format!("n{}", request.folder % 60), &path);
                std::os::unix::fs::lchown(&path, Some(request.owner.0), Some(request.owner.1)).unwrap();
                continue;
            }
            5 => node(&path, FileType::Fifo, 0o600, (0, 0)),
            _ => {
                let end = request.parts.iter().map(|(start, length)| start + u64::try_from(*length).unwrap());
                sparse(&path, end.max().unwrap_or(0) + request.tail, &request.parts);
            }
        }
        if request.kind > 2 {
            others.push(path.clone());
        }
        made.push((path, request));
    }
    for (path, request) in made.iter().rev() {
        std::os::unix::fs::chown(path, Some(request.owner.0), Some(request.owner.1)).unwrap();
        set_mode(path, request.mode);
        if let Some(value) = &request.xattr {
            set_xattr(path, "trusted.random", value);
        }
        if request.acl {
            set_xattr(path, "system.posix_acl_access", &acl(request.owner.0));
            if path.is_dir() {
                set_xattr(path, "system.posix_acl_default", &acl(request.owner.1));
            }
        }
        set_times(path, (request.mtime.1, request.mtime.1), request.mtime);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_trees_are_copied_as_they_are(options in options()) {
        if able() {
            let scene = scene();
            grant(&scene.path().join("from"), &options);
            copies_truly(scene.path());
        }
    }
}

/// Runs the body of a test in a process of its own, where it may change limits and read its memory.
fn in_child(test: &str, body: fn()) {
    if std::env::var("ORLOP_TEST_CHILD").as_deref() == Ok(test) {
        return body();
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("ORLOP_TEST_CHILD", test)
        .status()
        .unwrap();
    assert!(status.success(), "{test} in its own process: {status}");
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
fn any_depth_takes_few_open_files() {
    if !able() {
        return;
    }
    in_child("any_depth_takes_few_open_files", || {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
        let scene = scene();
        make_deep(&scene.path().join("from"));
        let manifest =
            copy(&scene.path().join("from"), &scene.path().join("to"), &Progress::default()).unwrap();
        assert_eq!(manifest.entries, 2 * DEPTH);
        for name in ["from", "to"] {
            assert_eq!(remove(scene.path(), name).unwrap(), 2 * DEPTH + 1);
        }
    });
}

/// Memory in use by this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn any_size_takes_little_memory() {
    if !able() {
        return;
    }
    in_child("any_size_takes_little_memory", || {
        const FILES: u64 = 200_000;
        let scene = scene();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        for at in 0..FILES / 2 {
            File::create(from.join(format!("{at}"))).unwrap();
            fs::hard_link(from.join(format!("{at}")), from.join(format!("again-{at}"))).unwrap();
        }
        let before = resident();
        let done = AtomicBool::new(false);
        let most = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident());
                    std::thread::sleep(Duration::from_millis(5));
                }
                most
            });
            let stop = Stop(&done);
            assert_eq!(copy(&from, &to, &Progress::default()).unwrap().entries, FILES);
            assert_eq!(remove(scene.path(), "from").unwrap(), FILES + 1);
            assert_eq!(remove(scene.path(), "to").unwrap(), FILES + 1);
            drop(stop);
            watcher.join().unwrap()
        });
        let grown = most.saturating_sub(before);
        eprintln!("memory grew by {} KiB", grown >> 10);
        assert!(grown < 16 << 20, "{grown}");
    });
}

const SECRET: &str = "this is not of the volume";

/// Copies again and again while somebody changes the tree; nothing from outside may come along. All in memory: the
/// less time goes by elsewhere, the more often the two meet.
fn under_attack(prepare: impl FnOnce(&Path) + Send, attack: impl Fn(&Path, u64) + Sync + Send) {
    in_own_mounts(|| {
        let scene = scene();
        tmpfs(scene.path(), "size=256m");
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        let outside = scene.path().join("outside");
        for folder in [&from.join("inside"), &to, &outside] {
            fs::create_dir_all(folder).unwrap();
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
                    attack(&from, round);
                }
            });
            let _stop = Stop(&done);
            copy_for_a_while(scene.path());
        });
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), SECRET);
    });
}

fn copy_for_a_while(scene: &Path) {
    let (from, to) = (scene.join("from"), scene.join("to"));
    let start = Instant::now();
    let (mut whole, mut busy) = (0, 0);
    while start.elapsed() < Duration::from_secs(3) {
        match copy(&from, &to, &Progress::default()) {
            Ok(_) => whole += 1,
            Err(error) if error.kind() == Kind::Busy => busy += 1,
            Err(error) => panic!("{}", error.chain()),
        }
        for (path, facts) in facts(&to) {
            let data = facts.data.unwrap_or_default();
            assert!(!data.starts_with(SECRET.as_bytes()), "{} was followed", path.display());
        }
        remove(scene, "to").unwrap();
        fs::create_dir(&to).unwrap();
    }
    eprintln!("{whole} whole copies, {busy} given up");
}

/// Puts something under a name in one step, whatever was there.
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
fn a_name_that_keeps_changing_leads_nowhere() {
    if !able() {
        return;
    }
    under_attack(
        |_| {},
        |from, round| match round % 6 {
            0 => swap(from, "victim", |new| fs::write(new, "mine").unwrap()),
            1 => swap(from, "victim", |new| std::os::unix::fs::symlink("../outside/secret", new).unwrap()),
            2 => swap(from, "victim", |new| node(new, FileType::Fifo, 0o666, (0, 0))),
            3 => swap(from, "victim", |new| std::os::unix::fs::symlink("../outside", new).unwrap()),
            4 => {
                fs::remove_file(from.join("victim")).unwrap();
                swap(from, "victim", |new| fs::create_dir(new).unwrap());
            }
            _ => swap(from, "victim", |new| node(new, FileType::CharacterDevice, 0o666, (250, 250))),
        },
    );
}

#[test]
fn directories_that_keep_moving_lead_nowhere() {
    if !able() {
        return;
    }
    under_attack(
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
fn files_that_come_and_go_and_grow_do_no_harm() {
    if !able() {
        return;
    }
    under_attack(
        |_| {},
        |from, round| {
            let name = from.join(format!("inside/coming-{}", round % 100));
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

/// Runs in a mount namespace of its own, gone with the thread.
fn in_own_mounts(body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            #[expect(deprecated, reason = "its successor is unsafe for the sake of a flag not used here")]
            rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            body();
        });
        work.join().unwrap();
    });
}

fn tmpfs(at: &Path, options: &str) {
    let options = std::ffi::CString::new(options).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
}

#[test]
fn what_is_mounted_inside_is_neither_copied_nor_removed() {
    if !able() {
        return;
    }
    in_own_mounts(|| {
        let scene = scene();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        let outside = scene.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::create_dir_all(from.join("a/mounted")).unwrap();
        fs::write(from.join("a/file"), "x").unwrap();
        for (source, target) in [(outside.clone(), "a/mounted"), (outside.join("secret"), "a/file")] {
            mount_bind(&source, from.join(target)).unwrap();
            let error = copy(&from, &to, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
            assert!(error.chain().starts_with(&format!("copy {target}: ")), "{}", error.chain());
            remove(scene.path(), "to").unwrap();
            fs::create_dir(&to).unwrap();
            let error = remove(scene.path(), "from").unwrap_err();
            assert_eq!(error.kind(), Kind::InUse, "{}", error.chain());
            assert!(error.chain().starts_with(&format!("remove from: {target}: ")), "{}", error.chain());
            rustix::mount::unmount(from.join(target), rustix::mount::UnmountFlags::empty()).unwrap();
            if !from.join("a/file").exists() {
                fs::write(from.join("a/file"), "x").unwrap();
            }
        }
        mount_bind(&outside, &from).unwrap();
        assert_eq!(remove(scene.path(), "from").unwrap_err().kind(), Kind::InUse);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), SECRET);
    });
}

#[test]
fn a_full_destination_is_no_space() {
    if !able() {
        return;
    }
    in_own_mounts(|| {
        let scene = scene();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        fs::create_dir(from.join("folder")).unwrap();
        fs::write(from.join("folder/file"), vec![1; 3 << 20]).unwrap();
        tmpfs(&to, "size=1m");
        let error = copy(&from, &to, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        assert!(error.chain().starts_with("copy folder/file: "), "{}", error.chain());
    });
}

#[test]
fn what_cannot_be_kept_is_counted_or_refused() {
    if !able() {
        return;
    }
    let scene = scene();
    let from = scene.path().join("from");
    fs::write(from.join("file"), "x").unwrap();
    set_xattr(&from.join("file"), "user.a", b"b");
    in_own_mounts(|| {
        let to = scene.path().join("to");
        // a filesystem that knows neither user attributes nor ACLs, but owners and modes
        if let Err(error) = mount("ramfs", &to, "ramfs", MountFlags::empty(), None) {
            panic!("mount a ramfs: {error}");
        }
        let manifest =
            copy(&from, &to, &Progress::default()).unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!((manifest.entries, manifest.dropped), (1, 1));
        fs::remove_file(to.join("file")).unwrap();
        set_xattr(&from.join("file"), "system.posix_acl_access", &acl(1));
        let error = copy(&from, &to, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
    });
}

#[test]
fn more_links_than_the_destination_allows_become_more_files() {
    if !able() {
        return;
    }
    const MOST: u32 = 65_000; // of ext4
    in_own_mounts(|| {
        let scene = scene();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        tmpfs(&from, "size=64m");
        fs::write(from.join("0"), "x").unwrap();
        for at in 1..MOST + 2 {
            fs::hard_link(from.join("0"), from.join(format!("{at}"))).unwrap();
        }
        let manifest =
            copy(&from, &to, &Progress::default()).unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(manifest.entries, u64::from(MOST + 2));
        assert_eq!(manifest.bytes, u64::from(MOST + 2));
    });
}

#[test]
fn a_cancelled_copy_stops() {
    if !able() {
        return;
    }
    let scene = scene();
    let (from, to) = (scene.path().join("from"), scene.path().join("to"));
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
fn a_stopped_removal_goes_on_later() {
    if !able() {
        return;
    }
    let scene = scene();
    make_deep(&scene.path().join("from"));
    let parent = File::open(scene.path()).unwrap();
    let stop = AtomicBool::new(true);
    let error = remove_tree(parent.as_fd(), "from", &stop).unwrap_err();
    assert_eq!((error.kind(), error.chain()), (Kind::Busy, "remove from: stopped".to_owned()));
    let mut removed = 0;
    for _ in 0..3 {
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                stop.store(true, Ordering::Relaxed);
            });
            if let Ok(done) = remove_tree(parent.as_fd(), "from", &stop) {
                removed += done.entries;
            }
        });
    }
    remove(scene.path(), "from").unwrap();
    assert!(!scene.path().join("from").exists());
}

#[test]
fn flags_that_forbid_changes_are_cleared() {
    if !able() {
        return;
    }
    let scene = scene();
    let from = scene.path().join("from");
    fs::create_dir_all(from.join("locked/inside")).unwrap();
    fs::write(from.join("locked/file"), "x").unwrap();
    fs::write(from.join("locked/log"), "x").unwrap();
    link("nowhere", &from.join("locked/symlink"));
    let locks = [
        ("locked/inside", IFlags::IMMUTABLE),
        ("locked/file", IFlags::IMMUTABLE),
        ("locked/log", IFlags::APPEND),
        ("locked", IFlags::APPEND | IFlags::IMMUTABLE),
        ("", IFlags::IMMUTABLE),
    ];
    for (path, lock) in locks {
        let file = File::open(from.join(path)).unwrap();
        ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | lock).unwrap();
    }
    assert_eq!(remove(scene.path(), "from").unwrap(), 6);
}

#[test]
fn a_big_file_is_removed_in_steps_but_not_one_with_another_name() {
    if !able() {
        return;
    }
    let scene = scene();
    let from = scene.path().join("from");
    for name in ["big", "linked"] {
        let file = File::create(from.join(name)).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 5 << 29).unwrap();
    }
    fs::hard_link(from.join("linked"), scene.path().join("other")).unwrap();
    sparse(&from.join("sparse"), 15 << 40, &[(7 << 40, 4096)]);
    assert_eq!(remove(scene.path(), "from").unwrap(), 4);
    assert_eq!(fs::metadata(scene.path().join("other")).unwrap().len(), 5 << 29);
}

#[test]
fn only_an_entry_of_the_directory_can_be_removed() {
    let scene = scene();
    for name in ["", ".", "..", "from/x", "/", "a\0b"] {
        assert_eq!(remove(scene.path(), name).unwrap_err().kind(), Kind::Invalid, "{name:?}");
    }
    link("from", &scene.path().join("symlink"));
    assert_eq!(remove(scene.path(), "symlink").unwrap(), 1);
    assert!(scene.path().join("from").exists());
}

#[test]
fn a_tree_written_to_while_it_is_removed_goes_in_the_end() {
    if !able() {
        return;
    }
    let scene = scene();
    let from = scene.path().join("from");
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
            match remove(scene.path(), "from") {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), Kind::Busy, "{}", error.chain()),
            }
        }
    });
    assert!(!from.exists());
}
