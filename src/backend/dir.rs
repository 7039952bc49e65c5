//! Plain folders on any filesystem: no limit is enforced, copies are made file by file.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, Mode};

use super::Backend;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Enforced, Limit};

/// Has no state of its own.
#[derive(Debug)]
pub(super) struct Dir;

impl Backend for Dir {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn make(&self, draft: BorrowedFd<'_>) -> Result<()> {
        fs::mkdirat(draft, DATA, Mode::RWXU).context(|| "make the data folder")
    }

    fn limit(&self, _data: BorrowedFd<'_>, _bytes: u64, request: Limit) -> Result<Enforced> {
        self.check_limit(request).map(|()| Enforced::No)
    }

    fn check_limit(&self, request: Limit) -> Result<()> {
        match request {
            Limit::Auto | Limit::None => Ok(()),
            Limit::Hard => Err(Error::new(
                Kind::Unsupported,
                "limit=hard: this pool keeps plain directories and cannot enforce a size; \
                 use limit=auto or limit=none",
            )),
        }
    }
}
