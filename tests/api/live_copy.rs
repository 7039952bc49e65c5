//! Copies of trees that a tenant changes, or tries to keep from being copied.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Kind, Result};
use orlop::fs::copy::{Manifest, Progress, copy_tree};
use rustix::fs::{XattrFlags, setxattr};

use crate::common::isolation::{is_root, on_own_tmpfs};
use crate::common::pool::memory_dir;
use crate::common::wait::StopOnDrop;

/// A source and an empty destination in a temporary directory.
fn workspace() -> tempfile::TempDir {
    let dir = memory_dir();
    fs::create_dir(dir.path().join("from")).unwrap();
    dir
}

fn copy(workspace: &Path) -> Result<Manifest> {
    let to = workspace.join("to");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir(&to).unwrap();
    let (from, to) = (File::open(workspace.join("from")).unwrap(), File::open(&to).unwrap());
    copy_tree(from.as_fd(), to.as_fd(), &Progress::default())
}

/// A process that holds a write lease on each file of a directory and gives none up. Killed on drop.
pub(crate) struct LeaseHolder(Child);

impl LeaseHolder {
    #[expect(clippy::disallowed_methods, reason = "a lease belongs to a process that ignores its signal")]
    pub(crate) fn start(dir: &Path) -> Self {
        let program = "import fcntl, os, signal, sys\n\
            signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            files = [os.open(entry.path, os.O_RDWR) for entry in os.scandir(sys.argv[1])]\n\
            for file in files: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            print('leased', flush=True)\n\
            signal.pause()\n";
        let mut command = Command::new("python3");
        command.args(["-c", program]).arg(dir).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "leased\n");
        Self(child)
    }
}

impl Drop for LeaseHolder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn leases_delay_a_copy_for_seconds_only() {
    let workspace = workspace();
    let from = workspace.path().join("from");
    (0..100).for_each(|number| fs::write(from.join(number.to_string()), "x").unwrap());
    let holder = LeaseHolder::start(&from);
    let began = Instant::now();
    let error = copy(workspace.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
    assert!(error.chain().contains("holds a lease"), "{}", error.chain());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(holder);
    assert_eq!(copy(workspace.path()).unwrap().entries, 100);
}

#[test]
fn a_file_with_a_hole_that_shrinks_is_copied() {
    let workspace = workspace();
    let paths: Vec<_> =
        (0..50).map(|number| workspace.path().join("from").join(number.to_string())).collect();
    let files: Vec<File> = paths.iter().map(|path| File::create(path).unwrap()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for file in &files {
                    file.set_len(0).unwrap();
                    file.write_at(&[1; 4096], 1 << 20).unwrap();
                }
            }
        });
        let copies: Vec<_> = (0..200).map(|_| copy(workspace.path())).collect();
        stop.store(true, Ordering::Relaxed);
        for copy in copies {
            copy.unwrap_or_else(|error| panic!("{}", error.chain()));
        }
    });
}

#[test]
fn a_file_with_more_attributes_than_the_kernel_lists_is_copied_without_them() {
    let workspace = workspace();
    let file = workspace.path().join("from/file");
    fs::write(&file, "x").unwrap();
    for number in 0..400 {
        setxattr(&file, format!("user.{number:0200}"), b"v", XattrFlags::empty()).unwrap();
    }
    let manifest = copy(workspace.path()).unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!((manifest.entries, manifest.skipped_xattrs), (1, 1));
    assert_eq!(fs::read(workspace.path().join("to/file")).unwrap(), b"x");
}

#[test]
fn a_directory_that_is_moved_during_the_copy_does_not_fail_it() {
    let workspace = workspace();
    let from = workspace.path().join("from");
    let deep = from.join("a/b/c/d/e/f/g/h/i/j/k/l");
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(from.join("other")).unwrap();
    (0..500).for_each(|number| fs::write(deep.join(number.to_string()), "x").unwrap());
    let (stop, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut here, mut there) = (from.join("a/b"), from.join("other/b"));
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&here, &there).unwrap();
                (here, there) = (there, here);
                moves.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = StopOnDrop(&stop);
        // Many moves during each copy, and enough copies that a move is met on the way back.
        let copies: Vec<_> = (0..100).map(|_| copy(workspace.path())).collect();
        for copy in copies {
            copy.unwrap_or_else(|error| panic!("{}", error.chain()));
        }
    });
    assert!(moves.into_inner() > 100, "the directory was moved too rarely");
}

#[test]
fn a_copy_leaves_inodes_to_others() {
    if !is_root() {
        return;
    }
    on_own_tmpfs(c"size=64m,nr_inodes=2000", |path| {
        let [from, to] = ["from", "to"].map(|name| path.join(name));
        fs::create_dir(&from).unwrap();
        (0..1000).for_each(|number| fs::write(from.join(number.to_string()), "").unwrap());
        let error = copy(path).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        assert!(error.chain().contains("inodes of the filesystem are free"), "{}", error.chain());
        let free = rustix::fs::statvfs(path).unwrap().f_favail;
        assert!((90..=100).contains(&free), "{free} inodes are left");
        fs::remove_dir_all(to).unwrap();
        (0..100).for_each(|number| fs::remove_file(from.join(number.to_string())).unwrap());
        assert_eq!(copy(path).unwrap().entries, 900);
    });
}
