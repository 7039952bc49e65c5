//! Loop devices whose image is in a directory. They use it, although their mounts do not show that.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use super::location::{below, path_of};
use crate::error::{Context as _, Result};

/// Where the kernel lists the block devices of the host that have a size: the loop devices with an image among them.
const DEVICES: &str = "/proc/partitions";

/// Returns the first loop device whose image is in a directory, with the path of the image, for messages. An image that
/// was opened by another path, for example in a container, is not found.
///
/// # Errors
/// `Internal` if the devices cannot be listed.
pub fn loop_device_in(dir: BorrowedFd<'_>) -> Result<Option<String>> {
    let devices = match fs::read_to_string(DEVICES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        devices => devices.context(|| format!("read {DEVICES}"))?,
    };
    let names = devices.lines().filter_map(|line| line.split_ascii_whitespace().last());
    let mut loop_devices = names.filter(|name| name.starts_with("loop")).peekable();
    if loop_devices.peek().is_none() {
        return Ok(None);
    }
    let dir = path_of(dir)?;
    for name in loop_devices {
        // A partition of a device, or a device that was detached meanwhile, has no such file.
        let Ok(image) = fs::read(format!("/sys/block/{name}/loop/backing_file")) else { continue };
        let image = image.trim_ascii_end();
        if below(image, &dir).is_some() {
            return Ok(Some(format!("loop device {name} with image {}", image.escape_ascii())));
        }
    }
    Ok(None)
}
