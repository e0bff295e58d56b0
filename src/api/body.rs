//! Bodies in both directions.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::HeaderValue;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{
    error::{ApiError, chain},
    manifest_room::ManifestPlace,
    serve::{FileSender, PART_MAX_BYTES},
};
use crate::registry::{BlobStream, BodyError};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an answer carries.
pub(crate) enum Body {
    Empty,
    /// Bytes that are in memory; they are shared, not copied.
    Full(Bytes),
    /// A blob on its way from storage.
    Blob(BlobBody),
    /// Whatever a route outside of the distribution API made.
    Routed(axum::body::Body),
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Full(text.into())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Blob(blob) => blob.poll_bytes(cx).map(|next| next.map(|result| result.map(Frame::data))),
            Self::Routed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Blob(blob) => blob.left_bytes == 0,
            Self::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Blob(blob) => SizeHint::with_exact(blob.left_bytes),
            Self::Routed(body) => body.size_hint(),
        }
    }
}

/// Part of a blob being read. Gives exactly the promised number of bytes or an error, which ends the connection so
/// that the client notices.
pub(crate) struct BlobBody {
    reader: BlobStream,
    files: Option<FileSender>,
    left_bytes: u64,
    sent: metrics::Counter,
    request_id: HeaderValue,
}

impl BlobBody {
    /// `files` takes what need not be read, where there is such a thing.
    pub(crate) fn new(
        reader: BlobStream,
        files: Option<FileSender>,
        sent: metrics::Counter,
        request_id: HeaderValue,
    ) -> Self {
        Self { left_bytes: reader.left_bytes(), reader, files, sent, request_id }
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if self.left_bytes == 0 {
            return Poll::Ready(None);
        }
        if let Some(files) = &self.files
            && let Some(part) = self.reader.take_file_part(PART_MAX_BYTES)
        {
            self.left_bytes -= part.size_bytes as u64;
            self.sent.increment(part.size_bytes as u64);
            return Poll::Ready(Some(Ok(files.stand_in(part))));
        }
        let failure: BoxError = match ready!(self.reader.poll_next_unpin(cx)) {
            Some(Ok(bytes)) if bytes.len() as u64 <= self.left_bytes => {
                self.left_bytes -= bytes.len() as u64;
                self.sent.increment(bytes.len() as u64);
                return Poll::Ready(Some(Ok(bytes)));
            }
            Some(Ok(_)) => "the storage gave more than was asked for".into(),
            None => format!("the storage ended {} bytes early", self.left_bytes).into(),
            Some(Err(error)) => error.into(),
        };
        let request_id = self.request_id.to_str().unwrap_or_default();
        tracing::error!(cause = chain(&*failure), request_id, "reading a blob failed in the midst of an answer");
        self.left_bytes = 0;
        Poll::Ready(Some(Err(failure)))
    }
}

/// Why there is no [`collect_short`] body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShortBodyError {
    /// It is longer than it may be; what is left of it was not read.
    TooLong,
    /// It ended early.
    Broken,
    /// It did not arrive in time.
    Late,
}

/// All of a body outside of the distribution API. What is announced as too long is not waited for.
pub(crate) async fn collect_short(
    body: axum::body::Body,
    limit_bytes: usize,
    timeout: Duration,
) -> Result<Bytes, ShortBodyError> {
    if body.size_hint().lower() > limit_bytes as u64 {
        return Err(ShortBodyError::TooLong);
    }
    let collecting = async {
        let (mut pieces, mut all) = (body.into_data_stream(), BytesMut::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| ShortBodyError::Broken)?;
            if all.len() + piece.len() > limit_bytes {
                return Err(ShortBodyError::TooLong);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    };
    tokio::time::timeout(timeout, collecting).await.unwrap_or(Err(ShortBodyError::Late))
}

/// A request's body as the registry takes it: a stream with a deadline for each wait.
pub(crate) struct RequestBody {
    incoming: Incoming,
    end: BodyEnd,
    idle_timeout: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    received: metrics::Counter,
}

/// Whether a request's body was read to its end, for those who answer it.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyEnd(Arc<AtomicBool>);

impl BodyEnd {
    fn note(&self, reached: bool) {
        if reached {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a body could not be collected.
pub(crate) enum CollectError {
    /// The client vanished or stalled.
    Body(BodyError),
    /// There is no memory for it now.
    NoRoom(ApiError),
}

impl From<BodyError> for CollectError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

/// Bytes that count as progress within one idle timeout.
const PROGRESS_MIN_BYTES: usize = 1024;

impl RequestBody {
    /// `end` is told when all of it was read.
    pub(crate) fn new(incoming: Incoming, end: BodyEnd, idle_timeout: Duration, received: metrics::Counter) -> Self {
        end.note(incoming.is_end_stream());
        Self { incoming, end, idle_timeout, deadline: None, waiting: false, received }
    }

    /// The length the client declared, if any.
    pub(crate) fn declared_bytes(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// All of it, or `None` when it is longer than the limit. Takes room for what arrives.
    ///
    /// # Errors
    /// When the client vanishes or stalls, or there is no room.
    pub(crate) async fn collect(
        mut self,
        limit_bytes: u64,
        place: &mut ManifestPlace<'_>,
    ) -> Result<Option<Bytes>, CollectError> {
        let declared = self.declared_bytes();
        if declared.is_some_and(|bytes| bytes > limit_bytes) {
            return Ok(None);
        }
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(bytes) = self.next().await.transpose()? {
            let all = first.len() + rest.len() + bytes.len();
            if all as u64 > limit_bytes {
                return Ok(None);
            }
            place.grow(all).await.map_err(CollectError::NoRoom)?;
            match first.is_empty() && rest.is_empty() {
                true => first = bytes,
                false => {
                    if rest.is_empty() {
                        // Untouched memory costs nothing until it is filled.
                        rest.reserve(declared.unwrap_or(0).min(limit_bytes) as usize);
                        rest.extend_from_slice(&std::mem::take(&mut first));
                    }
                    rest.extend_from_slice(&bytes);
                }
            }
        }
        Ok(Some(if rest.is_empty() { first } else { rest.freeze() }))
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Ready(None) => {
                    this.end.note(true);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(BodyError::Disconnected(chain(&error)))));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers say nothing here.
                    this.end.note(this.incoming.is_end_stream());
                    let Ok(bytes) = frame.into_data() else { continue };
                    this.received.increment(bytes.len() as u64);
                    this.waiting &= bytes.len() < PROGRESS_MIN_BYTES;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Pending => {
                    let timeout = this.idle_timeout;
                    let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                    if !std::mem::replace(&mut this.waiting, true) {
                        deadline.as_mut().reset(Instant::now() + timeout);
                    }
                    ready!(deadline.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
            }
        }
    }
}
