//! A program that waits for space in its volume.
#![expect(clippy::print_stderr, reason = "reports what was measured")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::wait::{StopOnDrop, sleep_ms, within_seconds};

/// The next write of a waiting program succeeds in this time after an expansion (docs/semantics.md, Q6 and B4).
const PROMISED: Duration = Duration::from_millis(100);
/// A volume is full when so many writes after one another were refused.
const REFUSED: u32 = 20;

/// Makes the calling thread one of a tenant, which has no right to exceed quotas.
pub(crate) fn become_tenant() {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    set_capabilities(None, sets).unwrap();
}

/// Expands a volume five times while a program writes to a file in it without an end, and checks the time until its next
/// write succeeds. One of the five may be longer on a busy machine, and so may another one.
pub(crate) fn expands_under_a_writer(what: &str, file: &Path, expand: impl Fn(u32)) {
    let measured: Vec<_> = (1..=5).map(|round| until_next_write(file, || expand(round))).collect();
    let (mut after, calls): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
    eprintln!(
        "{what}: the next write succeeded {after:?} after an expansion, {calls:?} after its call began"
    );
    after.sort();
    assert!(after[2] < PROMISED, "{what}: {after:?} after an expansion");
}

/// The time from the end of `expand` until a write succeeds, 0 if one did before, and the time from its beginning.
fn until_next_write(path: &Path, expand: impl FnOnce()) -> (Duration, Duration) {
    let (full, expanding, stop) = (Barrier::new(2), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let writer = scope.spawn(|| {
            become_tenant();
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            let mut refused = 0;
            while refused < REFUSED {
                refused = if write(&mut file) { 0 } else { refused + 1 };
            }
            full.wait();
            loop {
                // A write before the expansion would tell nothing of it.
                let counts = expanding.load(Ordering::SeqCst);
                if write(&mut file) && counts || stop.load(Ordering::Relaxed) {
                    return Instant::now();
                }
            }
        });
        full.wait();
        expanding.store(true, Ordering::SeqCst);
        let began = Instant::now();
        expand();
        let expanded = Instant::now();
        within_seconds(60, "the next write succeeds", || writer.is_finished());
        let written = writer.join().unwrap();
        (written.saturating_duration_since(expanded), written.saturating_duration_since(began))
    })
}

/// Writes a block, or waits a little.
fn write(file: &mut File) -> bool {
    let is_written = file.write_all(&[1; 64 << 10]).is_ok();
    if !is_written {
        sleep_ms(1);
    }
    is_written
}
