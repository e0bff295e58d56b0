use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::*;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

/// Answers `/wait` only when it is let go, `/refuse` with 413 without reading, and echoes everything else.
#[derive(Clone, Default)]
struct Gate {
    entered: Arc<Notify>,
    release: Arc<Notify>,
}

impl Service<Request<Incoming>> for Gate {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let gate = self.clone();
        Box::pin(async move {
            match request.uri().path() {
                "/wait" => {
                    gate.entered.notify_one();
                    gate.release.notified().await;
                    Ok(Response::new(Full::from("done")))
                }
                "/refuse" => Ok(Response::builder().status(413).body(Full::from("too large")).unwrap()),
                "/flood" => Ok(Response::new(Full::from(vec![7; 64 << 20]))),
                _ => {
                    let version = format!("{:?}", request.version());
                    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    Ok(Response::builder().header("x-version", version).body(Full::from(body)).unwrap())
                }
            }
        })
    }
}

struct Running {
    server: Server,
    gate: Gate,
    shutdown: CancellationToken,
}

impl Running {
    fn start(options: ServerOptions) -> Self {
        let (gate, shutdown) = (Gate::default(), CancellationToken::new());
        let service = gate.clone();
        let server = Server::spawn(options, shutdown.clone(), async {}, move |_| service.clone()).unwrap();
        Self { server, gate, shutdown }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.addresses()[0])
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.addresses()[0]).await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.server.stopped().await;
    }
}

fn local(options: ServerOptions) -> ServerOptions {
    ServerOptions { listen: vec![Listen::plain(([127, 0, 0, 1], 0).into())], ..options }
}

fn client() -> reqwest::ClientBuilder {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        // Another test of this process may have been first, which is just as well.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy()
}

#[tokio::test]
async fn http1_and_http2_are_served_on_the_same_plain_socket() {
    let running = Running::start(local(ServerOptions::default()));
    let url = running.url("/");
    for (client, version) in [
        (client().http1_only().build().unwrap(), "HTTP/1.1"),
        (client().http2_prior_knowledge().build().unwrap(), "HTTP/2.0"),
    ] {
        let body = vec![b'x'; 3 << 20];
        let answer = client.post(&url).body(body.clone()).send().await.unwrap();
        assert_eq!(answer.headers()["x-version"], version);
        assert_eq!(answer.bytes().await.unwrap(), body);
    }
    running.stop().await;
}

#[tokio::test]
async fn tls_negotiates_http2_and_http1() {
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate_file, key_file) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate_file, pair.cert.pem()).unwrap();
    std::fs::write(&key_file, pair.signing_key.serialize_pem()).unwrap();
    let tls = TlsOptions { certificate_file, key_file, reload_interval: Duration::from_secs(60) };
    let listen = Listen { tls: Some(tls), ..Listen::plain(([127, 0, 0, 1], 0).into()) };
    let running = Running::start(ServerOptions { listen: vec![listen], ..ServerOptions::default() });
    let url = format!("https://localhost:{}/", running.server.addresses()[0].port());
    let root = reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap();
    for (client, version) in [
        (client().tls_certs_only([root.clone()]), "HTTP/2.0"),
        (client().tls_certs_only([root.clone()]).http1_only(), "HTTP/1.1"),
    ] {
        let answer = client.build().unwrap().get(&url).send().await.unwrap();
        assert_eq!(answer.headers()["x-version"], version);
    }
    running.stop().await;
}

#[tokio::test]
async fn unix_socket_is_served_and_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = Listen { address: ListenAddress::Unix(path.clone()), tls: None };
    let running = Running::start(ServerOptions { listen: vec![listen], ..ServerOptions::default() });
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{answer}");
    running.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn shutdown_closes_the_socket_at_once_and_lets_running_requests_finish() {
    let running = Running::start(local(ServerOptions::default()));
    let url = running.url("/wait");
    let idle = running.connect().await;
    let request = tokio::spawn(async move { client().build().unwrap().get(url).send().await.unwrap().text().await });
    running.gate.entered.notified().await;
    let address = running.server.addresses()[0];
    running.shutdown.cancel();
    let release = running.gate.release.clone();
    let stopped = tokio::spawn(running.server.stopped());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!stopped.is_finished());
    release.notify_one();
    assert_eq!(request.await.unwrap().unwrap(), "done");
    stopped.await.unwrap();
    drop(idle);
}

#[tokio::test]
async fn requests_that_outlive_the_grace_period_are_cut_off() {
    let grace = Duration::from_millis(100);
    let running = Running::start(local(ServerOptions { shutdown_grace: grace, ..ServerOptions::default() }));
    let url = running.url("/wait");
    let request = tokio::spawn(async move { client().build().unwrap().get(url).send().await });
    running.gate.entered.notified().await;
    running.stop().await;
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_ends_the_connection() {
    let header_read_timeout = Duration::from_millis(200);
    let running = Running::start(local(ServerOptions { header_read_timeout, ..ServerOptions::default() }));
    let mut stream = running.connect().await;
    let started = Instant::now();
    let mut sink = [0; 16];
    // A byte now and then must not keep it alive.
    let ended = loop {
        if stream.write_all(b"G").await.is_err() {
            break true;
        }
        match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut sink)).await {
            Ok(_) => break true,
            Err(_) if started.elapsed() > Duration::from_secs(20) => break false,
            Err(_) => {}
        }
    };
    assert!(ended);
    running.stop().await;
}

#[tokio::test]
async fn a_reader_that_stalls_is_dropped() {
    let (body_idle_timeout, shutdown_grace) = (Duration::from_millis(200), Duration::from_secs(600));
    let options = ServerOptions { body_idle_timeout, shutdown_grace, ..ServerOptions::default() };
    let running = Running::start(local(options));
    let mut stream = running.connect().await;
    stream.write_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).await.unwrap();
    // Reads no more: the server gives up by itself, long before the grace period would end.
    tokio::time::timeout(Duration::from_secs(60), running.stop()).await.expect("the stalled connection is still there");
    drop(stream);
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let running = Running::start(local(ServerOptions::default()));
    let mut stream = running.connect().await;
    stream.write_all(b"PUT /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 16777216\r\n\r\n").await.unwrap();
    // Sends everything before it reads: without lingering, this ends in a reset.
    stream.write_all(&vec![1; 16 << 20]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.ends_with("too large"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_gets_503() {
    let running = Running::start(local(ServerOptions { connections_max: 1, ..ServerOptions::default() }));
    let mut first = running.connect().await;
    first.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let mut answer = String::new();
    running.connect().await.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    drop(first);
    running.stop().await;
}

#[tokio::test]
async fn expect_continue_is_honoured_and_skipped_when_the_answer_comes_first() {
    let running = Running::start(local(ServerOptions::default()));
    let mut stream = running.connect().await;
    let head = b"PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut first = [0; 21];
    stream.read_exact(&mut first).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 100 Continue"));
    stream.write_all(b"ok").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("ok"), "{rest}");

    let mut stream = running.connect().await;
    let head = b"PUT /refuse HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
    drop(stream);
    running.stop().await;
}
