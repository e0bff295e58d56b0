use super::{NodeId, ParseError, text_form};

/// Declares an identifier of 128 random bits, written as 32 lower-case hexadecimal digits.
macro_rules! random_identifier {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Box<str>);

        impl $type {
            /// A fresh one from the operating system's random numbers: nobody can guess it.
            pub fn random() -> Self {
                Self(format!("{:032x}", u128::from_ne_bytes(rand::random())).into())
            }

            /// Parses the text form.
            ///
            /// # Errors
            /// [`ParseError::Grammar`].
            pub fn parse(text: &str) -> Result<Self, ParseError> {
                let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                match valid {
                    true => Ok(Self(text.into())),
                    false => Err(ParseError::grammar($what, text, "be 32 lower-case hexadecimal digits")),
                }
            }

            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_form!($type);
    };
}

random_identifier!(
    /// Names an upload session. Unguessable: whoever knows it may continue the session.
    UploadId,
    "upload id"
);
random_identifier!(
    /// Names the stored bytes of one blob within its account's storage space. Never reused: bytes that were stored
    /// again after a deletion have another key, so a late deletion cannot hit them.
    StorageKey,
    "storage key"
);
random_identifier!(
    /// Names a request, so that it can be found in logs, and makes a repeated command harmless.
    RequestId,
    "request id"
);

/// The digits of an upload's name that tell its node. The others cannot be guessed.
const NODE_DIGITS: usize = 8;

impl UploadId {
    /// A fresh one that begins with the digits of the node that holds the session, so that others know whom to ask.
    pub fn random_at(node: NodeId) -> Self {
        let (node, random) = (node.to_string(), Self::random());
        Self(format!("{}{}", &node[..NODE_DIGITS], &random.0[NODE_DIGITS..]).into())
    }

    /// Whether it begins as names do of sessions that this node holds.
    pub fn is_at(&self, node: NodeId) -> bool {
        node.to_string()[..NODE_DIGITS] == self.0[..NODE_DIGITS]
    }
}

impl From<&UploadId> for StorageKey {
    /// The key of the blob that an upload becomes: the same digits, so that what a crash left between bytes and row can
    /// be told to belong to its session.
    fn from(id: &UploadId) -> Self {
        Self(id.0.clone())
    }
}

/// Who is billed and authorised for accounts: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Box<str>);

impl TenantId {
    /// Parses an auth tenant id.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        match valid {
            true => Ok(Self(text.into())),
            false => {
                let rule = "have 1 to 64 characters out of a-z, A-Z, 0-9, '.', '_' and '-'";
                Err(ParseError::grammar("auth tenant id", text, rule))
            }
        }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text_form!(TenantId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_uploads_tell_their_nodes_and_nothing_that_could_be_guessed() {
        let [one, other] = [1, 2].map(|number| NodeId::from_public_key([number; 32]));
        let (a, b) = (UploadId::random_at(one), UploadId::random_at(one));
        assert!(a.is_at(one) && b.is_at(one) && !a.is_at(other), "{a}");
        assert_ne!(a, b);
        assert_eq!(UploadId::parse(a.as_str()).unwrap(), a);
    }

    #[test]
    fn random_identifiers_differ_and_round_trip() {
        let (a, b) = (UploadId::random(), UploadId::random());
        assert_ne!(a, b);
        assert_eq!(UploadId::parse(a.as_str()).unwrap(), a);
        assert!(UploadId::parse("../../etc/passwd").is_err());
    }
}
