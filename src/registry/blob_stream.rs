//! The bytes of a blob on their way out, wherever they come from and whatever happens to them meanwhile.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _};

use super::blobs::BlobInfo;
use super::elsewhere::RemoteReader;
use super::{Registry, RegistryError};
use crate::storage::{BlobReader, FilePart};

/// Bytes of a blob: as many as its range has, all of them right, or an error.
///
/// When what is stored here turns out to be lost or wrong, the rest comes from wherever else it is.
pub struct BlobStream {
    from: From,
    end: u64,
    left_bytes: u64,
}

enum From {
    /// The storage here.
    Here(Box<Here>),
    /// Another region or registry.
    OnTheWay(RemoteReader),
    /// It is being found out where the rest is.
    Recovering(BoxFuture<'static, Result<BlobStream, RegistryError>>),
}

struct Here {
    reader: BlobReader,
    blob: BlobInfo,
    registry: Registry,
}

impl BlobStream {
    pub(super) fn here(registry: &Registry, blob: &BlobInfo, reader: BlobReader, range: Range<u64>) -> Self {
        let from = From::Here(Box::new(Here { reader, blob: blob.clone(), registry: registry.clone() }));
        Self { from, end: range.end, left_bytes: range.end - range.start }
    }

    pub(super) fn on_the_way(reader: RemoteReader, range: Range<u64>) -> Self {
        Self { from: From::OnTheWay(reader), end: range.end, left_bytes: range.end - range.start }
    }

    /// How many bytes are still to come.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes
    }

    /// See [`BlobReader::take_file_part`].
    pub fn take_file_part(&mut self, size_max_bytes: usize) -> Option<FilePart> {
        let From::Here(here) = &mut self.from else { return None };
        let part = here.reader.take_file_part(size_max_bytes)?;
        self.left_bytes = self.left_bytes.saturating_sub(part.size_bytes as u64);
        Some(part)
    }

    fn hand_out(&mut self, bytes: Bytes) -> Poll<Option<Result<Bytes, RegistryError>>> {
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len() as u64);
        Poll::Ready(Some(Ok(bytes)))
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match &mut this.from {
                From::Here(here) => match ready!(here.reader.poll_next_unpin(context)) {
                    Some(Ok(bytes)) => return this.hand_out(bytes),
                    Some(Err(error)) if error.is_damage() && this.left_bytes > 0 => {
                        let (registry, blob) = (here.registry.clone(), here.blob.clone());
                        let rest = this.end - this.left_bytes..this.end;
                        let recovering = async move { registry.recover_blob(&blob, rest, error).await };
                        this.from = From::Recovering(recovering.boxed());
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    None => return Poll::Ready(None),
                },
                From::Recovering(recovering) => match ready!(recovering.poll_unpin(context)) {
                    Ok(rest) => this.from = rest.from,
                    Err(error) => {
                        this.from = From::OnTheWay(futures_util::stream::empty().boxed());
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                From::OnTheWay(reader) => match ready!(reader.poll_next_unpin(context)) {
                    Some(Ok(bytes)) => return this.hand_out(bytes),
                    ended => return Poll::Ready(ended),
                },
            }
        }
    }
}
