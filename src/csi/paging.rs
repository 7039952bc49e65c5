//! Pages of a listing. A token names the last id of a page, so it stays valid while objects are created and deleted.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::volume::{VolumeId, shorten};

/// The listings. A token is valid for its own listing only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    Volumes,
    Snapshots,
    Health,
}

impl Listing {
    /// First byte of the listing's tokens. The high bits are the version of the format.
    fn tag(self) -> u8 {
        match self {
            Self::Volumes => 0x11,
            Self::Snapshots => 0x12,
            Self::Health => 0x13,
        }
    }

    /// Maximum entries of a page, whatever the request allows: a Go client refuses a response of more than 4 MiB.
    fn max_entries(self) -> usize {
        match self {
            Self::Volumes | Self::Snapshots => 8_000,
            Self::Health => 1_000,
        }
    }
}

/// The range of entries that a page may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRange {
    /// The page starts after this id, or with the first object if it is `None`.
    pub(super) after: Option<VolumeId>,
    /// Maximum number of entries.
    pub(super) max: usize,
}

/// Parses `max_entries` and `starting_token`.
///
/// # Errors
/// `Busy`, which becomes ABORTED, for an invalid token: the specification has the caller list again from the start.
pub(super) fn parse(listing: Listing, max_entries: i32, token: &str) -> Result<PageRange> {
    let max = usize::try_from(max_entries)
        .map_err(|_| Error::new(Kind::Invalid, format!("max_entries is negative: {max_entries}")))?;
    let max = if max == 0 { listing.max_entries() } else { max.min(listing.max_entries()) };
    let after = if token.is_empty() {
        None
    } else {
        Some(decode(listing, token).ok_or_else(|| invalid_token(token))?)
    };
    Ok(PageRange { after, max })
}

/// The token for the page after this id; empty if there is no such page.
pub(super) fn token(listing: Listing, last: Option<&VolumeId>) -> String {
    let Some(last) = last else { return String::new() };
    let mut bytes = vec![listing.tag()];
    bytes.extend_from_slice(last.to_string().as_bytes());
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn decode(listing: Listing, token: &str) -> Option<VolumeId> {
    if token.len() > 512 || !token.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = token
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()?;
    let (body, found) = bytes.split_last_chunk::<4>()?;
    let (tag, id) = body.split_first()?;
    if *tag != listing.tag() || *found != checksum(body) {
        return None;
    }
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Detects texts that are not tokens. It does not protect against forgery.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

fn invalid_token(token: &str) -> Error {
    let text =
        format!("starting_token {:?} is not valid for this listing: list again without it", shorten(token));
    Error::new(Kind::Busy, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Listing; 3] = [Listing::Volumes, Listing::Snapshots, Listing::Health];

    #[test]
    fn a_token_is_valid_for_its_own_listing_only() {
        let id: VolumeId = "p/pvc-1".parse().unwrap();
        for listing in ALL {
            let text = token(listing, Some(&id));
            assert!(text.len() <= 256);
            for other in ALL {
                let after = parse(other, 0, &text).map(|range| range.after).map_err(|error| error.kind());
                assert_eq!(after, if other == listing { Ok(Some(id.clone())) } else { Err(Kind::Busy) });
            }
        }
        assert_eq!(token(Listing::Volumes, None), "");
        assert_eq!(parse(Listing::Volumes, 0, "").unwrap().after, None);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        for (requested, max) in [(0, 8_000), (1, 1), (8_000, 8_000), (i32::MAX, 8_000)] {
            assert_eq!(parse(Listing::Volumes, requested, "").unwrap().max, max);
        }
        assert_eq!(parse(Listing::Volumes, -1, "").unwrap_err().kind(), Kind::Invalid);
    }

    proptest! {
        #[test]
        fn an_arbitrary_text_is_refused(text in "\\PC{1,600}|[0-9a-fA-F]{1,600}") {
            prop_assert_eq!(parse(Listing::Volumes, 0, &text).unwrap_err().kind(), Kind::Busy);
        }

        #[test]
        fn a_token_with_one_character_changed_is_refused(at in 0_usize..20, to in "[0-9a-f]") {
            let good = token(Listing::Volumes, Some(&"p/pvc-1".parse().unwrap()));
            let mut text = good.clone();
            text.replace_range(at..=at, &to);
            prop_assume!(text != good);
            prop_assert_eq!(parse(Listing::Volumes, 0, &text).unwrap_err().kind(), Kind::Busy);
        }
    }
}
