//! Text in its Specific Character Set (PS3.3 C.12.1.1.2, PS3.5 Chapter 6 and Annexes H to K).
//!
//! Broken text never fails an instance: what cannot be decoded becomes U+FFFD.

use encoding_rs::{Encoding, EUC_JP, EUC_KR, GB18030, GBK, SHIFT_JIS, UTF_8};

/// The defined terms of Specific Character Set (0008,0005) that are read (PS3.3 Tables C.12-2 to C.12-5), besides its absence.
pub const DEFINED_TERMS: [&str; 32] = [
    "ISO_IR 100",
    "ISO_IR 101",
    "ISO_IR 109",
    "ISO_IR 110",
    "ISO_IR 144",
    "ISO_IR 127",
    "ISO_IR 126",
    "ISO_IR 138",
    "ISO_IR 148",
    "ISO_IR 203",
    "ISO_IR 13",
    "ISO_IR 166",
    "ISO 2022 IR 6",
    "ISO 2022 IR 100",
    "ISO 2022 IR 101",
    "ISO 2022 IR 109",
    "ISO 2022 IR 110",
    "ISO 2022 IR 144",
    "ISO 2022 IR 127",
    "ISO 2022 IR 126",
    "ISO 2022 IR 138",
    "ISO 2022 IR 148",
    "ISO 2022 IR 203",
    "ISO 2022 IR 13",
    "ISO 2022 IR 166",
    "ISO 2022 IR 87",
    "ISO 2022 IR 159",
    "ISO 2022 IR 149",
    "ISO 2022 IR 58",
    "ISO_IR 192",
    "GB18030",
    "GBK",
];

/// A graphic character set that can be designated to G0 or G1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Set {
    /// One byte a character: ASCII below 80, this table above.
    Single(&'static Encoding),
    /// ISO 8859-1, and what is taken where nothing is said.
    Latin1,
    /// JIS X 0201: half-width katakana above.
    Katakana,
    /// JIS X 0208, two 7-bit bytes a character.
    Jis0208,
    /// JIS X 0212, two 7-bit bytes a character.
    Jis0212,
    /// KS X 1001, two 8-bit bytes a character.
    Ksx1001,
    /// GB 2312, two 8-bit bytes a character.
    Gb2312,
}

/// How the text values of a data set are decoded.
#[derive(Clone, Copy, Debug)]
pub struct SpecificCharacterSet {
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A multi-byte encoding without code extensions: UTF-8, GB18030, GBK.
    Whole(&'static Encoding),
    /// Single-byte or ISO 2022: the set active at the start of each value.
    Iso2022(Set),
}

impl SpecificCharacterSet {
    /// Reads the value of (0008,0005); an absent or unknown one is taken as ISO 8859-1.
    #[must_use]
    pub fn from_value(value: &[u8]) -> Self {
        let first = value.split(|&byte| byte == b'\\').next().unwrap_or_default();
        let term = String::from_utf8_lossy(first);
        let term = term.trim_matches(|c| c == ' ' || c == '\0');
        // The same sets are named with and without code extensions; "ISO-IR" and "ISO_IR" both occur.
        let number = term
            .trim_start_matches("ISO")
            .trim_start_matches([' ', '_', '-'])
            .trim_start_matches("2022")
            .trim_start_matches([' ', '_', '-'])
            .trim_start_matches("IR")
            .trim_start_matches([' ', '_', '-']);
        let kind = match (term, number) {
            (_, "192") => Kind::Whole(UTF_8),
            ("GB18030", _) => Kind::Whole(GB18030),
            ("GBK", _) => Kind::Whole(GBK),
            (_, "101") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_2)),
            (_, "109") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_3)),
            (_, "110") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_4)),
            (_, "144") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_5)),
            (_, "127") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_6)),
            (_, "126") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_7)),
            (_, "138") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_8)),
            (_, "148") => Kind::Iso2022(Set::Single(encoding_rs::WINDOWS_1254)),
            (_, "203") => Kind::Iso2022(Set::Single(encoding_rs::ISO_8859_15)),
            (_, "166") => Kind::Iso2022(Set::Single(encoding_rs::WINDOWS_874)),
            (_, "13") => Kind::Iso2022(Set::Katakana),
            _ => Kind::Iso2022(Set::Latin1),
        };
        Self { kind }
    }

    /// Decodes one value; control characters stay as they are.
    #[must_use]
    pub fn decode(&self, value: &[u8]) -> String {
        match self.kind {
            Kind::Whole(encoding) => encoding.decode_without_bom_handling(value).0.into_owned(),
            Kind::Iso2022(initial) => decode_iso2022(value, initial),
        }
    }
}

const ESCAPE: u8 = 0x1B;

fn decode_iso2022(value: &[u8], initial: Set) -> String {
    let mut text = String::with_capacity(value.len());
    let mut set = initial;
    let mut rest = value;
    while !rest.is_empty() {
        if let Some((designated, after)) = designation(rest, initial) {
            set = designated;
            rest = after;
            continue;
        }
        // PS3.5 6.1.2.5.3: the initial set is active again after a control character or a delimiter.
        let run = rest
            .iter()
            .skip(1)
            .position(|&byte| byte == ESCAPE || matches!(byte, b'\\' | 0x09 | 0x0A | 0x0C | 0x0D))
            .map_or(rest.len(), |at| at + 1);
        let (segment, after) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        if segment
            .first()
            .is_some_and(|&byte| matches!(byte, 0x09 | 0x0A | 0x0C | 0x0D))
            || (segment.first() == Some(&b'\\') && !matches!(set, Set::Jis0208 | Set::Jis0212))
        {
            set = initial;
        }
        push_decoded(&mut text, segment, set);
        rest = after;
    }
    text
}

/// PS3.3 Table C.12-3 and C.12-4: the escape sequence at the start of `bytes`, and what follows it.
fn designation(bytes: &[u8], initial: Set) -> Option<(Set, &[u8])> {
    let sequences: [(&[u8], Set); 17] = [
        (b"\x1b$)C", Set::Ksx1001),
        (b"\x1b$)A", Set::Gb2312),
        (b"\x1b$(D", Set::Jis0212),
        (b"\x1b$B", Set::Jis0208),
        // ASCII or JIS X 0201 romaji to G0 ends a 7-bit multi-byte set; G1 is what it was at the start.
        (b"\x1b(B", initial),
        (b"\x1b(J", Set::Katakana),
        (b"\x1b)I", Set::Katakana),
        (b"\x1b-A", Set::Latin1),
        (b"\x1b-B", Set::Single(encoding_rs::ISO_8859_2)),
        (b"\x1b-C", Set::Single(encoding_rs::ISO_8859_3)),
        (b"\x1b-D", Set::Single(encoding_rs::ISO_8859_4)),
        (b"\x1b-L", Set::Single(encoding_rs::ISO_8859_5)),
        (b"\x1b-G", Set::Single(encoding_rs::ISO_8859_6)),
        (b"\x1b-F", Set::Single(encoding_rs::ISO_8859_7)),
        (b"\x1b-H", Set::Single(encoding_rs::ISO_8859_8)),
        (b"\x1b-M", Set::Single(encoding_rs::WINDOWS_1254)),
        (b"\x1b-T", Set::Single(encoding_rs::WINDOWS_874)),
    ];
    let found = sequences
        .iter()
        .find_map(|&(sequence, set)| bytes.strip_prefix(sequence).map(|after| (set, after)));
    found.or_else(|| {
        bytes
            .strip_prefix(b"\x1b-b")
            .map(|after| (Set::Single(encoding_rs::ISO_8859_15), after))
    })
}

fn push_decoded(text: &mut String, segment: &[u8], set: Set) {
    let with_encoding = |encoding: &'static Encoding, bytes: &[u8]| {
        encoding.decode_without_bom_handling(bytes).0.into_owned()
    };
    match set {
        Set::Latin1 => text.extend(segment.iter().map(|&byte| char::from(byte))),
        Set::Single(encoding) => text.push_str(&with_encoding(encoding, segment)),
        Set::Katakana => {
            for &byte in segment {
                text.push_str(&with_encoding(SHIFT_JIS, &[byte]));
            }
        }
        // EUC-JP carries JIS X 0208 with the high bits set, and JIS X 0212 behind the shift byte 8F.
        Set::Jis0208 => text.push_str(&with_encoding(
            EUC_JP,
            &segment.iter().map(|b| b | 0x80).collect::<Vec<_>>(),
        )),
        Set::Jis0212 => {
            let shifted: Vec<u8> = segment
                .chunks(2)
                .flat_map(|pair| std::iter::once(0x8F).chain(pair.iter().map(|b| b | 0x80)))
                .collect();
            text.push_str(&with_encoding(EUC_JP, &shifted));
        }
        Set::Ksx1001 => text.push_str(&with_encoding(EUC_KR, segment)),
        Set::Gb2312 => text.push_str(&with_encoding(GBK, segment)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(charset: &str, value: &[u8]) -> String {
        SpecificCharacterSet::from_value(charset.as_bytes()).decode(value)
    }

    // PS3.5 Annexes H, I, J and K give these names.
    #[test]
    fn the_examples_of_the_standard_are_read() {
        assert_eq!(decode("ISO_IR 100", b"Buc^J\xe9r\xf4me"), "Buc^Jérôme");
        assert_eq!(decode("ISO_IR 144 ", b"\xbb\xee\xda"), "Люк");
        assert_eq!(decode("ISO_IR 126", b"\xc4\xe9\xef\xed"), "Διον");
        assert_eq!(
            decode(
                "\\ISO 2022 IR 87",
                b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
            ),
            "Yamada^Tarou=山田^太郎"
        );
        assert_eq!(
            decode(
                "ISO 2022 IR 13\\ISO 2022 IR 87",
                b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J"
            ),
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田"
        );
        assert_eq!(
            decode(
                "\\ISO 2022 IR 149",
                b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"
            ),
            "Hong=洪^吉洞"
        );
        assert_eq!(decode("ISO_IR 192", "王^小東".as_bytes()), "王^小東");
        assert_eq!(decode("GB18030", b"Wang=\xcd\xf5"), "Wang=王");
        assert_eq!(decode("GBK", b"\xcd\xf5"), "王");
        assert_eq!(decode("\\ISO 2022 IR 58", b"Zhang=\x1b$)A\xd5\xc5"), "Zhang=张");
    }

    #[test]
    fn broken_text_is_replaced_and_never_lost() {
        assert_eq!(decode("ISO_IR 192", b"a\xffb"), "a\u{FFFD}b");
        assert_eq!(decode("NO SUCH SET", b"\xe9"), "é");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_set_are_text(charset in "(ISO_IR 13|ISO 2022 IR 6\\\\ISO 2022 IR 87|ISO_IR 192|GB18030|GBK|ISO_IR 166|.{0,20})", value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&charset, &value);
        }
    }
}
