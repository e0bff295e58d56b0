//! Real clients as editor, viewer, robot, stranger and nobody, where roles and policies decide.

use std::io::Write as _;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::json;

use crate::{
    docker::Docker,
    harness::{
        Image, Server,
        layout::{Layout, read_layout},
        process::{Output, run},
    },
    podman::Podman,
};

const PASSWORD: &str = "correct-horse";

/// A server with `ed` (editor), `vi` (viewer) and `stan` (nothing), and a robot; gives its secret too. Everybody may pull
/// from `acme/public/…`.
async fn start() -> (Server, String) {
    let options = ["--set", "auth.driver=local", "--set", "http.public_hosts=registry.test"];
    let server = Server::start_with_options(&options);
    add_user(&server, "ada", &["--role", "acme=admin"]);
    add_user(&server, "ed", &["--role", "acme=editor"]);
    add_user(&server, "vi", &["--role", "acme=viewer"]);
    add_user(&server, "stan", &[]);
    let robot = keppel(&server, &["robot", "add", "acme+ci", "--allow", "pull,push", "--repository", "app"], "");
    let account = json!({"account": {"auth_tenant_id": "acme", "rbac_policies": [
        {"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]}});
    let request = server.client().request(Method::PUT, "/keppel/v1/accounts/acme");
    let made = request.basic_auth("ada", Some(PASSWORD)).body(account.to_string()).send().await.expect("an answer");
    assert_eq!(made.status(), 200);
    (server, robot)
}

fn add_user(server: &Server, name: &str, options: &[&str]) {
    keppel(server, &[&["user", "add", name, "--password-stdin"], options].concat(), PASSWORD);
}

/// Runs a command of the registry's operator; gives what it prints.
fn keppel(server: &Server, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
    command.args(arguments).arg("--data").arg(server.data());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    writeln!(child.stdin.take().expect("it has an input"), "{input}").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("it prints text").trim_end().to_owned()
}

/// Fails unless a client was refused in a way that says so.
#[track_caller]
fn assert_refused(output: Output) {
    let said = output.failure().to_lowercase();
    assert!(["unauthorized", "authentication required", "denied"].iter().any(|word| said.contains(word)), "{said}");
}

#[tokio::test]
async fn skopeo_may_do_what_the_role_of_its_user_allows() {
    let (server, robot) = start().await;
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let image = Image::small(410);
    let inward = home.path().join("in");
    let mut layout = Layout::create(&inward);
    layout.add_image("v1", &image);
    layout.finish();
    let nobody = home.path().join("nobody.json");
    std::fs::write(&nobody, "{}").expect("a file can be written");
    let credentials = |end: &str, user: &str, secret: &str| match user {
        "" => format!("--authfile={}", nobody.display()),
        user => format!("--{end}-creds={user}:{secret}"),
    };
    let source = format!("oci:{}:v1", inward.display());
    let push = |repository: &str, user: &str, secret: &str| {
        let remote = format!("docker://{}", server.reference(&format!("{repository}:v1")));
        let who = credentials("dest", user, secret);
        run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", &who, &source, &remote])
    };
    let pull = |repository: &str, user: &str, secret: &str| {
        let target = home.path().join(format!("out-{user}-{}", repository.replace('/', "-")));
        let remote = format!("docker://{}", server.reference(&format!("{repository}:v1")));
        let who = credentials("src", user, secret);
        let to = format!("oci:{}:back", target.display());
        let copied = run("skopeo", ["--insecure-policy", "copy", "--src-tls-verify=false", &who, &remote, &to]);
        if copied.success {
            assert_eq!(read_layout(&target, "back").digest(), image.digest());
        }
        copied
    };
    for repository in ["acme/app", "acme/public/app"] {
        assert_refused(push(repository, "vi", PASSWORD));
        assert_refused(push(repository, "stan", PASSWORD));
        assert_refused(push(repository, "", ""));
        push(repository, "ed", PASSWORD).text();
    }
    for (user, secret) in [("ed", PASSWORD), ("vi", PASSWORD), ("acme+ci", &robot)] {
        pull("acme/app", user, secret).text();
    }
    assert_refused(pull("acme/app", "stan", PASSWORD));
    assert_refused(pull("acme/app", "", ""));
    pull("acme/public/app", "stan", PASSWORD).text();
    pull("acme/public/app", "", "").text();
    push("acme/app", "acme+ci", &robot).text();
    assert_refused(push("acme/public/app", "acme+ci", &robot));
}

#[tokio::test]
async fn docker_and_podman_log_in_as_different_people() {
    let (server, robot) = start().await;
    let docker = Docker::start();
    let (address, app, public) =
        (server.address(), server.reference("acme/app:v1"), server.reference("acme/public/app:v1"));
    let image = Image::small(411);
    let login = |user: &str, secret: &str| {
        let said = docker.run(&["login", "--username", user, "--password", secret, &address]).text();
        assert!(said.contains("Login Succeeded"), "{said}");
    };
    for reference in [&app, &public] {
        docker.load(reference, &image);
    }
    login("vi", PASSWORD);
    assert_refused(docker.run(&["push", &app]));
    login("ed", PASSWORD);
    docker.run(&["push", &app]).text();
    docker.run(&["push", &public]).text();
    for (user, secret, may) in [("vi", PASSWORD, true), ("acme+ci", &robot, true), ("stan", PASSWORD, false)] {
        docker.forget_everything();
        login(user, secret);
        let pulled = docker.run(&["pull", &app]);
        match may {
            true => drop(pulled.text()),
            false => assert_refused(pulled),
        }
    }
    docker.run(&["pull", &public]).text();
    docker.run(&["logout", &address]).text();
    docker.forget_everything();
    assert_refused(docker.run(&["pull", &app]));
    docker.run(&["pull", &public]).text();
    assert_eq!(docker.image_id(&public), image.config.digest());

    let podman = Podman::new();
    let file = podman.path("robot.json");
    std::fs::write(&file, "{}").expect("a file can be written");
    let options = ["--tls-verify=false", "--authfile", &file];
    podman.run(&[&["login"], &options[..], &["--username", "acme+ci", "--password", &robot, &address]].concat()).text();
    podman.run(&[&["pull"], &options[..], &[&app]].concat()).text();
    podman.run(&[&["push"], &options[..], &["--format", "oci", &app, &app]].concat()).text();
    assert_refused(podman.run(&[&["push"], &options[..], &[&app, &public]].concat()));
}

/// The daemon has no credentials for a mirror, asks it for `library/…` in the account that the host name says, and goes on
/// to Docker Hub, which nobody reaches from here, when the mirror refuses.
#[tokio::test]
async fn a_daemon_has_an_account_with_a_host_name_of_its_own_as_its_mirror() {
    let (server, _) = start().await;
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let image = Image::small(412);
    let mut layout = Layout::create(home.path());
    layout.add_image("v1", &image);
    layout.finish();
    let source = format!("oci:{}:v1", home.path().display());
    for repository in ["acme/library/shown", "acme/library/hidden"] {
        let remote = format!("docker://{}", server.reference(&format!("{repository}:v1")));
        let who = format!("--dest-creds=ed:{PASSWORD}");
        run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", &who, &source, &remote]).text();
    }
    let account = json!({"account": {"auth_tenant_id": "acme", "rbac_policies": [
        {"match_repository": "library/shown", "permissions": ["anonymous_pull"]}]}});
    let request = server.client().request(Method::PUT, "/keppel/v1/accounts/acme");
    let put = request.basic_auth("ada", Some(PASSWORD)).body(account.to_string()).send().await.expect("an answer");
    assert_eq!(put.status(), 200);

    let port = server.address().split_once(':').expect("an address has a port").1.to_owned();
    let docker = Docker::start_with_mirror(&format!("acme.registry.test:{port}"));
    docker.run(&["pull", "shown:v1"]).text();
    assert_eq!(docker.image_id("shown:v1"), image.config.digest());
    docker.run(&["pull", "hidden:v1"]).failure();
    docker.run(&["pull", "absent:v1"]).failure();
}
