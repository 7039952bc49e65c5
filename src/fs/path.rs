//! Paths of entries in a tree, for error messages.

use std::ffi::CStr;

/// The path of a walk's current directory, relative to the root of the tree. Long paths are abbreviated.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct TreePath {
    path: Vec<u8>,
    /// Number of deeper levels, which are not in `path`.
    omitted: usize,
}

impl TreePath {
    const MAX_BYTES: usize = 1024;
    /// Number of characters shown at each end of a path that is too long.
    const SHOWN: usize = 100;

    /// Descends into a subdirectory.
    pub(super) fn push(&mut self, name: &CStr) {
        if self.omitted > 0 || self.path.len() + name.count_bytes() >= Self::MAX_BYTES {
            self.omitted += 1;
            return;
        }
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());
    }

    /// Returns to the parent directory.
    pub(super) fn pop(&mut self) {
        if self.omitted > 0 {
            self.omitted -= 1;
        } else {
            let end = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            self.path.truncate(end);
        }
    }

    /// The path of an entry of the current directory: at most 201 characters, none of them a control character.
    pub(super) fn join(&self, name: &CStr) -> String {
        let mut path = self.path.clone();
        if self.omitted > 0 {
            path.extend_from_slice(format!("/({} deeper)", self.omitted).as_bytes());
        }
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        Self::printable(path.get(1..).unwrap_or_default())
    }

    /// The path of the current directory, as short and printable as [`TreePath::join`].
    pub(super) fn current(&self) -> String {
        if self.path.is_empty() { "the top directory".to_owned() } else { Self::printable(&self.path[1..]) }
    }

    fn printable(path: &[u8]) -> String {
        let text: Vec<char> = String::from_utf8_lossy(path)
            .chars()
            .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        if text.len() <= 2 * Self::SHOWN {
            return text.into_iter().collect();
        }
        let (head, tail) = (&text[..Self::SHOWN], &text[text.len() - Self::SHOWN..]);
        head.iter().chain(&['…']).chain(tail).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_message_is_short_and_printable() {
        let mut path = TreePath::default();
        assert_eq!(path.current(), "the top directory");
        assert_eq!(path.join(c"a"), "a");
        path.push(c"dir");
        path.push(c"new\nline");
        assert_eq!(path.join(c"f"), "dir/new\u{fffd}line/f");
        for _ in 0..5000 {
            path.push(c"deep-deep-deep");
        }
        assert!(path.join(c"f").chars().count() <= 201);
        assert!(path.join(c"f").ends_with("deeper)/f"));
        for _ in 0..5001 {
            path.pop();
        }
        assert_eq!(path.current(), "dir");
        path.pop();
        assert_eq!(path.current(), "the top directory");
    }
}
