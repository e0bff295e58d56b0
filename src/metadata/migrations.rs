use rusqlite::Connection;

use super::MetadataError;

/// The schema's history: append only. Number N brings a database from `user_version` N to N + 1.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_registry.sql"),
    include_str!("migrations/0002_usage.sql"),
    include_str!("migrations/0003_audit.sql"),
    include_str!("migrations/0004_events.sql"),
    include_str!("migrations/0005_care.sql"),
    include_str!("migrations/0006_pulled_blobs.sql"),
    include_str!("migrations/0007_pull_times.sql"),
    include_str!("migrations/0008_manifest_blobs.sql"),
    include_str!("migrations/0009_primacies.sql"),
    include_str!("migrations/0010_transfers.sql"),
    include_str!("migrations/0011_follow_sources.sql"),
    include_str!("migrations/0012_follow_claims.sql"),
    include_str!("migrations/0013_pushed_again.sql"),
];

/// Brings a database to the latest schema, each step in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), MetadataError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    let done = usize::try_from(found).unwrap_or(0);
    if found > known {
        return Err(MetadataError::TooNew { found, known });
    }
    for (number, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", number as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
