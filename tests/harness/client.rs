//! A small registry client, for saying exactly what goes over the wire and seeing exactly what comes back.

use std::time::Duration;

use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap, LOCATION},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::images::{Artifact, Content, Image, Index, sha256};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Talks to one registry and follows no redirects.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// `base` is a URL without a path, such as `http://127.0.0.1:5000`.
    pub fn new(base: &str) -> Client {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_LIMIT)
            .no_proxy()
            .build()
            .expect("an HTTP client can be made");
        Client { http, base: base.to_owned() }
    }

    /// A request to a path or a whole URL (as `Location` may give), not sent yet.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with('/') { format!("{}{path}", self.base) } else { path.to_owned() };
        self.http.request(method, url)
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        send(self.request(Method::HEAD, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str) -> Answer {
        send(self.request(Method::POST, path).header("Content-Length", "0")).await
    }

    /// A GET with one more header.
    pub async fn get_with(&self, path: &str, header: &str, value: &str) -> Answer {
        send(self.request(Method::GET, path).header(header, value)).await
    }

    /// Opens an upload session and returns its location.
    pub async fn open_upload(&self, repository: &str) -> String {
        self.post(&format!("/v2/{repository}/blobs/uploads/")).await.expect(202).location()
    }

    /// Sends a chunk without saying where it belongs, as Docker does.
    pub async fn stream(&self, location: &str, bytes: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(Method::PATCH, location).header(CONTENT_TYPE, "application/octet-stream");
        send(request.body(bytes)).await
    }

    /// Sends a chunk that begins at byte `from`.
    pub async fn chunk(&self, location: &str, from: usize, bytes: &[u8]) -> Answer {
        let range = format!("{from}-{}", (from + bytes.len()).saturating_sub(1));
        let request = self.request(Method::PATCH, location).header(CONTENT_TYPE, "application/octet-stream");
        send(request.header("Content-Range", range).body(bytes.to_vec())).await
    }

    /// Ends an upload, with a last chunk that may be empty.
    pub async fn close_upload(&self, location: &str, digest: &str, bytes: &[u8]) -> Answer {
        let joint = if location.contains('?') { '&' } else { '?' };
        let request = self.request(Method::PUT, &format!("{location}{joint}digest={digest}"));
        send(request.header(CONTENT_TYPE, "application/octet-stream").body(bytes.to_vec())).await
    }

    /// Uploads a blob under its sha256 digest (POST, PUT) and returns the digest.
    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let location = self.open_upload(repository).await;
        let digest = sha256(bytes);
        self.close_upload(&location, &digest, bytes).await.expect(201);
        digest
    }

    pub async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Content) -> Answer {
        let request = self.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        send(request.header(CONTENT_TYPE, &manifest.media_type).body(manifest.bytes.clone())).await
    }

    /// Pushes an image with its blobs, under a tag or its digest.
    pub async fn push_image(&self, repository: &str, reference: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(repository, &blob.bytes).await;
        }
        self.put_manifest(repository, reference, &image.manifest).await.expect(201);
    }

    /// Pushes an index, its images first.
    pub async fn push_index(&self, repository: &str, reference: &str, index: &Index) {
        for image in &index.images {
            self.push_image(repository, &image.digest(), image).await;
        }
        self.put_manifest(repository, reference, &index.manifest).await.expect(201);
    }

    /// Pushes an artifact by digest and returns the answer to the manifest.
    pub async fn push_artifact(&self, repository: &str, artifact: &Artifact) -> Answer {
        for blob in &artifact.blobs {
            self.push_blob(repository, &blob.bytes).await;
        }
        self.put_manifest(repository, &artifact.manifest.digest(), &artifact.manifest).await.expect(201)
    }

    /// Fetches a manifest and fails unless it is exactly this one.
    pub async fn assert_manifest(&self, repository: &str, reference: &str, manifest: &Content) {
        let answer = self.get(&format!("/v2/{repository}/manifests/{reference}")).await.expect(200);
        assert_eq!(answer.body, manifest.bytes, "{repository}:{reference}");
        assert_eq!(answer.header("content-type"), manifest.media_type);
        assert_eq!(answer.header("docker-content-digest"), manifest.digest());
    }

    /// Fetches an image with all its blobs and fails unless every byte is right.
    pub async fn assert_image(&self, repository: &str, reference: &str, image: &Image) {
        self.assert_manifest(repository, reference, &image.manifest).await;
        for blob in image.blobs() {
            let answer = self.get(&format!("/v2/{repository}/blobs/{}", blob.digest())).await.expect(200);
            assert_eq!(sha256(&answer.body), blob.digest());
        }
    }

    /// The tags of a repository.
    pub async fn tags(&self, repository: &str) -> Vec<String> {
        strings(&self.get(&format!("/v2/{repository}/tags/list")).await.expect(200).json()["tags"])
    }

    /// A TCP connection for saying what no HTTP library would.
    pub async fn connect(&self) -> TcpStream {
        let address = self.base.trim_start_matches("http://");
        TcpStream::connect(address).await.expect("the server accepts connections")
    }

    /// Sends raw bytes on a connection of their own and returns all that comes back until the server closes it.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The server may refuse and close before it has read everything; what it says is then still to be read.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = timeout(REQUEST_LIMIT, stream.read_to_end(&mut answer)).await;
        read.expect("the server closes the connection in time").ok();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Sends a request that must get an answer of some kind.
pub async fn send(request: RequestBuilder) -> Answer {
    try_send(request).await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
}

/// Sends a request whose server may go away in between.
pub async fn try_send(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let (client, request) = request.build_split();
    let request = request?;
    let asked = format!("{} {}", request.method(), request.url());
    let response = client.execute(request).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Answer { asked, status, headers, body: response.bytes().await?.to_vec() })
}

/// What the server answered.
#[derive(Debug)]
pub struct Answer {
    /// Method and URL of the request, for messages.
    pub asked: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// Fails, showing the whole answer, unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}\n{:?}\n{}", self.asked, self.headers, self.text());
        self
    }

    /// Fails unless this is an OCI error document with this status and, among its errors, this code.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status);
        assert!(answer.codes().iter().any(|found| found == code), "{}: no {code} in {}", answer.asked, answer.text());
        answer
    }

    /// A header's value, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or(""))
    }

    pub fn location(&self) -> String {
        let location = self.header(LOCATION.as_str());
        assert!(!location.is_empty(), "{}: no Location in {:?}", self.asked, self.headers);
        location.to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.asked, self.text()))
    }

    /// The first message of an OCI error document.
    #[track_caller]
    pub fn message(&self) -> String {
        self.codes();
        self.json()["errors"][0]["message"].as_str().expect("a message is text").to_owned()
    }

    /// The codes of an OCI error document; fails when the answer is none.
    #[track_caller]
    pub fn codes(&self) -> Vec<String> {
        let kind = self.header("content-type");
        assert!(kind.starts_with("application/json"), "{}: errors are JSON, not {kind:?}: {}", self.asked, self.text());
        let document = self.json();
        let errors = document["errors"].as_array().unwrap_or_else(|| panic!("{}: no errors in {document}", self.asked));
        assert!(!errors.is_empty(), "{}: an empty list of errors", self.asked);
        errors
            .iter()
            .map(|error| {
                assert!(error["message"].is_string(), "{}: an error without a message: {error}", self.asked);
                error["code"].as_str().expect("an error has a code").to_owned()
            })
            .collect()
    }

    /// The target of `Link: <…>; rel="next"`.
    pub fn next_page(&self) -> Option<String> {
        let link = self.headers.get("link")?.to_str().expect("Link is text");
        let (target, relation) = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("Link has <…>");
        assert!(relation.contains("rel=\"next\"") || relation.contains("rel=next"), "{link}");
        Some(target.to_owned())
    }
}

/// The path of a location, which may be a whole URL, for requests that are written by hand.
#[track_caller]
pub fn path_of(location: &str) -> &str {
    location.find("/v2/").map(|at| &location[at..]).expect("the location is below /v2/")
}

/// A JSON list of strings.
#[track_caller]
pub fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap_or_else(|| panic!("not a list: {value}"));
    list.iter().map(|item| item.as_str().expect("a list of strings").to_owned()).collect()
}
