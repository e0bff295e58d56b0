//! The words of the house: names, digests and identifiers, each parsed once, at the border; and the clock that promises
//! between nodes are counted on.
//!
//! Every type here is valid by construction: whoever holds one need not check it again. Text and serde forms are the
//! same, and parsing is the only way in. Bytes from clients, peers or disk give a [`ParseError`], never a panic.

mod digest;
mod identifier;
mod issuer_key;
mod name;
mod node;
mod uptime;

pub use digest::{Algorithm, Digest};
pub use identifier::{RequestId, StorageKey, TenantId, UploadId};
pub use issuer_key::IssuerKeyId;
pub use name::{AccountName, Reference, RepositoryName, Tag, is_repository_path};
pub use node::{NodeId, Region};
pub use uptime::uptime;

/// Why a text is not the name, digest or identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text breaks the grammar of the thing named by `what`.
    #[error("{what} {text:?} is not valid: it must {rule}")]
    Grammar {
        /// What was expected, for example `tag`.
        what: &'static str,
        /// The offending text, shortened to 128 characters.
        text: String,
        /// What a valid one looks like.
        rule: &'static str,
    },
    /// A well-formed digest whose algorithm is not served here.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    UnsupportedAlgorithm(String),
}

impl ParseError {
    fn grammar(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self::Grammar { what, text: text.chars().take(128).collect(), rule }
    }
}

/// Gives a type its text form in `Display`, `FromStr`, `TryFrom<String>` and serde, all through `parse` and `as_str`.
macro_rules! text_form {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        $crate::vocabulary::parsed_form!($type);
    };
}

/// Gives a type with `Display` and `parse` its `FromStr` and serde forms.
macro_rules! parsed_form {
    ($type:ty) => {
        impl std::str::FromStr for $type {
            type Err = $crate::vocabulary::ParseError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use parsed_form;
pub(crate) use text_form;
