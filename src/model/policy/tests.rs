//! The settings of an account as documents: written, refused, stored, changed.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

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
        (rbac(json!({"forbidden_permissions": ["push"]})), "account.rbac_policies[1].match_username", "must be set"),
        (
            rbac(json!({"match_username": "a", "permissions": ["anonymous_pull"]})),
            "account.rbac_policies[1].match_username",
            "must not be set",
        ),
        (rbac(json!({"permissions": []})), "account.rbac_policies[1].permissions", "grants nothing"),
        (rbac(json!({"permissions": ["anonymous_first_pull"]})), "account.rbac_policies[1].permissions", "external"),
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
        (rbac(json!({"permissions": "pull"})), "account.rbac_policies[1].permissions", "list"),
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
fn copies_and_acknowledgement_are_shown_where_they_are_not_as_ever() {
    let settings = write(json!({"copies": 3, "ack": "primary"})).unwrap();
    let shown = json!({"rbac_policies": [], "copies": 3, "ack": "primary"});
    assert_eq!(serde_json::to_value(&settings).unwrap(), shown);
    assert_eq!(AccountSettings::from_stored(&settings.to_stored()).unwrap(), settings);
    let compiled = CompiledPolicies::compile(&settings).unwrap();
    assert_eq!((compiled.copies(), compiled.ack()), (3, Ack::Primary));
    let usual = write(json!({"copies": 1, "ack": "everywhere"})).unwrap();
    assert_eq!(usual, AccountSettings::default());
    let compiled = CompiledPolicies::compile(&usual).unwrap();
    assert_eq!((compiled.copies(), compiled.ack()), (1, Ack::Everywhere));
    for (fields, field) in [
        (json!({"copies": 0}), "account.copies"),
        (json!({"copies": 9}), "account.copies"),
        (json!({"copies": 300}), "account.copies"),
        (json!({"copies": "2"}), "account.copies"),
        (json!({"ack": "never"}), "account.ack"),
        (json!({"eager_regions": ["us"]}), "account.eager_regions"),
    ] {
        assert_eq!(AccountSettings::from_request(fields).unwrap_err().field, field);
    }
    let mut mirror = full();
    mirror["copies"] = 2.into();
    assert_eq!(AccountSettings::from_request(mirror).unwrap_err().field, "account.copies");
}

#[test]
fn a_region_that_holds_everything_is_kept_with_the_settings_and_shown_to_nobody_else() {
    let mut settings = write(json!({"copies": 2})).unwrap();
    for (region, is_eager) in [("us", true), ("ap", true), ("us", true), ("eu", false)] {
        settings.set_eager(region, is_eager);
    }
    assert_eq!(settings.eager_regions, ["ap", "us"]);
    assert_eq!(AccountSettings::from_stored(&settings.to_stored()).unwrap(), settings);
    assert_eq!(serde_json::to_value(&settings).unwrap(), json!({"rbac_policies": [], "copies": 2}));
    let compiled = CompiledPolicies::compile(&settings).unwrap();
    assert_eq!(["ap", "eu"].map(|region| compiled.is_eager_in(region)), [true, false]);
    let changed = write(json!({})).unwrap().replacing(&settings).unwrap();
    assert!(changed.is_eager_in("ap"), "whoever changes something else at the primary does not end it");
    settings.set_eager("ap", false);
    assert!(!settings.is_eager_in("ap") && settings.is_eager_in("us"));
    let replica = json!({"strategy": "eager", "upstream": "eu.example.org"});
    let asked = write(json!({ "replication": replica })).unwrap();
    assert_eq!(serde_json::to_value(&asked).unwrap()["replication"], replica);
    let filtered = json!({"replication": replica, "platform_filter": [{"os": "linux"}]});
    assert_eq!(AccountSettings::from_request(filtered).unwrap_err().field, "account.platform_filter");
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
    let error = write(shown.clone()).unwrap().replacing(&current).unwrap_err();
    assert_eq!(error.field, "account.replication.upstream.password", "a password belongs to its user");
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
        prop::sample::select(vec!["pull", "anonymous_pull", "delete", "pushed_at", "10.0.0.0/8"]).prop_map(Value::from),
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
