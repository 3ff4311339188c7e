//! Who syncs the journal.

use std::time::Instant;

use super::*;

fn long(number: u32) -> NewRow {
    NewRow {
        payload: "x".repeat(1 << 20),
        ..row(number)
    }
}

#[test]
fn a_row_for_which_nobody_waits_does_not_keep_others_from_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    let began = Instant::now();
    for number in 0..40 {
        // Five times as much as one file of the journal holds.
        drop(outbox.insert(long(number)).unwrap());
    }
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "it waited for a sync that nobody began"
    );
}

#[test]
fn who_waits_and_what_syncs_beside_make_every_row_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let outbox = &outbox;
            scope.spawn(move || {
                for number in 0..100 {
                    let mut entry = outbox.insert(row(thread * 100 + number)).unwrap();
                    if (thread + number) % 3 == 0 {
                        entry.begin_sync();
                    }
                    entry.wait().unwrap();
                    // A second time there is nothing to wait for.
                    entry.wait().unwrap();
                    outbox.publishable(entry).unwrap();
                }
            });
        }
    });
    outbox.flush().unwrap();
    assert_eq!(claimed(&outbox, Topic::Main).len(), 800);
}
