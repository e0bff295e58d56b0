use bytes::Bytes;

use super::frame::{Frame, Prefix};
use super::{VersionRange, WireError};

const MAGIC: u8 = b'K';

/// How every request begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The protocol versions that the caller speaks.
    pub versions: VersionRange,
    /// The number of the channel.
    pub channel: u8,
}

/// What precedes the body of a request.
pub fn encode_request_head(hello: &Hello, body_bytes: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(body_bytes).unwrap_or(u32::MAX).to_be_bytes();
    [MAGIC, hello.versions.min, hello.versions.max, hello.channel, a, b, c, d]
}

/// Decodes one request out of pieces as they arrive.
#[derive(Debug)]
pub struct RequestDecoder<F> {
    ours: VersionRange,
    limit_of: F,
    hello: Prefix<4>,
    accepted: Option<(Hello, usize)>,
    frame: Frame,
}

impl<F: Fn(u8) -> Option<usize>> RequestDecoder<F> {
    /// A decoder for a node that speaks `ours`; `limit_of` gives the size limit of a channel, none for an unknown one.
    pub fn new(ours: VersionRange, limit_of: F) -> Self {
        Self { ours, limit_of, hello: Prefix::default(), accepted: None, frame: Frame::default() }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// Any [`WireError`] but `Truncated`; the decoder is of no use afterwards.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), WireError> {
        let piece = self.hello.push(piece);
        let limit = match self.accepted {
            Some((_, limit)) => limit,
            None => {
                let Some(head) = self.hello.complete() else { return Ok(()) };
                let (hello, limit) = self.accept(*head)?;
                self.accepted = Some((hello, limit));
                limit
            }
        };
        match self.frame.push(piece, limit)? {
            [] => Ok(()),
            _ => Err(WireError::Trailing),
        }
    }

    fn accept(&self, [magic, min, max, channel]: [u8; 4]) -> Result<(Hello, usize), WireError> {
        if magic != MAGIC {
            return Err(WireError::Foreign(magic));
        }
        // The version comes first: an unknown channel of a newer version is a matter of versions.
        let versions = VersionRange { min, max };
        self.ours.negotiate(versions)?;
        let limit = (self.limit_of)(channel).ok_or(WireError::UnknownChannel(channel))?;
        Ok((Hello { versions, channel }, limit))
    }

    /// The announced size of the body, once known.
    pub fn body_bytes(&self) -> Option<usize> {
        self.frame.size()
    }

    /// The request, when the stream has ended.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn finish(self) -> Result<(Hello, Bytes), WireError> {
        let (hello, _) = self.accepted.ok_or(WireError::Truncated)?;
        Ok((hello, self.frame.finish()?))
    }

    /// Memory held for the body.
    pub fn allocated_bytes(&self) -> usize {
        self.frame.allocated_bytes()
    }
}
