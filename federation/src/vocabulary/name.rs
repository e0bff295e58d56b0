use super::{Digest, ParseError, text_form};

/// The first path element of a repository name; owns a storage space. Grammar: `[a-z0-9][a-z0-9-]{0,47}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(Box<str>);

impl AccountName {
    /// Parses an account name.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if is_account_name(text) {
            return Ok(Self(text.into()));
        }
        let rule = "have 1 to 48 characters out of a-z, 0-9 and '-', and not start with '-'";
        Err(ParseError::grammar("account name", text, rule))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_account_name(text: &str) -> bool {
    (1..=48).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether a text is a repository path by the distribution specification: components of
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by `/`, 255 characters at most.
///
/// Source: OCI distribution-spec, "Pulling manifests".
pub fn is_repository_path(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let start = at;
        while at < bytes.len() && word(bytes[at]) {
            at += 1;
        }
        if at == start {
            return false;
        }
        if at == bytes.len() {
            return true;
        }
        let gap = at;
        while at < bytes.len() && !word(bytes[at]) {
            at += 1;
        }
        let separator = &bytes[gap..at];
        if !(matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')) {
            return false;
        }
    }
}

/// The full name of a repository: `<account>/<repository>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName {
    full: Box<str>,
    account_length: u8,
}

impl RepositoryName {
    const RULE: &'static str = "be <account>/<repository>: path components of a-z and 0-9, separated inside by one '.', \
                                '_', '__' or dashes, 255 characters at most, the account of 1 to 48 characters out of \
                                a-z, 0-9 and '-'; without an account only where a default account is configured";

    /// Parses a full name, whose first component is the account.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let grammar = || ParseError::grammar("repository name", text, Self::RULE);
        let (account, _) = text.split_once('/').ok_or_else(grammar)?;
        if !is_repository_path(text) || !is_account_name(account) {
            return Err(grammar());
        }
        Ok(Self { full: text.into(), account_length: account.len() as u8 })
    }

    /// Parses a name as a client writes it. A path whose first component cannot be an account (there is only one
    /// component, or it breaks the account grammar) belongs to `default_account`, where there is one.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse_with_default(text: &str, default_account: Option<&AccountName>) -> Result<Self, ParseError> {
        if let Ok(name) = Self::parse(text) {
            return Ok(name);
        }
        // The full name of a repository with a very long path may be longer than 255 characters itself.
        let in_default = |account: &AccountName| text.strip_prefix(account.as_str())?.strip_prefix('/');
        match default_account {
            Some(account) if is_repository_path(text) => Ok(Self::within(account, text)),
            Some(account) if in_default(account).is_some_and(is_repository_path) => {
                Ok(Self::within(account, in_default(account).unwrap_or_default()))
            }
            _ => Err(ParseError::grammar("repository name", text, Self::RULE)),
        }
    }

    /// The repository `path` of `account`, or an error when `path` is not a repository path.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn in_account(account: &AccountName, path: &str) -> Result<Self, ParseError> {
        match is_repository_path(path) {
            true => Ok(Self::within(account, path)),
            false => Err(ParseError::grammar("repository name", path, Self::RULE)),
        }
    }

    fn within(account: &AccountName, path: &str) -> Self {
        Self { full: format!("{account}/{path}").into(), account_length: account.as_str().len() as u8 }
    }

    /// The account, as text.
    pub fn account_str(&self) -> &str {
        &self.full[..usize::from(self.account_length)]
    }

    /// The account.
    pub fn account(&self) -> AccountName {
        AccountName(self.account_str().into())
    }

    /// The name without the account.
    pub fn path(&self) -> &str {
        &self.full[usize::from(self.account_length) + 1..]
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

/// A movable name of a manifest. Grammar: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
///
/// Source: OCI distribution-spec, "Pulling manifests".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    /// Parses a tag.
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = (1..=128).contains(&text.len())
            && text.bytes().enumerate().all(|(at, b)| word(b) || (at > 0 && (b == b'.' || b == b'-')));
        if valid {
            return Ok(Self(text.into()));
        }
        let rule = "have 1 to 128 characters out of a-z, A-Z, 0-9, '_', '.' and '-', and not start with '.' or '-'";
        Err(ParseError::grammar("tag", text, rule))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What names a manifest within a repository: a tag, or a digest when it contains a colon.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A movable name.
    Tag(Tag),
    /// Exact content.
    Digest(Digest),
}

impl Reference {
    /// Parses a reference.
    ///
    /// # Errors
    /// Those of [`Digest::parse`] for a text with a colon, those of [`Tag::parse`] otherwise.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text.contains(':') {
            true => Digest::parse(text).map(Self::Digest),
            false => Tag::parse(text).map(Self::Tag),
        }
    }

    /// The tag, where it is one.
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{self}\"")
    }
}

text_form!(AccountName);
text_form!(RepositoryName);
text_form!(Tag);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names_follow_the_specification() {
        for good in ["a/b", "acme/web/app", "a--0/x.y_z__w--v", "0/0"] {
            assert!(RepositoryName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "", "a", "a-/b", "a/b-", "-a/b", "/a", "a/", "a//b", "A/b", "a/B", "a/.b", "a/b.", "a/b..c", "a/b___c",
            "a/b._c", "a/ä", "a_b/c",
        ] {
            assert!(RepositoryName::parse(bad).is_err(), "{bad}");
        }
        let name = RepositoryName::parse("acme/web/app").unwrap();
        assert_eq!((name.account_str(), name.path()), ("acme", "web/app"));
        assert!(RepositoryName::parse(&format!("a/{}", "b".repeat(253))).is_ok());
        assert!(RepositoryName::parse(&format!("a/{}", "b".repeat(254))).is_err());
    }

    #[test]
    fn names_that_cannot_hold_an_account_belong_to_the_default_account() {
        let library = AccountName::parse("library").unwrap();
        let parse = |text| RepositoryName::parse_with_default(text, Some(&library)).map(|name| name.to_string());
        assert_eq!(parse("alpine").unwrap(), "library/alpine");
        assert_eq!(parse("my_org/app").unwrap(), "library/my_org/app");
        assert_eq!(parse("acme/app").unwrap(), "acme/app");
        assert!(parse("Acme/app").is_err());
        let longest = "a".repeat(255);
        assert_eq!(parse(&parse(&longest).unwrap()).unwrap(), format!("library/{longest}"));
        assert!(RepositoryName::parse_with_default("alpine", None).is_err());
    }

    #[test]
    fn tags_and_references_follow_the_specification() {
        for good in ["a", "_", "v1.2-rc_3", "0", &"a".repeat(128)] {
            assert!(matches!(Reference::parse(good), Ok(Reference::Tag(_))), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(Reference::parse(&format!("sha256:{}", "0".repeat(64))), Ok(Reference::Digest(_))));
        assert!(Reference::parse("a:b").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic_and_what_parses_prints_the_same(text in "[a-zA-Z0-9._:/é-]{0,300}") {
            if let Ok(name) = RepositoryName::parse(&text) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert_eq!(format!("{}/{}", name.account(), name.path()), text.clone());
            }
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
