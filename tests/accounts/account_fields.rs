//! Every field of an account and of its policies: written, shown, refused when it is wrong.

use serde_json::{Value, json};

use crate::site::Site;

const PATH: &str = "/keppel/v1/accounts/acme-prod";

/// An account with every field that one which is no replica can have.
fn full() -> Value {
    json!({
        "rbac_policies": [
            {"match_repository": "public/.*", "match_cidr": "192.0.2.0/24", "permissions": ["anonymous_pull"]},
            {"match_username": "ci-.*", "permissions": ["pull", "push", "delete"]},
            {"match_username": "ci-old", "permissions": ["pull"], "forbidden_permissions": ["push", "delete"]},
        ],
        "gc_policies": [
            {"match_repository": ".*", "except_repository": "keep/.*", "match_tag": "v.*", "except_tag": "v1",
             "time_constraint": {"on": "last_pulled_at", "newest": 5}, "action": "protect"},
            {"match_repository": ".*", "only_untagged": true, "action": "delete",
             "time_constraint": {"on": "pushed_at", "older_than": {"value": 2, "unit": "w"}}},
            {"match_repository": "tmp/.*", "action": "delete",
             "time_constraint": {"on": "pushed_at", "newer_than": {"value": 1, "unit": "y"}}},
        ],
        "tag_policies": [
            {"match_repository": "web", "except_repository": "web/.*", "match_tag": "v.*", "except_tag": "v0",
             "block_push": true, "block_overwrite": true, "block_delete": true},
        ],
        "validation": {"rule_for_manifest": "'team' in labels && 'stage' in labels", "required_labels": ["team", "stage"]},
    })
}

#[tokio::test]
async fn every_field_comes_back_as_it_was_written() {
    let site = Site::start();
    let mut expected = full();
    site.put_account("acme-prod", "ada", full()).await.expect(200, "");
    expected["name"] = "acme-prod".into();
    expected["auth_tenant_id"] = "acme".into();
    assert_eq!(site.ask("GET", PATH, "vi").await.json()["account"], expected);
    // A rule that is more than labels has no older form.
    let rule = json!({"validation": {"rule_for_manifest": "media_type != '' && repo_name != 'x'"}});
    let shown = site.put_account("acme-prod", "ada", rule.clone()).await.expect(200, "").json();
    assert_eq!(shown["account"]["validation"], rule["validation"]);
    for field in ["gc_policies", "tag_policies", "replication", "platform_filter", "state"] {
        assert!(shown["account"].get(field).is_none(), "{field} is not set: {shown}");
    }
}

#[tokio::test]
async fn an_external_replica_never_shows_its_password_and_takes_no_pushes() {
    let site = Site::start();
    let account = json!({
        "replication": {"strategy": "from_external_on_first_use",
                        "upstream": {"url": "registry.example.org/mirror", "username": "us", "password": "open sesame"}},
        "platform_filter": [{"os": "linux", "architecture": "amd64"}],
        "rbac_policies": [{"match_repository": "x", "permissions": ["anonymous_pull", "anonymous_first_pull"]}],
    });
    let made = site.put_account("acme-mirror", "ada", account.clone()).await;
    let mut shown = account.clone();
    shown["replication"]["upstream"].as_object_mut().unwrap().remove("password");
    for field in ["replication", "platform_filter", "rbac_policies"] {
        assert_eq!(made.expect(200, "").json()["account"][field], shown[field], "{field}");
    }
    // What was read can be written back; where it comes from cannot be changed.
    site.put_account("acme-mirror", "ada", shown.clone()).await.expect(200, "");
    let mut moved = shown.clone();
    moved["replication"]["upstream"]["url"] = "elsewhere.example.org".into();
    site.put_account("acme-mirror", "ada", moved).await.expect(422, "account.replication: cannot be changed");
    let bare = site.put_account("acme-mirror", "ada", json!({})).await.expect(200, "").json();
    assert_eq!(bare["account"]["replication"], shown["replication"], "it need not be said again");
    assert!(bare["account"].get("platform_filter").is_none(), "what can be changed has to be");
    site.put_account("acme-mirror", "ada", shown.clone()).await.expect(200, "");
    for path in ["/keppel/v1/accounts/acme-mirror", "/keppel/v1/accounts"] {
        assert!(!site.ask("GET", path, "root").await.text.contains("sesame"));
    }
    let refused = site.try_push("acme-mirror/web", "v1", json!({}), json!({})).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["code"]), (405, &json!("UNSUPPORTED")));
    assert!(
        refused.text.contains("account acme-mirror is a replica of registry.example.org/mirror"),
        "{}",
        refused.text
    );
    // The name of a peer needs an account there.
    let peer = json!({"replication": {"strategy": "on_first_use", "upstream": "eu.example.org"}});
    site.put_account("acme-peer", "ada", peer).await.expect(422, "account.replication.upstream: \"eu.example.org\"");
    site.ask("GET", "/keppel/v1/accounts/acme-peer", "ada").await.expect(404, "no such account");
}

#[tokio::test]
async fn every_field_that_is_wrong_is_named() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let one = |list: &str, policy: Value| json!({ list: [policy] });
    let external =
        |upstream: Value| json!({"replication": {"strategy": "from_external_on_first_use", "upstream": upstream}});
    let span = |field: &str, span: Value| {
        let constraint = json!({"on": "pushed_at", field: span});
        json!({"gc_policies": [{"match_repository": ".*", "action": "delete", "time_constraint": constraint}]})
    };
    let gc = |more: Value| {
        let mut policy = json!({"match_repository": ".*", "action": "delete"});
        policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "gc_policies": [policy] })
    };
    for (fields, words) in [
        (one("rbac_policies", json!({"permissions": ["fly"]})), "account.rbac_policies[0].permissions[0]"),
        (one("rbac_policies", json!({"permissions": ["pull"]})), "account.rbac_policies[0].match_username"),
        (
            one("rbac_policies", json!({"match_username": "a", "permissions": ["anonymous_pull"]})),
            "account.rbac_policies[0].match_username",
        ),
        (
            one("rbac_policies", json!({"permissions": ["anonymous_first_pull"]})),
            "account.rbac_policies[0].permissions",
        ),
        (
            one(
                "rbac_policies",
                json!({"match_username": "a", "permissions": ["pull"], "forbidden_permissions": ["pull"]}),
            ),
            "account.rbac_policies[0].forbidden_permissions",
        ),
        (one("rbac_policies", json!({})), "account.rbac_policies[0].permissions"),
        (
            one("rbac_policies", json!({"permissions": ["anonymous_pull"], "match_repository": "(a"})),
            "account.rbac_policies[0].match_repository",
        ),
        (
            one("rbac_policies", json!({"permissions": ["anonymous_pull"], "match_cidr": "10.0.0.0"})),
            "account.rbac_policies[0].match_cidr",
        ),
        (one("rbac_policies", json!({"permissions": ["anonymous_pull"], "x": 1})), "account.rbac_policies[0].x"),
        (one("gc_policies", json!({"action": "delete"})), "account.gc_policies[0].match_repository"),
        (one("gc_policies", json!({"match_repository": ".*"})), "account.gc_policies[0].action"),
        (gc(json!({"action": "fly"})), "account.gc_policies[0].action"),
        (gc(json!({"match_tag": "[", "only_untagged": false})), "account.gc_policies[0].match_tag"),
        (gc(json!({"time_constraint": {"on": "pushed_at", "oldest": 1}})), "account.gc_policies[0].time_constraint"),
        (gc(json!({"time_constraint": {"on": "noon"}})), "account.gc_policies[0].time_constraint.on"),
        (
            gc(json!({"time_constraint": {"on": "pushed_at", "older_than": {"value": 1, "unit": "x"}}})),
            "account.gc_policies[0].time_constraint.older_than",
        ),
        (
            span("older_than", json!({"value": u64::MAX, "unit": "s"})),
            "[0].time_constraint.older_than.value: is more than",
        ),
        (span("newer_than", json!({"value": 1001, "unit": "y"})), "[0].time_constraint.newer_than.value: is more than"),
        (
            span("older_than", json!({"value": 1e30, "unit": "d"})),
            "older_than.value: invalid type: floating point `1e+30`, expected a whole number that is not negative",
        ),
        (one("tag_policies", json!({"match_tag": "v.*"})), "account.tag_policies[0].block_push"),
        (one("tag_policies", json!({"block_push": 1})), "account.tag_policies[0].block_push"),
        (one("tag_policies", json!({"block_push": true, "except_tag": "("})), "account.tag_policies[0].except_tag"),
        (json!({"validation": {"rule_for_manifest": "1 + 1"}}), "account.validation.rule_for_manifest"),
        (json!({"validation": {"required_labels": ["a'b"]}}), "account.validation.required_labels[0]"),
        (
            json!({"validation": {"rule_for_manifest": "true", "required_labels": ["a"]}}),
            "account.validation.rule_for_manifest",
        ),
        (json!({"replication": {"strategy": "fly", "upstream": "a"}}), "account.replication"),
        (external(json!({"url": "https://registry.example.org"})), "account.replication.upstream.url"),
        (external(json!({"url": "a.example", "password": "x"})), "account.replication.upstream.username"),
        (external(json!("a.example")), "account.replication"),
        (json!({"platform_filter": [{"os": "linux", "architecture": "amd64"}]}), "account.platform_filter"),
        (json!({"security_scan_policies": []}), "account.security_scan_policies"),
        (json!({"rbac_policies": 1}), "account.rbac_policies"),
    ] {
        let refused = site.put_account("acme-prod", "ada", fields.clone()).await;
        assert!(refused.text.starts_with("account."), "{fields}: {}", refused.text);
        refused.expect(422, words);
    }
    let path = format!("{PATH}/security_scan_policies");
    for (policy, words) in [
        (
            json!({"action": {"assessment": "x".repeat(1025)}, "match_vulnerability_id": ".*"}),
            "policies[0].action.assessment",
        ),
        (
            json!({"action": {"assessment": "x", "severity": "Fatal"}, "match_vulnerability_id": ".*"}),
            "policies[0].action.severity",
        ),
        (
            json!({"action": {"assessment": "x", "ignore": true}, "match_vulnerability_id": "("}),
            "policies[0].match_vulnerability_id",
        ),
        (
            json!({"action": {"assessment": "x", "ignore": true}, "match_vulnerability_id": ".*", "x": 1}),
            "policies[0].x",
        ),
    ] {
        site.put(&path, "ada", json!({"policies": [policy]})).await.expect(422, words);
    }
    // Nothing of it was stored.
    let stored = site.ask("GET", PATH, "vi").await.json();
    assert_eq!(stored, json!({"account": {"name": "acme-prod", "auth_tenant_id": "acme", "rbac_policies": []}}));
}
