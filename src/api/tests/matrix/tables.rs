//! Who may do what where: what the specification says, without a look at the code under test.

use super::*;

/// Where permission comes from, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Nobody,
    /// A user without any.
    Stranger,
    /// A role, in the tenant of the accounts.
    Viewer,
    Editor,
    Admin,
    /// The role of an admin elsewhere.
    AdminElsewhere,
    Operator,
    /// A robot that may pull from and push to `web`.
    Robot,
    /// A policy that grants everything in `web`.
    Granted,
    /// An editor who may not push, by a policy.
    Forbidden,
    /// An admin's personal token for pulls only.
    Limited,
}

pub(super) use Who::*;

impl Who {
    pub(super) const ALL: [Self; 11] =
        [Nobody, Stranger, Viewer, Editor, Admin, AdminElsewhere, Operator, Robot, Granted, Forbidden, Limited];

    pub(super) fn username(self) -> String {
        match self {
            Robot => "tenant+ci".to_owned(),
            who => format!("{who:?}").to_lowercase(),
        }
    }

    /// Whether a role in the tenant lets them see its accounts.
    pub(super) fn sees_account(self) -> bool {
        matches!(self, Viewer | Editor | Admin | Operator | Forbidden | Limited)
    }

    pub(super) fn edits_account(self) -> bool {
        matches!(self, Admin | Operator)
    }

    /// What they may do in a repository.
    pub(super) fn may(self, action: Action, place: Place) -> bool {
        let inside = matches!(place, Private | Public | NoRepository);
        match self {
            Operator => true,
            _ if action == Action::Pull && place == Public => true,
            Editor | Admin => inside,
            AdminElsewhere => place == Elsewhere,
            Viewer | Limited => inside && action == Action::Pull,
            Forbidden => inside && action != Action::Push,
            Robot => place == Private && action != Action::Delete,
            Granted => place == Private,
            Nobody | Stranger => false,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Private,
    Public,
    NoRepository,
    Elsewhere,
    NoAccount,
}

pub(super) use Place::*;

impl Place {
    pub(super) const ALL: [Self; 5] = [Private, Public, NoRepository, Elsewhere, NoAccount];

    pub(super) fn parts(self) -> (&'static str, &'static str) {
        match self {
            Private => ("acme", "web"),
            Public => ("acme", "public/web"),
            NoRepository => ("acme", "absent"),
            Elsewhere => ("other", "web"),
            NoAccount => ("absent", "web"),
        }
    }
}

/// What comes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Let through, whatever comes of it then.
    Through,
    /// Has to show who is there, or to get a token for more.
    Challenged,
    /// Is known, and may not.
    Refused,
    /// Is told that there is no such account.
    Hidden,
}

pub(super) use Outcome::*;

/// The rest of a path below a repository, and what has to be had there. No arm for whatever comes: a new route needs a line.
pub(super) fn content_rule(endpoint: Content<'_>, method: &str) -> Option<(String, Action)> {
    let read_or_delete = match method {
        "DELETE" => Action::Delete,
        "PUT" => Action::Push,
        _ => Action::Pull,
    };
    Some(match endpoint {
        // Not about a repository; tested by themselves.
        Content::Base | Content::Catalog => return None,
        Content::Manifest { reference, .. } => (format!("manifests/{reference}"), read_or_delete),
        Content::Blob { digest, .. } => (format!("blobs/{digest}"), read_or_delete),
        Content::Uploads { .. } => ("blobs/uploads/".to_owned(), Action::Push),
        Content::Upload { id, .. } => (format!("blobs/uploads/{id}"), Action::Push),
        Content::Tags { .. } => ("tags/list".to_owned(), Action::Pull),
        Content::Referrers { digest, .. } => (format!("referrers/{digest}"), Action::Pull),
    })
}

/// Every route of the registry's own API.
pub(super) fn own(place: Place) -> Vec<Own<'static>> {
    let (account, repository) = place.parts();
    vec![
        Own::Accounts,
        Own::Account(account),
        Own::Sublease(account),
        Own::ScanPolicies(account),
        Own::Repositories(account),
        Own::Repository { account, repository },
        Own::Manifests { account, repository },
        Own::Manifest { account, repository, digest: DIGEST },
        Own::TrivyReport { account, repository, digest: DIGEST },
        Own::Tag { account, repository, tag: "none" },
        Own::Peers,
        Own::Quotas("tenant"),
        Own::Audit,
    ]
}

/// The path and what comes of a request there. No arm for whatever comes: a new route needs a line.
pub(super) fn own_rule(endpoint: Own<'_>, method: &str, who: Who, place: Place) -> (String, Outcome) {
    let reads = matches!(method, "GET" | "HEAD");
    let role_here = |rights: bool, sees: bool| match (place, who) {
        (NoAccount, _) => Hidden,
        (Elsewhere, AdminElsewhere | Operator) => Through,
        (Elsewhere, _) => Hidden,
        _ if rights => Through,
        _ if sees => Refused,
        _ => Hidden,
    };
    let view = role_here(who.sees_account(), false);
    let edit = role_here(who.edits_account(), who.sees_account());
    let in_repository = |action| match (place, who) {
        (NoAccount, _) => Hidden,
        (Elsewhere, AdminElsewhere | Operator) => Through,
        (Elsewhere, _) => Hidden,
        _ if who.may(action, place) => Through,
        _ if who.may(Action::Pull, place) || who.sees_account() => Refused,
        _ => Hidden,
    };
    let (path, outcome) = match endpoint {
        Own::Accounts => ("accounts".to_owned(), Through),
        Own::Peers => ("peers".to_owned(), Through),
        Own::Account(name) => {
            let outcome = match method {
                // Made for the tenant in the body: whoever may not make accounts there is refused, whatever the name.
                "PUT" if who.edits_account() => Through,
                "PUT" => Refused,
                "DELETE" => edit,
                _ => view,
            };
            (format!("accounts/{name}"), outcome)
        }
        Own::Sublease(name) => (format!("accounts/{name}/sublease"), edit),
        Own::ScanPolicies(name) => (format!("accounts/{name}/security_scan_policies"), if reads { view } else { edit }),
        Own::Repositories(name) => (format!("accounts/{name}/repositories"), view),
        Own::Repository { account, repository } => {
            (format!("accounts/{account}/repositories/{repository}"), in_repository(Action::Delete))
        }
        Own::Manifests { account, repository } => {
            (format!("accounts/{account}/repositories/{repository}/_manifests"), in_repository(Action::Pull))
        }
        Own::Manifest { account, repository, digest } => {
            let path = format!("accounts/{account}/repositories/{repository}/_manifests/{digest}");
            (path, in_repository(Action::Delete))
        }
        Own::TrivyReport { account, repository, digest } => {
            let path = format!("accounts/{account}/repositories/{repository}/_manifests/{digest}/trivy_report");
            (path, in_repository(Action::Pull))
        }
        Own::Tag { account, repository, tag } => {
            let path = format!("accounts/{account}/repositories/{repository}/_tags/{tag}");
            (path, in_repository(Action::Delete))
        }
        // Of a tenant that is named; what operators alone may see is tested by itself.
        Own::Audit => ("audit?tenant=tenant".to_owned(), if who.edits_account() { Through } else { Refused }),
        Own::Quotas(tenant) => {
            let outcome = match (reads, who) {
                (true, who) if who.sees_account() => Through,
                (false, Operator) => Through,
                _ => Refused,
            };
            (format!("quotas/{tenant}"), outcome)
        }
    };
    (format!("/keppel/v1/{path}"), if who == Nobody { Challenged } else { outcome })
}
