//! What ends the work of several threads early: a request to stop, or the error of one of them.

use std::sync::OnceLock;

use super::copy::Progress;
use crate::error::{Error, Kind, Result};

pub(in crate::fs) struct Stop<'a> {
    progress: &'a Progress,
    first_error: OnceLock<Error>,
}

impl<'a> Stop<'a> {
    pub(in crate::fs) fn new(progress: &'a Progress) -> Self {
        Self { progress, first_error: OnceLock::new() }
    }

    pub(in crate::fs) fn progress(&self) -> &'a Progress {
        self.progress
    }

    /// # Errors
    /// `Busy` when the work should stop.
    pub(in crate::fs) fn check(&self) -> Result<()> {
        self.progress.check()?;
        match self.first_error.get() {
            Some(_) => Err(Error::new(Kind::Busy, "another thread has failed")),
            None => Ok(()),
        }
    }

    /// Has the other threads end if the work of this one has failed. Later errors follow from the first one.
    pub(in crate::fs) fn or_stop<T>(&self, result: Result<T>) -> Option<T> {
        result.map_err(|error| drop(self.first_error.set(error))).ok()
    }

    /// The error that came first, when all threads have ended.
    pub(in crate::fs) fn result(self) -> Result<()> {
        self.first_error.into_inner().map_or(Ok(()), Err)
    }
}
