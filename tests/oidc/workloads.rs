//! Workloads: tokens of a build service, exchanged or shown as they are.

use crate::provider::{Site, answer};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

#[tokio::test]
async fn a_workload_gets_what_its_rule_allows_and_a_stranger_nothing() {
    let mut site = Site::start();
    site.make_account().await;
    let scope =
        "repository:acme-prod/web:pull,push,delete repository:acme-prod/secret:pull repository:acme-prod/api/v1:pull";
    let exchange = async |site: &Site, token: &str, kind: &str| {
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", token),
            ("subject_token_type", kind),
            ("access_type", "offline"),
            ("scope", scope),
        ];
        site.token(&form).await
    };
    // Signed with RSA and with an elliptic curve, by two keys of the provider.
    for resource in ["", "/ec"] {
        let token = site.provider.workload_token("builder", resource).await;
        let (status, exchanged) = exchange(&site, &token, JWT).await;
        assert_eq!(status, 200, "{exchanged}");
        assert_eq!(exchanged["scope"], "repository:acme-prod/web:pull,push repository:acme-prod/api/v1:pull");
        assert!(exchanged.get("refresh_token").is_none(), "nothing outlives the workload's own token");
        let registry_token = exchanged["access_token"].as_str().unwrap().to_owned();
        assert_eq!(site.push("acme-prod/web", &registry_token).await, 201);
        assert_eq!(site.push("acme-prod/secret", &registry_token).await, 401);
        for (username, status) in [("oidc", 200), ("acme+ci", 200), ("acme+other", 401)] {
            let digest = crate::harness::images::sha256(b"{}");
            let path = format!("/v2/acme-prod/web/blobs/{digest}");
            let request = site.client.request("GET".parse().unwrap(), &path).basic_auth(username, Some(&token));
            assert_eq!(answer(request).await.0, status, "{username}");
        }
        assert_eq!(exchange(&site, &token, "urn:ietf:params:oauth:token-type:saml2").await.0, 400);
    }
    let intruder = site.provider.workload_token("intruder", "").await;
    let (status, refused) = exchange(&site, &intruder, JWT).await;
    assert_eq!(status, 401, "{refused}");
    assert!(!refused.to_string().contains(&intruder), "a token is not repeated");
    assert!(!site.server.log().contains(&intruder), "nor written to the log");
    site.server.assert_alive();
}

#[tokio::test]
async fn a_provider_that_is_gone_keeps_nobody_out_whose_keys_are_known() {
    let mut site = Site::start();
    site.make_account().await;
    let token = site.provider.workload_token("builder", "").await;
    let alice = site.provider.id_token("alice").await;
    let ask = async |site: &Site, secret: &str| {
        let path = "/v2/acme-prod/none/tags/list";
        answer(site.client.request("GET".parse().unwrap(), path).basic_auth("oidc", Some(secret))).await.0
    };
    let gone = std::mem::replace(&mut site.provider, crate::provider::Provider::start());
    drop(gone);
    assert_eq!(ask(&site, &alice).await, 404, "the keys were fetched for bob");
    assert_eq!(ask(&site, &token).await, 403, "the rule is about two repositories, and these are not among them");
    site.server.restart();
    site.client = site.server.client();
    assert_eq!(ask(&site, &alice).await, 503, "after a restart nobody knows the keys");
}
