//! Retention, the end of accounts, and accounts in a file, as users and operators see them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Image, Server};
use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(40);

/// Waits for what must become true.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_deleted_account_is_emptied_and_its_name_is_free_again() {
    let site = Site::start_with(&["janitor.account_deletion_interval=1s"]);
    let guard = json!([{"match_tag": ".*", "block_delete": true}]);
    site.put_account("acme-prod", "ada", json!({ "tag_policies": guard })).await.expect(200, "");
    for number in 0..5 {
        site.push("acme-prod/app", &format!("v{number}"), json!({}), json!({"number": number.to_string()})).await;
    }
    let path = "/keppel/v1/accounts/acme-prod";
    assert_eq!(site.ask("DELETE", path, "ada").await.status, 204);
    until("the account is gone", async || site.ask("GET", path, "ada").await.status == 404).await;
    assert!(!site.server.data().join("storage/acme-prod").exists());
    let log = site.run(&["janitor", "status", "--json"]);
    let status: Value = serde_json::from_str(&log).expect("JSON");
    assert_eq!(status["deleting"], json!([]));
    // The name is free, and nothing of before is there.
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let repositories = site.ask("GET", &format!("{path}/repositories"), "ada").await;
    assert_eq!(repositories.expect(200, "").json()["repositories"], json!([]));
    site.push("acme-prod/app", "v1", json!({}), json!({})).await;
}

#[tokio::test]
async fn retention_is_explained_before_it_is_carried_out() {
    let site = Site::start();
    let policy = json!({"match_repository": ".*", "only_untagged": true, "action": "delete"});
    site.put_account("acme-prod", "ada", json!({ "gc_policies": [policy] })).await.expect(200, "");
    let (digest, _) = site.push("acme-prod/app", "v1", json!({}), json!({})).await;
    let told = site.run(&["janitor", "run", "image-gc", "--account", "acme-prod", "--dry-run"]);
    let line = format!("keep    acme-prod/app@{digest} (v1): it was pushed less than 10 minutes ago");
    assert!(told.contains(&line) && told.contains("1 looked at, 0 would be changed"), "{told}");
    let done = site.run(&["janitor", "run", "image-gc", "--account", "acme-prod"]);
    assert!(done.contains("1 looked at, 0 changed"), "{done}");
    let path = "/keppel/v1/accounts/acme-prod/repositories/app/_manifests";
    let listed = site.ask("GET", path, "vi").await.json();
    assert_eq!(listed["manifests"][0]["gc_status"], json!({"protected_by_recent_upload": true}));
    for (arguments, words) in [
        (["janitor", "run", "image-gc", "--account", "absent"].as_slice(), "there is no account absent"),
        (&["janitor", "run", "nothing"], "there is no task \"nothing\": the tasks are image-gc, "),
        (&["janitor", "run", "blob-validation", "--dry-run"], "has no dry run"),
        (&["scrub", "--account", "absent", "--now"], "there is no account absent"),
    ] {
        let refused = site.command(arguments, "");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(words), "{arguments:?}: {said}");
    }
    let scrubbed = site.run(&["scrub", "--account", "acme-prod", "--now"]);
    assert!(scrubbed.contains("1 manifests and 2 of 2 blobs") && scrubbed.contains("0 bad"), "{scrubbed}");
}

fn account_file(accounts: &[(&str, &str)]) -> String {
    let account =
        |(name, rest): &(&str, &str)| format!("[[accounts]]\nname = \"{name}\"\nauth_tenant_id = \"acme\"\n{rest}\n");
    accounts.iter().map(account).collect()
}

#[tokio::test]
async fn accounts_of_a_file_are_made_kept_and_deleted_and_a_wrong_file_deletes_none() {
    const GUARD: &str = "tag_policies = [{match_tag = \"v.*\", block_delete = true}]";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("accounts.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("it can be written");
    write(&account_file(&[("one", ""), ("two", GUARD), ("three", "")]));
    let managed = format!("janitor.managed_accounts_file={}", file.display());
    let site = Site::start_with(&[
        &managed,
        "janitor.managed_accounts_interval=1s",
        "janitor.account_deletion_interval=1s",
        "janitor.protected_accounts=three",
    ]);
    let shown = async |name: &str| site.ask("GET", &format!("/keppel/v1/accounts/{name}"), "ada").await;
    until("the accounts are made", async || shown("three").await.status == 200).await;
    let guard = json!([{"match_tag": "v.*", "block_delete": true}]);
    assert_eq!(shown("two").await.json()["account"]["tag_policies"], guard);
    // Whoever changes one by hand sees it change back.
    site.put_account("two", "ada", json!({})).await.expect(200, "");
    until("it is as the file says", async || shown("two").await.json()["account"]["tag_policies"] == guard).await;
    site.put_account("other", "ada", json!({})).await.expect(200, "");
    for wrong in ["", "accounts = []", "[[accounts]]\nname = \"one\"\nauth_tenant_id = 3"] {
        write(wrong);
        site.run(&["janitor", "run", "managed-accounts"]);
        for name in ["one", "two", "three", "other"] {
            assert_eq!(shown(name).await.json()["account"].get("state"), None, "{name}: {wrong}");
        }
    }
    write(&account_file(&[("one", GUARD)]));
    until("what is not named any more goes", async || shown("two").await.status == 404).await;
    assert_eq!(shown("one").await.json()["account"]["tag_policies"], guard);
    for name in ["three", "other"] {
        assert_eq!(shown(name).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_file_of_accounts_is_compared_and_applied_by_hand() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("accounts.json");
    let accounts = json!({"accounts": [
        {"name": "one", "auth_tenant_id": "acme"},
        {"name": "two", "auth_tenant_id": "acme", "gc_policies": [{"match_repository": ".*", "action": "protect"}]},
    ]});
    std::fs::write(&file, accounts.to_string()).expect("it can be written");
    let address = format!("http://{}", server.address());
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(["account"]).args(arguments).arg(&file).args(["--server", &address]);
        let output = command.env("HOME", folder.path()).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let planned = run(&["plan"]);
    assert!(planned.contains("make      one") && planned.ends_with("2 of 2 accounts differ\n"), "{planned}");
    assert!(run(&["apply", "--yes"]).ends_with("account two was made\n"));
    assert!(run(&["plan"]).ends_with("0 of 2 accounts differ\n"));
    // An image keeps its account from nothing.
    server.client().push_image("two/app", "v1", &Image::small(1)).await;
    std::fs::write(&file, accounts.to_string().replace("protect", "delete")).expect("it can be written");
    let planned = run(&["plan"]);
    assert!(planned.contains("change    two\n  - gc_policies: "), "{planned}");
    assert!(run(&["apply", "--yes"]).ends_with("account two was changed\n"));
}
