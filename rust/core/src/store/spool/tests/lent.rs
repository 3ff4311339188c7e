//! Results of another process, which may still change what it wrote.

use std::io::ErrorKind;

use super::*;
use crate::transcode::pool::Sink as _;

fn dataset() -> Vec<u8> {
    (0..700_000u32).map(|i| i.to_le_bytes()[0]).collect()
}

fn result(store: &Store, memory_bytes: usize) -> Spool<'_> {
    let name = "b.part".to_owned();
    Spool::begin(store, name, "1.2", &header(), memory_bytes, Vec::new()).unwrap()
}

/// The file as the other process has it.
fn lent(spool: &mut Spool<'_>) -> (File, u64) {
    let (file, offset) = spool.file().unwrap();
    (file.try_clone_to_owned().unwrap().into(), offset)
}

/// The bytes of the file, which are those that its size and digest tell of.
fn whole(spool: &mut Spool<'_>) -> Vec<u8> {
    spool.write_out().unwrap();
    let mut bytes = vec![0; usize::try_from(spool.size()).unwrap()];
    let file = spool.file.as_ref().unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), spool.size());
    let mut digest = Digester::default();
    digest.update(&bytes);
    assert_eq!(digest.digest(), spool.digest());
    bytes
}

#[test]
fn another_process_can_read_a_data_set() {
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let mut received = spool(&store, "a.part", &dataset(), memory_bytes);
        match received.as_input().unwrap() {
            Input::Memory(parts) => assert_eq!(parts.concat(), dataset()),
            Input::File(file, offset) => {
                let mut read = vec![0; dataset().len()];
                let file = os::read_only(file).unwrap();
                file.read_exact_at(&mut read, offset).unwrap();
                assert_eq!(read, dataset());
                #[cfg(target_os = "linux")]
                assert!(file.write_at(b"x", offset).is_err());
            }
        }
    }
}

#[test]
fn a_small_result_comes_behind_the_header() {
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        let mut small = result(&store, memory_bytes);
        small.meanwhile().unwrap();
        small.take(&dataset()).unwrap();
        assert_eq!(whole(&mut small), [header(), dataset()].concat());
        drop(small);
        assert_eq!(incoming(root.path()), 0);
    }
}

#[test]
fn a_file_is_taken_over_where_nobody_can_change_it_and_else_copied() {
    for (memory_bytes, way) in ways() {
        for is_kept_open in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = way.open(root.path());
            let mut large = result(&store, memory_bytes);
            let (theirs, offset) = lent(&mut large);
            large.meanwhile().unwrap();
            theirs.write_all_at(&dataset(), offset).unwrap();
            let inode = theirs.metadata().unwrap().ino();
            let theirs = is_kept_open.then_some(theirs);
            large.take_over(dataset().len() as u64).unwrap();
            if let Some(theirs) = &theirs {
                theirs.write_all_at(b"changed", offset).unwrap();
                theirs.set_len(3).unwrap();
            }
            assert_eq!(whole(&mut large), [header(), dataset()].concat());
            #[cfg(target_os = "linux")]
            assert_eq!(
                large.file.as_ref().unwrap().metadata().unwrap().ino() == inode,
                !is_kept_open
            );
            let folder = root.path().join("series");
            std::fs::create_dir(&folder).unwrap();
            large
                .publish_in(File::open(&folder).unwrap().as_fd(), "x.dcm")
                .unwrap();
            assert_eq!(
                std::fs::read(folder.join("x.dcm")).unwrap(),
                [header(), dataset()].concat()
            );
            drop(large);
            assert_eq!(incoming(root.path()), 0);
        }
    }
}

#[test]
fn a_result_of_another_size_or_with_another_header_is_refused() {
    for (memory_bytes, way) in ways() {
        for is_kept_open in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = way.open(root.path());
            for (bytes, at) in [(4, None), (6, None), (5, Some(1))] {
                let mut large = result(&store, memory_bytes);
                let (theirs, offset) = lent(&mut large);
                large.meanwhile().unwrap();
                large.write_out().unwrap();
                theirs.write_all_at(b"12345", offset).unwrap();
                if let Some(at) = at {
                    theirs.write_all_at(b"changed", at).unwrap();
                }
                let theirs = is_kept_open.then_some(theirs);
                let taken = large.take_over(bytes);
                if at.is_some() && (is_kept_open || cfg!(not(target_os = "linux"))) {
                    // The header is ours.
                    taken.unwrap();
                    assert_eq!(whole(&mut large), [header(), b"12345".to_vec()].concat());
                } else {
                    assert_eq!(taken.unwrap_err().kind(), ErrorKind::InvalidData);
                }
                drop((large, theirs));
                assert_eq!(incoming(root.path()), 0);
            }
        }
    }
}

#[test]
fn a_result_of_any_other_length_is_none() {
    for (memory_bytes, way) in ways() {
        let root = tempfile::tempdir().unwrap();
        let store = way.open(root.path());
        for bytes in [0, 6, 8, u64::MAX, u64::MAX - 1] {
            let mut spool = result(&store, memory_bytes);
            let (file, offset) = lent(&mut spool);
            file.write_all_at(b"written", offset).unwrap();
            let error = spool.take_over(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{bytes}");
        }
        let mut never_lent = result(&store, memory_bytes);
        assert_eq!(
            never_lent.take_over(0).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }
}
