//! Who syncs the journal.

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
    for number in 0..40 {
        // Five times as much as one file of the journal holds. Who waits for room in vain is refused.
        drop(outbox.insert(long(number)).unwrap());
    }
}

#[test]
fn many_writers_share_syncs_whoever_does_them() {
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
