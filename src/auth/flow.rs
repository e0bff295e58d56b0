use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::{AuthError, Credentials, Scope};
use crate::model::policy::Secret;

/// The longest query or form, in bytes.
const FORM_BYTES_MAX: usize = 32 * 1024;
/// The most fields of a query or form.
const FIELDS_MAX: usize = 128;

/// The grant that exchanges a token of another issuer.
///
/// Source: RFC 8693.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The kinds of tokens that can be exchanged, all of which are JWTs here.
const SUBJECT_TOKEN_TYPES: [&str; 3] =
    ["urn:ietf:params:oauth:token-type:id_token", "urn:ietf:params:oauth:token-type:jwt", ACCESS_TOKEN_TYPE];
/// The kind of token that this registry issues.
pub(super) const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The user name that goes with a token of another issuer, where there is no other.
pub(super) const TOKEN_USERNAME: &str = "oidc";

/// How a client proves who it is when it asks for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// Not at all.
    Anonymous,
    /// With a name and a secret.
    Password(Credentials),
    /// With a refresh token.
    RefreshToken(Secret),
}

/// A request for a token.
///
/// Source: Docker's "Token authentication specification" and "OAuth2 token authentication".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The service that the token is for, when it is named.
    pub service: Option<String>,
    /// What the token is for.
    pub scopes: Vec<Scope>,
    /// The proof of identity.
    pub grant: Grant,
    /// Whether a refresh token is wanted too.
    pub offline: bool,
    /// Whether the answer is in OAuth2 form.
    pub oauth2: bool,
    /// Whether a token of another issuer is exchanged.
    pub exchange: bool,
}

/// The answer to a [`TokenRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenResponse {
    /// The token.
    pub token: String,
    /// The token again, under its name in OAuth2.
    pub access_token: String,
    /// How long it is good, in seconds.
    pub expires_in: i64,
    /// When it was made, as RFC 3339 has it.
    pub issued_at: String,
    /// The refresh token, when one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// What was granted, in OAuth2 form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// How the token is shown, where one was exchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<&'static str>,
    /// What kind of token it is, where one was exchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<&'static str>,
}

impl TokenRequest {
    /// Reads the query of a `GET`, with what the `Authorization` header holds.
    ///
    /// # Errors
    /// [`AuthError::BadRequest`], [`AuthError::Scope`], [`AuthError::InvalidCredentials`].
    pub fn from_query(query: &str, basic: Option<Credentials>) -> Result<Self, AuthError> {
        let fields = Fields::parse(query)?;
        let account = fields.get("account").filter(|account| !account.is_empty());
        if let (Some(account), Some(basic)) = (account, &basic)
            && account != basic.username
        {
            return Err(AuthError::BadRequest("account is not the user of the Authorization header".into()));
        }
        Ok(Self {
            service: fields.get("service").map(str::to_owned),
            scopes: Scope::parse_all(fields.all("scope"))?,
            grant: basic.map_or(Grant::Anonymous, Grant::Password),
            offline: fields.get("offline_token").is_some_and(is_true),
            oauth2: false,
            exchange: false,
        })
    }

    /// Reads the form of a `POST`.
    ///
    /// # Errors
    /// [`AuthError::BadRequest`], [`AuthError::Scope`], [`AuthError::InvalidCredentials`].
    pub fn from_form(form: &[u8], basic: Option<Credentials>) -> Result<Self, AuthError> {
        let form = std::str::from_utf8(form).map_err(|_| AuthError::BadRequest("the form is not UTF-8".into()))?;
        let fields = Fields::parse(form)?;
        let field = |name: &str| fields.get(name).ok_or_else(|| AuthError::BadRequest(format!("{name} is missing")));
        let grant = match field("grant_type")? {
            "password" => match basic {
                Some(basic) if fields.get("username").is_none() => Grant::Password(basic),
                _ => Grant::Password(Credentials::new(field("username")?, field("password")?)?),
            },
            "refresh_token" => Grant::RefreshToken(Secret::new(field("refresh_token")?)),
            TOKEN_EXCHANGE => {
                let kind = field("subject_token_type")?;
                if !SUBJECT_TOKEN_TYPES.contains(&kind) {
                    let reason = format!("subject_token_type must be {}", SUBJECT_TOKEN_TYPES.join(" or "));
                    return Err(AuthError::BadRequest(reason));
                }
                Grant::Password(Credentials::new(TOKEN_USERNAME, field("subject_token")?)?)
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                let reason = format!(
                    "grant_type is {shown:?}: it must be \"password\", \"refresh_token\" or \"{TOKEN_EXCHANGE}\""
                );
                return Err(AuthError::BadRequest(reason));
            }
        };
        let exchange = fields.get("grant_type") == Some(TOKEN_EXCHANGE);
        Ok(Self {
            service: fields.get("service").map(str::to_owned),
            scopes: Scope::parse_all(fields.all("scope"))?,
            offline: matches!(grant, Grant::RefreshToken(_)) || fields.get("access_type") == Some("offline"),
            grant,
            oauth2: true,
            exchange,
        })
    }
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "1")
}

/// The fields of a query or form, in order.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(text: &str) -> Result<Self, AuthError> {
        if text.len() > FORM_BYTES_MAX {
            return Err(AuthError::BadRequest(format!("it has more than {FORM_BYTES_MAX} bytes")));
        }
        let mut fields = Vec::new();
        for field in text.split('&').filter(|field| !field.is_empty()) {
            if fields.len() == FIELDS_MAX {
                return Err(AuthError::BadRequest(format!("it has more than {FIELDS_MAX} fields")));
            }
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            fields.push((decode(name)?, decode(value)?));
        }
        Ok(Self(fields))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> Result<String, AuthError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| AuthError::BadRequest("it is not UTF-8".into()))
}

/// A UNIX time as RFC 3339 has it, in UTC.
pub fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days are counted from 0000-03-01, so that the day that a leap year has more is the last of its year: then 400
    // years have 146,097 days, and months follow one linear rule.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Resource};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_of_docker_are_read() {
        let query = "account=alice&client_id=docker&offline_token=true&service=registry.example.org\
                     &scope=repository%3Aacme%2Fweb%3Apull%2Cpush&scope=repository:acme/base:pull";
        let basic = Credentials::new("alice", "pw").unwrap();
        let request = TokenRequest::from_query(query, Some(basic.clone())).unwrap();
        assert_eq!(request.scopes.len(), 2);
        assert_eq!(request.scopes[0].resource, Resource::Repository("acme/web".into()));
        assert!(request.scopes[0].actions.contains(Action::Push) && request.offline && !request.oauth2);
        assert_eq!(request.grant, Grant::Password(basic.clone()));
        assert_eq!(TokenRequest::from_query("", None).unwrap().grant, Grant::Anonymous);
        assert!(TokenRequest::from_query("account=bob", Some(basic)).is_err());
        assert!(TokenRequest::from_query("scope=nonsense", None).is_err());
        assert!(TokenRequest::from_query("scope=%ff", None).is_err());
        assert!(TokenRequest::from_query(&"a&".repeat(FIELDS_MAX + 1), None).is_err());
        assert!(TokenRequest::from_query(&"a".repeat(FORM_BYTES_MAX + 1), None).is_err());
    }

    #[test]
    fn oauth2_forms_are_read() {
        let form = b"grant_type=password&username=alice&password=p%26w+d&service=s&client_id=c&access_type=offline\
                     &scope=repository:a/b:pull+repository:c/d:push";
        let request = TokenRequest::from_form(form, None).unwrap();
        assert_eq!(request.grant, Grant::Password(Credentials::new("alice", "p&w d").unwrap()));
        assert!(request.offline && request.oauth2 && request.scopes.len() == 2);
        let request = TokenRequest::from_form(b"grant_type=refresh_token&refresh_token=abc", None).unwrap();
        assert_eq!(request.grant, Grant::RefreshToken(Secret::new("abc")));
        assert!(!format!("{request:?}").contains("abc"));
        for bad in [
            &b""[..],
            b"grant_type=password",
            b"grant_type=refresh_token",
            b"grant_type=magic",
            b"\xff",
            b"grant_type=password&username=a",
            b"grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=a",
            b"grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=a&subject_token_type=saml",
        ] {
            assert!(TokenRequest::from_form(bad, None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn no_form_makes_reading_panic(form in prop::collection::vec(any::<u8>(), 0..200), seconds in -100_000_000_000i64..100_000_000_000) {
            let _ = TokenRequest::from_form(&form, None);
            let _ = TokenRequest::from_query(&String::from_utf8_lossy(&form), None);
            let _ = rfc3339(seconds);
        }
    }
}
