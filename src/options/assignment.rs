//! Options as users write them on a command line: `-o size=10G -o uid=www-data`.

use std::collections::HashMap;
use std::{fs, io};

use super::{Spelling, VOLUME, VolumeOptions, volume_options_as};
use crate::engine::request::CreateVolume;
use crate::error::{Context as _, Error, Kind, Result};
use crate::quantity::DockerSize;
use crate::volume::{Labels, PoolName, SizeRange, Source, shorten};

/// The label that Docker gives to anonymous volumes.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// Prefix of an option that is a label.
const LABEL: &str = "label.";
/// Maximum length of a label's key or value in bytes.
const MAX_LABEL: usize = 1024;

/// The options of a new volume on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Size in bytes; `None` if no size was requested.
    pub size: Option<u64>,
    /// The volume or snapshot to copy.
    pub from: Option<String>,
    /// All other options.
    pub options: VolumeOptions,
}

impl Assigned {
    /// The request for a volume of this name in this pool.
    #[must_use]
    pub fn into_request(self, name: String, pool: PoolName, source: Option<Source>) -> CreateVolume {
        let size = self.size.unwrap_or(0);
        CreateVolume {
            name,
            pool: Some(pool),
            size: SizeRange { required: size, limit: size },
            owner: self.options.owner,
            policy: self.options.policy,
            labels: self.options.labels,
            source,
            consistency: self.options.consistency,
            may_go_elsewhere: false,
        }
    }
}

/// Parses options such as `size=10G`, and labels such as `app=shop`. A size has Docker's units.
///
/// # Errors
/// `Invalid`, which names the option.
pub fn parse(options: &[String], labels: &[String]) -> Result<Assigned> {
    let (mut size, mut from, mut others) = (None, None, HashMap::new());
    let mut parsed_labels = labels.iter().map(|label| label_of(label)).collect::<Result<Labels>>()?;
    for option in options {
        let (name, value) = split(option)?;
        if let Some(key) = name.strip_prefix(LABEL) {
            let (key, value) = label_of(&format!("{key}={value}"))?;
            parsed_labels.insert(key, value);
            continue;
        }
        let is_repeated = match name.to_ascii_lowercase().as_str() {
            "size" => {
                let parsed = value.parse::<DockerSize>().context(|| "option size")?;
                size.replace(parsed.0).is_some()
            }
            "from" => from.replace(value.to_owned()).is_some(),
            "uid" => others.insert("uid".to_owned(), id_of("uid", "/etc/passwd", value)?).is_some(),
            "gid" => others.insert("gid".to_owned(), id_of("gid", "/etc/group", value)?).is_some(),
            _ => others.insert(known_name(name)?.to_owned(), value.to_owned()).is_some(),
        };
        if is_repeated {
            return Err(invalid(format!("option {name} is given twice")));
        }
    }
    let options = volume_options_as(Spelling::CommandLine, &others, &HashMap::new(), parsed_labels)?;
    Ok(Assigned { size, from, options })
}

/// Parses a label as `KEY=VALUE`; without `=`, the value is empty.
///
/// # Errors
/// `Invalid` for an empty or long key, a long value, or a control character.
pub fn label_of(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let is_bad = |text: &str| text.len() > MAX_LABEL || text.contains(char::is_control);
    if key.is_empty() || is_bad(key) || is_bad(value) {
        let text = format!("label {:?} is not KEY=VALUE with at most {MAX_LABEL} bytes each", shorten(text));
        return Err(invalid(text));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn split(option: &str) -> Result<(&str, &str)> {
    let pair = option.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.ok_or_else(|| invalid(format!("option {:?} is not NAME=VALUE", shorten(option))))
}

fn known_name(name: &str) -> Result<&'static str> {
    VOLUME.iter().copied().find(|known| known.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<_> = VOLUME.iter().map(|known| known.to_ascii_lowercase()).collect();
        let text = format!(
            "unknown option {:?}: the options are size, from, label.KEY, {}",
            shorten(name),
            known.join(", ")
        );
        invalid(text)
    })
}

/// The number of a user or group, which may be written as a name of this host.
fn id_of(option: &str, file: &str, value: &str) -> Result<String> {
    if value.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(value.to_owned());
    }
    let table = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!(
                "option {option}: {:?} is not a number, and there is no {file} that names it, as in a managed plugin of Docker: \
                 use a number",
                shorten(value)
            );
            return Err(invalid(text));
        }
        table => table.context(|| format!("read {file}"))?,
    };
    let number = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(value)).then(|| fields.nth(1)).flatten()
    });
    number.map(str::to_owned).ok_or_else(|| {
        let text =
            format!("option {option}: {:?} is neither a number nor in {file}: use a number", shorten(value));
        invalid(text)
    })
}

fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::request::OwnerSpec;
    use crate::volume::OnDelete;

    fn parse_words(options: &str, labels: &str) -> Result<Assigned> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        parse(&words(options), &words(labels))
    }

    #[test]
    fn the_case_of_an_option_is_ignored_and_labels_have_two_forms() {
        let text =
            "size=10 ONDELETE=trash trashfor=2d mode=0750 uid=root gid=7 pool=ssd from=data label.a=b=c";
        let assigned = parse_words(text, "x= y").unwrap();
        assert_eq!((assigned.size, assigned.from.as_deref()), (Some(10 << 30), Some("data")));
        let VolumeOptions { pool, owner, policy, labels, .. } = assigned.options;
        assert_eq!(pool.unwrap().as_str(), "ssd");
        assert_eq!(owner, OwnerSpec { uid: Some(0), gid: Some(7), mode: Some(0o750) });
        assert_eq!((policy.on_delete, policy.trash_for), (OnDelete::Trash, Duration::from_secs(172_800)));
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(labels, ["a=b=c", "x=", "y="]);
    }

    #[test]
    fn a_wrong_option_is_refused_by_name() {
        for (options, expected) in [
            (
                "colour=red",
                "unknown option \"colour\": the options are size, from, label.KEY, pool, ondelete",
            ),
            ("size", "\"size\" is not NAME=VALUE"),
            ("size=much", "option size: \"much\" is not a size"),
            ("size=1G SIZE=2G", "option SIZE is given twice"),
            ("uid=nobody-here", "\"nobody-here\" is neither a number nor in /etc/passwd"),
            ("uid=4294967295", "is not a number from 0"),
            ("mode=9", "option mode: \"9\" is not an octal mode"),
            ("trashfor=1d", "option trashfor needs ondelete=trash"),
            ("ONDELETE=trash trashfor=0s", "option trashfor must not be zero; use ondelete=delete"),
            ("maxpause=0s", "option maxpause must not be zero; use consistency=none"),
            ("ondelete=keep", "option ondelete: unknown variant `keep`, expected one of `delete`"),
            ("label.=x", "is not KEY=VALUE"),
        ] {
            let error = parse_words(options, "").unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{options}");
            assert!(error.chain().contains(expected), "{options}: {}", error.chain());
        }
    }

    #[test]
    fn without_a_file_of_names_an_owner_has_to_be_a_number() {
        let owner = |value: &str| id_of("uid", "/nonexistent/passwd", value);
        assert_eq!(owner("70").unwrap(), "70");
        let error = owner("postgres").unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.chain();
        assert!(
            text.starts_with("option uid: \"postgres\" is not a number, and there is no /nonexistent/passwd"),
            "{text}"
        );
        assert!(text.ends_with("use a number"), "{text}");
    }
}
