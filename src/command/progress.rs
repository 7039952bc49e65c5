//! A line on the terminal about the progress of a copy, backup or restore that takes long.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::volume::Size;

/// What ends sooner shows no line.
const QUIET: Duration = Duration::from_secs(2);
/// The time between two lines.
const INTERVAL: Duration = Duration::from_millis(250);
/// The longest line: one that wraps could not be replaced.
const COLUMNS: usize = 39;

/// The line. Dropping it clears it.
#[derive(Debug)]
pub(super) struct ProgressLine {
    started: Instant,
    /// When it is shown next; never if there is no terminal.
    next: Option<Instant>,
    is_shown: bool,
}

impl ProgressLine {
    /// Prepares the line, on standard error if that is a terminal.
    pub(super) fn new() -> Self {
        let can_replace = std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb");
        let started = Instant::now();
        let next = (can_replace && io::stderr().is_terminal()).then(|| started + QUIET);
        Self { started, next, is_shown: false }
    }

    /// Shows how far it is, if it is time to.
    pub(super) fn update(&mut self, (entries, bytes): (u64, u64)) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + INTERVAL);
        self.is_shown = true;
        let line = line(entries, bytes, self.started.elapsed());
        let _ = write!(io::stderr(), "\r{line}\x1b[K");
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(entries: u64, bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let time = format!("{}:{:02}", seconds / 60, seconds % 60);
    let line = format!("{time}  {}  {entries} entries", Size(bytes).to_short());
    line.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_into_a_narrow_terminal() {
        assert_eq!(line(7, 3 << 20, Duration::from_secs(75)), "1:15  3Mi  7 entries");
        assert!(line(u64::MAX, u64::MAX, Duration::from_secs(u64::MAX)).chars().count() < 40);
    }
}
