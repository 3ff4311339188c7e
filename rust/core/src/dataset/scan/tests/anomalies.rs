//! What PS3.5 forbids and other readers follow is taken, and named.

use super::*;

const ITEM_BYTES: u32 = 8;

/// The identity, a sequence in one of many forms, and what follows.
fn with_sequence(sequence: &[u8]) -> Vec<u8> {
    [
        sequence.to_vec(),
        short(0x0020, 0x000D, *b"UI", b"1.2.3\0"),
        long(0x7FE0, 0x0010, *b"OW", 4),
        vec![1, 0, 2, 0],
    ]
    .concat()
}

fn sequence(length: u32, content: &[u8]) -> Vec<u8> {
    [long(0x0008, 0x1140, *b"SQ", length), content.to_vec()].concat()
}

fn bytes_of(content: &[u8]) -> u32 {
    u32::try_from(content.len()).unwrap()
}

/// The anomalies of a data set that is taken, in pieces of any size.
fn anomalies(bytes: &[u8]) -> Vec<&'static str> {
    let whole = scan(bytes, LITTLE).unwrap();
    assert_eq!(whole.captured()[0].bytes, b"1.2.3\0");
    for piece in [1, 3, 7] {
        let mut scanner = Scanner::new(
            LITTLE,
            &CapturedTags::identifying(&[STUDY]),
            ScanLimits::default(),
        );
        bytes.chunks(piece).for_each(|part| scanner.feed(part).unwrap());
        scanner.finish().unwrap();
        assert_eq!(scanner.anomalies(), whole.anomalies());
    }
    whole.anomalies().codes().collect()
}

#[test]
fn superfluous_delimiters_are_taken() {
    let inner = short(0x0008, 0x0060, *b"CS", b"CT");
    let size = bytes_of(&inner);
    let end_item = |length| item(ITEM_DELIMITATION, length);
    let end_sequence = |length| item(SEQUENCE_DELIMITATION, length);
    let closed = [item(ITEM, size), inner.clone()].concat();
    let open = [item(ITEM, UNDEFINED), inner.clone()].concat();
    let total = bytes_of(&closed);
    let inside = [item(ITEM, size + ITEM_BYTES), inner, end_item(0)].concat();
    let forms = [
        sequence(total + ITEM_BYTES, &[closed.clone(), end_sequence(0)].concat()),
        sequence(total, &[closed.clone(), end_sequence(0)].concat()),
        sequence(0, &end_sequence(0)),
        sequence(total + ITEM_BYTES, &inside),
        sequence(total + ITEM_BYTES, &[closed.clone(), end_item(0)].concat()),
        sequence(
            UNDEFINED,
            &[closed.clone(), end_item(0), end_sequence(0)].concat(),
        ),
        sequence(
            UNDEFINED,
            &[open.clone(), end_item(UNDEFINED), end_sequence(0)].concat(),
        ),
        sequence(
            UNDEFINED,
            &[open.clone(), end_item(0), end_sequence(UNDEFINED)].concat(),
        ),
        sequence(
            UNDEFINED,
            &[open, end_item(0), end_sequence(0), end_sequence(0)].concat(),
        ),
    ];
    for form in &forms {
        assert_eq!(anomalies(&with_sequence(form)), ["delimiter"], "{form:02x?}");
    }
    let whole = with_sequence(&[]);
    assert!(anomalies(&whole).is_empty());
    for end in [
        end_item(0),
        end_item(UNDEFINED),
        end_sequence(0),
        end_sequence(UNDEFINED),
        item(ITEM, 0),
    ] {
        assert_eq!(anomalies(&[whole.clone(), end].concat()), ["delimiter"]);
    }
}

#[test]
fn a_delimiter_that_readers_take_for_the_end_has_nothing_behind_it() {
    let bytes = with_sequence(&item(ITEM_DELIMITATION, 0));
    assert_eq!(scan(&bytes, LITTLE).unwrap_err(), ScanError::ItemStructure);
}

#[test]
fn wrong_and_missing_delimiters_are_errors() {
    let inner = [item(ITEM, UNDEFINED), short(0x0008, 0x0060, *b"CS", b"CT")].concat();
    for end in [
        item(SEQUENCE_DELIMITATION, 0),
        item(ITEM_DELIMITATION, 0),
        [item(ITEM_DELIMITATION, 0), item(ITEM_DELIMITATION, 0)].concat(),
    ] {
        let bytes = with_sequence(&sequence(UNDEFINED, &[inner.clone(), end].concat()));
        scan(&bytes, LITTLE).unwrap_err();
    }
}

#[test]
fn delimiters_of_pixel_data_concern_them() {
    let whole = encapsulated();
    let trailing = whole.len() - 10;
    let pixels = &whole[..trailing - 8];
    for end in [
        item(SEQUENCE_DELIMITATION, UNDEFINED),
        [item(ITEM_DELIMITATION, 0), item(SEQUENCE_DELIMITATION, 0)].concat(),
    ] {
        let bytes = [pixels.to_vec(), end].concat();
        assert_eq!(anomalies(&bytes), ["delimiter"]);
        assert!(scan(&bytes, LITTLE).unwrap().anomalies().concern_pixel_data());
    }
    let twice = [whole[..trailing].to_vec(), item(SEQUENCE_DELIMITATION, 0)].concat();
    assert_eq!(anomalies(&twice), ["delimiter"]);
    assert!(!scan(&twice, LITTLE).unwrap().anomalies().concern_pixel_data());
}

#[test]
fn any_number_of_zero_bytes_may_follow_and_nothing_else() {
    let whole = with_sequence(&[]);
    for count in [2, 7, 8, 9, 11, 12, 512, 100_001] {
        let mut bytes = whole.clone();
        bytes.resize(whole.len() + count, 0);
        assert_eq!(anomalies(&bytes), ["trailing_bytes"], "{count}");
        bytes.push(1);
        scan(&bytes, LITTLE).unwrap_err();
    }
    assert!(anomalies(&[whole.clone(), vec![0]].concat()).is_empty());
    scan(&[whole, vec![b' ']].concat(), LITTLE).unwrap_err();
}

#[test]
fn a_sequence_of_defined_length_is_passed_over_where_its_content_is_none() {
    let inner = short(0x0008, 0x0060, *b"CS", b"CTCTCT");
    for content in [
        b"history of nothing. ".to_vec(),
        [item(ITEM, UNDEFINED), inner.clone()].concat(),
        [item(ITEM, bytes_of(&inner)), inner.clone(), vec![1; 11]].concat(),
        [item(ITEM, UNDEFINED), inner, item(SEQUENCE_DELIMITATION, 0)].concat(),
    ] {
        let form = sequence(bytes_of(&content), &content);
        assert_eq!(
            anomalies(&with_sequence(&form)),
            ["sequence_content"],
            "{form:02x?}"
        );
        let last = [
            short(0x0008, 0x0005, *b"CS", b""),
            short(0x0020, 0x000D, *b"UI", b"1.2.3\0"),
        ]
        .concat();
        assert_eq!(anomalies(&[last, form].concat()), ["sequence_content"]);
    }
}

#[test]
fn an_element_that_lost_a_part_is_not_passed_over() {
    let inner = short(0x0008, 0x0060, *b"CS", b"CTCTCT");
    for content in [
        [item(ITEM, 10), inner.clone()].concat(),
        [item(ITEM, bytes_of(&inner)), inner.clone()[..10].to_vec()].concat(),
        [item(ITEM, bytes_of(&inner)), inner, vec![0, 0]].concat(),
    ] {
        let form = sequence(bytes_of(&content), &content);
        assert_eq!(
            scan(&with_sequence(&form), LITTLE).unwrap_err(),
            ScanError::BeyondContainer
        );
    }
}

fn odd(vr: [u8; 2], rest: &[u8]) -> Vec<u8> {
    [vec![0x10, 0, 0xB0, 0x21], vr.to_vec(), rest.to_vec()].concat()
}

const HISTORY: &[u8; 20] = b"history of nothing. ";

#[test]
fn illegal_value_representations_are_read_as_others_read_them() {
    let with_length = |length: &[u8], value: &[u8]| [length, value].concat();
    for vr in [*b"--", *b"??", *b"  ", [0, 0], *b"lt", *b"L ", *b"RE", *b"XS"] {
        for form in [with_length(&[20, 0], HISTORY), with_length(&[0, 0], &[])] {
            assert_eq!(
                anomalies(&with_sequence(&odd(vr, &form))),
                ["illegal_vr"],
                "{vr:?}"
            );
        }
    }
    for vr in [*b"RE", *b"ZZ", *b"OX"] {
        let form = with_length(&[0, 0, 20, 0, 0, 0], HISTORY);
        assert_eq!(
            anomalies(&with_sequence(&odd(vr, &form))),
            ["illegal_vr"],
            "{vr:?}"
        );
    }
    let implicit = odd([20, 0], &[&[0, 0][..], HISTORY].concat());
    assert_eq!(anomalies(&with_sequence(&implicit)), ["illegal_vr"]);
    let many = odd(*b"--", &with_length(&[20, 0], HISTORY)).repeat(500);
    assert_eq!(anomalies(&with_sequence(&many)), ["illegal_vr"]);
}

#[test]
fn an_illegal_value_representation_may_end_the_data_set() {
    let last = [
        short(0x0020, 0x000D, *b"UI", b"1.2.3\0"),
        short(0x4A00, 0, *b"J\0", b""),
    ]
    .concat();
    assert_eq!(anomalies(&last), ["illegal_vr"]);
}

#[test]
fn an_illegal_value_representation_that_no_reading_explains_is_named() {
    for vr in [*b"??", *b"  ", [0, 0]] {
        let bytes = with_sequence(&odd(vr, &[&[0, 0, 20, 0, 0, 0][..], HISTORY].concat()));
        let error = scan(&bytes, LITTLE).unwrap_err();
        assert!(
            matches!(error, ScanError::IllegalVr(header) if header.vr == vr),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.len() <= 64 && text.contains("(0010,21B0)"), "{text}");
    }
}

/// An element with a future value representation of a 32-bit length, whose value is `hidden`; or one of a 16-bit length of 4, behind
/// which `hidden` comes as elements.
fn two_readings(hidden: &[u8]) -> Vec<u8> {
    odd(
        *b"RE",
        &[&[4, 0][..], &bytes_of(hidden).to_le_bytes(), hidden].concat(),
    )
}

#[test]
fn readings_must_agree_on_the_identity() {
    let ours = short(0x0020, 0x000D, *b"UI", b"1.2.3\0");
    let theirs = short(0x0020, 0x000D, *b"UI", b"9.9.9\0");
    let harmless = short(0x0008, 0x0060, *b"CS", b"CT");
    let both = [two_readings(&harmless), ours.clone()].concat();
    assert_eq!(anomalies(&both), ["illegal_vr"]);
    let garbage = [theirs.clone(), vec![7; 6]].concat();
    for bytes in [
        // Both reach the end, and one finds no UID.
        two_readings(&theirs),
        // One finds two UIDs.
        [two_readings(&theirs), ours.clone()].concat(),
        // One finds another UID before it comes to no end.
        [two_readings(&garbage), ours].concat(),
    ] {
        let error = scan(&bytes, LITTLE).unwrap_err();
        assert!(matches!(error, ScanError::Ambiguous(_)), "{error}");
        assert!(error.to_string().len() <= 64, "{error}");
    }
}

#[test]
fn groups_that_do_not_belong_are_taken() {
    for group in [0x0001, 0x0003, 0x0005, 0x0006, 0x0007, 0xFFFF] {
        let bytes = [short(group, 0x0010, *b"LO", b"AB"), with_sequence(&[])].concat();
        assert_eq!(anomalies(&bytes), ["reserved_group"], "{group:04x}");
        assert_eq!(scan(&bytes, LITTLE).unwrap().file_meta_bytes(), 0);
    }
    let meta = [
        short(0x0002, 0x0002, *b"UI", b"1.2\0"),
        short(0x0002, 0x0010, *b"UI", b"1.2.840.10008.1.2\0"),
    ]
    .concat();
    let first = [meta.clone(), with_sequence(&[])].concat();
    assert_eq!(anomalies(&first), ["file_meta_in_data_set"]);
    assert_eq!(
        scan(&first, LITTLE).unwrap().file_meta_bytes(),
        u64::from(bytes_of(&meta))
    );
    let last = [with_sequence(&[]), meta].concat();
    assert_eq!(anomalies(&last), ["reserved_group"]);
    assert_eq!(scan(&last, LITTLE).unwrap().file_meta_bytes(), 0);
}
