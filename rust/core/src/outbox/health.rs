//! Whether the database is whole; one that is not is put aside, and what can be read of it goes into a new one.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{params, Connection, ErrorCode, OpenFlags, Row};

use super::schema::{self, MIGRATIONS};
use super::{journal, OutboxError};
use crate::store::path_hash;

/// After a clean stop a look at all pages may take so long; after any other it takes what it takes.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Virtual machine instructions of `SQLite` between two looks at the clock.
const INSTRUCTIONS: i32 = 10_000;
const DIGEST_BYTES: usize = 16;

/// How a database was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    Absent,
    /// Closed in order, and whole.
    Clean,
    /// Whole, but its last owner was interrupted: what it committed since this moment was not yet in the main file.
    Interrupted(SystemTime),
    /// Damaged: why.
    Damaged(String),
}

/// A damaged database that was put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it is now.
    pub aside: PathBuf,
    /// What was wrong.
    pub reason: String,
    /// Rows that could be read.
    pub salvaged: u64,
}

/// Looks at a database before anything else opens it.
///
/// # Errors
/// [`OutboxError`] when it cannot be told: not permitted, no memory, a newer program's.
pub fn examine(path: &Path) -> Result<Condition, OutboxError> {
    let io = |error: std::io::Error| OutboxError::from(error);
    if !path.try_exists().map_err(io)? {
        return Ok(Condition::Absent);
    }
    let facts = path.metadata().map_err(io)?;
    let log = with_suffix(path, "-wal").metadata().map_or(0, |log| log.len());
    if facts.len() == 0 && log == 0 {
        return Ok(Condition::Damaged("the file is empty".to_owned()));
    }
    let interrupted = log > 0 || path.parent().is_some_and(journal::exists);
    let changed = facts.modified().map_err(io)?;
    match look(path, interrupted) {
        Ok(None) if interrupted => Ok(Condition::Interrupted(changed)),
        Ok(None) => Ok(Condition::Clean),
        Ok(Some(finding)) => Ok(Condition::Damaged(finding)),
        Err(error) if is_damage(&error) => Ok(Condition::Damaged(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with the pages, if anything.
fn look(path: &Path, thoroughly: bool) -> rusqlite::Result<Option<String>> {
    let connection = Connection::open(path)?;
    // What is found damaged is to stay as it is.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: u32 = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'instance'",
        [],
        |row| row.get(0),
    )?;
    if version == 0 || tables == 0 {
        return Ok(Some("there is no queue in it".to_owned()));
    }
    if !thoroughly {
        let deadline = Instant::now() + LONGEST_LOOK;
        connection.progress_handler(INSTRUCTIONS, Some(move || Instant::now() > deadline))?;
    }
    let finding: String = match connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)) {
        Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::OperationInterrupted => {
            return Ok(None)
        }
        finding => finding?,
    };
    connection.progress_handler(0, None::<fn() -> bool>)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok((finding != "ok").then_some(finding))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
    })
}

/// Puts a damaged database aside under a name with the time, and makes a new one from the rows that can be read.
///
/// # Errors
/// [`OutboxError`]: then the damaged one is where it was, or its place is empty.
pub fn replace(path: &Path, reason: String, now: SystemTime) -> Result<Damage, OutboxError> {
    let io = |error: std::io::Error| OutboxError::from(error);
    let fresh = with_suffix(path, ".salvaged");
    for suffix in ["", "-journal"] {
        match std::fs::remove_file(with_suffix(&fresh, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    let salvaged = salvage(path, &fresh)?;
    File::open(&fresh).and_then(|file| file.sync_all()).map_err(io)?;
    let stamp = chrono::DateTime::<chrono::Utc>::from(now).format("%Y%m%dT%H%M%S%.6fZ");
    let aside = with_suffix(path, &format!(".damaged-{stamp}"));
    // The main file last: until it is gone, the next start finds the damage again.
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    std::fs::rename(&fresh, path).map_err(io)?;
    if let Some(folder) = path.parent() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io)?;
    }
    Ok(Damage {
        aside,
        reason,
        salvaged,
    })
}

/// A row as it is copied.
struct Salvaged {
    id: i64,
    ready: Option<i64>,
    text: [String; 5],
    path_hash: i64,
    size: i64,
    digest: Vec<u8>,
    pending: i64,
    created: i64,
    delivered: Option<i64>,
    dead: i64,
}

impl Salvaged {
    const COLUMNS: &'static str =
        "id, ready, trace_id, key, payload, path, temporary, path_hash, size, digest, pending, created, delivered, dead";

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            ready: row.get(1)?,
            text: [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?],
            path_hash: row.get(7)?,
            size: row.get(8)?,
            digest: row.get(9)?,
            pending: row.get(10)?,
            created: row.get(11)?,
            delivered: row.get(12)?,
            dead: row.get(13)?,
        })
    }

    /// Whether it makes sense: a page that was written over can still look like one. A row that does not is not taken, and
    /// its file gets a new record.
    fn is_plausible(&self) -> bool {
        let [trace_id, key, payload, path, _] = &self.text;
        let is_record = |text: &str| {
            serde_json::from_str::<serde_json::Value>(text)
                .is_ok_and(|record| record.get("trace_id").and_then(|id| id.as_str()) == Some(trace_id))
        };
        let waits = self.pending != 0 || self.dead != 0;
        self.path_hash == path_hash(path)
            && self.digest.len() == DIGEST_BYTES
            && self.size >= 0
            && (0..=3).contains(&self.pending)
            && (0..=3).contains(&self.dead)
            && (if payload.is_empty() {
                !waits
            } else {
                is_record(payload) && !key.is_empty()
            })
    }

    fn put(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let [trace_id, key, payload, path, temporary] = &self.text;
        connection
            .prepare_cached(
                "INSERT INTO instance (id, ready, trace_id, key, payload, path, temporary, path_hash, size, digest, pending,
                     created, delivered, dead)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .execute(params![
                self.id, self.ready, trace_id, key, payload, path, temporary, self.path_hash, self.size, self.digest,
                self.pending, self.created, self.delivered, self.dead
            ])
    }
}

/// Copies every row that can be read into a new database; how many.
fn salvage(damaged: &Path, fresh: &Path) -> Result<u64, OutboxError> {
    let mut target = Connection::open(fresh)?;
    schema::migrate(&mut target)?;
    let mut copied = 0;
    let transaction = target.transaction()?;
    // A database that cannot even be opened has nothing to give.
    if let Ok(source) = open_damaged(damaged) {
        let (mut last, mut step) = (0, 1);
        let most = source
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = 'instance'",
                [],
                |row| row.get(0),
            )
            .unwrap_or(i64::MAX / 4);
        while last < most {
            let (reached, whole) = copy_from(&source, last, &transaction, &mut copied)?;
            if whole {
                break;
            }
            // Beyond what cannot be read, in growing steps: a page may be one row or a thousand.
            step = if reached > last { 1 } else { step * 2 };
            last = reached.saturating_add(step);
        }
    }
    transaction.commit()?;
    Ok(copied)
}

fn open_damaged(path: &Path) -> rusqlite::Result<Connection> {
    // Not read-only: what is in the log can be read then. Nothing is written.
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Lets `SQLite` open a file that is shorter than it should be.
    connection.pragma_update(None, "writable_schema", true)?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    // Columns of later versions are needed; a database of an older program is read by its files alone.
    if version < 2 || usize::try_from(version).is_ok_and(|version| version > MIGRATIONS.len()) {
        return Err(rusqlite::Error::InvalidQuery);
    }
    Ok(connection)
}

/// Copies rows behind `last` until one cannot be read. Returns the last one read, and whether that was all.
fn copy_from(
    source: &Connection,
    last: i64,
    target: &Connection,
    copied: &mut u64,
) -> Result<(i64, bool), OutboxError> {
    let query = format!(
        "SELECT {} FROM instance WHERE id > ?1 ORDER BY id",
        Salvaged::COLUMNS
    );
    let mut reached = last;
    let Ok(mut statement) = source.prepare(&query) else {
        return Ok((reached, true));
    };
    let Ok(mut rows) = statement.query([last]) else {
        return Ok((reached, false));
    };
    loop {
        match rows.next() {
            Ok(None) => return Ok((reached, true)),
            Ok(Some(row)) => match Salvaged::read(row) {
                Ok(row) => {
                    reached = reached.max(row.id);
                    // Twice the same id or trace is one more sign of damage.
                    if row.is_plausible() && row.put(target).is_ok() {
                        *copied += 1;
                    }
                }
                Err(_) => reached = reached.max(row.get(0).unwrap_or(reached)),
            },
            Err(_) => return Ok((reached, false)),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, SeekFrom, Write as _};

    fn fill(path: &Path, rows: i64) {
        let mut connection = Connection::open(path).unwrap();
        schema::migrate(&mut connection).unwrap();
        for id in 1..=rows {
            let path = format!("t/d/s/s/{id}.dcm");
            Salvaged {
                id,
                ready: Some(id),
                text: [
                    format!("trace-{id}"),
                    "t/s".to_owned(),
                    format!(
                        "{{\"trace_id\":\"trace-{id}\",\"padding\":\"{}\"}}",
                        "x".repeat(400)
                    ),
                    path.clone(),
                    String::new(),
                ],
                path_hash: path_hash(&path),
                size: id,
                digest: vec![7; 16],
                pending: 3,
                created: id,
                delivered: None,
                dead: 0,
            }
            .put(&connection)
            .unwrap();
        }
    }

    fn ids(path: &Path) -> Vec<i64> {
        let connection = Connection::open(path).unwrap();
        let mut statement = connection.prepare("SELECT id FROM instance ORDER BY id").unwrap();
        let ids = statement.query_map([], |row| row.get(0)).unwrap();
        ids.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn conditions_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        assert_eq!(examine(&path).unwrap(), Condition::Absent);
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(examine(&path).unwrap(), Condition::Damaged(_)));
        std::fs::write(
            &path,
            b"no database at all, but long enough to be taken for one".repeat(100),
        )
        .unwrap();
        assert!(matches!(examine(&path).unwrap(), Condition::Damaged(_)));
        std::fs::remove_file(&path).unwrap();
        fill(&path, 10);
        assert_eq!(examine(&path).unwrap(), Condition::Clean);
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute("UPDATE instance SET pending = 1", []).unwrap();
        let copy = folder.path().join("copy.sqlite");
        for suffix in ["", "-wal"] {
            std::fs::copy(with_suffix(&path, suffix), with_suffix(&copy, suffix)).unwrap();
        }
        assert!(matches!(examine(&copy).unwrap(), Condition::Interrupted(_)));
    }

    #[test]
    fn what_can_be_read_of_a_damaged_database_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        fill(&path, 2000);
        let length = path.metadata().unwrap().len();
        let mut file = File::options().write(true).open(&path).unwrap();
        // A page of rows in the middle.
        file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).unwrap();
        file.write_all(&[0x5A; 4096]).unwrap();
        let Condition::Damaged(reason) = examine(&path).unwrap() else {
            panic!("damage was not seen");
        };
        let damage = replace(&path, reason, SystemTime::now()).unwrap();
        assert!(damage.aside.exists());
        let kept = ids(&path);
        assert_eq!(damage.salvaged, kept.len() as u64);
        assert!((1900..2000).contains(&kept.len()), "{} kept", kept.len());
        assert_eq!((kept.first(), kept.last()), (Some(&1), Some(&2000)));
        assert_eq!(examine(&path).unwrap(), Condition::Clean);
    }

    #[test]
    fn a_database_that_is_cut_short_gives_what_is_left_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        fill(&path, 2000);
        let length = path.metadata().unwrap().len();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length * 2 / 3)
            .unwrap();
        let Condition::Damaged(reason) = examine(&path).unwrap() else {
            panic!("damage was not seen");
        };
        let damage = replace(&path, reason, SystemTime::now()).unwrap();
        assert!(damage.salvaged > 500, "{} salvaged", damage.salvaged);
        assert_eq!(examine(&path).unwrap(), Condition::Clean);
    }

    #[test]
    fn a_row_that_makes_no_sense_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        fill(&path, 5);
        let connection = Connection::open(&path).unwrap();
        for change in [
            "path = 'elsewhere' WHERE id = 1",
            "payload = '{' WHERE id = 2",
            "pending = 9 WHERE id = 4",
        ] {
            connection
                .execute(&format!("UPDATE instance SET {change}"), [])
                .unwrap();
        }
        drop(connection);
        let damage = replace(&path, "a test".to_owned(), SystemTime::now()).unwrap();
        assert_eq!(damage.salvaged, 2);
        assert_eq!(ids(&path), [3, 5]);
    }
}
