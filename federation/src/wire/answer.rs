use bytes::Bytes;

use super::frame::{Frame, Prefix};
use super::{Body, WireError};

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// The longest reason of a refusal; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;

/// What a node answers to a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The answer of the channel's handler.
    Accepted(Body),
    /// The reason, in words for a person.
    Refused(String),
}

impl Answer {
    /// The answer as bytes, in pieces; `version` is the protocol version that was agreed on, or the newest spoken here.
    pub fn encode(self, version: u8) -> Vec<Bytes> {
        let (status, body) = match self {
            Self::Accepted(body) => (ACCEPTED, body),
            Self::Refused(reason) => (REFUSED, Bytes::copy_from_slice(cut(&reason).as_bytes()).into()),
        };
        let [a, b, c, d] = u32::try_from(body.size_bytes()).unwrap_or(u32::MAX).to_be_bytes();
        let mut pieces = vec![Bytes::copy_from_slice(&[status, version, a, b, c, d])];
        pieces.extend(body.into_pieces());
        pieces
    }
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

/// Decodes one answer out of pieces as they arrive.
#[derive(Debug)]
pub struct AnswerDecoder {
    limit: usize,
    head: Prefix<2>,
    frame: Frame,
}

impl AnswerDecoder {
    /// A decoder that accepts bodies of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, head: Prefix::default(), frame: Frame::default() }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// Any [`WireError`] but `Truncated`; the decoder is of no use afterwards.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), WireError> {
        let piece = self.head.push(piece);
        let limit = match self.head.complete() {
            None => return Ok(()),
            Some([ACCEPTED, _]) => self.limit,
            Some([REFUSED, _]) => REASON_BYTES_MAX,
            Some([status, _]) => return Err(WireError::UnknownStatus(*status)),
        };
        match self.frame.push(piece, limit)? {
            [] => Ok(()),
            _ => Err(WireError::Trailing),
        }
    }

    /// The answer, when the stream has ended.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn finish(self) -> Result<Answer, WireError> {
        let status = self.head.complete().ok_or(WireError::Truncated)?[0];
        let body = self.frame.finish()?;
        match status {
            ACCEPTED => Ok(Answer::Accepted(body.into())),
            _ => Ok(Answer::Refused(String::from_utf8_lossy(&body).into_owned())),
        }
    }

    /// Memory held for the body.
    pub fn allocated_bytes(&self) -> usize {
        self.frame.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut decoder = AnswerDecoder::new(0);
        for piece in Answer::Refused("ä".repeat(2000)).encode(1) {
            decoder.push(&piece).unwrap();
        }
        let Answer::Refused(reason) = decoder.finish().unwrap() else { panic!("accepted") };
        assert_eq!(reason, "ä".repeat(REASON_BYTES_MAX / 2));
    }

    #[test]
    fn an_unknown_status_is_an_error() {
        assert_eq!(AnswerDecoder::new(9).push(&[7, 1]).unwrap_err(), WireError::UnknownStatus(7));
    }
}
