//! Sizes for people.

use std::fmt;

/// The binary units, in ascending order.
const UNITS: [(&str, u64); 6] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("Pi", 1 << 50), ("Ei", 1 << 60)];

/// A number of bytes in a text, such as `5Ti (5497558138880 bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// Returns the size in the largest binary unit, rounded down to one decimal: `10Gi`, `1.5Gi`, `512`.
    #[must_use]
    pub fn to_short(self) -> String {
        let size = u128::from(self.0);
        let mut units = UNITS.iter().rev().map(|(suffix, unit)| (suffix, u128::from(*unit)));
        match units.find(|(_, unit)| size >= *unit) {
            None => size.to_string(),
            Some((suffix, unit)) => match (size / unit, size * 10 / unit % 10) {
                (whole, 0) => format!("{whole}{suffix}"),
                (whole, tenth) => format!("{whole}.{tenth}{suffix}"),
            },
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1024 => write!(f, "{} bytes", self.0),
            bytes => write!(f, "{} ({bytes} bytes)", self.to_short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_shown_in_the_largest_unit_and_in_bytes() {
        let sizes = [
            (0, "0"),
            (1023, "1023"),
            (1 << 20, "1Mi"),
            ((1 << 20) - 1, "1023.9Ki"),
            (3 << 29, "1.5Gi"),
            (10 << 30, "10Gi"),
            (1_000_000_000, "953.6Mi"),
            (u64::MAX, "15.9Ei"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(Size(bytes).to_short(), text, "{bytes}");
        }
        assert_eq!(Size(512).to_string(), "512 bytes");
        assert_eq!(Size(5 << 40).to_string(), "5Ti (5497558138880 bytes)");
    }
}
