//! Copies of trees that a tenant changes, or tries to keep from being copied.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Kind, Result};
use orlop::fs::copy::{Manifest, Progress, copy_tree};
use rustix::fs::{XattrFlags, setxattr};

use crate::common::pool::memory_dir;

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
struct LeaseHolder(Child);

impl LeaseHolder {
    #[expect(clippy::disallowed_methods, reason = "a lease belongs to a process that ignores its signal")]
    fn start(dir: &Path) -> Self {
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
