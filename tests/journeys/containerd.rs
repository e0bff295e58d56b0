//! containerd's `ctr`, with a daemon of its own.

use std::{fs, process::Command, time::Duration};

use tempfile::TempDir;

use crate::harness::{
    ImageBuilder, Index, Kind, Server,
    layout::Layout,
    process::{Daemon, Output, require, run, wait_until},
};

pub struct Containerd {
    // Dropped first: the daemon must have let go of its home before that goes.
    _daemon: Daemon,
    pub home: TempDir,
    socket: String,
}

impl Containerd {
    pub fn start() -> Containerd {
        require("ctr");
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let path = |name: &str| home.path().join(name).display().to_string();
        let (socket, config) = (path("socket"), home.path().join("config.toml"));
        // Only what images need: no Kubernetes plugin, which would look for networks.
        let text = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n",
            path("root"),
            path("state"),
        );
        fs::write(&config, text).expect("a file can be written");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config);
        let log = home.path().join("log");
        let mut daemon = Daemon::start(&mut command, &log, Duration::from_secs(20));
        wait_until(&mut daemon, &log, "containerd", || run("ctr", ["--address", &socket, "version"]).success);
        Containerd { _daemon: daemon, home, socket }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        run("ctr", ["--address", &self.socket].iter().chain(arguments))
    }

    pub fn pull(&self, reference: &str, more: &[&str]) {
        let pull = ["images", "pull", "--plain-http", "--snapshotter", "native"];
        self.run(&[&pull[..], more, &[reference]].concat()).text();
    }

    pub fn digest(&self, reference: &str) -> String {
        let list = self.run(&["images", "list", &format!("name=={reference}")]).text();
        let line = list.lines().nth(1).unwrap_or_else(|| panic!("{reference} is not there: {list}"));
        line.split_whitespace().nth(2).expect("the third column is the digest").to_owned()
    }

    /// Removes the images, and waits until their content is collected.
    pub fn forget_everything(&self) {
        for name in self.run(&["images", "list", "--quiet"]).text().lines() {
            self.run(&["images", "remove", "--sync", name]).text();
        }
        assert_eq!(self.run(&["content", "list", "--quiet"]).text(), "", "the content is gone too");
    }
}

#[tokio::test]
async fn containerd_pushes_and_pulls_into_a_clean_store() {
    let server = Server::start();
    let containerd = Containerd::start();
    let one = ImageBuilder::new(280).layers(5).layer_bytes(100_000).build();
    let hundred = ImageBuilder::new(281).layers(100).layer_bytes(300).build();
    let multi = Index::of_two(Kind::Oci, 282);
    let base = server.reference("acme/ctr");
    for (tag, digest) in [("one", one.digest()), ("hundred", hundred.digest()), ("multi", multi.digest())] {
        let directory = containerd.home.path().join(format!("layout-{tag}"));
        let mut layout = Layout::create(&directory);
        match tag {
            "one" => layout.add_image(tag, &one),
            "hundred" => layout.add_image(tag, &hundred),
            _ => layout.add_index(tag, &multi),
        }
        layout.finish();
        let archive = format!("{}.tar", directory.display());
        let mut tar = tar::Builder::new(fs::File::create(&archive).expect("a file can be made"));
        tar.append_dir_all(".", &directory).expect("the archive can be written");
        tar.finish().expect("the archive can be written");
        let import = ["images", "import", "--all-platforms", "--no-unpack", "--base-name", &base, &archive];
        containerd.run(&import).text();
        let reference = format!("{base}:{tag}");
        containerd.run(&["images", "push", "--plain-http", &reference]).text();
        containerd.forget_everything();
        containerd.pull(&reference, if tag == "multi" { &["--all-platforms"] } else { &[] });
        assert_eq!(containerd.digest(&reference), digest, "{tag}");
        containerd.forget_everything();
    }
    server.client().assert_image("acme/ctr", "one", &one).await;
    server.client().assert_image("acme/ctr", &multi.images[1].digest(), &multi.images[1]).await;
}

#[tokio::test]
async fn containerd_pulls_docker_schema_2() {
    let server = Server::start();
    let containerd = Containerd::start();
    let single = ImageBuilder::new(285).kind(Kind::Docker).build();
    let multi = Index::of_two(Kind::Docker, 286);
    server.client().push_image("acme/docker", "single", &single).await;
    server.client().push_index("acme/docker", "multi", &multi).await;
    for (tag, digest) in [("single", single.digest()), ("multi", multi.digest())] {
        let reference = server.reference(&format!("acme/docker:{tag}"));
        containerd.pull(&reference, &["--platform", "linux/amd64"]);
        assert_eq!(containerd.digest(&reference), digest, "{tag}");
    }
}
