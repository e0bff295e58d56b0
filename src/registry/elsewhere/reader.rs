//! A blob on its way to a client while it is still on its way here.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::flight::{Flight, PART_BYTES, Progress};
use crate::registry::{Inner, Priority, RegistryError};
use crate::storage::BlobReader;

/// Parts fetched ahead for one client that reads only a part of a blob, or a blob that cannot be kept.
const AHEAD: usize = 8;

/// Bytes of a blob of another region: exactly those asked for, or an error.
pub(in crate::registry) type RemoteReader = BoxStream<'static, Result<Bytes, RegistryError>>;

/// A range of a blob, from where it is soonest to be had.
pub(in crate::registry) struct Source {
    inner: Arc<Inner>,
    flight: Arc<Flight>,
}

enum From {
    /// The flight, as it goes.
    Flight,
    /// What was stored meanwhile.
    Here(Box<BlobReader>),
    /// The other region, part by part: what came first is no longer in memory, or cannot be kept.
    Parts(BoxStream<'static, Result<(u64, Bytes), RegistryError>>),
}

struct State {
    source: Source,
    at: u64,
    end: u64,
    from: From,
}

impl Source {
    pub(in crate::registry) fn new(inner: &Arc<Inner>, flight: &Arc<Flight>) -> Self {
        Self { inner: inner.clone(), flight: flight.clone() }
    }

    /// Reads a range. For the whole blob the flight is started, and keeps it; for less, only what is needed is fetched.
    pub(in crate::registry) fn read(self, range: Range<u64>) -> RemoteReader {
        let is_whole = range.start == 0 && range.end == self.flight.size_bytes();
        let from = match is_whole {
            true => {
                self.flight.start(&self.inner, Priority::Pull);
                From::Flight
            }
            false => From::Parts(self.flight.clone().parts(range.clone(), AHEAD).boxed()),
        };
        let state = State { source: self, at: range.start, end: range.end, from };
        stream::try_unfold(state, State::step).boxed()
    }
}

impl Source {
    /// A range of the blob as it was stored.
    async fn open_here(&self, range: Range<u64>) -> Result<BlobReader, RegistryError> {
        let Self { inner, flight } = self;
        let blob = inner.blob_here(&flight.repository, &flight.digest).await?;
        Ok(inner.storage.open_blob(&flight.repository.account(), &blob.storage_key, &blob.blake3, range).await?)
    }
}

impl State {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>, RegistryError> {
        if self.at == self.end {
            return Ok(None);
        }
        loop {
            match &mut self.from {
                From::Here(reader) => {
                    let bytes = reader.try_next().await?.ok_or(RegistryError::Interrupted)?;
                    return Ok(Some(self.hand_out(bytes)));
                }
                From::Parts(parts) => {
                    let (offset, part) = parts.try_next().await?.ok_or(RegistryError::Interrupted)?;
                    let from = (self.at - offset) as usize;
                    let to = part.len().min((self.end - offset) as usize);
                    return Ok(Some(self.hand_out(part.slice(from..to))));
                }
                From::Flight => {}
            }
            let flight = &self.source.flight;
            let mut progress = flight.progress.subscribe();
            let now = progress.borrow_and_update().clone();
            match now {
                Progress::Stored => {
                    let reader = self.source.open_here(self.at..self.end).await?;
                    self.from = From::Here(Box::new(reader));
                }
                // The end is held back until the digest of the whole is known to be right.
                Progress::Arrived(arrived) if self.at + PART_BYTES < self.end && self.at + PART_BYTES <= arrived => {
                    let part = match flight.recent(self.at) {
                        Some(part) => part,
                        None => flight.fetch(self.at).await?,
                    };
                    return Ok(Some(self.hand_out(part)));
                }
                Progress::Arrived(_) => progress.changed().await.map_err(|_| RegistryError::Interrupted)?,
                Progress::NotKept(_) => {
                    self.from = From::Parts(flight.clone().parts(self.at..self.end, AHEAD).boxed());
                }
                Progress::Wrong => return Err(flight.wrong()),
            }
        }
    }

    fn hand_out(mut self, bytes: Bytes) -> (Bytes, Self) {
        self.at += bytes.len() as u64;
        (bytes, self)
    }
}
