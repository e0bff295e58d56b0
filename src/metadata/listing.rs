//! The catalog.

use rusqlite::params;

use super::{MetadataError, Reader};

impl Reader<'_> {
    /// Full names of repositories after `after` in bytewise order, `limit` at most.
    pub fn list_repositories(&self, after: &str, limit: usize) -> Result<Vec<String>, MetadataError> {
        let sql = "SELECT full_name FROM repositories WHERE full_name > ?1 ORDER BY full_name LIMIT ?2";
        self.rows(sql, params![after, limit as i64], |row| Ok(row.get(0)?))
    }
}
