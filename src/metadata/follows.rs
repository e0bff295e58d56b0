//! What is followed of other regions, and who may hold a lease of this one.

use keppel_federation::vocabulary::{AccountName, NodeId};
use rusqlite::params;

use super::{Cursor, MetadataError, Reader, WriteTransaction};

/// How much of an account of another region is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FollowState {
    /// What was pulled.
    Pulled,
    /// It is being listed: some of it may be old, and some may be missing.
    Listing,
    /// All manifests and tags, as they were at the cursor.
    Following,
}

/// An account of another region that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowRow {
    /// Its name.
    pub account: AccountName,
    /// How much of it is here.
    pub state: FollowState,
    /// The place in its primary's log.
    pub cursor: Cursor,
    /// Whose log that is; `None`: not known, since it was written down before that was noted.
    pub source: Option<NodeId>,
}

pub(super) fn state_of(number: i64) -> Result<FollowState, MetadataError> {
    match number {
        0 => Ok(FollowState::Pulled),
        1 => Ok(FollowState::Listing),
        2 => Ok(FollowState::Following),
        _ => Err(MetadataError::Corrupt { what: "followed account" }),
    }
}

fn read_follow(row: &rusqlite::Row<'_>) -> Result<FollowRow, MetadataError> {
    let account = AccountName::parse(row.get_ref(0)?.as_str().unwrap_or_default());
    let account = account.map_err(|_| MetadataError::Corrupt { what: "account name" })?;
    let cursor = Cursor { sequence: row.get::<_, i64>(2)? as u64, stamp: row.get(3)? };
    let source = row.get::<_, Option<String>>(4)?.map(|node| NodeId::parse(&node)).transpose();
    let source = source.map_err(|_| MetadataError::Corrupt { what: "node" })?;
    Ok(FollowRow { account, state: state_of(row.get(1)?)?, cursor, source })
}

impl Reader<'_> {
    /// How much is here of an account that is followed.
    pub fn get_follow_state(&self, account: &str) -> Result<Option<FollowState>, MetadataError> {
        let sql = "SELECT state FROM follows WHERE account = ?1";
        self.get_row(sql, [account], |row| state_of(row.get(0)?))
    }

    /// The accounts that are followed, after `after` in bytewise order, `limit` at most.
    pub fn list_follows(&self, after: &str, limit: usize) -> Result<Vec<FollowRow>, MetadataError> {
        let sql = "SELECT account, state, sequence, stamp, source FROM follows WHERE account > ?1 \
                   ORDER BY account LIMIT ?2";
        self.rows(sql, params![after, limit as i64], read_follow)
    }

    /// How far an account is that is followed.
    pub fn get_follow(&self, account: &AccountName) -> Result<Option<FollowRow>, MetadataError> {
        let sql = "SELECT account, state, sequence, stamp, source FROM follows WHERE account = ?1";
        self.get_row(sql, [account.as_str()], read_follow)
    }

    /// The nodes that may hold a lease, with its length in milliseconds; `limit` at most.
    pub fn list_lease_holders(&self, limit: usize) -> Result<Vec<(NodeId, u64)>, MetadataError> {
        let sql = "SELECT node, lease_ms FROM lease_holders WHERE node > '' ORDER BY node LIMIT ?1";
        self.rows(sql, [limit as i64], |row| {
            let node = NodeId::parse(row.get_ref(0)?.as_str().unwrap_or_default());
            let node = node.map_err(|_| MetadataError::Corrupt { what: "node" })?;
            Ok((node, row.get::<_, i64>(1)? as u64))
        })
    }
}

impl WriteTransaction<'_> {
    /// Records how much is here of an account that is followed.
    pub fn put_follow(&self, follow: &FollowRow) -> Result<(), MetadataError> {
        let state: i64 = match follow.state {
            FollowState::Pulled => 0,
            FollowState::Listing => 1,
            FollowState::Following => 2,
        };
        let sql = "INSERT INTO follows (account, state, sequence, stamp, source) VALUES (?1, ?2, ?3, ?4, ?5) \
                   ON CONFLICT (account) DO UPDATE SET state = excluded.state, sequence = excluded.sequence, \
                   stamp = excluded.stamp, source = excluded.source";
        let Cursor { sequence, stamp } = follow.cursor;
        let source = follow.source.map(|node| node.to_string());
        self.execute(sql, params![follow.account.as_str(), state, sequence as i64, stamp, source]).map(|_| ())
    }

    /// Ends following an account.
    pub fn delete_follow(&self, account: &AccountName) -> Result<(), MetadataError> {
        self.execute("DELETE FROM follows WHERE account = ?1", [account.as_str()]).map(|_| ())
    }

    /// Remembers that a node may hold a lease.
    pub fn put_lease_holder(&self, node: NodeId, lease_ms: u64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO lease_holders (node, lease_ms) VALUES (?1, ?2) \
                   ON CONFLICT (node) DO UPDATE SET lease_ms = max(lease_ms, excluded.lease_ms)";
        self.execute(sql, params![node.to_string(), lease_ms as i64]).map(|_| ())
    }

    /// Forgets a node whose lease has run out.
    pub fn delete_lease_holder(&self, node: NodeId) -> Result<(), MetadataError> {
        self.execute("DELETE FROM lease_holders WHERE node = ?1", [node.to_string()]).map(|_| ())
    }
}
