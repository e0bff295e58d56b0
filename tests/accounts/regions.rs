//! Three regions, each a process of its own: what is decided in one holds in the others.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Client, Image, images::sha256, process::Daemon, server::free_port},
    site::{Reply, reply},
};

pub const PATIENCE: Duration = Duration::from_secs(60);
/// Within this time, what was decided in one region decides access in the others.
pub const ONE_SECOND: Duration = Duration::from_secs(1);

pub struct Region {
    pub data: String,
    settings: Vec<String>,
    pub client: Client,
    pub process: Daemon,
}

impl Region {
    /// Starts a region and waits until its operator is answered.
    pub fn start(folder: &Path, name: &str) -> Self {
        Self::start_with(folder, name, &[])
    }

    fn start_with(folder: &Path, name: &str, more: &[&str]) -> Self {
        let (port, http) = (free_port(), free_port());
        let data = folder.join(name).display().to_string();
        let settings = [
            format!("federation.region={name}"),
            format!("federation.listen=127.0.0.1:{port}"),
            format!("federation.found={}", name == "eu"),
            format!("federation.api_url=http://127.0.0.1:{http}"),
            "federation.heartbeat_interval=150ms".into(),
            "federation.election_timeout_min=750ms".into(),
            "federation.election_timeout_max=1500ms".into(),
            "auth.driver=local".into(),
            "log.filter=warn".into(),
        ];
        let settings = settings.into_iter().chain(more.iter().map(|setting| (*setting).to_owned()));
        let settings: Vec<String> = settings.flat_map(|setting| ["--set".to_owned(), setting]).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(["serve", "--data", &data, "--listen", &format!("127.0.0.1:{http}")]).args(&settings);
        let process = Daemon::start(&mut command, &folder.join(format!("{name}.log")), Duration::from_secs(20));
        let client = Client::new(&format!("http://127.0.0.1:{http}"));
        let region = Self { data, settings, client, process };
        let begun = Instant::now();
        while !region.run(&["federation", "members"]).status.success() {
            assert!(begun.elapsed() < PATIENCE, "{name} does not answer its operator");
            std::thread::sleep(Duration::from_millis(100));
        }
        region
    }

    /// Runs a command against this region.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(arguments).args(["--data", &self.data]);
        if arguments[0] == "federation" {
            command.args(&self.settings);
        }
        command.stdin(Stdio::null()).output().expect("the binary starts")
    }

    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text").trim_end().to_owned()
    }

    pub async fn ask(&self, method: &str, path: &str, user: (&str, &str), body: Option<Value>) -> Reply {
        let request = self.client.request(method.parse().expect("a method"), path);
        let request = if user.0.is_empty() { request } else { request.basic_auth(user.0, Some(user.1)) };
        reply(match body {
            Some(body) => request.body(body.to_string()),
            None => request,
        })
        .await
    }

    pub async fn put_account(&self, name: &str, user: (&str, &str), mut fields: Value) -> Reply {
        fields["auth_tenant_id"] = "acme".into();
        let body = json!({ "account": fields });
        self.ask("PUT", &format!("/keppel/v1/accounts/{name}"), user, Some(body)).await
    }

    pub async fn token(&self, user: (&str, &str), scope: &str) -> String {
        let path = format!("/keppel/v1/auth?service=keppel&scope={scope}");
        self.ask("GET", &path, user, None).await.json()["token"].as_str().expect("a token").to_owned()
    }

    async fn pull(&self, token: &str, repository: &str) -> u16 {
        let path = format!("/v2/{repository}/tags/list");
        reply(self.client.request(Method::GET, &path).bearer_auth(token)).await.status.as_u16()
    }
}

/// Waits for an answer, and fails when it takes longer than it may.
pub async fn within(limit: Duration, what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Three regions that vote.
pub async fn federation(folder: &Path) -> [Region; 3] {
    federation_with(folder, &[]).await
}

async fn federation_with(folder: &Path, more: &[&str]) -> [Region; 3] {
    let regions = ["eu", "us", "ap"].map(|name| Region::start_with(folder, name, more));
    for (joining, name) in [(1, "us"), (2, "ap")] {
        let invitation = regions[0].told(&["federation", "invite", "--region", name]);
        regions[joining].told(&["federation", "join", &invitation]);
    }
    within(PATIENCE, "three regions vote", async || {
        regions.iter().all(|region| {
            let status: Value = serde_json::from_str(&region.told(&["federation", "status", "--json"])).expect("JSON");
            status["voters"].as_array().is_some_and(|voters| voters.len() == 3) && status["quorum"]["healthy"] == true
        })
    })
    .await;
    regions
}

/// The id of the key that a token was signed with.
pub fn signed_with(token: &str) -> String {
    let header = token.split('.').next().expect("a token has a header");
    let header = data_encoding::BASE64URL_NOPAD.decode(header.as_bytes()).expect("base64");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    header["kid"].as_str().expect("a key").to_owned()
}

#[tokio::test]
async fn what_one_region_decides_holds_in_the_others_within_a_second() {
    let folder = tempfile::tempdir().expect("a folder");
    let [mut eu, us, ap] = federation(folder.path()).await;
    let secret = eu.told(&["user", "add", "ada", "--role", "acme=admin"]);
    let ada = ("ada", secret.as_str());
    for region in [&us, &ap] {
        within(ONE_SECOND, "a user can log in elsewhere", async || {
            region.ask("GET", "/v2/", ada, None).await.status == 200
        })
        .await;
    }
    // An account, made in one region, is known in the others.
    eu.put_account("acme-prod", ada, json!({})).await.expect(200, "");
    for region in [&us, &ap] {
        within(ONE_SECOND, "an account is known elsewhere", async || {
            region.ask("GET", "/keppel/v1/accounts/acme-prod", ada, None).await.status == 200
        })
        .await;
    }
    // A policy, and a policy taken back.
    let tags = "/v2/acme-prod/web/tags/list";
    let nobody = ("", "");
    let open = json!({"rbac_policies": [{"match_repository": "web", "permissions": ["anonymous_pull"]}]});
    assert_eq!(us.ask("GET", tags, nobody, None).await.status, 401);
    eu.put_account("acme-prod", ada, open).await.expect(200, "");
    within(ONE_SECOND, "a policy opens", async || us.ask("GET", tags, nobody, None).await.status == 404).await;
    eu.put_account("acme-prod", ada, json!({})).await.expect(200, "");
    within(ONE_SECOND, "and closes", async || us.ask("GET", tags, nobody, None).await.status == 401).await;
    // Settings are changed where the primary is.
    us.put_account("acme-prod", ada, json!({})).await.expect(409, "claimed by region eu");
    us.ask("DELETE", "/keppel/v1/accounts/acme-prod", ada, None).await.expect(409, "claimed by region eu");
    // A quota travels too.
    eu.told(&["user", "add", "root", "--operator"]);
    let root = ("root", &*eu.told(&["user", "password", "root"]));
    within(ONE_SECOND, "the operator can log in", async || us.ask("GET", "/v2/", root, None).await.status == 200).await;
    let quota = Some(json!({"manifests": {"quota": 7}}));
    us.ask("PUT", "/keppel/v1/quotas/acme", root, quota).await.expect(200, "");
    within(ONE_SECOND, "a quota is known elsewhere", async || {
        ap.ask("GET", "/keppel/v1/quotas/acme", root, None).await.json()["manifests"]["quota"] == 7
    })
    .await;

    // Two regions race for a name: one has it, the other is told who.
    for round in 0..5 {
        let name = format!("race-{round}");
        let (first, second) =
            tokio::join!(us.put_account(&name, ada, json!({})), ap.put_account(&name, ada, json!({})));
        let (won, lost) = if first.status == 200 { (&first, &second) } else { (&second, &first) };
        won.expect(200, "");
        let winner = if first.status == 200 { "us" } else { "ap" };
        lost.expect(409, &format!("account {name} is claimed by region {winner}"));
    }

    // Tokens of a region are good elsewhere, even when it is down; a revoked user is refused everywhere.
    let token = eu.token(ada, "repository:acme-prod/web:pull").await;
    let digest = sha256(b"{}");
    let push = format!("/v2/race-0/web/blobs/uploads/?digest={digest}");
    let _ = (us.ask("POST", &push, ada, None).await, ap.ask("POST", &push, ada, None).await);
    eu.process.kill();
    for region in [&us, &ap] {
        assert_eq!(region.pull(&token, "acme-prod/web").await, 503, "let through to what its primary alone can say");
    }
    let refreshed = us.token(ada, "repository:acme-prod/web:pull").await;
    // So is a key that was revoked; its node takes another one.
    let keys: Value = serde_json::from_str(&ap.told(&["key", "list", "--json"])).expect("JSON");
    assert!(keys.as_array().is_some_and(|keys| keys.len() >= 3), "one of each region: {keys}");
    let key = signed_with(&refreshed);
    within(PATIENCE, "the rest decides", async || ap.run(&["key", "revoke", &key]).status.success()).await;
    for region in [&us, &ap] {
        within(ONE_SECOND, "a key is revoked", async || region.pull(&refreshed, "acme-prod/web").await == 401).await;
    }
    assert_eq!(ap.pull(&token, "acme-prod/web").await, 503, "tokens of other keys stay good");
    within(PATIENCE, "its node signs with another key", async || {
        let again = us.token(ada, "repository:acme-prod/web:pull").await;
        signed_with(&again) != key && ap.pull(&again, "acme-prod/web").await == 503
    })
    .await;
    let again = us.token(ada, "repository:acme-prod/web:pull").await;
    within(PATIENCE, "the rest decides", async || us.run(&["user", "revoke", "ada"]).status.success()).await;
    for region in [&us, &ap] {
        for token in [&token, &again] {
            within(ONE_SECOND, "revoked", async || region.pull(token, "acme-prod/web").await == 401).await;
        }
    }
}

#[tokio::test]
async fn a_replica_is_made_with_a_token_that_is_good_once_and_nothing_is_half_made_without_a_majority() {
    let folder = tempfile::tempdir().expect("a folder");
    let [mut eu, us, mut ap] = federation(folder.path()).await;
    let secret = eu.told(&["user", "add", "ada", "--role", "acme=admin"]);
    let ada = ("ada", secret.as_str());
    let policies = json!({"tag_policies": [{"match_tag": "v.*", "block_delete": true}]});
    eu.put_account("acme-prod", ada, policies.clone()).await.expect(200, "");
    let path = "/keppel/v1/accounts/acme-prod";
    within(ONE_SECOND, "it is known", async || us.ask("GET", path, ada, None).await.status == 200).await;
    us.ask("POST", &format!("{path}/sublease"), ada, None)
        .await
        .expect(400, "is no primary here; its primary is in region eu");
    let issue = async || {
        let issued = eu.ask("POST", &format!("{path}/sublease"), ada, None).await;
        issued.expect(200, "").json()["sublease_token"].as_str().expect("a token").to_owned()
    };
    let upstream = {
        let peers = us.ask("GET", "/keppel/v1/peers", ada, None).await.json();
        let all = peers["peers"].as_array().expect("a list").clone();
        assert_eq!(all.len(), 2, "{peers}");
        assert!(all[0]["hostname"].as_str() < all[1]["hostname"].as_str(), "in order: {peers}");
        let eu = all.iter().find(|peer| peer["region"] == "eu").expect("it is there").clone();
        eu["hostname"].as_str().expect("a host").to_owned()
    };
    let replica = json!({"replication": {"strategy": "on_first_use", "upstream": upstream}});
    let make = async |region: &Region, fields: &Value, token: Option<&str>| {
        let mut fields = fields.clone();
        fields["auth_tenant_id"] = "acme".into();
        let request = region.client.request(Method::PUT, path).basic_auth(ada.0, Some(ada.1));
        let request = request.body(json!({ "account": fields }).to_string());
        reply(match token {
            Some(token) => request.header("X-Keppel-Sublease-Token", token),
            None => request,
        })
        .await
    };
    make(&us, &replica, None).await.expect(403, "X-Keppel-Sublease-Token: is missing");
    make(&us, &replica, Some("wrong")).await.expect(403, "X-Keppel-Sublease-Token: is wrong");
    let token = issue().await;
    let elsewhere = json!({"replication": {"strategy": "on_first_use", "upstream": "elsewhere.example.org"}});
    make(&us, &elsewhere, Some(&token)).await.expect(422, "account.replication.upstream: ");
    let made = make(&us, &replica, Some(&token)).await.expect(200, "").json();
    assert_eq!(made["account"]["replication"], replica["replication"]);
    assert_eq!(made["account"]["tag_policies"], policies["tag_policies"], "the policies are those of the primary");
    // Asked again it is the same, without a token; the token is spent.
    assert_eq!(make(&us, &replica, None).await.expect(200, "").json(), made);
    make(&ap, &replica, Some(&token)).await.expect(403, "was used already");
    assert_eq!(make(&us, &json!({}), None).await.expect(200, "").json(), made, "it need not be said again");
    make(&ap, &json!({}), None).await.expect(409, "claimed by region eu");
    // A primary that is called by its region stays so.
    for upstream in [json!("eu"), replica["replication"]["upstream"].clone()] {
        let named = json!({"replication": {"strategy": "on_first_use", "upstream": upstream}});
        let shown = make(&us, &named, None).await.expect(200, "").json();
        assert_eq!(shown["account"]["replication"], named["replication"]);
        assert_eq!(us.ask("GET", path, ada, None).await.json(), shown);
        assert_eq!(make(&us, &json!({}), None).await.expect(200, "").json(), shown, "it need not be said again");
    }
    us.ask("POST", &format!("{path}/sublease"), ada, None).await.expect(400, "is a replica here");
    // The primary shows no replication, and cannot go while a replica is attached.
    let shown = eu.ask("GET", path, ada, None).await.json();
    assert!(shown["account"].get("replication").is_none(), "{shown}");
    within(ONE_SECOND, "the replica is known", async || eu.ask("DELETE", path, ada, None).await.status == 409).await;
    let refused = eu.ask("DELETE", path, ada, None).await;
    assert!(refused.json()["error"].as_str().is_some_and(|error| error.contains("replicas in us")), "{}", refused.text);
    assert_eq!(us.ask("DELETE", path, ada, None).await.status, 204);
    within(ONE_SECOND, "the replica is gone", async || {
        eu.ask("GET", path, ada, None).await.status == 200 && eu.ask("DELETE", path, ada, None).await.status == 204
    })
    .await;

    assert!(!us.ask("GET", "/keppel/v1/accounts", ada, None).await.headers.contains_key("warning"));
    // Without a majority nothing is claimed, and nothing is left of the try.
    eu.process.kill();
    ap.process.kill();
    let refused = us.put_account("late", ada, json!({})).await;
    let words = if refused.text.contains("majority") { "no majority of the federation" } else { "no decision within" };
    refused.expect(503, words);
    assert!(refused.headers.contains_key("retry-after"));
    // Whether there is such an account nobody can say now, and what is known may be old once a lease has run out.
    for rest in ["", "/repositories", "/repositories/web/_manifests"] {
        let refused = us.ask("GET", &format!("/keppel/v1/accounts/late{rest}"), ada, None).await;
        assert!(refused.expect(503, "account late").headers.contains_key("retry-after"));
    }
    for path in ["/keppel/v1/accounts", "/keppel/v1/quotas/acme"] {
        within(PATIENCE, "it is marked", async || {
            let answer = us.ask("GET", path, ada, None).await;
            answer.expect(200, "").headers.get("warning").is_some_and(|mark| mark.as_bytes().starts_with(b"110 "))
        })
        .await;
    }
}

#[tokio::test]
async fn a_region_that_is_cut_off_lets_in_whom_it_knew_for_as_long_as_it_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, mut us, mut ap] = federation_with(folder.path(), &["auth.trust_when_cut_off=10s"]).await;
    let secret = eu.told(&["user", "add", "ada", "--role", "acme=admin"]);
    let ada = ("ada", secret.as_str());
    let public = json!({"rbac_policies": [{"match_repository": "open", "permissions": ["anonymous_pull"]}]});
    eu.put_account("acme-prod", ada, public).await.expect(200, "");
    let token = eu.token(ada, "repository:acme-prod/app:pull,push").await;
    let image = Image::small(1);
    for blob in image.blobs() {
        let path = format!("/v2/acme-prod/open/blobs/uploads/?digest={}", blob.digest());
        let push = eu.client.request(Method::POST, &path).basic_auth(ada.0, Some(ada.1)).body(blob.bytes.clone());
        assert_eq!(reply(push).await.status, 201);
    }
    let blob = format!("/v2/acme-prod/open/blobs/{}", image.layers[0].digest());
    let statuses = async |path: &str| {
        let by_token = reply(eu.client.request(Method::GET, path).bearer_auth(&token)).await.status.as_u16();
        [eu.ask("GET", path, ada, None).await.status.as_u16(), by_token]
    };
    let cut = Instant::now();
    us.process.kill();
    ap.process.kill();
    assert_eq!(statuses("/v2/").await, [200, 200], "it knew her a moment ago");
    within(Duration::from_secs(30), "she is not let in any more", async || statuses("/v2/").await == [503, 503]).await;
    assert!(cut.elapsed() > Duration::from_secs(9), "{:?}", cut.elapsed());
    let refused = eu.ask("GET", &blob, ada, None).await;
    assert_eq!(refused.status, 503);
    assert!(refused.text.contains("trust_when_cut_off") && refused.headers.contains_key("retry-after"));
    let login = eu.ask("GET", "/keppel/v1/auth?service=keppel", ada, None).await;
    assert_eq!(login.status, 503, "{}", login.text);
    // What everybody may have, they have.
    assert_eq!(eu.ask("GET", &blob, ("", ""), None).await.status, 200);
    let _us = Region::start_with(folder.path(), "us", &["auth.trust_when_cut_off=10s"]);
    within(PATIENCE, "she is let in again", async || statuses("/v2/").await == [200, 200]).await;
}

#[tokio::test]
async fn first_pushes_of_two_regions_to_one_name_go_to_the_same_account() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, us, ap] = federation(folder.path()).await;
    let secret = eu.told(&["user", "add", "olga", "--operator"]);
    within(PATIENCE, "she is known", async || {
        us.ask("GET", "/v2/", ("olga", &secret), None).await.status == 200
            && ap.ask("GET", "/v2/", ("olga", &secret), None).await.status == 200
    })
    .await;
    for number in 0..20 {
        let push = async |region: &Region| {
            let path = format!("/v2/race{number}/app/blobs/uploads/?digest={}", sha256(b"a blob"));
            reply(region.client.request(Method::POST, &path).basic_auth("olga", Some(&secret)).body("a blob")).await
        };
        let pushed = tokio::join!(push(&eu), push(&us), push(&ap));
        for pushed in [pushed.0, pushed.1, pushed.2] {
            assert_eq!(pushed.status, 201, "{number}: {}", pushed.text);
        }
    }
}
