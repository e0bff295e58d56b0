//! `keppel user`, `keppel robot`, `keppel tenant` and `keppel key`.

use serde_json::{Value, json};

use crate::site::{Site, reply};

#[tokio::test]
async fn users_are_listed_changed_and_removed() {
    let site = Site::start();
    let list = || -> Value { serde_json::from_str(&site.run(&["user", "list", "--json"])).unwrap() };
    assert_eq!(list().as_array().unwrap().len(), 5);
    let table = site.run(&["user", "list"]);
    assert!(table.contains("NAME") && table.contains("acme=admin") && table.contains("operator"), "{table}");
    let password = site.run(&["user", "add", "new"]);
    assert_eq!(password.len(), 32);
    assert_eq!(site.token("new", &password, "").await.status, 200);
    site.run(&["user", "disable", "new"]);
    assert_eq!(site.token("new", &password, "").await.status, 401);
    site.run(&["user", "enable", "new"]);
    let next = site.run(&["user", "password", "new"]);
    assert_eq!(site.token("new", &password, "").await.status, 401);
    assert_eq!(site.token("new", &next, "").await.status, 200);
    site.run(&["user", "operator", "new", "true"]);
    assert_eq!(list()[2]["operator"], Value::Bool(true), "{}", list());
    site.run(&["user", "remove", "new"]);
    assert_eq!(site.token("new", &next, "").await.status, 401);
}

#[tokio::test]
async fn whoever_gets_the_name_of_a_removed_user_is_not_served_by_their_tokens() {
    let site = Site::start();
    let password = site.run(&["user", "add", "new", "--role", "acme=viewer"]);
    let asked = "grant_type=password&username=new&access_type=offline&service=keppel&scope=keppel:api:pull";
    let login = site.request("POST", "/keppel/v1/auth", "");
    let login = reply(login.body(format!("{asked}&password={password}"))).await.expect(200, "").json();
    let token = |kind: &str| login[kind].as_str().expect("a token").to_owned();
    let refresh = async || {
        let form = format!("grant_type=refresh_token&service=keppel&refresh_token={}", token("refresh_token"));
        reply(site.request("POST", "/keppel/v1/auth", "").body(form)).await.status.as_u16()
    };
    let list = async || {
        let request = site.client.request("GET".parse().expect("a method"), "/keppel/v1/accounts");
        reply(request.bearer_auth(token("access_token"))).await.status.as_u16()
    };
    assert_eq!((refresh().await, list().await), (200, 200));
    site.run(&["user", "remove", "new"]);
    assert_eq!((refresh().await, list().await), (401, 401));
    let next = site.run(&["user", "add", "new", "--operator"]);
    assert_eq!((refresh().await, list().await), (401, 401), "they are of another person");
    assert_eq!(site.token("new", &next, "").await.status, 200);
}

#[tokio::test]
async fn commands_say_what_is_wrong() {
    let site = Site::start();
    for (arguments, input, words) in [
        (&["user", "add", "ada", "--password-stdin"][..], "swordfish\n", "there is already a user or robot \"ada\""),
        (&["user", "add", "a b", "--password-stdin"], "swordfish\n", "user name \"a b\" is not valid"),
        (&["user", "add", "new", "--password-stdin"], "short\n", "password: must have at least 8"),
        (&["user", "add", "new", "--password-stdin"], "", "standard input holds no password"),
        (&["user", "remove", "nobody"], "", "there is no user or robot \"nobody\""),
        (&["key", "revoke", "none"], "", "there is no key \"none\""),
        (&["robot", "add", "ci"], "", "robot name \"ci\" is not valid"),
        (&["robot", "add", "acme+ci", "--repository", "("], "", "robot.scopes[0].match_repository"),
    ] {
        let output = site.command(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    let misused = site.command(&["user", "add", "new", "--role", "acme=king"], "");
    assert_eq!(misused.status.code(), Some(2));
}

#[tokio::test]
async fn tenants_are_listed_with_what_belongs_to_them_and_dissolved() {
    let site = Site::start();
    let _ = (site.run(&["user", "add", "tess", "--role", "tools=viewer"]), site.run(&["robot", "add", "tools+ci"]));
    let list = || serde_json::from_str::<Value>(&site.run(&["tenant", "list", "--json"])).expect("JSON");
    assert_eq!(list()["tools"], json!({"users": {"tess": "viewer"}, "robots": ["tools+ci"], "accounts": []}));
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(list()["acme"]["accounts"], json!(["acme-prod"]));
    let shown = site.run(&["tenant", "show", "tools"]);
    assert!(shown.contains("tess") && shown.contains("viewer") && shown.contains("tools+ci"), "{shown}");
    assert!(site.run(&["tenant", "list"]).lines().any(|line| line.split_whitespace().eq(["tools", "1", "1", "0"])));
    let refused = site.command(&["tenant", "remove", "acme"], "");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("acme-prod"));
    assert_eq!(site.run(&["tenant", "remove", "tools"]), "done");
    assert_eq!(list().get("tools"), None);
    let unknown = site.command(&["tenant", "show", "tools"], "");
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("nothing belongs"));
}
