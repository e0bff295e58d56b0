use http::Method;

use crate::auth::Action;

/// What a path below `/keppel/v1` names. The names are as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Endpoint<'a> {
    /// `/keppel/v1/accounts`
    Accounts,
    /// `/keppel/v1/accounts/<name>`
    Account(&'a str),
    /// `/keppel/v1/accounts/<name>/sublease`
    Sublease(&'a str),
    /// `/keppel/v1/accounts/<name>/security_scan_policies`
    ScanPolicies(&'a str),
    /// `/keppel/v1/accounts/<name>/repositories`
    Repositories(&'a str),
    /// `/keppel/v1/accounts/<name>/repositories/<repository>`
    Repository { account: &'a str, repository: &'a str },
    /// `…/repositories/<repository>/_manifests`
    Manifests { account: &'a str, repository: &'a str },
    /// `…/repositories/<repository>/_manifests/<digest>`
    Manifest { account: &'a str, repository: &'a str, digest: &'a str },
    /// `…/repositories/<repository>/_manifests/<digest>/trivy_report`
    TrivyReport { account: &'a str, repository: &'a str, digest: &'a str },
    /// `…/repositories/<repository>/_tags/<name>`
    Tag { account: &'a str, repository: &'a str, tag: &'a str },
    /// `/keppel/v1/peers`
    Peers,
    /// `/keppel/v1/quotas/<tenant>`
    Quotas(&'a str),
    /// `/keppel/v1/audit`
    Audit,
}

impl<'a> Endpoint<'a> {
    /// How many kinds there are, for tests that list them.
    #[cfg(test)]
    pub(in crate::api) const COUNT: usize = 13;

    /// Takes a decoded path apart.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        match path.strip_prefix("/keppel/v1/")? {
            "accounts" => return Some(Self::Accounts),
            "peers" => return Some(Self::Peers),
            "audit" => return Some(Self::Audit),
            _ => {}
        }
        let rest = &path["/keppel/v1/".len()..];
        if let Some(tenant) = rest.strip_prefix("quotas/") {
            return (!tenant.contains('/')).then_some(Self::Quotas(tenant));
        }
        let rest = rest.strip_prefix("accounts/")?;
        let Some((name, rest)) = rest.split_once('/') else { return Some(Self::Account(rest)) };
        match rest {
            "sublease" => Some(Self::Sublease(name)),
            "security_scan_policies" => Some(Self::ScanPolicies(name)),
            "repositories" => Some(Self::Repositories(name)),
            rest => Self::below_repositories(name, rest.strip_prefix("repositories/")?),
        }
    }

    /// The names of repositories hold slashes, but none of their components begins with `_`.
    fn below_repositories(account: &'a str, rest: &'a str) -> Option<Self> {
        let Some((repository, rest)) = rest.split_once("/_") else {
            return Some(Self::Repository { account, repository: rest });
        };
        match rest.split('/').collect::<Vec<_>>()[..] {
            ["manifests"] => Some(Self::Manifests { account, repository }),
            ["manifests", digest] => Some(Self::Manifest { account, repository, digest }),
            ["manifests", digest, "trivy_report"] => Some(Self::TrivyReport { account, repository, digest }),
            ["tags", tag] => Some(Self::Tag { account, repository, tag }),
            _ => None,
        }
    }

    /// The methods it knows, as the `Allow` header lists them.
    pub(in crate::api) fn allow(self) -> &'static str {
        match self {
            Self::Accounts
            | Self::Audit
            | Self::Peers
            | Self::Repositories(_)
            | Self::Manifests { .. }
            | Self::TrivyReport { .. } => "GET, HEAD",
            Self::Account(_) => "GET, HEAD, PUT, DELETE",
            Self::Sublease(_) => "POST",
            Self::ScanPolicies(_) | Self::Quotas(_) => "GET, HEAD, PUT",
            Self::Repository { .. } | Self::Manifest { .. } | Self::Tag { .. } => "DELETE",
        }
    }

    /// What is changed there, for the audit log: its kind, its name, and the account.
    pub(super) fn target(self) -> Option<(&'static str, String, Option<&'a str>)> {
        let (kind, target, account) = match self {
            Self::Accounts | Self::Peers | Self::Audit => return None,
            Self::Account(name) => ("account", name.to_owned(), name),
            Self::Sublease(name) => ("sublease", name.to_owned(), name),
            Self::ScanPolicies(name) => ("security_scan_policies", name.to_owned(), name),
            Self::Repositories(name) => ("repositories", name.to_owned(), name),
            Self::Repository { account, repository } => ("repository", format!("{account}/{repository}"), account),
            Self::Manifests { account, repository } => ("manifests", format!("{account}/{repository}"), account),
            Self::Manifest { account, repository, digest } | Self::TrivyReport { account, repository, digest } => {
                ("manifest", format!("{account}/{repository}@{digest}"), account)
            }
            Self::Tag { account, repository, tag } => ("tag", format!("{account}/{repository}:{tag}"), account),
            Self::Quotas(tenant) => return Some(("quota", tenant.to_owned(), None)),
        };
        Some((kind, target, Some(account)))
    }

    /// Whether it is about what all regions agree on, and not about content.
    pub(super) fn is_agreed_on(self) -> bool {
        matches!(self, Self::Accounts | Self::Account(_) | Self::ScanPolicies(_) | Self::Quotas(_))
    }

    /// Whether a method changes nothing.
    pub(super) fn reads(self, method: &Method) -> bool {
        matches!(self.action(method), Action::Pull)
    }

    /// The repository that the path names, within its account.
    pub(super) fn repository(self) -> Option<&'a str> {
        match self {
            Self::Repository { repository, .. }
            | Self::Manifests { repository, .. }
            | Self::Manifest { repository, .. }
            | Self::TrivyReport { repository, .. }
            | Self::Tag { repository, .. } => Some(repository),
            Self::Accounts
            | Self::Account(_)
            | Self::Sublease(_)
            | Self::ScanPolicies(_)
            | Self::Repositories(_)
            | Self::Peers
            | Self::Quotas(_)
            | Self::Audit => None,
        }
    }

    /// The account that the path names.
    pub(super) fn account(self) -> Option<&'a str> {
        self.target()?.2
    }

    /// What the credentials must be good for, as far as that does not depend on roles.
    pub(super) fn action(self, method: &Method) -> Action {
        match *method {
            Method::GET | Method::HEAD => Action::Pull,
            Method::DELETE => Action::Delete,
            _ => Action::Push,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_recognised() {
        use Endpoint as E;
        let (account, repository, digest) = ("acme", "a/b", "sha256:00");
        for (path, endpoint) in [
            ("accounts", Some(E::Accounts)),
            ("peers", Some(E::Peers)),
            ("audit", Some(E::Audit)),
            ("accounts/acme", Some(E::Account("acme"))),
            ("accounts/", Some(E::Account(""))),
            ("accounts/acme/sublease", Some(E::Sublease("acme"))),
            ("accounts/acme/security_scan_policies", Some(E::ScanPolicies("acme"))),
            ("accounts/acme/repositories", Some(E::Repositories("acme"))),
            ("accounts/acme/repositories/a/b", Some(E::Repository { account, repository })),
            ("accounts/acme/repositories/repositories", Some(E::Repository { account, repository: "repositories" })),
            ("accounts/acme/repositories/a/b/_manifests", Some(E::Manifests { account, repository })),
            ("accounts/acme/repositories/a/b/_manifests/sha256:00", Some(E::Manifest { account, repository, digest })),
            (
                "accounts/acme/repositories/a/b/_manifests/sha256:00/trivy_report",
                Some(E::TrivyReport { account, repository, digest }),
            ),
            ("accounts/acme/repositories/a/b/_tags/v1", Some(E::Tag { account, repository, tag: "v1" })),
            ("quotas/acme", Some(E::Quotas("acme"))),
            ("quotas/acme/x", None),
            ("accounts/acme/repositories/a/_manifests/x/other", None),
            ("accounts/acme/repositories/a/_tags", None),
            ("accounts/acme/repositories/a/_else", None),
            ("accounts/acme/other", None),
            ("accounts/acme/sublease/", None),
            ("nothing", None),
            ("../v2/accounts", None),
        ] {
            assert_eq!(E::parse(&format!("/keppel/v1/{path}")), endpoint, "{path}");
        }
        assert_eq!(E::parse("/keppel/v2/accounts"), None);
    }
}
