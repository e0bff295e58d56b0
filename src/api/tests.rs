use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, TenantId};
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use super::{
    ApiOptions,
    serve::{Listen, Server, ServerOptions},
    spawn,
};
use crate::{
    auth::{
        Auth, AuthDriver, AuthOptions, KeyOptions, KeyRing, MemoryRecords, OpenDriver, RecordKind, TokenOptions, Tokens,
    },
    metadata::{Metadata, MetadataOptions},
    model::ManualClock,
    registry::{
        AccountBook, AccountDecision, AccountEntry, Accounts, LocalClaims, PeerEntry, Registry, RegistryOptions,
        Undecided,
    },
    storage::{FilesystemOptions, Storage},
};

mod guarded;
mod matrix;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Node {
    server: Server,
    shutdown: CancellationToken,
    client: reqwest::Client,
    _directory: tempfile::TempDir,
}

/// A federation without accounts and others: the API of accounts is tested against the whole program.
struct NoAccounts;

#[async_trait::async_trait]
impl AccountBook for NoAccounts {
    fn get(&self, _: &AccountName) -> Option<AccountEntry> {
        None
    }
    fn list(&self, _: Option<&AccountName>, _: usize) -> Vec<AccountEntry> {
        Vec::new()
    }
    async fn catch_up(&self) -> Result<(), Undecided> {
        Ok(())
    }
    fn peers(&self) -> Vec<PeerEntry> {
        Vec::new()
    }
    async fn claim(&self, _: &AccountName, _: &TenantId, _: Vec<u8>) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn put_settings(&self, _: &AccountName, _: Vec<u8>, _: u64) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn set_deleting(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn forfeit(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn redeem_sublease(&self, _: &AccountName, _: &str) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn detach_replica(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    fn get_quota(&self, _: &TenantId) -> Option<(bytes::Bytes, u64)> {
        None
    }
    async fn put_quota(&self, _: &TenantId, _: Vec<u8>, _: u64) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
    async fn issue_sublease(&self, _: &AccountName, _: &str, _: Duration) -> Result<AccountDecision, Undecided> {
        Err(Undecided("there is nobody to decide".into()))
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

impl Node {
    fn start() -> Self {
        Self::start_with(ServerOptions::default())
    }

    fn start_with(server: ServerOptions) -> Self {
        Self::start_guarded(server, Arc::new(OpenDriver::default()), Arc::new(MemoryRecords::default()))
    }

    fn start_guarded(server: ServerOptions, driver: Arc<dyn AuthDriver>, records: Arc<MemoryRecords>) -> Self {
        let options = ApiOptions { server, ..ApiOptions::default() };
        Self::start_with_book(options, driver, records, Arc::new(NoAccounts))
    }

    fn start_with_book(
        options: ApiOptions,
        driver: Arc<dyn AuthDriver>,
        records: Arc<MemoryRecords>,
        book: Arc<dyn AccountBook>,
    ) -> Self {
        let api_options = options;
        let directory = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
        let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
        let options = RegistryOptions {
            create_accounts_on_push: true,
            default_account: Some(AccountName::parse("library").unwrap()),
            ..RegistryOptions::default()
        };
        let registry =
            Registry::new(options, metadata, storage, Arc::new(ManualClock::new(1_000_000)), Arc::new(LocalClaims));
        let clock = Arc::new(ManualClock::new(1_000_000));
        let keys = KeyRing::in_memory(NodeId::from_public_key([1; 32]), KeyOptions::default(), 1_000_000).unwrap();
        for (id, document) in keys.documents() {
            records.put(RecordKind::IssuerKey, &id, document.to_bytes());
        }
        let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
        let auth = Auth::new(&AuthOptions::default(), driver, records, tokens, clock);
        let listen = vec![Listen::plain(([127, 0, 0, 1], 0).into())];
        let server = ServerOptions { listen, ..api_options.server };
        let options = ApiOptions { server, ..api_options };
        let shutdown = CancellationToken::new();
        let prometheus = PrometheusBuilder::new().build_recorder().handle();
        let accounts = Accounts::new(registry, book);
        let server = spawn(options, accounts, auth, prometheus, shutdown.clone()).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { server, shutdown, client, _directory: directory }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.server.addresses()[0]))
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.ask(Method::GET, path)).await
    }

    async fn push_blob(&self, repository: &str, content: &'static [u8]) -> String {
        let digest = Digest::from_sha256(sha2::Sha256::digest(content).into()).to_string();
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let pushed = answer(self.ask(Method::POST, &path).body(content)).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&pushed.body));
        digest
    }

    /// An image of one blob; gives its bytes.
    async fn push_image(&self, repository: &str, reference: &str) -> String {
        let config = self.push_blob(repository, b"{}").await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        })
        .to_string();
        let put = self.ask(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        let put = answer(put.header("content-type", format!("{MANIFEST}; charset=utf-8")).body(manifest.clone())).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&put.body));
        manifest
    }

    async fn stop(self) {
        drop(self.client);
        self.shutdown.cancel();
        self.server.stopped().await;
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
}

#[tokio::test]
async fn a_manifest_from_memory_is_answered_like_one_from_disk() {
    let node = Node::start();
    for (pushed_as, path) in [("acme/app", "/v2/acme/app"), ("alpine", "/v2/alpine"), ("alpine", "/v2/library/alpine")]
    {
        let manifest = node.push_image(pushed_as, "v1").await;
        let from_disk = node.get(&format!("{path}/manifests/v1")).await;
        let from_memory = node.get(&format!("{path}/manifests/v1")).await;
        let head = answer(node.ask(Method::HEAD, &format!("{path}/manifests/v1"))).await;
        for found in [&from_disk, &from_memory, &head] {
            assert_eq!(found.status, StatusCode::OK);
            assert_eq!(found.header("content-type"), MANIFEST);
            assert_eq!(found.header("content-length"), manifest.len().to_string());
            assert_eq!(found.header("docker-distribution-api-version"), "registry/2.0");
            assert_eq!(found.header("etag"), format!("\"{}\"", found.header("docker-content-digest")));
            assert_eq!(found.header("x-keppel-your-ip"), "127.0.0.1");
            assert_eq!(found.header("x-request-id").len(), 32);
        }
        assert_eq!(from_disk.body, manifest.as_bytes());
        assert_eq!(from_memory.body, manifest.as_bytes());
        assert!(head.body.is_empty());
        for path in
            [format!("{path}/manifests/v1"), format!("{path}/manifests/{}", head.header("docker-content-digest"))]
        {
            let known = node.ask(Method::GET, &path).header("if-none-match", head.header("etag"));
            assert_eq!(answer(known).await.status, StatusCode::NOT_MODIFIED);
            let wrong = node.ask(Method::GET, &path).header("accept", "application/vnd.oci.image.index.v1+json");
            let wrong = answer(wrong).await;
            assert_eq!((wrong.status, &*wrong.code()), (StatusCode::NOT_ACCEPTABLE, "MANIFEST_UNKNOWN"));
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn blobs_are_sent_whole_and_in_parts() {
    let node = Node::start();
    let digest = node.push_blob("acme/app", b"0123456789").await;
    let path = format!("/v2/acme/app/blobs/{digest}");
    let whole = node.get(&path).await;
    assert_eq!((whole.status, &*whole.body), (StatusCode::OK, &b"0123456789"[..]));
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let ranged = |range: &'static str| answer(node.ask(Method::GET, &path).header("range", range));
    let part = ranged("bytes=2-4").await;
    assert_eq!((part.status, &*part.body), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!((part.header("content-range"), part.header("content-length")), ("bytes 2-4/10", "3"));
    assert_eq!(ranged("bytes=-1").await.body, b"9");
    assert_eq!(ranged("bytes=0-1,3-4").await.status, StatusCode::OK);
    let none = ranged("bytes=10-").await;
    assert_eq!((none.status, none.header("content-range")), (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */10"));
    let head = answer(node.ask(Method::HEAD, &path)).await;
    assert_eq!((head.header("content-length"), head.body.len()), ("10", 0));
    let stale = node.ask(Method::GET, &path).header("range", "bytes=2-4").header("if-range", "\"old\"");
    assert_eq!(answer(stale).await.status, StatusCode::OK);
    node.stop().await;
}

#[tokio::test]
async fn an_upload_in_chunks_reports_where_it_is() {
    let node = Node::start();
    let opened = answer(node.ask(Method::POST, "/v2/acme/app/blobs/uploads/")).await;
    assert_eq!((opened.status, opened.header("range")), (StatusCode::ACCEPTED, "0-0"));
    let location = opened.header("location").to_owned();
    assert!(location.starts_with("/v2/acme/app/blobs/uploads/") && !location.contains('?'), "{location}");
    let chunk = |range: &'static str, body: &'static str| {
        answer(node.ask(Method::PATCH, &location).header("content-range", range).body(body))
    };
    let first = chunk("0-4", "hello").await;
    assert_eq!((first.status, first.header("range")), (StatusCode::ACCEPTED, "0-4"));
    let gap = chunk("bytes 7-9/*", "abc").await;
    assert_eq!((gap.status, gap.header("range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-4"));
    assert_eq!(chunk("5-9", "abc").await.code(), "SIZE_INVALID");
    assert_eq!(chunk("five", "abc").await.code(), "BLOB_UPLOAD_INVALID");
    let status = node.get(&location).await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-4"));
    assert_eq!(status.header("docker-upload-uuid"), location.rsplit('/').next().unwrap());
    let digest = Digest::from_sha256(sha2::Sha256::digest(b"hello world").into());
    let end = node.ask(Method::PUT, &format!("{location}?digest={digest}")).body(" world");
    let end = answer(end).await;
    assert_eq!((end.status, end.header("docker-content-digest")), (StatusCode::CREATED, &*digest.to_string()));
    assert_eq!(node.get(end.header("location")).await.body, b"hello world");
    assert_eq!(node.get(&location).await.code(), "BLOB_UPLOAD_UNKNOWN");
    node.stop().await;
}

#[tokio::test]
async fn wrong_paths_and_methods_are_refused_in_the_form_of_the_api() {
    let node = Node::start();
    for (method, path, status, code) in [
        (Method::GET, "/v2/Acme/app/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/acme%2Fapp/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/acme/app/manifests/.bad", 404, "MANIFEST_UNKNOWN"),
        (Method::DELETE, "/v2/acme/app/manifests/.bad", 400, "TAG_INVALID"),
        (Method::GET, "/v2/acme/app/manifests/sha256:bad", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/acme/app/blobs/md5:00", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/acme/app/manifests/none", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/acme/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        (Method::GET, "/v2/acme/app/blobs/uploads/nonsense", 404, "BLOB_UPLOAD_UNKNOWN"),
        (Method::GET, "/v2/acme/app/what", 404, "UNSUPPORTED"),
        (Method::PATCH, "/v2/acme/app/manifests/v1", 405, "UNSUPPORTED"),
        (Method::POST, "/v2/", 405, "UNSUPPORTED"),
    ] {
        let found = answer(node.ask(method.clone(), path)).await;
        assert_eq!((found.status.as_u16(), &*found.code()), (status, code), "{method} {path}");
        assert_eq!(found.header("content-type"), "application/json");
        assert_eq!(found.header("docker-distribution-api-version"), "registry/2.0");
        assert_eq!(found.headers.contains_key("allow"), status == 405);
    }
    node.stop().await;
}

#[tokio::test]
async fn health_and_metrics_tell_of_the_node() {
    let node = Node::start();
    assert_eq!(node.get("/health/live").await.status, StatusCode::OK);
    assert_eq!(node.get("/health/ready").await.status, StatusCode::OK);
    assert_eq!(node.get("/v2/").await.status, StatusCode::OK);
    let metrics = String::from_utf8(node.get("/metrics").await.body).unwrap();
    assert!(
        metrics.contains(r#"keppel_http_requests_total{endpoint="base",method="GET",status="2xx"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");
    let named = answer(node.ask(Method::GET, "/elsewhere").header("x-request-id", "mine-1")).await;
    assert_eq!((named.status, named.header("x-request-id")), (StatusCode::NOT_FOUND, "mine-1"));
    node.stop().await;
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_refused_before_it_is_sent() {
    let node = Node::start();
    let put = node.ask(Method::PUT, "/v2/acme/app/manifests/v1").header("content-type", MANIFEST);
    let refused = answer(put.body(vec![b' '; (4 << 20) + 1])).await;
    assert_eq!((refused.status, &*refused.code()), (StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID"));
    node.stop().await;
}

#[tokio::test]
async fn a_sender_that_stalls_is_told_so_and_what_arrived_stays() {
    let body_idle_timeout = Duration::from_millis(300);
    let node = Node::start_with(ServerOptions { body_idle_timeout, ..ServerOptions::default() });
    let opened = answer(node.ask(Method::POST, "/v2/acme/app/blobs/uploads/")).await;
    let location = opened.header("location");
    let mut stream = TcpStream::connect(node.server.addresses()[0]).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhello");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut refusal = String::new();
    stream.read_to_string(&mut refusal).await.unwrap();
    assert!(refusal.starts_with("HTTP/1.1 408 "), "{refusal}");
    let status = node.get(location).await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-4"));
    node.stop().await;
}

#[tokio::test]
async fn large_blobs_arrive_byte_for_byte_by_every_way_of_sending_them() {
    let node = Node::start();
    let content: &'static [u8] = (0..5_000_003_u32).map(|at| (at % 251) as u8).collect::<Vec<_>>().leak();
    let digest = node.push_blob("acme/app", content).await;
    let path = format!("/v2/acme/app/blobs/{digest}");
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}{path}", node.server.addresses()[0]);
    for (first, last) in
        [(0, 5_000_002), (1, 5_000_001), (262_143, 262_144), (300_000, 2_000_000), (4_999_999, 5_000_002)]
    {
        let range = format!("bytes={first}-{last}");
        for request in [node.ask(Method::GET, &path), http2.get(&url)] {
            let found = answer(request.header("range", &range)).await;
            assert_eq!(found.status, StatusCode::PARTIAL_CONTENT);
            assert!(found.body == content[first..=last], "{range}");
        }
    }
    // Several on one connection, one behind the other, and all at once on several.
    let pulls = (0..16).map(|_| node.get(&path));
    for found in futures_util::future::join_all(pulls).await {
        assert!(found.body == content);
    }
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n");
    let pipelined = format!("{request}\r\n{request}connection: close\r\n\r\n");
    let mut stream = TcpStream::connect(node.server.addresses()[0]).await.unwrap();
    stream.write_all(pipelined.as_bytes()).await.unwrap();
    let mut both = Vec::new();
    stream.read_to_end(&mut both).await.unwrap();
    assert_eq!(bodies_equal_to(&both, content), 2);
    drop(http2);
    node.stop().await;
}

/// How often the content follows the end of a head.
fn bodies_equal_to(answer: &[u8], content: &[u8]) -> usize {
    let mut rest = answer;
    let mut count = 0;
    while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        rest = &rest[end + 4..];
        let Some(after) = rest.strip_prefix(content) else { return count };
        (rest, count) = (after, count + 1);
    }
    count
}
