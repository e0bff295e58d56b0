use serde::{Deserialize, Serialize};

/// The most scopes in one request.
pub const SCOPES_MAX: usize = 64;
/// The longest scope, in bytes.
const SCOPE_BYTES_MAX: usize = 512;

/// What can be done with images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Read.
    Pull,
    /// Write.
    Push,
    /// Remove.
    Delete,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// Its name in scopes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Pull => 1,
            Self::Push => 2,
            Self::Delete => 4,
        }
    }
}

/// A set of actions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ActionSet(u8);

impl ActionSet {
    /// Every action.
    pub const ALL: Self = Self(7);
    /// No action.
    pub const NONE: Self = Self(0);

    /// Whether an action is in it.
    pub fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }

    /// The actions in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The actions in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The actions, in order.
    pub fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.into_iter().filter(move |action| self.contains(*action))
    }
}

impl FromIterator<Action> for ActionSet {
    fn from_iter<T: IntoIterator<Item = Action>>(actions: T) -> Self {
        Self(actions.into_iter().fold(0, |bits, action| bits | action.bit()))
    }
}

impl std::fmt::Debug for ActionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a scope is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A repository, named as the client writes it.
    Repository(String),
    /// The list of repositories.
    Catalog,
    /// The registry's own API, as far as its owner may use it.
    Api,
    /// Something that is not known here: nothing is ever granted for it.
    Other,
}

/// Something that a token is asked for.
///
/// Source: Docker's "Token scope documentation": `type ["(" class ")"] ":" name ":" action {"," action}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// What it is about.
    pub resource: Resource,
    /// What is to be done there; actions that are not known are left out.
    pub actions: ActionSet,
}

/// Why scopes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// One is not `type:name:actions`.
    #[error("scope {0:?} is not valid: it must be type:name:actions, like repository:library/alpine:pull")]
    Malformed(String),
    /// There are too many.
    #[error("there are more than {SCOPES_MAX} scopes")]
    TooMany,
}

impl Scope {
    /// Parses one scope.
    ///
    /// # Errors
    /// [`ScopeError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, ScopeError> {
        let malformed = || ScopeError::Malformed(text.chars().take(128).collect());
        if text.len() > SCOPE_BYTES_MAX || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(malformed());
        }
        // The name may hold a colon: that of a port.
        let (kind, rest) = text.split_once(':').ok_or_else(malformed)?;
        let (name, actions) = rest.rsplit_once(':').ok_or_else(malformed)?;
        let kind = match kind.split_once('(') {
            Some((kind, class)) if class.ends_with(')') && !class[..class.len() - 1].contains(['(', ')']) => kind,
            Some(_) => return Err(malformed()),
            None => kind,
        };
        if kind.is_empty() || name.is_empty() {
            return Err(malformed());
        }
        let resource = match (kind, name) {
            ("repository", name) => Resource::Repository(name.to_owned()),
            ("registry", "catalog") => Resource::Catalog,
            ("keppel", "api") => Resource::Api,
            _ => Resource::Other,
        };
        let actions = actions.split(',').fold(ActionSet::NONE, |set, action| {
            set.union(match action {
                "*" => ActionSet::ALL,
                action => Action::ALL.into_iter().filter(|known| known.as_str() == action).collect(),
            })
        });
        Ok(Self { resource, actions })
    }

    /// Parses several scopes, separated by spaces.
    ///
    /// # Errors
    /// Any [`ScopeError`].
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>, ScopeError> {
        let words = texts.into_iter().flat_map(|text| text.split(' ')).filter(|word| !word.is_empty());
        let mut scopes = Vec::new();
        for word in words {
            if scopes.len() == SCOPES_MAX {
                return Err(ScopeError::TooMany);
            }
            scopes.push(Self::parse(word)?);
        }
        Ok(scopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repository(text: &str) -> (String, ActionSet) {
        match Scope::parse(text).unwrap() {
            Scope { resource: Resource::Repository(name), actions } => (name, actions),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scopes_of_real_clients_are_read() {
        assert_eq!(
            repository("repository:library/alpine:pull"),
            ("library/alpine".into(), [Action::Pull].into_iter().collect())
        );
        assert_eq!(repository("repository:a/b:pull,push").1, [Action::Pull, Action::Push].into_iter().collect());
        assert_eq!(repository("repository(plugin):a/b:*").1, ActionSet::ALL);
        assert_eq!(repository("repository:localhost:5000/a/b:pull").0, "localhost:5000/a/b");
        assert_eq!(repository("repository:a/b:fly,pull,,").1, [Action::Pull].into_iter().collect());
        assert_eq!(Scope::parse("registry:catalog:*").unwrap().resource, Resource::Catalog);
        assert_eq!(Scope::parse("registry:other:*").unwrap().resource, Resource::Other);
        let several = Scope::parse_all(["repository:a/b:pull repository:c/d:push", "registry:catalog:*"]).unwrap();
        assert_eq!(several.len(), 3);
    }

    #[test]
    fn what_is_not_a_scope_is_refused() {
        for bad in [
            "",
            "repository",
            "repository:a",
            ":a:pull",
            "repository::pull",
            "repository(x:a:pull",
            "repository(a(b)):a:pull",
            "repository:a\u{0}b:pull",
            "repository:a\tb:pull",
            &format!("repository:{}:pull", "a".repeat(600)),
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Scope::parse_all(vec!["a:b:pull"; SCOPES_MAX + 1]), Err(ScopeError::TooMany));
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,80}") {
            let _ = Scope::parse(&text);
            let _ = Scope::parse_all([text.as_str()]);
        }

        #[test]
        fn only_actions_that_were_written_come_out(kind in "[a-z()]{0,14}", name in "[a-z/:]{0,10}", actions in "[a-z,*]{0,14}") {
            if let Ok(scope) = Scope::parse(&format!("{kind}:{name}:{actions}")) {
                for action in scope.actions.iter() {
                    prop_assert!(actions.split(',').any(|word| word == action.as_str() || word == "*"));
                }
            }
        }
    }
}
