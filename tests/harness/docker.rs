//! `docker` with a real daemon of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Image,
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

    /// Has the client use these logins, in the form of Docker's own file.
    pub fn use_logins(&self, file: &Path) {
        std::fs::copy(file, self.home.path().join("config.json")).expect("a file can be copied");
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

    pub fn repository_digest(&self, reference: &str) -> String {
        let digests = self.run(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", reference]).text();
        digests.split_once('@').expect("a digest follows the name").1.to_owned()
    }
}
