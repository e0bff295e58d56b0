//! A registry outside the federation that does exactly what a test wants, well-behaved or not.
//!
//! It speaks HTTP by hand, one request a connection, so that it can break every rule of it, and writes down all that it
//! is asked.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::images::{Content, Image, Index, sha256};

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    /// A header's value, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// An answer. The length is announced as it is, unless there is a header that says otherwise.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// After so many bytes of the body the connection is cut.
    pub cut_after: Option<usize>,
    /// After so many bytes of the body nothing comes until the test says `resume`.
    pub stall_after: Option<usize>,
    /// No length, and the body again and again until the client goes away.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Vec::new(), cut_after: None, stall_after: None, endless: false }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }
}

type Rule = Box<dyn Fn(&Asked, Reply) -> Reply + Send>;

#[derive(Default)]
struct State {
    manifests: HashMap<String, Content>,
    blobs: HashMap<String, Vec<u8>>,
    asked: Vec<Asked>,
    rule: Option<Rule>,
}

/// The registry. It goes with its value.
pub struct Upstream {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    resume: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// Starts one that is empty and behaves well. Must be called within a Tokio runtime.
    pub async fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (state, resume) = (Arc::new(Mutex::new(State::default())), watch::Sender::new(false));
        let (shared, go_on) = (state.clone(), resume.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (state, go_on) = (shared.clone(), go_on.subscribe());
                tokio::spawn(async move { serve(stream, &state, go_on).await });
            }
        });
        Upstream { address, state, resume, task }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Puts an image under a reference.
    pub fn add_image(&self, repository: &str, reference: &str, image: &Image) {
        for blob in image.blobs() {
            self.add_blob(&blob.bytes);
        }
        self.add_manifest(repository, reference, &image.manifest);
    }

    pub fn add_index(&self, repository: &str, reference: &str, index: &Index) {
        for image in &index.images {
            self.add_image(repository, &image.digest(), image);
        }
        self.add_manifest(repository, reference, &index.manifest);
    }

    /// Puts a manifest under a reference and its digest.
    pub fn add_manifest(&self, repository: &str, reference: &str, manifest: &Content) {
        for reference in [reference, &manifest.digest()] {
            self.lock().manifests.insert(format!("{repository}/manifests/{reference}"), manifest.clone());
        }
    }

    pub fn remove_manifest(&self, repository: &str, reference: &str) {
        self.lock().manifests.remove(&format!("{repository}/manifests/{reference}"));
    }

    /// Puts a blob into all repositories and gives its digest.
    pub fn add_blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        self.lock().blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Changes answers from now on: gets the request and the good answer.
    pub fn rule(&self, rule: impl Fn(&Asked, Reply) -> Reply + Send + 'static) {
        self.lock().rule = Some(Box::new(rule));
    }

    /// From now on it behaves well again.
    pub fn behave(&self) {
        self.lock().rule = None;
    }

    /// Lets bodies go on that stand still.
    pub fn resume(&self) {
        self.resume.send_replace(true);
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How many requests were like this.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.lock().asked.iter().filter(|asked| asked.is(method, part)).count()
    }

    /// Waits until so many requests were like this.
    pub async fn wait_for(&self, method: &str, part: &str, count: usize) {
        let start = std::time::Instant::now();
        while self.count(method, part) < count {
            assert!(start.elapsed() < Duration::from_secs(30), "not asked for {method} {part}: {:?}", self.asked());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the head of a request.
async fn read_request(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        head.push(byte);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let header =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Some(Asked { method, path, headers: lines.filter_map(header).collect() })
}

async fn serve(mut stream: TcpStream, state: &Mutex<State>, mut go_on: watch::Receiver<bool>) {
    let Some(asked) = read_request(&mut stream).await else { return };
    let reply = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(asked.clone());
        let reply = state.answer(&asked);
        match &state.rule {
            Some(rule) => rule(&asked, reply),
            None => reply,
        }
    };
    let mut head = format!("HTTP/1.1 {} Whatever\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.endless && !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() || asked.method == "HEAD" {
        return;
    }
    let mut sent = 0;
    if let Some(stall) = reply.stall_after {
        if stream.write_all(&reply.body[..stall]).await.is_err() {
            return;
        }
        let _ = stream.flush().await;
        sent = stall;
        // The client going away ends the wait as well.
        let mut nothing = [0];
        tokio::select! {
            _ = go_on.wait_for(|go_on| *go_on) => {}
            _ = stream.read(&mut nothing) => return,
        }
    }
    let end = reply.cut_after.unwrap_or(reply.body.len());
    while stream.write_all(&reply.body[sent.min(end)..end]).await.is_ok() && reply.endless {
        sent = 0;
    }
    let _ = stream.shutdown().await;
}

impl State {
    /// What a good registry answers.
    fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.trim_start_matches("/v2/");
        if let Some(manifest) = self.manifests.get(path) {
            let etag = format!("\"{}\"", manifest.digest());
            let reply = Reply::new(200)
                .with("content-type", &manifest.media_type)
                .with("docker-content-digest", manifest.digest())
                .with("etag", &etag);
            return match asked.header("if-none-match") == etag {
                true => Reply { status: 304, ..reply },
                false => reply.body(manifest.bytes.clone()),
            };
        }
        let blob = path.split_once("/blobs/").and_then(|(_, digest)| self.blobs.get(digest));
        let Some(blob) = blob else { return Reply::new(404).body(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#) };
        let start = asked.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        match start.and_then(|start| start.parse::<usize>().ok()) {
            Some(start) if start < blob.len() => {
                let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
                Reply::new(206).with("content-range", range).body(&blob[start..])
            }
            Some(_) => Reply::new(416),
            None => Reply::new(200).body(blob.clone()),
        }
    }
}
