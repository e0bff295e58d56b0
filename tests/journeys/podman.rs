//! `podman`, with a private store.

use tempfile::TempDir;

use crate::harness::{
    ImageBuilder, Index, Kind, Server,
    layout::Layout,
    process::{Output, run_in},
};

pub struct Podman {
    pub home: TempDir,
}

impl Podman {
    pub fn new() -> Podman {
        Podman { home: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    pub fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let (root, state, temporary) = (self.path("root"), self.path("state"), self.path("tmp"));
        let own = ["--root", &root, "--runroot", &state, "--tmpdir", &temporary, "--storage-driver", "vfs"];
        let plain = ["--events-backend", "none", "--cgroup-manager", "cgroupfs"];
        run_in(self.home.path(), &[], "podman", own.iter().chain(&plain).chain(arguments))
    }

    pub fn forget_everything(&self) {
        self.run(&["rmi", "--all", "--force"]).text();
        assert_eq!(self.run(&["images", "--all", "--quiet"]).text(), "");
    }
}

#[tokio::test]
async fn podman_pushes_both_formats_and_pulls_them_into_a_clean_store() {
    let server = Server::start();
    let podman = Podman::new();
    for (seed, format, layers) in [(240, "oci", 2), (241, "v2s2", 2), (242, "oci", 100)] {
        let image = ImageBuilder::new(seed).layers(layers).layer_bytes(400).build();
        // A relative path, since podman makes a name of it and names have no capitals.
        let directory = format!("layout-{seed}");
        let path = podman.home.path().join(&directory);
        let mut layout = Layout::create(&path);
        layout.add_image("v1", &image);
        layout.finish();
        let pulled = podman.run(&["pull", &format!("oci:{directory}:v1")]).text();
        let id = pulled.lines().last().expect("podman prints the id").to_owned();
        let (reference, digest_file) = (server.reference(&format!("acme/podman:{seed}")), podman.path("digest"));
        let push = ["push", "--tls-verify=false", "--format", format, "--digestfile", &digest_file, &id, &reference];
        podman.run(&push).text();
        let digest = std::fs::read_to_string(&digest_file).expect("podman wrote the digest");
        podman.forget_everything();
        podman.run(&["pull", "--tls-verify=false", &reference]).text();
        let inspected = podman.run(&["image", "inspect", "--format", "{{.Digest}}", &reference]).text();
        assert_eq!(inspected, digest, "{format} with {layers} layers");
        if format == "oci" {
            let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).text();
            assert_eq!(format!("sha256:{id}"), image.config.digest());
        }
        podman.forget_everything();
        let by_digest = format!("{}@{digest}", server.reference("acme/podman"));
        podman.run(&["pull", "--tls-verify=false", &by_digest]).text();
        podman.forget_everything();
    }
}

#[tokio::test]
async fn podman_pulls_its_own_platform_of_an_index() {
    let server = Server::start();
    let podman = Podman::new();
    for (seed, kind) in [(245, Kind::Oci), (247, Kind::Docker)] {
        let index = Index::of_two(kind, seed);
        server.client().push_index("acme/multi", "v1", &index).await;
        for (image, platform) in index.images.iter().zip(["linux/amd64", "linux/arm64"]) {
            let reference = server.reference("acme/multi:v1");
            podman.run(&["pull", "--tls-verify=false", "--platform", platform, &reference]).text();
            let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).text();
            assert_eq!(format!("sha256:{id}"), image.config.digest(), "{platform} {kind:?}");
            podman.forget_everything();
        }
    }
}
