//! The resident pages of the program's text and constants.
#![expect(unsafe_code, reason = "dl_iterate_phdr(3) and madvise(2) take addresses")]

use std::ffi::c_void;
use std::ops::Range;

use rustix::param::page_size;

/// Unmaps the pages of the program's text and constants from this process. What is used afterwards is mapped again from the page
/// cache, at a few microseconds for 64 KiB. After the start of a server, most of what was executed is not needed again.
pub fn release() {
    // SAFETY: `release_segments` has the type that dl_iterate_phdr(3) calls, and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut()) };
}

/// Returns 1, so that only the first object is visited: the program itself.
unsafe extern "C" fn release_segments(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr passes a valid description of an object that stays loaded.
    let (info, headers) = unsafe {
        let info = &*info;
        (info, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    for pages in headers.iter().filter(|header| is_read_only(header)).filter_map(|header| pages(info, header))
    {
        let start = std::ptr::with_exposed_provenance_mut(pages.start);
        // SAFETY: whole pages of a segment that was never writable, so no relocation and no store has changed them: what is
        // dropped is read from the file again.
        unsafe { libc::madvise(start, pages.len(), libc::MADV_DONTNEED) };
    }
    1
}

fn is_read_only(header: &libc::Elf64_Phdr) -> bool {
    header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
}

/// The addresses of the pages that lie completely in a segment.
fn pages(info: &libc::dl_phdr_info, header: &libc::Elf64_Phdr) -> Option<Range<usize>> {
    let start = usize::try_from(info.dlpi_addr.checked_add(header.p_vaddr)?).ok()?;
    let end = start.checked_add(usize::try_from(header.p_filesz).ok()?)? & !(page_size() - 1);
    let start = start.checked_next_multiple_of(page_size())?;
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_was_released_is_mapped_again_when_it_is_executed() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        release();
        assert!(resident() < before);
    }
}
