//! `/keppel/v1/accounts` and what belongs to it: paths, fields, codes and texts of the contract.

use serde_json::json;

use crate::site::{Site, reply};

#[tokio::test]
async fn an_account_is_made_seen_changed_and_ended() {
    let site = Site::start();
    let path = "/keppel/v1/accounts/acme-prod";
    let policies = json!([{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]);
    let made = site.put_account("acme-prod", "ada", json!({ "rbac_policies": policies })).await;
    let expected = json!({"account": {"name": "acme-prod", "auth_tenant_id": "acme", "rbac_policies": policies}});
    assert_eq!(made.expect(200, "").json(), expected);
    // The same again is no change and the same answer.
    assert_eq!(site.put_account("acme-prod", "ada", json!({ "rbac_policies": policies })).await.json(), expected);
    for user in ["root", "ada", "ed", "vi"] {
        assert_eq!(site.ask("GET", path, user).await.expect(200, "").json(), expected, "{user}");
        let list = site.ask("GET", "/keppel/v1/accounts", user).await;
        assert_eq!(list.json(), json!({"accounts": [expected["account"]]}), "{user}");
    }
    site.ask("GET", path, "stan").await.expect(404, "no such account");
    site.ask("GET", "/keppel/v1/accounts/absent", "ada").await.expect(404, "no such account");
    assert_eq!(site.ask("GET", "/keppel/v1/accounts", "stan").await.json(), json!({"accounts": []}));

    let validation = json!({"required_labels": ["team"]});
    let changed = site.put_account("acme-prod", "ada", json!({ "validation": validation })).await;
    let shown = json!({"rule_for_manifest": "'team' in labels", "required_labels": ["team"]});
    assert_eq!(changed.json()["account"]["validation"], shown);
    assert_eq!(changed.json()["account"]["rbac_policies"], json!([]));

    for user in ["ed", "vi"] {
        site.put_account("acme-prod", user, json!({})).await.expect(403, "not allowed");
        site.ask("DELETE", path, user).await.expect(403, "not allowed");
        site.ask("POST", &format!("{path}/sublease"), user).await.expect(403, "not allowed");
    }
    site.put_account("acme-prod", "stan", json!({})).await.expect(403, "not allowed");
    site.ask("DELETE", path, "stan").await.expect(404, "no such account");
    let sublease = site.ask("POST", &format!("{path}/sublease"), "ada").await;
    assert!(sublease.json()["sublease_token"].as_str().is_some_and(|token| token.len() == 64));

    assert_eq!(site.ask("DELETE", path, "ada").await.status, 204);
    assert_eq!(site.ask("GET", path, "ada").await.json()["account"]["state"], json!("deleting"));
    site.put_account("acme-prod", "ada", json!({})).await.expect(409, "acme-prod is being deleted");
}

#[tokio::test]
async fn refusals_name_the_field_or_name_at_fault() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let path = "/keppel/v1/accounts/acme-prod";
    for (body, words) in [
        (json!({}), "account: is missing"),
        (json!({"account": 1}), "account: must be an object"),
        (json!({"account": {"auth_tenant_id": "acme"}, "x": 1}), "x: is not a field"),
        (json!({"account": {}}), "account.auth_tenant_id: is missing"),
        (json!({"account": {"auth_tenant_id": 1}}), "account.auth_tenant_id: must be a text"),
        (json!({"account": {"auth_tenant_id": "a b"}}), "account.auth_tenant_id: "),
        (json!({"account": {"auth_tenant_id": "acme", "name": "acme-prod"}}), "account.name: is not allowed here"),
        (json!({"account": {"auth_tenant_id": "acme", "state": "deleting"}}), "account.state: cannot be set"),
        (json!({"account": {"auth_tenant_id": "acme", "metadata": {}}}), "account.metadata: is not a field"),
        (
            json!({"account": {"auth_tenant_id": "acme", "rbac_policies": [{"permissions": ["anonymous_pull"], "match_cidr": "x"}]}}),
            "account.rbac_policies[0].match_cidr: ",
        ),
        (
            json!({"account": {"auth_tenant_id": "acme", "validation": {"rule_for_manifest": "labels["}}}),
            "account.validation.rule_for_manifest: ",
        ),
        (
            json!({"account": {"auth_tenant_id": "acme",
                "replication": {"strategy": "from_external_on_first_use", "upstream": {"url": "registry.example.org"}}}}),
            "account.replication: cannot be changed",
        ),
    ] {
        site.put(path, "ada", body).await.expect(422, words);
    }
    site.put("/keppel/v1/accounts/Bad_Name", "ada", json!({"account": {"auth_tenant_id": "acme"}}))
        .await
        .expect(422, "account name \"Bad_Name\"");
    reply(site.request("PUT", path, "ada").body("{")).await.expect(400, "not valid JSON");
    reply(site.request("PUT", path, "ada").body("x".repeat(300_000))).await.expect(413, "longer than");
    // A tenant cannot take over what another one has; whoever may see it is told why.
    let of_others = json!({"account": {"auth_tenant_id": "others"}});
    site.put(path, "root", of_others.clone()).await.expect(422, "account.auth_tenant_id: cannot be changed");
    site.put(path, "ada", of_others).await.expect(403, "not allowed");
    for (method, path, status) in [
        ("GET", "/keppel/v1/nothing", 404),
        ("GET", "/keppel/v1/accounts/acme-prod/nothing", 404),
        ("DELETE", "/keppel/v1/accounts", 405),
        ("GET", "/keppel/v1/accounts/acme-prod/sublease", 405),
        ("PATCH", "/keppel/v1/accounts/acme-prod", 405),
    ] {
        let answer = site.ask(method, path, "ada").await;
        assert_eq!(answer.expect(status, "").headers.contains_key("allow"), status == 405, "{method} {path}");
    }
}

#[tokio::test]
async fn every_route_asks_who_is_there() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let api_token = site.token("ada", "swordfish", "scope=keppel:api:*").await.json();
    let pull_token = site.token("ada", "swordfish", "scope=repository:acme-prod/web:pull").await.json();
    for (method, path) in [
        ("GET", "/keppel/v1/accounts"),
        ("GET", "/keppel/v1/accounts/acme-prod"),
        ("PUT", "/keppel/v1/accounts/acme-prod"),
        ("DELETE", "/keppel/v1/accounts/other"),
        ("POST", "/keppel/v1/accounts/acme-prod/sublease"),
        ("GET", "/keppel/v1/accounts/acme-prod/security_scan_policies"),
        ("PUT", "/keppel/v1/accounts/acme-prod/security_scan_policies"),
        ("GET", "/keppel/v1/peers"),
    ] {
        let scope = if method == "GET" { "keppel:api:pull" } else { "keppel:api:*" };
        let nobody = site.ask(method, path, "").await;
        let challenge = nobody.expect(401, "authentication required").headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Bearer realm=") && challenge.contains(scope), "{challenge}");
        let wrong = site.client.request(method.parse().unwrap(), path).basic_auth("ada", Some("wrong"));
        reply(wrong).await.expect(401, "not valid");
        let with = async |token: &serde_json::Value| {
            let token = token["token"].as_str().unwrap();
            reply(site.client.request(method.parse().unwrap(), path).bearer_auth(token)).await.status.as_u16()
        };
        assert!(!matches!(with(&api_token).await, 401 | 403), "{method} {path}");
        // A token for images opens nothing here, and says which would.
        let token = pull_token["token"].as_str().unwrap();
        let narrow = reply(site.client.request(method.parse().unwrap(), path).bearer_auth(token)).await;
        let challenge = narrow.expect(401, "").headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains(scope) && challenge.contains("insufficient_scope"), "{challenge}");
    }
    site.ask("GET", "/keppel/v1/accounts/acme-prod", "ada").await.expect(200, "");
}

#[tokio::test]
async fn scan_policies_belong_to_those_who_manage_them() {
    let site = Site::start();
    site.run(&["user", "role", "ed", "acme", "admin"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let path = "/keppel/v1/accounts/acme-prod/security_scan_policies";
    assert_eq!(site.ask("GET", path, "vi").await.json(), json!({"policies": []}));
    let policy = json!({"managed_by_user": "$REQUESTER", "match_vulnerability_id": "CVE-.*",
                        "action": {"assessment": "not reachable", "ignore": true}});
    let put = site.put(path, "ada", json!({"policies": [policy]})).await;
    let stored = put.expect(200, "").json();
    assert_eq!(stored["policies"][0]["managed_by_user"], json!("ada"));
    assert_eq!(site.ask("GET", path, "vi").await.json(), stored);
    site.put(path, "ed", json!({"policies": []})).await.expect(403, "policies[0]: is managed by user \"ada\"");
    site.put(path, "ed", stored.clone()).await.expect(200, "");
    site.put(path, "vi", stored).await.expect(403, "not allowed");
    site.put(path, "ada", json!({"policies": [{"action": {}}]})).await.expect(422, "policies[0].action");
    // The settings and the scan policies do not touch each other.
    site.put_account("acme-prod", "ada", json!({"tag_policies": [{"block_push": true}]})).await.expect(200, "");
    assert_eq!(site.ask("GET", path, "vi").await.json()["policies"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_decided_survives_a_restart() {
    let mut site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let token = site.token("ed", "swordfish", "scope=repository:acme-prod/web:pull&offline_token=true").await.json();
    site.restart();
    site.ask("GET", "/keppel/v1/accounts/acme-prod", "vi").await.expect(200, "acme-prod");
    let bearer = token["token"].as_str().unwrap();
    let path = "/v2/acme-prod/web/tags/list";
    let answer = reply(site.client.request("GET".parse().unwrap(), path).bearer_auth(bearer)).await;
    assert_eq!(answer.status, 404, "the token is good, the repository is not there: {}", answer.text);
    let peers = site.ask("GET", "/keppel/v1/peers", "vi").await;
    assert_eq!(peers.json(), json!({"peers": []}));
}
