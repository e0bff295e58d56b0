use super::{NodeId, ParseError, parsed_form};

/// The most characters of a key's own name.
const NAME_CHARS_MAX: usize = 64;

/// The id of a public key that tokens are signed with: `NODE/NAME`, the node that signs with it and the key's own name, 1
/// to 64 characters out of `A-Z a-z 0-9 - _`. So whoever reads it knows whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IssuerKeyId {
    node: NodeId,
    name: Box<str>,
}

impl IssuerKeyId {
    /// The id of a node's key.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn new(node: NodeId, name: &str) -> Result<Self, ParseError> {
        let valid = (1..=NAME_CHARS_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        match valid {
            true => Ok(Self { node, name: name.into() }),
            false => {
                let rule = "have 1 to 64 characters out of a-z, A-Z, 0-9, '-' and '_'";
                Err(ParseError::grammar("name of a signing key", name, rule))
            }
        }
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (node, name) = text
            .split_once('/')
            .ok_or_else(|| ParseError::grammar("id of a signing key", text, "be a node id, '/', and the key's name"))?;
        Self::new(NodeId::parse(node)?, name)
    }

    /// The node that signs with the key.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The key's own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for IssuerKeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.name)
    }
}

parsed_form!(IssuerKeyId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_it_is() {
        let node = NodeId::from_public_key([7; 32]);
        let id = IssuerKeyId::new(node, "aB-_9").unwrap();
        assert_eq!(IssuerKeyId::parse(&id.to_string()).unwrap(), id);
        assert_eq!((id.node(), id.name()), (node, "aB-_9"));
        let long = format!("{node}/{}", "a".repeat(65));
        for bad in ["", "aB-_9", "/aB", &format!("{node}/"), &format!("{node}/a/b"), &format!("{node}/a b"), &long] {
            assert!(IssuerKeyId::parse(bad).is_err(), "{bad}");
        }
    }
}
