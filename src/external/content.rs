//! Manifests and blobs, as a registry gives them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use keppel_federation::vocabulary::{Digest, Reference};
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, RANGE,
};
use reqwest::{Method, Response, StatusCode};

use super::exchange::{Request, read_body};
use super::{ExternalClient, ExternalError, Origin};
use crate::model::ManifestKind;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest as it came; nothing of it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalManifest {
    /// What the registry says its digest is, if it says so.
    pub digest: Option<Digest>,
    /// Its media type, without parameters; empty where the registry gave none.
    pub media_type: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a registry says to the question for a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestAnswer {
    /// There is none.
    Absent,
    /// It is still the one that the asker knows.
    Same,
    /// Here it is.
    Found(ExternalManifest),
}

/// A blob on its way.
pub struct ExternalBlob {
    /// The size of the whole blob.
    pub size_bytes: u64,
    /// Where in the blob the bytes begin; 0 where the registry does not give parts.
    pub offset: u64,
    /// The bytes from there on.
    pub bytes: BoxStream<'static, Result<Bytes, ExternalError>>,
}

impl ExternalClient {
    /// What a tag names there, without fetching it; `None`: nothing. Registries with limits do not count this.
    ///
    /// # Errors
    /// [`ExternalError`], also where the registry does not say a digest.
    pub async fn tag_digest(&self, origin: &Origin, path: &str, tag: &str) -> Result<Option<Digest>, ExternalError> {
        let request =
            Request { method: Method::HEAD, path, rest: format!("manifests/{tag}"), headers: manifest_headers() };
        let Some(response) = self.send(origin, &request).await? else { return Ok(None) };
        let digest = digest_of(&response)?;
        digest.map(Some).ok_or_else(|| ExternalError::unusable("it does not say a manifest's digest"))
    }

    /// A manifest; not sent when it is still `known`.
    ///
    /// # Errors
    /// [`ExternalError`].
    pub async fn manifest(
        &self,
        origin: &Origin,
        path: &str,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<ManifestAnswer, ExternalError> {
        let mut headers = manifest_headers();
        if let Some(etag) = known.and_then(|known| HeaderValue::try_from(format!("\"{known}\"")).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let request = Request { method: Method::GET, path, rest: format!("manifests/{reference}"), headers };
        let Some(response) = self.send(origin, &request).await? else { return Ok(ManifestAnswer::Absent) };
        if response.status() == StatusCode::NOT_MODIFIED {
            return match known {
                Some(_) => Ok(ManifestAnswer::Same),
                None => Err(ExternalError::unusable("it answered 304 to one who knows nothing")),
            };
        }
        let digest = digest_of(&response)?;
        let media_type = text_of(&response, &CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
        let limit_bytes = usize::try_from(self.options().manifest_size_max_bytes).unwrap_or(usize::MAX);
        let limit = self.options().answer_timeout;
        let read = tokio::time::timeout(limit, read_body(response, limit_bytes)).await;
        let late = |_| ExternalError::unreachable(format!("a manifest did not arrive within {limit:?}"));
        let bytes = Bytes::from(read.map_err(late)??);
        Ok(ManifestAnswer::Found(ExternalManifest { digest, media_type, bytes }))
    }

    /// Blobs may be asked for although the registry has said that it was asked too often: what it counts may be manifests.
    pub fn spare_blobs(&self, origin: &Origin) {
        self.session(origin).spare_blobs();
    }

    /// The size of a blob in bytes; `None`: there is no such blob.
    ///
    /// # Errors
    /// [`ExternalError`].
    pub async fn blob_size_bytes(
        &self,
        origin: &Origin,
        path: &str,
        digest: &Digest,
    ) -> Result<Option<u64>, ExternalError> {
        let request =
            Request { method: Method::HEAD, path, rest: format!("blobs/{digest}"), headers: HeaderMap::new() };
        let Some(response) = self.send(origin, &request).await? else { return Ok(None) };
        content_length(&response).map(Some)
    }

    /// A blob from an offset on, as far as the registry gives parts; `None`: there is no such blob.
    ///
    /// # Errors
    /// [`ExternalError`].
    pub async fn blob(
        &self,
        origin: &Origin,
        path: &str,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<ExternalBlob>, ExternalError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = HeaderValue::try_from(format!("bytes={offset}-")).ok().filter(|_| offset > 0) {
            headers.insert(RANGE, range);
        }
        let request = Request { method: Method::GET, path, rest: format!("blobs/{digest}"), headers };
        let Some(response) = self.send(origin, &request).await? else { return Ok(None) };
        let (offset, size_bytes) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let told = text_of(&response, &CONTENT_RANGE);
                let range = content_range(told).filter(|(start, _)| *start == offset);
                range.ok_or_else(|| ExternalError::unusable(format!("it answered with the range {told:?}")))?
            }
            _ => (0, content_length(&response)?),
        };
        let bytes = response.bytes_stream().map_err(ExternalError::from).boxed();
        Ok(Some(ExternalBlob { size_bytes, offset, bytes }))
    }

    /// How long a body may stand still.
    pub fn stall_timeout(&self) -> Duration {
        self.options().stall_timeout
    }
}

fn manifest_headers() -> HeaderMap {
    let kinds = ManifestKind::ALL.map(ManifestKind::media_type).join(", ");
    HeaderValue::try_from(kinds).map(|kinds| (ACCEPT, kinds)).into_iter().collect()
}

fn text_of<'a>(response: &'a Response, name: &HeaderName) -> &'a str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn digest_of(response: &Response) -> Result<Option<Digest>, ExternalError> {
    match text_of(response, &CONTENT_DIGEST) {
        "" => Ok(None),
        text => match Digest::parse(text) {
            Ok(digest) => Ok(Some(digest)),
            Err(_) => Err(ExternalError::unusable(format!("{text:?} is no digest"))),
        },
    }
}

/// The announced length, from the header: an answer to HEAD has no body to ask.
fn content_length(response: &Response) -> Result<u64, ExternalError> {
    let length = text_of(response, &CONTENT_LENGTH).parse().ok();
    length.ok_or_else(|| ExternalError::unusable("it does not say how long a blob is"))
}

/// The beginning of a range and the size of the whole, out of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, size): (u64, u64, u64) = (start.parse().ok()?, end.parse().ok()?, size.parse().ok()?);
    // All of the rest: less would have to be asked for again.
    (start <= end && end.checked_add(1)? == size).then_some((start, size))
}
