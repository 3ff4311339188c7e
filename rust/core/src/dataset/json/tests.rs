//! Values of each kind, sequences, bounds, and any bytes.

use proptest::prelude::*;
use serde_json::{json, Value};

use super::*;
use crate::dataset::index::{Captures, IndexPlan};
use crate::dataset::scan::ScanLimits;
use crate::dataset::stream::DatasetScan;

const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";
const BIG: &str = "1.2.840.10008.1.2.2";
const SEQUENCE: u32 = 0x0040_0275;

/// An element; with a short or a long length as its value representation asks for, and implicit where it has none.
fn element(tag: u32, vr: &str, value: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = tag.to_be_bytes();
    let length = u32::try_from(value.len()).unwrap().to_le_bytes();
    let mut out = vec![b, a, d, c];
    out.extend_from_slice(vr.as_bytes());
    match vr {
        "" => out.extend_from_slice(&length),
        "SQ" | "UN" | "UT" | "OB" | "UC" | "UR" | "SV" | "UV" => {
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&length);
        }
        _ => out.extend_from_slice(&length[..2]),
    }
    out.extend_from_slice(value);
    out
}

fn item(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    [b"\xFE\xFF\x00\xE0", &length[..], content].concat()
}

/// What a record has of a data set with these elements, its omissions, and whether it is doubtful; fed in pieces.
fn described(
    syntax: &str,
    keywords: &[&str],
    elements: &[Vec<u8>],
    piece: usize,
) -> (Value, Vec<String>, bool) {
    let keywords: Vec<String> = keywords.iter().map(|&keyword| keyword.to_owned()).collect();
    let captures = Captures::new(std::iter::empty(), None, &keywords).unwrap();
    let plan = IndexPlan::new(captures.clone(), &[]).unwrap();
    let mut scan = DatasetScan::new(syntax, plan.tags(), ScanLimits::default(), 1 << 20);
    for bytes in elements.concat().chunks(piece) {
        scan.feed(bytes).unwrap();
    }
    scan.finish().unwrap();
    let charset = captures.tags().slot(tags::SPECIFIC_CHARACTER_SET).unwrap();
    let encoding = ValueEncoding {
        elements: scan.encoding(),
        charset: SpecificCharacterSet::from_value(trim_padding(&scan.captured()[charset].bytes)),
    };
    let attributes: Vec<Attribute> = keywords.iter().map(|one| Attribute::of(one).unwrap()).collect();
    let (found, is_doubtful) = of_captured(&attributes, captures.tags(), scan.captured(), encoding);
    let json = serde_json::from_str(&found.text).unwrap();
    (json, found.omitted, is_doubtful)
}

/// The values of one attribute, which nothing is wrong with.
fn values(keyword: &str, syntax: &str, elements: &[Vec<u8>]) -> Value {
    let (mut json, omitted, is_doubtful) = described(syntax, &[keyword], elements, 4096);
    assert!(omitted.is_empty() && !is_doubtful, "{keyword}: {json}");
    let tag = Attribute::of(keyword).unwrap().tag;
    json[format!("{:04X}{:04X}", tag.0, tag.1)]["Value"].take()
}

#[test]
fn text_and_numbers_of_each_kind() {
    for (keyword, tag, vr, bytes, expected) in [
        (
            "StudyDescription",
            0x0008_1030,
            "LO",
            &b"CT \"head\" "[..],
            json!(["CT \"head\""]),
        ),
        (
            "ImageType",
            0x0008_0008,
            "CS",
            b"ORIGINAL\\PRIMARY\\\\X",
            json!(["ORIGINAL", "PRIMARY", null, "X"]),
        ),
        ("StationAETitle", 0x0008_0055, "AE", b" CT1\0", json!(["CT1"])),
        (
            "StudyComments",
            0x0032_4000,
            "LT",
            b" a\\b\r\n",
            json!([" a\\b\r\n"]),
        ),
        (
            "SeriesNumber",
            0x0020_0011,
            "IS",
            b" 12\\+3\\4.0\\x\\",
            json!([12, 3, 4, "x", null]),
        ),
        (
            "SliceThickness",
            0x0018_0050,
            "DS",
            b"1.50\\1e3\\-0.5\\nan",
            json!([1.5, 1000.0, -0.5, "nan"]),
        ),
        ("StudyTime", 0x0008_0030, "TM", b"101500.5", json!(["101500.5"])),
        ("StudyID", 0x0020_0010, "SH", b"", json!(null)),
        ("StudyID", 0x0020_0010, "SH", b"  ", json!(null)),
        ("Rows", 0x0028_0010, "US", &[0, 2], json!([512])),
        (
            "TagAngleSecondAxis",
            0x0018_9219,
            "SS",
            &[0xFF, 0xFF, 1, 0],
            json!([-1, 1]),
        ),
        (
            "RegionFlags",
            0x0018_6016,
            "UL",
            &[1, 0, 0, 0x80],
            json!([0x8000_0001_u32]),
        ),
        ("ReferencePixelX0", 0x0018_6020, "SL", &[0xFF; 4], json!([-1])),
        (
            "FrameIncrementPointer",
            0x0028_0009,
            "AT",
            &[0x18, 0, 0x63, 0x10],
            json!(["00181063"]),
        ),
        (
            "DiffusionBValue",
            0x0018_9087,
            "FD",
            &[0, 0, 0, 0, 0, 0, 0xF8, 0x3F],
            json!([1.5]),
        ),
        (
            "DiffusionBValue",
            0x0018_9087,
            "FD",
            &[0, 0, 0, 0, 0, 0, 0xF0, 0x7F],
            json!(["inf"]),
        ),
        (
            "ExaminedBodyThickness",
            0x0010_9431,
            "FL",
            &[0, 0, 0xC0, 0x3F],
            json!([1.5]),
        ),
    ] {
        let explicit = [element(tag, vr, bytes)];
        assert_eq!(values(keyword, EXPLICIT, &explicit), expected, "{keyword}");
        let implicit = [element(tag, "", bytes)];
        assert_eq!(
            values(keyword, IMPLICIT, &implicit),
            expected,
            "{keyword}, implicit"
        );
        let unknown = [element(tag, "UN", bytes)];
        assert_eq!(values(keyword, EXPLICIT, &unknown), expected, "{keyword}, UN");
    }
    let rows = [b"\x00\x28\x00\x10US\x00\x02\x02\x00".to_vec()];
    assert_eq!(values("Rows", BIG, &rows), json!([512]));
    let unknown = [b"\x00\x28\x00\x10UN\0\0\0\0\0\x02\x02\x00".to_vec()];
    assert_eq!(values("Rows", BIG, &unknown), json!([2]));
}

#[test]
fn names_have_groups_and_character_sets() {
    let name = |charset: &[u8], name: &[u8]| {
        let elements = [
            element(0x0008_0005, "CS", charset),
            element(0x0010_0010, "PN", name),
        ];
        values("PatientName", EXPLICIT, &elements)
    };
    assert_eq!(
        name(b"ISO_IR 100", b"M\xFCller^J\\Roe"),
        json!([{"Alphabetic": "Müller^J"}, {"Alphabetic": "Roe"}])
    );
    assert_eq!(
        name(b"ISO_IR 192", "Yamada=山田=やまだ".as_bytes()),
        json!([{"Alphabetic": "Yamada", "Ideographic": "山田", "Phonetic": "やまだ"}])
    );
    assert_eq!(
        name(b"ISO_IR 192", "=山田".as_bytes()),
        json!([{"Ideographic": "山田"}])
    );
    // A backslash is the second byte of these characters.
    assert_eq!(name(b"GBK", b"\x81\x5C^A"), json!([{"Alphabetic": "乗^A"}]));
}

#[test]
fn text_that_cannot_be_decoded_is_doubtful() {
    for (vr, tag, keyword) in [
        ("LO", 0x0008_1030, "StudyDescription"),
        ("CS", 0x0018_0015, "BodyPartExamined"),
    ] {
        let elements = [element(tag, vr, b"a\x01\xFF")];
        let (json, omitted, is_doubtful) = described(EXPLICIT, &[keyword], &elements, 4096);
        assert!(is_doubtful && omitted.is_empty());
        assert!(json.to_string().contains("a\u{FFFD}"), "{json}");
    }
}

#[test]
fn items_have_text_and_numbers_of_one_level() {
    let inner = [
        element(0x0008_0005, "CS", b"ISO_IR 192"),
        element(0x0032_0000, "UL", &[9, 0, 0, 0]),
        element(0x0032_1060, "LO", "Schädel ".as_bytes()),
        element(0x0040_0007, "LO", b"plan"),
        element(0x0040_0008, "SQ", &item(&element(0x0008_0100, "SH", b"X "))),
        element(0x0040_0009, "SH", b"7 "),
        element(0x0040_0009, "SH", b"8 "),
        element(0x0041_1001, "LO", b"private "),
    ]
    .concat();
    let second = element(0x0040_1001, "SH", b"R2");
    let items = [item(&inner), item(b""), item(&second)].concat();
    let expected = json!({"00400275": {"vr": "SQ", "Value": [
        {
            "00321060": {"vr": "LO", "Value": ["Schädel"]},
            "00400007": {"vr": "LO", "Value": ["plan"]},
            "00400009": {"vr": "SH", "Value": ["7"]},
        },
        {},
        {"00401001": {"vr": "SH", "Value": ["R2"]}},
    ]}, "00400280": {"vr": "ST", "Value": ["behind"]}});
    let behind = element(0x0040_0280, "ST", b"behind");
    let undefined = [
        &element(SEQUENCE, "SQ", &[])[..8],
        &[0xFF; 4],
        &items,
        b"\xFE\xFF\xDD\xE0\0\0\0\0",
    ]
    .concat();
    for sequence in [element(SEQUENCE, "SQ", &items), undefined] {
        for piece in [1, 3, 7, 4096] {
            let elements = [sequence.clone(), behind.clone()];
            let keywords = ["RequestAttributesSequence", "CommentsOnThePerformedProcedureStep"];
            let (json, omitted, _) = described(EXPLICIT, &keywords, &elements, piece);
            assert_eq!((&json, omitted.len()), (&expected, 0), "{piece}");
        }
    }
    let empty = described(
        EXPLICIT,
        &["RequestAttributesSequence"],
        &[element(SEQUENCE, "SQ", b"")],
        9,
    );
    assert_eq!(empty.0, json!({"00400275": {"vr": "SQ"}}));
    // PS3.5 6.2.2 note 2: inside UN it is in Implicit VR Little Endian.
    let inside = item(&element(0x0040_0009, "", b"7 "));
    let unknown = described(
        EXPLICIT,
        &["RequestAttributesSequence"],
        &[element(SEQUENCE, "UN", &inside)],
        9,
    );
    assert_eq!(
        unknown.0["00400275"]["Value"],
        json!([{"00400009": {"vr": "SH", "Value": ["7"]}}])
    );
}

#[test]
fn what_is_long_or_cannot_be_read_is_named() {
    let long = vec![b'x'; 10_241];
    let elements = [
        element(0x0008_103E, "LO", b"fits"),
        element(0x0010_4000, "LT", &long),
        element(0x0028_0010, "OB", b"1"),
        element(0x0028_0011, "US", b"123"),
        element(SEQUENCE, "SQ", &item(&element(0x0040_0009, "SH", &long))),
    ];
    let keywords = [
        "SeriesDescription",
        "PatientComments",
        "Rows",
        "Columns",
        "RequestAttributesSequence",
    ];
    let (json, omitted, _) = described(EXPLICIT, &keywords, &elements, 100);
    assert_eq!(json, json!({"0008103E": {"vr": "LO", "Value": ["fits"]}}));
    assert_eq!(omitted, keywords[1..]);
}

#[test]
fn what_has_an_undefined_length_is_no_text() {
    let undefined = |tag: u32, vr: &[u8]| [&element(tag, "UN", &[])[..4], vr, &[0xFF; 4]].concat();
    let end = b"\xFE\xFF\xDD\xE0\0\0\0\0".to_vec();
    let elements = [
        undefined(0x0008_1030, b"UN\0\0"),
        item(&element(0x0008_1030, "", b"nested")),
        end.clone(),
        undefined(0x0008_103E, b"OB\0\0"),
        item(b"fragment"),
        end,
    ];
    let keywords = ["StudyDescription", "SeriesDescription"];
    for piece in [1, 4096] {
        let (json, omitted, is_doubtful) = described(EXPLICIT, &keywords, &elements, piece);
        assert_eq!((json, is_doubtful), (json!({}), false));
        assert_eq!(omitted, keywords);
    }
}

#[test]
fn all_together_are_bounded() {
    let texts = [
        (0x0008_1030, "StudyDescription"),
        (0x0008_103E, "SeriesDescription"),
        (0x0010_2154, "PatientTelephoneNumbers"),
        (0x0010_21B0, "AdditionalPatientHistory"),
        (0x0010_4000, "PatientComments"),
        (0x0020_4000, "ImageComments"),
        (0x0032_4000, "StudyComments"),
        (0x0038_4000, "VisitComments"),
    ];
    let elements: Vec<Vec<u8>> = texts.map(|(tag, _)| element(tag, "UT", &[b'"'; 10_000])).to_vec();
    let keywords = texts.map(|(_, keyword)| keyword);
    let (json, omitted, _) = described(EXPLICIT, &keywords, &elements, 1000);
    assert!(json.to_string().len() <= MOST_BYTES);
    assert_eq!((json.as_object().unwrap().len(), omitted.len()), (3, 5));
}

#[test]
fn the_last_of_two_describes() {
    let twice = [
        element(0x0008_1030, "LO", b"first "),
        element(0x0008_1030, "LO", b"last"),
    ];
    assert_eq!(values("StudyDescription", EXPLICIT, &twice), json!(["last"]));
}

#[test]
fn attributes_of_records_are_text_numbers_or_sequences() {
    for keyword in ["PatientName", "Rows", "RequestAttributesSequence", "PixelSpacing"] {
        assert!(Attribute::of(keyword).is_ok(), "{keyword}");
    }
    for keyword in [
        "PixelData",
        "SpecificCharacterSet",
        "SmallestImagePixelValue",
        "EncapsulatedDocument",
    ] {
        let refused = Attribute::of(keyword);
        assert!(refused.is_err(), "{keyword}: {refused:?}");
    }
}

proptest! {
    #[test]
    fn any_items_give_json(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1_usize..50) {
        let elements = [element(SEQUENCE, "UN", &bytes), element(0x0040_0280, "ST", &bytes)];
        let keywords = ["RequestAttributesSequence", "CommentsOnThePerformedProcedureStep"];
        let (json, omitted, _) = described(EXPLICIT, &keywords, &elements, piece);
        prop_assert_eq!(json.as_object().unwrap().len() + omitted.len(), 2);
        prop_assert!(json.to_string().chars().all(|c| c >= ' '));
    }
}
