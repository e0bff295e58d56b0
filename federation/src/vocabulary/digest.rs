use super::{ParseError, parsed_form};

/// The hash algorithms a [`Digest`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The registered name: `sha256` or `sha512`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a hash in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Parses a registered name.
    ///
    /// # Errors
    /// [`ParseError::UnsupportedAlgorithm`] for every other text.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            other => Err(ParseError::UnsupportedAlgorithm(other.chars().take(64).collect())),
        }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of content: `sha256:<64 hex digits>` or `sha512:<128 hex digits>`, lower case only.
///
/// Ordered like its text form. Source: OCI image-spec, "Digests".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl Digest {
    const RULE: &'static str = "look like sha256:<64 lower-case hex digits> or sha512:<128 lower-case hex digits>";

    /// Parses the text form.
    ///
    /// # Errors
    /// [`ParseError::UnsupportedAlgorithm`] for a well-formed digest of another algorithm, [`ParseError::Grammar`] for
    /// all else.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let grammar = || ParseError::grammar("digest", text, Self::RULE);
        let (algorithm, hex) = text.split_once(':').ok_or_else(grammar)?;
        let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !algorithm.split(['+', '.', '_', '-']).all(word) || hex.is_empty() {
            return Err(grammar());
        }
        let algorithm = Algorithm::parse(algorithm)?;
        if hex.len() != 2 * algorithm.size_bytes() {
            return Err(grammar());
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(grammar)?;
        }
        Ok(Self { algorithm, bytes })
    }

    /// The digest with this hash value, or `None` when the length is not the algorithm's.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        let mut bytes = [0; 64];
        bytes
            .get_mut(..algorithm.size_bytes())?
            .copy_from_slice((hash.len() == algorithm.size_bytes()).then_some(hash)?);
        Some(Self { algorithm, bytes })
    }

    /// The SHA-256 digest with this hash value.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&hash);
        Self { algorithm: Algorithm::Sha256, bytes }
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash value: 32 or 64 bytes.
    pub fn hash(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size_bytes()]
    }

    /// The hash value in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        use std::fmt::Write as _;
        self.hash().iter().fold(String::with_capacity(128), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// A compact form that sorts like the text form: one byte for the algorithm (1 for SHA-256, 2 for SHA-512), then
    /// the hash value.
    pub fn to_compact(&self) -> Vec<u8> {
        let tag = match self.algorithm {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        };
        let mut compact = Vec::with_capacity(1 + self.hash().len());
        compact.push(tag);
        compact.extend_from_slice(self.hash());
        compact
    }

    /// Reads the form that [`Self::to_compact`] writes; `None` for anything else.
    pub fn from_compact(compact: &[u8]) -> Option<Self> {
        let (tag, hash) = compact.split_first()?;
        match tag {
            1 => Self::from_hash(Algorithm::Sha256, hash),
            2 => Self::from_hash(Algorithm::Sha512, hash),
            _ => None,
        }
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex())
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{self}\"")
    }
}

parsed_form!(Digest);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn digest_text_form_round_trips_and_refuses_what_is_not_one() {
        let text = format!("sha256:{}", "0af9".repeat(16));
        assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
        let long = format!("sha512:{}", "0af9".repeat(32));
        assert_eq!(Digest::parse(&long).unwrap().to_string(), long);
        for bad in ["", "sha256", "sha256:", "sha256:00", &text.to_uppercase(), &format!("{text}00"), ":00", "sha256:é"]
        {
            assert!(matches!(Digest::parse(bad), Err(ParseError::Grammar { .. })), "{bad}");
        }
        let other = Digest::parse("blake3:00ff").unwrap_err();
        assert_eq!(other, ParseError::UnsupportedAlgorithm("blake3".into()));
    }

    proptest! {
        #[test]
        fn compact_form_sorts_like_the_text_form(a in any::<[u8; 32]>(), b in any::<[u8; 64]>()) {
            let a = Digest::from_sha256(a);
            let b = Digest::from_hash(Algorithm::Sha512, &b).unwrap();
            prop_assert_eq!(Digest::from_compact(&a.to_compact()), Some(a));
            prop_assert_eq!(Digest::from_compact(&b.to_compact()), Some(b));
            prop_assert_eq!(a.to_compact().cmp(&b.to_compact()), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,200}") {
            let _ = Digest::parse(&text);
            let _ = Digest::parse(&format!("sha256:{text}"));
        }
    }
}
