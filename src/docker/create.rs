//! Create: the name and the options of a new volume.

use crate::error::{Error, Kind, Result};
use crate::options::assignment::{self, ANONYMOUS, Assigned};
use crate::volume::{Labels, PolicyChange, Volume, shorten};

use super::message::Opts;

/// What Create asks for.
#[derive(Debug)]
pub(super) struct Requested {
    /// The options.
    pub(super) assigned: Assigned,
    /// The part of the policy that the options name.
    policy: PolicyChange,
}

/// Parses the name and the options of a new volume.
///
/// # Errors
/// `Invalid`, naming the option.
pub(super) fn parse(name: &str, opts: &Opts) -> Result<Requested> {
    check_name(name)?;
    let words: Vec<_> = opts.iter().map(|(option, value)| format!("{option}={value}")).collect();
    let mut assigned = assignment::parse(&words, &[])?;
    if is_anonymous(name) {
        assigned.options.labels.entry(ANONYMOUS.to_owned()).or_default();
    }
    let is_given = |option: &str| opts.keys().any(|name| name.eq_ignore_ascii_case(option));
    let policy = assigned.options.policy;
    let policy = PolicyChange {
        on_delete: is_given("ondelete").then_some(policy.on_delete),
        trash_for: is_given("trashfor").then_some(policy.trash_for),
        limit: is_given("limit").then_some(policy.limit),
        inodes: is_given("inodes").then_some(policy.inodes),
    };
    Ok(Requested { assigned, policy })
}

/// What an existing volume has that the engine does not compare: it was created with other options if this differs.
#[derive(Debug)]
pub(super) struct Expected {
    policy: PolicyChange,
    labels: Labels,
}

impl Requested {
    /// The options that [`Expected::check`] compares.
    pub(super) fn expected(&self) -> Expected {
        Expected { policy: self.policy, labels: self.assigned.options.labels.clone() }
    }
}

impl Expected {
    /// Refuses a volume that an earlier request created with other options.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check(&self, found: &Volume) -> Result<()> {
        let has_labels = self.labels.iter().all(|(key, value)| found.labels.get(key) == Some(value));
        if has_labels && self.policy.applied_to(found.policy) == found.policy {
            return Ok(());
        }
        let what = if has_labels { "ondelete, trashfor or limit" } else { "labels" };
        let text = format!("volume {} exists with other options ({what}): use another name", found.id);
        Err(Error::new(Kind::Conflict, text))
    }
}

/// Checks a name by the rule of Docker's own driver. An engine checks none, and takes a name of one letter in
/// `docker run -v` for a path.
pub(super) fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let is_good = (2..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed);
    if is_good {
        return Ok(());
    }
    let text = format!(
        "volume name {:?} is not 2 to 64 letters, digits, '_', '.' and '-', starting with a letter or digit",
        shorten(name)
    );
    Err(Error::new(Kind::Invalid, text))
}

/// Whether an engine made the name of a volume for which none was given. Docker and Podman make 64 hexadecimal digits.
fn is_anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn opts(words: &str) -> Opts {
        let pairs = words.split_whitespace().map(|word| word.split_once('=').unwrap());
        pairs.map(|(option, value)| (option.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn the_options_are_those_of_the_command_line() {
        let requested =
            parse("data", &opts("size=10 pool=ssd ondelete=trash trashfor=1d label.a=b from=x")).unwrap();
        let Assigned { size, from, options } = requested.assigned;
        assert_eq!((size, from.as_deref()), (Some(10 << 30), Some("x")));
        assert_eq!(options.pool.unwrap().as_str(), "ssd");
        assert_eq!(options.policy.trash_for, Duration::from_secs(86_400));
        assert_eq!(options.labels.get("a").map(String::as_str), Some("b"));
    }

    #[test]
    fn a_volume_without_a_given_name_is_labelled_as_anonymous() {
        let labels =
            |name: &str, words: &str| parse(name, &opts(words)).unwrap().assigned.options.labels.len();
        let name = "0f".repeat(32);
        // As Docker labels it: whatever its options.
        assert_eq!((labels(&name, ""), labels(&name, "size=1G"), labels(&name, "label.team=a")), (1, 1, 2));
        assert_eq!((labels(&"0F".repeat(32), ""), labels(&name[1..], ""), labels("data", "")), (0, 0, 0));
    }

    #[test]
    fn names_and_options_that_cannot_work_are_refused() {
        for name in ["a", "", "../x", "a b", "ünï", ".a", &"x".repeat(65)] {
            assert_eq!(parse(name, &Opts::new()).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
        for (words, expected) in [("colour=red", "unknown option \"colour\""), ("size=much", "option size")] {
            let error = parse("data", &opts(words)).unwrap_err();
            assert!(error.chain().contains(expected), "{words}: {}", error.chain());
        }
    }
}
