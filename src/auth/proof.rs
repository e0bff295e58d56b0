use super::{AuthError, Credentials};

/// Who it is, where `Authorization: keppel` says that this and [`PASSWORD_HEADER`] are to be looked at.
pub const USERNAME_HEADER: &str = "x-keppel-username";
/// Their password, personal token, robot secret, or token of a provider: whatever is taken for a password elsewhere.
pub const PASSWORD_HEADER: &str = "x-keppel-password";

/// What a request shows of who it comes from, as written in its headers.
#[derive(Clone, Copy, Default)]
pub struct Shown<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// [`USERNAME_HEADER`].
    pub username: Option<&'a str>,
    /// [`PASSWORD_HEADER`].
    pub password: Option<&'a str>,
}

impl Shown<'_> {
    /// Whether this `Authorization` asks for the headers of the drivers to be looked at, in place of its own value. Source:
    /// the Keppel API.
    pub fn asks_for_own_headers(authorization: &str) -> bool {
        authorization.trim().eq_ignore_ascii_case("keppel")
    }
}

impl<'a> From<Option<&'a str>> for Shown<'a> {
    fn from(authorization: Option<&'a str>) -> Self {
        Self { authorization, ..Self::default() }
    }
}

/// What that is worth looking at.
pub(super) enum Proof<'a> {
    None,
    Token(&'a str),
    Credentials(Credentials),
}

impl<'a> Proof<'a> {
    pub(super) fn parse(shown: Shown<'a>) -> Result<Self, AuthError> {
        let Some(header) = shown.authorization else { return Ok(Self::None) };
        if Shown::asks_for_own_headers(header) {
            return match (shown.username, shown.password) {
                (None, None) => Ok(Self::None),
                (Some(username), Some(password)) => Credentials::new(username, password).map(Self::Credentials),
                _ => Err(AuthError::BadHeader("it needs X-Keppel-Username together with X-Keppel-Password")),
            };
        }
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let rest = rest.trim();
        match scheme {
            scheme if scheme.eq_ignore_ascii_case("bearer") => Ok(Self::Token(rest)),
            scheme if scheme.eq_ignore_ascii_case("basic") => Credentials::from_basic(rest).map(Self::Credentials),
            _ => Err(AuthError::BadHeader("its scheme is neither Basic nor Bearer nor keppel")),
        }
    }
}
