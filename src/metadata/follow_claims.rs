//! Under which claim of its name a followed account was told, and what a listing of it must not lose.

use keppel_federation::vocabulary::AccountName;
use rusqlite::{Row, params};

use super::follows::state_of;
use super::{Cursor, FollowState, MetadataError, Reader, WriteTransaction};

/// The claim under which something was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// Its epoch; 0: not known.
    pub epoch: u64,
    /// Which claim of the name it is: another one is another account. 0: not known.
    pub claim: u64,
}

/// How much of a followed account is here, and under which claim that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowClaim {
    /// How much of it is here.
    pub state: FollowState,
    /// The place in the log of the primary that told it.
    pub cursor: Cursor,
    /// The claim.
    pub told: Told,
    /// While it is being listed: the epoch under which goes on the list of divergent changes what the listing takes away.
    pub keeps: Option<u64>,
}

fn read_told(row: &Row<'_>, at: usize) -> Result<Told, MetadataError> {
    Ok(Told { epoch: row.get::<_, i64>(at)? as u64, claim: row.get::<_, i64>(at + 1)? as u64 })
}

impl Reader<'_> {
    /// How much of a followed account is here, and under which claim that was told.
    pub fn get_follow_claim(&self, account: &AccountName) -> Result<Option<FollowClaim>, MetadataError> {
        let sql = "SELECT state, sequence, stamp, epoch, claim, keeps FROM follows WHERE account = ?1";
        self.get_row(sql, [account.as_str()], |row| {
            Ok(FollowClaim {
                state: state_of(row.get(0)?)?,
                cursor: Cursor { sequence: row.get::<_, i64>(1)? as u64, stamp: row.get(2)? },
                told: read_told(row, 3)?,
                keeps: row.get::<_, Option<i64>>(5)?.map(|epoch| epoch as u64),
            })
        })
    }
}

impl WriteTransaction<'_> {
    /// Records under which claim was told what is here of a followed account. One that is not being listed any more has nothing
    /// left to keep from that.
    pub fn put_told(&self, account: &AccountName, told: Told) -> Result<(), MetadataError> {
        let sql = "UPDATE follows SET epoch = ?2, claim = ?3, keeps = CASE WHEN state = 1 THEN keeps END \
                   WHERE account = ?1 AND (epoch <> ?2 OR claim <> ?3 OR (keeps IS NOT NULL AND state <> 1))";
        self.execute(sql, params![account.as_str(), told.epoch as i64, told.claim as i64]).map(drop)
    }

    /// What the listing takes away of an account goes on the list of divergent changes, as recorded in this epoch.
    pub fn keep_in_listing(&self, account: &AccountName, epoch: u64) -> Result<(), MetadataError> {
        let sql = "UPDATE follows SET keeps = coalesce(keeps, ?2) WHERE account = ?1";
        self.execute(sql, params![account.as_str(), epoch as i64]).map(drop)
    }
}
