//! Names for requests: the client's, if it sent a sound one, or our own.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const LENGTH_MAX: usize = 128;

/// The name of a request, as it goes into the answer and the logs.
pub(crate) fn of_request(headers: &HeaderMap) -> HeaderValue {
    headers.get(X_REQUEST_ID).filter(|value| is_sound(value.as_bytes())).cloned().unwrap_or_else(fresh)
}

fn is_sound(text: &[u8]) -> bool {
    let sound = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b);
    (1..=LENGTH_MAX).contains(&text.len()) && text.iter().all(sound)
}

/// 32 hexadecimal digits: 16 that are random for this process, 16 that count. Unique, and guessable, which hurts nobody:
/// the name opens nothing.
fn fresh() -> HeaderValue {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(rand::random);
    let mut text = [0; 32];
    write_hex(&mut text[..16], *process);
    write_hex(&mut text[16..], NEXT.fetch_add(1, Relaxed));
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or(HeaderValue::from_static("unknown"))
}

fn write_hex(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_names_differ_and_are_request_ids_of_the_vocabulary() {
        let (a, b) = (fresh(), fresh());
        assert_ne!(a, b);
        assert!(keppel_federation::vocabulary::RequestId::parse(a.to_str().unwrap()).is_ok());
    }

    #[test]
    fn sound_names_of_clients_are_kept_and_others_replaced() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_str(text).unwrap())]);
            of_request(&headers) == text
        };
        assert!(of("trace-1_a.b:c/d+e="));
        assert!(!of(""));
        assert!(!of("two words"));
        assert!(!of("quote\""));
        assert!(!of(&"a".repeat(129)));
    }
}
