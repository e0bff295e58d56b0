//! `docker` and `skopeo` with what a person or a workload has from the provider: no password of the registry's own anywhere.

use crate::harness::{
    Image,
    docker::Docker,
    layout::{Layout, read_layout},
    process::run,
};
use crate::provider::Site;

#[tokio::test]
async fn docker_pushes_and_pulls_as_a_person_who_logged_in_at_the_provider() {
    let site = Site::start();
    site.make_account().await;
    let docker = Docker::start();
    let (address, reference) = (site.server.address(), site.server.reference("acme-prod/web:v1"));
    let image = Image::small(500);
    docker.load(&reference, &image);
    docker.run(&["push", &reference]).failure();
    // Of those whom the provider knows, mallory has no role here, and nobody is let in under another's name.
    let (mallory, alice) = (site.provider.id_token("mallory").await, site.provider.id_token("alice").await);
    for (name, token) in [("mallory", &mallory), ("bob", &alice)] {
        let said = docker.run(&["login", "--username", name, "--password", token, &address]).failure();
        assert!(said.to_lowercase().contains("unauthorized"), "{said}");
    }
    let said = docker.run(&["login", "--username", "alice", "--password", &alice, &address]).text();
    assert!(said.contains("Login Succeeded"), "{said}");
    docker.run(&["push", &reference]).text();
    docker.forget_everything();
    docker.run(&["pull", &reference]).text();
    assert_eq!(docker.image_id(&reference), image.config.digest());
    docker.run(&["logout", &address]).text();
    docker.forget_everything();
    docker.run(&["pull", &reference]).failure();

    // The login of the device flow, as `keppel login` left it for every client of Docker's file.
    let (good, said) = site.log_in("alice");
    assert!(good, "{said}");
    docker.use_logins(&site.logins());
    docker.run(&["pull", &reference]).text();
    let again = site.server.reference("acme-prod/web:v2");
    docker.run(&["tag", &reference, &again]).text();
    docker.run(&["push", &again]).text();
    assert_eq!(docker.repository_digest(&again), docker.repository_digest(&reference));
    // Whoever is put out is out, whatever their client still has.
    let data = site.server.data().to_str().expect("text").to_owned();
    site.good(&["user", "revoke", "alice", "--data", &data]);
    docker.forget_everything();
    docker.run(&["pull", &again]).failure();
}

#[tokio::test]
async fn skopeo_copies_in_and_out_with_a_persons_login_and_with_a_workloads_token() {
    let site = Site::start();
    site.make_account().await;
    let (good, said) = site.log_in("alice");
    assert!(good, "{said}");
    let image = Image::small(501);
    let (inward, outward) = (site.home.path().join("in"), site.home.path().join("out"));
    let mut layout = Layout::create(&inward);
    layout.add_image("v1", &image);
    layout.finish();
    let source = format!("oci:{}:v1", inward.display());
    let remote = |name: &str| format!("docker://{}", site.server.reference(name));
    let copy_in = |credentials: &str, name: &str| {
        run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", credentials, &source, &remote(name)])
    };
    let copy_out = |credentials: &str, name: &str, to: &str| {
        let target = format!("oci:{}:{to}", outward.display());
        run("skopeo", ["--insecure-policy", "copy", "--src-tls-verify=false", credentials, &remote(name), &target])
    };
    let login = format!("--authfile={}", site.logins().display());
    copy_in(&login, "acme-prod/web:person").text();
    copy_out(&login, "acme-prod/web:person", "person").text();
    assert_eq!(read_layout(&outward, "person").digest(), image.digest());
    // A build service shows its own token as the password.
    let token = site.provider.workload_token("builder", "").await;
    copy_in(&format!("--dest-creds=oidc:{token}"), "acme-prod/api/v1:built").text();
    copy_out(&format!("--src-creds=oidc:{token}"), "acme-prod/api/v1:built", "built").text();
    assert_eq!(read_layout(&outward, "built").digest(), image.digest());
    // Its rule is about some repositories, and a stranger's token opens none.
    copy_in(&format!("--dest-creds=oidc:{token}"), "acme-prod/secret:built").failure();
    let intruder = site.provider.workload_token("intruder", "").await;
    copy_out(&format!("--src-creds=oidc:{intruder}"), "acme-prod/api/v1:built", "stolen").failure();
}
