//! Loop devices whose image is in a directory. They use it, although their mounts do not show that.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use super::location::{below, path_of};
use crate::error::{Context as _, Result};

/// Where the kernel lists the block devices of the host.
const BLOCK_DEVICES: &str = "/sys/block";

/// Returns the first loop device whose image is in a directory, with the path of the image, for messages. An image that
/// was opened by another path, for example in a container, is not found.
///
/// # Errors
/// `Internal` if the devices cannot be listed.
pub fn loop_device_in(dir: BorrowedFd<'_>) -> Result<Option<String>> {
    let dir = path_of(dir)?;
    let devices = match fs::read_dir(BLOCK_DEVICES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        devices => devices.context(|| format!("list {BLOCK_DEVICES}"))?,
    };
    for device in devices {
        let name = device.context(|| format!("list {BLOCK_DEVICES}"))?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
        // A device without an image has no such file.
        let Ok(image) = fs::read(format!("{BLOCK_DEVICES}/{name}/loop/backing_file")) else { continue };
        let image = image.trim_ascii_end();
        if below(image, &dir).is_some() {
            return Ok(Some(format!("loop device {name} with image {}", image.escape_ascii())));
        }
    }
    Ok(None)
}
