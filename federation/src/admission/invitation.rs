use std::net::SocketAddr;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};

use crate::claims::Role;
use crate::vocabulary::{NodeId, Region};

/// What every invitation of this version begins with.
const PREFIX: &str = "keppel1";
const CHECKSUM_BYTES: usize = 5;
const TEXT_BYTES_MAX: usize = 2048;
const DOORS_MAX: usize = 3;
const ADDRESSES_PER_DOOR_MAX: usize = 4;

/// Tells federations apart: 16 random bytes, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationId(pub [u8; 16]);

impl FederationId {
    /// A fresh one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for FederationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The secret of an invitation. Prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 20]);

impl Secret {
    /// A fresh one: 160 bits from the operating system.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The bytes, for hashing.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A member that may be asked to let the new node in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// Its key.
    pub node: NodeId,
    /// Where it is reached.
    pub addresses: Vec<SocketAddr>,
}

/// Permission for one node to join a federation, once, within a time.
///
/// Its text form is one word of lower-case letters and digits, which a double click selects whole:
/// `keppel1` and, in base32, the content and a checksum. Whoever has the text can use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The federation that invites.
    pub federation: FederationId,
    /// What has to be shown.
    pub secret: Secret,
    /// The region of the new node.
    pub region: Region,
    /// Its role.
    pub role: Role,
    /// When it ends, in milliseconds since 1970, by the clock of the node that made it. What counts is the
    /// federation's own note of it.
    pub expires_at_ms: u64,
    /// The members that may be asked.
    pub doors: Vec<Door>,
}

/// Why a text is no invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// It does not look like one.
    #[error("this is not an invitation: one begins with {PREFIX}")]
    Foreign,
    /// It is one of another version.
    #[error("this invitation is of a version that this program does not know: upgrade it")]
    OtherVersion,
    /// It was cut or changed on the way.
    #[error("this invitation is damaged: copy the whole text again")]
    Damaged,
}

impl Invitation {
    /// The text form.
    pub fn to_text(&self) -> String {
        let mut kept = self.clone();
        kept.doors.truncate(DOORS_MAX);
        kept.doors.iter_mut().for_each(|door| door.addresses.truncate(ADDRESSES_PER_DOOR_MAX));
        let doors: Vec<_> = kept.doors.iter().map(|door| (door.node.public_key(), &door.addresses)).collect();
        let content = (&kept.federation, &kept.secret, &kept.region, kept.role, kept.expires_at_ms, doors);
        text_of(&postcard::to_stdvec(&content).expect("plain data serialises"))
    }

    /// Reads the text form; white space around and within it is ignored, as are capital letters.
    ///
    /// # Errors
    /// [`InvitationError`].
    pub fn parse(text: &str) -> Result<Self, InvitationError> {
        type Doors = Vec<([u8; 32], Vec<SocketAddr>)>;
        if text.len() > 2 * TEXT_BYTES_MAX {
            return Err(InvitationError::Foreign);
        }
        let word: String = text.split_whitespace().collect::<String>().to_ascii_lowercase();
        let Some(body) = word.strip_prefix(PREFIX) else {
            let other = word.strip_prefix("keppel").and_then(|rest| rest.bytes().next());
            let other_version = other.is_some_and(|byte| byte.is_ascii_digit());
            return Err(if other_version { InvitationError::OtherVersion } else { InvitationError::Foreign });
        };
        let damaged = InvitationError::Damaged;
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| damaged)?;
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(damaged)?;
        if *sum != checksum(content) {
            return Err(damaged);
        }
        let (federation, secret, region, role, expires_at_ms, doors): (_, _, _, _, _, Doors) =
            postcard::from_bytes(content).map_err(|_| damaged)?;
        let door = |(key, addresses)| Door { node: NodeId::from_public_key(key), addresses };
        let doors = doors.into_iter().map(door).collect();
        Ok(Self { federation, secret, region, role, expires_at_ms, doors })
    }
}

impl std::fmt::Display for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// The text form of some content.
pub(super) fn text_of(content: &[u8]) -> String {
    let bytes = [content, &checksum(content)].concat();
    format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    blake3::Hasher::new_derive_key("keppel 2026 invitation checksum").update(content).finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invitation() -> Invitation {
        let door = |key| Door {
            node: NodeId::from_public_key([key; 32]),
            addresses: vec!["192.0.2.7:7000".parse().unwrap(), "[2001:db8::7]:7000".parse().unwrap()],
        };
        Invitation {
            federation: FederationId([3; 16]),
            secret: Secret([9; 20]),
            region: Region::parse("eu-west").unwrap(),
            role: Role::Full,
            expires_at_ms: 1_800_000_000_000,
            doors: vec![door(1), door(2)],
        }
    }

    #[test]
    fn an_invitation_survives_copying_even_when_it_is_broken_into_lines() {
        let text = invitation().to_text();
        assert!(text.len() < 400 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{text}");
        assert_eq!(Invitation::parse(&text), Ok(invitation()));
        let folded = text.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>();
        assert_eq!(Invitation::parse(&format!("  {}\n", folded.join("\n  ").to_uppercase())), Ok(invitation()));
    }

    #[test]
    fn what_is_not_an_invitation_is_told_apart_from_a_damaged_and_a_newer_one() {
        let text = invitation().to_text();
        assert_eq!(Invitation::parse("hello"), Err(InvitationError::Foreign));
        assert_eq!(Invitation::parse("keppel2abc"), Err(InvitationError::OtherVersion));
        for length in PREFIX.len()..text.len() {
            assert_eq!(Invitation::parse(&text[..length]), Err(InvitationError::Damaged), "{length}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_letter_is_noticed(at in PREFIX.len()..200_usize, with in "[a-z2-7]") {
            let text = invitation().to_text();
            let changed = format!("{}{with}{}", &text[..at], &text[at + 1..]);
            let expected = if changed == text { Ok(invitation()) } else { Err(InvitationError::Damaged) };
            prop_assert_eq!(Invitation::parse(&changed), expected);
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "(keppel1)?[a-z0-9 é]{0,300}") {
            let _ = Invitation::parse(&text);
        }
    }

    #[test]
    fn secrets_do_not_show_in_logs() {
        assert!(format!("{:?}", invitation()).contains("secret: ***"));
    }
}
