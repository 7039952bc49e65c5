//! Names of archive files.

use std::path::Path;

use super::compression::Compression;

/// The compression that the name of a file tells; `None` if it is not that of an archive.
#[must_use]
pub fn compression_of(path: &Path) -> Option<Compression> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let ends =
        |endings: &[&str]| endings.iter().any(|ending| name.len() > ending.len() && name.ends_with(ending));
    if ends(&[".tar"]) {
        Some(Compression::None)
    } else if ends(&[".tar.gz", ".tgz"]) {
        Some(Compression::Gzip)
    } else if ends(&[".tar.zst", ".tzst"]) {
        Some(Compression::Zstd)
    } else {
        None
    }
}

/// Whether a command means a file by this text, and not a snapshot: a path that begins with `/`, `./` or `../`, standard
/// input, or an existing file with the name of an archive.
#[must_use]
pub fn is_archive(text: &str) -> bool {
    let path = Path::new(text);
    let is_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    text == "-" || is_path || compression_of(path).is_some() && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_tells_its_compression() {
        for (name, expected) in [
            ("a.tar", Some(Compression::None)),
            ("x/A.TAR.GZ", Some(Compression::Gzip)),
            ("a.tgz", Some(Compression::Gzip)),
            ("a.b.tar.zst", Some(Compression::Zstd)),
            ("a.zst", None),
            (".tar", None),
            ("tar", None),
        ] {
            assert_eq!(compression_of(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_path_is_an_archive_and_a_name_is_a_snapshot() {
        for text in ["-", "/a", "./a", "../a.tar"] {
            assert!(is_archive(text), "{text}");
        }
        for text in ["a", "p/a", "no-such-file.tar", "p/no-such-file.tar.gz"] {
            assert!(!is_archive(text), "{text}");
        }
    }
}
