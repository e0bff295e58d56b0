use bytes::Bytes;

use super::WireError;
use super::frame::{Frame, Prefix};

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// The longest reason of a refusal; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;

/// What a node answers to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The answer of the channel's handler.
    Accepted(Bytes),
    /// The reason, in words for a person.
    Refused(String),
}

impl Answer {
    /// The answer as bytes; `version` is the protocol version that was agreed on, or the newest spoken here.
    pub fn encode(&self, version: u8) -> Vec<u8> {
        let (status, body) = match self {
            Self::Accepted(body) => (ACCEPTED, &body[..]),
            Self::Refused(reason) => (REFUSED, cut(reason).as_bytes()),
        };
        let mut bytes = Vec::with_capacity(6 + body.len());
        bytes.extend_from_slice(&[status, version]);
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
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
            ACCEPTED => Ok(Answer::Accepted(body)),
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
        decoder.push(&Answer::Refused("ä".repeat(2000)).encode(1)).unwrap();
        assert_eq!(decoder.finish().unwrap(), Answer::Refused("ä".repeat(REASON_BYTES_MAX / 2)));
    }

    #[test]
    fn an_unknown_status_is_an_error() {
        assert_eq!(AnswerDecoder::new(9).push(&[7, 1]).unwrap_err(), WireError::UnknownStatus(7));
    }
}
