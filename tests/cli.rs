//! The program as its user meets it: words, exit codes, signals.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt as _;
use sha2::Digest as _;

/// The program, with no variable of ours set.
fn keppel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEPPEL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn standard_error(command: &mut Command, code: i32) -> String {
    let assert = command.assert().code(code);
    String::from_utf8(assert.get_output().stderr.clone()).expect("text")
}

fn standard_output(command: &mut Command) -> String {
    let assert = command.assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("text")
}

/// A running registry, killed when it is dropped.
struct Registry {
    process: Child,
    stderr: BufReader<ChildStderr>,
    /// What it wrote to standard error, up to where it serves.
    words: String,
    address: String,
}

impl Registry {
    /// Starts `keppel` and reads on until it says that it serves.
    fn start(arguments: &[&str], folder: &Path) -> Self {
        Self::start_command(keppel(arguments), folder)
    }

    fn start_command(mut command: Command, folder: &Path) -> Self {
        command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let mut stderr = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut words = String::new();
        let address = loop {
            let before = words.len();
            assert_ne!(stderr.read_line(&mut words).expect("text"), 0, "it ended: {words}");
            let line = &words[before..];
            let found = ["http://", "listen=\"", "listen=", "ready at "].iter().find_map(|mark| line.split_once(mark));
            if let Some((_, address)) = found {
                break address.trim().trim_matches('"').to_owned();
            }
        };
        Self { process, stderr, words, address }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        // SAFETY: sends a signal to a child that is not yet waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the end, and gives the exit code and the rest of what it said.
    fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            match self.process.try_wait().expect("a child") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it does not end"),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("text");
        (status.code(), rest)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ANY_PORT: &str = "127.0.0.1:0";

#[test]
fn version_and_help_are_told_without_failure_and_nonsense_is_refused_with_2() {
    let version = standard_output(&mut keppel(&["version"]));
    assert_eq!(version, format!("keppel {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(standard_output(&mut keppel(&["--version"])), version);
    let help = standard_output(&mut keppel(&["--help"]));
    for command in ["dev", "serve", "config"] {
        assert!(help.contains(command), "{help}");
    }
    standard_error(&mut keppel(&[]), 2);
    assert!(standard_error(&mut keppel(&["srve"]), 2).contains("serve"));
}

#[test]
fn config_check_says_ok_or_all_that_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keppel.toml");
    std::fs::write(&file, "[http]\nlisten = \"127.0.0.1:5000\"\n").expect("written");
    let file = file.to_str().expect("text");
    assert_eq!(standard_output(&mut keppel(&["config", "check", file])), "ok\n");

    std::fs::write(file, "[http]\nlissten = \"127.0.0.1:5000\"\n\n[log]\nformat = \"xml\"\n").expect("written");
    let mut command = keppel(&["config", "check", file, "--set", "node.thread=4"]);
    let words = standard_error(command.env("KEPPEL_HTTP_IDLE_TIMEOUT", "soon"), 2);
    let expected = format!(
        "\
{file}:2: http.lissten: unknown key; did you mean \"listen\"?
{file}:5: log.format: \"xml\" is not a log format: write \"text\" or \"json\"
--set node.thread: unknown key; did you mean \"node.threads\"?
KEPPEL_HTTP_IDLE_TIMEOUT: http.idle_timeout: \"soon\" is not a duration: write a whole number and ms, s, m, h or d, such as \"30s\"
error: the configuration has 4 problems
"
    );
    assert_eq!(words, expected);
}

#[test]
fn config_check_refuses_what_serve_would_refuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let pair = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made");
    let (one, other) = (pair("one.example"), pair("other.example"));
    write("one.pem", &one.cert.pem());
    write("one.key", &one.signing_key.serialize_pem());
    write("other.key", &other.signing_key.serialize_pem());
    write("words.pem", "no certificate\n");
    write("users", "alice:secret\n");
    let file = folder.path().join("keppel.toml");
    let name = file.to_str().expect("text").to_owned();
    let tls = |certificate: &str, key: &str| format!("[http]\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n");
    let htpasswd = |file: &str| format!("[auth]\ndriver = \"htpasswd\"\nhtpasswd_file = {file:?}\n");
    for (text, line, key, reason) in [
        (tls("words.pem", "one.key"), 2, "http.tls_certificate", "words.pem holds no certificate"),
        (tls("one.pem", "words.pem"), 3, "http.tls_key", "words.pem"),
        (tls("one.pem", "other.key"), 3, "http.tls_key", "does not work with the key in"),
        (tls("/dev/zero", "one.key"), 2, "http.tls_certificate", "/dev/zero cannot be read: it is a device"),
        (tls(".", "one.key"), 2, "http.tls_certificate", "it is a folder"),
        (htpasswd("users"), 3, "auth.htpasswd_file", "users, line 1: the hash is not of bcrypt"),
        (htpasswd("/dev/zero"), 3, "auth.htpasswd_file", "/dev/zero cannot be read: it is a device"),
    ] {
        std::fs::write(&file, &text).expect("written");
        let said = standard_error(&mut keppel(&["config", "check", &name]), 2);
        assert!(said.starts_with(&format!("{name}:{line}: {key}: ")) && said.contains(reason), "{text}{said}");
        assert_eq!(standard_error(&mut keppel(&["serve", "--config", &name]), 2), said, "serve says the same");
    }
    std::fs::write(&file, tls("one.pem", "one.key")).expect("written");
    assert_eq!(standard_output(&mut keppel(&["config", "check", &name])), "ok\n");
}

#[test]
fn config_check_reads_no_device_and_no_folder() {
    let zero = standard_error(&mut keppel(&["config", "check", "/dev/zero"]), 2);
    assert!(zero.starts_with("/dev/zero:1: this file cannot be read: it is a device"), "{zero}");
    let folder = standard_error(&mut keppel(&["config", "check", "/"]), 2);
    assert!(folder.starts_with("/:1: this file cannot be read: it is a folder"), "{folder}");
    let large = tempfile::NamedTempFile::new().expect("a file");
    large.as_file().set_len((1 << 20) + 1).expect("a size");
    let said = standard_error(&mut keppel(&["config", "check", large.path().to_str().expect("text")]), 2);
    assert!(said.contains("this file has more than 1048576 bytes"), "{said}");
}

#[test]
fn lists_are_set_on_the_command_line_with_commas_or_as_in_a_file() {
    for value in ["registry.accounts=one,two", "registry.accounts=[\"one\", \"two\"]"] {
        let shown = standard_output(&mut keppel(&["config", "show", "--set", value]));
        assert!(shown.contains("accounts = [\"one\", \"two\"]"), "{value}: {shown}");
    }
    assert!(standard_output(&mut keppel(&["serve", "--help"])).contains("registry.accounts=one,two"));
}

#[test]
fn a_database_that_is_none_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("keppel-data")).expect("made");
    std::fs::write(folder.path().join("keppel-data/metadata.db"), "not a database, and long enough to be seen as none")
        .expect("written");
    let said = standard_error(keppel(&["dev", "--listen", ANY_PORT]).current_dir(folder.path()), 1);
    let path = folder.path().join("keppel-data/metadata.db");
    assert!(said.starts_with(&format!("error: cannot open the metadata database {}: ", path.display())), "{said}");
    assert!(said.contains("not a database"), "{said}");
}

#[test]
fn a_unix_socket_is_named_where_the_registry_says_that_it_is_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("keppel.sock");
    let listen = format!("unix:{}", socket.display());
    let mut registry = Registry::start(&["dev", "--listen", &listen], folder.path());
    assert!(registry.words.contains(&format!("Keppel is ready at {listen}")), "{}", registry.words);
    registry.signal(libc::SIGTERM);
    let (code, words) = registry.end();
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains(&format!("curl --unix-socket {}", socket.display())), "{words}");
    let registry = Registry::start(&["serve", "--listen", &listen, "--data", "keppel-data"], folder.path());
    assert_eq!(registry.address, listen, "the log names it: {}", registry.words);
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keppel.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").expect("written");
    let mut command = keppel(&["config", "show", "--listen", ":80"]);
    command.env("KEPPEL_CONFIG", &file).env("KEPPEL_NODE_THREADS", "2");
    let shown = standard_output(&mut command);
    let origin = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).expect("every key is shown");
        line.split_once("# ").expect("every key has an origin").1
    };
    assert_eq!(origin("format"), format!("{}:2", file.display()));
    assert_eq!(origin("threads"), "KEPPEL_NODE_THREADS");
    assert_eq!(origin("listen"), "--listen");
    assert_eq!(origin("filter"), "default");
}

#[test]
fn config_example_is_a_configuration_that_passes_the_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keppel.toml");
    std::fs::write(&file, standard_output(&mut keppel(&["config", "example"]))).expect("written");
    let file = file.to_str().expect("text");
    assert_eq!(standard_output(&mut keppel(&["config", "check", file])), "ok\n");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut command = keppel(&["config", "example"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"");
}

#[test]
fn serve_refuses_a_bad_or_missing_file_before_it_opens_anything() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keppel.toml");
    let data = folder.path().join("data");
    std::fs::write(&file, format!("[node]\ndata = {data:?}\ncolour = \"red\"\n")).expect("written");
    let words = standard_error(&mut keppel(&["serve", "--config", file.to_str().expect("text")]), 2);
    assert!(
        words.starts_with(&format!("{}:3: node.colour: unknown key; [node] has data, ", file.display())),
        "{words}"
    );
    assert!(!data.exists());
    let words = standard_error(&mut keppel(&["serve", "--config", "/no/such/file"]), 2);
    assert!(words.starts_with("/no/such/file:1: this file cannot be read: No such file"), "{words}");
}

#[test]
fn dev_serves_and_says_what_to_type_next_and_ends_on_a_signal() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut registry = Registry::start(&["dev", "--listen", ANY_PORT], folder.path());
    assert!(registry.words.contains("Keppel is ready at http://127.0.0.1:"), "{}", registry.words);
    assert!(registry.get("/v2/").starts_with("HTTP/1.1 200 "));
    assert!(registry.get("/health/ready").starts_with("HTTP/1.1 200 "));
    assert!(folder.path().join("keppel-data/metadata.db").exists());
    registry.signal(libc::SIGINT);
    let (code, words) = registry.end();
    assert_eq!(code, Some(0), "{words}");
    for word in ["docker push 127.0.0.1:", "skopeo copy", "Ctrl-C", "keppel-data"] {
        assert!(words.contains(word), "{words}");
    }
}

#[test]
fn dev_that_is_ephemeral_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let scratch = tempfile::tempdir().expect("a folder");
    let mut command = keppel(&["dev", "--ephemeral", "--listen", ANY_PORT]);
    command.env("TMPDIR", scratch.path());
    let mut registry = Registry::start_command(command, folder.path());
    assert!(registry.get("/v2/").starts_with("HTTP/1.1 200 "));
    assert_ne!(std::fs::read_dir(scratch.path()).expect("a folder").count(), 0);
    registry.signal(libc::SIGTERM);
    assert_eq!(registry.end().0, Some(0));
    assert_eq!(std::fs::read_dir(scratch.path()).expect("a folder").count(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = TcpListener::bind(ANY_PORT).expect("a free port");
    let address = other.local_addr().expect("an address").to_string();
    let words = standard_error(keppel(&["dev", "--listen", &address]).current_dir(folder.path()), 1);
    assert!(words.contains(&address), "{words}");
    assert!(
        words.contains("another program listens there; end it, or choose another address, such as --listen "),
        "{words}"
    );
}

#[test]
fn a_data_folder_in_use_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Registry::start(&["dev", "--listen", ANY_PORT], folder.path());
    let words = standard_error(keppel(&["dev", "--listen", ANY_PORT]).current_dir(folder.path()), 1);
    let expected = format!("is in use by another keppel, process {}\n", first.process.id());
    assert!(words.contains(&expected), "{words}");
    assert!(words.contains("--data"), "{words}");
}

#[test]
fn shutdown_lets_a_running_upload_finish_and_a_second_signal_cuts_it_short() {
    let folder = tempfile::tempdir().expect("a folder");
    let body = b"some bytes of a blob";
    let digest = keppel_federation::vocabulary::Digest::from_sha256(sha2::Sha256::digest(body).into());
    let upload = |registry: &Registry| {
        let mut stream = TcpStream::connect(&registry.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let head = format!(
            "POST /v2/library/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        // The server asks for the body once the request is in its hands.
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("a clone"));
        reader.read_line(&mut line).expect("an answer");
        assert!(line.starts_with("HTTP/1.1 100 "), "{line}");
        (stream, reader)
    };

    let mut registry = Registry::start(&["dev", "--listen", ANY_PORT], folder.path());
    let (mut stream, mut reader) = upload(&registry);
    registry.signal(libc::SIGTERM);
    wait_until_refused(&registry.address);
    stream.write_all(body).expect("the connection still stands");
    let mut answer = String::new();
    reader.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("HTTP/1.1 201 "), "{answer}");
    assert_eq!(registry.end().0, Some(0));

    let mut registry = Registry::start(&["dev", "--listen", ANY_PORT], folder.path());
    let _held_open = upload(&registry);
    registry.signal(libc::SIGTERM);
    wait_until_refused(&registry.address);
    registry.signal(libc::SIGTERM);
    let (code, words) = registry.end();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("cut short by a second SIGTERM"), "{words}");
}

/// Waits until nobody listens on the address any more.
fn wait_until_refused(address: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "it still accepts connections");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn serve_runs_a_configuration_and_tells_the_service_manager() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).expect("bound");
    let text = "[node]\ndata = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[registry]\naccounts = [\"team\"]\n";
    std::fs::write(folder.path().join("keppel.toml"), text).expect("written");
    let mut command = keppel(&["serve", "--config", "keppel.toml"]);
    command.env("NOTIFY_SOCKET", &socket);
    let mut registry = Registry::start_command(command, folder.path());
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).expect("a message");
    assert_eq!(&buffer[..length], b"READY=1");
    assert!(registry.get("/v2/").starts_with("HTTP/1.1 200 "));
    registry.signal(libc::SIGTERM);
    assert_eq!(registry.end().0, Some(0));
    let length = manager.recv(&mut buffer).expect("a message");
    assert_eq!(&buffer[..length], b"STOPPING=1");
}
