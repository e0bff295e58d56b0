//! A blob on its way to a client while it is still on its way here.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::board::PART_BYTES;
use super::fetching;
use super::flight::{Flight, Progress};
use crate::registry::{Inner, Priority, RegistryError};
use crate::storage::BlobReader;

/// Parts fetched ahead for one client that reads only a part of a blob, or a blob that cannot be kept.
const AHEAD: u64 = 8;
/// What is held back of a blob until the digest of the whole is known to be right.
const HELD_BACK_BYTES: u64 = PART_BYTES;

/// Bytes of a blob of another region: exactly those asked for, or an error.
pub(in crate::registry) type RemoteReader = BoxStream<'static, Result<Bytes, RegistryError>>;

/// A range of a blob, from where it is soonest to be had.
pub(in crate::registry) struct Source {
    inner: Arc<Inner>,
    flight: Arc<Flight>,
}

type Parts = BoxStream<'static, Result<(u64, Bytes), RegistryError>>;

enum From {
    /// The flight, as it goes; or all of it, once it is stored.
    Flight,
    /// What was stored meanwhile.
    Here(Box<BlobReader>),
    /// What the flight has of a part of the blob, and the rest from other nodes.
    Range,
    /// Other nodes, part by part.
    Parts(Parts),
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

    /// Reads a range. For the whole blob the flight is started, and keeps it; for less, only what is needed is fetched,
    /// unless nothing but the digest of the whole tells whether it is right.
    pub(in crate::registry) fn read(self, range: Range<u64>) -> RemoteReader {
        let is_whole = range.start == 0 && range.end == self.flight.size_bytes();
        let from = match is_whole || !self.flight.is_confirmed() {
            true => {
                self.flight.start(&self.inner, Priority::Pull);
                From::Flight
            }
            false => From::Range,
        };
        let state = State { source: self, at: range.start, end: range.end, from };
        stream::try_unfold(state, State::step).boxed()
    }

    /// A range of the blob as it was stored.
    async fn open_here(&self, range: Range<u64>) -> Result<BlobReader, RegistryError> {
        let Self { inner, flight } = self;
        let blob = inner.blob_here(&flight.repository, &flight.digest).await?;
        Ok(inner.storage.open_blob(&flight.repository.account(), &blob.storage_key, &blob.blake3, range).await?)
    }

    fn parts(&self, range: Range<u64>) -> Parts {
        fetching::parts(self.flight.clone(), range, AHEAD).boxed()
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
                From::Range => {
                    let flight = self.source.flight.clone();
                    match arrived(&flight, self.at, flight.arrived_bytes().min(self.end)).await {
                        Some(bytes) => return Ok(Some(self.hand_out(bytes))),
                        None => self.from = From::Parts(self.source.parts(self.at..self.end)),
                    }
                    continue;
                }
                From::Flight => {}
            }
            let flight = self.source.flight.clone();
            let mut progress = flight.progress.subscribe();
            let now = progress.borrow_and_update().clone();
            let ready = match now {
                Progress::Right => self.end,
                Progress::Arrived(bytes) => {
                    let limit = flight.size_bytes().saturating_sub(HELD_BACK_BYTES).min(self.end);
                    if flight.is_confirmed() { flight.with_beginning(bytes).min(limit) } else { 0 }
                }
                Progress::Stored => {
                    self.from = match self.source.open_here(self.at..self.end).await {
                        Ok(reader) => From::Here(Box::new(reader)),
                        // It has left again, as what was pulled does, while its client was slow.
                        Err(RegistryError::BlobUnknown { .. }) => From::Parts(self.source.parts(self.at..self.end)),
                        Err(error) => return Err(error),
                    };
                    continue;
                }
                Progress::NotKept(reason) => match flight.is_confirmed() {
                    true => {
                        self.from = From::Parts(self.source.parts(self.at..self.end));
                        continue;
                    }
                    false => return Err(flight.source.unusable(&flight.repository, &reason)),
                },
                Progress::Wrong => return Err(flight.wrong()),
            };
            if self.at < ready {
                let bytes = match arrived(&flight, self.at, ready).await {
                    Some(bytes) => bytes,
                    None => {
                        let parts = self.source.parts(self.at..self.at + 1);
                        fetch_one(parts, self.at, ready).await?
                    }
                };
                return Ok(Some(self.hand_out(bytes)));
            }
            progress.changed().await.map_err(|_| RegistryError::Interrupted)?;
        }
    }

    fn hand_out(mut self, bytes: Bytes) -> (Bytes, Self) {
        self.at += bytes.len() as u64;
        (bytes, self)
    }
}

/// Bytes from `at` up to `ready` that the flight has.
async fn arrived(flight: &Flight, at: u64, ready: u64) -> Option<Bytes> {
    let left_bytes = ready.checked_sub(at).filter(|left| *left > 0)?;
    flight.read_arrived(at, left_bytes.min(PART_BYTES)).await
}

/// Bytes that are neither in memory nor written: of a flight that has just ended.
async fn fetch_one(mut parts: Parts, at: u64, ready: u64) -> Result<Bytes, RegistryError> {
    let (offset, part) = parts.try_next().await?.ok_or(RegistryError::Interrupted)?;
    let end = part.len().min((ready - offset) as usize);
    Ok(part.slice((at - offset) as usize..end))
}
