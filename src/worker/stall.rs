//! Whether a group of pools does not respond: from the end of its worker until a call completes.

use std::sync::Mutex;

use super::process::lock;
use crate::error::{Error, Kind, Result};
use crate::volume::Timestamp;

/// The stall of a group.
#[derive(Debug, Default)]
pub(super) struct Stall(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Timestamp>,
    is_tried: bool,
}

/// The one call that is let in during a stall.
#[derive(Debug)]
pub(super) struct Trial<'a>(Option<&'a Stall>);

impl Stall {
    /// Lets a call in. During a stall, one at a time.
    ///
    /// # Errors
    /// `Unresponsive` while another call is tried.
    pub(super) fn enter(&self, (subject, remedy): (String, &str)) -> Result<Trial<'_>> {
        let mut state = lock(&self.0);
        match state.since {
            None => Ok(Trial(None)),
            Some(since) if state.is_tried => {
                let text = format!(
                    "{subject} does not respond: its worker process has been killed since {since:.0}; {remedy}"
                );
                Err(Error::new(Kind::Unresponsive, text))
            }
            Some(_) => {
                state.is_tried = true;
                Ok(Trial(Some(self)))
            }
        }
    }

    /// Begins a stall.
    pub(super) fn begin(&self) {
        lock(&self.0).since.get_or_insert_with(Timestamp::now);
    }

    /// Ends the stall: the pools respond.
    pub(super) fn end(&self) {
        lock(&self.0).since = None;
    }

    /// The begin of the stall.
    pub(super) fn since(&self) -> Option<Timestamp> {
        lock(&self.0).since
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(stall) = self.0 {
            lock(&stall.0).is_tried = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_at_a_time_is_tried_until_one_completes() {
        let stall = Stall::default();
        let enter = || stall.enter(("pool p".to_owned(), "check its disk"));
        drop((enter().unwrap(), enter().unwrap()));
        stall.begin();
        let trial = enter().unwrap();
        assert_eq!(enter().unwrap_err().kind(), Kind::Unresponsive);
        drop(trial);
        let _trial = enter().unwrap();
        stall.end();
        drop((enter().unwrap(), enter().unwrap()));
        assert_eq!(stall.since(), None);
    }
}
