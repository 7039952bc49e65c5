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
/// How often a walk is repeated that has overtaken the moves and so has come to its end. With a single slow CPU all may do so.
const ATTEMPTS: u32 = 20;

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
        // With a single CPU the moves have to come before the walk. Without the right to do this, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -20);
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
                let failure = copy_until_it_fails(&evil, &to).map(|error| (error.kind(), error.chain()));
                // The copy ends at the bound for its entries, or at the inodes that it has to leave.
                assert!(matches!(failure, None | Some((Kind::Busy | Kind::NoSpace, _))), "{failure:?}");
                let free = rustix::fs::statvfs(path).unwrap().f_favail;
                assert!(free > 60_000 / 25, "{free} inodes are free: {failure:?}");
                a_removal_gives_way_soon(path, "evil");
            });
        });
    });
}

fn only_the_endless_volume_is_not_measured(evil: &Path, good: &Path) {
    let usage = UsageCache::new("p".parse().unwrap(), Duration::from_secs(60));
    let [bad_name, good_name]: [Name; 2] = ["evil", "good"].map(|name| name.parse().unwrap());
    let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
    assert_eq!(usage.measure(&bad_name, open(evil), Duration::ZERO).unwrap(), None);
    let measured = usage.measure(&good_name, open(good), Duration::from_secs(100)).unwrap();
    assert_eq!(measured.unwrap().inodes, 1);
    for _ in 0..ATTEMPTS {
        // A measurement without a bound is neither complete nor does it fail.
        within_seconds(300, "the measurement ends", || {
            let measured = usage.measure(&bad_name, open(evil), Duration::ZERO).unwrap();
            measured.is_some() || usage.failure(&bad_name).is_some()
        });
        if let Some(reason) = usage.failure(&bad_name) {
            assert!(reason.contains("can hold") || reason.contains("moved"), "{reason}");
            return;
        }
        usage.forget(&bad_name);
    }
}

/// Copies until the walk does not overtake the moves; `None` if it always does. Without a bound the copy takes all inodes.
fn copy_until_it_fails(from: &Path, to: &Path) -> Option<Error> {
    let from = File::open(from).unwrap();
    for _ in 0..ATTEMPTS {
        let copied = copy_tree(from.as_fd(), File::open(to).unwrap().as_fd(), &Progress::default());
        if let Err(error) = copied {
            return Some(error);
        }
        within_seconds(120, "the copy is removed", || remove(to.parent().unwrap(), "copy").unwrap().complete);
        fs::create_dir(to).unwrap();
    }
    None
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
