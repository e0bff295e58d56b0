/// Why a caller is sent to fetch a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeError {
    /// The token lacks a scope.
    InsufficientScope,
    /// The token is not valid.
    InvalidToken,
}

/// Tells a client where to get a token and what for: the value of `WWW-Authenticate`.
///
/// Source: Docker's "Token authentication specification"; RFC 6750, section 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// The URL of the token endpoint.
    pub realm: &'a str,
    /// The name of this service, which goes into tokens.
    pub service: &'a str,
    /// What the token must be for, if for anything.
    pub scope: Option<String>,
    /// What was wrong with the one that was shown.
    pub error: Option<ChallengeError>,
}

impl std::fmt::Display for Challenge<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bearer realm=\"{}\",service=\"{}\"", Quoted(self.realm), Quoted(self.service))?;
        if let Some(scope) = &self.scope {
            write!(f, ",scope=\"{}\"", Quoted(scope))?;
        }
        match self.error {
            Some(ChallengeError::InsufficientScope) => f.write_str(",error=\"insufficient_scope\""),
            Some(ChallengeError::InvalidToken) => f.write_str(",error=\"invalid_token\""),
            None => Ok(()),
        }
    }
}

/// A text that is safe between quotes in a header: what could end the quotes or the header is left out.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).try_for_each(|c| write!(f, "{c}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_read_as_docker_expects() {
        let challenge = Challenge {
            realm: "https://registry.example.org/keppel/v1/auth",
            service: "registry.example.org",
            scope: Some("repository:a/b:pull,push".into()),
            error: Some(ChallengeError::InsufficientScope),
        };
        let expected = "Bearer realm=\"https://registry.example.org/keppel/v1/auth\",service=\"registry.example.org\",\
                        scope=\"repository:a/b:pull,push\",error=\"insufficient_scope\"";
        assert_eq!(challenge.to_string(), expected);
    }

    proptest! {
        #[test]
        fn no_scope_gets_out_of_its_quotes(scope in ".{0,60}") {
            let challenge = Challenge { realm: "r", service: "s", scope: Some(scope), error: None }.to_string();
            prop_assert_eq!(challenge.matches('"').count(), 6);
            prop_assert!(challenge.bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }
}
