//! `Range` of blob answers, `Content-Range` of chunks.

use std::ops::Range;

/// What a `Range` header asks of content of some size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it, with 200: no range, one we need not understand, or several at once.
    Whole,
    /// One range, with 206.
    Part(Range<u64>),
    /// Bytes that are not there: 416.
    Nothing,
}

impl Wanted {
    /// Reads the header's value. Source: RFC 9110, section 14.
    pub(super) fn parse(header: &str, size_bytes: u64) -> Self {
        let Some(set) = strip_unit(header) else { return Self::Whole };
        // Whoever asks for any bytes of an empty blob is best served with all of them.
        if size_bytes == 0 || set.contains(',') {
            return Self::Whole;
        }
        let Some((first, last)) = set.trim().split_once('-') else { return Self::Whole };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Self::between(first, last.saturating_add(1), size_bytes),
            (Some(first), None) if last.is_empty() => Self::between(first, size_bytes, size_bytes),
            (None, Some(suffix)) if first.is_empty() => {
                Self::between(size_bytes.saturating_sub(suffix), size_bytes, size_bytes)
            }
            _ => Self::Whole,
        }
    }

    fn between(start: u64, end: u64, size_bytes: u64) -> Self {
        match start < size_bytes {
            true => Self::Part(start..end.min(size_bytes)),
            false => Self::Nothing,
        }
    }
}

/// Reads the `Content-Range` of a chunk: `a-b` as OCI writes it, or `bytes a-b/*` as HTTP does. Gives the first and the
/// last byte, or `None` when it is neither.
pub(super) fn parse_content_range(header: &str) -> Option<(u64, u64)> {
    let text = header.trim();
    let text = match text.get(..5) {
        Some(unit) if unit.eq_ignore_ascii_case("bytes") => text[5..].trim_start_matches([' ', '=']),
        _ => text,
    };
    let (range, total) = text.split_once('/').unwrap_or((text, "*"));
    if total != "*" && number(total).is_none() {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn strip_unit(header: &str) -> Option<&str> {
    let (unit, set) = header.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(set)
}

/// Digits only; a number too large to hold becomes the largest.
fn number(text: &str) -> Option<u64> {
    let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_ranges_are_cut_to_the_size() {
        for (header, wanted) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-5", Wanted::Part(2..6)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("Bytes=9-99999999999999999999999999", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-12", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=18446744073709551615-18446744073709551615", Wanted::Nothing),
        ] {
            assert_eq!(Wanted::parse(header, 10), wanted, "{header}");
        }
    }

    #[test]
    fn what_is_no_single_range_gets_everything() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1",
            "items=0-1",
            "bytes=0-1,3-4",
            "bytes=+1-2",
        ] {
            assert_eq!(Wanted::parse(header, 10), Wanted::Whole, "{header}");
        }
        assert_eq!(Wanted::parse("bytes=0-", 0), Wanted::Whole);
    }

    #[test]
    fn content_range_is_read_in_both_forms() {
        for good in ["3-7", "bytes 3-7/*", "bytes 3-7/100", "bytes=3-7", "bytes 3-7", " 3-7 "] {
            assert_eq!(parse_content_range(good), Some((3, 7)), "{good}");
        }
        for bad in ["", "-", "7-3", "3-", "-7", "a-b", "3-7/x", "bytes", "bytes */7", "é3-7", "3-7-9"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_parsing_panic_or_reach_beyond_the_size(header in "(bytes=)?.{0,40}", size in any::<u64>()) {
            if let Wanted::Part(range) = Wanted::parse(&header, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
            let _ = parse_content_range(&header);
        }
    }
}
