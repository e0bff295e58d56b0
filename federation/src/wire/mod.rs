//! Bytes to messages and back: what a stream between two nodes looks like. Pure: no I/O, no clock, no tasks.
//!
//! ```text
//! request:  'K' min max channel | length (4, big endian) | body
//! answer:   status version      | length (4, big endian) | body
//! welcome:  'W' min max         | length (4, big endian) | body
//! ```
//!
//! The first bytes keep this shape for ever, so that any two versions can at least say that they do not understand each
//! other, and why. `min` and `max` are the protocol versions the sender speaks; the receiver takes the newest that both
//! speak. What the body means belongs to the channel.
//!
//! Invariants: no input makes a decoder panic; a decoder holds at most the limit of its channel, and never allocates
//! more than twice of what has arrived; a length over the limit is refused before its body is read.

mod answer;
mod body;
mod frame;
mod request;
mod version;
mod welcome;

pub use answer::{Answer, AnswerDecoder, REASON_BYTES_MAX};
pub use body::Body;
pub use request::{Hello, RequestDecoder, encode_request_head};
pub use version::{Incompatible, VersionRange};
pub use welcome::Welcome;

/// Why bytes from a peer are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first byte is wrong: this is another protocol, or garbage.
    #[error("these bytes are not ours: they begin with {0:#04x}")]
    Foreign(u8),
    /// A channel this version does not know.
    #[error("channel {0} is not known here")]
    UnknownChannel(u8),
    /// The status of an answer is none of those known.
    #[error("status {0} of an answer is not known here")]
    UnknownStatus(u8),
    /// The versions of the two sides do not overlap.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The announced body is over the limit.
    #[error("a message of {size_bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge {
        /// The announced size.
        size_bytes: usize,
        /// The limit of the channel.
        limit_bytes: usize,
    },
    /// The stream ended within a message.
    #[error("the message ends too early")]
    Truncated,
    /// Bytes follow the message.
    #[error("bytes follow the message")]
    Trailing,
}

/// Feeds arbitrary bytes to every decoder of this room, in pieces whose sizes the first byte decides. What the fuzz
/// target and the property test call; it panics when an invariant of the room is broken.
pub fn exercise_decoders(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let step = usize::from(*first).max(1);
    let limit = 4096;
    let limit_of = |channel: u8| (channel < 4).then_some(limit);
    let mut request = RequestDecoder::new(VersionRange::OURS, limit_of);
    let mut answer = AnswerDecoder::new(limit);
    let (mut request_failed, mut answer_failed) = (false, false);
    for piece in rest.chunks(step) {
        request_failed |= !request_failed && request.push(piece).is_err();
        answer_failed |= !answer_failed && answer.push(piece).is_err();
        assert!(request.allocated_bytes() <= 2 * limit && answer.allocated_bytes() <= 2 * limit);
    }
    if !request_failed && let Ok((hello, body)) = request.finish() {
        assert!(hello.channel < 4 && body.len() <= limit);
    }
    if !answer_failed {
        let _ = answer.finish();
    }
    let _ = Welcome::decode(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn whole_request(hello: &Hello, body: &[u8]) -> Vec<u8> {
        let mut bytes = encode_request_head(hello, body.len()).to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    fn encoded(answer: Answer) -> Vec<u8> {
        answer.encode(1).into_iter().flatten().collect()
    }

    fn hello(channel: u8) -> Hello {
        Hello { versions: VersionRange::OURS, channel }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_never_allocate_above_the_limit(input in prop::collection::vec(any::<u8>(), 0..6000)) {
            exercise_decoders(&input);
        }

        #[test]
        fn mutated_messages_never_panic(
            body in prop::collection::vec(any::<u8>(), 0..500), at in any::<prop::sample::Index>(), with in any::<u8>(),
            step in any::<u8>(),
        ) {
            for mut bytes in [whole_request(&hello(1), &body), encoded(Answer::Accepted(Bytes::from(body.clone()).into()))] {
                let index = at.index(bytes.len());
                bytes[index] = with;
                bytes.insert(0, step);
                exercise_decoders(&bytes);
            }
        }

        #[test]
        fn a_request_arrives_as_it_was_sent_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..2000), channel in 0..4_u8, step in 1..300_usize,
        ) {
            let mut decoder = RequestDecoder::new(VersionRange::OURS, |_| Some(2000));
            for piece in whole_request(&hello(channel), &body).chunks(step) {
                decoder.push(piece).unwrap();
            }
            let (got, got_body) = decoder.finish().unwrap();
            prop_assert_eq!((got.channel, &got_body[..]), (channel, &body[..]));
        }

        #[test]
        fn an_answer_arrives_as_it_was_sent_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..2000), step in 1..300_usize,
        ) {
            let mut decoder = AnswerDecoder::new(2000);
            for piece in encoded(Answer::Accepted(Bytes::from(body.clone()).into())).chunks(step) {
                decoder.push(piece).unwrap();
            }
            let Answer::Accepted(got) = decoder.finish().unwrap() else { panic!("refused") };
            prop_assert_eq!(got.into_bytes(), body);
        }
    }

    #[test]
    fn every_cut_of_a_message_is_called_truncated() {
        let bytes = whole_request(&hello(1), b"body");
        for length in 0..bytes.len() {
            let mut decoder = RequestDecoder::new(VersionRange::OURS, |_| Some(10));
            decoder.push(&bytes[..length]).unwrap();
            assert_eq!(decoder.finish().unwrap_err(), WireError::Truncated, "{length}");
        }
    }

    #[test]
    fn what_follows_a_message_is_an_error() {
        let mut bytes = whole_request(&hello(1), b"body");
        bytes.push(0);
        let mut decoder = RequestDecoder::new(VersionRange::OURS, |_| Some(10));
        assert_eq!(decoder.push(&bytes).unwrap_err(), WireError::Trailing);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_from_the_head_alone() {
        let head = encode_request_head(&hello(1), 11);
        let mut decoder = RequestDecoder::new(VersionRange::OURS, |_| Some(10));
        let refused = decoder.push(&head).unwrap_err();
        assert_eq!(refused, WireError::TooLarge { size_bytes: 11, limit_bytes: 10 });
        assert!(decoder.allocated_bytes() < 64);
    }

    #[test]
    fn a_request_of_another_age_is_refused_with_both_ranges() {
        let newer = Hello { versions: VersionRange::new(7, 9), channel: 200 };
        let mut decoder = RequestDecoder::new(VersionRange::OURS, |_| Some(10));
        let refused = decoder.push(&encode_request_head(&newer, 0)).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, WireError::Incompatible(_)) && text.contains("7 to 9"), "{text}");
    }
}
