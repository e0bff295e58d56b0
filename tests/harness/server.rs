//! The registry under test, as the real binary in a process of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    client::Client,
    operator::Operator,
    process::{Daemon, wait_until},
};

/// A `keppel dev` on a free port of 127.0.0.1 with a data directory of its own.
pub struct Server {
    daemon: Option<Daemon>,
    port: u16,
    data: PathBuf,
    log: PathBuf,
    options: Vec<String>,
    /// Holds the log, and the data unless the test brought its own directory.
    _home: TempDir,
}

impl Server {
    /// Starts a server on an empty data directory and waits until it is ready.
    pub fn start() -> Server {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let data = home.path().join("data");
        Server::start_with(home, data, &[])
    }

    /// Starts a server on a directory that the test made, for instance a small file system.
    pub fn start_on(data: &Path) -> Server {
        Server::start_with(tempfile::tempdir().expect("a temporary directory can be made"), data.to_owned(), &[])
    }

    /// The same with further command line options.
    pub fn start_on_with(data: &Path, options: &[&str]) -> Server {
        Server::start_with(tempfile::tempdir().expect("a temporary directory can be made"), data.to_owned(), options)
    }

    /// Starts a server with further command line options.
    pub fn start_with_options(options: &[&str]) -> Server {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let data = home.path().join("data");
        Server::start_with(home, data, options)
    }

    /// Starts a server that only these users, as names with passwords, may use; they may do everything.
    pub fn start_guarded(users: &[(&str, &str)]) -> Server {
        Server::start_guarded_with(users, &[])
    }

    /// The same with further command line options.
    pub fn start_guarded_with(users: &[(&str, &str)], options: &[&str]) -> Server {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let file = home.path().join("htpasswd");
        // The least cost: these passwords are no secrets.
        let line = |(name, password): &(&str, &str)| {
            format!("{name}:{}\n", bcrypt::hash(password, 4).expect("a password can be hashed"))
        };
        fs::write(&file, users.iter().map(line).collect::<String>()).expect("a file can be written");
        let data = home.path().join("data");
        let file = format!("auth.htpasswd_file={}", file.display());
        let grants = "auth.htpasswd_grants=*=operator";
        let guard = ["--set", "auth.driver=htpasswd", "--set", &file, "--set", grants];
        Server::start_with(home, data, &[&guard, options].concat())
    }

    fn start_with(home: TempDir, data: PathBuf, options: &[&str]) -> Server {
        let options = options.iter().map(ToString::to_string).collect();
        let log = home.path().join("log");
        let mut server = Server { daemon: None, port: free_port(), data, log, options, _home: home };
        server.launch();
        server
    }

    /// The one place that knows how the registry is started.
    fn launch(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.arg("dev").arg("--listen").arg(self.address()).arg("--data").arg(&self.data).args(&self.options);
        command.env("RUST_BACKTRACE", "1");
        // Registries that speak HTTPS are on this machine as well.
        command.env("NO_PROXY", "127.0.0.1,localhost");
        let mut daemon = Daemon::start(&mut command, &self.log, Duration::from_secs(20));
        let port = self.port;
        wait_until(&mut daemon, &self.log, "keppel", || is_ready(port));
        self.daemon = Some(daemon);
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT/NAME`, as clients write it.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address()))
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What an operator on this machine may ask.
    pub fn operator(&self) -> Operator {
        Operator::new(self.data.clone())
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the server runs").pid()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL: no time to tidy anything.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// SIGTERM; fails unless the server ends in order.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            assert!(daemon.stop(), "the server did not shut down in order:\n{}", self.log());
        }
    }

    /// Starts it again on the same port and data.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Fails unless the same process still runs and answers.
    pub fn assert_alive(&mut self) {
        let running = self.daemon.as_mut().is_some_and(Daemon::is_running);
        assert!(running && is_ready(self.port), "the server died:\n{}", self.log());
        assert!(!self.log().contains("panicked at"), "the server panicked:\n{}", self.log());
    }

    /// Bytes of memory that are resident now.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most bytes of memory that were resident so far.
    pub fn resident_bytes_peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process has a status");
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells it");
        let kib: u64 = line.split_whitespace().nth(1).expect("there is a figure").parse().expect("it is a number");
        kib * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order it would wait for this test's own idle connections; tests of that call `stop`.
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(8000);
            eprintln!("--- the server's log ---\n{}", String::from_utf8_lossy(&log.as_bytes()[start..]));
        } else {
            assert!(!self.log().contains("panicked at"), "the server panicked:\n{}", self.log());
        }
    }
}

/// A TCP and UDP port that nobody has. It is not one of those that the system gives to connections, which could take it before
/// the program does; and each process of tests has a block of its own.
pub fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let first = std::process::id() % 1100 * 20;
    loop {
        let offset = first + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = u16::try_from(10_000 + offset % 22_000).expect("below 32,000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
            && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            return port;
        }
    }
}

fn is_ready(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).expect("a limit above zero is accepted");
    let request = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    stream.write_all(request).is_ok() && stream.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 200")
}
