//! What ends the work of several threads early: a request to stop, or the error of one of them.

use std::sync::OnceLock;

use crate::error::{Error, Kind, Result};
use crate::fs::copy::Progress;

pub(super) struct Stop<'a> {
    progress: &'a Progress,
    first_error: OnceLock<Error>,
}

impl<'a> Stop<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        Self { progress, first_error: OnceLock::new() }
    }

    /// # Errors
    /// `Busy` when the work should stop.
    pub(super) fn check(&self) -> Result<()> {
        self.progress.check()?;
        match self.first_error.get() {
            Some(_) => Err(Error::new(Kind::Busy, "another thread has failed")),
            None => Ok(()),
        }
    }

    /// Ends the other threads if the work of this one has failed.
    pub(super) fn or_stop<T>(&self, result: Result<T>) -> Option<T> {
        result.map_err(|error| drop(self.first_error.set(error))).ok()
    }

    /// The error that came first.
    pub(super) fn result(self) -> Result<()> {
        self.first_error.into_inner().map_or(Ok(()), Err)
    }
}
