use bytes::{Bytes, BytesMut};

use super::WireError;

/// Allocated up front for a body, whatever length is announced; more follows as bytes arrive.
const FIRST_BYTES: usize = 1024;

/// Collects one length-prefixed body out of pieces.
#[derive(Debug, Default)]
pub(super) struct Frame {
    head: Prefix<4>,
    body: BytesMut,
}

impl Frame {
    /// Takes what belongs to the frame and gives back what follows it.
    pub(super) fn push<'a>(&mut self, piece: &'a [u8], limit: usize) -> Result<&'a [u8], WireError> {
        let piece = self.head.push(piece);
        let Some(size) = self.size() else { return Ok(piece) };
        if size > limit {
            return Err(WireError::TooLarge { size_bytes: size, limit_bytes: limit });
        }
        if self.body.capacity() == 0 {
            self.body.reserve(size.min(FIRST_BYTES));
        }
        let (taken, rest) = piece.split_at(piece.len().min(size - self.body.len()));
        self.body.extend_from_slice(taken);
        Ok(rest)
    }

    /// The announced size, once it is known.
    pub(super) fn size(&self) -> Option<usize> {
        let head = self.head.complete()?;
        // Longer than a usize cannot be: targets have 32 bits at least.
        Some(u32::from_be_bytes(*head) as usize)
    }

    pub(super) fn finish(self) -> Result<Bytes, WireError> {
        match self.size() == Some(self.body.len()) {
            true => Ok(self.body.freeze()),
            false => Err(WireError::Truncated),
        }
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.body.capacity()
    }
}

/// Collects a fixed number of bytes out of pieces.
#[derive(Debug)]
pub(super) struct Prefix<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Prefix<N> {
    fn default() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }
}

impl<const N: usize> Prefix<N> {
    pub(super) fn push<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = piece.split_at(piece.len().min(N - self.filled));
        self.bytes[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        rest
    }

    pub(super) fn complete(&self) -> Option<&[u8; N]> {
        (self.filled == N).then_some(&self.bytes)
    }
}
