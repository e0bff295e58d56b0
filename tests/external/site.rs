//! A server with accounts that are mirrors.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Reply, Server, Upstream, client::send};

/// Changes a good answer.
pub type Lie = Box<dyn Fn(Reply) -> Reply + Send>;

/// A server whose every caller may do everything.
pub struct Site {
    pub server: Server,
    pub client: Client,
}

impl Site {
    /// With further settings, as `--set` takes them. The times are short: what waits in vain must not keep a test.
    pub fn start(settings: &[&str]) -> Self {
        let usual =
            ["external.plain_http_hosts=[\"127.0.0.1\"]", "external.answer_timeout=2s", "external.stall_timeout=2s"];
        let options: Vec<_> = usual.iter().chain(settings).flat_map(|setting| ["--set", setting]).collect();
        let server = Server::start_with_options(&options);
        Self { client: server.client(), server }
    }

    /// Makes the account `mirror` of a registry.
    pub async fn mirror(&self, upstream: &Upstream) {
        self.put_mirror(json!({ "url": upstream.host() }), json!({})).await.expect(200);
    }

    /// Makes or changes the account `mirror`, with other fields of the account.
    pub async fn put_mirror(&self, upstream: Value, mut fields: Value) -> Answer {
        fields["auth_tenant_id"] = "acme".into();
        fields["replication"] = json!({ "strategy": "from_external_on_first_use", "upstream": upstream });
        let request = self.client.request(Method::PUT, "/keppel/v1/accounts/mirror");
        send(request.body(json!({ "account": fields }).to_string())).await
    }

    /// A counter of the server, summed over its labels.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.client.get("/metrics").await.expect(200).text();
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as u64
    }
}

/// The path of a manifest of the mirror.
pub fn manifest(repository: &str, reference: &str) -> String {
    format!("/v2/mirror/{repository}/manifests/{reference}")
}

/// The path of a blob of the mirror.
pub fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/mirror/{repository}/blobs/{digest}")
}
