//! `docker` with a real daemon of its own.

use std::{path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use crate::harness::{
    Image, ImageBuilder, Index, Kind, Server,
    layout::write_docker_archive,
    process::{Daemon, Output, require, run, wait_until},
};

/// A Docker daemon without network, on a private socket. Registries on 127.0.0.0/8 may be plain HTTP by default.
pub struct Docker {
    // Fields are dropped in this order: the daemon must have unmounted what is in its home before that goes.
    _daemon: Daemon,
    home: TempDir,
    socket: String,
}

impl Docker {
    pub fn start() -> Docker {
        Docker::start_as(Command::new("dockerd"), tempfile::tempdir().expect("a temporary directory can be made"))
    }

    /// A daemon that asks `mirror`, a host name and port, before Docker Hub. It alone finds that host, on this machine.
    pub fn start_with_mirror(mirror: &str) -> Docker {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let name = mirror.split(':').next().expect("a split has a first part");
        let hosts = home.path().join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost {name}\n")).expect("a file can be written");
        // The file is put over the machine's own in a mount namespace that only the daemon is in.
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/hosts && exec dockerd \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&hosts);
        command.arg(format!("--registry-mirror=http://{mirror}"));
        Docker::start_as(command, home)
    }

    fn start_as(mut command: Command, home: TempDir) -> Docker {
        require("docker");
        let path = |name: &str| home.path().join(name).display().to_string();
        let socket = format!("unix://{}", path("socket"));
        command.args([
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--ip-masq=false",
            "--storage-driver=vfs",
        ]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args(["--host", &socket, "--config-file", &path("no-config")]);
        std::fs::write(home.path().join("no-config"), "{}").expect("a file can be written");
        let log = home.path().join("log");
        let mut daemon = Daemon::start(&mut command, &log, Duration::from_secs(30));
        wait_until(&mut daemon, &log, "dockerd", || run("docker", ["--host", &socket, "version"]).success);
        Docker { _daemon: daemon, home, socket }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        run(
            "docker",
            ["--host", &self.socket, "--config", &self.home.path().display().to_string()].iter().chain(arguments),
        )
    }

    pub fn load(&self, reference: &str, image: &Image) {
        let archive: PathBuf = self.home.path().join("image.tar");
        write_docker_archive(&archive, reference, image);
        self.run(&["load", "--input", &archive.display().to_string()]).text();
    }

    /// Removes every image, so that the next pull starts from nothing.
    pub fn forget_everything(&self) {
        for id in self.run(&["images", "--all", "--quiet", "--no-trunc"]).text().lines() {
            self.run(&["rmi", "--force", id]).text();
        }
        assert_eq!(self.run(&["images", "--all", "--quiet"]).text(), "");
    }

    pub fn image_id(&self, reference: &str) -> String {
        self.run(&["image", "inspect", "--format", "{{.Id}}", reference]).text()
    }

    fn repository_digest(&self, reference: &str) -> String {
        let digests = self.run(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", reference]).text();
        digests.split_once('@').expect("a digest follows the name").1.to_owned()
    }
}

#[tokio::test]
async fn docker_pushes_an_image_and_pulls_the_same_one_into_a_clean_store() {
    let server = Server::start();
    let docker = Docker::start();
    for (name, image) in [
        ("acme/docker:v1", ImageBuilder::new(200).build()),
        ("acme/docker:hundred", ImageBuilder::new(201).layers(100).layer_bytes(300).build()),
        ("one-component:v1", ImageBuilder::new(202).layers(1).layer_bytes(3_000_000).build()),
    ] {
        let reference = server.reference(name);
        docker.load(&reference, &image);
        let id = docker.image_id(&reference);
        assert_eq!(id, image.config.digest(), "the image that was made is the one that was loaded");
        docker.run(&["push", &reference]).text();
        let pushed = docker.repository_digest(&reference);
        docker.forget_everything();
        docker.run(&["pull", &reference]).text();
        assert_eq!(docker.image_id(&reference), id, "{name}");
        assert_eq!(docker.repository_digest(&reference), pushed, "{name}");
        docker.forget_everything();
        let by_digest = format!("{}@{pushed}", reference.rsplit_once(':').expect("there is a tag").0);
        docker.run(&["pull", &by_digest]).text();
        assert_eq!(docker.image_id(&by_digest), id, "{name} by digest");
        docker.forget_everything();
    }
}

#[tokio::test]
async fn docker_pulls_what_others_pushed_in_every_format() {
    let server = Server::start();
    let client = server.client();
    let docker = Docker::start();
    for (seed, kind) in [(210, Kind::Oci), (220, Kind::Docker)] {
        let image = ImageBuilder::new(seed).kind(kind).build();
        client.push_image("acme/single", "v1", &image).await;
        let index = Index::of_two(kind, seed + 1);
        client.push_index("acme/multi", "v1", &index).await;
        for (name, digest, config) in [
            ("acme/single:v1", image.digest(), image.config.digest()),
            ("acme/multi:v1", index.digest(), index.images[0].config.digest()),
        ] {
            let reference = server.reference(name);
            docker.run(&["pull", "--platform", "linux/amd64", &reference]).text();
            assert_eq!(docker.image_id(&reference), config, "{name} {kind:?}");
            assert_eq!(docker.repository_digest(&reference), digest, "{name} {kind:?}");
            docker.forget_everything();
        }
    }
}

#[tokio::test]
async fn docker_mounts_layers_instead_of_sending_them_again() {
    let server = Server::start();
    let docker = Docker::start();
    let image = Image::small(230);
    let (first, second) = (server.reference("acme/first:v1"), server.reference("acme/second:v1"));
    docker.load(&first, &image);
    docker.run(&["push", &first]).text();
    docker.run(&["tag", &first, &second]).text();
    let said = docker.run(&["push", &second]).text();
    assert!(said.contains("Mounted from acme/first") || said.contains("Layer already exists"), "{said}");
    docker.forget_everything();
    docker.run(&["pull", &second]).text();
    assert_eq!(docker.image_id(&second), image.config.digest());
}
