//! What start-up decides about undecided rows: those whose file may or may not have got its name before an interruption.
//!
//! The file decides. All undecided rows of a path are looked at together, because at most one of them describes its file.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::writer::{self, Op};
use super::{journal, lock, next_ready, Disk, NewRow, Outbox, OutboxError, Settled, ALL_PENDING};
use crate::digest::Digest;
use crate::store::path_hash;
use crate::store::quarantine::Evidence;

const COLUMNS: &str = "id, trace_id, key, payload, path, size, digest, created";

/// Why a file is in quarantine.
const REASON: &str = "the file differs from its record, which was never marked committed";

/// An undecided row, in the database where it has an id, else in the journal.
struct Undecided {
    id: Option<i64>,
    row: NewRow,
}

/// What becomes of the undecided rows of a path.
enum Verdict {
    /// The file is that of the row at this place among them; the others go.
    Keep(usize),
    /// They go; the file, if there is one, is that of a row that is committed.
    Drop,
    /// They go; there is no file.
    Absent,
    /// They go, and there is no file, although there may have been one that was acknowledged.
    Missing,
    /// They go; the file is something else, of this size and digest: it is to be put aside.
    Differs((u64, Digest)),
    /// They go; the file was something else and is put aside.
    Quarantined,
    /// The file cannot be looked at, or not be put aside.
    Unknown(String),
}

/// Decides about all undecided rows: those in the database, and those that are only in the journal.
pub(super) fn settle(
    connection: &mut Connection,
    folder: &Path,
    disk: &impl Disk,
) -> Result<Settled, OutboxError> {
    let journalled = journal::read(folder)
        .map_err(|error| OutboxError::of_disk(format_args!("the journal: {error}"), &error))?;
    let transaction = connection.transaction()?;
    let mut undecided = in_database(&transaction, None)?;
    for row in journalled {
        if !is_recorded(&transaction, &row)? {
            undecided.push(Undecided { id: None, row });
        }
    }
    let mut settled = Settled::default();
    let mut kept = Vec::new();
    for (path, places) in by_path(&undecided) {
        let rows: Vec<&Undecided> = places.iter().filter_map(|&place| undecided.get(place)).collect();
        let found = disk.look_at(path);
        let verdict = judge(&transaction, path, &rows, found)?;
        let verdict = completed(verdict, path, &rows, disk);
        let keep = match &verdict {
            Verdict::Keep(at) => places.get(*at).copied(),
            _ => None,
        };
        settled.note(&verdict, path, rows.len());
        let is_unknown = matches!(verdict, Verdict::Unknown(_));
        for (place, one) in places.iter().zip(rows) {
            if keep == Some(*place) {
                kept.push(*place);
            } else if is_unknown {
                if one.id.is_none() {
                    writer::insert(&transaction, &one.row, None, None, ALL_PENDING)?;
                }
            } else if let Some(id) = one.id {
                transaction.execute("DELETE FROM instance WHERE id = ?1", [id])?;
            }
        }
    }
    // In the order in which they were written.
    kept.sort_unstable();
    let kept = kept.iter().filter_map(|&place| undecided.get(place));
    for (ready, one) in (next_ready(&transaction)?..).zip(kept) {
        match one.id {
            Some(id) => {
                transaction.execute("UPDATE instance SET ready = ?1 WHERE id = ?2", [ready, id])?;
            }
            None => writer::insert(&transaction, &one.row, None, Some(ready), ALL_PENDING)?,
        }
    }
    transaction.commit()?;
    Ok(settled)
}

impl Outbox {
    /// Paths with undecided rows.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn undecided_paths(&self) -> Result<Vec<String>, OutboxError> {
        if self.undecided() == 0 {
            return Ok(Vec::new());
        }
        let reader = lock(&self.reader);
        let mut statement =
            reader.prepare("SELECT DISTINCT path FROM instance WHERE ready IS NULL ORDER BY id")?;
        let paths = statement.query_map([], |row| row.get(0))?;
        Ok(paths.collect::<Result<_, _>>()?)
    }

    /// Decides again about the undecided rows of a path, under the lock of that path.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn settle_path(&self, path: &str, disk: &impl Disk) -> Result<Settled, OutboxError> {
        let mut settled = Settled::default();
        if in_database(&lock(&self.reader), Some(path))?.is_empty() {
            return Ok(settled);
        }
        self.flush_rows()?;
        // Without the reader: a disk that hangs must not hold up publication.
        let found = disk.look_at(path);
        let (undecided, verdict) = {
            let reader = lock(&self.reader);
            let undecided = in_database(&reader, Some(path))?;
            let rows: Vec<&Undecided> = undecided.iter().collect();
            let verdict = judge(&reader, path, &rows, found)?;
            (undecided, verdict)
        };
        let rows: Vec<&Undecided> = undecided.iter().collect();
        let verdict = completed(verdict, path, &rows, disk);
        settled.note(&verdict, path, undecided.len());
        let (mut keep, mut drop) = (None, Vec::new());
        if !matches!(verdict, Verdict::Unknown(_)) {
            for (at, one) in undecided.iter().enumerate() {
                match verdict {
                    Verdict::Keep(kept) if kept == at => keep = one.id,
                    _ => drop.extend(one.id),
                }
            }
            self.ask(|reply| Op::Settled { keep, drop, reply })?;
        }
        Ok(settled)
    }
}

/// Undecided rows of the database: of a path, or all.
fn in_database(connection: &Connection, path: Option<&str>) -> Result<Vec<Undecided>, OutboxError> {
    let which = if path.is_some() {
        "path_hash = ?2 AND path = ?1"
    } else {
        "?1 IS ?2"
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM instance WHERE ready IS NULL AND {which} ORDER BY id"
    ))?;
    let rows = statement.query_map((path, path.map(path_hash)), |row| {
        Ok(Undecided {
            id: row.get(0)?,
            row: row_of(row)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn row_of(row: &Row<'_>) -> rusqlite::Result<NewRow> {
    Ok(NewRow {
        trace_id: row.get(1)?,
        key: row.get(2)?,
        payload: row.get(3)?,
        path: row.get(4)?,
        size: u64::try_from(row.get::<_, i64>(5)?).unwrap_or(0),
        digest: row.get(6)?,
        created: row.get(7)?,
        replaces: false,
    })
}

/// The places of the rows of each path, in their order.
fn by_path(undecided: &[Undecided]) -> Vec<(&str, Vec<usize>)> {
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (place, one) in undecided.iter().enumerate() {
        let path = one.row.path.as_str();
        let group = *known.entry(path).or_insert_with(|| {
            groups.push((path, Vec::new()));
            groups.len() - 1
        });
        if let Some((_, places)) = groups.get_mut(group) {
            places.push(place);
        }
    }
    groups
}

/// What becomes of the undecided rows of a path, the oldest first, by what was found there.
fn judge(
    connection: &Connection,
    path: &str,
    rows: &[&Undecided],
    found: io::Result<Option<(u64, Digest)>>,
) -> Result<Verdict, OutboxError> {
    let found = match found {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Verdict::Absent),
        Err(error) => return Ok(Verdict::Unknown(error.to_string())),
    };
    // An attempt that failed may have left a row, and the next one that succeeded another: the newest is the one that was
    // acknowledged. Where that one is committed, none of these was.
    let [newest_committed, others_committed] = committed(connection, path, found)?;
    if newest_committed {
        return Ok(Verdict::Drop);
    }
    let newest = rows
        .iter()
        .rposition(|one| (one.row.size, one.row.digest) == found);
    Ok(match newest {
        Some(at) => Verdict::Keep(at),
        None if others_committed => Verdict::Drop,
        // None of them came so far as to touch the file, which has changed since it was stored, or never had a record.
        None if rows.iter().all(|one| one.row.replaces) => Verdict::Drop,
        None => Verdict::Differs(found),
    })
}

/// The verdict that is left when the disk was asked: a file that differs is put aside; that there is none has a reason.
fn completed(verdict: Verdict, path: &str, rows: &[&Undecided], disk: &impl Disk) -> Verdict {
    let Some(newest) = rows.last().map(|one| &one.row) else {
        return verdict;
    };
    match verdict {
        Verdict::Absent => match disk.is_quarantined(path, &newest.trace_id) {
            Ok(true) => Verdict::Quarantined,
            Ok(false) if disk.acknowledges_durable_names() => Verdict::Drop,
            Ok(false) => Verdict::Missing,
            Err(error) => Verdict::Unknown(error.to_string()),
        },
        Verdict::Differs(found) => {
            let moved = disk.quarantine(&Evidence {
                trace_id: &newest.trace_id,
                path,
                recorded: (newest.size, newest.digest),
                found,
                record: &newest.payload,
                reason: REASON,
            });
            match moved {
                Ok(()) => Verdict::Quarantined,
                Err(error) => Verdict::Unknown(format!("it cannot be put into quarantine: {error}")),
            }
        }
        other => other,
    }
}

/// Whether the newest committed row of the path describes a file of this size and digest, and whether any does.
fn committed(connection: &Connection, path: &str, found: (u64, Digest)) -> Result<[bool; 2], OutboxError> {
    let mut statement = connection.prepare_cached(
        "SELECT size, digest FROM instance WHERE path_hash = ?1 AND path = ?2 AND ready IS NOT NULL ORDER BY id DESC",
    )?;
    let rows: Vec<(i64, Digest)> = statement
        .query_map((path_hash(path), path), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let describes =
        |(size, digest): &(i64, Digest)| u64::try_from(*size) == Ok(found.0) && *digest == found.1;
    Ok([rows.first().is_some_and(describes), rows.iter().any(describes)])
}

/// Whether the database has the row.
fn is_recorded(connection: &Connection, row: &NewRow) -> Result<bool, OutboxError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM instance WHERE path_hash = ?1 AND path = ?2 AND trace_id = ?3")?
        .query_row((path_hash(&row.path), &row.path, &row.trace_id), |_| Ok(()))
        .optional()?
        .is_some())
}

impl Settled {
    fn note(&mut self, verdict: &Verdict, path: &str, rows: usize) {
        let rows = rows as u64;
        match verdict {
            Verdict::Keep(_) => {
                self.kept += 1;
                self.dropped += rows - 1;
            }
            Verdict::Drop | Verdict::Absent | Verdict::Differs(_) => self.dropped += rows,
            Verdict::Missing => {
                self.dropped += rows;
                self.missing.push(path.to_owned());
            }
            Verdict::Quarantined => {
                self.dropped += rows;
                self.quarantined.push(path.to_owned());
            }
            Verdict::Unknown(reason) => self.undecided.push((path.to_owned(), reason.clone())),
        }
    }
}

impl OutboxError {
    /// What the file system says, in words of the caller's.
    pub(super) fn of_disk(text: impl std::fmt::Display, error: &io::Error) -> Self {
        Self {
            text: text.to_string(),
            may_pass: crate::os::may_pass(error),
        }
    }
}
