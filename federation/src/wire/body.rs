use bytes::{Bytes, BytesMut};

/// The body of an answer, in pieces that follow each other, so that what is large need not be copied into one.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pieces: Vec<Bytes>,
}

impl Body {
    /// How many bytes all pieces have together.
    pub fn size_bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// The pieces.
    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    /// All of it in one piece; copies where there are several.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop().unwrap_or_default();
        }
        let mut all = BytesMut::with_capacity(self.size_bytes());
        self.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
        all.freeze()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { pieces: vec![bytes] }
    }
}

impl FromIterator<Bytes> for Body {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        Self { pieces: pieces.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_what_they_are_together() {
        let body: Body = [&b"ab"[..], b"", b"cde"].into_iter().map(Bytes::from_static).collect();
        assert_eq!(body.size_bytes(), 5);
        assert_eq!(body.into_bytes(), "abcde");
        assert_eq!(Body::default().into_bytes(), "");
        assert_eq!(Body::from(Bytes::from_static(b"one")).into_bytes(), "one");
    }
}
