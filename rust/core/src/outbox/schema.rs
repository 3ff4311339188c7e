//! The schema and its history.

use rusqlite::Connection;

use super::OutboxError;

/// Script `n` brings a database of version `n` to version `n + 1`; an empty one has version 0.
pub const MIGRATIONS: [&str; 5] = [
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
];

/// Brings the database to the version of this program.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), OutboxError> {
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(OutboxError::new(format!(
            "made by a newer program (schema {version}, this one knows {})",
            MIGRATIONS.len()
        )));
    }
    for script in MIGRATIONS.iter().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(script)?;
        transaction.commit()?;
    }
    Ok(())
}
