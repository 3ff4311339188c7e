//! Tests of the spool: memory, files, names.

mod lent;

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::*;
use crate::config::Durability;
use crate::layout::{InstancePath, TenantId};
use crate::store::direct;
use crate::store::nameless::{self, Nameless};
use crate::store::quarantine::Evidence;
use crate::store::replaced::ReplacedLimits;
use crate::store::{Existing, StoreOptions};
use crate::uid::Uid;
use crate::wire::block::Blocks;

fn path() -> InstancePath {
    let uid = |text: &str| Uid::parse(text.as_bytes()).unwrap();
    InstancePath::new(
        &TenantId::parse("t").unwrap(),
        None,
        &uid("1"),
        &uid("2"),
        &uid("3"),
    )
}

fn header() -> Vec<u8> {
    let uid = Uid::parse(b"1.2").unwrap();
    crate::file_meta::encode(&uid, &uid, "1.2.840.10008.1.2.1", "CT1")
}

fn spool<'s>(store: &'s Store, name: &str, dataset: &[u8], memory_bytes: usize) -> Spool<'s> {
    let mut spool = Spool::begin(
        store,
        name.to_owned(),
        "1.2.840.10008.1.2.1",
        &header(),
        memory_bytes,
        Vec::new(),
    )
    .unwrap();
    for piece in dataset.chunks(1000) {
        spool.append(piece).unwrap();
    }
    spool
}

/// What decides how a file is made: nothing is synced; all is, in a file system that keeps the order; all is, in another one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Unsynced,
    Ordered,
    Named,
}

impl Way {
    const ALL: [Self; 3] = [Self::Unsynced, Self::Ordered, Self::Named];

    fn open(self, root: &std::path::Path) -> Store {
        let durability = match self {
            Self::Unsynced => Durability::None,
            Self::Ordered | Self::Named => Durability::Full,
        };
        let mut store = Store::open(root, options(durability)).unwrap();
        store.keeps_order = self == Self::Ordered;
        if self == Self::Named {
            store.nameless = Nameless::default();
        }
        store
    }
}

/// Spilled, and in memory.
fn ways() -> impl Iterator<Item = (usize, Way)> {
    [1, 1 << 20]
        .into_iter()
        .flat_map(|bytes| Way::ALL.map(|way| (bytes, way)))
}

fn options(durability: Durability) -> StoreOptions {
    StoreOptions {
        durability,
        create: true,
        replaced: ReplacedLimits {
            retention: Duration::ZERO,
            max_bytes: None,
        },
        quarantine_max_bytes: 1 << 20,
    }
}

fn make(store: &Store) -> SeriesFolder {
    let path = path();
    let (folder, made) = store.folders().create(&path).unwrap();
    made.keep();
    folder
}

fn incoming(root: &std::path::Path) -> usize {
    std::fs::read_dir(root.join(".incoming")).unwrap().count()
}

#[test]
fn a_spooled_instance_is_published_whole_from_memory_and_from_disk() {
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let dataset: Vec<u8> = (0..100_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut spool = spool(&store, "a.part", &dataset, memory_bytes);
        spool.write_out().unwrap();
        let folder = make(&store);
        if way == Way::Ordered {
            spool.begin_write_back().unwrap();
            spool.finish_write_back().unwrap();
            spool.publish(&folder, "3.dcm").unwrap();
            spool.sync_named().unwrap();
        } else {
            spool.sync().unwrap();
            assert_eq!(incoming(root.path()), 1);
            spool.publish(&folder, "3.dcm").unwrap();
        }
        store.folders().sync(&folder, &path()).unwrap();
        let (size, digest) = (spool.size(), spool.digest());
        drop(spool);
        let file = root.path().join(path().relative());
        assert_eq!(
            std::fs::read(&file).unwrap(),
            [header(), dataset.clone()].concat()
        );
        assert_eq!(incoming(root.path()), 0);
        for found in [
            store.look_at(path().relative()),
            store.measured(path().relative()),
        ] {
            assert_eq!(found.unwrap(), Some((size, digest)));
        }
        assert_eq!(store.look_at("t/20260102/1/2/4.dcm").unwrap(), None);

        let mut same = super::tests::spool(&store, "b.part", &dataset, memory_bytes);
        assert_eq!(
            store.existing(Some(&folder), &path(), &mut same).unwrap(),
            Existing::Identical { size, digest }
        );
        let mut changed = dataset.clone();
        changed[99_999] ^= 1;
        let mut other = super::tests::spool(&store, "c.part", &changed, memory_bytes);
        assert_eq!(
            store.existing(Some(&folder), &path(), &mut other).unwrap(),
            Existing::Different { size }
        );
    }
}

#[test]
fn what_stays_where_it_was_received_is_as_what_was_copied() {
    let blocks = std::sync::Arc::<Blocks>::default();
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let dataset: Vec<u8> = (0..900_000u32).map(|i| (i / 3).to_le_bytes()[0]).collect();
        let copied = spool(&store, "a.part", &dataset, memory_bytes);
        let mut taken = spool(&store, "b.part", &[], memory_bytes);
        for (number, piece) in dataset.chunks(190_000).enumerate() {
            if number == 3 {
                // Copied bytes may come behind blocks.
                taken.append(piece).unwrap();
                continue;
            }
            let mut block = blocks.take();
            block.fill_for_test(piece, 16_000);
            taken.take_block(block).unwrap();
        }
        assert_eq!((taken.size(), taken.digest()), (copied.size(), copied.digest()));
        let folder = make(&store);
        let mut first = copied;
        first.write_out().unwrap();
        first.publish(&folder, "3.dcm").unwrap();
        assert!(matches!(
            store.existing(Some(&folder), &path(), &mut taken).unwrap(),
            Existing::Identical { .. }
        ));
        taken.write_out().unwrap();
        taken.publish(&folder, "3.dcm").unwrap();
        assert_eq!(
            std::fs::read(root.path().join(path().relative())).unwrap(),
            [header(), dataset].concat()
        );
    }
}

#[test]
fn room_is_reserved_for_what_comes_and_no_more_than_a_part_of_what_is_said_to_come() {
    let blocks = std::sync::Arc::<Blocks>::default();
    let reserved = |spool: &Spool<'_>| spool.file.as_ref().unwrap().metadata().unwrap().blocks() * 512;
    let dataset: Vec<u8> = (0..700_000u32).map(|i| (i / 7).to_le_bytes()[0]).collect();
    for (expected, least, most) in [
        (0, 100_000, 200_000),
        (700_000, 700_000, 800_000),
        (1 << 40, LEAST_AHEAD_BYTES, LEAST_AHEAD_BYTES + 200_000),
    ] {
        let root = tempfile::tempdir().unwrap();
        let mut store = Way::Unsynced.open(root.path());
        store.reserves = true;
        let mut taken = spool(&store, "a.part", &[], 1);
        for (number, piece) in dataset.chunks(100_000).enumerate() {
            taken.expect(expected);
            let mut block = blocks.take();
            block.fill_for_test(piece, 16_000);
            taken.take_block(block).unwrap();
            if number == 0 {
                let reserved = reserved(&taken);
                assert!((least..most).contains(&reserved), "{reserved} of {expected}");
            }
            let written = taken.file.as_ref().unwrap().metadata().unwrap().len();
            assert_eq!(written, taken.size(), "what is reserved is no part of the file");
        }
        let folder = make(&store);
        taken.publish(&folder, "3.dcm").unwrap();
        assert_eq!(
            std::fs::read(root.path().join(path().relative())).unwrap(),
            [header(), dataset.clone()].concat()
        );
    }
}

#[test]
fn no_room_is_reserved_for_what_is_small() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Way::Unsynced.open(root.path());
    store.reserves = true;
    let mut small = spool(&store, "a.part", &[1; 5000], 1 << 20);
    small.expect(5000);
    small.write_out().unwrap();
    assert_eq!(small.reserved, 0);
    let mut large = spool(&store, "b.part", &vec![1; 90_000], 1 << 20);
    large.write_out().unwrap();
    assert_eq!(
        large.reserved,
        large.size(),
        "also where nobody said what would come"
    );
}

#[test]
fn a_spool_that_moves_leaves_nothing_where_it_was() {
    for (memory_bytes, from) in ways() {
        for to in Way::ALL {
            let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let [old, new] = [(&roots[0], from), (&roots[1], to)].map(|(root, way)| way.open(root.path()));
            let dataset: Vec<u8> = (0..300_000u32).map(|i| i.to_le_bytes()[0]).collect();
            let mut moved = spool(&old, "a.part", &dataset, memory_bytes);
            moved.move_to(&new).unwrap();
            moved.append(b"more").unwrap();
            moved.write_out().unwrap();
            assert_eq!(incoming(roots[0].path()), 0);
            assert_eq!(incoming(roots[1].path()), usize::from(to == Way::Named));
            let folder = make(&new);
            moved.publish(&folder, "3.dcm").unwrap();
            let there = std::fs::read(roots[1].path().join(path().relative())).unwrap();
            assert_eq!(there, [header(), dataset, b"more".to_vec()].concat());
            drop(moved);
            assert_eq!(incoming(roots[1].path()), 0);
        }
    }
}

#[test]
fn a_spool_that_cannot_move_leaves_nothing() {
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [old, new] = [0, 1].map(|at: usize| Way::Named.open(roots[at].path()));
    std::fs::write(roots[1].path().join(".incoming/b.part"), b"another's").unwrap();
    let mut stuck = spool(&old, "b.part", &[0; 5000], 1);
    assert!(stuck.move_to(&new).is_err());
    drop(stuck);
    assert_eq!(incoming(roots[0].path()), 0);
    assert_eq!(incoming(roots[1].path()), 1);
}

#[test]
fn a_dropped_spool_leaves_nothing() {
    for way in Way::ALL {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let named = usize::from(way == Way::Named);
        let spool = spool(&store, "a.part", &[0; 5000], 1);
        assert_eq!(incoming(root.path()), named);
        drop(spool);
        assert_eq!(incoming(root.path()), 0);
        let spool = self::spool(&store, "a.part", &[0; 5000], 1);
        let (_, file) = spool.into_scratch();
        assert!(file.is_none());
        assert_eq!(incoming(root.path()), 0);
    }
}

#[test]
fn a_name_that_is_taken_is_replaced() {
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let folder = make(&store);
        for dataset in [[1; 5000], [2; 5000], [3; 5000]] {
            let mut spool = spool(&store, "a.part", &dataset, memory_bytes);
            spool.write_out().unwrap();
            spool.publish(&folder, "3.dcm").unwrap();
            drop(spool);
            let there = std::fs::read(root.path().join(path().relative())).unwrap();
            assert_eq!(there, [header(), dataset.to_vec()].concat());
            assert_eq!(incoming(root.path()), 0);
        }
        // A folder cannot be replaced, and the temporary file goes with the spool.
        std::fs::create_dir(root.path().join(path().relative()).with_file_name("4.dcm")).unwrap();
        let mut spool = spool(&store, "a.part", &[0; 5000], memory_bytes);
        spool.write_out().unwrap();
        assert!(spool.publish(&folder, "4.dcm").is_err());
        drop(spool);
        assert_eq!(incoming(root.path()), 0);
    }
}

#[test]
fn what_is_prepared_is_used_once_and_bounded() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), options(Durability::None)).unwrap();
    let inode = |spool: &Spool<'_>| spool.file.as_ref().unwrap().metadata().unwrap().ino();
    store.prepare();
    let (first, second) = (
        spool(&store, "a.part", &[1; 5000], 1),
        spool(&store, "b.part", &[2; 5000], 1),
    );
    assert_ne!(inode(&first), inode(&second));
    drop((first, second));
    for _ in 0..100 {
        store.prepare();
    }
    assert_eq!(incoming(root.path()), 0);
    assert_eq!(store.nameless.ready().len(), nameless::MOST_READY);
    let synced = Way::Named.open(tempfile::tempdir().unwrap().path());
    synced.prepare();
    assert!(synced.nameless.ready().is_empty());
}

#[test]
fn what_goes_past_the_page_cache_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let store = Way::Ordered.open(root.path());
    let folder = make(&store);
    let least = direct::LEAST_BYTES - header().len();
    let sizes = [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 5000, 3 << 20].map(|more| least + more);
    for (size, memory_bytes) in sizes
        .into_iter()
        .flat_map(|size| [(size, 8 << 20), (size, 70_000)])
    {
        let dataset: Vec<u8> = (0..u32::try_from(size).unwrap())
            .map(|i| (i / 7).to_le_bytes()[0])
            .collect();
        let mut spool = spool(&store, "a.part", &dataset, memory_bytes);
        spool.write_out().unwrap();
        let rest = spool.written - spool.written_back;
        assert!(rest < 4096 || memory_bytes < size, "{rest} of {size}");
        spool.sync().unwrap();
        spool.publish(&folder, "3.dcm").unwrap();
        assert_eq!(
            std::fs::read(root.path().join(path().relative())).unwrap(),
            [header(), dataset].concat(),
            "{size}"
        );
    }
    assert!(!store.direct.is_for(direct::LEAST_BYTES - 1));
}

#[test]
fn folders_that_were_made_for_nothing_go_again() {
    let root = tempfile::tempdir().unwrap();
    let store = Way::Ordered.open(root.path());
    let path = path();
    let tenant = root.path().join("t");
    drop(store.folders().create(&path).unwrap());
    assert!(!tenant.exists(), "all four were new");
    let other = InstancePath::new(
        &TenantId::parse("t").unwrap(),
        None,
        &Uid::parse(b"8").unwrap(),
        &Uid::parse(b"9").unwrap(),
        &Uid::parse(b"10").unwrap(),
    );
    let (_, made) = store.folders().create(&other).unwrap();
    made.keep();
    drop(store.folders().create(&path).unwrap());
    assert!(root.path().join(other.folders()).exists());
    assert_eq!(
        std::fs::read_dir(&tenant).unwrap().count(),
        1,
        "its own were empty"
    );
    let used = store.folders().create(&path).unwrap();
    std::fs::write(root.path().join(path.relative()), b"x").unwrap();
    drop(used);
    assert!(
        root.path().join(path.relative()).exists(),
        "another instance came"
    );
}

#[test]
fn a_file_goes_to_quarantine_as_it_is_and_nothing_there_is_written_over() {
    let root = tempfile::tempdir().unwrap();
    let store = Way::Ordered.open(root.path());
    let path = path();
    let evidence = Evidence {
        trace_id: "01890a5d-ac96-774b-bcce-b302099a8057",
        path: path.relative(),
        recorded: (3, [1; 16]),
        found: (5, [2; 16]),
        record: "{\"n\":1}",
        reason: "a test",
    };
    let take = || store.quarantine().take(store.folders(), &evidence);
    assert_eq!(take().unwrap_err().kind(), io::ErrorKind::NotFound);
    let folder = make(&store);
    for content in ["first", "other"] {
        std::fs::write(root.path().join(path.relative()), content).unwrap();
        take().unwrap();
        assert!(folder.open_file(path.file_name()).unwrap().is_none());
    }
    let quarantine = root.path().join(".quarantine");
    let first = quarantine.join(evidence.trace_id);
    assert_eq!(std::fs::read(first.with_extension("dcm")).unwrap(), b"first");
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(first.with_extension("json")).unwrap()).unwrap();
    assert_eq!(note["path"], path.relative());
    assert_eq!(
        (&note["found_size"], &note["record"]["n"]),
        (&5.into(), &1.into())
    );
    assert_eq!(note["recorded_digest"], "01".repeat(16));
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 4);
    assert_eq!(store.quarantine().files(), 2);
    std::fs::remove_file(first.with_extension("dcm")).unwrap();
    store.quarantine().recount().unwrap();
    assert_eq!(store.quarantine().files(), 1);
}

#[test]
fn a_root_that_must_be_there_is_not_made() {
    let root = tempfile::tempdir().unwrap();
    let unmade = StoreOptions {
        create: false,
        ..options(Durability::None)
    };
    for absent in [root.path().join("unmounted"), root.path().to_owned()] {
        let error = Store::open(&absent, unmade).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    drop(Store::open(root.path(), options(Durability::None)).unwrap());
    Store::open(root.path(), unmade).unwrap();
}

#[test]
fn links_and_files_in_place_of_folders_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), options(Durability::None)).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.path().join("t")).unwrap();
    assert!(store.folders().create(&path()).is_err());
    std::fs::remove_file(root.path().join("t")).unwrap();
    std::fs::write(root.path().join("t"), b"x").unwrap();
    assert!(store.folders().create(&path()).is_err());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn one_root_has_one_owner() {
    let root = tempfile::tempdir().unwrap();
    let _first = Store::open(root.path(), options(Durability::None)).unwrap();
    assert_eq!(
        Store::open(root.path(), options(Durability::None))
            .unwrap_err()
            .kind(),
        io::ErrorKind::WouldBlock
    );
}
