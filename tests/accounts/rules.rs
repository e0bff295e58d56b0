//! What an account's owners and the operators allow of content: quotas, tag policies, validation.

use serde_json::json;

use crate::site::{Site, reply};

#[tokio::test]
async fn quotas_are_set_by_operators_seen_by_the_tenant_and_stop_pushes() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let path = "/keppel/v1/quotas/acme";
    let unlimited = json!({"manifests": {"quota": null, "usage": 0}, "bytes": {"quota": null, "usage": 0}});
    for user in ["root", "ada", "ed", "vi"] {
        assert_eq!(site.ask("GET", path, user).await.expect(200, "").json(), unlimited, "{user}");
    }
    site.ask("GET", path, "stan").await.expect(403, "not allowed");
    site.ask("GET", "/keppel/v1/quotas/unheard", "stan").await.expect(403, "not allowed");
    assert_eq!(site.ask("GET", "/keppel/v1/quotas/unheard", "root").await.json(), unlimited);
    for user in ["ada", "vi", "stan"] {
        site.put(path, user, json!({"manifests": {"quota": 1}})).await.expect(403, "not allowed");
    }
    let (_, size) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let set = site.put(path, "root", json!({"manifests": {"quota": 2}})).await;
    let expected = json!({"manifests": {"quota": 2, "usage": 1}, "bytes": {"quota": null, "usage": size}});
    assert_eq!(set.expect(200, "").json(), expected);
    site.push("acme-prod/web", "v2", json!({}), json!({"n": "2"})).await;
    let refused = site.try_push("acme-prod/web", "v3", json!({}), json!({"n": "3"})).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["code"]), (409, &json!("DENIED")));
    assert!(refused.text.contains("the quota of auth tenant acme is used up: manifests (quota = 2, usage = 2)"));
    // What is there may be pushed again, and tagged.
    site.push("acme-prod/web", "again", json!({}), json!({"n": "2"})).await;
    // Less than there is is no error: it only stops new pushes. What is not named stays.
    let set = site.put(path, "root", json!({"bytes": {"quota": 1}})).await.expect(200, "").json();
    assert_eq!((&set["manifests"]["quota"], &set["bytes"]["quota"]), (&json!(2), &json!(1)));
    let refused = site.try_push("acme-prod/web", "v4", json!({"x": 1}), json!({})).await.unwrap_err();
    assert!(refused.text.contains("bytes (quota = 1, usage = "), "{}", refused.text);
    site.put(path, "root", json!({"bytes": {"quota": null}, "manifests": {"quota": null}})).await.expect(200, "");
    site.push("acme-prod/web", "v5", json!({"x": 1}), json!({"n": "5"})).await;
    for (body, words) in [
        (json!({}), "manifests: is missing"),
        (json!([]), "body: must be an object"),
        (json!({"manifests": {"quota": 1, "usage": 1}}), "manifests.usage: cannot be set"),
        (json!({"bytes": {"usage": 1}}), "bytes.usage: cannot be set"),
        (json!({"manifests": {}}), "manifests.quota: is missing"),
        (json!({"manifests": {"quota": -1}}), "manifests.quota: must be"),
        (json!({"manifests": {"quota": "1"}}), "manifests.quota: must be"),
        (json!({"manifests": {"quota": u64::MAX}}), "manifests.quota: must be"),
        (json!({"manifests": 1}), "manifests: must be an object"),
        (json!({"blobs": {"quota": 1}}), "blobs: is not a field"),
    ] {
        site.put(path, "root", body).await.expect(422, words);
    }
    site.ask("GET", "/keppel/v1/quotas/a%20b", "root").await.expect(422, "auth_tenant_id");
}

#[tokio::test]
async fn usage_is_still_known_after_a_restart() {
    let mut site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    site.put("/keppel/v1/quotas/acme", "root", json!({"manifests": {"quota": 1}})).await.expect(200, "");
    let before = site.ask("GET", "/keppel/v1/quotas/acme", "vi").await.json();
    site.restart();
    assert_eq!(site.ask("GET", "/keppel/v1/quotas/acme", "vi").await.json(), before);
    assert!(site.try_push("acme-prod/web", "v2", json!({}), json!({"n": "2"})).await.is_err());
}

#[tokio::test]
async fn tag_policies_stop_pushes_and_name_themselves() {
    let site = Site::start();
    let policies = json!({"tag_policies": [
        {"match_repository": "web", "match_tag": "v.*", "block_overwrite": true},
        {"match_tag": "frozen", "block_push": true},
    ]});
    site.put_account("acme-prod", "ada", policies).await.expect(200, "");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let moved = site.try_push("acme-prod/web", "v1", json!({}), json!({"n": "2"})).await.unwrap_err();
    assert_eq!((moved.status.as_u16(), &moved.json()["errors"][0]["code"]), (409, &json!("DENIED")));
    assert!(moved.text.contains("tag v1 is protected: account.tag_policies[0] sets block_overwrite"), "{}", moved.text);
    let frozen = site.try_push("acme-prod/web", "frozen", json!({}), json!({})).await.unwrap_err();
    assert!(frozen.text.contains("tag frozen is protected: account.tag_policies[1] sets block_push"));
}

#[tokio::test]
async fn manifests_are_checked_by_the_rule_of_the_account() {
    let site = Site::start();
    let validation = json!({"validation": {"required_labels": ["team"]}});
    site.put_account("acme-prod", "ada", validation).await.expect(200, "");
    let refused = site.try_push("acme-prod/web", "v1", json!({}), json!({})).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["code"]), (400, &json!("MANIFEST_INVALID")));
    assert!(refused.text.contains("account.validation.rule_for_manifest") && refused.text.contains("'team' in labels"));
    site.push("acme-prod/web", "v1", json!({"config": {"Labels": {"team": "core"}}}), json!({})).await;
    let rule = json!({"validation": {"rule_for_manifest": "repo_name.startsWith('web') && size(layers) == 1"}});
    site.put_account("acme-prod", "ada", rule).await.expect(200, "");
    site.push("acme-prod/web", "v2", json!({}), json!({})).await;
    assert!(site.try_push("acme-prod/api", "v2", json!({}), json!({})).await.is_err());
}

#[tokio::test]
async fn an_account_that_is_being_deleted_takes_no_pushes() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    assert_eq!(site.ask("DELETE", "/keppel/v1/accounts/acme-prod", "ada").await.status, 204);
    assert_eq!(site.ask("DELETE", "/keppel/v1/accounts/acme-prod", "ada").await.status, 204, "again is the same");
    let refused = site.try_push("acme-prod/web", "v2", json!({}), json!({})).await.unwrap_err();
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert!(refused.text.contains("account acme-prod is being deleted"));
    let pulled = reply(site.request("GET", "/v2/acme-prod/web/manifests/v1", "vi")).await;
    assert_eq!(pulled.status, 200, "what is there can be pulled until it goes");
}
