use serde::{Deserialize, Serialize};

use super::error::refuse;
use super::{
    GcPolicy, PlatformFilter, RbacPolicy, Replication, ScanPolicy, Secret, SettingsError, TagPolicy, Upstream,
    Validation, null,
};

/// The most policies of one kind in an account.
pub const POLICIES_MAX: usize = 256;

/// The settings of an account: everything about it that its owners choose and all regions share.
///
/// Serialising gives what is shown: no password, and nothing that is not set except `rbac_policies`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountSettings {
    /// Who may do what.
    #[serde(deserialize_with = "null::as_default")]
    pub rbac_policies: Vec<RbacPolicy>,
    /// Which images are deleted or kept.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub gc_policies: Vec<GcPolicy>,
    /// Which tags are guarded.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub tag_policies: Vec<TagPolicy>,
    /// Which manifests may be pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// Where the content comes from, if not from pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// Which platforms are replicated; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub platform_filter: Vec<PlatformFilter>,
    /// How reports of vulnerabilities are overridden. Has an endpoint of its own, so it is not shown with the rest.
    #[serde(skip_serializing)]
    pub security_scan_policies: Vec<ScanPolicy>,
}

impl AccountSettings {
    /// Reads the settings that a client wrote: the fields of `account` in the body, without those that are not
    /// settings. Fields that nobody knows are refused.
    ///
    /// # Errors
    /// The field at fault, as `account.…`.
    pub fn from_request(fields: serde_json::Value) -> Result<Self, SettingsError> {
        if fields.get("security_scan_policies").is_some() {
            let reason = "has an endpoint of its own";
            return Err(SettingsError::new("account.security_scan_policies", reason));
        }
        read("account", fields, Unknown::Refused).and_then(Self::checked)
    }

    /// Reads the body of a request about scan policies: `{"policies": […]}`.
    ///
    /// # Errors
    /// The field at fault, as `policies[…]…`.
    pub fn scan_policies_from_request(body: serde_json::Value) -> Result<Vec<ScanPolicy>, SettingsError> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(deserialize_with = "null::as_default")]
            policies: Vec<ScanPolicy>,
        }
        let body: Body = read("", body, Unknown::Refused)?;
        within_limit("policies", body.policies.len())?;
        for (at, policy) in body.policies.iter().enumerate() {
            policy.check(&format!("policies[{at}]"))?;
        }
        Ok(body.policies)
    }

    /// Reads what [`Self::to_stored`] wrote. A later version may have written fields that are not known here; they are
    /// passed over.
    ///
    /// # Errors
    /// The field at fault.
    pub fn from_stored(bytes: &[u8]) -> Result<Self, SettingsError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let value = serde_json::from_slice(bytes).map_err(|error| SettingsError::new("account", error.to_string()))?;
        read("account", value, Unknown::Allowed)
    }

    /// The form that the federation keeps: what is shown, and what never is.
    pub fn to_stored(&self) -> Vec<u8> {
        let mut document = serde_json::to_value(self).unwrap_or_default();
        if let Some(password) = self.replication.as_ref().and_then(Replication::password) {
            document["replication"]["upstream"]["password"] = password.reveal().into();
        }
        if !self.security_scan_policies.is_empty() {
            document["security_scan_policies"] = serde_json::to_value(&self.security_scan_policies).unwrap_or_default();
        }
        document.to_string().into_bytes()
    }

    /// The settings that follow from a request to change `current` into `self`: what the request cannot carry stays.
    ///
    /// # Errors
    /// `account.replication`, when the request would change where the content comes from.
    pub fn replacing(mut self, current: &Self) -> Result<Self, SettingsError> {
        match (&mut self.replication, &current.replication) {
            (None, None) => {}
            (Some(new), Some(old)) if new.same_upstream(old) => new.inherit_password(old),
            _ => return Err(SettingsError::new("account.replication", "cannot be changed after the account was made")),
        }
        self.security_scan_policies.clone_from(&current.security_scan_policies);
        Ok(self)
    }

    /// Whether the content comes from a registry outside the federation.
    pub fn is_external_replica(&self) -> bool {
        self.replication.as_ref().is_some_and(Replication::is_external)
    }

    /// The password for the upstream, where there is one.
    pub fn upstream_credentials(&self) -> Option<(&str, &Secret)> {
        match &self.replication.as_ref()?.upstream {
            Upstream::External { username, password, .. } if !username.is_empty() => Some((username, password)),
            _ => None,
        }
    }

    fn checked(mut self) -> Result<Self, SettingsError> {
        let external = self.is_external_replica();
        for (name, count) in [
            ("account.rbac_policies", self.rbac_policies.len()),
            ("account.gc_policies", self.gc_policies.len()),
            ("account.tag_policies", self.tag_policies.len()),
            ("account.platform_filter", self.platform_filter.len()),
        ] {
            within_limit(name, count)?;
        }
        for (at, policy) in self.rbac_policies.iter().enumerate() {
            policy.check(&format!("account.rbac_policies[{at}]"), external)?;
        }
        for (at, policy) in self.gc_policies.iter().enumerate() {
            policy.check(&format!("account.gc_policies[{at}]"))?;
        }
        for (at, policy) in self.tag_policies.iter().enumerate() {
            policy.check(&format!("account.tag_policies[{at}]"))?;
        }
        if let Some(replication) = &self.replication {
            replication.check("account.replication")?;
        }
        for (at, platform) in self.platform_filter.iter().enumerate() {
            platform.check(&format!("account.platform_filter[{at}]"))?;
        }
        if !self.platform_filter.is_empty() && self.replication.is_none() {
            return refuse("account", "platform_filter", "is for replicas only, and replication is not set");
        }
        self.validation = match self.validation {
            Some(validation) => validation.normalized("account.validation")?,
            None => None,
        };
        Ok(self)
    }
}

fn within_limit(name: &str, count: usize) -> Result<(), SettingsError> {
    match count > POLICIES_MAX {
        true => Err(SettingsError::new(name, format!("has {count} entries: {POLICIES_MAX} is the most"))),
        false => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Refused,
    Allowed,
}

/// Reads a document; errors name the path of the field.
fn read<T: serde::de::DeserializeOwned>(
    root: &str,
    value: serde_json::Value,
    unknown: Unknown,
) -> Result<T, SettingsError> {
    if !value.is_object() {
        return Err(SettingsError::new(if root.is_empty() { "body" } else { root }, "must be an object"));
    }
    let mut stranger = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        stranger.get_or_insert_with(|| render(&path));
    };
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
    let place = |path: &str| match (root, path) {
        (root, "" | ".") => root.to_owned(),
        ("", path) => path.to_owned(),
        (root, path) => format!("{root}.{path}"),
    };
    match (result, stranger) {
        (Err(error), _) => {
            let (path, reason) = (track.path().to_string(), error.to_string());
            Err(name_missing(&place(&path), &reason))
        }
        (Ok(_), Some(path)) if unknown == Unknown::Refused => {
            Err(SettingsError::new(place(&path), "is not a field that is known here"))
        }
        (Ok(document), _) => Ok(document),
    }
}

/// A missing field is reported at the object that lacks it; its own path says more.
fn name_missing(place: &str, reason: &str) -> SettingsError {
    let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
    match missing {
        Some(field) if place.is_empty() => SettingsError::new(field, "is missing"),
        Some(field) => SettingsError::new(format!("{place}.{field}"), "is missing"),
        None if place.is_empty() => SettingsError::new("body", reason),
        None => SettingsError::new(place, reason),
    }
}

fn render(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => match render(parent) {
            outer if outer.is_empty() => key.clone(),
            outer => format!("{outer}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => render(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn write(fields: Value) -> Result<AccountSettings, String> {
        AccountSettings::from_request(fields).map_err(|error| error.to_string())
    }

    fn full() -> Value {
        json!({
            "rbac_policies": [
                {"match_repository": "library/.*", "permissions": ["anonymous_pull", "anonymous_first_pull"]},
                {"match_username": "acme\\+.*", "match_cidr": "10.0.0.0/8", "permissions": ["pull", "push"],
                 "forbidden_permissions": ["delete"]},
            ],
            "gc_policies": [
                {"match_repository": ".*", "except_repository": "library/.*", "match_tag": "v.*", "action": "protect",
                 "time_constraint": {"on": "pushed_at", "newest": 10}},
                {"match_repository": ".*", "only_untagged": true, "action": "delete",
                 "time_constraint": {"on": "last_pulled_at", "older_than": {"value": 7, "unit": "d"},
                                     "newer_than": {"value": 1, "unit": "y"}}},
            ],
            "tag_policies": [{"match_tag": "v[0-9].*", "block_overwrite": true, "block_delete": true}],
            "validation": {"rule_for_manifest": "'team' in labels", "required_labels": ["team"]},
            "replication": {"strategy": "from_external_on_first_use",
                            "upstream": {"url": "registry.example.org/mirror", "username": "us", "password": "swordfish"}},
            "platform_filter": [{"architecture": "amd64", "os": "linux"}, {"os": "windows", "os.version": "10.0"}],
        })
    }

    #[test]
    fn every_field_comes_back_as_it_was_written_but_the_password() {
        let settings = write(full()).unwrap();
        let mut shown = full();
        shown["replication"]["upstream"].as_object_mut().unwrap().remove("password");
        assert_eq!(serde_json::to_value(&settings).unwrap(), shown);
        assert!(!format!("{settings:?}").contains("swordfish"));
        assert_eq!(AccountSettings::from_stored(&settings.to_stored()).unwrap(), settings);
        let (user, password) = settings.upstream_credentials().unwrap();
        assert_eq!((user, password.reveal()), ("us", "swordfish"));
    }

    #[test]
    fn empty_settings_show_only_that_nobody_is_granted_anything() {
        assert_eq!(serde_json::to_value(write(json!({})).unwrap()).unwrap(), json!({"rbac_policies": []}));
        let nulls = json!({"rbac_policies": null, "gc_policies": null, "validation": null, "replication": null,
                           "tag_policies": null, "platform_filter": null});
        assert_eq!(write(nulls).unwrap(), AccountSettings::default());
        assert_eq!(AccountSettings::from_stored(b"").unwrap(), AccountSettings::default());
    }

    #[test]
    fn refusals_name_the_field_at_fault() {
        let rbac = |policy: Value| json!({"rbac_policies": [{"permissions": ["anonymous_pull"]}, policy]});
        let gc = |policy: Value| json!({ "gc_policies": [policy] });
        let external =
            |upstream: Value| json!({"replication": {"strategy": "from_external_on_first_use", "upstream": upstream}});
        for (document, field, reason) in [
            (
                rbac(json!({"match_cidr": "10.0.0.1", "permissions": ["anonymous_pull"]})),
                "account.rbac_policies[1].match_cidr",
                "CIDR",
            ),
            (
                rbac(json!({"match_repository": "(", "permissions": ["anonymous_pull"]})),
                "account.rbac_policies[1].match_repository",
                "unclosed",
            ),
            (rbac(json!({"permissions": ["pull"]})), "account.rbac_policies[1].match_username", "must be set"),
            (
                rbac(json!({"forbidden_permissions": ["push"]})),
                "account.rbac_policies[1].match_username",
                "must be set",
            ),
            (
                rbac(json!({"match_username": "a", "permissions": ["anonymous_pull"]})),
                "account.rbac_policies[1].match_username",
                "must not be set",
            ),
            (rbac(json!({"permissions": []})), "account.rbac_policies[1].permissions", "grants nothing"),
            (
                rbac(json!({"permissions": ["anonymous_first_pull"]})),
                "account.rbac_policies[1].permissions",
                "external",
            ),
            (
                rbac(json!({"permissions": ["anonymous_pull", "anonymous_pull"]})),
                "account.rbac_policies[1].permissions",
                "twice",
            ),
            (rbac(json!({"permissions": ["fly"]})), "account.rbac_policies[1].permissions[0]", "fly"),
            (
                rbac(json!({"match_username": "a", "permissions": ["pull"], "forbidden_permissions": ["pull"]})),
                "account.rbac_policies[1].forbidden_permissions",
                "both",
            ),
            (rbac(json!({"permissions": "pull"})), "account.rbac_policies[1].permissions", "sequence"),
            (
                rbac(json!({"match_user": "a", "permissions": ["anonymous_pull"]})),
                "account.rbac_policies[1].match_user",
                "not a field",
            ),
            (gc(json!({"action": "delete"})), "account.gc_policies[0].match_repository", "must be set"),
            (gc(json!({"match_repository": ".*"})), "account.gc_policies[0].action", "missing"),
            (gc(json!({"match_repository": ".*", "action": "burn"})), "account.gc_policies[0].action", "burn"),
            (
                gc(
                    json!({"match_repository": ".*", "action": "delete", "time_constraint": {"on": "pushed_at", "newest": 3}}),
                ),
                "account.gc_policies[0].time_constraint.newest",
                "delete",
            ),
            (
                gc(json!({"match_repository": ".*", "action": "delete", "time_constraint": {"on": "pushed_at"}})),
                "account.gc_policies[0].time_constraint.on",
                "must be set",
            ),
            (
                gc(
                    json!({"match_repository": ".*", "action": "delete", "time_constraint": {"older_than": {"value": 1, "unit": "d"}}}),
                ),
                "account.gc_policies[0].time_constraint.on",
                "missing",
            ),
            (
                gc(
                    json!({"match_repository": ".*", "action": "delete", "time_constraint": {"on": "pushed_at", "older_than": {"value": 1, "unit": "x"}}}),
                ),
                "account.gc_policies[0].time_constraint.older_than.unit",
                "x",
            ),
            (
                gc(json!({"match_repository": ".*", "action": "delete", "time_constraint":
                {"on": "pushed_at", "older_than": {"value": 7, "unit": "d"}, "newer_than": {"value": 1, "unit": "w"}}})),
                "account.gc_policies[0].time_constraint.newer_than",
                "longer",
            ),
            (
                gc(json!({"match_repository": ".*", "action": "delete", "only_untagged": true, "match_tag": "v"})),
                "account.gc_policies[0].match_tag",
                "only_untagged",
            ),
            (json!({"tag_policies": [{"match_tag": "v"}]}), "account.tag_policies[0].block_push", "must be true"),
            (
                json!({"tag_policies": [{"except_tag": "[", "block_push": true}]}),
                "account.tag_policies[0].except_tag",
                "regular",
            ),
            (json!({"validation": {"rule_for_manifest": "1"}}), "account.validation.rule_for_manifest", "boolean"),
            (json!({"replication": {"strategy": "eagerly", "upstream": "eu"}}), "account.replication", "eagerly"),
            (
                json!({"replication": {"strategy": "on_first_use", "upstream": "https://eu"}}),
                "account.replication.upstream",
                "host",
            ),
            (json!({"replication": {"strategy": "on_first_use"}}), "account.replication", "upstream"),
            (external(json!("eu")), "account.replication", "upstream"),
            (external(json!({"url": "https://x.org"})), "account.replication.upstream.url", "scheme"),
            (external(json!({"url": "x.org", "password": "p"})), "account.replication.upstream.username", "together"),
            (json!({"platform_filter": [{"os": "linux"}]}), "account.platform_filter", "replicas only"),
            (json!({"security_scan_policies": []}), "account.security_scan_policies", "endpoint"),
            (json!({"nonsense": 1}), "account.nonsense", "not a field"),
            (json!([1]), "account", "object"),
        ] {
            let error = AccountSettings::from_request(document.clone()).unwrap_err();
            assert_eq!(error.field, field, "{document}: {error}");
            assert!(error.reason.contains(reason) && !error.to_string().contains('\n'), "{document}: {error}");
        }
        assert!(write(json!({"rbac_policies": vec![json!({"permissions": ["anonymous_pull"]}); 257]})).is_err());
    }

    #[test]
    fn a_change_keeps_the_source_and_what_is_never_shown() {
        let mut current = write(full()).unwrap();
        current.security_scan_policies = vec![ScanPolicy::default()];
        let mut shown = serde_json::to_value(&current).unwrap();
        shown["tag_policies"] = json!([]);
        let changed = write(shown.clone()).unwrap().replacing(&current).unwrap();
        assert_eq!(changed.upstream_credentials().unwrap().1.reveal(), "swordfish");
        assert_eq!(changed.security_scan_policies, current.security_scan_policies);
        shown["replication"]["upstream"]["username"] = "them".into();
        let other_user = write(shown.clone()).unwrap().replacing(&current).unwrap();
        assert!(other_user.upstream_credentials().unwrap().1.is_empty(), "a password belongs to its user");
        shown["replication"]["upstream"]["url"] = "evil.example.org".into();
        let error = write(shown.clone()).unwrap().replacing(&current).unwrap_err();
        assert_eq!(error.field, "account.replication");
        for field in ["replication", "platform_filter"] {
            shown.as_object_mut().unwrap().remove(field);
        }
        shown["rbac_policies"] = json!([]);
        assert!(write(shown).unwrap().replacing(&current).is_err());
    }

    #[test]
    fn what_a_later_version_stored_is_passed_over_and_what_is_broken_is_not() {
        let stored = br#"{"rbac_policies":[{"permissions":["anonymous_pull"],"new":1}],"newer":{"a":[1]}}"#;
        assert_eq!(AccountSettings::from_stored(stored).unwrap().rbac_policies.len(), 1);
        assert!(AccountSettings::from_stored(br#"{"rbac_policies":[{"permissions":["new_kind"]}]}"#).is_err());
        assert!(AccountSettings::from_stored(b"\xff").is_err());
    }

    #[test]
    fn scan_policies_are_read_and_checked() {
        let read = |policies: Value| AccountSettings::scan_policies_from_request(json!({ "policies": policies }));
        let mut policies = read(json!([{"managed_by_user": "$REQUESTER", "match_vulnerability_id": "CVE-2024-.*",
            "except_fix_released": true, "action": {"assessment": "not reachable", "ignore": true}}]))
        .unwrap();
        policies[0].resolve_requester("alice");
        assert_eq!(policies[0].managed_by_user, "alice");
        for (policy, field) in [
            (json!({"action": {"ignore": true, "severity": "Low"}}), "policies[0].action.severity"),
            (json!({"action": {"assessment": "x"}}), "policies[0].action"),
            (json!({}), "policies[0].action"),
            (json!({"action": {"ignore": true, "assessment": "x".repeat(1025)}}), "policies[0].action.assessment"),
            (json!({"action": {"severity": "Deadly"}}), "policies[0].action.severity"),
            (json!({"match_repository": "(", "action": {"ignore": true}}), "policies[0].match_repository"),
            (json!({"foo": 1, "action": {"ignore": true}}), "policies[0].foo"),
        ] {
            assert_eq!(read(json!([policy])).unwrap_err().field, field, "{policy}");
        }
        assert_eq!(AccountSettings::scan_policies_from_request(json!({})).unwrap_err().field, "policies");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z_.*(\\[]{0,12}".prop_map(Value::from),
            prop::sample::select(vec!["pull", "anonymous_pull", "delete", "pushed_at", "10.0.0.0/8"])
                .prop_map(Value::from),
        ];
        let names = prop::sample::select(vec![
            "rbac_policies",
            "gc_policies",
            "tag_policies",
            "validation",
            "replication",
            "platform_filter",
            "permissions",
            "match_repository",
            "match_cidr",
            "time_constraint",
            "on",
            "action",
            "upstream",
            "strategy",
            "url",
            "rule_for_manifest",
            "required_labels",
            "older_than",
            "value",
            "unit",
            "os",
            "x",
        ]);
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_document_makes_reading_panic_and_what_is_accepted_reads_back(document in any_json()) {
            if let Ok(settings) = AccountSettings::from_request(document) {
                prop_assert_eq!(&AccountSettings::from_stored(&settings.to_stored()).unwrap(), &settings);
                prop_assert!(settings.clone().replacing(&settings).is_ok());
            }
        }
    }
}
