//! The client commands against the API of a registry.

use serde_json::{Value, json};

use crate::provider::Site;

/// Keeps a login of a local operator, as `keppel login` does.
fn log_in(site: &Site) {
    use std::io::Write as _;
    let data = site.server.data().to_str().unwrap().to_owned();
    let password = site.good(&["user", "add", "root", "--operator", "--data", &data]);
    let mut command = site.command(&["login", &site.server.address(), "-u", "root", "--password-stdin"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("the binary starts");
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn accounts_and_policies_are_made_changed_listed_and_deleted() {
    let site = Site::start();
    let refused = site.bad(&["account", "list"]);
    assert!(refused.contains("no registry was named") && refused.contains("--server"), "{refused}");
    log_in(&site);
    assert!(site.good(&["account", "create", "acme-prod", "--tenant", "acme"]).contains("acme-prod"));
    let shown: Value = serde_json::from_str(&site.good(&["account", "show", "acme-prod", "--json"])).unwrap();
    assert_eq!((&shown["name"], &shown["auth_tenant_id"]), (&json!("acme-prod"), &json!("acme")));

    let file = site.home.path().join("rbac.json");
    std::fs::write(&file, r#"[{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]"#).unwrap();
    site.good(&["policy", "set", "acme-prod", "rbac", file.to_str().unwrap()]);
    let policies = site.good(&["policy", "list", "acme-prod"]);
    assert!(policies.contains("rbac") && policies.contains("anonymous_pull"), "{policies}");
    std::fs::write(&file, r#"{"tag_policies": [{"match_repository": ".*", "block_delete": true}]}"#).unwrap();
    site.good(&["account", "update", "acme-prod", "--file", file.to_str().unwrap()]);
    let shown: Value = serde_json::from_str(&site.good(&["policy", "list", "acme-prod", "--json"])).unwrap();
    assert_eq!(shown["rbac"].as_array().unwrap().len(), 1, "fields that are not named stay: {shown}");
    assert_eq!(shown["tag"][0]["block_delete"], true);
    std::fs::write(&file, r#"[{"match_repository": "("}]"#).unwrap();
    let refused = site.bad(&["policy", "set", "acme-prod", "tag", file.to_str().unwrap()]);
    assert!(refused.contains("tag_policies[0].match_repository"), "{refused}");

    site.good(&["account", "update", "acme-prod", "--copies", "3", "--ack", "primary"]);
    let shown: Value = serde_json::from_str(&site.good(&["account", "show", "acme-prod", "--json"])).unwrap();
    assert_eq!((&shown["copies"], &shown["ack"]), (&json!(3), &json!("primary")));
    assert_eq!(shown["tag_policies"][0]["block_delete"], true, "what is not named stays");
    assert!(site.bad(&["account", "update", "acme-prod", "--copies", "9"]).contains("between 1 and 8"));
    assert!(site.bad(&["account", "update", "acme-prod", "--strategy", "eager"]).contains("no replica"));

    let table = site.good(&["account", "list"]);
    assert!(table.lines().count() == 2 && table.contains("acme-prod") && table.contains("TENANT"), "{table}");
    assert!(site.good(&["peers"]).starts_with("HOSTNAME"));
    assert!(site.bad(&["account", "show", "none"]).contains("check the name"));
    assert!(site.bad(&["account", "delete", "acme-prod"]).contains("--yes"));
    site.good(&["account", "delete", "acme-prod", "--yes"]);
    let unreachable = site.bad(&["account", "list", "--server", "http://127.0.0.1:1"]);
    assert!(unreachable.contains("is it running?"), "{unreachable}");
}

#[tokio::test]
async fn a_wrong_password_is_not_kept_and_a_helper_is_used_where_it_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::start();
    let refused = {
        use std::io::Write as _;
        let mut command = site.command(&["login", &site.server.address(), "-u", "root", "--password-stdin"]);
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"wrong\n").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
    };
    assert!(refused.contains("not valid") && !site.logins().exists(), "{refused}");
    // A helper that keeps one login in a file.
    let helper = site.home.path().join("docker-credential-test");
    let kept = site.home.path().join("kept");
    let script = "#!/bin/sh\ncase $1 in\nstore) cat > KEPT ;;\nget) cat KEPT 2>/dev/null || \
                  { echo 'credentials not found in native keychain'; exit 1; } ;;\nerase) rm -f KEPT ;;\nesac\n";
    std::fs::write(&helper, script.replace("KEPT", kept.to_str().unwrap())).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(site.logins().parent().unwrap()).unwrap();
    std::fs::write(site.logins(), r#"{"credsStore": "test"}"#).unwrap();
    let path = format!("{}:{}", site.home.path().display(), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        let mut command = site.command(arguments);
        command.env("PATH", &path).stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let data = site.server.data().to_str().unwrap().to_owned();
    let password = site.good(&["user", "add", "root", "--operator", "--data", &data]);
    let (good, said) = run(&["login", &site.server.address(), "-u", "root", "--password-stdin"], &password);
    assert!(good && said.contains("docker-credential-test"), "{said}");
    assert!(kept.exists() && !std::fs::read_to_string(site.logins()).unwrap().contains(password.trim()));
    let (good, said) = run(&["account", "list"], "");
    assert!(good, "{said}");
    let (good, said) = run(&["logout"], "");
    assert!(good && said.contains("logged out") && !kept.exists(), "{said}");
}

#[test]
fn completion_scripts_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_keppel")).args(["completion", shell]).output();
        let script = String::from_utf8(output.expect("the binary starts").stdout).expect("text");
        for command in ["account", "completion", "login", "manifest", "peers", "policy", "quota", "repo", "tag"] {
            assert!(script.contains(command), "{shell} {command}");
        }
    }
}
