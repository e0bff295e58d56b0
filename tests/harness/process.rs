//! Programs that a test runs: daemons that never outlive it, and commands with a deadline.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a client command may take, in seconds, before it is stopped and the test fails. `KEPPEL_TEST_COMMAND_SECONDS`
/// gives long forms on a busy machine longer.
const COMMAND_SECONDS_MAX: u32 = 240;

/// A running daemon. Dropping it sends SIGTERM, then SIGKILL after a grace period, to the process started, never by name.
pub struct Daemon {
    child: Child,
    name: String,
    grace: Duration,
}

impl Daemon {
    /// Starts a daemon whose output goes to a log file. Must be called on the test's own thread: the kernel stops the
    /// daemon when that thread ends, so that it cannot outlive a test that is killed.
    pub fn start(command: &mut Command, log: &Path, grace: Duration) -> Daemon {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("the log file can be written");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be cloned")).stderr(log);
        // SAFETY: prctl is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}{}", how_to_install(&name)));
        Daemon { child, name, grace }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs; collects it when it has ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// The exit code of a process that has ended; none after a signal.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("a child can be waited for").code()
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: it does nothing, and notices nothing, until [`Self::resume`].
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that has not been collected yet cannot reach another process.
        let sent = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        assert_eq!(sent, 0, "{} cannot be sent signal {signal}", self.name);
    }

    /// SIGTERM, and wait for an orderly end. Returns whether it ended by itself with code 0.
    pub fn stop(&mut self) -> bool {
        if !self.is_running() {
            return false;
        }
        self.signal(libc::SIGTERM);
        let deadline = Instant::now() + self.grace;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status.success();
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} did not stop within {:?}; killing it", self.name, self.grace);
        self.kill();
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until `ready` says so; panics with the daemon's log when it ends first or the deadline passes.
pub fn wait_until(daemon: &mut Daemon, log: &Path, what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready() {
        let alive = daemon.is_running();
        if !alive || Instant::now() > deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            panic!("{what}: {}\n{said}", if alive { "not ready in time" } else { "it ended" });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a command did.
pub struct Output {
    pub command: String,
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The trimmed standard output of a command that must have succeeded.
    pub fn text(self) -> String {
        assert!(self.success, "{} failed\n{}{}", self.command, self.stdout, self.stderr);
        self.stdout.trim().to_owned()
    }

    /// All it said, of a command that must have failed.
    pub fn failure(self) -> String {
        assert!(!self.success, "{} succeeded\n{}{}", self.command, self.stdout, self.stderr);
        self.stdout + &self.stderr
    }
}

/// Runs a client to its end, with a deadline.
pub fn run<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> Output {
    run_in(Path::new("/"), &[], program, arguments)
}

/// Runs a client to its end, in a directory and with additional environment.
pub fn run_in<I: AsRef<OsStr>>(
    directory: &Path,
    environment: &[(&str, &str)],
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> Output {
    require(program);
    let mut command = Command::new("timeout");
    let limit = std::env::var("KEPPEL_TEST_COMMAND_SECONDS").unwrap_or_else(|_| COMMAND_SECONDS_MAX.to_string());
    command.arg("--kill-after=5").arg(limit).arg(program).args(arguments);
    command.current_dir(directory).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("cannot run timeout (coreutils): {error}"));
    let words: Vec<_> = command.get_args().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
    Output {
        command: words.join(" "),
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Fails the test, saying how to install it, when a client is missing.
pub fn require(program: &str) {
    let found = program.contains('/')
        || std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    assert!(found, "{program} is missing{}", how_to_install(program));
}

fn how_to_install(program: &str) -> String {
    let package = match program {
        "docker" | "dockerd" => "docker.io",
        "ctr" => "containerd",
        "nginx" => "nginx-light",
        "mount" | "umount" => "mount",
        "python3" => "python3-pip",
        other => other,
    };
    format!("; `scripts/setup` installs it (Debian's package: {package})")
}
