//! A registry with users, as the tests here need it.

use std::process::{Command, Output};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Client, Server, images::sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A server whose users are `root` (operator), `ada` (admin of `acme`), `ed` (editor), `vi` (viewer) and `stan`
/// (nothing), all with the password `swordfish`.
pub struct Site {
    pub server: Server,
    pub client: Client,
}

/// An answer, read to its end.
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// Fails unless this is the status; for refusals, unless the text is one line that holds `words`.
    pub fn expect(&self, status: u16, words: &str) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert!(self.text.contains(words), "{:?} lacks {words:?}", self.text);
        if status >= 400 {
            assert_eq!(self.text.matches('\n').count(), 1, "{:?} is not one line", self.text);
        }
        self
    }
}

impl Site {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further settings, as `--set` takes them.
    pub fn start_with(settings: &[&str]) -> Self {
        let settings: Vec<&str> = ["auth.driver=local", "registry.pull_times_interval=1s"]
            .iter()
            .chain(settings)
            .flat_map(|text| ["--set", *text])
            .collect();
        let server = Server::start_with_options(&settings);
        let client = server.client();
        let site = Self { server, client };
        site.add_user("root", &["--operator"]);
        site.add_user("ada", &["--role", "acme=admin"]);
        site.add_user("ed", &["--role", "acme=editor"]);
        site.add_user("vi", &["--role", "acme=viewer"]);
        site.add_user("stan", &[]);
        site
    }

    /// Kills the server and starts it again; connections of before are not tried again.
    pub fn restart(&mut self) {
        self.server.restart();
        self.client = self.server.client();
    }

    fn add_user(&self, name: &str, options: &[&str]) {
        let arguments = [&["user", "add", name, "--password-stdin"], options].concat();
        let output = self.command(&arguments, "swordfish\n");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command of the binary against the running server.
    pub fn command(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut child = Command::new(env!("CARGO_BIN_EXE_keppel"))
            .args(arguments)
            .arg("--data")
            .arg(self.server.data())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the binary starts");
        child.stdin.take().expect("it has an input").write_all(input.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    }

    /// Runs a command that must succeed; gives what it prints, without the line's end.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text").trim_end().to_owned()
    }

    /// A request by a user; `""` is nobody.
    pub fn request(&self, method: &str, path: &str, user: &str) -> RequestBuilder {
        let method: Method = method.parse().expect("a method");
        let request = self.client.request(method, path);
        match user {
            "" => request,
            user => request.basic_auth(user, Some("swordfish")),
        }
    }

    pub async fn ask(&self, method: &str, path: &str, user: &str) -> Reply {
        reply(self.request(method, path, user)).await
    }

    pub async fn put(&self, path: &str, user: &str, body: Value) -> Reply {
        reply(self.request("PUT", path, user).body(body.to_string())).await
    }

    /// Makes or changes an account of the tenant `acme`.
    pub async fn put_account(&self, name: &str, user: &str, mut fields: Value) -> Reply {
        fields["auth_tenant_id"] = "acme".into();
        self.put(&format!("/keppel/v1/accounts/{name}"), user, json!({ "account": fields })).await
    }

    /// Pushes an image of one layer as `ed`; gives its digest, and the bytes of all that belongs to it.
    pub async fn push(&self, repository: &str, tag: &str, config: Value, annotations: Value) -> (String, u64) {
        let pushed = self.try_push(repository, tag, config, annotations).await;
        pushed.unwrap_or_else(|refusal| panic!("{repository}:{tag}: {} {}", refusal.status, refusal.text))
    }

    /// The same where it may be refused.
    pub async fn try_push(
        &self,
        repository: &str,
        tag: &str,
        config: Value,
        annotations: Value,
    ) -> Result<(String, u64), Reply> {
        let (config, layer) = (config.to_string(), "a layer");
        for blob in [&config, layer] {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(blob.as_bytes()));
            let pushed = reply(self.request("POST", &path, "ed").body(blob.to_owned())).await;
            if pushed.status != 201 {
                return Err(pushed);
            }
        }
        let descriptor = |kind: &str, blob: &str| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": sha256(blob.as_bytes()),
                "size": blob.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", layer)], "annotations": annotations,
        });
        let digest = self.put_manifest(repository, tag, manifest.to_string()).await?;
        Ok((digest, (config.len() + layer.len() + manifest.to_string().len()) as u64))
    }

    /// Pushes something without layers that is about a manifest; gives its digest.
    pub async fn push_about(&self, repository: &str, subject: &str, artifact_type: &str) -> String {
        let config = "{}";
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(config.as_bytes()));
        reply(self.request("POST", &path, "ed").body(config)).await.expect(201, "");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type, "layers": [],
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2},
            "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1},
        })
        .to_string();
        let digest = sha256(manifest.as_bytes());
        match self.put_manifest(repository, &digest, manifest).await {
            Ok(digest) => digest,
            Err(refusal) => panic!("{}", refusal.text),
        }
    }

    async fn put_manifest(&self, repository: &str, reference: &str, manifest: String) -> Result<String, Reply> {
        let digest = sha256(manifest.as_bytes());
        let request = self.request("PUT", &format!("/v2/{repository}/manifests/{reference}"), "ed");
        let put = reply(request.header("content-type", MANIFEST).body(manifest)).await;
        if put.status == 201 { Ok(digest) } else { Err(put) }
    }

    /// Asks as `vi` until the answer is as it is to be.
    pub async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let found = self.ask("GET", path, "vi").await.json();
            if holds(&found) {
                return found;
            }
            assert!(begun.elapsed().as_secs() < 60, "{path} stays at {found}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// A token for scopes, as a JSON answer of the token endpoint.
    pub async fn token(&self, user: &str, secret: &str, query: &str) -> Reply {
        let request = self.client.request(Method::GET, &format!("/keppel/v1/auth?service=keppel&{query}"));
        reply(if user.is_empty() { request } else { request.basic_auth(user, Some(secret)) }).await
    }
}

pub async fn reply(request: RequestBuilder) -> Reply {
    let response = request.send().await.expect("the server answers");
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, text: response.text().await.expect("an answer of text") }
}
