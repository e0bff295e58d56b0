use keppel_federation::vocabulary::TenantId;

/// Why a text does not name a user or robot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: it must {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

impl NameError {
    fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self { what, text: text.chars().take(128).collect(), rule }
    }
}

/// The name of a person: 1 to 128 characters out of `A-Z a-z 0-9 . _ @ -`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Box<str>);

impl UserName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-'));
        match first && rest && text.len() <= 128 {
            true => Ok(Self(text.into())),
            false => {
                let rule =
                    "have 1 to 128 characters out of a-z, A-Z, 0-9, '.', '_', '@' and '-', the first a letter or digit";
                Err(NameError::new("user name", text, rule))
            }
        }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a robot account: `<tenant>+<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RobotName {
    full: Box<str>,
    tenant: TenantId,
}

impl RobotName {
    /// Parses a full name.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let rule = "be <tenant>+<name>, the name having 1 to 64 characters out of a-z, 0-9, '.', '_' and '-'";
        let refuse = || NameError::new("robot name", text, rule);
        let (tenant, name) = text.split_once('+').ok_or_else(refuse)?;
        let tenant = TenantId::parse(tenant).map_err(|_| refuse())?;
        let good = (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
        match good {
            true => Ok(Self { full: text.into(), tenant }),
            false => Err(refuse()),
        }
    }

    /// The tenant it works for.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl std::fmt::Display for UserName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for RobotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a caller is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Nobody known.
    Anonymous,
    /// A person.
    User(UserName),
    /// A program.
    Robot(RobotName),
}

impl Identity {
    /// The name that policies match; nobody known has none.
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::User(name) => Some(name.as_str()),
            Self::Robot(name) => Some(name.as_str()),
        }
    }

    /// Reads what a client gives as user name: robots have a `+` in theirs.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn from_username(text: &str) -> Result<Self, NameError> {
        match text.contains('+') {
            true => RobotName::parse(text).map(Self::Robot),
            false => UserName::parse(text).map(Self::User),
        }
    }

    /// The form in tokens and ids of records: `user:alice`, `robot:acme+ci`, or nothing.
    pub fn subject(&self) -> String {
        match self {
            Self::Anonymous => String::new(),
            Self::User(name) => format!("user:{name}"),
            Self::Robot(name) => format!("robot:{name}"),
        }
    }

    /// Reads what [`Self::subject`] wrote.
    pub fn from_subject(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some(("user", name)) => UserName::parse(name).ok().map(Self::User),
            Some(("robot", name)) => RobotName::parse(name).ok().map(Self::Robot),
            Some(_) => None,
            None => text.is_empty().then_some(Self::Anonymous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn users_and_robots_cannot_be_mistaken_for_each_other() {
        assert!(matches!(Identity::from_username("alice@example.org"), Ok(Identity::User(_))));
        assert!(matches!(Identity::from_username("acme+ci"), Ok(Identity::Robot(_))));
        for bad in ["", "a b", "-a", "a:b", "acme+", "+ci", "acme+CI", "acme+a+b", "a/b+c", "ä", &"a".repeat(129)] {
            assert!(Identity::from_username(bad).is_err(), "{bad}");
        }
        assert_eq!(Identity::from_subject("user:a+b"), None);
        assert_eq!(Identity::from_subject("robot:alice"), None);
        assert_eq!(Identity::from_subject("operator:alice"), None);
    }

    proptest! {
        #[test]
        fn subjects_round_trip(text in "[a-zA-Z0-9@.:+_-]{0,40}") {
            if let Ok(identity) = Identity::from_username(&text) {
                prop_assert_eq!(Identity::from_subject(&identity.subject()).unwrap(), identity);
            }
            if let Some(identity) = Identity::from_subject(&text) {
                prop_assert_eq!(identity.subject(), text);
            }
        }
    }
}
