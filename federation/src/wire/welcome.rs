use super::frame::{Frame, Prefix};
use super::{VersionRange, WireError};

const MAGIC: u8 = b'W';

/// What a node sends, before anything else, to a member that connected: by it the member knows that it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol versions that the accepting node speaks.
    pub versions: VersionRange,
}

impl Welcome {
    /// More bytes than this are no welcome. The body is empty today; newer versions may put something there.
    pub const BYTES_MAX: usize = 1024;

    /// The welcome as bytes.
    pub fn encode(&self) -> [u8; 7] {
        [MAGIC, self.versions.min, self.versions.max, 0, 0, 0, 0]
    }

    /// Reads a welcome.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut head = Prefix::<3>::default();
        let rest = head.push(bytes);
        let [magic, min, max] = *head.complete().ok_or(WireError::Truncated)?;
        if magic != MAGIC {
            return Err(WireError::Foreign(magic));
        }
        let mut body = Frame::default();
        if !body.push(rest, Self::BYTES_MAX)?.is_empty() {
            return Err(WireError::Trailing);
        }
        body.finish()?;
        Ok(Self { versions: VersionRange { min, max } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_welcome_survives_the_wire_and_its_cuts_do_not() {
        let bytes = Welcome { versions: VersionRange::new(2, 3) }.encode();
        assert_eq!(Welcome::decode(&bytes).unwrap().versions, VersionRange::new(2, 3));
        for length in 0..bytes.len() {
            assert_eq!(Welcome::decode(&bytes[..length]), Err(WireError::Truncated), "{length}");
        }
    }
}
