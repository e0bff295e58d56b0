use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{FederationId, Invitation, Secret};
use crate::claims::Member;

const VERSION: u8 = 1;

/// Asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The federation it wants to join.
    pub federation: FederationId,
    /// The secret of the invitation.
    pub secret: Secret,
    /// Where the new node is reached by others.
    pub addresses: Vec<SocketAddr>,
    /// Where clients reach its API.
    pub api_url: String,
}

/// The answer: the node is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Of this federation.
    pub federation: FederationId,
    /// As this member.
    pub member: Member,
    /// All members.
    pub members: Vec<Member>,
}

/// Bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is of another version.
    #[error("admission messages of version {0} are not known here, only version {VERSION}")]
    Version(u8),
    /// It is damaged.
    #[error("the admission message cannot be read")]
    Unreadable,
}

macro_rules! message {
    ($type:ty) => {
        impl $type {
            /// The message as bytes.
            pub fn encode(&self) -> bytes::Bytes {
                postcard::to_extend(self, vec![VERSION]).expect("plain data serialises").into()
            }

            /// Reads the message.
            ///
            /// # Errors
            /// [`MessageError`].
            pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
                decode(bytes)
            }
        }
    };
}
message!(JoinRequest);
message!(Admitted);

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match bytes {
        [VERSION, body @ ..] => postcard::from_bytes(body).map_err(|_| MessageError::Unreadable),
        [other, ..] => Err(MessageError::Version(*other)),
        [] => Err(MessageError::Unreadable),
    }
}

/// Feeds arbitrary bytes to every decoder of this room. What the fuzz target and the property test call: none may panic,
/// whatever the bytes are.
pub fn exercise_decoders(bytes: &[u8]) {
    let _ = JoinRequest::decode(bytes);
    let _ = Admitted::decode(bytes);
    let _ = Invitation::parse(&String::from_utf8_lossy(bytes));
    // The content of an invitation, which random bytes never reach through its checksum.
    let _ = Invitation::parse(&super::invitation::text_of(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_survives_the_wire() {
        let request = JoinRequest {
            federation: FederationId([1; 16]),
            secret: Secret::random(),
            addresses: vec!["192.0.2.1:1".parse().unwrap()],
            api_url: "https://a.example".into(),
        };
        assert_eq!(JoinRequest::decode(&request.encode()), Ok(request.clone()));
        let mut other = request.encode().to_vec();
        other[0] = 9;
        assert_eq!(JoinRequest::decode(&other), Err(MessageError::Version(9)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            exercise_decoders(&bytes);
            exercise_decoders(&[&[VERSION], &bytes[..]].concat());
        }
    }
}
