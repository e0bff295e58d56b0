//! A blob on its way to a client while it is still on its way here from outside.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::flight::{ExternalFlight, Progress};
use crate::registry::RegistryError;
use crate::registry::elsewhere::RemoteReader;
use crate::storage::PIECE_BYTES;

/// What is held back of any answer until the digest of the whole blob is known to be right. A client that lacks it knows
/// that it does.
const HELD_BACK_BYTES: u64 = 64 << 10;

struct State {
    flight: Arc<ExternalFlight>,
    at: u64,
    end: u64,
}

impl ExternalFlight {
    /// Reads a range, within the blob, as it arrives.
    pub(in crate::registry) fn read(self: Arc<Self>, range: Range<u64>) -> RemoteReader {
        let state = State { flight: self, at: range.start, end: range.end };
        stream::try_unfold(state, State::step).boxed()
    }
}

impl State {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>, RegistryError> {
        if self.at == self.end {
            return Ok(None);
        }
        let mut progress = self.flight.progress.subscribe();
        loop {
            let now = progress.borrow_and_update().clone();
            let ready = match now {
                Progress::Asked => 0,
                Progress::Arrived { arrived_bytes, .. } => arrived_bytes.min(self.end.saturating_sub(HELD_BACK_BYTES)),
                Progress::Stored { .. } => self.end,
                Progress::Failed(failure) => return Err(self.flight.error(&failure)),
            };
            if self.at < ready {
                let wanted = (ready - self.at).min(PIECE_BYTES as u64) as usize;
                let bytes = self.flight.reader()?.read(self.at, wanted).await?;
                if bytes.is_empty() {
                    return Err(RegistryError::Interrupted);
                }
                self.at += bytes.len() as u64;
                return Ok(Some((bytes, self)));
            }
            progress.changed().await.map_err(|_| RegistryError::Interrupted)?;
        }
    }
}
