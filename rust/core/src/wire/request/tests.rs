use super::*;
use proptest::prelude::*;

const CT: &[u8] = b"1.2.840.10008.5.1.4.1.1.2";
const EXPLICIT: &[u8] = b"1.2.840.10008.1.2.1";
const DICOM: &[u8] = APPLICATION_CONTEXT_NAME.as_bytes();

fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, kind, value);
    out
}

fn context(id: u8, items: &[Vec<u8>]) -> Vec<u8> {
    item(0x20, &[vec![id, 0, 0, 0], items.concat()].concat())
}

fn ct(id: u8) -> Vec<u8> {
    context(id, &[item(0x30, CT), item(0x40, EXPLICIT)])
}

fn user(items: &[Vec<u8>]) -> Vec<u8> {
    item(0x50, &[usual(), items.concat()].concat())
}

fn usual() -> Vec<u8> {
    [item(0x51, &16384u32.to_be_bytes()), item(0x52, b"1.2.3.4")].concat()
}

fn request(items: &[Vec<u8>]) -> Vec<u8> {
    let items = items.concat();
    let length = u32::try_from(68 + items.len()).unwrap();
    let titles = b"STORE-SCP       CT1             ";
    let header = [
        &[1, 0][..],
        &length.to_be_bytes(),
        &[0, 1, 0, 0],
        titles,
        &[0; 32],
    ];
    [header.concat(), items].concat()
}

fn plain() -> Vec<u8> {
    request(&[item(0x10, DICOM), ct(1), user(&[])])
}

/// What becomes of a request with these items: it is clean, stays clean, and has these oddities.
#[track_caller]
fn assert_cleaned(items: &[Vec<u8>], expected: &[u8], odd: &[(Kind, &str)]) {
    let cleaned = clean(&request(items)).unwrap();
    assert_eq!(cleaned.pdu, expected);
    let found: Vec<_> = cleaned
        .oddities
        .iter()
        .map(|one| (one.kind, one.detail.as_str()))
        .collect();
    assert_eq!(found, odd);
    let again = clean(expected).unwrap();
    assert_eq!((again.pdu.as_slice(), again.oddities), (expected, Vec::new()));
}

#[track_caller]
fn assert_user_item_is_left_out(value: Vec<u8>, odd: (Kind, &str)) {
    assert_cleaned(&[item(0x10, DICOM), ct(1), user(&[value])], &plain(), &[odd]);
}

#[test]
fn what_is_clean_stays_as_it_is() {
    let identity = item(0x58, b"\x02\x01\0\x03bob\0\x02pw");
    let items = [
        item(0x10, DICOM),
        ct(1),
        context(
            255,
            &[item(0x30, b"1.02.3"), item(0x40, EXPLICIT), item(0x40, b"1.2")],
        ),
        user(&[item(0x55, b"VENDOR 1.0"), identity]),
    ];
    assert_cleaned(&items, &request(&items), &[]);
}

#[test]
fn items_of_unknown_type_are_ignored_wherever_they_stand() {
    let inner = context(
        1,
        &[
            item(0x41, b"x"),
            item(0x30, CT),
            item(0x99, b""),
            item(0x40, EXPLICIT),
            item(0x41, b"y"),
        ],
    );
    let items = [
        item(0x11, b"z"),
        item(0x10, DICOM),
        inner,
        item(0x21, b"\x01\0\0\0"),
        item(
            0x50,
            &[item(0x5A, &[1, 2]), usual(), item(0x59, b""), item(0xFF, &[])].concat(),
        ),
        item(0x00, b""),
    ];
    let odd = [
        (Kind::UnknownItem, "11 in the request"),
        (Kind::UnknownItem, "41 in a presentation context"),
        (Kind::UnknownItem, "99 in a presentation context"),
        (Kind::UnknownItem, "21 in the request"),
        (Kind::UnknownItem, "5A in the user information"),
        (Kind::UnknownItem, "59 in the user information"),
        (Kind::UnknownItem, "FF in the user information"),
        (Kind::UnknownItem, "00 in the request"),
    ];
    assert_cleaned(&items, &plain(), &odd);
}

#[test]
fn the_order_of_items_does_not_matter() {
    let inner = context(1, &[item(0x40, EXPLICIT), item(0x30, CT)]);
    assert_cleaned(&[user(&[]), inner, item(0x10, DICOM)], &plain(), &[]);
}

#[test]
fn a_bad_context_costs_itself_and_nothing_else() {
    let items = [
        item(0x10, DICOM),
        ct(0),
        ct(2),
        ct(1),
        item(0x20, b"\x05"),
        user(&[]),
    ];
    let odd = [
        (Kind::ContextId, "0"),
        (Kind::ContextId, "2"),
        (Kind::PresentationContext, "1 bytes"),
    ];
    assert_cleaned(&items, &plain(), &odd);
    assert_cleaned(
        &[item(0x10, DICOM), ct(2), user(&[])],
        &request(&[item(0x10, DICOM), user(&[])]),
        &[(Kind::ContextId, "2")],
    );
}

#[test]
fn a_repeated_identifier_has_one_answer_for_all_that_have_it() {
    let items = [item(0x10, DICOM), ct(3), ct(1), ct(3), ct(3), user(&[])];
    let rejected = context(3, &[item(0x30, DICOM), item(0x40, EXPLICIT)]);
    let expected = request(&[item(0x10, DICOM), rejected, ct(1), user(&[])]);
    assert_cleaned(&items, &expected, &[(Kind::RepeatedContextId, "3")]);
    assert_eq!(clean(&request(&items)).unwrap().oddities[0].count, 3);
}

#[test]
fn of_transfer_syntaxes_each_counts_once_and_a_bounded_number_at_all() {
    let syntaxes = |count: usize| (0..count).map(|number| item(0x40, format!("1.2.{number}").as_bytes()));
    let proposing = |repeats: usize, count: usize| {
        let repeated = std::iter::repeat_n(item(0x40, EXPLICIT), repeats);
        let items: Vec<_> = [item(0x30, CT)]
            .into_iter()
            .chain(repeated)
            .chain(syntaxes(count))
            .collect();
        [item(0x10, DICOM), context(1, &items), user(&[])]
    };
    assert_cleaned(&proposing(900, 3), &request(&proposing(1, 3)), &[]);
    let odd = [(Kind::TransferSyntax, "1: more than 128")];
    assert_cleaned(&proposing(1, 5_000), &request(&proposing(1, 127)), &odd);
}

#[test]
fn whether_anything_is_proposed_is_told() {
    let proposes = |items: &[Vec<u8>]| clean(&request(items)).unwrap().has_proposals;
    assert!(proposes(&[item(0x10, DICOM), ct(2), user(&[])]));
    assert!(!proposes(&[item(0x10, DICOM), user(&[])]));
}

#[test]
fn contexts_without_a_syntax_that_can_be_read_are_answered() {
    let none = item(0x30, DICOM);
    let items = [
        item(0x10, DICOM),
        context(1, &[item(0x30, b""), item(0x40, EXPLICIT)]),
        context(3, &[item(0x40, EXPLICIT), item(0x40, b"1.2")]),
        context(5, &[item(0x30, CT), item(0x40, b"")]),
        context(7, &[item(0x30, CT)]),
        context(9, &[item(0x30, &[b'1'; 70]), item(0x40, b"JPEG")]),
        context(11, &[item(0x30, CT), item(0x40, b"1.\xE9"), item(0x40, EXPLICIT)]),
        user(&[]),
    ];
    let nothing = item(0x40, DICOM);
    let expected = [
        item(0x10, DICOM),
        context(1, &[none.clone(), item(0x40, EXPLICIT)]),
        context(3, &[none.clone(), item(0x40, EXPLICIT)]),
        context(5, &[item(0x30, CT), nothing.clone()]),
        context(7, &[item(0x30, CT), nothing.clone()]),
        context(9, &[none, nothing]),
        context(11, &[item(0x30, CT), item(0x40, EXPLICIT)]),
        user(&[]),
    ];
    let long = format!("9: {}...", "1".repeat(32));
    let odd = [
        (Kind::AbstractSyntax, "1: "),
        (Kind::AbstractSyntax, "3: none"),
        (Kind::TransferSyntax, "5: "),
        (Kind::TransferSyntax, "5: none"),
        (Kind::TransferSyntax, "7: none"),
        (Kind::AbstractSyntax, &long),
        (Kind::TransferSyntax, "9: JPEG"),
        (Kind::TransferSyntax, "9: none"),
        (Kind::TransferSyntax, r"11: 1.\xe9"),
    ];
    assert_cleaned(&items, &request(&expected), &odd);
}

#[test]
fn uids_are_read_whatever_they_are_padded_with() {
    for padding in [&b"\0"[..], b" ", b"\0xyz", &[0; 60], b"\r\n"] {
        let padded = |uid: &[u8]| [uid, padding].concat();
        let items = [
            item(0x10, &padded(DICOM)),
            context(1, &[item(0x30, &padded(CT)), item(0x40, &padded(EXPLICIT))]),
            item(
                0x50,
                &[
                    item(0x51, &16384u32.to_be_bytes()),
                    item(0x52, &padded(b"1.2.3.4")),
                ]
                .concat(),
            ),
        ];
        let cleaned = clean(&request(&items)).unwrap();
        assert_eq!(cleaned.pdu, plain(), "{padding:?}");
        assert!(cleaned.oddities.iter().all(|one| one.kind == Kind::PaddedUid));
        assert_eq!(cleaned.oddities.len(), 4);
    }
}

#[test]
fn odd_sub_items_of_the_user_information_are_left_out() {
    for (name, quoted) in [
        (&b""[..], ""),
        (b"VENDOR_10\0", r"VENDOR_10\x00"),
        (b"ABCDEFGHIJKLMNOPQ", "ABCDEFGHIJKLMNOPQ"),
        (b"SOCI\xC9T\xC9", r"SOCI\xc9T\xc9"),
        (b"V1\\2", r"V1\\2"),
        (b"A\n", r"A\n"),
    ] {
        assert_user_item_is_left_out(item(0x55, name), (Kind::ImplementationVersionName, quoted));
    }
    for (kind, value, odd) in [
        (0x53, &b"\0\x01"[..], (Kind::AsynchronousOperations, r"\x00\x01")),
        (
            0x54,
            b"\0\x031.2\x02\0",
            (Kind::RoleSelection, r"\x00\x031.2\x02\x00"),
        ),
        (
            0x54,
            b"\0\xFF1.2\x01\0",
            (Kind::RoleSelection, r"\x00\xff1.2\x01\x00"),
        ),
        (0x54, b"", (Kind::RoleSelection, "")),
        (0x56, b"\0\x09CT", (Kind::ExtendedNegotiation, r"\x00\tCT")),
        (
            0x57,
            b"\0\x031.2",
            (Kind::CommonExtendedNegotiation, r"\x00\x031.2"),
        ),
        (0x58, b"\x06\0\0\x01x\0\0", (Kind::UserIdentity, "type 6")),
        (0x58, b"\0\0\0\x01x\0\0", (Kind::UserIdentity, "type 0")),
        (
            0x58,
            b"\x02\0\0\x03bob\0\xFFsecret",
            (Kind::UserIdentity, "15 bytes"),
        ),
    ] {
        assert_user_item_is_left_out(item(kind, value), odd);
    }
    let maximum = item(0x51, &[0; 4]);
    let class = item(0x50, &[maximum.clone(), item(0x52, b"MY_PACS")].concat());
    let expected = request(&[item(0x10, DICOM), ct(1), item(0x50, &maximum)]);
    let odd = [(Kind::ImplementationClassUid, "MY_PACS")];
    assert_cleaned(&[item(0x10, DICOM), ct(1), class], &expected, &odd);
}

#[test]
fn sub_items_that_nobody_answers_are_left_out_and_not_odd() {
    let common = [
        &b"\0\x031.2\0\x031.3\0\x05\0\x031.4"[..],
        b"reserved for the future",
    ];
    for value in [
        item(0x53, &[0, 5, 0, 5]),
        item(0x54, b"\0\x041.2\0\x01\x01"),
        item(0x56, b"\0\x031.2anything"),
        item(0x57, &common.concat()),
    ] {
        assert_cleaned(&[item(0x10, DICOM), ct(1), user(&[value])], &plain(), &[]);
    }
}

#[test]
fn of_repeated_items_one_counts() {
    let items = [
        item(0x10, DICOM),
        item(0x10, b"1.2.3"),
        context(1, &[item(0x30, b"1.2.3"), item(0x30, CT), item(0x40, EXPLICIT)]),
        item(0x50, &item(0x51, &[0; 4])),
        user(&[]),
    ];
    let odd = [
        (Kind::RepeatedItem, "application context"),
        (Kind::RepeatedItem, "abstract syntax of 1"),
        (Kind::RepeatedItem, "user information"),
        (Kind::RepeatedItem, "maximum length"),
    ];
    assert_cleaned(&items, &plain(), &odd);
    let other_first = [item(0x10, b"1.2.3"), item(0x10, DICOM), ct(1), user(&[])];
    assert_cleaned(
        &other_first,
        &plain(),
        &[(Kind::RepeatedItem, "application context")],
    );
}

#[test]
fn a_maximum_length_is_four_bytes() {
    let none = [0; 4];
    for (value, kept) in [
        (&b""[..], none),
        (b"\x40\0", none),
        (b"\0\0\x40\0\0", [0, 0, 0x40, 0]),
    ] {
        let items = [item(0x10, DICOM), ct(1), item(0x50, &item(0x51, value))];
        let expected = request(&[item(0x10, DICOM), ct(1), item(0x50, &item(0x51, &kept))]);
        let detail = format!("{} bytes", value.len());
        assert_cleaned(&items, &expected, &[(Kind::MaximumLength, &detail)]);
    }
}

#[test]
fn a_user_identity_keeps_its_fields_and_loses_what_follows() {
    let items = [
        item(0x10, DICOM),
        ct(1),
        user(&[item(0x58, b"\x01\x07\0\x03bob\0\0zz")]),
    ];
    let expected = request(&[
        item(0x10, DICOM),
        ct(1),
        user(&[item(0x58, b"\x01\x01\0\x03bob\0\0")]),
    ]);
    let odd = [
        (Kind::UserIdentity, "response requested 7"),
        (Kind::UserIdentity, "2 more bytes"),
    ];
    assert_cleaned(&items, &expected, &odd);
}

#[test]
fn an_identity_that_does_not_fit_beside_the_rest_is_left_out() {
    let mut long = b"\x01\0\xFF\xF5".to_vec();
    long.resize(4 + 0xFFF5, b'u');
    long.extend_from_slice(b"\0\0");
    let items = [
        item(0x10, DICOM),
        ct(1),
        user(&[]),
        item(0x50, &item(0x58, &long)),
    ];
    let odd = [
        (Kind::RepeatedItem, "user information"),
        (Kind::UserIdentity, "65531 bytes"),
    ];
    assert_cleaned(&items, &plain(), &odd);
}

#[test]
fn without_application_context_or_user_information_it_is_still_a_request() {
    let expected = request(&[ct(1), item(0x50, &item(0x51, &[0; 4]))]);
    assert_cleaned(&[ct(1)], &expected, &[(Kind::MissingItem, "user information")]);
    let text = [item(0x10, b"DICOM"), ct(1), item(0x50, b"")];
    let odd = [
        (Kind::ApplicationContext, "DICOM"),
        (Kind::MissingItem, "maximum length"),
    ];
    assert_cleaned(&text, &expected, &odd);
}

#[test]
fn a_few_zero_bytes_behind_items_are_padding() {
    let inner = context(1, &[item(0x30, CT), item(0x40, EXPLICIT), vec![0; 2]]);
    let items = [item(0x10, DICOM), inner, user(&[vec![0; 1]]), vec![0; 3]];
    let odd = [
        (Kind::TrailingBytes, "2 in a presentation context"),
        (Kind::TrailingBytes, "1 in the user information"),
        (Kind::TrailingBytes, "3 in the request"),
    ];
    assert_cleaned(&items, &plain(), &odd);
}

#[test]
fn what_reaches_beyond_its_container_cannot_be_followed() {
    let message = |items: &[Vec<u8>]| clean(&request(items)).unwrap_err().to_string();
    assert_eq!(
        message(&[ct(1), vec![0x60, 0, 0, 9, 1]]),
        "item 60 of 9 bytes reaches beyond the end of the request, 1 bytes on"
    );
    assert_eq!(
        message(&[context(2, &[vec![0x30, 0, 0, 9]]), ct(1)]),
        "item 30 of 9 bytes reaches beyond the end of a presentation context, 0 bytes on"
    );
    assert_eq!(
        message(&[ct(1), item(0x50, &[0x51, 0, 0, 4, 0])]),
        "item 51 of 4 bytes reaches beyond the end of the user information, 1 bytes on"
    );
    assert_eq!(
        message(&[ct(1), vec![0, 0, 1]]),
        "what follows the last item of the request is no item"
    );
    let good = plain();
    assert_eq!(clean(&good[..good.len() - 1]), Err(Unreadable::PduLength));
    assert_eq!(clean(&good[..73]), Err(Unreadable::NoRequest));
    assert_eq!(clean(&[&[2], &good[1..]].concat()), Err(Unreadable::NoRequest));
}

#[test]
fn fixed_fields_are_made_those_of_version_1() {
    let mut odd = plain();
    odd[1] = 7;
    odd[6..10].copy_from_slice(&[0xFF, 0xFF, 1, 2]);
    odd[10..26].copy_from_slice(b"STORE-SCP\0junk\0\0");
    odd[26..42].copy_from_slice(b"  CT1\0\0\0\0\0\0\0\0\0\0\0");
    odd[42..74].fill(b' ');
    assert_eq!(clean(&odd).unwrap().pdu, plain());
    let odd_title = &title_oddities(&odd)[..];
    assert_eq!(odd_title.len(), 1);
    assert_eq!(odd_title[0].detail, r"called: STORE-SCP\x00junk\x00\x00");
    odd[6..8].copy_from_slice(&[1, 2]);
    assert_eq!(
        clean(&odd).unwrap().pdu[6..8],
        [1, 2],
        "whoever negotiates rejects it"
    );
}

#[test]
fn many_contexts_and_items_cost_no_more_than_they_are_long() {
    let mut items: Vec<_> = (0..=255).map(ct).collect();
    items.push(ct(1));
    items.extend(std::iter::repeat_n(item(0x60, b""), 100_000));
    let cleaned = clean(&request(&items)).unwrap();
    assert!(cleaned.oddities.len() <= 17);
    let repeated = context(1, &[item(0x30, DICOM), item(0x40, EXPLICIT)]);
    let kept: Vec<_> = (3..=255).step_by(2).map(ct).collect();
    let expected = request(&[repeated, kept.concat(), item(0x50, &item(0x51, &[0; 4]))]);
    assert_eq!(cleaned.pdu, expected);
}

proptest! {
    #[test]
    fn whatever_is_cleaned_is_clean(at in 0usize..400, patch in proptest::collection::vec(any::<u8>(), 0..12)) {
        let identity = item(0x58, b"\x02\x01\0\x03bob\0\x02pw");
        let role = item(0x54, b"\0\x031.2\x01\0");
        let mut bytes = request(&[
            item(0x10, DICOM), ct(1), ct(3), ct(5), user(&[item(0x55, b"V1"), role, identity]),
        ]);
        let end = (at + patch.len()).min(bytes.len());
        bytes.splice(at.min(end)..end, patch);
        if let Ok(first) = clean(&bytes) {
            let second = clean(&first.pdu).unwrap();
            prop_assert_eq!(second.pdu, first.pdu);
            prop_assert_eq!(second.oddities, Vec::new());
        }
    }
}
