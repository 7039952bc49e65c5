//! Finds what a process may write to a volume through: a descriptor that is open for writing, or a shared writable
//! mapping.
//!
//! A file of another filesystem is never accessed, since its server may be dead or hostile. So the mount of a descriptor
//! and the device of a mapping are compared first, which the kernel tells without the filesystem.

use std::ffi::CString;
use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use super::mounts::Mounts;
use super::process::{Process, each_number};
use super::scan::Volumes;
use crate::mount::location::{below, path_of};
use crate::mount::mountinfo::Device;
use crate::sys::file_handle::open_through;
use crate::sys::mappings::{SharedMapping, next_shared_writable};

/// The volumes, and what is known about mounts.
#[derive(Debug)]
pub(super) struct Writers<'a> {
    pub(super) volumes: &'a Volumes,
    /// The mounts of all namespaces.
    pub(super) mounts: &'a Mounts,
}

impl Writers<'_> {
    /// Returns what the process can write to, for messages. A process that ends meanwhile writes nothing.
    pub(super) fn find(&self, process: &Process) -> Result<Option<String>, Errno> {
        match self.find_descriptor(process) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) => return ended(error),
        }
        self.find_mapping(process).or_else(ended)
    }

    fn find_descriptor(&self, process: &Process) -> Result<Option<String>, Errno> {
        let fds = process.file("fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut found = None;
        each_number(fds.as_fd(), |number| {
            if found.is_none() {
                found = match self.check_descriptor(process, &fds, number) {
                    // Closed meanwhile.
                    Err(Errno::NOENT) => None,
                    result => result?,
                };
            }
            Ok::<_, Errno>(())
        })?;
        Ok(found)
    }

    fn check_descriptor(
        &self,
        process: &Process,
        fds: &OwnedFd,
        number: i32,
    ) -> Result<Option<String>, Errno> {
        let name = number.to_string();
        // The mode of the link itself says how the file was opened.
        let link = rustix::fs::statat(fds, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if link.st_mode & 0o200 == 0 {
            return Ok(None);
        }
        let path = unless_too_long(rustix::fs::readlinkat(fds, &name, Vec::new()).map(CString::into_bytes))?;
        if path.as_ref().is_some_and(|path| path.first() != Some(&b'/')) {
            return Ok(None);
        }
        let info = process.text(&format!("fdinfo/{name}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        if mount.and_then(|mount| self.mounts.device(mount)).is_some_and(|device| !self.has(device)) {
            return Ok(None);
        }
        let file = process.file(&format!("fd/{name}"), OFlags::PATH)?;
        let is_in = self.is_in_volume(&file, path.as_deref())?;
        Ok(is_in.then(|| format!("has {} open for writing (descriptor {name})", shown(path.as_deref()))))
    }

    fn find_mapping(&self, process: &Process) -> Result<Option<String>, Errno> {
        let maps = process.file("maps", OFlags::RDONLY)?;
        match self.query_mappings(process, &maps) {
            Err(Errno::NOTTY) => self.read_mappings(process, maps),
            found => found,
        }
    }

    fn query_mappings(&self, process: &Process, maps: &OwnedFd) -> Result<Option<String>, Errno> {
        let mut address = 0;
        while let Some(SharedMapping { range, device: (major, minor) }) =
            next_shared_writable(maps.as_fd(), address)?
        {
            let found = self.check_mapping(process, &range, Device { major, minor })?;
            if found.is_some() {
                return Ok(found);
            }
            address = range.end;
        }
        Ok(None)
    }

    /// For a kernel without queries.
    fn read_mappings(&self, process: &Process, maps: OwnedFd) -> Result<Option<String>, Errno> {
        let (mut maps, mut line) =
            (BufReader::with_capacity(32 * 1024, std::fs::File::from(maps)), Vec::new());
        loop {
            line.clear();
            let length = maps
                .read_until(b'\n', &mut line)
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
            if length == 0 {
                return Ok(None);
            }
            let Some((range, device)) = shared_writable(&line) else { continue };
            let found = self.check_mapping(process, &range, device)?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn check_mapping(
        &self,
        process: &Process,
        range: &Range<u64>,
        device: Device,
    ) -> Result<Option<String>, Errno> {
        if !self.has(device) {
            return Ok(None);
        }
        // The names in map_files have no leading zeros.
        let name = format!("map_files/{:x}-{:x}", range.start, range.end);
        let path = unless_too_long(process.link(&name));
        let (file, path) = match path.and_then(|path| Ok((process.file(&name, OFlags::PATH)?, path))) {
            // Unmapped meanwhile.
            Err(Errno::NOENT) => return Ok(None),
            mapped => mapped?,
        };
        let is_in = self.is_in_volume(&file, path.as_deref())?;
        Ok(is_in.then(|| format!("has mapped {} for shared writing", shown(path.as_deref()))))
    }

    fn has(&self, device: Device) -> bool {
        self.volumes.locations.iter().any(|volume| volume.device == device)
    }

    /// Reports whether a regular file that has not been deleted is in a volume. If neither its mount nor its handle tells, it
    /// counts as one of a volume.
    fn is_in_volume(&self, file: &OwnedFd, path: Option<&[u8]>) -> Result<bool, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(file, "", flags, mask)?;
        let st_dev = Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
        let device = self.mounts.device(stat.stx_mnt_id).unwrap_or(st_dev);
        if !(self.has(device) || self.volumes.st_devs.contains(&device)) {
            return Ok(false);
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile || stat.stx_nlink == 0 {
            return Ok(false);
        }
        let is_in = match path {
            Some(path) => self.mounts.is_in(&self.volumes.locations, stat.stx_mnt_id, path),
            None => self.mounts.may_show(&self.volumes.locations, stat.stx_mnt_id),
        };
        // A mount that is in no table was unmounted lazily, or is in the namespace of a thread.
        Ok(is_in.or_else(|| self.has_in_own_namespace(file)).unwrap_or(true))
    }

    /// Reports whether a file is in a volume, by its path in this mount namespace; `None` if it cannot be opened there.
    fn has_in_own_namespace(&self, file: &OwnedFd) -> Option<bool> {
        self.volumes.dirs.iter().try_fold(false, |found, dir| {
            let opened = open_through(file.as_fd(), dir.as_fd()).ok()?;
            let (path, volume) = (path_of(opened.as_fd()).ok()?, path_of(dir.as_fd()).ok()?);
            Some(found || below(&path, &volume).is_some())
        })
    }
}

/// `None` for a path that is longer than the kernel tells.
fn unless_too_long(path: Result<Vec<u8>, Errno>) -> Result<Option<Vec<u8>>, Errno> {
    match path {
        Err(Errno::NAMETOOLONG) => Ok(None),
        path => path.map(Some),
    }
}

fn shown(path: Option<&[u8]>) -> String {
    path.map_or_else(|| "a file with a long path".to_owned(), |path| path.escape_ascii().to_string())
}

/// Returns the range and the device of a line of `/proc/PID/maps` if it is of a mapping that is shared and writable.
fn shared_writable(line: &[u8]) -> Option<(Range<u64>, Device)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (range, permissions) = (fields.next()?, fields.next()?);
    let [_, b'w', _, b's'] = permissions else { return None };
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let device = Device { major: number(major)?.try_into().ok()?, minor: number(minor)?.try_into().ok()? };
    Some((number(start)?..number(end)?, device))
}

fn ended(error: Errno) -> Result<Option<String>, Errno> {
    match error {
        Errno::NOENT | Errno::SRCH => Ok(None),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use rustix::fs::Mode;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test needs a process with a mapping")]
    fn a_query_and_the_map_find_the_same_mapping() {
        const SCRIPT: &str = "import mmap, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 4096)\n\
                              print('r', end='', flush=True)\nsys.stdin.read()";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mapped");
        std::fs::write(&path, [0; 8192]).unwrap();
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        let process = Process::open(&proc, i32::try_from(child.id()).unwrap()).unwrap();
        let volumes = Volumes::of(&[std::fs::File::open(dir.path()).unwrap().as_fd()]).unwrap();
        let mut mounts = Mounts::of(volumes.locations.iter().map(|volume| volume.device).collect());
        mounts.read(&process, &process.mount_namespace().unwrap()).unwrap();
        let writers = Writers { volumes: &volumes, mounts: &mounts };
        let maps = || process.file("maps", OFlags::RDONLY).unwrap();
        let found = writers.read_mappings(&process, maps()).unwrap();
        assert!(found.as_ref().unwrap().ends_with("mapped for shared writing"), "{found:?}");
        match writers.query_mappings(&process, &maps()) {
            Err(Errno::NOTTY) => {}
            queried => assert_eq!(queried.unwrap(), found),
        }
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn only_shared_writable_mappings_are_taken_from_the_map() {
        let device = Device { major: 0xfe, minor: 0x10 };
        let line = b"00400000-00452000 rw-s 00000000 fe:10 173521      /data/a b\n";
        assert_eq!(shared_writable(line), Some((0x40_0000..0x45_2000, device)));
        for line in [
            &b"00400000-00452000 rw-p 00000000 fe:10 173521      /data/a\n"[..],
            b"00400000-00452000 r--s 00000000 fe:10 173521      /data/a\n",
            b"",
            b"nonsense",
        ] {
            assert_eq!(shared_writable(line), None, "{}", line.escape_ascii());
        }
    }
}
