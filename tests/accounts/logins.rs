//! Pushing and pulling as different people, with passwords, tokens, personal tokens and robots.

use serde_json::json;

use crate::{
    harness::images::sha256,
    site::{Site, reply},
};

/// Tries to push a blob to a repository; gives the status.
async fn push(site: &Site, repository: &str, user: &str, secret: &str) -> u16 {
    let digest = sha256(b"{}");
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let request = site.client.request("POST".parse().unwrap(), &path).basic_auth(user, Some(secret));
    reply(request.body("{}")).await.status.as_u16()
}

async fn pull(site: &Site, repository: &str, user: &str, secret: &str) -> u16 {
    let digest = sha256(b"{}");
    let request = site.client.request("GET".parse().unwrap(), &format!("/v2/{repository}/blobs/{digest}"));
    let request = if user.is_empty() { request } else { request.basic_auth(user, Some(secret)) };
    reply(request).await.status.as_u16()
}

#[tokio::test]
async fn roles_and_policies_decide_who_pushes_and_pulls() {
    let site = Site::start();
    let policies = json!({"rbac_policies": [
        {"match_repository": "public/.*", "permissions": ["anonymous_pull"]},
        {"match_repository": "shared", "match_username": "stan", "permissions": ["pull", "push"]},
        {"match_repository": "frozen", "match_username": ".*", "forbidden_permissions": ["push"]},
    ]});
    site.put_account("acme-prod", "ada", policies).await.expect(200, "");
    for repository in ["acme-prod/web", "acme-prod/public/web", "acme-prod/shared"] {
        assert_eq!(push(&site, repository, "ed", "swordfish").await, 201, "{repository}");
    }
    for (user, repository, pushes, pulls) in [
        ("root", "acme-prod/web", true, true),
        ("ada", "acme-prod/web", true, true),
        ("vi", "acme-prod/web", false, true),
        ("stan", "acme-prod/web", false, false),
        ("stan", "acme-prod/public/web", false, true),
        ("stan", "acme-prod/shared", true, true),
        ("ada", "acme-prod/frozen", false, true),
        ("root", "acme-prod/frozen", false, true),
    ] {
        let pushed = push(&site, repository, user, "swordfish").await;
        assert_eq!(pushed, if pushes { 201 } else { 403 }, "{user} pushes to {repository}");
        let pulled = pull(&site, repository, user, "swordfish").await;
        assert_eq!(pulled != 403, pulls, "{user} pulls from {repository}: {pulled}");
    }
    assert_eq!(pull(&site, "acme-prod/public/web", "", "").await, 200);
    assert_eq!(pull(&site, "acme-prod/web", "", "").await, 401);
    assert_eq!(pull(&site, "acme-prod/absent", "", "").await, 401);
    // A policy that is taken back is over at once.
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(pull(&site, "acme-prod/public/web", "", "").await, 401);
    assert_eq!(push(&site, "acme-prod/shared", "stan", "swordfish").await, 403);
}

#[tokio::test]
async fn a_robot_works_until_its_secret_is_replaced_or_revoked() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let robot = "acme+ci";
    let secret = site.run(&["robot", "add", robot, "--allow", "pull,push", "--repository", "web|api/.*"]);
    assert!(secret.starts_with("kpr_"));
    assert_eq!(push(&site, "acme-prod/web", robot, &secret).await, 201);
    assert_eq!(push(&site, "acme-prod/other", robot, &secret).await, 403);
    let token = site.token(robot, &secret, "scope=repository:acme-prod/web:pull,push,delete").await.json();
    let next = site.run(&["robot", "rotate", robot, "--overlap", "1h"]);
    for secret in [&secret, &next] {
        assert_eq!(pull(&site, "acme-prod/web", robot, secret).await, 200, "both are good for a while");
    }
    site.run(&["robot", "revoke", robot]);
    for secret in [&secret, &next] {
        assert_eq!(pull(&site, "acme-prod/web", robot, secret).await, 401);
    }
    let bearer = token["token"].as_str().unwrap();
    let path = format!("/v2/acme-prod/web/blobs/{}", sha256(b"{}"));
    let answer = reply(site.client.request("GET".parse().unwrap(), &path).bearer_auth(bearer)).await;
    assert_eq!(answer.status, 401, "a token ends with the secret it came from");
}

#[tokio::test]
async fn a_personal_token_does_no_more_than_it_was_made_for() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(push(&site, "acme-prod/web", "ada", "swordfish").await, 201);
    let token = site.run(&["user", "token", "ada", "--allow", "pull", "--for", "1h"]);
    assert!(token.starts_with("kpt_"));
    assert_eq!(pull(&site, "acme-prod/web", "ada", &token).await, 200);
    assert_eq!(push(&site, "acme-prod/web", "ada", &token).await, 403);
    let with_token = |method: &str| {
        let request = site.client.request(method.parse().unwrap(), "/keppel/v1/accounts/acme-prod");
        reply(request.basic_auth("ada", Some(&token)).body("{\"account\":{\"auth_tenant_id\":\"acme\"}}"))
    };
    assert_eq!(with_token("GET").await.status, 200);
    assert_eq!(with_token("PUT").await.status, 403);
    site.run(&["user", "revoke", "ada"]);
    assert_eq!(pull(&site, "acme-prod/web", "ada", &token).await, 401);
    assert_eq!(pull(&site, "acme-prod/web", "ada", "swordfish").await, 200, "the password stays");
}
