//! The progress of a copy, backup or restore that takes long, in one line of the terminal.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::volume::Size;

/// What ends sooner shows no line.
const QUIET: Duration = Duration::from_secs(2);

/// The line, on standard error if that is a terminal. Dropping it clears it.
#[derive(Debug)]
pub(super) struct ProgressLine {
    started: Instant,
    /// Hidden at first.
    bar: ProgressBar,
    is_shown: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{elapsed:>3} {msg}");
        Self {
            started: Instant::now(),
            bar: bar.with_style(style.expect("the template is valid")),
            is_shown: false,
        }
    }

    /// Shows how far it is, if it has taken long.
    pub(super) fn update(&mut self, (entries, bytes): (u64, u64)) {
        if self.started.elapsed() < QUIET {
            return;
        }
        if !self.is_shown && can_replace_lines() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.is_shown = true;
        self.bar.set_message(format!("{}, {entries} entries", Size(bytes).to_short()));
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn can_replace_lines() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
