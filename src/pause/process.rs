//! A process as `/proc` shows it. Everything is read through one descriptor of its directory, so that it is of one process
//! even if the id is used again.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    dir: OwnedFd,
}

impl Process {
    /// Opens the directory of a process in `proc`; that of one of its threads if the first thread has ended, since
    /// nothing can be read of an ended thread.
    pub(super) fn open(proc: impl AsFd, pid: i32) -> Result<Self, Errno> {
        let process = Self::at(proc, &pid.to_string())?;
        if process.mount_namespace() != Err(Errno::NOENT) {
            return Ok(process);
        }
        let threads = process.file("task", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut living = None;
        each_number(threads.as_fd(), |id| {
            let thread = Self::at(&threads, &id.to_string()).ok();
            living = living.take().or(thread.filter(|thread| thread.mount_namespace().is_ok()));
            Ok::<_, Errno>(())
        })?;
        Ok(living.unwrap_or(process))
    }

    /// Opens the directory of the calling thread.
    pub(super) fn of_thread(proc: impl AsFd) -> Result<Self, Errno> {
        Self::at(proc, "thread-self")
    }

    fn at(proc: impl AsFd, path: &str) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(proc, path, flags, Mode::empty()).map(|dir| Self { dir })
    }

    /// The id of its mount namespace, such as `mnt:[4026531841]`.
    pub(super) fn mount_namespace(&self) -> Result<Vec<u8>, Errno> {
        self.link("ns/mnt")
    }

    /// The target of one of its links.
    pub(super) fn link(&self, path: &str) -> Result<Vec<u8>, Errno> {
        rustix::fs::readlinkat(&self.dir, path, Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Opens one of its files or directories.
    pub(super) fn file(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Its cgroups.
    pub(super) fn cgroup(&self) -> Result<String, Errno> {
        self.text("cgroup")
    }

    /// Its name, safe to print.
    pub(super) fn command(&self) -> String {
        self.text("comm").unwrap_or_default().trim_end().escape_debug().to_string()
    }

    /// Reports whether it is a thread of the kernel, or has ended: it has no executable.
    pub(super) fn has_no_program(&self) -> bool {
        self.link("exe") == Err(Errno::NOENT)
    }

    /// Reports whether it executes no program any more: it is ending (`PF_EXITING` in proc_pid_stat(5)), or has ended. Its
    /// `cgroup` then names the root in hierarchies of cgroup v1.
    pub(super) fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 0x4;
        let Ok(stat) = self.text("stat") else { return true };
        // The name of the program may contain anything, so the fields are counted from its end.
        let flags = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(6)?.parse().ok());
        flags.is_some_and(|flags: u32| flags & PF_EXITING != 0)
    }

    /// Reads a small file.
    pub(super) fn text(&self, path: &str) -> Result<String, Errno> {
        let file = self.file(path, OFlags::RDONLY)?;
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match rustix::io::read(&file, &mut buffer) {
                Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Ok(length) if bytes.len() < 64 * 1024 => bytes.extend_from_slice(&buffer[..length]),
                Ok(_) => return Err(Errno::FBIG),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Calls `visit` with each entry of a directory of `/proc` whose name is a number, until it fails.
pub(super) fn each_number<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut visit: impl FnMut(i32) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let number =
            std::str::from_utf8(entry.file_name().to_bytes()).ok().and_then(|name| name.parse().ok());
        number.map_or(Ok(()), &mut visit)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test needs a process that ends")]
    fn a_process_that_has_ended_is_told_from_one_that_runs() {
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(&proc, pid).unwrap();
        assert!(!process.is_ending());
        child.kill().unwrap();
        while !process.text("stat").unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(process.is_ending(), "a zombie");
        child.wait().unwrap();
        assert!(process.is_ending(), "no process");
    }
}
