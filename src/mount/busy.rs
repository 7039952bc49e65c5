//! Finds one process or mount that keeps a mount busy, for an error message. The search is bounded.

use std::ops::ControlFlow;
use std::path::Path;

use super::location::below;
use super::mountinfo;
use crate::error::Result;

/// Links of `/proc` that are read at most, because the caller waits.
const MAX_LINKS: usize = 20_000;

/// Returns what keeps the mount at `target` busy and what to do, as the end of an error message. `target` contains no
/// symbolic links.
pub(super) fn find_cause(target: &[u8]) -> Option<String> {
    find_mount_below(target).ok().flatten().or_else(|| find_process(target))
}

fn find_mount_below(target: &[u8]) -> Result<Option<String>> {
    let mut found = None;
    mountinfo::each_own(|line| {
        let point = line.target();
        if below(&point, target).is_some_and(|rest| !rest.is_empty()) {
            found = Some(format!("it contains a mount at {}: unmount that first", point.escape_ascii()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Finds a process that has an open file, its root, its working directory or its executable in `target`.
fn find_process(target: &[u8]) -> Option<String> {
    let mut links_left = MAX_LINKS;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        let dir = process.path();
        let links = ["cwd", "root", "exe"].map(|link| dir.join(link)).into_iter();
        let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
        for link in links.chain(files) {
            links_left = links_left.checked_sub(1)?;
            if points_into(&link, target) {
                let command = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
                let link = link.strip_prefix(&dir).unwrap_or(&link).display();
                return Some(format!(
                    "process {pid} ({}) uses it ({link}): stop the process first",
                    command.trim()
                ));
            }
        }
    }
    None
}

fn points_into(link: &Path, target: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    std::fs::read_link(link).is_ok_and(|path| below(path.as_os_str().as_bytes(), target).is_some())
}
