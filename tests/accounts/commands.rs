//! `keppel repo`, `tag`, `manifest` and `quota` against a registry, as people and programs use them.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::site::Site;

/// The commands of somebody who logged in with `keppel login`, or of nobody.
struct Shell {
    home: tempfile::TempDir,
}

impl Shell {
    fn of(site: &Site, user: &str) -> Self {
        use std::io::Write as _;
        let shell = Self::of_nobody();
        let mut command = shell.command(&["login", &site.server.address(), "-u", user, "--password-stdin"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        child.stdin.take().expect("it has an input").write_all(b"swordfish\n").expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        shell
    }

    fn of_nobody() -> Self {
        Self { home: tempfile::tempdir().expect("a folder") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(arguments).env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.home.path().join("config"));
        command.env("DOCKER_CONFIG", self.home.path().join("docker")).env("NO_PROXY", "127.0.0.1");
        command.env_remove("KEPPEL_SERVER").env_remove("KEPPEL_TOKEN").stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed; gives what it prints.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the binary starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.good(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: not JSON: {text}"))
    }

    /// Runs a command that must fail with words, and prints nothing else.
    fn bad(&self, arguments: &[&str], words: &str) {
        let output = self.command(arguments).output().expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(words), "{arguments:?}: {said:?} lacks {words:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(!said.contains("panicked") && said.lines().count() <= 4, "{arguments:?}: {said}");
    }

    /// The words of each line of a table but the first.
    fn table(&self, arguments: &[&str], head: &[&str]) -> Vec<Vec<String>> {
        let text = self.good(arguments);
        let mut lines = text.lines().map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()));
        assert_eq!(lines.next().expect("a head").collect::<Vec<_>>(), head);
        lines.map(|words| words.map(str::to_owned).collect()).collect()
    }
}

#[tokio::test]
async fn contents_are_listed_shown_and_deleted_by_command() {
    let site = Site::start();
    let guard = json!({"tag_policies": [{"match_repository": "guarded", "match_tag": "v.*", "block_delete": true}]});
    site.put_account("acme-prod", "ada", guard).await.expect(200, "");
    let (first, _) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let (second, size) = site.push("acme-prod/web", "v2", json!({}), json!({"n": "2"})).await;
    site.push("acme-prod/web", "latest", json!({}), json!({"n": "2"})).await;
    site.push("acme-prod/deep/er/still", "v1", json!({}), json!({})).await;
    site.push("acme-prod/guarded", "v1", json!({}), json!({})).await;
    let editor = Shell::of(&site, "ed");

    let repositories = editor.table(&["repo", "list", "acme-prod"], &["NAME", "IMAGES", "TAGS", "SIZE", "PUSHED"]);
    let names: Vec<[&str; 3]> = repositories.iter().map(|row| [&*row[0], &*row[1], &*row[2]]).collect();
    assert_eq!(names, [["deep/er/still", "1", "1"], ["guarded", "1", "1"], ["web", "2", "3"]]);
    assert!(repositories.iter().all(|row| row[4].starts_with("20") && row[4].ends_with('Z')), "{repositories:?}");
    let listed = editor.json(&["repo", "list", "acme-prod"]);
    let path = "/keppel/v1/accounts/acme-prod/repositories";
    assert_eq!(listed["repositories"], site.ask("GET", path, "ed").await.json()["repositories"]);

    let tags = editor.table(&["tag", "list", "acme-prod/web"], &["TAG", "DIGEST", "PUSHED", "PULLED"]);
    let tags: Vec<[&str; 3]> = tags.iter().map(|row| [&*row[0], &*row[1], &*row[3]]).collect();
    assert_eq!(tags, [["latest", &*second, "never"], ["v1", &*first, "never"], ["v2", &*second, "never"]]);
    let tags = editor.json(&["tag", "list", "acme-prod/deep/er/still"]);
    assert_eq!((&tags["tags"][0]["name"], &tags["tags"][0]["last_pulled_at"]), (&json!("v1"), &Value::Null));

    let images = editor.table(&["manifest", "list", "acme-prod/web"], &["DIGEST", "TAGS", "SIZE", "PUSHED", "PULLED"]);
    let image = images.iter().find(|row| row[0] == second).expect("it is listed");
    assert_eq!((&*image[1], &*image[2]), ("latest,v2", &*format!("{size} B")));
    for reference in ["acme-prod/web:v2", "acme-prod/web", &format!("acme-prod/web@{second}")] {
        let shown = editor.json(&["manifest", "show", reference]);
        assert_eq!((&shown["digest"], &shown["size_bytes"]), (&json!(second), &json!(size)), "{reference}");
    }
    let shown = editor.good(&["manifest", "show", "acme-prod/web:v1"]);
    assert!(shown.lines().any(|line| line == format!("digest                {first}")), "{shown}");

    // What is not there, not allowed, or no name.
    let viewer = Shell::of(&site, "vi");
    let stranger = Shell::of(&site, "stan");
    for arguments in
        [["repo", "list", "acme-prod"], ["tag", "list", "acme-prod/web"], ["manifest", "list", "acme-prod/web"]]
    {
        viewer.good(&arguments);
        stranger.bad(&arguments, "no such account: acme-prod\n  check the name");
    }
    editor.bad(&["repo", "list", "absent"], "no such account: absent");
    editor.bad(&["tag", "list", "acme-prod/absent"], "acme-prod/absent");
    editor.bad(&["tag", "list", "acme-prod"], "names no repository\n  write ACCOUNT/NAME");
    editor.bad(
        &["manifest", "show", "acme-prod/web:v9"],
        "there is no such image\n  `keppel manifest list acme-prod/web`",
    );
    editor.bad(&["tag", "delete", "acme-prod/web"], "names no tag\n  write ACCOUNT/NAME:TAG");
    editor.bad(&["manifest", "delete", "acme-prod/web:v1", "--yes"], "names no image\n  write ACCOUNT/NAME@DIGEST");
    let image = format!("acme-prod/web@{first}");
    for arguments in [
        &["tag", "delete", "acme-prod/web:v1"][..],
        &["manifest", "delete", &image, "--yes"],
        &["repo", "delete", "acme-prod/web", "--yes"],
    ] {
        viewer.bad(arguments, "not allowed");
        stranger.bad(arguments, "no such account");
    }
    editor.bad(&["manifest", "delete", &image], "--yes");
    editor.bad(&["repo", "delete", "acme-prod/web"], "--yes");
    editor.bad(&["tag", "delete", "acme-prod/guarded:v1"], "account.tag_policies[0] sets block_delete");
    editor.bad(&["repo", "delete", "acme-prod/guarded", "--yes"], "account.tag_policies[0] sets block_delete");
    assert_eq!(editor.json(&["repo", "list", "acme-prod"]), listed, "nothing was deleted so far");

    assert_eq!(editor.good(&["tag", "delete", "acme-prod/web:v1"]), "tag acme-prod/web:v1 was deleted\n");
    editor.bad(&["tag", "delete", "acme-prod/web:v1"], "v1");
    let images = editor.json(&["manifest", "list", "acme-prod/web"]);
    assert_eq!(images["manifests"].as_array().map(Vec::len), Some(2), "the image stays");
    assert!(editor.good(&["manifest", "delete", &format!("acme-prod/web@{second}"), "--yes"]).contains("was deleted"));
    let tags = editor.json(&["tag", "list", "acme-prod/web"]);
    assert_eq!(tags, json!({"tags": []}), "its tags went with it");
    assert!(editor.good(&["repo", "delete", "acme-prod/deep/er/still", "--yes"]).contains("was deleted"));
    let left = editor.json(&["repo", "list", "acme-prod"]);
    let left: Vec<&Value> = left["repositories"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(left, ["guarded", "web"]);
}

#[tokio::test]
async fn lists_of_many_pages_are_listed_whole() {
    let site = Site::start_with(&["registry.page_size_max=2"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    for number in 0..5 {
        site.push("acme-prod/web", &format!("v{number}"), json!({}), json!({"n": number.to_string()})).await;
        site.push(&format!("acme-prod/{number}"), "v1", json!({}), json!({})).await;
    }
    let viewer = Shell::of(&site, "vi");
    let count = |arguments: &[&str], field: &str| viewer.json(arguments)[field].as_array().map(Vec::len);
    assert_eq!(count(&["repo", "list", "acme-prod"], "repositories"), Some(6));
    assert_eq!(count(&["manifest", "list", "acme-prod/web"], "manifests"), Some(5));
    assert_eq!(count(&["tag", "list", "acme-prod/web"], "tags"), Some(5));
}

#[tokio::test]
async fn quotas_are_shown_set_and_taken_away_by_command() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let (_, size) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let (root, viewer, stranger) = (Shell::of(&site, "root"), Shell::of(&site, "vi"), Shell::of(&site, "stan"));
    let head = ["WHAT", "QUOTA", "USAGE"];
    let shown = viewer.table(&["quota", "show", "acme"], &head);
    assert_eq!(
        shown,
        [["manifests", "no limit", "1"].map(str::to_owned), ["bytes".into(), "no limit".into(), format!("{size} B")]]
    );
    let set = root.table(&["quota", "set", "acme", "--manifests", "7", "--bytes", "2GiB"], &head);
    assert_eq!((&*set[0][1], &*set[1][1]), ("7", "2.0 GiB"));
    let shown = viewer.json(&["quota", "show", "acme"]);
    assert_eq!(shown["bytes"], json!({"quota": 2_u64 << 30, "usage": size}));
    assert_eq!(shown, site.ask("GET", "/keppel/v1/quotas/acme", "vi").await.json());
    // What is not named stays.
    root.good(&["quota", "set", "acme", "--manifests", "0"]);
    assert_eq!(root.json(&["quota", "show", "acme"])["bytes"]["quota"], json!(2_u64 << 30));
    assert_eq!(root.json(&["quota", "set", "acme", "--bytes", "none"])["bytes"]["quota"], Value::Null);

    root.bad(&["quota", "set", "acme"], "nothing is to be set");
    viewer.bad(&["quota", "set", "acme", "--manifests", "9"], "not allowed");
    stranger.bad(&["quota", "show", "acme"], "not allowed");
    root.bad(&["quota", "show", "a b"], "auth_tenant_id: ");
    for bad in [["--manifests", "-1"], ["--bytes", "1 parsec"], ["--manifests", "many"]] {
        let output = root.command(&["quota", "set", "acme", bad[0], bad[1]]).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
    }
    assert_eq!(root.json(&["quota", "show", "acme"])["manifests"]["quota"], 0);
}

#[tokio::test]
async fn a_registry_is_found_by_option_then_variable_then_login() {
    let (site, other) = (Site::start(), Site::start());
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let list = ["repo", "list", "acme-prod"];
    let nobody = Shell::of_nobody();
    nobody.bad(&list, "no registry was named\n  name one with --server or KEPPEL_SERVER");
    let here = format!("http://{}", site.server.address());
    let run = |shell: &Shell, variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = shell.command(arguments);
        let output = command.envs(variables.iter().copied()).output().expect("the binary starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).expect("text"))
    };
    // It is known where to ask, and that nobody asks.
    let (good, said) = run(&nobody, &[("KEPPEL_SERVER", &here)], &list);
    assert!(!good && said.contains("log in first: keppel login 127.0.0.1"), "{said}");
    // A token stands for a login.
    let token = site.token("vi", "swordfish", "scope=keppel:api:pull").await.expect(200, "").json();
    let token = token["token"].as_str().expect("a token").to_owned();
    let (good, said) = run(&nobody, &[("KEPPEL_SERVER", &here), ("KEPPEL_TOKEN", &token)], &list);
    assert!(good && said.contains("web"), "{said}");
    let (good, said) = run(&nobody, &[("KEPPEL_SERVER", &here), ("KEPPEL_TOKEN", "nonsense")], &list);
    assert!(!good && said.contains("log in again"), "{said}");
    // The login is used where nothing else is named; the variable beats it, and the option beats both.
    let viewer = Shell::of(&site, "vi");
    assert!(viewer.good(&list).contains("web"));
    let elsewhere = format!("http://{}", other.server.address());
    let (good, said) = run(&viewer, &[("KEPPEL_SERVER", &elsewhere)], &list);
    assert!(!good && said.contains("log in first"), "{said}");
    let (good, said) = run(&viewer, &[("KEPPEL_SERVER", &elsewhere)], &[&list[..], &["--server", &here]].concat());
    assert!(good && said.contains("web"), "{said}");
    for (server, words) in [("ftp://x", "is no registry's address"), ("http://127.0.0.1:1", "is it running?")] {
        let (good, said) = run(&viewer, &[("KEPPEL_SERVER", server)], &list);
        assert!(!good && said.contains(words), "{server}: {said}");
    }
}
