//! Replaced files by themselves: names, bound, age.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::*;
use crate::layout::TenantId;
use crate::store::folders::Folders;
use crate::uid::Uid;

fn path(instance: u32) -> InstancePath {
    let uid = |text: &str| Uid::parse(text.as_bytes()).unwrap();
    let tenant = TenantId::parse("hospital_a").unwrap();
    InstancePath::new(&tenant, None, &uid("1"), &uid("2"), &uid(&instance.to_string()))
}

struct Fixture {
    root: tempfile::TempDir,
    folders: Folders,
    replaced: Replaced,
}

impl Fixture {
    fn new(limits: ReplacedLimits) -> Self {
        let root = tempfile::tempdir().unwrap();
        let descriptor = OwnedFd::from(File::open(root.path()).unwrap());
        Self {
            replaced: Replaced::open(&descriptor, limits, Durability::Full).unwrap(),
            folders: Folders::new(descriptor),
            root,
        }
    }

    /// Stores ten bytes and puts them aside.
    fn put_aside(&self, instance: u32) -> Result<Aside<'_>, ReplacedError> {
        self.put_aside_for(instance, MakesRoom::ByRemovingOldest)
    }

    fn put_aside_for(&self, instance: u32, makes_room: MakesRoom) -> Result<Aside<'_>, ReplacedError> {
        let path = path(instance);
        let (folder, made) = self.folders.create(&path).unwrap();
        made.keep();
        std::fs::write(self.root.path().join(path.relative()), [7; 10]).unwrap();
        self.replaced.put_aside(&folder, &path, 10, makes_room)
    }

    fn names(&self) -> Vec<String> {
        let all = self.root.path().join(REPLACED);
        let mut names: Vec<String> = std::fs::read_dir(all)
            .unwrap()
            .flat_map(|day| std::fs::read_dir(day.unwrap().path()).unwrap())
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Has what was put aside be older.
    fn age(&self, days: i64) {
        let all = self.root.path().join(REPLACED);
        let today = Utc::now().format(DAY_FORMAT).to_string();
        let then = (Utc::now() - chrono::TimeDelta::days(days))
            .format(DAY_FORMAT)
            .to_string();
        std::fs::rename(all.join(today), all.join(then)).unwrap();
        let mut state = self.replaced.lock();
        state.oldest.clear();
        state.all_listed = None;
    }

    fn sweep(&self) -> (u64, Found<(String, String)>) {
        self.replaced.sweep(Utc::now(), &AtomicBool::new(false))
    }
}

const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

fn limits(retention: Duration, max_bytes: u64) -> ReplacedLimits {
    ReplacedLimits {
        retention,
        max_bytes: Some(max_bytes),
    }
}

fn inode(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

#[test]
fn a_replaced_file_has_a_second_name_until_the_replacement_fails() {
    let fixture = Fixture::new(limits(MONTH, 1000));
    drop(fixture.put_aside(3).unwrap());
    assert!(fixture.names().is_empty());
    assert_eq!(fixture.replaced.usage().files, 0);
    fixture.put_aside(3).unwrap().keep();
    let names = fixture.names();
    assert!(
        names[0].ends_with("_hospital_a_3.dcm") && names.len() == 1,
        "{names:?}"
    );
    let day = std::fs::read_dir(fixture.root.path().join(REPLACED))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(
        inode(&day.path().join(&names[0])),
        inode(&fixture.root.path().join(path(3).relative()))
    );
    let usage = fixture.replaced.usage();
    assert_eq!(
        (usage.files, usage.bytes, usage.replaced, usage.max_bytes),
        (1, 10, 1, 1000)
    );
}

#[test]
fn names_say_when_and_sort_by_age() {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(age("20270114", "080000000000_t_1.2.dcm", now), Some(day));
    assert_eq!(
        age("20270116", "080000000000_t_1.2.dcm", now),
        Some(Duration::ZERO),
        "of the future"
    );
    for strange in ["080000_t_1.dcm", "a.dcm", "", "999999999999_t_1.dcm"] {
        assert_eq!(age("20270114", strange, now), None, "{strange}");
    }
}

#[test]
fn the_oldest_make_room_and_none_younger_than_a_day() {
    let fixture = Fixture::new(limits(MONTH, 35));
    for instance in 1..=3 {
        fixture.put_aside(instance).unwrap().keep();
    }
    assert!(matches!(fixture.put_aside(4), Err(ReplacedError::Full)));
    assert_eq!(fixture.names().len(), 3);
    fixture.age(2);
    fixture.put_aside(4).unwrap().keep();
    let names = fixture.names();
    assert_eq!(names.len(), 3);
    assert!(!names.iter().any(|name| name.ends_with("_1.dcm")), "{names:?}");
    assert_eq!(fixture.replaced.usage().bytes, 30);
    assert!(matches!(
        Fixture::new(limits(MONTH, 5)).put_aside(1),
        Err(ReplacedError::Full)
    ));
}

#[test]
fn what_is_done_without_a_sender_takes_half_and_removes_none() {
    let fixture = Fixture::new(limits(MONTH, 40));
    let aside = |instance| fixture.put_aside_for(instance, MakesRoom::Never);
    aside(1).unwrap().keep();
    fixture.age(2);
    aside(2).unwrap().keep();
    assert!(matches!(aside(3), Err(ReplacedError::Full)));
    assert_eq!(fixture.names().len(), 2);
    for instance in [3, 4] {
        fixture.put_aside(instance).unwrap().keep();
    }
    assert_eq!(fixture.names().len(), 4, "senders have the rest");
}

#[test]
fn nothing_goes_for_what_finds_no_room_all_the_same() {
    let fixture = Fixture::new(limits(MONTH, 35));
    fixture.put_aside(1).unwrap().keep();
    fixture.age(2);
    for instance in 2..=3 {
        fixture.put_aside(instance).unwrap().keep();
    }
    for bytes in [36, 30] {
        assert!(matches!(
            fixture.replaced.make_room(bytes, Utc::now()),
            Err(ReplacedError::Full)
        ));
        assert_eq!(fixture.names().len(), 3);
    }
    fixture.age(0);
    fixture.replaced.make_room(15, Utc::now()).unwrap();
    assert_eq!(fixture.names().len(), 2);
    assert_eq!(fixture.replaced.usage().bytes, 35);
}

#[test]
fn what_an_operator_removed_makes_room_at_once() {
    let fixture = Fixture::new(limits(MONTH, 25));
    for instance in 1..=2 {
        fixture.put_aside(instance).unwrap().keep();
    }
    std::fs::remove_dir_all(fixture.root.path().join(REPLACED)).unwrap();
    fixture.put_aside(3).unwrap().keep();
    assert_eq!((fixture.names().len(), fixture.replaced.usage().bytes), (1, 10));
}

#[test]
fn a_sweep_removes_what_is_too_old_and_counts_the_rest() {
    let fixture = Fixture::new(limits(MONTH, 1000));
    for instance in 1..=3 {
        fixture.put_aside(instance).unwrap().keep();
    }
    fixture.age(31);
    fixture.put_aside(4).unwrap().keep();
    let all = fixture.root.path().join(REPLACED);
    std::fs::write(all.join("notes.txt"), b"of an operator's").unwrap();
    assert_eq!(fixture.sweep(), (3, Found::default()));
    let usage = fixture.replaced.usage();
    assert_eq!((usage.files, usage.bytes), (1, 10));
    assert_eq!(
        std::fs::read_dir(&all).unwrap().count(),
        2,
        "the folder of the day went too"
    );
    assert_eq!(fixture.sweep().0, 0);
}

#[test]
fn with_no_retention_nothing_is_kept() {
    let fixture = Fixture::new(limits(Duration::ZERO, 0));
    fixture.put_aside(1).unwrap().keep();
    assert!(!fixture.root.path().join(REPLACED).exists());
    assert_eq!(fixture.replaced.usage().files, 0);
}
