//! The provider, and a registry that lets in whom it knows.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::{Client, Server};

/// A running provider. Its people are alice (of `developers`), bob (of `operators`) and mallory (of nothing); its
/// programs are `builder` and `intruder`.
pub struct Provider {
    pub issuer: String,
    child: Child,
    /// Kept open: a program that writes to nobody ends.
    _output: BufReader<std::process::ChildStdout>,
    http: reqwest::Client,
}

/// How long the provider may take to start, to answer, or to let somebody in.
const PATIENCE: Duration = Duration::from_secs(60);

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc").join(script)).stdin(Stdio::null());
    command
}

impl Provider {
    pub fn start() -> Provider {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the build directory holds it");
        let modules = target.join("tools/oidc-provider/node_modules");
        assert!(modules.is_dir(), "{} is not there: run scripts/setup", modules.display());
        let mut child = node("provider.mjs")
            .arg(modules)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node is there, which scripts/setup installs");
        let mut output = BufReader::new(child.stdout.take().expect("it has an output"));
        let (say, said) = mpsc::channel();
        std::thread::spawn(move || {
            let mut issuer = String::new();
            let read = output.read_line(&mut issuer);
            let _ = say.send(read.map(|_| (issuer, output)));
        });
        let started = said.recv_timeout(PATIENCE);
        let Ok(started) = started else {
            let state = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let _ = child.kill();
            panic!("the provider did not say where it is within {PATIENCE:?}: {state}");
        };
        let (issuer, output) = started.expect("the provider prints its issuer");
        assert!(issuer.starts_with("http://"), "the provider did not start");
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .pool_max_idle_per_host(0)
            .build()
            .expect("an HTTP client can be made");
        Provider { issuer: issuer.trim().to_owned(), child, _output: output, http }
    }

    /// A token of a program for the registry, signed with RSA or (`/ec`) with an elliptic curve.
    pub async fn workload_token(&self, program: &str, resource: &str) -> String {
        let form =
            format!("grant_type=client_credentials&scope=registry&resource=https%3A%2F%2Fkeppel.example{resource}");
        let request = self.http.post(format!("{}/token", self.issuer));
        let request = request.basic_auth(program, Some(format!("{program}-secret")));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.expect("the provider answers").text().await.expect("with text");
        let answer: Value = serde_json::from_str(&answer).expect("with JSON");
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    /// Logs a person in with their browser at the page that a device was told.
    pub fn approve(&self, url: &str, person: &str) {
        let seconds = PATIENCE.as_secs().to_string();
        let mut person_at = Command::new("timeout");
        person_at.arg(seconds).arg("node").args(node("person.mjs").get_args()).stdin(Stdio::null());
        let output = person_at.arg(url).arg(person).output().expect("timeout and node are there");
        assert_ne!(output.status.code(), Some(124), "{person} was not let in within {PATIENCE:?}");
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(page.contains("sign-in was successful"), "{page}{}", String::from_utf8_lossy(&output.stderr));
    }

    /// An ID token of a person, as a program gets it that follows the device flow by itself.
    pub async fn id_token(&self, person: &str) -> String {
        let post = async |path: &str, form: String| -> Value {
            let request = self.http.post(format!("{}{path}", self.issuer));
            let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
            request.send().await.expect("the provider answers").json().await.expect("with JSON")
        };
        let begun = post("/device/auth", "client_id=keppel&scope=openid%20profile".into()).await;
        self.approve(begun["verification_uri_complete"].as_str().expect("a page"), person);
        let code = begun["device_code"].as_str().expect("a code");
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code";
        let answer = post("/token", format!("client_id=keppel&grant_type={grant}&device_code={code}")).await;
        answer["id_token"].as_str().unwrap_or_else(|| panic!("no ID token: {answer}")).to_owned()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry that knows the provider, with a home for logins.
pub struct Site {
    pub provider: Provider,
    pub server: Server,
    pub client: Client,
    pub home: tempfile::TempDir,
}

impl Site {
    pub fn start() -> Site {
        let provider = Provider::start();
        let issuer = format!("auth.oidc_issuer={}", provider.issuer);
        let rule = |robot: &str, program: &str| {
            format!(
                "issuer={} audience=keppel-workloads claim.sub={program} claim.repository=acme/.* robot=acme+{robot} \
                 allow=pull+push repository=web|api/.*",
                provider.issuer
            )
        };
        let rules = format!("auth.workloads={}", rule("ci", "builder"));
        let options =
            ["auth.driver=oidc", &issuer, "auth.oidc_roles=developers=acme:editor,operators=operator", &rules];
        let options: Vec<&str> = options.into_iter().flat_map(|option| ["--set", option]).collect();
        let server = Server::start_with_options(&options);
        let client = server.client();
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        Site { provider, server, client, home }
    }

    /// Docker's file of logins in the home.
    pub fn logins(&self) -> PathBuf {
        self.home.path().join("docker/config.json")
    }

    /// A command of the binary with the home's logins.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(arguments).env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.home.path().join("config"));
        command.env("DOCKER_CONFIG", self.home.path().join("docker")).env("NO_PROXY", "127.0.0.1");
        command.env_remove("KEPPEL_SERVER").env_remove("KEPPEL_TOKEN").stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    /// Runs a command that must succeed; gives what it prints.
    pub fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// Runs a command that must fail; gives what it says.
    pub fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("it prints text")
    }

    /// `keppel login --device` as a person.
    pub fn log_in(&self, person: &str) -> (bool, String) {
        let mut command = self.command(&["login", &self.server.address(), "--device"]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it has one")).lines();
        let url = lines.by_ref().map(|line| line.expect("text")).find(|line| line.contains("user_code="));
        self.provider.approve(url.expect("it names a page").trim(), person);
        let said: Vec<String> = lines.map(|line| line.expect("text")).collect();
        (child.wait().expect("it ends").success(), said.join("\n"))
    }

    /// Makes the account `acme-prod` of the tenant `acme`.
    pub async fn make_account(&self) {
        let bob = self.provider.id_token("bob").await;
        let request = self.client.request("PUT".parse().expect("a method"), "/keppel/v1/accounts/acme-prod");
        let request = request.basic_auth("bob", Some(bob)).body("{\"account\":{\"auth_tenant_id\":\"acme\"}}");
        let (status, text) = answer(request).await;
        assert_eq!(status, 200, "{text}");
    }

    /// Sends a form to the token endpoint.
    pub async fn token(&self, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let escape = |text: &str| -> String {
            let byte = |b: u8| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02x}") };
            text.bytes().map(byte).collect()
        };
        let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let request = self.client.request("POST".parse().expect("a method"), "/keppel/v1/auth");
        let (status, text) = answer(request.body(form.join("&"))).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Tries to push a blob with a token of the registry; gives the status.
    pub async fn push(&self, repository: &str, token: &str) -> u16 {
        let digest = crate::harness::images::sha256(b"{}");
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let request = self.client.request("POST".parse().expect("a method"), &path).bearer_auth(token).body("{}");
        answer(request).await.0.as_u16()
    }
}

pub async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, String) {
    let response = request.send().await.expect("the server answers");
    (response.status(), response.text().await.expect("with text"))
}
