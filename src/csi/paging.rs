//! Pages of a listing: the token names the last id that was given, so it stays right while objects come and go.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::volume::{VolumeId, shorten};

/// What is listed; a token of one listing is not one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    Volumes,
    Snapshots,
    Health,
}

impl Listing {
    /// The token's first byte; its high bits are the form's version.
    fn mark(self) -> u8 {
        match self {
            Self::Volumes => 0x11,
            Self::Snapshots => 0x12,
            Self::Health => 0x13,
        }
    }

    /// Most entries of a page, whatever was asked: a Go client refuses an answer of more than 4 MiB.
    fn most(self) -> usize {
        match self {
            Self::Volumes | Self::Snapshots => 8_000,
            Self::Health => 1_000,
        }
    }
}

/// Where a page starts and how long it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) after: Option<VolumeId>,
    pub(super) max: usize,
}

/// Reads `max_entries` and `starting_token`.
///
/// # Errors
/// `Busy`, which is ABORTED, for a token that we did not give: the caller lists again from the beginning.
pub(super) fn start(listing: Listing, max_entries: i32, token: &str) -> Result<Start> {
    let max = usize::try_from(max_entries)
        .map_err(|_| Error::new(Kind::Invalid, format!("max_entries is negative: {max_entries}")))?;
    let max = if max == 0 { listing.most() } else { max.min(listing.most()) };
    let after = if token.is_empty() { None } else { Some(read(listing, token).ok_or_else(|| bad(token))?) };
    Ok(Start { after, max })
}

/// The token of the page after this id; none: an empty text.
pub(super) fn token(listing: Listing, last: Option<&VolumeId>) -> String {
    let Some(last) = last else { return String::new() };
    let mut bytes = vec![listing.mark()];
    bytes.extend_from_slice(last.to_string().as_bytes());
    let sum = sum(&bytes);
    bytes.extend_from_slice(&sum);
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read(listing: Listing, token: &str) -> Option<VolumeId> {
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
    let (mark, id) = body.split_first()?;
    if *mark != listing.mark() || *found != sum(body) {
        return None;
    }
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Tells a token of ours from any other text; it is no secret and guards nothing.
fn sum(bytes: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

fn bad(token: &str) -> Error {
    let shown = shorten(token);
    Error::new(
        Kind::Busy,
        format!("starting_token {shown:?} is not one of this listing: list from the start"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Listing; 3] = [Listing::Volumes, Listing::Snapshots, Listing::Health];

    #[test]
    fn a_token_is_read_back_by_its_own_listing_only() {
        let id: VolumeId = "p/pvc-1".parse().unwrap();
        for given in ALL {
            let text = token(given, Some(&id));
            assert!(text.len() <= 256);
            for asked in ALL {
                let read = start(asked, 0, &text).map(|start| start.after).map_err(|error| error.kind());
                assert_eq!(read, if asked == given { Ok(Some(id.clone())) } else { Err(Kind::Busy) });
            }
        }
        assert_eq!(token(Listing::Volumes, None), "");
        assert_eq!(start(Listing::Volumes, 0, "").unwrap().after, None);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        for (asked, max) in [(0, 8_000), (1, 1), (8_000, 8_000), (i32::MAX, 8_000)] {
            assert_eq!(start(Listing::Volumes, asked, "").unwrap().max, max);
        }
        assert_eq!(start(Listing::Volumes, -1, "").unwrap_err().kind(), Kind::Invalid);
    }

    proptest! {
        #[test]
        fn a_hostile_token_is_refused(text in "\\PC{1,600}|[0-9a-fA-F]{1,600}") {
            prop_assert_eq!(start(Listing::Volumes, 0, &text).unwrap_err().kind(), Kind::Busy);
        }

        #[test]
        fn a_token_with_one_character_changed_is_refused(at in 0_usize..20, to in "[0-9a-f]") {
            let good = token(Listing::Volumes, Some(&"p/pvc-1".parse().unwrap()));
            let mut text = good.clone();
            text.replace_range(at..=at, &to);
            prop_assume!(text != good);
            prop_assert_eq!(start(Listing::Volumes, 0, &text).unwrap_err().kind(), Kind::Busy);
        }
    }
}
