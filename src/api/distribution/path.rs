//! Paths below `/v2/`, taken apart without allocation.

use std::borrow::Cow;

use http::Method;
use keppel_federation::vocabulary::ParseError;
use percent_encoding::percent_decode_str;

use crate::api::{
    access::{Action, Scope, Visitor},
    audit::Change,
    limits,
};

/// What a path names. The parts are as written: names and references are parsed by whoever uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/manifests/<reference>`
    Manifest { name: &'a str, reference: &'a str },
    /// `/v2/<name>/blobs/<digest>`
    Blob { name: &'a str, digest: &'a str },
    /// `/v2/<name>/blobs/uploads/`
    Uploads { name: &'a str },
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload { name: &'a str, id: &'a str },
    /// `/v2/<name>/tags/list`
    Tags { name: &'a str },
    /// `/v2/<name>/referrers/<digest>`
    Referrers { name: &'a str, digest: &'a str },
}

impl Endpoint<'_> {
    /// What a method changes there, for the audit log.
    pub(super) fn change(&self, method: &Method, visitor: &Visitor<'_>) -> Option<Change> {
        let (name, action, kind, rest) = match (self, method) {
            (Self::Manifest { name, reference }, &Method::PUT) => (name, "create", "manifest", Some(reference)),
            (Self::Manifest { name, reference }, &Method::DELETE) => {
                (name, "delete", if reference.contains(':') { "manifest" } else { "tag" }, Some(reference))
            }
            (Self::Blob { name, digest }, &Method::DELETE) => (name, "delete", "blob", Some(digest)),
            (Self::Uploads { name }, &Method::POST) | (Self::Upload { name, .. }, &Method::PUT) => {
                (name, "create", "blob", None)
            }
            _ => return None,
        };
        let repository = visitor.parse(name).ok();
        let full = repository.as_ref().map_or_else(|| (*name).to_owned(), ToString::to_string);
        let target = match rest {
            None => full,
            Some(reference) if reference.contains(':') => format!("{full}@{reference}"),
            Some(tag) => format!("{full}:{tag}"),
        };
        let account = repository.map(|repository| repository.account());
        Some(Change { action, kind, target, account, tenant: None })
    }

    /// Whether it is about sending a blob.
    pub(super) fn is_upload(&self) -> bool {
        matches!(self, Self::Uploads { .. } | Self::Upload { .. })
    }

    /// What of a method counts towards which limit, and in which repository.
    pub(super) fn limited(&self, method: &Method) -> Option<(&str, limits::Action)> {
        match (self, method) {
            (Self::Manifest { name, .. }, &Method::GET) => Some((name, limits::Action::ManifestPulls)),
            (Self::Manifest { name, .. }, &Method::PUT) => Some((name, limits::Action::ManifestPushes)),
            (Self::Blob { name, .. }, &Method::GET) => Some((name, limits::Action::BlobPulls)),
            (Self::Uploads { name }, &Method::POST) => Some((name, limits::Action::BlobPushes)),
            _ => None,
        }
    }
}

impl<'a> Endpoint<'a> {
    /// How many kinds there are, for tests that list them.
    #[cfg(test)]
    pub(crate) const COUNT: usize = 8;

    /// Takes a decoded path apart, from its end, since a name may hold any of the words that follow it.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let rest = match path {
            "/v2" | "/v2/" => return Some(Self::Base),
            "/v2/_catalog" => return Some(Self::Catalog),
            _ => path.strip_prefix("/v2/")?,
        };
        let (head, last) = rest.rsplit_once('/')?;
        let (name, word) = head.rsplit_once('/')?;
        match (word, last) {
            ("manifests", reference) => Some(Self::Manifest { name, reference }),
            // Without its slash at the end, as some write it.
            ("blobs", "uploads") => Some(Self::Uploads { name }),
            ("blobs", digest) => Some(Self::Blob { name, digest }),
            ("uploads", id) => {
                let name = name.strip_suffix("/blobs")?;
                Some(if id.is_empty() { Self::Uploads { name } } else { Self::Upload { name, id } })
            }
            ("tags", "list") => Some(Self::Tags { name }),
            ("referrers", digest) => Some(Self::Referrers { name, digest }),
            _ => None,
        }
    }

    /// What a request is about to do there; `None`: the endpoint does not know the method. Every request is let through
    /// or refused by this, so that no endpoint can forget to ask.
    pub(crate) fn scope(self, method: &Method) -> Option<Scope<'a>> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let within = |name, action| Some(Scope::Repository { name, action });
        match self {
            Self::Base if reads => Some(Scope::Base),
            Self::Catalog if reads => Some(Scope::Catalog),
            Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Tags { name }
            | Self::Referrers { name, .. }
                if reads =>
            {
                within(name, Action::Pull)
            }
            Self::Manifest { name, .. } if *method == Method::PUT => within(name, Action::Push),
            Self::Manifest { name, .. } | Self::Blob { name, .. } if *method == Method::DELETE => {
                within(name, Action::Delete)
            }
            Self::Uploads { name } if *method == Method::POST => within(name, Action::Push),
            Self::Upload { name, .. }
                if matches!(*method, Method::GET | Method::PATCH | Method::PUT | Method::DELETE) =>
            {
                within(name, Action::Push)
            }
            _ => None,
        }
    }

    /// The methods it knows, as the `Allow` header lists them.
    pub(crate) fn allow(self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => "GET, HEAD",
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Upload { .. } => "GET, PATCH, PUT, DELETE",
        }
    }
}

/// Undoes percent-encoding. Some clients encode the colon of a digest; an encoded slash, though, would make one element
/// of the path look like two, and is refused.
///
/// # Errors
/// For an encoded slash, and for what is not UTF-8.
pub(crate) fn decode(path: &str) -> Result<Cow<'_, str>, ParseError> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let invalid = || ParseError::Grammar {
        what: "path",
        text: path.chars().take(128).collect(),
        rule: "be UTF-8 without encoded slashes",
    };
    if path.as_bytes().windows(3).any(|window| window.eq_ignore_ascii_case(b"%2f")) {
        return Err(invalid());
    }
    percent_decode_str(path).decode_utf8().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_method_of_every_endpoint_has_a_scope_and_no_other() {
        let endpoints = [
            Endpoint::Base,
            Endpoint::Catalog,
            Endpoint::Manifest { name: "a/b", reference: "r" },
            Endpoint::Blob { name: "a/b", digest: "d" },
            Endpoint::Uploads { name: "a/b" },
            Endpoint::Upload { name: "a/b", id: "i" },
            Endpoint::Tags { name: "a/b" },
            Endpoint::Referrers { name: "a/b", digest: "d" },
        ];
        let mut asked = 0;
        for endpoint in endpoints {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
                let scope = endpoint.scope(&method.parse().unwrap());
                let known = endpoint.allow().split(", ").any(|allowed| allowed == method);
                assert_eq!(scope.is_some(), known, "{method} {endpoint:?}");
                let action = match scope {
                    Some(Scope::Repository { name: "a/b", action }) => action,
                    Some(Scope::Base | Scope::Catalog) => Action::Pull,
                    Some(scope) => panic!("{scope:?}"),
                    None => continue,
                };
                let upload = matches!(endpoint, Endpoint::Uploads { .. } | Endpoint::Upload { .. });
                let expected = match method {
                    _ if upload => Action::Push,
                    "GET" | "HEAD" => Action::Pull,
                    "DELETE" => Action::Delete,
                    _ => Action::Push,
                };
                assert_eq!(action, expected, "{method} {endpoint:?}");
                asked += 1;
            }
        }
        assert_eq!(asked, 20);
    }

    #[test]
    fn every_endpoint_is_recognised() {
        use Endpoint as E;
        for (path, endpoint) in [
            ("/v2", E::Base),
            ("/v2/", E::Base),
            ("/v2/_catalog", E::Catalog),
            ("/v2/a/manifests/latest", E::Manifest { name: "a", reference: "latest" }),
            ("/v2/a/b/c/manifests/sha256:00", E::Manifest { name: "a/b/c", reference: "sha256:00" }),
            ("/v2/a/b/blobs/sha256:00", E::Blob { name: "a/b", digest: "sha256:00" }),
            ("/v2/a/b/blobs/uploads", E::Uploads { name: "a/b" }),
            ("/v2/a/b/blobs/uploads/", E::Uploads { name: "a/b" }),
            ("/v2/a/b/blobs/uploads/x", E::Upload { name: "a/b", id: "x" }),
            ("/v2/a/b/tags/list", E::Tags { name: "a/b" }),
            ("/v2/a/b/referrers/sha256:00", E::Referrers { name: "a/b", digest: "sha256:00" }),
        ] {
            assert_eq!(Endpoint::parse(path), Some(endpoint), "{path}");
        }
    }

    #[test]
    fn names_may_hold_the_words_of_the_api() {
        use Endpoint as E;
        for (path, endpoint) in [
            ("/v2/blobs/manifests/manifests/tags", E::Manifest { name: "blobs/manifests", reference: "tags" }),
            ("/v2/tags/list/tags/list", E::Tags { name: "tags/list" }),
            ("/v2/blobs/uploads/blobs/uploads/", E::Uploads { name: "blobs/uploads" }),
            ("/v2/a/blobs/uploads/blobs/sha256:00", E::Blob { name: "a/blobs/uploads", digest: "sha256:00" }),
            ("/v2/_catalog/tags/list", E::Tags { name: "_catalog" }),
        ] {
            assert_eq!(Endpoint::parse(path), Some(endpoint), "{path}");
        }
    }

    #[test]
    fn everything_else_is_no_endpoint() {
        for path in [
            "",
            "/",
            "/v",
            "/v2x",
            "/v2/a",
            "/v2/_catalog/",
            "/v2/a/tags",
            "/v2/a/tags/all",
            "/v2/manifests/a",
            "/v2/uploads/x",
            "/v2/a/uploads/x",
        ] {
            assert_eq!(Endpoint::parse(path), None, "{path}");
        }
    }

    #[test]
    fn encoded_colons_are_read_and_encoded_slashes_refused() {
        assert_eq!(decode("/v2/a/blobs/sha256%3A00").unwrap(), "/v2/a/blobs/sha256:00");
        for bad in ["/v2/a%2fb/tags/list", "/v2/a%2Fb/tags/list", "/v2/%ff/tags/list"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        // What is encoded twice is not decoded twice.
        assert_eq!(decode("/v2/a%252fb/tags/list").unwrap(), "/v2/a%2fb/tags/list");
    }

    proptest! {
        #[test]
        fn no_path_makes_parsing_panic(path in "(/v2/)?[a-z%0-9/._:é]{0,60}(/(manifests|blobs|uploads|tags|list|referrers)/?[a-z%/]{0,10}){0,3}") {
            if let Ok(decoded) = decode(&path) {
                let _ = Endpoint::parse(&decoded);
            }
        }
    }
}
