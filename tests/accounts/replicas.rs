//! Replicas with policies of their own.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::images::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, sha256};
use crate::regions::{Region, federation, within};
use crate::site::{Reply, reply};

const PATH: &str = "/keppel/v1/accounts/acme-prod";
const NOBODY: (&str, &str) = ("", "");
/// Within this time, what was decided in one region decides access in the others.
const SOON: Duration = Duration::from_secs(1);

/// Pushes an image of one layer; gives the answer to the first request that is refused, or to the last.
async fn push(region: &Region, user: (&str, &str), repository: &str, tag: &str, config: &Value) -> Reply {
    let (config, layer) = (config.to_string(), "a layer");
    for blob in [&*config, layer] {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(blob.as_bytes()));
        let request = region.client.request(Method::POST, &path).basic_auth(user.0, Some(user.1));
        let pushed = reply(request.body(blob.to_owned())).await;
        if pushed.status != 201 {
            return pushed;
        }
    }
    put_manifest(region, user, repository, tag, &config).await
}

/// The same, where its blobs are there.
async fn put_manifest(region: &Region, user: (&str, &str), repository: &str, tag: &str, config: &str) -> Reply {
    let [config, layer] = [(OCI_CONFIG, config), (OCI_LAYER, "a layer")]
        .map(|(kind, blob)| json!({"mediaType": kind, "digest": sha256(blob.as_bytes()), "size": blob.len()}));
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let path = format!("/v2/{repository}/manifests/{tag}");
    let request = region.client.request(Method::PUT, &path).basic_auth(user.0, Some(user.1));
    reply(request.header("content-type", OCI_MANIFEST).body(manifest.to_string())).await
}

/// Fails unless the distribution API gave this status, and these words.
fn expect(answer: &Reply, status: u16, words: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
    assert!(answer.text.contains(words), "{:?} lacks {words:?}", answer.text);
}

/// Makes a replica in a region, or changes it.
async fn put_replica(eu: &Region, region: &Region, ada: (&str, &str), mut fields: Value) -> Reply {
    let issued = eu.ask("POST", &format!("{PATH}/sublease"), ada, None).await.expect(200, "").json();
    fields["auth_tenant_id"] = "acme".into();
    let request = region.client.request(Method::PUT, PATH).basic_auth(ada.0, Some(ada.1));
    let request = request.header("X-Keppel-Sublease-Token", issued["sublease_token"].as_str().expect("a token"));
    reply(request.body(json!({ "account": fields }).to_string())).await
}

#[tokio::test]
async fn a_replica_decides_with_its_own_policies_what_goes_through_its_region() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, us, ap] = federation(folder.path()).await;
    let ada = ("ada", &*eu.told(&["user", "add", "ada", "--role", "acme=admin"]));
    let bob = ("bob", &*eu.told(&["user", "add", "bob"]));
    for region in [&us, &ap] {
        within(SOON, "users can log in", async || region.ask("GET", "/v2/", bob, None).await.status == 200).await;
    }
    let shared = json!({
        "rbac_policies": [{"match_username": "bob", "permissions": ["pull", "push"]}],
        "gc_policies": [{"match_repository": "old", "action": "delete"}],
    });
    eu.put_account("acme-prod", ada, shared.clone()).await.expect(200, "");
    expect(&push(&eu, ada, "acme-prod/web", "latest", &json!({})).await, 201, "");
    within(SOON, "it is known", async || us.ask("GET", PATH, ada, None).await.status == 200).await;
    let replication = json!({"strategy": "on_first_use", "upstream": "eu"});
    let made = put_replica(&eu, &us, ada, json!({ "replication": replication })).await.expect(200, "").json();
    for field in ["rbac_policies", "gc_policies"] {
        assert_eq!(made["account"][field], shared[field], "as the primary has it");
    }
    // What a replica cannot have of its own is named.
    let other = json!([{"match_repository": "new", "action": "delete"}]);
    for (field, value) in [("gc_policies", other), ("copies", json!(2)), ("ack", json!("primary"))] {
        let refused = put_replica(&eu, &us, ada, json!({ "replication": replication, field: value })).await;
        refused.expect(422, &format!("account.{field}: is the same in all regions: change it in region eu"));
    }
    let own = json!({
        "rbac_policies": [{"match_repository": "web", "permissions": ["anonymous_pull"]}],
        "tag_policies": [
            {"match_tag": "v.*", "block_push": true},
            {"match_tag": "latest", "block_overwrite": true, "block_delete": true},
        ],
        "validation": {"required_labels": ["team"]},
    });
    let made = put_replica(&eu, &us, ada, own.clone()).await.expect(200, "").json();
    for field in ["rbac_policies", "tag_policies"] {
        assert_eq!(made["account"][field], own[field]);
    }
    assert_eq!(made["account"]["validation"]["required_labels"], own["validation"]["required_labels"]);
    assert_eq!(
        (&made["account"]["gc_policies"], &made["account"]["replication"]["strategy"]),
        (&shared["gc_policies"], &replication["strategy"])
    );
    assert_eq!(us.ask("GET", PATH, ada, None).await.json(), made);
    for region in [&eu, &ap] {
        let shown = region.ask("GET", PATH, ada, None).await.json();
        assert_eq!(shown["account"]["rbac_policies"], shared["rbac_policies"]);
        assert!(shown["account"].get("tag_policies").is_none(), "{shown}");
    }

    // Anybody may pull there, and nowhere else.
    let latest = "/v2/acme-prod/web/manifests/latest";
    let status = async |region: &Region, path: &str, user| region.ask("GET", path, user, None).await.status.as_u16();
    within(SOON, "it is open", async || status(&us, latest, NOBODY).await == 200).await;
    assert_eq!((status(&eu, latest, NOBODY).await, status(&ap, latest, NOBODY).await), (401, 401));
    // Whom the primary's policies let in, these do not, save to what is open to all.
    let closed = "/v2/acme-prod/other/manifests/latest";
    assert_eq!((status(&ap, closed, bob).await, status(&us, closed, bob).await), (404, 403));
    let labelled = json!({"config": {"Labels": {"team": "core"}}});
    expect(&push(&us, bob, "acme-prod/web", "mine", &labelled).await, 403, "");
    expect(&push(&ap, bob, "acme-prod/web", "mine", &json!({})).await, 201, "");
    // Nor may anybody change through it what its rules guard, whatever the primary's say.
    expect(&push(&us, ada, "acme-prod/web", "v1", &labelled).await, 409, "account.tag_policies[0] sets block_push");
    expect(
        &push(&us, ada, "acme-prod/web", "latest", &labelled).await,
        409,
        "account.tag_policies[1] sets block_overwrite",
    );
    expect(&push(&us, ada, "acme-prod/web", "bare", &json!({})).await, 400, "account.validation.rule_for_manifest");
    for path in [latest, "/keppel/v1/accounts/acme-prod/repositories/web"] {
        expect(&us.ask("DELETE", path, ada, None).await, 409, "account.tag_policies[1] sets block_delete");
    }
    expect(&push(&us, ada, "acme-prod/web", "good", &labelled).await, 201, "");
    expect(&push(&ap, ada, "acme-prod/web", "v1", &json!({})).await, 201, "");

    // A configuration that was never sent there is fetched to be looked into.
    let far = json!({"config": {"Labels": {"team": "far"}}});
    expect(&push(&ap, ada, "acme-prod/web", "far", &far).await, 201, "");
    let config = far.to_string();
    let layer = sha256(b"a layer");
    for digest in [sha256(config.as_bytes()), layer.clone()] {
        let path = format!("/v2/acme-prod/mounted/blobs/uploads/?mount={digest}&from=acme-prod/web");
        expect(&us.ask("POST", &path, ada, None).await, 201, "");
    }
    expect(&put_manifest(&us, ada, "acme-prod/mounted", "good", &config).await, 201, "");

    // Without policies of its own it has the primary's again; nor are they left to a replica that is made anew.
    put_replica(&eu, &us, ada, json!({})).await.expect(200, "");
    within(SOON, "it is closed", async || status(&us, latest, NOBODY).await == 401).await;
    put_replica(&eu, &us, ada, own).await.expect(200, "");
    within(SOON, "it is open", async || status(&us, latest, NOBODY).await == 200).await;
    assert_eq!(us.ask("DELETE", PATH, ada, None).await.status, 204);
    let made = put_replica(&eu, &us, ada, json!({ "replication": replication })).await.expect(200, "").json();
    assert_eq!(made["account"]["rbac_policies"], shared["rbac_policies"]);
    assert_eq!(status(&us, latest, NOBODY).await, 401);
}

#[tokio::test]
async fn what_a_tenant_holds_is_counted_once_where_the_primary_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, us, _ap] = federation(folder.path()).await;
    let ada = ("ada", &*eu.told(&["user", "add", "ada", "--role", "acme=admin"]));
    within(SOON, "ada can log in", async || us.ask("GET", "/v2/", ada, None).await.status == 200).await;
    eu.put_account("acme-prod", ada, json!({})).await.expect(200, "");
    expect(&push(&eu, ada, "acme-prod/web", "latest", &json!({})).await, 201, "");
    within(SOON, "it is known", async || us.ask("GET", PATH, ada, None).await.status == 200).await;
    let replication = json!({"strategy": "eager", "upstream": "eu"});
    put_replica(&eu, &us, ada, json!({ "replication": replication })).await.expect(200, "");
    let listed = "/keppel/v1/accounts/acme-prod/repositories/web/_manifests";
    within(Duration::from_secs(20), "the copy is here", async || {
        let answer = us.ask("GET", listed, ada, None).await;
        answer.status == 200 && answer.json()["manifests"].as_array().is_some_and(|all| all.len() == 1)
    })
    .await;
    let usage = async |region: &Region| region.ask("GET", "/keppel/v1/quotas/acme", ada, None).await.json();
    assert_eq!(usage(&eu).await["manifests"]["usage"], 1);
    assert_eq!((&usage(&us).await["manifests"]["usage"], &usage(&us).await["bytes"]["usage"]), (&json!(0), &json!(0)));
}
