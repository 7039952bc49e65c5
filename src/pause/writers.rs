//! Finds what a process may write to a volume through: a descriptor that is open for writing, or a shared writable
//! mapping.
//!
//! A file of another filesystem is never accessed, since its server may be dead or hostile. So the mount of a descriptor
//! and the device of a mapping are compared first, which the kernel tells without the filesystem.

use std::ffi::CString;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use super::mounts::Mounts;
use super::process::{Process, each_number};
use crate::mount::location::FsLocation;
use crate::mount::mountinfo::Device;

/// The volumes, and what is known about mounts.
#[derive(Debug)]
pub(super) struct Writers<'a> {
    /// Where the volumes are.
    pub(super) volumes: &'a [FsLocation],
    /// Their filesystems as `stat` reports them, which differs from the mount table on btrfs.
    pub(super) st_devs: &'a [Device],
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
        let maps = std::fs::File::from(process.file("maps", OFlags::RDONLY)?);
        let (mut maps, mut line) = (BufReader::with_capacity(32 * 1024, maps), Vec::new());
        loop {
            line.clear();
            let length = maps
                .read_until(b'\n', &mut line)
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
            if length == 0 {
                return Ok(None);
            }
            let Some((range, device)) = shared_writable(&line) else { continue };
            if !self.has(device) {
                continue;
            }
            let name = format!("map_files/{range}");
            let path = unless_too_long(process.link(&name));
            let mapped = path.and_then(|path| Ok((process.file(&name, OFlags::PATH)?, path)));
            match mapped {
                // Unmapped meanwhile.
                Err(Errno::NOENT) => {}
                mapped => {
                    let (file, path) = mapped?;
                    if self.is_in_volume(&file, path.as_deref())? {
                        return Ok(Some(format!("has mapped {} for shared writing", shown(path.as_deref()))));
                    }
                }
            }
        }
    }

    fn has(&self, device: Device) -> bool {
        self.volumes.iter().any(|volume| volume.device == device)
    }

    /// Reports whether a regular file that has not been deleted is in a volume. A file on a mount that is in no table
    /// counts if it is on the same filesystem, and one whose path is too long if its mount has a part of a volume.
    fn is_in_volume(&self, file: &OwnedFd, path: Option<&[u8]>) -> Result<bool, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(file, "", flags, mask)?;
        let st_dev = Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
        let device = self.mounts.device(stat.stx_mnt_id).unwrap_or(st_dev);
        if !(self.has(device) || self.st_devs.contains(&device)) {
            return Ok(false);
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile || stat.stx_nlink == 0 {
            return Ok(false);
        }
        let is_in = match path {
            Some(path) => self.mounts.is_in(self.volumes, stat.stx_mnt_id, path),
            None => self.mounts.may_show(self.volumes, stat.stx_mnt_id),
        };
        Ok(is_in.unwrap_or(true))
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
fn shared_writable(line: &[u8]) -> Option<(String, Device)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (range, permissions) = (fields.next()?, fields.next()?);
    let [_, b'w', _, b's'] = permissions else { return None };
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let device = Device { major: number(major)?.try_into().ok()?, minor: number(minor)?.try_into().ok()? };
    // The names in map_files have no leading zeros.
    Some((format!("{:x}-{:x}", number(start)?, number(end)?), device))
}

fn ended(error: Errno) -> Result<Option<String>, Errno> {
    match error {
        Errno::NOENT | Errno::SRCH => Ok(None),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_writable_mappings_are_taken_from_the_map() {
        let device = Device { major: 0xfe, minor: 0x10 };
        let line = b"00400000-00452000 rw-s 00000000 fe:10 173521      /data/a b\n";
        assert_eq!(shared_writable(line), Some(("400000-452000".to_owned(), device)));
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
