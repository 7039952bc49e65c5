//! A tenant that moves directories below a walk, so that the walk finds no end. Needs root.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Error, Kind, Result};
use orlop::fs::copy::{Progress, copy_tree};
use orlop::fs::remove::{Removed, Slice, remove_tree};
use orlop::pool::usage::UsageCache;
use orlop::volume::Name;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, mkdirat, openat, renameat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::isolation::{in_own_process, on_own_tmpfs};
use crate::common::wait::{StopOnDrop, within_seconds};

/// Number of directories of the ladder, and of those that are moved at once.
const RUNGS: usize = 9000;
const MOVED: usize = 1000;

/// Directories, each in the one before. Those above a walk are moved below it.
struct Ladder {
    top: OwnedFd,
    rungs: Vec<OwnedFd>,
    /// The first rung. It is in the top directory, and so is the end of the ladder while both are moved.
    head: usize,
    watch: OwnedFd,
}

impl Ladder {
    fn build(at: &Path) -> Self {
        let top = OwnedFd::from(File::open(at).unwrap());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        let mut rungs: Vec<OwnedFd> = Vec::new();
        for number in 0..RUNGS {
            let parent = rungs.last().unwrap_or(&top);
            mkdirat(parent, "n", Mode::RWXU).unwrap();
            let rung = openat(parent, "n", flags, Mode::empty()).unwrap();
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&rung));
            let descriptor = inotify::add_watch(&watch, path, WatchFlags::OPEN).unwrap();
            assert_eq!(descriptor, i32::try_from(number).unwrap() + 1);
            rungs.push(rung);
        }
        Self { top, rungs, head: 0, watch }
    }

    /// Moves rungs until it is stopped.
    fn run(&mut self, stop: &AtomicBool) {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); 1 << 16];
        while !stop.load(Ordering::Relaxed) {
            let timeout = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let watch = self.watch.try_clone().unwrap();
            if poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                continue;
            }
            let mut opened = Vec::new();
            let mut reader = inotify::Reader::new(&watch, &mut buffer);
            while let Ok(event) = reader.next() {
                opened.extend(
                    usize::try_from(event.wd() - 1).ok().filter(|_| event.events().contains(ReadFlags::OPEN)),
                );
                if reader.is_buffer_empty() {
                    break;
                }
            }
            opened.into_iter().for_each(|rung| self.opened(rung));
        }
    }

    fn opened(&mut self, rung: usize) {
        let mut below = (rung + RUNGS - self.head) % RUNGS;
        while (MOVED + 20..RUNGS * 3 / 4).contains(&below) {
            let last_moved = (self.head + MOVED - 1) % RUNGS;
            let end = (self.head + RUNGS - 1) % RUNGS;
            // The rest of the ladder becomes the first in the top directory, and the moved part its end.
            let moves = [
                renameat(&self.rungs[last_moved], "n", &self.top, "rest"),
                renameat(&self.top, "n", &self.rungs[end], "n"),
                renameat(&self.top, "rest", &self.top, "n"),
            ];
            if moves.iter().any(Result::is_err) {
                return; // The ladder is being removed.
            }
            self.head = (self.head + MOVED) % RUNGS;
            below -= MOVED;
        }
    }
}

#[test]
fn an_endless_tree_harms_its_own_volume_only() {
    in_own_process("api::endless::an_endless_tree_harms_its_own_volume_only", || {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        on_own_tmpfs(c"size=1g,nr_inodes=60000", |path| {
            let dirs = ["evil", "good", "copy"].map(|name| path.join(name));
            dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
            let [evil, good, to] = dirs;
            let mut ladder = Ladder::build(&evil);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| ladder.run(&stop));
                let _stop = StopOnDrop(&stop);
                only_the_endless_volume_is_not_measured(&evil, &good);
                let error = copy_until_it_fails(&evil, &to);
                // The copy ends at the bound for its entries, or at the inodes that it has to leave.
                assert!(matches!(error.kind(), Kind::Busy | Kind::NoSpace), "{}", error.chain());
                let free = rustix::fs::statvfs(path).unwrap().f_favail;
                assert!(free > 60_000 / 25, "{free} inodes are free: {}", error.chain());
                a_removal_gives_way_soon(path, "evil");
            });
        });
    });
}

fn only_the_endless_volume_is_not_measured(evil: &Path, good: &Path) {
    let usage = UsageCache::new(Duration::from_secs(60));
    let [bad_name, good_name]: [Name; 2] = ["evil", "good"].map(|name| name.parse().unwrap());
    let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
    assert_eq!(usage.measure(&bad_name, open(evil), Duration::ZERO).unwrap(), None);
    let measured = usage.measure(&good_name, open(good), Duration::from_secs(100)).unwrap();
    assert_eq!(measured.unwrap().inodes, 1);
    within_seconds(300, "the measurement ends", || {
        // A walk that overtakes the moves comes to an end: measure again.
        if usage.measure(&bad_name, open(evil), Duration::ZERO).unwrap().is_some() {
            usage.forget(&bad_name);
        }
        usage.failure(&bad_name).is_some()
    });
    let reason = usage.failure(&bad_name).unwrap();
    assert!(reason.contains("can hold") || reason.contains("moved"), "{reason}");
}

/// Copies until the walk does not overtake the moves.
fn copy_until_it_fails(from: &Path, to: &Path) -> Error {
    let from = File::open(from).unwrap();
    loop {
        match copy_tree(from.as_fd(), File::open(to).unwrap().as_fd(), &Progress::default()) {
            Err(error) => return error,
            Ok(_) => fs::remove_dir_all(to).and_then(|()| fs::create_dir(to)).unwrap(),
        }
    }
}

const SLICE: Duration = Duration::from_millis(100);

fn remove(parent: &Path, name: &str) -> Result<Removed> {
    let (parent, stop) = (File::open(parent).unwrap(), AtomicBool::new(false));
    remove_tree(parent.as_fd(), name, Slice { stop: &stop, length: SLICE })
}

/// Without a bound for the depth, a slice would end after the 60 s that it may take to find something to remove.
fn a_removal_gives_way_soon(parent: &Path, name: &str) {
    let began = Instant::now();
    if let Err(error) = remove(parent, name) {
        assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
    }
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}
