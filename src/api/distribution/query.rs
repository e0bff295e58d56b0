//! Query strings, read leniently: unknown keys are passed over, of repeated ones the first counts.

use std::borrow::Cow;

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use crate::api::error::{ApiError, Code};

/// Pairs looked at; what comes after is passed over.
const PAIRS_MAX: usize = 1024;

/// The query of a request.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(in crate::api) fn new(query: Option<&'a str>) -> Self {
        Self(query.unwrap_or_default())
    }

    /// The first value of a key.
    pub(in crate::api) fn get(self, key: &'static str) -> Option<Cow<'a, str>> {
        self.all(key).next()
    }

    /// All values of a key, in order.
    pub(super) fn all(self, key: &'static str) -> impl Iterator<Item = Cow<'a, str>> {
        self.0.split('&').take(PAIRS_MAX).filter_map(move |pair| {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(found) == key).then(|| decode(value))
        })
    }
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    // A plus is a space here, by the rules of forms; but media types hold pluses that some clients do not encode, and
    // nothing that is asked for here holds a space.
    Cow::Owned(percent_decode(text.as_bytes()).decode_utf8_lossy().into_owned())
}

/// A page asked for by `n` and `last`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageQuery<'a> {
    /// Items wanted; 0 is a legal wish.
    pub(super) limit: usize,
    pub(super) after: Option<Cow<'a, str>>,
}

impl<'a> PageQuery<'a> {
    /// # Errors
    /// When `n` is not a number.
    pub(super) fn parse(query: Query<'a>, limit_max: usize) -> Result<Self, ApiError> {
        let limit = match query.get("n") {
            None => limit_max,
            Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                // A number too large for us is larger than any page.
                text.parse().unwrap_or(limit_max).min(limit_max)
            }
            Some(_) => {
                let message = "the number of items (n) must be 0 or a positive number";
                return Err(ApiError::new(StatusCode::BAD_REQUEST, Code::PaginationNumberInvalid, message));
            }
        };
        Ok(Self { limit, after: query.get("last").filter(|last| !last.is_empty()) })
    }
}

/// Encodes a value for a query.
pub(super) fn encode(value: &str) -> impl std::fmt::Display + '_ {
    const SET: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':').remove(b'/');
    utf8_percent_encode(value, SET)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_found_decoded_and_in_order() {
        let query = Query::new(Some("tag=a&x&tag=b%2Dc&artifactType=application/vnd.x+json&=&last"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b-c"]);
        assert_eq!(query.get("artifactType").unwrap(), "application/vnd.x+json");
        assert_eq!(query.get("last").unwrap(), "");
        assert_eq!(query.get("n"), None);
        assert_eq!(Query::new(None).get("n"), None);
    }

    #[test]
    fn pages_have_a_number_or_the_largest_size() {
        let parse = |query: &'static str| PageQuery::parse(Query::new(Some(query)), 100);
        assert_eq!(parse("").unwrap(), PageQuery { limit: 100, after: None });
        assert_eq!(parse("n=7&last=v1").unwrap(), PageQuery { limit: 7, after: Some("v1".into()) });
        assert_eq!(parse("n=0").unwrap().limit, 0);
        assert_eq!(parse("n=101").unwrap().limit, 100);
        assert_eq!(parse("n=99999999999999999999999").unwrap().limit, 100);
        for bad in ["n=", "n=-1", "n=+1", "n=x", "n=1x", "n=1.5"] {
            let error = parse(bad).unwrap_err();
            assert_eq!((error.status().as_u16(), error.code()), (400, "PAGINATION_NUMBER_INVALID"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back_and_nothing_panics(value in ".{0,50}", noise in ".{0,50}") {
            let query = format!("last={}", encode(&value));
            let found = Query::new(Some(&query)).get("last").unwrap().into_owned();
            prop_assert_eq!(found, value);
            let _ = PageQuery::parse(Query::new(Some(&noise)), 10);
        }
    }
}
