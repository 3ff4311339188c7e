use super::*;
use proptest::prelude::*;

fn decoded(charset: &str, value: &[u8]) -> (String, bool) {
    let Decoded { text, is_doubtful } = SpecificCharacterSet::from_value(charset.as_bytes()).decode(value);
    (text, is_doubtful)
}

/// Texts that must be read without doubt.
fn assert_read(table: &[(&str, &[u8], &str)]) {
    for &(charset, value, text) in table {
        assert_eq!(decoded(charset, value), (text.to_owned(), false), "{charset:?}");
    }
}

// PS3.5 Annexes H, I, J and K give these names.
#[test]
fn the_examples_of_the_standard_are_read() {
    assert_read(&[
        ("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        ("ISO_IR 144 ", b"\xbb\xee\xda", "Люк"),
        ("ISO_IR 126", b"\xc4\xe9\xef\xed", "Διον"),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
            "Yamada^Tarou=山田^太郎",
        ),
        (
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田",
        ),
        (
            "\\ISO 2022 IR 149",
            b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "Hong=洪^吉洞",
        ),
        ("ISO_IR 192", "王^小東".as_bytes(), "王^小東"),
        ("GB18030", b"Wang=\xcd\xf5", "Wang=王"),
        ("GBK", b"\xcd\xf5", "王"),
        ("\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5", "Zhang=张"),
        ("\\ISO 2022 IR 159", b"\x1b$(Dl?\x1b(B.", "鷗."),
    ]);
}

const WANG_IN_GB: &[u8] = b"\xcd\xf5\xd0\xa1\xb6\xab";
const HONG_IN_KS: &[u8] = b"\xc8\xab\xb1\xe6\xb5\xbf";
const YAMADA_IN_SHIFT_JIS: &[u8] = b"\x8eR\x93c";

/// Terms, a value in each of them, and its text.
const SPELLINGS: [(&str, &[u8], &str); 8] = [
    (
        "ISO IR 192|ISO-IR 192|ISO_IR_192|ISO_IR192|iso_ir 192| ISO_IR 192 |ISO 2022 IR 192|UTF-8|UTF8|utf-8|UTF 8|\
         unicode|ISO 10646-1|ISO_IR 196",
        "王小东".as_bytes(),
        "王小东",
    ),
    (
        "GB18030|gb18030|GB 18030|GBK|gbk|ISO 2022 GBK|ISO 2022 GB18030|ISO_IR GBK|GB2312|GB 2312-80|gb2312|ISO 2022 58|\
         ISO_IR 58|ISO 2022 IR 58|ISO_IR 165|CP936|EUC-CN|csISO58GB231280",
        WANG_IN_GB,
        "王小东",
    ),
    (
        "BIG5|Big5-HKSCS|CP950|ISO 2022 B5",
        b"\xa4\xfd\xa4p\xaaF",
        "王小東",
    ),
    (
        "ISO 2022 IR 149|ISO_IR 149|EUC-KR|euc_kr|KS_C_5601-1987|CP949",
        HONG_IN_KS,
        "홍길동",
    ),
    (
        "ISO_IR 13|ISO 2022 IR 13|SHIFT_JIS|SJIS|Windows-31J|ISO_IR 14",
        YAMADA_IN_SHIFT_JIS,
        "山田",
    ),
    (
        "ISO_IR 144|ISO 8859-5|ISO-8859-5|iso8859_5|ISO/IEC 8859-5|ISO_8859-5:1988|csISOLatinCyrillic",
        b"\xbb\xee\xda",
        "Люк",
    ),
    (
        "WINDOWS-1251|windows-1251|CP1251|1251",
        b"\xcb\xfe\xea",
        "Люк",
    ),
    (
        "ISO_IR 100|ISO-8859-1|LATIN1|8859-1|ISO_IR 100,ISO_IR 101",
        b"M\xfcller",
        "Müller",
    ),
];

#[test]
fn spellings_of_devices_are_understood() {
    for (terms, value, text) in SPELLINGS {
        for term in terms.split('|') {
            assert_eq!(decoded(term, value), (text.to_owned(), false), "{term:?}");
        }
    }
}

#[test]
fn the_first_set_with_codes_above_7f_is_in_force_without_escapes() {
    assert_read(&[
        ("\\ISO_IR 192", "王".as_bytes(), "王"),
        ("\\GB18030", WANG_IN_GB, "王小东"),
        ("\\ISO 2022 IR 58", WANG_IN_GB, "王小东"),
        ("ISO 2022 IR 6\\ISO 2022 IR 58", WANG_IN_GB, "王小东"),
        ("\\ISO 2022 IR 149", HONG_IN_KS, "홍길동"),
        ("\\ISO 2022 IR 144", b"\xbb\xee\xda", "Люк"),
        ("ISO 2022 IR 6\\ISO 2022 IR 144", b"\xbb\xee\xda", "Люк"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", YAMADA_IN_SHIFT_JIS, "山田"),
        ("GB18030\\ISO IR 192", WANG_IN_GB, "王小东"),
        ("ISO_IR 192\\GB18030", "王小东".as_bytes(), "王小东"),
        ("ISO_IR 192\\GB18030", WANG_IN_GB, "王小东"),
        ("ISO_IR 100\\ISO_IR 192", "王小东".as_bytes(), "王小东"),
        ("ISO_IR 100\\ISO_IR 192", b"M\xfcller", "Müller"),
        ("ISO_IR 6\\ISO_IR 192", "王小东".as_bytes(), "王小东"),
        ("ISO_IR 6", "王小东".as_bytes(), "王小东"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", b"M\xfcller", "Müller"),
    ]);
}

#[test]
fn bytes_80_to_9f_are_controls_in_the_sets_of_the_standard() {
    for number in [100, 101, 109, 110, 144, 127, 126, 138, 148, 203, 166] {
        for byte in 0x80..=0x9F {
            let text = format!("a{}", char::from(byte));
            assert_eq!(
                decoded(&format!("ISO_IR {number}"), &[b'a', byte]),
                (text, false),
                "{number}"
            );
        }
    }
    assert_read(&[
        ("WINDOWS-1254", b"\x80\xd0", "€Ğ"),
        (
            "ISO_IR 148",
            b"\xc7avu\xfeo\xf0lu \xdd\xde\xd0\xfd",
            "Çavuşoğlu İŞĞı",
        ),
        ("WINDOWS-874", b"\x80\xa1", "€ก"),
        ("ISO_IR 166", b"\xa0\xa1\xda\xdf\xfb", "\u{A0}กฺ฿๛"),
        ("ISO_IR 203", b"\xbd\xa4", "œ€"),
    ]);
}

#[test]
fn escape_sequences_are_followed_under_every_declaration() {
    assert_read(&[
        ("ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B", "山田"),
        ("ISO_IR 87", b"\x1b$@;3ED\x1b(J", "山田"),
        ("ISO_IR 100", b"\x1b$B;3ED\x1b(B \xe9", "山田 é"),
        ("", b"\x1b$B;3ED\x1b(B", "山田"),
        ("GB18030", b"\x1b$)A\xcd\xf5", "王"),
        ("ISO_IR 192", b"\x1b$)C\xc8\xab", "홍"),
        ("\\ISO 2022 IR 87", b"\x1b(ITO@^\x1b(B=", "ﾔﾏﾀﾞ="),
        (
            "ISO 2022 IR 100\\ISO 2022 IR 126",
            b"\xe9\x1b-F\xe9\t\xe9",
            "éι\té",
        ),
        ("\\ISO 2022 IR 144", b"\x1b-L\xbb\xee\xda", "Люк"),
        ("\\ISO 2022 IR 58", b"\x1b$A\x4d\x75\x1b(B1", "王1"),
        // A trail byte that looks like a delimiter ends nothing.
        ("ISO 2022 IR 13", b"\x1b)I\x95\\\\\x83\\", "表\\ソ"),
    ]);
}

#[test]
fn japanese_punctuation_has_the_code_points_of_jis() {
    assert_read(&[
        (
            "ISO_IR 13",
            b"\x81\x60\x81\x61\x81\x7c\x81\x91\x81\x92\x81\xca",
            "〜‖−¢£¬",
        ),
        ("\\ISO 2022 IR 87", b"\x1b$B!A!B!]!q!r\x22L", "〜‖−¢£¬"),
    ]);
}

#[test]
fn a_byte_order_mark_is_no_text() {
    assert_read(&[
        ("ISO_IR 192", b"\xef\xbb\xbfP1", "P1"),
        ("GB18030", b"\x84\x31\x95\x33P1", "P1"),
    ]);
}

#[test]
fn what_cannot_be_read_is_replaced_and_doubtful() {
    for (charset, value, text) in [
        ("ISO_IR 192", &b"a\xffb"[..], "a\u{FFFD}b"),
        ("ISO_IR 192", b"\xe7\x8e", "\u{FFFD}"),
        ("GB18030", b"\xcd\xf5\xcd", "王\u{FFFD}"),
        ("GB18030", b"\xffA\xcd\xf5", "\u{FFFD}A王"),
        ("ISO_IR 13", b"\xfdA\xd4", "\u{FFFD}Aﾔ"),
        ("ISO 2022 IR 87", b"\xfd\xfe", "\u{FFFD}\u{FFFD}"),
        ("ISO_IR 126", b"\xff", "\u{FFFD}"),
        ("ISO_IR 166", b"\xdb\xa1", "\u{FFFD}ก"),
        ("ISO_IR 100", b"a\x1b!b", "a\u{FFFD}!b"),
        ("\\ISO 2022 IR 87", b"\x1b$B;3E", "山\u{FFFD}"),
        // No term declares these bytes: text by assumption.
        ("NO SUCH SET", b"\xe9", "é"),
        ("NO SUCH SET", "王".as_bytes(), "王"),
        ("", b"\xe9", "é"),
        ("ISO_IR 6", b"\xe9", "é"),
        ("\\ISO 2022 IR 149", b"M\xfcller", "Müller"),
        ("ISO 2022 IR 87", YAMADA_IN_SHIFT_JIS, "山田"),
    ] {
        assert_eq!(
            decoded(charset, value),
            (text.to_owned(), true),
            "{charset:?} {value:?}"
        );
    }
    assert_eq!(decoded("NO SUCH SET", b"plain"), ("plain".to_owned(), false));
}

#[test]
fn every_published_term_is_known() {
    for term in DEFINED_TERMS.iter().chain(&OTHER_TERMS) {
        // Only an unknown term makes single bytes a matter of assumption.
        assert!(
            terms::readings(term.as_bytes())
                .iter()
                .any(|reading| reading.is_declared)
                || term.contains("87")
                || term.contains("159")
                || term.contains("JP"),
            "{term}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_set_are_text(
        charset in "(ISO_IR 13|ISO 2022 IR 6\\\\ISO 2022 IR 87|ISO_IR 192|GB18030|BIG5|EUC-JP|\\\\ISO 2022 IR 149|ISO_IR 166|.{0,20})",
        value in proptest::collection::vec(prop_oneof![any::<u8>(), Just(ESCAPE), Just(b'$'), Just(b'B'), Just(b')')], 0..200),
    ) {
        let (text, _) = decoded(&charset, &value);
        prop_assert!(text.len() <= 3 * value.len() + 3);
    }

    #[test]
    fn ascii_is_the_same_under_every_term(charset in ".{0,30}", value in "[ -~]{0,64}") {
        prop_assert_eq!(decoded(&charset, value.as_bytes()), (value, false));
    }
}
