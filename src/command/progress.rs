//! The progress of a copy, backup or restore that takes long, in one line of the terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _, Seek as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::volume::Size;

/// What ends sooner shows no line.
const QUIET: Duration = Duration::from_secs(2);

/// The length of a bar.
const WHOLE: u64 = 1000;

/// How much there is to do, as far as it is known.
#[derive(Debug, Default)]
pub enum Total {
    /// Not known.
    #[default]
    Unknown,
    /// Bytes of data.
    Data(u64),
    /// A regular file that is read to its end, and its length. The file shares its offset with the reader.
    Input(File, u64),
}

impl Total {
    /// The total of work that reads a stream to its end.
    #[must_use]
    pub fn of_input(stream: &File) -> Self {
        match (stream.metadata(), stream.try_clone()) {
            (Ok(metadata), Ok(file)) if metadata.is_file() => Self::Input(file, metadata.len()),
            _ => Self::Unknown,
        }
    }

    /// How much of [`WHOLE`] is done after these bytes of data.
    fn done(&self, data: u64) -> Option<u64> {
        let (done, total) = match self {
            Self::Unknown => return None,
            Self::Data(total) => (data, *total),
            Self::Input(file, length) => ((&mut &*file).stream_position().ok()?, *length),
        };
        let done = u128::from(done.min(total)) * u128::from(WHOLE);
        done.checked_div(total.into()).and_then(|done| done.try_into().ok())
    }
}

/// The line, on standard error if that is a terminal. Dropping it clears it.
#[derive(Debug)]
pub(super) struct ProgressLine<'a> {
    started: Instant,
    total: &'a Total,
    /// Hidden at first.
    bar: ProgressBar,
    is_shown: bool,
}

impl<'a> ProgressLine<'a> {
    /// A line with a bar, if the total is known.
    pub(super) fn new(total: &'a Total) -> Self {
        let bar = ProgressBar::with_draw_target(Some(WHOLE), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(match total {
            Total::Unknown => "{elapsed:>3} {msg}",
            Total::Data(_) | Total::Input(..) => "{elapsed:>3} [{wide_bar}] {percent:>3}% {msg}",
        });
        Self {
            started: Instant::now(),
            total,
            bar: bar.with_style(style.expect("the template is valid").progress_chars("=> ")),
            is_shown: false,
        }
    }

    /// Shows how far it is, if it has taken long.
    pub(super) fn update(&mut self, (entries, bytes): (u64, u64)) {
        if self.started.elapsed() < QUIET {
            return;
        }
        self.bar.set_message(format!("{}, {entries} entries", Size(bytes).to_short()));
        self.bar.set_position(self.total.done(bytes).unwrap_or_default());
        if !self.is_shown && can_replace_lines() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.tick();
        }
        self.is_shown = true;
    }
}

impl Drop for ProgressLine<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn can_replace_lines() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn the_part_that_is_done_is_known_from_the_data_or_from_the_input() {
        assert_eq!(Total::Unknown.done(5), None);
        assert_eq!(Total::Data(0).done(5), None, "an empty copy has no parts");
        assert_eq!(Total::Data(20).done(5), Some(250));
        assert_eq!(Total::Data(20).done(21), Some(WHOLE), "the data may have grown");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 100]).unwrap();
        file.rewind().unwrap();
        let total = Total::of_input(&file);
        assert_eq!(total.done(99), Some(0));
        file.read_exact(&mut [0; 40]).unwrap();
        assert_eq!(total.done(0), Some(400));
        let (stream, _writer) = io::pipe().unwrap();
        let stream = File::from(std::os::fd::OwnedFd::from(stream));
        assert!(matches!(Total::of_input(&stream), Total::Unknown), "a pipe has no length");
    }
}
