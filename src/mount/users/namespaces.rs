//! A pass over the mount namespaces themselves, which can only say that nobody uses a directory: whoever does is then
//! looked for among the processes.
//!
//! The kernel gives out each namespace in its turn and the numbers of its mounts, which are never used again; so what
//! filesystem a mount is of is asked once, and a table is never put into words and read again. That takes a fifth of
//! the time that reading the tables of all processes takes, and sees namespaces that no process shows.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::record::MountRecord;
use crate::mount::mountinfo::Device;
use crate::sys::namespace::{self, Buffer, Info, Step};

/// `/proc/<pid>/ns/user` of everyone who is not in a user namespace made later.
const FIRST_USERS: &[u8] = b"user:[4026531837]";

/// The filesystems of the mounts that the last pass saw, by the mounts' numbers.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<u64, Device>);

/// The mounts of these filesystems in all namespaces but the caller's own. `None`: ask the processes, for the kernel
/// is older than Linux 6.12, or does not show us all, or did not come to rest.
pub(super) fn others(
    proc: BorrowedFd<'_>,
    devices: &[Device],
    known: &mut Known,
) -> Option<Vec<MountRecord>> {
    if !may_see_all(proc) {
        return None;
    }
    let mut pass = Pass { devices, known, seen: Vec::new(), numbers: Vec::new(), buffer: Buffer::default() };
    let mut after = HashMap::with_capacity(pass.known.0.len());
    pass.walk(proc, &mut after).ok()?;
    let seen = std::mem::take(&mut pass.seen);
    known.0 = after;
    Some(seen)
}

/// Namespaces that we have no right to are passed over without a word, so it must be certain that there are none.
fn may_see_all(proc: BorrowedFd<'_>) -> bool {
    let first = rustix::fs::readlinkat(proc, "thread-self/ns/user", Vec::new());
    let sets = rustix::thread::capabilities(None);
    first.is_ok_and(|link| link.as_bytes() == FIRST_USERS)
        && sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

struct Pass<'a> {
    devices: &'a [Device],
    known: &'a Known,
    seen: Vec<MountRecord>,
    numbers: Vec<u64>,
    buffer: Buffer,
}

impl Pass<'_> {
    /// First back, then forth: a namespace made meanwhile is the last, and is seen.
    fn walk(&mut self, proc: BorrowedFd<'_>, after: &mut HashMap<u64, Device>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(proc, "thread-self/ns/mnt", flags, Mode::empty())?;
        for step in [Step::Previous, Step::Next] {
            let mut here = namespace::step(own.as_fd(), step)?;
            while let Some((namespace, info)) = here {
                self.namespace(namespace.as_fd(), info, after)?;
                here = namespace::step(namespace.as_fd(), step)?;
            }
        }
        Ok(())
    }

    fn namespace(
        &mut self,
        namespace: BorrowedFd<'_>,
        mut info: Info,
        after: &mut HashMap<u64, Device>,
    ) -> Result<(), Errno> {
        // What cannot be reached from the root of a namespace is not listed. Then, or if there was a change between
        // the two calls, the numbers differ.
        for _ in 0..3 {
            match namespace::list(info.id, &mut self.numbers) {
                // It ends just now, and nothing is mounted in it.
                Err(Errno::NOENT) => self.numbers.clear(),
                listed => listed?,
            }
            if self.numbers.len() == info.mounts {
                return self.mounts(info.id, after);
            }
            info = namespace::info(namespace)?;
        }
        Err(Errno::AGAIN)
    }

    fn mounts(&mut self, namespace: u64, after: &mut HashMap<u64, Device>) -> Result<(), Errno> {
        for number in std::mem::take(&mut self.numbers) {
            let device = match self.known.0.get(&number) {
                Some(device) => *device,
                None => match namespace::device(namespace, number, &mut self.buffer) {
                    Err(Errno::NOENT) => continue,
                    device => device.map(|(major, minor)| Device { major, minor })?,
                },
            };
            after.insert(number, device);
            if self.devices.contains(&device) {
                match namespace::describe(namespace, number, &mut self.buffer) {
                    Err(Errno::NOENT) => {}
                    mount => self.seen.extend(MountRecord::elsewhere(device, mount?)),
                }
            }
        }
        Ok(())
    }
}
