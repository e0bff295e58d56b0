//! What HTTP and TLS read from and write to.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    activity::Activity,
    listener::Stream,
    send_file::{FileSender, is_stand_in},
};

/// How much a closed connection may still send while it reads our last words.
const LINGER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// A stream that reports what it moves, and that on closing reads on for a moment: a peer which is still sending would
/// otherwise get a reset that destroys the answer it has not read yet.
pub(super) struct Transport {
    stream: Stream,
    activity: Arc<Activity>,
    files: Option<FileSender>,
    lingering: bool,
    linger_left_bytes: usize,
}

impl Transport {
    pub(super) fn new(stream: Stream, activity: Arc<Activity>, files: Option<FileSender>) -> Self {
        Self { stream, activity, files, lingering: false, linger_left_bytes: LINGER_MAX_BYTES }
    }

    /// Writes what is at the head of the output: bytes up to the first stand-in, or what that stands for.
    fn poll_write_parts(
        &mut self,
        cx: &mut Context<'_>,
        files: &FileSender,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().take_while(|slice| !is_stand_in(slice)).count();
        let head = slices.first().map(|slice| &**slice).unwrap_or_default();
        match files.part_for(head)? {
            Some(part) => {
                let sent = ready!(self.stream.poll_send_file(cx, &part))?;
                files.sent(sent);
                Poll::Ready(Ok(sent))
            }
            None => {
                slices[..bytes].iter().try_for_each(|slice| files.refuse_copies(slice))?;
                Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..bytes])
            }
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.activity.read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.files.clone() {
            Some(files) => this.poll_write_parts(cx, &files, slices),
            None => Pin::new(&mut this.stream).poll_write_vectored(cx, slices),
        };
        this.activity.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.lingering {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.lingering = true;
            this.activity.linger();
        }
        let mut scratch = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        while this.linger_left_bytes > 0 {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    this.linger_left_bytes = this.linger_left_bytes.saturating_sub(buffer.filled().len());
                }
                // The peer is gone, which is all that was waited for.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
