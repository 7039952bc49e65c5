//! Docker's own options for a share of an NFS server: `type=nfs`, `o=addr=nas,rw`, `device=:/export`.

use crate::error::{Context as _, Error, Kind, Result};
use crate::remote::NfsShare;
use crate::volume::shorten;

use super::message::Opts;

/// The options of a share.
const OPTIONS: [&str; 3] = ["type", "o", "device"];

/// Whether the options are those of Docker's own driver, for a share or a device.
pub(super) fn is_share(opts: &Opts) -> bool {
    OPTIONS.iter().any(|option| opts.contains_key(*option))
}

/// Parses the options of a share.
///
/// # Errors
/// `Unsupported` for another filesystem than NFS; `Invalid`, naming the option.
pub(super) fn parse(opts: &Opts) -> Result<NfsShare> {
    let of = |option: &str| opts.get(option).map(String::as_str).unwrap_or_default();
    check_type(opts)?;
    if let Some(other) = opts.keys().find(|option| !OPTIONS.contains(&option.as_str())) {
        let text = format!(
            "option {}: a share has the options type, o and device only, since orlop does not manage it",
            shorten(other)
        );
        return Err(invalid(text));
    }
    let (mut address, mut options) = (None, Vec::new());
    for option in of("o").split(',').map(str::trim) {
        match option.strip_prefix("addr=") {
            Some(named) => address = Some(named),
            None => options.push(option.to_owned()),
        }
    }
    let (host, path) = split_device(of("device"))?;
    let server = address.or(host).ok_or_else(|| {
        invalid("option o: it names no server, such as o=addr=nas.example.com,rw".to_owned())
    })?;
    NfsShare::with_mount_options(server, path, &options).context(|| "options o and device")
}

/// The server, if one is named, and the path, such as in `:/export` and `nas:/export`.
fn split_device(device: &str) -> Result<(Option<&str>, &str)> {
    let Some(at) = device.find(":/") else {
        let text =
            format!("option device: {:?} is not a path of the server, such as :/export", shorten(device));
        return Err(invalid(text));
    };
    let (host, path) = device.split_at(at);
    Ok((Some(host).filter(|host| !host.is_empty()), &path[1..]))
}

fn check_type(opts: &Opts) -> Result<()> {
    let text = match opts.get("type").map(String::as_str) {
        Some("nfs" | "nfs4") => return Ok(()),
        Some("cifs" | "smb3") => {
            "option type=cifs: SMB shares are not supported yet: use the driver local for this volume"
        }
        _ => {
            "options type, o and device: orlop mounts shares of NFS servers with them, by type=nfs; a volume has options such \
             as size, pool, mode, uid and gid"
        }
    };
    Err(Error::new(Kind::Unsupported, text))
}

fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(opts: &[(&str, &str)]) -> Result<NfsShare> {
        parse(&opts.iter().map(|(option, value)| ((*option).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_options_of_dockers_own_driver_name_a_share() {
        for (o, device, expected) in [
            ("addr=nas,rw,nfsvers=4.1,soft", ":/export/a", "nas:/export/a"),
            ("addr=10.0.0.1", "nas:/export", "10.0.0.1:/export"),
            ("rw", "nas:/", "nas:/"),
            ("addr=fd00::1,ro", ":/a:/b", "[fd00::1]:/a:/b"),
            ("ro", "[fd00::1]:/a", "[fd00::1]:/a"),
        ] {
            let share = parsed(&[("type", "nfs"), ("o", o), ("device", device)]).unwrap();
            assert_eq!(share.to_string(), expected);
            assert_eq!(share.flags().read_only, o.ends_with("ro"), "{o}");
            assert!(share.flags().nodev && share.flags().nosuid, "{o}");
        }
        parsed(&[("type", "nfs4"), ("device", "nas:/a")]).unwrap();
    }

    #[test]
    fn a_wrong_option_of_a_share_is_named() {
        let nfs = ("type", "nfs");
        let cases: [(&[(&str, &str)], &str); 9] = [
            (&[nfs, ("o", "rw"), ("device", ":/a")], "option o: it names no server"),
            (&[nfs, ("o", "addr=nas"), ("device", "/a")], "option device"),
            (&[nfs, ("o", "addr=nas")], "option device"),
            (&[nfs, ("o", "addr=a b"), ("device", ":/a")], "server"),
            (&[nfs, ("o", "addr=nas,nfsvers=2"), ("device", ":/a")], "version"),
            (&[nfs, ("o", "addr=nas"), ("device", ":/a"), ("size", "1G")], "option size"),
            (&[("o", "addr=nas"), ("device", ":/a")], "by type=nfs"),
            (&[("type", "cifs"), ("device", "//nas/a")], "SMB shares are not supported yet"),
            (&[("type", "tmpfs"), ("device", "tmpfs")], "by type=nfs"),
        ];
        for (opts, expected) in cases {
            let error = parsed(opts).unwrap_err();
            assert!(error.chain().contains(expected), "{opts:?}: {}", error.chain());
        }
    }
}
