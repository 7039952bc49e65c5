//! Overlays with a layer in a directory. They use it, although their mounts do not show that: the kernel shows the layers as
//! text, the paths that were given when the overlay was mounted.
//!
//! The text is compared with the paths at which the directory is visible in the same mount table. No layer is opened: it may
//! be on a filesystem that does not respond.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::attached_location;
use super::location::{FsLocation, below};
use super::mountinfo::{Line, OWN_TABLE, unescape};
use crate::error::{Context as _, Result};

/// The mounts of the host, if this process is in a container.
const HOST_TABLE: &str = "/proc/1/mountinfo";

/// The options of an overlay that name one layer, or several with a colon between them.
const LAYERS: [&[u8]; 5] = [b"upperdir", b"lowerdir", b"workdir", b"lowerdir+", b"datadir+"];

/// An overlay that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    target: PathBuf,
    /// The layer that was looked for.
    layer: PathBuf,
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the overlay at {} with layer {}", self.target.display(), self.layer.display())
    }
}

/// Returns the first overlay, in the mount namespaces of this process and of the host, with a layer in a directory. `path`
/// leads to the directory, perhaps through symbolic links. A layer that was given by another path is not found, for example
/// by a relative one.
///
/// # Errors
/// `Internal` if the own mount table cannot be read or the directory has been removed.
pub fn overlay_in(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<Overlay>> {
    let location = attached_location(dir)?;
    let own = fs::read(OWN_TABLE).context(|| format!("read {OWN_TABLE}"))?;
    let found = find(&own, location.as_ref(), path);
    Ok(found.or_else(|| find(&fs::read(HOST_TABLE).ok()?, location.as_ref(), path)))
}

fn find(table: &[u8], location: Option<&FsLocation>, path: &Path) -> Option<Overlay> {
    let lines = || table.split(|byte| *byte == b'\n').filter_map(Line::parse);
    let mut names: Vec<_> = lines().filter_map(|line| name_in(&line, location?)).collect();
    names.push(path.to_owned());
    lines().find_map(|line| {
        let layer = layers_of(&line).find(|layer| names.iter().any(|name| layer.starts_with(name)))?;
        Some(Overlay { target: to_path(line.target().into_owned()), layer })
    })
}

/// The path of a location that is visible through a mount.
fn name_in(mount: &Line<'_>, location: &FsLocation) -> Option<PathBuf> {
    let (root, false) = mount.root() else { return None };
    let rest = below(&location.path, &root).filter(|_| mount.device == location.device)?;
    Some(to_path([&mount.target(), rest].concat()))
}

/// The layers of an overlay. None for another filesystem.
fn layers_of<'a>(mount: &Line<'a>) -> impl Iterator<Item = PathBuf> + use<'a> {
    let (fs_type, options) = mount.filesystem();
    let options = options.split(|byte| *byte == b',').filter(move |_| fs_type == b"overlay");
    let values = options.filter_map(|option| {
        let at = option.iter().position(|byte| *byte == b'=')?;
        LAYERS.contains(&&option[..at]).then_some(&option[at + 1..])
    });
    // A path with a colon is cut there, but its start is in the same directory.
    let layers = values.flat_map(|value| value.split(|byte| *byte == b':'));
    layers.map(|layer| to_path(unescape(layer).into_owned()))
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Device;

    const DISK: &str = "36 35 8:1 /srv /mnt/a\\040pool rw - ext4 /dev/sda1 rw\n";

    fn found(path: &str, options: &str) -> Option<String> {
        let location =
            FsLocation { device: Device { major: 8, minor: 1 }, path: path.into(), detached: false };
        let table = format!("40 35 0:50 / /merged rw shared:1 - overlay overlay rw,{options}\n{DISK}");
        find(table.as_bytes(), Some(&location), Path::new("/link/v/a")).map(|overlay| overlay.to_string())
    }

    #[test]
    fn a_layer_in_a_directory_is_found_by_each_path_of_the_directory() {
        let text = |layer: &str| Some(format!("the overlay at /merged with layer {layer}"));
        let layers = [
            ("upperdir=/mnt/a\\040pool/v/a/u,workdir=/w", "/mnt/a pool/v/a/u"),
            ("lowerdir=/l,upperdir=/u,workdir=/mnt/a\\040pool/v/a", "/mnt/a pool/v/a"),
            ("lowerdir=/l:/mnt/a\\040pool//v/a/./l::/d", "/mnt/a pool//v/a/./l"),
            ("lowerdir+=/l,datadir+=/mnt/a\\040pool/v/a/d", "/mnt/a pool/v/a/d"),
            ("lowerdir=/link/v/a/l", "/link/v/a/l"),
        ];
        for (options, layer) in layers {
            assert_eq!(found("/srv/v/a", options), text(layer), "{options}");
        }
    }

    #[test]
    fn a_layer_elsewhere_is_not_found() {
        for options in [
            "upperdir=/mnt/a\\040pool/v/ab,workdir=/mnt/a\\040pool/v/b",
            "lowerdir=/mnt/a\\040pool/v",
            "lowerdir=/l\\054upperdir=/mnt/a\\040pool/v/a",
            "redirect_dir=/mnt/a\\040pool/v/a",
            "lowerdir=v/a",
        ] {
            assert_eq!(found("/srv/v/a", options), None, "{options}");
        }
        assert_eq!(found("/other/v/a", "upperdir=/mnt/a\\040pool/v/a"), None);
        let no_overlay = format!("{DISK}40 35 0:50 / /x rw - fuse x rw,upperdir=/link/v/a\n");
        assert_eq!(find(no_overlay.as_bytes(), None, Path::new("/link/v/a")), None);
    }
}
