//! Sizes and durations as users write them: `10Gi`, `1.5G`, `512`; `30m`, `1d12h`.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::volume::shorten;

/// A number of bytes, written as a Kubernetes quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Bytes(pub u64);

/// A duration in whole seconds, written with the units `s`, `m`, `h` and `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// Returns the duration for people, such as `3d`: in the largest unit, rounded down.
    #[must_use]
    pub fn to_short(self) -> String {
        let seconds = self.0.as_secs();
        let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
        let largest = units.into_iter().find(|(_, unit)| seconds >= *unit);
        largest.map_or_else(|| "0s".to_owned(), |(suffix, unit)| format!("{}{suffix}", seconds / unit))
    }
}

/// The suffixes of a size; the empty one last, since every text ends with it.
const UNITS: [(&str, u64); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
    ("", 1),
];

impl FromStr for Bytes {
    type Err = Error;

    /// Fractions of a byte are rounded up, as Kubernetes does.
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (number, unit) =
                UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))?;
            let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
            let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
            let parts = u128::from(digits(fraction)?).checked_mul(u128::from(unit))?.div_ceil(scale);
            let total = u128::from(digits(whole)?).checked_mul(u128::from(unit))?.checked_add(parts)?;
            // CSI has sizes in signed 64 bits.
            i64::try_from(total).ok().map(i64::unsigned_abs)
        };
        parse().map(Self).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("{:?} is not a size such as 512, 100Mi or 1.5Gi", shorten(text)),
            )
        })
    }
}

/// A number of bytes as Docker writes it: `10g`, `10GB` and `10GiB` are the same, and `512b` are bytes. A bare number below
/// 1 Mi counts GiB: a volume of ten bytes is never meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DockerSize(pub u64);

impl FromStr for DockerSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
            let unit = match unit.to_ascii_lowercase().as_str() {
                "b" => "",
                "k" | "kb" | "ki" | "kib" => "Ki",
                "m" | "mb" | "mi" | "mib" => "Mi",
                "g" | "gb" | "gi" | "gib" => "Gi",
                "t" | "tb" | "ti" | "tib" => "Ti",
                "p" | "pb" | "pi" | "pib" => "Pi",
                _ => return None,
            };
            format!("{number}{unit}").parse::<Bytes>().ok()
        };
        let bare = || {
            let bytes = text.parse::<Bytes>().ok()?;
            if bytes.0 < 1 << 20 { format!("{text}Gi").parse().ok() } else { Some(bytes) }
        };
        let is_bare = !text.contains(|c: char| c.is_ascii_alphabetic());
        let bytes = if is_bare { bare() } else { parse() };
        bytes.map(|bytes| Self(bytes.0)).ok_or_else(|| {
            Error::new(Kind::Invalid, format!("{:?} is not a size such as 10G, 512M or 1.5T", shorten(text)))
        })
    }
}

impl FromStr for HumanDuration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (mut total, mut rest) = (0_u64, text);
            while !rest.is_empty() {
                let end = rest.find(|c: char| !c.is_ascii_digit())?;
                let (number, tail) = rest.split_at(end);
                let unit = match tail.as_bytes().first()? {
                    b's' => 1,
                    b'm' => 60,
                    b'h' => 3_600,
                    b'd' => 86_400,
                    _ => return None,
                };
                total = total.checked_add(digits(number)?.checked_mul(unit)?)?;
                rest = tail.get(1..)?;
            }
            // At most a thousand years, so that adding it to a time does not overflow.
            (!text.is_empty() && total <= 86_400 * 365_000).then(|| Duration::from_secs(total))
        };
        parse().map(Self).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("{:?} is not a duration such as 30m, 12h, 7d or 1d12h", shorten(text)),
            )
        })
    }
}

impl TryFrom<String> for Bytes {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// Parses a number of ASCII digits only: `u64::from_str` accepts a sign, too.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_sizes_are_binary_and_small_bare_numbers_are_gibibytes() {
        for (text, bytes) in [
            ("10", 10 << 30),
            ("0", 0),
            ("1.5", 3 << 29),
            ("1048575", 1_048_575 << 30),
            ("1048576", 1 << 20),
            ("10g", 10 << 30),
            ("10GB", 10 << 30),
            ("10Gi", 10 << 30),
            ("512b", 512),
            ("1.5T", 3 << 39),
        ] {
            assert_eq!(text.parse::<DockerSize>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "G", "-1", "1 G", "1x", "1Gx", "1e3", "1..5G", "9999999P", "99999999999999999999"] {
            assert_eq!(bad.parse::<DockerSize>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn sizes_are_written_as_kubernetes_quantities() {
        let good = [
            ("0", 0),
            ("512", 512),
            ("1Ki", 1024),
            ("100Mi", 100 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("0.3k", 300),
            ("1.0001k", 1001),
            ("2G", 2_000_000_000),
            ("7Ei", 7 << 60),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        let bad = [
            "",
            "Gi",
            "-1",
            "+1",
            "1 Gi",
            "1gi",
            "1GiB",
            "1.Gi",
            ".5Gi",
            "8Ei",
            "1m",
            "1e3",
            "1.2.3",
            "٣",
            "99999999999999999999",
            "1.00000000000000000000000000000000000000001",
        ];
        for text in bad {
            assert_eq!(text.parse::<Bytes>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn sizes_and_durations_are_shortened_for_people() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (7_199, "1h"), (86_399, "23h"), (172_800, "2d")]
        {
            assert_eq!(HumanDuration(Duration::from_secs(seconds)).to_short(), text);
        }
    }

    #[test]
    fn durations_have_units_and_no_fractions() {
        let good =
            [("45s", 45), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800), ("1d12h", 129_600), ("0s", 0)];
        for (text, seconds) in good {
            assert_eq!(
                text.parse::<HumanDuration>().unwrap(),
                HumanDuration(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in
            ["", "5", "h", "-1h", "+1h", "1h ", "1w", "1.5h", "1ü", "999999999999d", "99999999999999999999s"]
        {
            assert_eq!(text.parse::<HumanDuration>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }
}
