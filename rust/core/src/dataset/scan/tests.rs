//! Tests of the scan: structure, limits, and any bytes in any pieces.

mod anomalies;

use super::*;
use crate::dataset::header::{ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION, UNDEFINED};
use dicom_core::Tag;
use proptest::prelude::*;

const STUDY: Tag = Tag(0x0020, 0x000D);
const LITTLE: Encoding = Encoding::EXPLICIT_LITTLE;

fn short(group: u16, element: u16, vr: [u8; 2], value: &[u8]) -> Vec<u8> {
    let mut out = [group.to_le_bytes(), element.to_le_bytes()].concat();
    out.extend_from_slice(&vr);
    out.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
    out.extend_from_slice(value);
    out
}

fn long(group: u16, element: u16, vr: [u8; 2], length: u32) -> Vec<u8> {
    let mut out = [group.to_le_bytes(), element.to_le_bytes()].concat();
    out.extend_from_slice(&vr);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out
}

fn item(tag: Tag, length: u32) -> Vec<u8> {
    let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    out.extend_from_slice(&length.to_le_bytes());
    out
}

fn scan(bytes: &[u8], encoding: Encoding) -> Result<Scanner, ScanError> {
    let mut scanner = Scanner::new(
        encoding,
        &CapturedTags::identifying(&[STUDY]),
        ScanLimits::default(),
    );
    scanner.feed(bytes)?;
    scanner.finish()?;
    Ok(scanner)
}

fn encapsulated() -> Vec<u8> {
    [
        short(0x0020, 0x000D, *b"UI", b"1.2.3\0"),
        long(0x7FE0, 0x0010, *b"OB", UNDEFINED),
        item(ITEM, 0),
        item(ITEM, 4),
        vec![1, 2, 3, 4],
        item(SEQUENCE_DELIMITATION, 0),
        short(0xFFFC, 0xFFFC, *b"LO", b"  "),
    ]
    .concat()
}

#[test]
fn values_are_captured_and_the_structure_followed_to_the_end() {
    let scanner = scan(&encapsulated(), LITTLE).unwrap();
    assert_eq!(scanner.captured()[0].bytes, b"1.2.3\0");
    assert!(scanner.has_pixel_data());
}

#[test]
fn every_cut_of_an_encapsulated_image_is_an_error() {
    let whole = encapsulated();
    let trailing = whole.len() - 10;
    let first = short(0x0020, 0x000D, *b"UI", b"1.2.3\0").len();
    for cut in (1..whole.len()).filter(|&cut| cut != trailing && cut != first) {
        assert_eq!(
            scan(&whole[..cut], LITTLE).unwrap_err(),
            ScanError::Truncated,
            "cut at {cut}"
        );
    }
}

#[test]
fn a_native_image_that_declares_more_than_it_has_is_truncated() {
    let bytes = [long(0x7FE0, 0x0010, *b"OW", 0xFFFF_FFFE), vec![0; 100]].concat();
    assert_eq!(scan(&bytes, LITTLE).unwrap_err(), ScanError::Truncated);
}

#[test]
fn nesting_is_bounded_with_and_without_defined_lengths() {
    let open: Vec<u8> = (0..100_000)
        .flat_map(|_| [long(0x0040, 0xA730, *b"SQ", UNDEFINED), item(ITEM, UNDEFINED)].concat())
        .collect();
    assert_eq!(scan(&open, LITTLE).unwrap_err(), ScanError::Nesting);
    let mut closed = Vec::new();
    for _ in 0..100 {
        let size = u32::try_from(closed.len()).unwrap();
        closed = [long(0x0040, 0xA730, *b"SQ", size + 8), item(ITEM, size), closed].concat();
    }
    assert_eq!(scan(&closed, LITTLE).unwrap_err(), ScanError::Nesting);
    // In Implicit VR the dictionary tells that (0040,A730) is a sequence.
    let mut implicit = Vec::new();
    for _ in 0..100 {
        let size = u32::try_from(implicit.len()).unwrap();
        implicit = [item(Tag(0x0040, 0xA730), size + 8), item(ITEM, size), implicit].concat();
    }
    assert_eq!(
        scan(&implicit, Encoding::IMPLICIT_LITTLE).unwrap_err(),
        ScanError::Nesting
    );
}

#[test]
fn sixty_four_levels_are_taken() {
    let mut closed = Vec::new();
    for _ in 0..64 {
        closed = [
            long(0x0040, 0xA730, *b"SQ", UNDEFINED),
            item(ITEM, UNDEFINED),
            closed,
            item(ITEM_DELIMITATION, 0),
            item(SEQUENCE_DELIMITATION, 0),
        ]
        .concat();
    }
    assert!(scan(&closed, LITTLE).is_ok());
}

#[test]
fn an_element_beyond_its_item_is_an_error() {
    let inside = [item(ITEM, 10), short(0x0008, 0x0060, *b"CS", b"CTCTCT")].concat();
    let open = [
        long(0x0040, 0xA730, *b"SQ", UNDEFINED),
        inside.clone(),
        item(SEQUENCE_DELIMITATION, 0),
    ]
    .concat();
    assert_eq!(scan(&open, LITTLE).unwrap_err(), ScanError::BeyondContainer);
    let cut = [long(0x0040, 0xA730, *b"SQ", 18), inside].concat();
    assert_eq!(scan(&cut, LITTLE).unwrap_err(), ScanError::BeyondContainer);
}

#[test]
fn un_of_undefined_length_is_read_as_implicit() {
    let bytes = [
        long(0x0009, 0x1001, *b"UN", UNDEFINED),
        item(ITEM, UNDEFINED),
        item(Tag(0x0009, 0x1002), 2),
        vec![b'A', b'B'],
        item(ITEM_DELIMITATION, 0),
        item(SEQUENCE_DELIMITATION, 0),
    ]
    .concat();
    assert!(scan(&bytes, LITTLE).is_ok());
}

#[test]
fn command_elements_are_no_part_of_a_data_set() {
    let bytes = short(0x0000, 0x0002, *b"UI", b"1.2.840.10008.1.1\0");
    assert_eq!(scan(&bytes, LITTLE).unwrap_err(), ScanError::ForbiddenGroup);
}

#[test]
fn a_repeated_identifying_attribute_is_refused() {
    let uid = short(0x0020, 0x000D, *b"UI", b"1.2.3\0");
    assert_eq!(
        scan(&[uid.clone(), uid].concat(), LITTLE).unwrap_err(),
        ScanError::Repeated
    );
}

#[test]
fn readings_that_find_the_same_value_agree_however_they_read_its_header() {
    let wanted = CapturedTags::identifying(&[STUDY, Tag(0x0008, 0x0050)]);
    // An Accession Number without a value: for one reading of a VR that is none, for another one in the implicit form.
    let bytes = [
        b"\x08\0\x50\0\0\0\0\0".to_vec(),
        short(0x0020, 0x000D, *b"UI", b"1.2.3\0"),
    ]
    .concat();
    let mut scanner = Scanner::new(LITTLE, &wanted, ScanLimits::default());
    scanner.feed(&bytes).unwrap();
    scanner.finish().unwrap();
    assert_eq!(scanner.captured()[0].bytes, b"1.2.3\0");
}

#[test]
fn what_is_in_a_sequence_identifies_nothing() {
    let patient_id = Tag(0x0010, 0x0020);
    for (content, end) in [
        (b"P1234567".to_vec(), Vec::new()),
        (item(ITEM, 0), item(SEQUENCE_DELIMITATION, 0)),
    ] {
        let length = if end.is_empty() { 8 } else { UNDEFINED };
        let bytes = [long(0x0010, 0x0020, *b"SQ", length), content, end].concat();
        let captured = |wanted: &CapturedTags| {
            let mut scanner = Scanner::new(LITTLE, wanted, ScanLimits::default());
            scanner.feed(&bytes).unwrap();
            scanner.finish().unwrap();
            scanner.captured()[0].clone()
        };
        let identifying = captured(&CapturedTags::identifying(&[patient_id]));
        assert!(identifying.present && identifying.cut && identifying.bytes.is_empty());
        let describing = captured(&CapturedTags::new(&[], &[patient_id]));
        assert_eq!(describing.cut, length == 8);
    }
}

#[test]
fn attributes_inside_sequences_are_not_captured() {
    let inner = short(0x0020, 0x000D, *b"UI", b"9.9.9\0");
    let bytes = [
        long(0x0008, 0x1140, *b"SQ", UNDEFINED),
        item(ITEM, u32::try_from(inner.len()).unwrap()),
        inner,
        item(SEQUENCE_DELIMITATION, 0),
    ]
    .concat();
    let scanner = scan(&bytes, LITTLE).unwrap();
    assert!(!scanner.captured()[0].present);
}

#[test]
fn many_elements_items_and_fragments_are_linear() {
    let started = std::time::Instant::now();
    let elements: Vec<u8> = (0..600_000u32)
        .flat_map(|_| short(0x0009, 0x1001, *b"LO", b""))
        .collect();
    assert!(scan(&elements, LITTLE).is_ok());
    let items = [
        long(0x0040, 0xA730, *b"SQ", UNDEFINED),
        item(ITEM, 0).repeat(1_000_000),
        item(SEQUENCE_DELIMITATION, 0),
    ]
    .concat();
    assert!(scan(&items, LITTLE).is_ok());
    let fragments = [
        long(0x7FE0, 0x0010, *b"OB", UNDEFINED),
        item(ITEM, 0).repeat(1_000_000),
        item(SEQUENCE_DELIMITATION, 0),
    ]
    .concat();
    assert!(scan(&fragments, LITTLE).is_ok());
    assert!(started.elapsed().as_secs() < 3);
}

#[test]
fn memory_that_is_used_again_holds_nothing_of_the_last_data_set() {
    let wanted = [STUDY, Tag(0x0008, 0x0050)];
    let limits = ScanLimits {
        value_bytes: 4,
        ..ScanLimits::default()
    };
    let mut first = Scanner::new(LITTLE, &CapturedTags::identifying(&wanted), limits);
    first.feed(&encapsulated()).unwrap();
    let values = first.into_captured();
    assert!(values[0].present && values[0].cut && !values[0].bytes.is_empty());
    for count in 0..=2 {
        let next = Scanner::reusing(
            values.clone(),
            LITTLE,
            &CapturedTags::identifying(&wanted[..count]),
            limits,
        );
        assert_eq!(next.captured(), vec![Captured::default(); count]);
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400), piece in 1usize..40, implicit: bool) {
        let encoding = if implicit { Encoding::IMPLICIT_LITTLE } else { LITTLE };
        let whole = scan(&bytes, encoding).map(|s| s.captured().to_vec());
        let mut scanner = Scanner::new(encoding, &CapturedTags::identifying(&[STUDY]), ScanLimits::default());
        let pieces = bytes.chunks(piece).try_for_each(|part| scanner.feed(part)).and_then(|()| scanner.finish());
        prop_assert_eq!(whole, pieces.map(|()| scanner.captured().to_vec()));
    }

    #[test]
    fn a_real_image_in_any_pieces_is_read(piece in 1usize..90) {
        let mut scanner = Scanner::new(LITTLE, &CapturedTags::identifying(&[STUDY]), ScanLimits::default());
        for part in encapsulated().chunks(piece) {
            scanner.feed(part).unwrap();
        }
        scanner.finish().unwrap();
        prop_assert_eq!(&scanner.captured()[0].bytes[..], b"1.2.3\0");
    }
}
