//! Memory that is not needed any more.
#![expect(unsafe_code, reason = "only the caller can know that what is dropped can be read again")]

use std::fs;

/// Lets the program's own code go that is mapped by now: most of it was needed for the start alone. What is called
/// again is mapped again, from the cache of the kernel and without the disk.
pub fn forget_start() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    for (start, end) in maps.lines().filter_map(|line| code_of(line, program.to_str()?)) {
        let place = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is one mapping of the program's file that nobody may write to, so no page of it differs
        // from the file, and a page that is not there is read from the file when it is next looked at.
        let _ = unsafe { libc::madvise(place, end - start, libc::MADV_DONTNEED) };
    }
}

/// The range of a line of `/proc/self/maps` if it is code of this file: mapped as it is, never written to.
fn code_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let is_program = is_code && line.ends_with(&format!(" {program}"));
    let number = |text| usize::from_str_radix(text, 16).ok();
    is_program.then_some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_let_go() {
        let line = |rights: &str, path: &str| format!("1000-3000 {rights} 00000000 fd:01 17    {path}");
        assert_eq!(code_of(&line("r-xp", "/bin/orlop"), "/bin/orlop"), Some((0x1000, 0x3000)));
        for (rights, path) in [
            ("r--p", "/bin/orlop"),
            ("rw-p", "/bin/orlop"),
            ("r-xp", "/lib/libc.so.6"),
            ("r-xp", "[vdso]"),
            ("r-xp", ""),
        ] {
            assert_eq!(code_of(&line(rights, path), "/bin/orlop"), None, "{rights} {path}");
        }
        forget_start();
        assert!(std::hint::black_box(line("r-xp", "x")).contains("r-xp"), "the code comes back");
    }
}
