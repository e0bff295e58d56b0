//! What the HTTP library answers by itself, to requests that it cannot read, gets the headers that every answer has.
//!
//! It offers no place to add them, so they are added to the bytes. These bytes are told from those of an answer of ours by
//! when they are written: when all answers of ours have been written and flushed, and no request has begun since. What
//! somebody stored here, which may look like the head of an answer, is never written at such a time.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;

/// A stream on which such answers say the address of the client.
pub(super) struct OwnWords<IO> {
    stream: IO,
    activity: Arc<Activity>,
    client: HeaderValue,
    /// How many requests had begun when all of our answers were flushed; `None`: they are not.
    flushed: Option<u64>,
    /// An answer that is being written, and how many bytes of the library's it stands for.
    words: Option<Words>,
}

struct Words {
    bytes: Vec<u8>,
    written: usize,
    stands_for: usize,
}

impl<IO> OwnWords<IO> {
    pub(super) fn new(stream: IO, activity: Arc<Activity>, client: HeaderValue) -> Self {
        Self { stream, activity, client, flushed: Some(0), words: None }
    }

    /// The answer with our headers, if these bytes begin with one of the library's own.
    fn words(&self, slices: &[IoSlice<'_>]) -> Option<Words> {
        if self.flushed != Some(self.activity.requests()) {
            return None;
        }
        let head = slices.iter().find(|slice| !slice.is_empty())?;
        // HTTP/2 has frames here.
        if !head.starts_with(b"HTTP/1.") {
            return None;
        }
        let end = head.windows(4).position(|window| window == b"\r\n\r\n")? + 2;
        let mut bytes = head[..end].to_vec();
        bytes.extend_from_slice(b"x-keppel-your-ip: ");
        bytes.extend_from_slice(self.client.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&head[end..]);
        Some(Words { bytes, written: 0, stands_for: head.len() })
    }
}

impl<IO: AsyncWrite + Unpin> OwnWords<IO> {
    fn poll_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(words) = &mut self.words else { return Poll::Ready(Ok(0)) };
        while words.written < words.bytes.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &words.bytes[words.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            words.written += written;
        }
        let stands_for = words.stands_for;
        self.words = None;
        Poll::Ready(Ok(stands_for))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for OwnWords<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for OwnWords<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.words.is_none() {
            this.words = this.words(slices);
        }
        // From here on, until the next flush, there may be bytes of ours on their way.
        this.flushed = None;
        match this.words {
            Some(_) => this.poll_words(cx),
            None => Pin::new(&mut this.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever calls this has nothing left to be written.
        this.flushed = this.activity.answered();
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    const COMPLETE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nx-keppel-your-ip: 192.0.2.1\r\n\r\n";

    /// Through a pipe that takes few bytes at a time.
    fn words() -> (OwnWords<DuplexStream>, DuplexStream, Arc<Activity>) {
        let (stream, other) = tokio::io::duplex(7);
        let activity = Arc::new(Activity::new());
        (OwnWords::new(stream, activity.clone(), HeaderValue::from_static("192.0.2.1")), other, activity)
    }

    async fn written(mut words: OwnWords<DuplexStream>, mut other: DuplexStream, bytes: &'static [u8]) -> Vec<u8> {
        let write = tokio::spawn(async move {
            words.write_all(bytes).await.unwrap();
            words.flush().await.unwrap();
        });
        let mut all = Vec::new();
        other.read_to_end(&mut all).await.unwrap();
        write.await.unwrap();
        all
    }

    #[tokio::test]
    async fn an_answer_of_the_library_is_completed_however_few_bytes_go_at_a_time() {
        let (words, other, _) = words();
        assert_eq!(written(words, other, REFUSAL).await, COMPLETE);
    }

    #[tokio::test]
    async fn after_all_of_our_answers_were_flushed_too() {
        let (mut words, mut other, activity) = words();
        let guard = activity.begin_request(false);
        words.write_all(b"answer").await.unwrap();
        drop(guard);
        words.flush().await.unwrap();
        other.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(written(words, other, REFUSAL).await, COMPLETE);
    }

    #[tokio::test]
    async fn what_may_be_ours_is_left_as_it_is() {
        // Nothing has been flushed since.
        let (mut words_of, mut other, activity) = words();
        drop(activity.begin_request(false));
        words_of.write_all(b"answer").await.unwrap();
        other.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(written(words_of, other, REFUSAL).await, REFUSAL);
        // A request has begun since, whether it has been answered or not.
        let (mut words_of, other, activity) = words();
        words_of.flush().await.unwrap();
        drop(activity.begin_request(false));
        assert_eq!(written(words_of, other, REFUSAL).await, REFUSAL);
        // An answer was being sent when what there was of it was flushed.
        let (mut words_of, other, activity) = words();
        let guard = activity.begin_request(false);
        let body = guard.answered();
        drop(guard);
        words_of.flush().await.unwrap();
        drop(body);
        assert_eq!(written(words_of, other, REFUSAL).await, REFUSAL);
    }

    #[tokio::test]
    async fn frames_of_http2_are_left_as_they_are() {
        const FRAME: &[u8] = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00\r\n\r\n";
        let (words, other, _) = words();
        assert_eq!(written(words, other, FRAME).await, FRAME);
    }
}
