//! Copies that are brought up to date in further passes. Needs root, and filesystems on loop devices.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Error, Kind, Result};
use orlop::fs::copy::{Manifest, Pass, Progress, SourceState, TreeCopier, copy_tree};
use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, fallocate, mkdirat, openat, renameat_with,
};
use rustix::mount::mount_bind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::trees::{self, Facts, acl, facts, make_node, make_sparse, make_symlink, set_mode, set_xattr};
use crate::common::backends::{Ground, chosen};
use crate::common::disk::Disk;
use crate::common::isolation::{in_own_mount_namespace, in_own_process, is_root};
use crate::common::mapper::Mapper;
use crate::common::random::Random;
use crate::common::wait::{StopOnDrop, sleep_ms, within_seconds};

/// Runs `body` with the name and an empty directory of the filesystem of each backend.
pub(super) fn on_each_filesystem(body: impl Fn(&str, &Path) + Sync + Send) {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    body("the build", dir.path());
    for backend in chosen() {
        in_own_mount_namespace(|| body(backend.name, Ground::new(backend).new_dir().path()));
    }
}

/// A source, an empty destination and a directory for the catalogue, below a path.
pub(super) struct Workspace {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    scratch: File,
}

impl Workspace {
    pub(super) fn new(at: &Path) -> Self {
        let [from, to] = ["from", "to"].map(|name| at.join(name));
        for path in [&from, &to] {
            let _ = fs::remove_dir_all(path);
            fs::create_dir(path).unwrap();
        }
        Self { from, to, scratch: File::open(at).unwrap() }
    }

    /// Runs `body` with a copy of this workspace.
    pub(super) fn copying<T>(&self, max_bytes: Option<u64>, body: impl FnOnce(TreeCopier<'_>) -> T) -> T {
        let (from, to) = (File::open(&self.from).unwrap(), File::open(&self.to).unwrap());
        wait_for_the_coarse_clock();
        let progress = Progress::default();
        let copier = TreeCopier::new(from.as_fd(), to.as_fd(), self.scratch.as_fd(), max_bytes, &progress);
        body(copier.unwrap())
    }

    /// Copies, changes the source, brings the copy up to date and compares it with the source.
    fn check(&self, state: SourceState, change: impl FnOnce(&Path)) -> (Pass, Manifest) {
        self.copying(None, |mut copier| {
            succeed(copier.live());
            wait_for_the_clock(&self.from);
            change(&self.from);
            let pass = succeed(copier.freeze_point(state));
            let manifest = succeed(copier.finish());
            self.assert_equal();
            (pass, manifest)
        })
    }

    /// Checks that the copy is the same as the source; but a block of zeros may be a hole.
    pub(super) fn assert_equal(&self) {
        assert_same(&facts(&self.from), &facts(&self.to));
    }
}

pub(super) fn succeed<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{}", error.chain()))
}

fn assert_same(expected: &BTreeMap<PathBuf, Facts>, actual: &BTreeMap<PathBuf, Facts>) {
    let names = |facts: &BTreeMap<PathBuf, _>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(actual));
    for (path, expected) in expected {
        let (expected, actual) = (expected.without_holes(), actual[path].without_holes());
        let shown = (expected.without_data(&actual), actual.without_data(&expected));
        assert_eq!(shown.0, shown.1, "attributes of {}", path.display());
        assert!(expected.data == actual.data, "data of {}", path.display());
    }
}

/// Waits until what was changed before is older than a copy that begins now.
fn wait_for_the_coarse_clock() {
    let read = |clock| {
        let time = clock_gettime(clock);
        (time.tv_sec, time.tv_nsec)
    };
    let now = read(ClockId::Realtime);
    within_seconds(60, "the coarse clock goes on", || read(ClockId::RealtimeCoarse) > now);
}

/// Waits until a change of the directory gets a later time than the changes before: the clock of the times is coarse.
pub(super) fn wait_for_the_clock(dir: &Path) {
    let beside = dir.parent().unwrap();
    let probe = |name: &str| {
        let path = beside.join(name);
        File::create(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        fs::remove_file(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = probe("clock");
    within_seconds(60, "the clock goes on", || probe("clock") > before);
}

#[test]
fn unusual_trees_are_left_as_they_are_by_a_further_pass() {
    on_each_filesystem(|filesystem, at| {
        for (name, make) in trees::UNUSUAL {
            if filesystem != "the build" && ["holes", "deep and wide"].contains(name) {
                continue; // too large for a small filesystem
            }
            let workspace = Workspace::new(at);
            make(&workspace.from);
            let (pass, _) = workspace.check(SourceState::Unused, |_| {});
            assert!(filesystem == "tmpfs" || (pass.files, pass.bytes) == (0, 0), "{name}: {pass:?}");
            workspace.copying_again();
        }
    });
}

impl Workspace {
    /// Copies into an empty directory, and compares everything in the second pass.
    fn copying_again(&self) {
        fs::remove_dir_all(&self.to).unwrap();
        fs::create_dir(&self.to).unwrap();
        self.check(SourceState::Paused, |_| {});
    }
}

#[test]
fn a_store_through_a_mapping_between_two_passes_is_copied() {
    on_each_filesystem(|filesystem, at| {
        let workspace = Workspace::new(at);
        let file = workspace.from.join("file");
        fs::write(&file, vec![0; 1 << 20]).unwrap();
        let mut mapper = Mapper::start();
        mapper.store(&file, 5000, "before the copy");
        workspace.copying(None, |mut copier| {
            for pass in 0..3 {
                succeed(copier.live());
                wait_for_the_clock(&workspace.from);
                mapper.store(&file, 5000, &format!("after pass {pass}"));
            }
            // By the times alone.
            succeed(copier.freeze_point(SourceState::Unused));
            mapper.store(&file, 9000, "since the pause");
            succeed(copier.freeze_point(SourceState::Paused));
            mapper.store(&file, 9000, "after the pause");
            succeed(copier.freeze_point(SourceState::Unused));
            succeed(copier.finish());
        });
        assert!(fs::read(&file).unwrap() == fs::read(workspace.to.join("file")).unwrap(), "{filesystem}");
    });
}

/// A direct write that takes a second: its data is in another file, which is read from the disk page by page. A buffered
/// one would hold a lock that the copy waits for.
const SLOW_WRITE: &str = "
import mmap, os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(source)
os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
data = mmap.mmap(source, 0, prot=mmap.PROT_READ)
data.madvise(mmap.MADV_RANDOM)
assert os.pwrite(os.open(sys.argv[2], os.O_WRONLY | os.O_DIRECT), data, 0) == len(data)
";

#[test]
fn a_write_that_had_begun_before_the_copy_is_copied() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 512, &["mkfs.ext4"]);
        for state in [SourceState::Paused, SourceState::Unused] {
            let is_met = (0..20).any(|_| copy_during_a_write(disk.path(), state));
            assert!(is_met, "no write was slow enough to be under way during the copy");
        }
    });
}

/// Whether the first pass has missed a part of the write, although no time of the file has changed since.
#[expect(clippy::disallowed_methods, reason = "the process maps a file")]
fn copy_during_a_write(at: &Path, state: SourceState) -> bool {
    const SIZE: usize = 64 << 20;
    let data = at.join("data");
    let workspace = Workspace::new(at);
    let file = workspace.from.join("file");
    for (path, byte) in [(&data, 1), (&file, 0)] {
        fs::write(path, vec![byte; SIZE]).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }
    let times = || {
        let of = fs::metadata(&file).unwrap();
        (of.ctime(), of.ctime_nsec(), of.mtime(), of.mtime_nsec(), of.size())
    };
    let before = times();
    let copied = || fs::read(workspace.to.join("file")).unwrap();
    workspace.copying(None, |mut copier| {
        let mut writer =
            Command::new("python3").args(["-c", SLOW_WRITE]).args([&data, &file]).spawn().unwrap();
        within_seconds(60, "the write begins", || times() != before);
        let begun = times();
        succeed(copier.live());
        assert!(writer.wait().unwrap().success());
        let source = fs::read(&file).unwrap();
        let is_met = times() == begun && source != copied();
        succeed(copier.freeze_point(state));
        succeed(copier.finish());
        assert!(source == copied(), "the rest of the write is copied");
        is_met
    })
}

#[test]
fn each_kind_of_change_is_found_by_the_times() {
    on_each_filesystem(|_, at| {
        for (name, make, change) in CHANGES {
            eprintln!("change: {name}");
            let workspace = Workspace::new(at);
            make(&workspace.from);
            workspace.check(SourceState::Unused, change);
        }
    });
}

type Change = (&'static str, fn(&Path), fn(&Path));

fn nothing(_: &Path) {}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

const CHANGES: &[Change] = &[
    ("a removed ACL and attribute", with_attributes, |from| {
        for name in ["file", "directory", "fifo"] {
            for attribute in ["system.posix_acl_access", "trusted.other"] {
                rustix::fs::lremovexattr(from.join(name), attribute).unwrap();
            }
        }
        rustix::fs::lremovexattr(from.join("directory"), "system.posix_acl_default").unwrap();
        rustix::fs::lremovexattr(from.join("symlink"), "trusted.other").unwrap();
    }),
    ("another ACL, owner and mode", with_attributes, |from| {
        for name in ["file", "directory"] {
            set_xattr(&from.join(name), "system.posix_acl_access", &acl(9));
            std::os::unix::fs::chown(from.join(name), Some(7), Some(8)).unwrap();
            set_mode(&from.join(name), 0o6750);
        }
        std::os::unix::fs::lchown(from.join("symlink"), Some(7), Some(8)).unwrap();
    }),
    ("new entries below a default ACL", with_attributes, |from| {
        fs::write(from.join("directory/new"), "x").unwrap();
        rustix::fs::lremovexattr(from.join("directory/new"), "system.posix_acl_access").unwrap();
        fs::create_dir(from.join("directory/plain")).unwrap();
        for attribute in ["system.posix_acl_access", "system.posix_acl_default"] {
            rustix::fs::lremovexattr(from.join("directory/plain"), attribute).unwrap();
        }
        set_mode(&from.join("directory/plain"), 0o700);
        make_node(&from.join("directory/node"), FileType::Fifo, 0o600, (0, 0));
    }),
    (
        "new set-id bits with a new owner",
        |from| fs::write(from.join("file"), "x").unwrap(),
        |from| {
            std::os::unix::fs::chown(from.join("file"), Some(7), Some(8)).unwrap();
            set_mode(&from.join("file"), 0o6755);
        },
    ),
    (
        "the same set-id bits with a new owner",
        |from| {
            fs::write(from.join("file"), "x").unwrap();
            set_mode(&from.join("file"), 0o6755);
        },
        |from| {
            std::os::unix::fs::chown(from.join("file"), Some(7), Some(8)).unwrap();
            set_mode(&from.join("file"), 0o6755);
        },
    ),
    (
        "two files exchanged",
        |from| {
            for name in ["a/one", "b/two", "a/x", "b/y"] {
                fs::create_dir_all(from.join(name).parent().unwrap()).unwrap();
                fs::write(from.join(name), name).unwrap();
            }
        },
        |from| exchange(&from.join("a/one"), &from.join("b/two")),
    ),
    (
        "a file and a directory exchanged",
        |from| {
            fs::create_dir_all(from.join("directory/below")).unwrap();
            fs::write(from.join("directory/below/file"), "x").unwrap();
            fs::write(from.join("file"), "y").unwrap();
        },
        |from| exchange(&from.join("file"), &from.join("directory")),
    ),
    (
        "directories exchanged, one within the other",
        |from| {
            fs::create_dir_all(from.join("a/b/c")).unwrap();
            fs::create_dir_all(from.join("d/e")).unwrap();
            for name in ["a/1", "a/b/2", "a/b/c/3", "d/4", "d/e/3"] {
                fs::write(from.join(name), name).unwrap();
            }
        },
        |from| {
            exchange(&from.join("a/b"), &from.join("d"));
            exchange(&from.join("a/b/e"), &from.join("d/c"));
        },
    ),
    (
        "files that become linked",
        |from| {
            for name in ["a", "m", "z"] {
                fs::write(from.join(name), name).unwrap();
            }
        },
        |from| {
            fs::hard_link(from.join("m"), from.join("0")).unwrap();
            fs::remove_file(from.join("z")).unwrap();
            fs::hard_link(from.join("a"), from.join("z")).unwrap();
        },
    ),
    (
        "links that are parted and grow",
        |from| {
            fs::write(from.join("a"), "aaaa").unwrap();
            for name in ["b", "c", "d"] {
                fs::hard_link(from.join("a"), from.join(name)).unwrap();
            }
        },
        |from| {
            fs::remove_file(from.join("b")).unwrap();
            fs::write(from.join("b"), "alone").unwrap();
            fs::write(from.join("new"), "new").unwrap();
            fs::rename(from.join("new"), from.join("c")).unwrap();
            fs::write(from.join("d"), vec![b'd'; 200_000]).unwrap();
        },
    ),
    (
        "files that grow, shrink and get holes",
        |from| {
            make_sparse(&from.join("sparse"), 4 << 20, &[(0, 4096), (1 << 20, 300_000)]);
            for name in ["grow", "shrink", "empty", "patch", "tail"] {
                fs::write(from.join(name), vec![b'x'; 700_000]).unwrap();
            }
            fs::write(from.join("punch"), vec![b'x'; 1 << 20]).unwrap();
        },
        |from| {
            let open = |name: &str| File::options().write(true).open(from.join(name)).unwrap();
            open("sparse").write_all_at(b"y", 3 << 20).unwrap();
            open("grow").write_all_at(&[b'y'; 300_000], 900_000).unwrap();
            open("shrink").set_len(1000).unwrap();
            open("empty").set_len(0).unwrap();
            open("patch").write_all_at(b"y", 131_071).unwrap();
            open("tail").write_all_at(b"y", 699_999).unwrap();
            let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open("punch"), punch, 5000, 700_000).unwrap();
        },
    ),
    (
        "every type replaced by every other",
        |from| make_types(from, 0),
        |from| {
            for name in 0..25 {
                let path = from.join(name.to_string());
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
            make_types(from, 1);
        },
    ),
    (
        "everything removed",
        |from| make_types(from, 0),
        |from| {
            for entry in fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        },
    ),
    ("nothing", |from| make_types(from, 0), nothing),
];

fn with_attributes(from: &Path) {
    fs::write(from.join("file"), "x").unwrap();
    fs::create_dir(from.join("directory")).unwrap();
    fs::write(from.join("directory/inside"), "x").unwrap();
    make_symlink("nowhere", &from.join("symlink"));
    make_node(&from.join("fifo"), FileType::Fifo, 0o600, (0, 0));
    for name in ["file", "directory", "fifo"] {
        set_xattr(&from.join(name), "system.posix_acl_access", &acl(1234));
    }
    set_xattr(&from.join("directory"), "system.posix_acl_default", &acl(1235));
    for name in ["file", "directory", "fifo", "symlink"] {
        set_xattr(&from.join(name), "trusted.kept", b"v");
        set_xattr(&from.join(name), "trusted.other", b"v");
    }
}

/// Makes 25 names: the fifth part of a number is the type in the first round, its rest that in the second.
fn make_types(from: &Path, round: u32) {
    for number in 0_u32..25 {
        let path = from.join(number.to_string());
        match if round == 0 { number / 5 } else { number % 5 } {
            0 => fs::write(&path, format!("{number} {round}")).unwrap(),
            1 => {
                fs::create_dir_all(path.join("a/b")).unwrap();
                fs::write(path.join("a/b/file"), "x").unwrap();
            }
            2 => make_symlink(format!("{number}-{round}"), &path),
            3 => make_node(&path, FileType::Fifo, 0o600, (0, 0)),
            _ => make_node(&path, FileType::CharacterDevice, 0o600, (1, round + 3)),
        }
    }
}

#[test]
fn a_change_while_the_writers_are_paused_is_refused() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let workspace = Workspace::new(dir.path());
    for number in 0..500 {
        fs::write(workspace.from.join(number.to_string()), "x").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                fs::write(workspace.from.join((round % 500).to_string()), round.to_string()).unwrap();
            }
        });
        let _stop = StopOnDrop(&stop);
        workspace.copying(None, |mut copier| {
            succeed(copier.live());
            let mut refused = None;
            within_seconds(60, "a change is noticed", || {
                refused = copier.freeze_point(SourceState::Paused).err();
                refused.is_some()
            });
            let error: Error = refused.unwrap();
            assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
            assert!(error.chain().contains("although its writers were paused"), "{}", error.chain());
            stop.store(true, Ordering::Relaxed);
            wait_for_the_clock(&workspace.from);
            sleep_ms(20);
            succeed(copier.freeze_point(SourceState::Paused));
            succeed(copier.finish());
        });
    });
    workspace.assert_equal();
}

#[test]
fn the_bound_for_data_holds_in_each_pass_and_churn_does_not_exceed_it() {
    on_each_filesystem(|filesystem, at| {
        let workspace = Workspace::new(at);
        let write = |name: &str, size: usize| fs::write(workspace.from.join(name), vec![b'x'; size]).unwrap();
        write("kept", 1 << 20);
        fs::hard_link(workspace.from.join("kept"), workspace.from.join("linked")).unwrap();
        workspace.copying(Some(4 << 20), |mut copier| {
            for pass in 0..6 {
                write(&format!("{pass}"), 2 << 20);
                succeed(copier.live());
                fs::remove_file(workspace.from.join(format!("{pass}"))).unwrap();
            }
            succeed(copier.freeze_point(SourceState::Paused));
            assert_eq!(fs::read_dir(&workspace.to).unwrap().count(), 3, "and the directory of hard links");
            write("grown", 4 << 20);
            let error = copier.live().unwrap_err();
            assert_eq!(error.kind(), Kind::OutOfRange, "{filesystem}: {}", error.chain());
        });
    });
}

#[test]
fn a_pass_is_cancelled_and_refuses_a_new_mount() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let workspace = Workspace::new(dir.path());
        fs::create_dir(workspace.from.join("directory")).unwrap();
        fs::write(workspace.from.join("file"), "x").unwrap();
        for name in ["directory", "file"] {
            let path = workspace.from.join(name);
            workspace.copying(None, |mut copier| {
                succeed(copier.live());
                mount_bind(&path, &path).unwrap();
                let error = copier.live().unwrap_err();
                assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
                rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
                succeed(copier.live());
            });
            fs::remove_dir_all(&workspace.to).unwrap();
            fs::create_dir(&workspace.to).unwrap();
        }
        let (from, to) = (File::open(&workspace.from).unwrap(), File::open(&workspace.to).unwrap());
        let progress = Progress::default();
        let mut copier =
            TreeCopier::new(from.as_fd(), to.as_fd(), workspace.scratch.as_fd(), None, &progress).unwrap();
        succeed(copier.live());
        progress.cancel();
        assert_eq!(copier.live().unwrap_err().kind(), Kind::Busy);
    });
}

#[test]
fn a_deep_tree_is_brought_up_to_date_with_few_open_files() {
    in_own_process("api::copy_update::a_deep_tree_is_brought_up_to_date_with_few_open_files", || {
        const DEPTH: u64 = 3000;
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let workspace = Workspace::new(dir.path());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let make = |name: &str| {
            let mut here = std::os::fd::OwnedFd::from(File::open(&workspace.from).unwrap());
            for _ in 0..DEPTH {
                mkdirat(&here, name, Mode::RWXU).unwrap();
                here = openat(&here, name, flags, Mode::empty()).unwrap();
            }
        };
        make("first");
        workspace.copying(None, |mut copier| {
            succeed(copier.live());
            // The first tree is removed from the copy, and the second one is new.
            fs::rename(workspace.from.join("first"), dir.path().join("outside")).unwrap();
            make("second");
            succeed(copier.freeze_point(SourceState::Paused));
            assert_eq!(succeed(copier.finish()).entries, DEPTH);
        });
    });
}

#[test]
fn a_large_file_that_has_shrunk_and_grown_again_is_compared() {
    const LAST: u64 = 1 << 20;
    on_each_filesystem(|filesystem, at| {
        let workspace = Workspace::new(at);
        let path = workspace.from.join("file");
        let file = File::options().write(true).create_new(true).open(&path).unwrap();
        let write = |byte: u8, length: usize, at: u64| file.write_all_at(&vec![byte; length], at).unwrap();
        workspace.copying(None, |mut copier| {
            let mut bring_up_to_date = |step: &str| {
                succeed(copier.live());
                let copy = fs::read(workspace.to.join("file")).unwrap();
                assert!(copy == fs::read(&path).unwrap(), "{filesystem}: {step}");
            };
            write(1, 1 << 20, 0);
            write(2, 1024, LAST + 4096);
            bring_up_to_date("a hole at the beginning of the last block");
            write(0, 4096, LAST);
            bring_up_to_date("zeros instead of the hole");
            file.set_len(LAST).unwrap();
            file.set_len(LAST + 3072).unwrap();
            bring_up_to_date("a shorter file");
            write(0, 4096, LAST);
            write(2, 1024, LAST + 4096);
            bring_up_to_date("the earlier data again");
        });
    });
}

#[test]
fn a_large_file_that_keeps_changing_is_copied_exactly_by_each_pass() {
    const SIZES: [u64; 5] = [4 << 20, 1 << 20, (1 << 20) + 5, (2 << 20) - 1, (2 << 20) + 70_000];
    on_each_filesystem(|filesystem, at| {
        let workspace = Workspace::new(at);
        let path = workspace.from.join("file");
        let file = File::options().write(true).create_new(true).open(&path).unwrap();
        let mut random = Random::new(1);
        workspace.copying(None, |mut copier| {
            file.write_all_at(&[1; 3 << 20], 0).unwrap();
            for round in 0..60 {
                for _ in 0..random.pick(4) {
                    // Few contents, so that earlier ones return.
                    let (offset, byte) = (random.pick(40) * 100_000 / 4096 * 4096, 1 + random.pick(2) % 2);
                    let pages = usize::try_from(1 + random.pick(40)).unwrap();
                    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    match random.pick(5) {
                        0 => file.set_len(SIZES[usize::try_from(random.pick(5)).unwrap()]).unwrap(),
                        1 => fallocate(&file, punch, offset, pages as u64 * 4096).unwrap(),
                        _ => file
                            .write_all_at(&vec![u8::try_from(byte).unwrap(); pages * 4096], offset)
                            .unwrap(),
                    }
                }
                if round % 7 == 0 {
                    wait_for_the_clock(&workspace.from);
                    succeed(copier.freeze_point(SourceState::Paused));
                } else {
                    succeed(copier.live());
                }
                let copy = fs::read(workspace.to.join("file")).unwrap();
                assert!(copy == fs::read(&path).unwrap(), "{filesystem}: round {round}");
            }
        });
    });
}

#[test]
fn a_copy_is_brought_up_to_date_although_no_thread_can_be_started() {
    in_own_process(
        "api::copy_update::a_copy_is_brought_up_to_date_although_no_thread_can_be_started",
        || {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let workspace = Workspace::new(dir.path());
            let file = File::create(workspace.from.join("file")).unwrap();
            file.write_all_at(&vec![b'x'; 20 << 20], 0).unwrap();
            workspace.copying(None, |mut copier| {
                let limit = getrlimit(Resource::As);
                // There is no room for the stack of a thread.
                setrlimit(Resource::As, Rlimit { current: Some(status("VmSize:") + (1 << 20)), ..limit })
                    .unwrap();
                assert!(std::thread::Builder::new().spawn(|| ()).is_err());
                let copied = copier.live();
                file.write_all_at(b"changed", 15 << 20).unwrap();
                let updated = copier.live();
                setrlimit(Resource::As, limit).unwrap();
                succeed(copied);
                succeed(updated);
                workspace.assert_equal();
            });
        },
    );
}

/// The memory that this process uses, in bytes.
fn resident_bytes() -> u64 {
    status("VmRSS:")
}

/// A line of the status of this process, in bytes.
fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn bringing_a_large_tree_up_to_date_needs_little_memory() {
    in_own_process("api::copy_update::bringing_a_large_tree_up_to_date_needs_little_memory", || {
        const FILES: u64 = 100_000;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let workspace = Workspace::new(dir.path());
        for at in 0..FILES / 2 {
            File::create(workspace.from.join(format!("{at}"))).unwrap();
            fs::hard_link(workspace.from.join(format!("{at}")), workspace.from.join(format!("again-{at}")))
                .unwrap();
        }
        let before = resident_bytes();
        let mut peak = 0;
        workspace.copying(None, |mut copier| {
            for _ in 0..3 {
                succeed(copier.live());
                peak = peak.max(resident_bytes());
            }
            succeed(copier.freeze_point(SourceState::Unused));
            peak = peak.max(resident_bytes());
            assert_eq!(succeed(copier.finish()).entries, FILES);
        });
        let grown = peak.saturating_sub(before);
        eprintln!("memory grew by {} KiB", grown >> 10);
        assert!(grown < 16 << 20, "{grown}");
    });
}

#[test]
fn a_further_pass_over_unchanged_files_is_quick() {
    const FILES: usize = 20_000;
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let workspace = Workspace::new(dir.path());
    for number in 0..FILES {
        let directory = workspace.from.join((number / 500).to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), [b'x'; 4096]).unwrap();
    }
    // Without what further passes need.
    let began = Instant::now();
    succeed(copy_tree(
        File::open(&workspace.from).unwrap().as_fd(),
        File::open(&workspace.to).unwrap().as_fd(),
        &Progress::default(),
    ));
    let alone = began.elapsed();
    fs::remove_dir_all(&workspace.to).unwrap();
    fs::create_dir(&workspace.to).unwrap();
    workspace.copying(None, |mut copier| {
        let first = succeed(copier.live());
        wait_for_the_clock(&workspace.from);
        for number in 0..200 {
            let path = workspace.from.join(format!("{}/{}", number * 100 / 500, number * 100));
            File::options().write(true).open(path).unwrap().write_all_at(b"y", 100).unwrap();
        }
        let update = succeed(copier.freeze_point(SourceState::Unused));
        assert_eq!((update.files, update.bytes), (200, 200 * 4096));
        let compared = succeed(copier.live());
        let began = Instant::now();
        succeed(copier.finish());
        eprintln!(
            "{FILES} files of 4 KiB: copied alone in {alone:?}; first pass {:?}, 200 changes found and copied in {:?}, {} compared \
             in {:?}, verified and synced in {:?}",
            first.duration,
            update.duration,
            compared.files,
            compared.duration,
            began.elapsed()
        );
        assert!(update.duration < Duration::from_secs(60), "{:?}", update.duration);
    });
    workspace.assert_equal();
}
