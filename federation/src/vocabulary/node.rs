use super::{ParseError, parsed_form, text_form};

/// The identity of a node: its ed25519 public key, 32 bytes, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The id that belongs to a public key.
    pub fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten digits: enough for a person to tell nodes apart, not enough to trust.
    pub fn short(&self) -> String {
        self.to_string()[..10].to_owned()
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let grammar = || ParseError::grammar("node id", text, "be 64 lower-case hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(grammar());
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| grammar())?;
        }
        Ok(Self(key))
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{self}\"")
    }
}

parsed_form!(NodeId);

/// A named place where nodes run. Grammar: `[a-z0-9][a-z0-9-]{0,31}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Box<str>);

impl Region {
    /// Parses a region name.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let valid = (1..=32).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        match valid {
            true => Ok(Self(text.into())),
            false => {
                let rule = "have 1 to 32 characters out of a-z, 0-9 and '-', and not start with '-'";
                Err(ParseError::grammar("region", text, rule))
            }
        }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text_form!(Region);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_round_trip_through_their_text_form() {
        let id = NodeId::from_public_key([7; 32]);
        assert_eq!(NodeId::parse(&id.to_string()).unwrap(), id);
        assert!(NodeId::parse("00").is_err());
        assert!(NodeId::parse(&"é".repeat(32)).is_err());
    }
}
