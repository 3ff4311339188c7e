//! What an interrupted predecessor left between insertion and publication: the files decide.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::{journal, next_ready, writer, Disk, NewRow, OutboxError, Settled, ALL_PENDING};
use crate::store::path_hash;

/// Settles rows of the pure engine that were never marked publishable, and those that are only in the journal.
pub(super) fn settle(
    connection: &mut Connection,
    folder: &Path,
    disk: &impl Disk,
) -> Result<Settled, OutboxError> {
    let rows = journal::read(folder).map_err(|error| OutboxError(format!("the journal: {error}")))?;
    let on_disk = |path: &str, size, digest: &[u8]| {
        disk.holds(path, size, digest)
            .map_err(|error| OutboxError(format!("{path}: {error}")))
    };
    let transaction = connection.transaction()?;
    let mut settled = Settled::default();
    let mut ready = next_ready(&transaction)?;
    let open: Vec<(i64, String, i64, Vec<u8>)> = transaction
        .prepare("SELECT id, path, size, digest FROM instance WHERE ready IS NULL ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (id, path, size, digest) in open {
        if on_disk(&path, u64::try_from(size).unwrap_or(0), &digest)? {
            transaction.execute("UPDATE instance SET ready = ?1 WHERE id = ?2", [ready, id])?;
            ready += 1;
            settled.kept += 1;
        } else {
            transaction.execute("DELETE FROM instance WHERE id = ?1", [id])?;
            settled.dropped += 1;
        }
    }
    let mut dropped = Vec::new();
    for row in rows {
        if is_recorded(&transaction, &row)? {
            continue;
        }
        if on_disk(&row.path, row.size, &row.digest)? {
            writer::insert(&transaction, &row, None, ready, ALL_PENDING)?;
            ready += 1;
            settled.kept += 1;
        } else {
            settled.dropped += 1;
            dropped.push(row);
        }
    }
    for row in dropped {
        // Another row of the path may have been acknowledged, and then the file is that row's.
        if row.place_was_empty && !has_row(&transaction, &row.path)? {
            let discarded = disk.discard(&row.path, row.size);
            let discarded = discarded.map_err(|error| OutboxError(format!("{}: {error}", row.path)))?;
            settled.parts += usize::from(discarded);
        }
    }
    transaction.commit()?;
    Ok(settled)
}

fn has_row(transaction: &Transaction<'_>, path: &str) -> Result<bool, OutboxError> {
    Ok(transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ?1 AND path = ?2)")?
        .query_row((path_hash(path), path), |found| found.get(0))?)
}

/// Whether the database has the row, or another one that describes the same file: a row that was taken back, and whose
/// instance was sent again, must not come back beside its successor.
fn is_recorded(transaction: &Transaction<'_>, row: &NewRow) -> Result<bool, OutboxError> {
    let place = (path_hash(&row.path), &row.path);
    let same: bool = transaction
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ?1 AND path = ?2 AND trace_id = ?3)",
        )?
        .query_row((place.0, place.1, &row.trace_id), |found| found.get(0))?;
    if same {
        return Ok(true);
    }
    let newest: Option<(i64, Vec<u8>)> = transaction
        .prepare_cached(
            "SELECT size, digest FROM instance WHERE path_hash = ?1 AND path = ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row(place, |found| Ok((found.get(0)?, found.get(1)?)))
        .optional()?;
    Ok(newest.is_some_and(|(size, digest)| u64::try_from(size) == Ok(row.size) && digest == row.digest))
}
