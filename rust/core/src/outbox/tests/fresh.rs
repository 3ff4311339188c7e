//! Rows that the publisher has before the database.

use super::*;

#[test]
fn a_row_that_is_published_at_once_reaches_the_database_as_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = open(&path);
    for number in 0..20 {
        let before = outbox.wait(0, Duration::ZERO);
        outbox.publishable(durable(&outbox, row(number))).unwrap();
        assert!(outbox.wait(before, Duration::from_secs(10)) > before);
        for topic in [Topic::Main, Topic::Log] {
            let rows = outbox.claim(topic, before, 10).unwrap();
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].trace_id, format!("trace-{number}"));
            outbox.done(topic, vec![rows[0].id]).unwrap();
        }
    }
    drop(outbox);
    let states: i64 = Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT count(*) FROM instance WHERE pending = 0 AND dead = 0 AND delivered >= created",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(states, 20);
    let (outbox, settled) = open(&path);
    assert_eq!(
        (settled, outbox.backlog()),
        (Settled::default(), Backlog::default())
    );
    assert_eq!(stored(&outbox, 20..21), [21]);
}

#[test]
fn what_only_one_topic_has_waits_in_the_database_for_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = open(&path);
    for number in 0..3 {
        outbox.publishable(durable(&outbox, row(number))).unwrap();
    }
    let mut after = outbox.wait(0, Duration::ZERO);
    while outbox.lag(Topic::Main).unwrap().pending < 3 {
        after = outbox.wait(after, Duration::from_secs(10));
    }
    let ids = claimed(&outbox, Topic::Main);
    outbox.done(Topic::Main, ids.clone()).unwrap();
    let waiting = || -> i64 {
        Connection::open(&path)
            .unwrap()
            .query_row("SELECT count(*) FROM instance WHERE pending = 2", [], |row| {
                row.get(0)
            })
            .unwrap()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while waiting() < 3 {
        assert!(std::time::Instant::now() < deadline, "it must not take a stop");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(claimed(&outbox, Topic::Main).is_empty());
    assert_eq!(claimed(&outbox, Topic::Log), ids);
    let lag = outbox.lag(Topic::Log).unwrap();
    assert_eq!((lag.pending, lag.oldest.is_some()), (3, true));
}

/// Claims all rows of a topic while they come, and moves them on as a broker of some mood would. Their trace ids.
fn follow(outbox: &Outbox, topic: Topic, count: usize, mood: usize) -> Vec<String> {
    let (mut seen, mut after) = (Vec::new(), 0);
    let mut kept = Vec::new();
    while seen.len() < count {
        let rows = outbox.claim(topic, after, 7).unwrap();
        let Some(last) = rows.last() else {
            let _ = outbox.wait(after, Duration::from_millis(5));
            continue;
        };
        after = last.ready;
        kept.extend(rows.iter().map(|row| row.id));
        seen.extend(rows.into_iter().map(|row| row.trace_id));
        match seen.len() % mood {
            0 => outbox.done(topic, std::mem::take(&mut kept)).unwrap(),
            1 => outbox.flush().unwrap(),
            _ => {}
        }
    }
    outbox.done(topic, kept).unwrap();
    seen
}

#[test]
fn each_topic_sees_each_row_once_and_in_order_while_rows_go_into_the_database() {
    const COUNT: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.sqlite");
    let (outbox, _) = Outbox::open(&path, false, &ALL).unwrap();
    let seen = std::thread::scope(|scope| {
        let outbox = &outbox;
        let lanes = [(Topic::Main, 3), (Topic::Log, 11)]
            .map(|(topic, mood)| scope.spawn(move || follow(outbox, topic, COUNT, mood)));
        for number in 0..COUNT {
            let number = u32::try_from(number).unwrap();
            outbox.publishable(durable(outbox, row(number))).unwrap();
            if number % 64 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        lanes.map(|lane| lane.join().unwrap())
    });
    let expected: Vec<String> = (0..COUNT).map(|number| format!("trace-{number}")).collect();
    assert!(seen.iter().all(|seen| *seen == expected));
    outbox.flush().unwrap();
    assert_eq!(outbox.backlog(), Backlog::default());
    drop(outbox);
    let (outbox, settled) = Outbox::open(&path, false, &ALL).unwrap();
    assert_eq!(
        (settled, outbox.backlog()),
        (Settled::default(), Backlog::default())
    );
}

#[test]
fn a_claim_has_no_gap_when_rows_go_into_the_database_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    stored(&outbox, 0..2);
    let mut shown = outbox.wait(0, Duration::ZERO);
    for number in 2..4 {
        outbox.publishable(durable(&outbox, row(number))).unwrap();
        shown = outbox.wait(shown, Duration::from_secs(10));
    }
    let look = lock(&outbox.shared.fresh).look(Topic::Main, 0, 100);
    stored(&outbox, 4..6);
    let after_look: Vec<_> = outbox.claim_beside(&look, Topic::Main, 0, 100).unwrap();
    assert!(after_look.len() >= 4, "{}", after_look.len());
    for (number, row) in after_look.iter().enumerate() {
        assert_eq!(row.trace_id, format!("trace-{number}"));
    }
    assert_eq!(trace_ids(&outbox).len(), 6);
}

#[test]
fn what_was_published_and_is_not_in_the_database_is_published_again_after_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let before = outbox.wait(0, Duration::ZERO);
    outbox.publishable(durable(&outbox, row(2))).unwrap();
    outbox.publishable(durable(&outbox, row(4))).unwrap();
    assert!(outbox.wait(before, Duration::from_secs(10)) > before);
    outbox.done(Topic::Main, claimed(&outbox, Topic::Main)).unwrap();
    // Whatever has reached the database until now: nothing is lost, and nothing has changed its name.
    let copy = left_by_an_interruption(folder.path());
    let (outbox, _) = open(&copy.path().join("outbox.sqlite"));
    let rows = outbox.claim(Topic::Log, 0, 10).unwrap();
    assert_eq!(
        rows.iter().map(|row| &*row.trace_id).collect::<Vec<_>>(),
        ["trace-2", "trace-4"]
    );
}
