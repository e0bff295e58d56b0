/// What a path below `/keppel/v1` names. The names are as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    /// `/keppel/v1/accounts`
    Accounts,
    /// `/keppel/v1/accounts/<name>`
    Account(&'a str),
    /// `/keppel/v1/accounts/<name>/sublease`
    Sublease(&'a str),
    /// `/keppel/v1/accounts/<name>/security_scan_policies`
    ScanPolicies(&'a str),
    /// `/keppel/v1/peers`
    Peers,
}

impl<'a> Endpoint<'a> {
    /// Takes a path apart.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        match path.strip_prefix("/keppel/v1/")? {
            "accounts" => Some(Self::Accounts),
            "peers" => Some(Self::Peers),
            rest => match rest.strip_prefix("accounts/")?.split_once('/') {
                None => Some(Self::Account(&rest["accounts/".len()..])),
                Some((name, "sublease")) => Some(Self::Sublease(name)),
                Some((name, "security_scan_policies")) => Some(Self::ScanPolicies(name)),
                Some(_) => None,
            },
        }
    }

    /// The methods it knows, as the `Allow` header lists them.
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Accounts | Self::Peers => "GET, HEAD",
            Self::Account(_) => "GET, HEAD, PUT, DELETE",
            Self::Sublease(_) => "POST",
            Self::ScanPolicies(_) => "GET, HEAD, PUT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_recognised() {
        use Endpoint as E;
        for (path, endpoint) in [
            ("/keppel/v1/accounts", Some(E::Accounts)),
            ("/keppel/v1/peers", Some(E::Peers)),
            ("/keppel/v1/accounts/acme", Some(E::Account("acme"))),
            ("/keppel/v1/accounts/", Some(E::Account(""))),
            ("/keppel/v1/accounts/acme/sublease", Some(E::Sublease("acme"))),
            ("/keppel/v1/accounts/acme/security_scan_policies", Some(E::ScanPolicies("acme"))),
            ("/keppel/v1/accounts/acme/other", None),
            ("/keppel/v1/accounts/acme/sublease/", None),
            ("/keppel/v1/nothing", None),
            ("/keppel/v2/accounts", None),
        ] {
            assert_eq!(E::parse(path), endpoint, "{path}");
        }
    }
}
