//! Who keeps a mount busy: one process or mount to name in an error, found quickly or not at all.

use std::ops::ControlFlow;
use std::path::Path;

use super::location::below;
use super::mountinfo;
use crate::error::Result;

/// How many links of `/proc` are read at most: the caller waits.
const MOST_LINKS: usize = 20_000;

/// What keeps the mount at `target` (a path with no symbolic link in it) busy, in words that end a sentence.
pub(super) fn holder(target: &[u8]) -> Option<String> {
    mount_below(target).ok().flatten().or_else(|| process(target))
}

fn mount_below(target: &[u8]) -> Result<Option<String>> {
    let mut found = None;
    mountinfo::each_own(|line| {
        let point = line.target();
        if below(&point, target).is_some_and(|rest| !rest.is_empty()) {
            found = Some(format!("a mount at {} is inside it: unmount that first", point.escape_ascii()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// A process with a directory, program or file open there.
fn process(target: &[u8]) -> Option<String> {
    let mut left = MOST_LINKS;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        let dir = process.path();
        let links = ["cwd", "root", "exe"].map(|link| dir.join(link)).into_iter();
        let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
        for link in links.chain(files) {
            left = left.checked_sub(1)?;
            if leads_into(&link, target) {
                let command = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
                let link = link.strip_prefix(&dir).unwrap_or(&link).display();
                return Some(format!(
                    "process {pid} ({}) holds it by its {link}: stop it first",
                    command.trim()
                ));
            }
        }
    }
    None
}

fn leads_into(link: &Path, target: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    std::fs::read_link(link).is_ok_and(|path| below(path.as_os_str().as_bytes(), target).is_some())
}
