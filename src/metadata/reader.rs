use rusqlite::{CachedStatement, Connection, Params, Row};

use super::MetadataError;

/// What can be asked of the metadata. Each table family adds its own questions.
pub struct Reader<'a> {
    connection: &'a Connection,
}

impl<'a> Reader<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection }
    }

    pub(super) fn statement(&self, sql: &str) -> Result<CachedStatement<'a>, MetadataError> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    /// The first row, where there is one.
    pub(super) fn get_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, MetadataError>,
    ) -> Result<Option<T>, MetadataError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(read).transpose()
    }

    /// All rows; the statement must be bounded by a `LIMIT` or by what one manifest can hold.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, MetadataError>,
    ) -> Result<Vec<T>, MetadataError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(params)?;
        let mut items = Vec::new();
        while let Some(row) = rows.next()? {
            items.push(read(row)?);
        }
        Ok(items)
    }

    /// A read that does nothing but prove that the database answers.
    pub fn probe(&self) -> Result<(), MetadataError> {
        self.get_row("SELECT id FROM accounts LIMIT 1", [], |_| Ok(())).map(|_| ())
    }
}
