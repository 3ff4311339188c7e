//! The queue by itself: order, topics, rows set aside, start-up.

use std::io;

use super::*;
use crate::store::quarantine::Evidence;

mod fresh;
mod syncs;

fn row(number: u32) -> NewRow {
    NewRow {
        trace_id: format!("trace-{number}"),
        key: "t/1".to_owned(),
        payload: format!("{{\"n\":{number}}}"),
        path: format!("t/d/s/s/{number}.dcm"),
        size: u64::from(number),
        digest: [7; 16],
        created: now_micros(),
        replaces: false,
    }
}

/// What lies at a path.
type Look = io::Result<Option<(u64, [u8; 16])>>;

/// A disk, by what lies at a path.
struct Files(fn(&str) -> Look);

impl Disk for Files {
    fn look_at(&self, path: &str) -> Look {
        (self.0)(path)
    }

    fn quarantine(&self, evidence: &Evidence<'_>) -> io::Result<()> {
        assert_eq!(evidence.found.1, OTHER_DIGEST);
        if evidence.path == "t/d/s/s/9.dcm" {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn is_quarantined(&self, path: &str, _trace_id: &str) -> io::Result<bool> {
        Ok(number(path) == 7)
    }

    fn acknowledges_durable_names(&self) -> bool {
        true
    }
}

const OTHER_DIGEST: [u8; 16] = [9; 16];

fn number(path: &str) -> u64 {
    let name = path.rsplit_once('/').unwrap().1;
    name.strip_suffix(".dcm").unwrap().parse().unwrap()
}

/// Files of even numbers are there, something else is in the place of each other one, and nothing in that of the rest.
const EVEN: Files = Files(|path| match number(path) {
    even if even % 2 == 0 => Ok(Some((even, [7; 16]))),
    odd if odd % 4 == 1 => Ok(Some((odd, OTHER_DIGEST))),
    _ => Ok(None),
});
const ALL: Files = Files(|path| Ok(Some((number(path), [7; 16]))));
const UNREADABLE: Files = Files(|_| Err(io::Error::other("a bad sector")));
const NONE: Files = Files(|_| Ok(None));

fn open(path: &Path) -> (Outbox, Settled) {
    Outbox::open(path, true, &EVEN).unwrap()
}

fn durable(outbox: &Outbox, row: NewRow) -> Entry {
    let mut entry = outbox.insert(row).unwrap();
    entry.wait().unwrap();
    entry
}

fn stored(outbox: &Outbox, numbers: std::ops::Range<u32>) -> Vec<i64> {
    let paths: Vec<String> = numbers
        .map(|number| {
            let row = row(number);
            let path = row.path.clone();
            outbox.publishable(durable(outbox, row)).unwrap();
            path
        })
        .collect();
    let newest = |path: &String| outbox.newest(path).unwrap().unwrap().id;
    paths.iter().map(newest).collect()
}

fn claimed(outbox: &Outbox, topic: Topic) -> Vec<i64> {
    let rows = outbox.claim(topic, 0, 1000).unwrap();
    assert!(rows.windows(2).all(|pair| pair[0].ready < pair[1].ready));
    rows.into_iter().map(|row| row.id).collect()
}

#[test]
fn rows_are_claimed_in_the_order_of_acknowledgement_and_only_once_publishable() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let [first, second, third] = [0, 1, 2].map(|n| durable(&outbox, row(n)));
    let start = outbox.claim(Topic::Main, 0, 10).unwrap();
    assert!(start.is_empty());
    let before = outbox.wait(0, Duration::ZERO);
    assert_eq!(outbox.wait(before, Duration::from_millis(20)), before);
    outbox.publishable(third).unwrap();
    outbox.publishable(first).unwrap();
    outbox.flush().unwrap();
    assert!(outbox.wait(before, Duration::ZERO) > before);
    let rows = outbox.claim(Topic::Main, 0, 10).unwrap();
    assert_eq!([&*rows[0].trace_id, &*rows[1].trace_id], ["trace-2", "trace-0"]);
    assert_eq!(outbox.claim(Topic::Main, rows[0].ready, 10).unwrap().len(), 1);
    assert_eq!(outbox.wait(rows[0].ready, Duration::ZERO), rows[1].ready);
    assert_eq!(outbox.wait(rows[1].ready, Duration::ZERO), rows[1].ready);
    assert_eq!(outbox.backlog().pending, 3);
    drop(second);
    assert_eq!(outbox.backlog().pending, 2);
}

#[test]
fn who_waits_for_rows_hears_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let newest = outbox.wait(0, Duration::ZERO);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| outbox.wait(newest, Duration::from_secs(60)));
        outbox.stop_waiting();
        assert_eq!(waiting.join().unwrap(), newest);
    });
    assert_eq!(outbox.wait(newest, Duration::from_secs(60)), newest);
}

#[test]
fn each_topic_has_its_own_way_through_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let ids = stored(&outbox, 0..3);
    outbox.done(Topic::Main, ids.clone()).unwrap();
    outbox.done(Topic::Log, vec![ids[1]]).unwrap();
    outbox.flush().unwrap();
    assert!(claimed(&outbox, Topic::Main).is_empty());
    assert_eq!(claimed(&outbox, Topic::Log), [ids[0], ids[2]]);
    assert_eq!(outbox.backlog().pending, 2);
    outbox.fail(Topic::Log, "a reason").unwrap();
    outbox.fail(Topic::Main, "another").unwrap();
    outbox.done(Topic::Log, ids).unwrap();
    outbox.flush().unwrap();
    assert_eq!(outbox.backlog(), Backlog::default());
    let state: Vec<(i64, String)> = lock(&outbox.reader)
        .prepare("SELECT failures, last_error FROM topic ORDER BY number")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(state, [(1, "another".to_owned()), (0, "a reason".to_owned())]);
}

#[test]
fn a_done_row_is_committed_without_anything_else_to_carry_it() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let ids = stored(&outbox, 0..1);
    outbox.done(Topic::Main, ids.clone()).unwrap();
    outbox.done(Topic::Log, ids).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while outbox.backlog().pending > 0 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn refused_rows_are_set_aside_until_an_operator_wants_them_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = open(&path);
    let ids = stored(&outbox, 0..4);
    let reason = "too large".to_owned();
    outbox
        .reject(Topic::Main, vec![(ids[0], reason.clone()), (ids[2], reason)])
        .unwrap();
    outbox.done(Topic::Main, vec![ids[1], ids[3]]).unwrap();
    outbox.done(Topic::Log, ids.clone()).unwrap();
    outbox.flush().unwrap();
    let bytes = outbox.backlog().bytes;
    assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (0, 2));
    assert!(bytes > 0);
    assert_eq!(outbox.adopt_retries().unwrap(), 0);
    let other = Connection::open(&path).unwrap();
    other
        .execute("INSERT INTO retry (trace_id) VALUES ('trace-2')", [])
        .unwrap();
    assert_eq!(outbox.adopt_retries().unwrap(), 1);
    assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (1, 1));
    assert_eq!(claimed(&outbox, Topic::Main), [ids[2]]);
    assert!(claimed(&outbox, Topic::Log).is_empty());
    let later = stored(&outbox, 4..5);
    other
        .execute("INSERT INTO retry (trace_id) VALUES (NULL)", [])
        .unwrap();
    drop(outbox);
    let (outbox, _) = open(&path);
    assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (2, 1));
    assert_eq!(outbox.adopt_retries().unwrap(), 1);
    assert_eq!(claimed(&outbox, Topic::Main), [ids[2], later[0], ids[0]]);
    outbox.done(Topic::Main, vec![ids[0], ids[2], later[0]]).unwrap();
    outbox.done(Topic::Log, later).unwrap();
    outbox.flush().unwrap();
    assert_eq!(outbox.backlog(), Backlog::default());
}

#[test]
fn delivered_rows_lose_their_payload_and_stay_known() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let ids = stored(&outbox, 1..4);
    outbox.done(Topic::Main, ids.clone()).unwrap();
    outbox.done(Topic::Log, ids[..2].to_vec()).unwrap();
    outbox.flush().unwrap();
    assert_eq!(outbox.prune(0, 10).unwrap(), 0);
    let soon = now_micros() + 1;
    assert_eq!(outbox.prune(soon, 1).unwrap(), 1);
    assert_eq!(outbox.prune(soon, 10).unwrap(), 1);
    assert_eq!(outbox.prune(soon, 10).unwrap(), 0);
    assert!(outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
    assert_eq!(outbox.claim(Topic::Log, 0, 10).unwrap()[0].payload, r#"{"n":3}"#);
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date_and_one_of_the_future_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.execute(
        "INSERT INTO instance (ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created)
         VALUES (5, 'trace', 'k', '{}', 'p', 1, 't', 2, x'00', 2, 5)",
        [],
    )
    .unwrap();
    drop(old);
    let (outbox, _) = open(&path);
    assert!(claimed(&outbox, Topic::Main).is_empty());
    assert_eq!(outbox.claim(Topic::Log, 0, 10).unwrap()[0].trace_id, "trace");
    drop(outbox);
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = Outbox::open(&path, true, &ALL).unwrap_err();
    assert!(error.to_string().contains("newer program"), "{error}");
}

#[test]
fn multi_byte_payloads_are_counted_in_bytes_on_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let mut new = row(1);
    new.payload = "\"グレイ\"".to_owned();
    let path = new.path.clone();
    let entry = durable(&outbox, new);
    assert_eq!(outbox.backlog().bytes, 11);
    outbox.publishable(entry).unwrap();
    let id = outbox.newest(&path).unwrap().unwrap().id;
    outbox.done(Topic::Main, vec![id]).unwrap();
    outbox.done(Topic::Log, vec![id]).unwrap();
    outbox.flush().unwrap();
    assert_eq!(outbox.backlog(), Backlog::default());
}

/// The folder as an interruption leaves it, for a successor.
fn left_by_an_interruption(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

fn trace_ids(outbox: &Outbox) -> Vec<String> {
    let rows = outbox.claim(Topic::Main, 0, 1000).unwrap();
    rows.into_iter().map(|row| row.trace_id).collect()
}

#[test]
fn start_up_keeps_rows_whose_file_is_there_and_drops_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let entries: Vec<Entry> = (0..4).map(|n| durable(&outbox, row(n))).collect();
    let copy = left_by_an_interruption(folder.path());
    drop((entries, outbox));
    let path = copy.path().join("outbox.sqlite");
    let (outbox, settled) = open(&path);
    assert_eq!((settled.kept, settled.dropped), (2, 2));
    assert_eq!(settled.quarantined.first, ["t/d/s/s/1.dcm"]);
    assert_eq!((settled.missing.count, settled.undecided.count), (0, 0));
    assert_eq!(trace_ids(&outbox), ["trace-0", "trace-2"]);
    assert!(outbox.describes("t/d/s/s/2.dcm", 2, [7; 16]).unwrap());
    assert!(!outbox.describes("t/d/s/s/2.dcm", 3, [7; 16]).unwrap());
    assert!(!outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
    drop(outbox);
    assert_eq!(open(&path).1, Settled::default(), "the journal is done with");
}

#[test]
fn start_up_takes_no_row_twice_and_none_whose_successor_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    drop(durable(&outbox, row(2)));
    let again = NewRow {
        trace_id: "again".to_owned(),
        ..row(2)
    };
    outbox.publishable(durable(&outbox, again)).unwrap();
    outbox.publishable(durable(&outbox, row(4))).unwrap();
    outbox.flush().unwrap();
    let copy = left_by_an_interruption(folder.path());
    drop(outbox);
    let (outbox, settled) = open(&copy.path().join("outbox.sqlite"));
    assert_eq!(
        (settled.kept, settled.dropped, settled.quarantined.count),
        (0, 1, 0)
    );
    assert_eq!(trace_ids(&outbox), ["again", "trace-4"]);
}

#[test]
fn of_two_attempts_the_one_that_was_acknowledged_keeps_its_trace_id() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    // The first failed behind its row; the second was acknowledged, and may have been published before the interruption.
    drop(durable(&outbox, row(2)));
    let again = NewRow {
        trace_id: "again".to_owned(),
        ..row(2)
    };
    let again = durable(&outbox, again);
    let copy = left_by_an_interruption(folder.path());
    drop((again, outbox));
    let (outbox, settled) = open(&copy.path().join("outbox.sqlite"));
    assert_eq!((settled.kept, settled.dropped), (1, 1));
    assert_eq!(trace_ids(&outbox), ["again"]);
}

#[test]
fn start_up_leaves_a_file_that_another_row_describes_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    drop(durable(&outbox, row(5)));
    let again = NewRow {
        trace_id: "again".to_owned(),
        digest: OTHER_DIGEST,
        ..row(5)
    };
    outbox.publishable(durable(&outbox, again)).unwrap();
    for is_in_database in [false, true] {
        if is_in_database {
            outbox.flush().unwrap();
        }
        let copy = left_by_an_interruption(folder.path());
        let (_, settled) = open(&copy.path().join("outbox.sqlite"));
        assert_eq!((settled.dropped, settled.quarantined.count), (1, 0));
    }
}

#[test]
fn what_cannot_be_looked_at_stays_undecided_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let entries: Vec<Entry> = [2, 3, 5, 9, 2].map(|n| durable(&outbox, row(n))).into();
    let copy = left_by_an_interruption(folder.path());
    drop((entries, outbox));
    let path = copy.path().join("outbox.sqlite");
    for _ in 0..2 {
        let (outbox, settled) = Outbox::open(&path, true, &UNREADABLE).unwrap();
        assert_eq!((settled.kept, settled.dropped), (0, 0));
        assert_eq!(settled.undecided.count, 4, "by path");
        assert_eq!(
            settled.undecided.first[0],
            ("t/d/s/s/2.dcm".to_owned(), "a bad sector".to_owned())
        );
        assert_eq!((outbox.undecided(), outbox.backlog().pending), (5, 5));
        assert!(trace_ids(&outbox).is_empty());
        assert_eq!(outbox.undecided_paths().unwrap().len(), 4);
        let still = outbox.settle_path("t/d/s/s/2.dcm", &UNREADABLE).unwrap();
        assert_eq!(still.undecided.count, 1);
        assert_eq!(outbox.undecided(), 5);
    }
    let (outbox, _) = Outbox::open(&path, true, &UNREADABLE).unwrap();
    let settled = outbox
        .undecided_paths()
        .unwrap()
        .iter()
        .map(|path| outbox.settle_path(path, &EVEN).unwrap())
        .collect::<Vec<_>>();
    let sum = |count: fn(&Settled) -> u64| settled.iter().map(count).sum::<u64>();
    assert_eq!(sum(|one| one.kept), 1);
    assert_eq!(
        sum(|one| one.dropped),
        3,
        "the other of a path, one without a file, one in quarantine"
    );
    assert_eq!(sum(|one| one.quarantined.count), 1);
    assert_eq!(sum(|one| one.undecided.count), 1, "no space in the quarantine");
    assert_eq!((outbox.undecided(), outbox.backlog().pending), (1, 2));
    assert_eq!(trace_ids(&outbox), ["trace-2"]);
    assert_eq!(
        outbox.settle_path("t/d/s/s/2.dcm", &NONE).unwrap(),
        Settled::default(),
        "it is decided"
    );
}

#[test]
fn below_full_durability_a_file_that_is_not_there_is_reported() {
    struct Relaxed;
    impl Disk for Relaxed {
        fn look_at(&self, _path: &str) -> Look {
            Ok(None)
        }
        fn quarantine(&self, _evidence: &Evidence<'_>) -> io::Result<()> {
            Ok(())
        }
        fn is_quarantined(&self, _path: &str, _trace_id: &str) -> io::Result<bool> {
            Ok(false)
        }
        fn acknowledges_durable_names(&self) -> bool {
            false
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let entry = durable(&outbox, row(2));
    let copy = left_by_an_interruption(folder.path());
    drop((entry, outbox));
    let (_, settled) = Outbox::open(&copy.path().join("outbox.sqlite"), true, &Relaxed).unwrap();
    assert_eq!(settled.missing.first, ["t/d/s/s/2.dcm"]);
}

#[test]
fn a_file_that_changes_and_changes_back_has_its_last_record_after_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    for (trace_id, digest) in [("one", [1; 16]), ("two", [2; 16])] {
        let (trace_id, digest) = (trace_id.to_owned(), digest);
        let row = NewRow {
            trace_id,
            digest,
            ..row(2)
        };
        outbox.publishable(durable(&outbox, row)).unwrap();
    }
    outbox.flush().unwrap();
    let (trace_id, digest) = ("three".to_owned(), [1; 16]);
    let three = durable(
        &outbox,
        NewRow {
            trace_id,
            digest,
            ..row(2)
        },
    );
    let copy = left_by_an_interruption(folder.path());
    drop((three, outbox));
    let again = Files(|path| Ok(Some((number(path), [1; 16]))));
    let (outbox, settled) = Outbox::open(&copy.path().join("outbox.sqlite"), true, &again).unwrap();
    assert_eq!((settled.kept, settled.dropped), (1, 0));
    assert_eq!(trace_ids(&outbox), ["one", "two", "three"]);
}

#[test]
fn a_row_that_was_taken_back_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    drop(durable(&outbox, row(1)));
    outbox.publishable(durable(&outbox, row(2))).unwrap();
    assert!(!outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
    assert!(outbox.describes("t/d/s/s/2.dcm", 2, [7; 16]).unwrap());
    assert_eq!(outbox.backlog().pending, 1);
}

#[test]
fn a_journal_that_is_torn_or_damaged_gives_what_lies_before() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let entries: Vec<Entry> = (0..10).map(|n| durable(&outbox, row(2 * n))).collect();
    let whole = left_by_an_interruption(folder.path());
    drop((entries, outbox));
    let journal = whole.path().join("journal-0");
    let bytes = std::fs::read(&journal).unwrap();
    assert_eq!(journal::read(whole.path()).unwrap().len(), 10);
    let length = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut last = 10;
    for at in (0..length).rev().step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&journal, &damaged).unwrap();
        let rows = journal::read(whole.path()).unwrap();
        assert!(
            rows.len() < 10 && rows.len() <= last,
            "{} of {last} at {at}",
            rows.len()
        );
        std::fs::write(&journal, &bytes[..at]).unwrap();
        assert_eq!(journal::read(whole.path()).unwrap().len(), rows.len());
        last = rows.len();
    }
    assert_eq!(last, 0);
}

#[test]
fn the_journal_goes_round_and_round() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = Outbox::open(&path, false, &ALL).unwrap();
    let mut kept = durable(&outbox, row(0));
    for number in 1..2000 {
        let mut row = row(number);
        row.payload = format!("\"{}\"", "x".repeat(20_000));
        outbox
            .publishable(std::mem::replace(&mut kept, durable(&outbox, row)))
            .unwrap();
    }
    let copy = left_by_an_interruption(folder.path());
    drop((kept, outbox));
    let (outbox, settled) = Outbox::open(&copy.path().join("outbox.sqlite"), false, &ALL).unwrap();
    assert!((1..420).contains(&settled.kept), "{settled:?}");
    assert_eq!(claimed(&outbox, Topic::Main).len(), 1000);
    assert_eq!(outbox.lag(Topic::Main).unwrap().pending, 2000);
}

#[test]
fn an_orderly_end_is_seen_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = open(&path);
    let interrupted =
        |path: &Path| matches!(health::examine(path).unwrap(), health::Condition::Interrupted(_));
    let copy = left_by_an_interruption(folder.path());
    assert!(interrupted(&copy.path().join("outbox.sqlite")));
    let copy = left_by_an_interruption(folder.path());
    for name in ["journal-0", "journal-1"] {
        std::fs::remove_file(copy.path().join(name)).unwrap();
    }
    assert!(
        interrupted(&copy.path().join("outbox.sqlite")),
        "without its journal"
    );
    stored(&outbox, 0..3);
    assert!(interrupted(&path));
    drop(outbox);
    assert_eq!(health::examine(&path).unwrap(), health::Condition::Clean);
}
