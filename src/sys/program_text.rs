//! The resident pages of the program's text.
#![expect(unsafe_code, reason = "the linker defines where the text is, and madvise(2) takes addresses")]

use rustix::param::page_size;

unsafe extern "C" {
    /// The beginning of the program in memory, by GNU ld and lld.
    static __executable_start: u8;
    /// The end of its text, see end(3).
    static etext: u8;
}

/// Unmaps the pages of the program's text from this process. What is executed afterwards is mapped again from the page cache,
/// at a few microseconds for 64 KiB. After the start of a server, most of what was executed is not needed again.
pub fn release() {
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let start = start.map_addr(|start| start.next_multiple_of(page_size()));
    let length = (end.addr() & !(page_size() - 1)).saturating_sub(start.addr());
    // SAFETY: headers, constants and text of a file are between the two symbols. The program is position-independent, so
    // they have no relocations, and nothing writes to them: what is dropped is read from the file again.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
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
