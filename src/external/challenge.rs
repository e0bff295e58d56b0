//! What a registry asks for before it answers.
//!
//! Source: RFC 9110 section 11.6.1; Docker's "Token Authentication Specification".

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of a service.
    Bearer {
        /// Where it is to be had.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// Name and password.
    Basic,
}

impl Challenge {
    /// The challenge that we can answer best, out of the values of all headers. A header may hold several.
    pub(super) fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for (scheme, parameters) in headers.into_iter().flat_map(split) {
            let value = |name: &str| {
                parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Self::Bearer { realm, service: value("service"), scope: value("scope") });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Takes a header apart: a word that is followed by no `=` begins a challenge.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() && after.is_empty() {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = read_value(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            None => {
                found.push((word.to_owned(), Parameters::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, character) in quoted.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, &quoted[at + 1..]),
            character => {
                value.push(character);
                escaped = false;
            }
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: text(service), scope: text(scope) })
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        assert_eq!(
            Challenge::choose([hub]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/alpine:pull"))
        );
        assert_eq!(
            Challenge::choose([r#"bearer realm = "https://a/t" , error="invalid_token", service=x"#]),
            bearer("https://a/t", Some("x"), None)
        );
        assert_eq!(Challenge::choose(["Basic realm=\"Registry, \\\"mine\\\"\""]), Some(Challenge::Basic));
        assert_eq!(
            Challenge::choose(["Basic realm=\"x\", Bearer realm=\"https://a/t\",scope=\"a b,c\""]),
            bearer("https://a/t", None, Some("a b,c"))
        );
        assert_eq!(Challenge::choose(["Basic realm=x", "Bearer realm=\"y\""]), bearer("y", None, None));
        for nothing in ["", "Digest realm=x", "Bearer", "Bearer service=x", ",,,", "realm=x"] {
            assert_eq!(Challenge::choose([nothing]), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_reading_panic_or_hang(header in r#"[ -~]{0,60}"#) {
            let _ = Challenge::choose([header.as_str()]);
        }
    }
}
