//! Seeded chance and simulated time, for one thread.

use std::cell::{Cell, RefCell};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::vocabulary::RequestId;

thread_local! {
    static CHANCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Where simulated time begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// From now on all chance on this thread comes from `seed`, and time is simulated.
pub(super) fn seed(seed: u64) {
    CHANCE.set(Some(StdRng::seed_from_u64(seed)));
    START.set(Some(Instant::now()));
}

/// Back to real chance and real time.
pub(super) fn unseed() {
    CHANCE.set(None);
    START.set(None);
}

/// A random number; from the seed where there is one.
pub(super) fn random() -> u64 {
    CHANCE.with_borrow_mut(|chance| match chance {
        Some(chance) => chance.random(),
        None => rand::random(),
    })
}

/// A number below `limit`.
pub(super) fn below(limit: u64) -> u64 {
    random() % limit.max(1)
}

/// The simulated clock, where time is simulated.
pub(in super::super) fn simulated_now_ms() -> Option<u64> {
    START.get().map(|start| EPOCH_MS + u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// A request's id, where chance is seeded: ids are keys of what is replicated, so their order has to be the same again.
pub(in super::super) fn simulated_request_id() -> Option<RequestId> {
    START.get()?;
    RequestId::parse(&format!("{:016x}{:016x}", random(), random())).ok()
}

/// What the consensus library draws election timeouts from.
pub(in super::super) struct ElectionRng;

impl rand08::RngCore for ElectionRng {
    fn next_u32(&mut self) -> u32 {
        random() as u32
    }

    fn next_u64(&mut self) -> u64 {
        random()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random().to_le_bytes()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand08::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
