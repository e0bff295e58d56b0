use std::time::Duration;

use keppel_federation::vocabulary::AccountName;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use crate::model::{Share, Shares};

/// Memory for manifests that are being pushed, in KiB.
const ROOM_KIB: usize = 128 << 10;
/// What those of one account may take of it.
const ROOM_EACH_KIB: usize = ROOM_KIB / 4;
/// Room is taken in steps of this.
const STEP_KIB: usize = 64;
/// How long a push waits for room.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The memory that manifests may take while they arrive. An account has a share of it, so that slow pushes to one do not
/// stop those to others.
pub(crate) struct ManifestRoom {
    all: Semaphore,
    accounts: Shares<AccountName>,
}

/// The room of one manifest; given back when it is dropped.
pub(crate) struct ManifestPlace<'a> {
    room: &'a ManifestRoom,
    of_account: Share<'a, AccountName>,
    of_all: Option<SemaphorePermit<'a>>,
    kib: usize,
}

impl ManifestRoom {
    pub(crate) fn new() -> Self {
        Self { all: Semaphore::new(ROOM_KIB), accounts: Shares::new(ROOM_EACH_KIB) }
    }

    /// No room yet, for a manifest of an account.
    pub(crate) fn place(&self, account: AccountName) -> ManifestPlace<'_> {
        ManifestPlace { room: self, of_account: self.accounts.of(account), of_all: None, kib: 0 }
    }
}

impl ManifestPlace<'_> {
    /// Waits for room for so many bytes in all. It is asked for as they arrive, so that who announces much and sends
    /// little takes little.
    ///
    /// # Errors
    /// 503 when there is none for long.
    pub(crate) async fn grow(&mut self, size_bytes: usize) -> Result<(), ApiError> {
        let needed = (size_bytes >> 10).next_multiple_of(STEP_KIB).max(STEP_KIB);
        if needed <= self.kib {
            return Ok(());
        }
        let more = needed - self.kib;
        let growing = async {
            self.of_account.take_more(more).await;
            self.room.all.acquire_many(u32::try_from(more).unwrap_or(u32::MAX)).await
        };
        let none = || ApiError::unavailable("too many manifests are being pushed at once".into());
        let permit = tokio::time::timeout(WAIT_MAX, growing).await.map_err(|_| none())?.map_err(|_| none())?;
        match &mut self.of_all {
            Some(held) => held.merge(permit),
            None => self.of_all = Some(permit),
        }
        self.kib = needed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_account_that_pushes_slowly_leaves_room_for_others() {
        let room = ManifestRoom::new();
        let account = |name: &str| AccountName::parse(name).unwrap();
        let mut slow = Vec::new();
        for _ in 0..ROOM_EACH_KIB / 4096 {
            let mut place = room.place(account("slow"));
            place.grow(1).await.unwrap();
            place.grow(4 << 20).await.unwrap();
            slow.push(place);
        }
        assert!(room.place(account("slow")).grow(1).await.is_err());
        let mut other = room.place(account("other"));
        other.grow(4 << 20).await.unwrap();
        other.grow(1 << 20).await.unwrap();
        drop((slow, other));
        assert_eq!(room.all.available_permits(), ROOM_KIB);
    }
}
