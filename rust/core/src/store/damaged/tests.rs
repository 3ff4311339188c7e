//! Tests of what is kept: whole entries, the bound, what an interruption leaves.

use std::fs;

use super::*;
use crate::store::replaced::ReplacedLimits;
use crate::store::{Store, StoreOptions};
use crate::uid::Uid;

const EXPLICIT: &str = "1.2.840.10008.1.2.1";

fn store(root: &Path, durability: Durability, max_bytes: u64) -> Store {
    let options = StoreOptions {
        durability,
        create: true,
        replaced: ReplacedLimits {
            retention: Duration::ZERO,
            max_bytes: None,
        },
        quarantine_max_bytes: max_bytes,
    };
    Store::open(root, options).unwrap()
}

fn spool<'s>(store: &'s Store, id: Uuid, dataset: &[u8], memory_bytes: usize) -> Spool<'s> {
    let uid = Uid::parse(b"1.2").unwrap();
    let header = crate::file_meta::encode(&uid, &uid, EXPLICIT, "CT1");
    let mut spool = Spool::begin(
        store,
        format!("{id}.part"),
        EXPLICIT,
        &header,
        memory_bytes,
        Vec::new(),
    )
    .unwrap();
    spool.append(dataset).unwrap();
    spool
}

fn keep(store: &Store, dataset: &[u8], memory_bytes: usize) -> io::Result<Option<Uuid>> {
    let id = Uuid::now_v7();
    let mut spool = spool(store, id, dataset, memory_bytes);
    let kept = store.damaged();
    let Some(room) = kept.room(weight(spool.size(), 2))? else {
        return Ok(None);
    };
    kept.keep(&mut spool, store.incoming(), id, b"{}", room)?;
    Ok(Some(id))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn an_entry_is_whole_at_each_durability_from_memory_and_from_a_file() {
    for durability in [Durability::Full, Durability::Data, Durability::None] {
        for memory_bytes in [1, 1 << 20] {
            let root = tempfile::tempdir().unwrap();
            let store = store(root.path(), durability, 1 << 20);
            let id = keep(&store, b"damaged", memory_bytes).unwrap().unwrap();
            let (note, mut file) = store.damaged().open(&name_of(id)).unwrap().unwrap();
            assert_eq!(note, b"{}");
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            assert!(content.ends_with(b"damaged"));
            assert_eq!(names(&root.path().join(".incoming")), Vec::<String>::new());
            let usage = store.damaged().usage();
            assert_eq!((usage.data_sets, usage.bytes), (1, 8192));
            assert_eq!(usage.since_ms, moment_of(id));
            store.damaged().recount().unwrap();
            assert_eq!(
                store.damaged().usage(),
                usage,
                "counted from the names as it was before"
            );
            assert_eq!(store.quarantine().files(), 0);
            store.quarantine().recount().unwrap();
            assert_eq!(store.quarantine().files(), 0, "it is no file that was put aside");
            store.damaged().remove(&name_of(id), 8192).unwrap();
            assert_eq!(names(&root.path().join(QUARANTINE)), Vec::<String>::new());
            assert_eq!(store.damaged().usage().bytes, 0);
        }
    }
}

#[test]
fn the_bound_holds_with_room_that_is_only_reserved_and_after_a_new_start() {
    let root = tempfile::tempdir().unwrap();
    let opened = store(root.path(), Durability::None, 3 * 8192);
    keep(&opened, b"one", 1 << 20).unwrap().unwrap();
    let reserved = opened.damaged().room(8192).unwrap().unwrap();
    let second = keep(&opened, b"two", 1 << 20).unwrap().unwrap();
    assert!(keep(&opened, b"three", 1 << 20).unwrap().is_none());
    drop(reserved);
    assert!(
        keep(&opened, &[0; 4096], 1 << 20).unwrap().is_none(),
        "a block too many"
    );
    drop(opened);
    let opened = store(root.path(), Durability::None, 2 * 8192);
    opened.damaged().recount().unwrap();
    assert!(keep(&opened, b"three", 1 << 20).unwrap().is_none());
    // An operator makes room, which the count of a second ago does not know.
    for name in names_of(&name_of(second)) {
        fs::remove_file(root.path().join(QUARANTINE).join(name)).unwrap();
    }
    assert!(keep(&opened, b"three", 1 << 20).unwrap().is_none());
    *lock(&opened.damaged().names) = None;
    assert!(keep(&opened, b"three", 1 << 20).unwrap().is_some());
}

#[test]
fn what_fails_leaves_nothing_and_gives_its_room_back() {
    let root = tempfile::tempdir().unwrap();
    let opened = store(root.path(), Durability::Full, 1 << 20);
    fs::write(root.path().join(QUARANTINE), "in the way").unwrap();
    assert!(keep(&opened, b"damaged", 1).is_err());
    assert_eq!(names(&root.path().join(".incoming")), Vec::<String>::new());
    fs::remove_file(root.path().join(QUARANTINE)).unwrap();
    // The note has its name already when the file cannot get it.
    let id = Uuid::now_v7();
    let [file_name, note_name] = names_of(&name_of(id));
    fs::create_dir_all(root.path().join(QUARANTINE).join(&file_name)).unwrap();
    let mut spool = spool(&opened, id, b"damaged", 1);
    let reserved = opened.damaged().room(8192).unwrap().unwrap();
    assert!(opened
        .damaged()
        .keep(&mut spool, opened.incoming(), id, b"{}", reserved)
        .is_err());
    drop(spool);
    assert!(!root.path().join(QUARANTINE).join(note_name).exists());
    assert_eq!(names(&root.path().join(".incoming")), Vec::<String>::new());
    assert_eq!(lock(&opened.damaged().figures).reserved, 0);
    assert_eq!(opened.damaged().usage().data_sets, 0);
}

#[test]
fn only_notes_of_our_kind_without_their_file_go_at_a_start() {
    let root = tempfile::tempdir().unwrap();
    let opened = store(root.path(), Durability::None, 1 << 20);
    keep(&opened, b"one", 1 << 20).unwrap().unwrap();
    let folder = root.path().join(QUARANTINE);
    let alone = format!("{}.json", name_of(Uuid::now_v7()));
    let other = format!("{}.json", Uuid::now_v7());
    for name in [&alone, &other] {
        fs::write(folder.join(name), "{}").unwrap();
    }
    assert_eq!(opened.damaged().clear_unfinished().unwrap(), (1, Vec::new()));
    let left = names(&folder);
    assert!(!left.contains(&alone) && left.contains(&other), "{left:?}");
    assert_eq!(left.len(), 3);
    for absent in [
        "../outbox",
        "damaged-",
        "damaged-../x",
        other.trim_end_matches(".json"),
    ] {
        assert!(opened.damaged().open(absent).unwrap().is_none());
        assert!(opened.damaged().remove(absent, 0).is_err());
    }
}
