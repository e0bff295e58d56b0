//! What was changed, by whom and from where.

use rusqlite::{Row, params};

use super::{MetadataError, Reader, WriteTransaction};

/// That something was changed, or that this was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Grows with every event; 0 before it is written.
    pub id: i64,
    /// When, in UNIX milliseconds.
    pub at_ms: i64,
    /// The tenant it is about; `None`: it is for operators only.
    pub tenant: Option<String>,
    /// Who: the subject of an identity.
    pub actor: String,
    /// From where.
    pub address: String,
    /// With which program.
    pub user_agent: String,
    /// The request.
    pub request_id: String,
    /// What was done: `create`, `update`, `delete` and the like.
    pub action: String,
    /// To what kind of thing.
    pub kind: String,
    /// To which one.
    pub target: String,
    /// More about it: a digest, a reason.
    pub detail: String,
    /// What came of it, as a status of HTTP.
    pub status: u16,
}

const COLUMNS: &str = "id, at_ms, tenant, actor, address, user_agent, request_id, action, kind, target, detail, status";

fn read(row: &Row<'_>) -> Result<AuditRow, MetadataError> {
    Ok(AuditRow {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        tenant: row.get(2)?,
        actor: row.get(3)?,
        address: row.get(4)?,
        user_agent: row.get(5)?,
        request_id: row.get(6)?,
        action: row.get(7)?,
        kind: row.get(8)?,
        target: row.get(9)?,
        detail: row.get(10)?,
        status: row.get(11)?,
    })
}

impl Reader<'_> {
    /// The events before an id, of a tenant or of all, the newest first.
    pub fn list_audit(
        &self,
        tenant: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<AuditRow>, MetadataError> {
        let (before, limit) = (before.unwrap_or(i64::MAX), limit as i64);
        match tenant {
            Some(tenant) => {
                let sql =
                    format!("SELECT {COLUMNS} FROM audit WHERE tenant = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3");
                self.rows(&sql, params![tenant, before, limit], read)
            }
            None => {
                let sql = format!("SELECT {COLUMNS} FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
                self.rows(&sql, params![before, limit], read)
            }
        }
    }

    /// The events after the last that has arrived at a sink, the oldest first.
    pub fn list_audit_for(&self, sink: &str, limit: usize) -> Result<Vec<AuditRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM audit WHERE id > coalesce((SELECT last_id FROM audit_exports WHERE sink = ?1), 0) \
             ORDER BY id LIMIT ?2"
        );
        self.rows(&sql, params![sink, limit as i64], read)
    }
}

impl WriteTransaction<'_> {
    /// Writes events, in order.
    pub fn insert_audit(&self, events: &[AuditRow]) -> Result<(), MetadataError> {
        for event in events {
            let sql = "INSERT INTO audit (at_ms, tenant, actor, address, user_agent, request_id, action, kind, target, \
                       detail, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
            let AuditRow { at_ms, tenant, actor, address, user_agent, request_id, .. } = event;
            let AuditRow { action, kind, target, detail, status, .. } = event;
            let values =
                params![at_ms, tenant, actor, address, user_agent, request_id, action, kind, target, detail, status];
            self.execute(sql, values)?;
        }
        Ok(())
    }

    /// Removes events from before a time; gives how many, `limit` at most.
    pub fn expire_audit(&self, before_ms: i64, limit: usize) -> Result<usize, MetadataError> {
        let sql = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2)";
        self.execute(sql, params![before_ms, limit as i64])
    }

    /// Notes that everything up to an event has arrived at a sink.
    pub fn put_audit_export(&self, sink: &str, last_id: i64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO audit_exports (sink, last_id) VALUES (?1, ?2) \
                   ON CONFLICT (sink) DO UPDATE SET last_id = excluded.last_id";
        self.execute(sql, params![sink, last_id]).map(drop)
    }
}
