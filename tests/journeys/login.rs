//! Real clients at a door that asks for a password: they log in, push and pull; others are refused in words.

use crate::{
    docker::Docker,
    harness::{
        Image, Server,
        layout::{Layout, read_layout},
        process::{Output, run},
    },
    podman::Podman,
};

const NAME: &str = "alice";
const PASSWORD: &str = "correct-horse";

fn guarded() -> Server {
    Server::start_guarded(&[(NAME, PASSWORD)])
}

/// Fails unless a client was refused in a way that tells a person to log in, or that the password is wrong.
#[track_caller]
fn assert_refused(output: Output) {
    let said = output.failure().to_lowercase();
    let words = ["unauthorized", "authentication required", "denied", "not valid", "invalid username/password"];
    assert!(words.iter().any(|word| said.contains(word)), "{said}");
}

#[tokio::test]
async fn docker_logs_in_pushes_and_pulls_and_a_stranger_is_refused() {
    let server = guarded();
    let docker = Docker::start();
    let (address, reference) = (server.address(), server.reference("acme/app:v1"));
    let image = Image::small(400);
    docker.load(&reference, &image);
    assert_refused(docker.run(&["push", &reference]));
    assert_refused(docker.run(&["login", "--username", NAME, "--password", "wrong", &address]));
    assert_refused(docker.run(&["login", "--username", "nobody", "--password", PASSWORD, &address]));
    let said = docker.run(&["login", "--username", NAME, "--password", PASSWORD, &address]).text();
    assert!(said.contains("Login Succeeded"), "{said}");
    docker.run(&["push", &reference]).text();
    docker.forget_everything();
    docker.run(&["pull", &reference]).text();
    assert_eq!(docker.image_id(&reference), image.config.digest());
    docker.run(&["logout", &address]).text();
    docker.forget_everything();
    assert_refused(docker.run(&["pull", &reference]));
}

#[tokio::test]
async fn skopeo_copies_in_and_out_with_credentials_only() {
    let server = guarded();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let image = Image::small(401);
    let (inward, outward) = (home.path().join("in"), home.path().join("out"));
    let mut layout = Layout::create(&inward);
    layout.add_image("v1", &image);
    layout.finish();
    let (source, target) = (format!("oci:{}:v1", inward.display()), format!("oci:{}:back", outward.display()));
    let remote = format!("docker://{}", server.reference("acme/app:v1"));
    // An empty file, so that no login of whoever runs the tests is used.
    let nobody = home.path().join("nobody.json");
    std::fs::write(&nobody, "{}").expect("a file can be written");
    let nobody = format!("--authfile={}", nobody.display());
    let copy_in = |credentials: &str| {
        run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", credentials, &source, &remote])
    };
    let copy_out = |credentials: &str| {
        run("skopeo", ["--insecure-policy", "copy", "--src-tls-verify=false", credentials, &remote, &target])
    };
    assert_refused(copy_in(&nobody));
    assert_refused(copy_in(&format!("--dest-creds={NAME}:wrong")));
    copy_in(&format!("--dest-creds={NAME}:{PASSWORD}")).text();
    assert_refused(copy_out(&nobody));
    copy_out(&format!("--src-creds={NAME}:{PASSWORD}")).text();
    assert_eq!(read_layout(&outward, "back").digest(), image.digest());
    let inspect = |credentials: &str| run("skopeo", ["inspect", "--raw", "--tls-verify=false", credentials, &remote]);
    assert_refused(inspect("--creds=nobody:x"));
    assert_eq!(inspect(&format!("--creds={NAME}:{PASSWORD}")).text().into_bytes(), image.manifest.bytes);
}

#[tokio::test]
async fn podman_keeps_its_login_in_a_file_and_uses_it() {
    let server = guarded();
    let podman = Podman::new();
    let image = Image::small(402);
    let path = podman.home.path().join("layout");
    let mut layout = Layout::create(&path);
    layout.add_image("v1", &image);
    layout.finish();
    let (address, reference) = (server.address(), server.reference("acme/app:v1"));
    let (mine, nobody) = (podman.path("mine.json"), podman.path("nobody.json"));
    for file in [&mine, &nobody] {
        std::fs::write(file, "{}").expect("a file can be written");
    }
    let login = |name: &str, password: &str| {
        let user = ["--username", name, "--password", password, &address];
        podman.run(&[&["login", "--tls-verify=false", "--authfile", &mine], &user[..]].concat())
    };
    let with = |verb: &str, file: &str, names: &[&str]| {
        podman.run(&[&[verb, "--tls-verify=false", "--authfile", file], names].concat())
    };
    let id = podman.run(&["pull", "oci:layout:v1"]).text().lines().last().expect("podman prints the id").to_owned();
    assert_refused(with("push", &nobody, &[&id, &reference]));
    assert_refused(login(NAME, "wrong"));
    assert_refused(login("nobody", PASSWORD));
    let said = login(NAME, PASSWORD).text();
    assert!(said.contains("Login Succeeded"), "{said}");
    with("push", &mine, &["--format", "oci", &id, &reference]).text();
    podman.forget_everything();
    assert_refused(with("pull", &nobody, &[&reference]));
    with("pull", &mine, &[&reference]).text();
    let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).text();
    assert_eq!(format!("sha256:{id}"), image.config.digest());
}
