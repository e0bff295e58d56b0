//! People: the device flow, ID tokens as passwords, and what follows from them.

use std::process::Command;

use serde_json::Value;

use crate::provider::{Site, answer};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

#[tokio::test]
async fn a_person_logs_in_by_the_device_flow_and_every_client_uses_it() {
    let site = Site::start();
    let info = site.client.get("/keppel/v1").await.expect(200).json();
    assert_eq!(info["auth_driver"], "oidc");
    assert_eq!(info["oidc"]["issuer"], site.provider.issuer.as_str());
    site.make_account().await;

    let (good, said) = site.log_in("mallory");
    assert!(!good && said.contains("not valid"), "people without a role are not let in: {said}");
    assert!(!site.logins().exists());
    let (good, said) = site.log_in("alice");
    assert!(good, "{said}");
    let logins: Value = serde_json::from_str(&std::fs::read_to_string(site.logins()).unwrap()).unwrap();
    let login = &logins["auths"][site.server.address()];
    assert!(login["identitytoken"].is_string(), "{logins}");

    // Our own commands use the login, and know the registry from it.
    let accounts = site.good(&["account", "list"]);
    assert!(accounts.contains("acme-prod") && accounts.contains("NAME"), "{accounts}");
    let refused = site.bad(&["account", "create", "acme-new", "--tenant", "acme"]);
    assert!(refused.contains("not allowed") && refused.contains("ask an admin"), "{refused}");
    // So does skopeo, from Docker's file: it gets as far as the absence of what is asked for.
    let output = Command::new("skopeo")
        .args(["list-tags", "--tls-verify=false", "--authfile"])
        .arg(site.logins())
        .arg(format!("docker://{}", site.server.reference("acme-prod/none")))
        .output()
        .expect("skopeo is there, which scripts/setup installs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("repository name not known") || said.contains("NAME_UNKNOWN") || said.contains("404"),
        "{said}"
    );

    site.good(&["logout"]);
    let refused = site.bad(&["account", "list", "--server", &site.server.address()]);
    assert!(refused.contains("log in first: keppel login"), "{refused}");
}

#[tokio::test]
async fn an_id_token_is_a_password_and_is_exchanged_until_the_session_is_ended() {
    let site = Site::start();
    site.make_account().await;
    let alice = site.provider.id_token("alice").await;
    let path = "/v2/acme-prod/none/tags/list";
    for (username, status) in [("oidc", 404), ("alice", 404), ("bob", 401)] {
        let request = site.client.request("GET".parse().unwrap(), path).basic_auth(username, Some(&alice));
        assert_eq!(answer(request).await.0, status, "{username}");
    }
    let changed = format!("{}x{}", &alice[..alice.len() - 1], &alice[alice.len() - 1..]);
    let request = site.client.request("GET".parse().unwrap(), path).basic_auth("oidc", Some(&changed));
    assert_eq!(answer(request).await.0, 401);

    let scope = "repository:acme-prod/web:pull,push repository:other/web:pull";
    let form = [
        ("grant_type", EXCHANGE),
        ("subject_token", alice.as_str()),
        ("subject_token_type", ID_TOKEN),
        ("access_type", "offline"),
        ("scope", scope),
    ];
    let (status, exchanged) = site.token(&form).await;
    assert_eq!(status, 200, "{exchanged}");
    assert_eq!(exchanged["token_type"], "Bearer");
    assert_eq!(exchanged["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(exchanged["scope"], "repository:acme-prod/web:pull,push");
    assert_eq!(site.push("acme-prod/web", exchanged["access_token"].as_str().unwrap()).await, 201);
    let refresh = exchanged["refresh_token"].as_str().unwrap();
    let refreshed = [("grant_type", "refresh_token"), ("refresh_token", refresh), ("scope", scope)];
    assert_eq!(site.token(&refreshed).await.0, 200);

    let data = site.server.data().to_str().unwrap();
    let users = site.good(&["user", "list", "--data", data]);
    assert!(users.contains("alice") && users.contains("acme=editor"), "{users}");
    site.good(&["user", "revoke", "alice", "--data", data]);
    assert_eq!(site.token(&refreshed).await.0, 401, "its refresh token");
    assert_eq!(site.push("acme-prod/web", exchanged["access_token"].as_str().unwrap()).await, 401, "its access token");
    assert_eq!(site.token(&form).await.0, 401, "the ID token from before");
}
