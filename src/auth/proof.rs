use super::{AuthError, Credentials};

/// What an `Authorization` header shows.
pub(super) enum Proof<'a> {
    None,
    Token(&'a str),
    Credentials(Credentials),
}

impl<'a> Proof<'a> {
    pub(super) fn parse(header: Option<&'a str>) -> Result<Self, AuthError> {
        let Some(header) = header else { return Ok(Self::None) };
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let rest = rest.trim();
        match scheme {
            scheme if scheme.eq_ignore_ascii_case("bearer") => Ok(Self::Token(rest)),
            scheme if scheme.eq_ignore_ascii_case("basic") => Credentials::from_basic(rest).map(Self::Credentials),
            // Asks for the driver's own headers, of which none of the drivers here has any. Source: the Keppel API.
            scheme if scheme.eq_ignore_ascii_case("keppel") && rest.is_empty() => Ok(Self::None),
            _ => Err(AuthError::BadHeader("its scheme is neither Basic nor Bearer")),
        }
    }
}
