//! The names of character sets: defined terms, and what devices write instead.

use arrayvec::ArrayVec;

use super::sets::Set;

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

/// Other spellings that devices use, as examples: case, spaces, underscores, hyphens, and the prefixes `ISO`, `2022` and `IR`
/// make no difference.
pub const OTHER_TERMS: [&str; 37] = [
    "ISO_IR 6",
    "UTF-8",
    "UNICODE",
    "GB2312",
    "ISO 2022 58",
    "ISO_IR 58",
    "ISO_IR 165",
    "ISO 2022 GBK",
    "CP936",
    "BIG5",
    "ISO_IR 149",
    "EUC-KR",
    "CP949",
    "SHIFT_JIS",
    "CP932",
    "ISO_IR 14",
    "EUC-JP",
    "ISO-2022-JP",
    "ISO_IR 87",
    "ISO_IR 159",
    "ISO 8859-1",
    "LATIN1",
    "ISO 8859-5",
    "ISO 8859-9",
    "ISO 8859-11",
    "TIS-620",
    "ISO_IR 157",
    "ISO_IR 179",
    "ISO_IR 199",
    "ISO_IR 226",
    "WINDOWS-1250",
    "WINDOWS-1251",
    "CP1252",
    "WINDOWS-874",
    "KOI8-R",
    "KOI8-U",
    "CP866",
];

/// One value of (0008,0005).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Term {
    Empty,
    Ascii,
    /// JIS X 0208 or 0212, which escape sequences designate and which have no codes above 7F.
    Japanese,
    Set(Set),
    Unknown,
}

/// A way to read the bytes above 7F.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) set: Set,
    /// False for an assumption.
    pub(super) is_declared: bool,
}

const MOST_TERMS: usize = 16;
const LONGEST_NAME: usize = 24;

/// The ways to read text under a value of (0008,0005), the most probable one first.
///
/// Without escape sequences, the first named set that has codes above 7F is in force: an empty or ASCII value before it says
/// nothing of them. UTF-8 proves itself, so that it is tried before sets in which every byte is a character.
pub(super) fn readings(value: &[u8]) -> ArrayVec<Reading, { MOST_TERMS + 4 }> {
    let terms: ArrayVec<Term, MOST_TERMS> = value
        .split(|byte| matches!(byte, b'\\' | b',' | b';'))
        .take(MOST_TERMS)
        .map(term)
        .collect();
    let first = terms.first().copied().unwrap_or(Term::Empty);
    let first_named = terms.iter().copied().find(|&term| term != Term::Empty);
    let mut readings = ArrayVec::new();
    let mut add = |set, is_declared| {
        if readings.iter().all(|reading: &Reading| reading.set != set) {
            readings.push(Reading { set, is_declared });
        }
    };
    match first_named {
        Some(Term::Set(Set::Multiple(_))) | None => {}
        // Orthanc reads ASCII as UTF-8.
        Some(Term::Ascii) => add(Set::UTF_8, true),
        Some(Term::Unknown) => add(Set::UTF_8, terms.contains(&Term::Set(Set::UTF_8))),
        Some(_) if terms.contains(&Term::Set(Set::UTF_8)) => add(Set::UTF_8, true),
        Some(_) => {}
    }
    for term in &terms {
        if let Term::Set(set) = *term {
            add(set, true);
        }
    }
    match first {
        Term::Japanese => {
            add(Set::SHIFT_JIS, false);
            add(Set::Nothing, false);
        }
        Term::Empty | Term::Ascii | Term::Unknown => add(Set::Latin1, false),
        Term::Set(_) => {}
    }
    readings
}

fn term(value: &[u8]) -> Term {
    if value.iter().all(|byte| *byte <= b' ') {
        return Term::Empty;
    }
    let mut name = ArrayVec::<u8, LONGEST_NAME>::new();
    for byte in value.iter().filter(|byte| byte.is_ascii_alphanumeric()) {
        if name.try_push(byte.to_ascii_uppercase()).is_err() {
            return Term::Unknown;
        }
    }
    let name = bare(std::str::from_utf8(&name).unwrap_or_default());
    NAMES
        .iter()
        .find(|(_, names)| names.split(' ').any(|known| known == name))
        .map_or(Term::Unknown, |&(term, _)| term)
}

/// The name without what makes no difference. The same sets are named with and without code extensions, and devices leave out
/// parts of the prefix.
fn bare(name: &str) -> &str {
    let name = ["CS", "ISO", "2022", "IR", "IEC"]
        .iter()
        .fold(name, |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
    let is_code_page =
        |number: &&str| matches!(number.len(), 3 | 4) && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = ["WINDOWS", "CP", "WIN", "IBM", "MS"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    if let Some(number) = number.filter(is_code_page) {
        return number;
    }
    // ISO 8859-5:1988.
    let year = name.len().saturating_sub(4);
    match name.split_at_checked(year) {
        Some((part, "1987" | "1988" | "1989" | "1992" | "1998" | "1999" | "2001" | "2003"))
            if part.starts_with("8859") =>
        {
            part
        }
        _ => name,
    }
}

const fn single(encoding: &'static encoding_rs::Encoding) -> Term {
    Term::Set(Set::Single(encoding))
}

/// The names of each set, as [`bare`] leaves them.
static NAMES: [(Term, &str); 36] = [
    (
        Term::Ascii,
        "6 646 646US US ASCII USASCII ANSIX341968 ANSIX341986 DEFAULT",
    ),
    (
        Term::Japanese,
        "87 159 168 JP JP1 JP2 JP3 JP2004 JPEXT 2022JP JISX0208 JISX0212 JIS",
    ),
    (
        Term::Set(Set::UTF_8),
        "192 190 191 196 UTF8 U8 UTF UTF8SIG UTF8UCS2 UTF8UCS4 UNICODE UNICODE11UTF8 10646 106461 \
         CP65001 65001",
    ),
    (
        Term::Set(Set::CHINESE),
        "58 165 GB2312 GB231280 GB23121980 CHINESE 58GB231280 EUCCN EUCGB2312CN CNGB GBK XGBK \
         CP936 MS936 WINDOWS936 936 GB18030 GB180302000 GB180302005 GB180302022 18030 \
         XMACSIMPCHINESE",
    ),
    (
        Term::Set(Set::BIG5),
        "B5 BIG5 BIG5TW BIG5HKSCS HKSCS CP950 MS950 WINDOWS950 950 XMACTRADCHINESE",
    ),
    (
        Term::Set(Set::KOREAN),
        "149 KR EUCKR KOREAN KSC5601 KSC56011987 KSX1001 CP949 MS949 UHC WINDOWS949 949 \
         XMACKOREAN",
    ),
    (
        Term::Set(Set::SHIFT_JIS),
        "13 14 JISX0201 SHIFTJIS SHIFTJIS2004 SHIFTJISX0213 SJIS SJIS2004 SJISX0213 XSJIS MSKANJI \
         CP932 MS932 WINDOWS31J WINDOWS932 932 XMACJAPANESE",
    ),
    (
        Term::Set(Set::EUC_JP),
        "EUCJP UJIS XEUCJP EUCJIS2004 EUCJISX0213 JISX0213",
    ),
    (
        Term::Set(Set::Latin1),
        "100 LATIN LATIN1 L1 CP819 IBM819 819 8859 88591",
    ),
    (single(encoding_rs::ISO_8859_2), "101 LATIN2 L2 88592"),
    (single(encoding_rs::ISO_8859_3), "109 LATIN3 L3 88593"),
    (single(encoding_rs::ISO_8859_4), "110 LATIN4 L4 88594"),
    (
        single(encoding_rs::ISO_8859_5),
        "144 CYRILLIC LATINCYRILLIC 88595",
    ),
    (
        single(encoding_rs::ISO_8859_6),
        "127 ARABIC LATINARABIC ASMO708 ECMA114 88596",
    ),
    (
        single(encoding_rs::ISO_8859_7),
        "126 GREEK GREEK8 LATINGREEK ELOT928 ECMA118 88597",
    ),
    (
        single(encoding_rs::ISO_8859_8),
        "138 HEBREW LATINHEBREW 88598 88598E 88598I",
    ),
    (Term::Set(Set::Turkish), "148 LATIN5 L5 88599"),
    (single(encoding_rs::ISO_8859_10), "157 LATIN6 L6 885910"),
    (
        Term::Set(Set::Thai),
        "166 THAI TIS620 TIS6200 TIS62025290 TIS62025291 TIS6202533 885911",
    ),
    (single(encoding_rs::ISO_8859_13), "179 LATIN7 L7 885913"),
    (single(encoding_rs::ISO_8859_14), "199 LATIN8 L8 CELTIC 885914"),
    (single(encoding_rs::ISO_8859_15), "203 LATIN9 L9 885915"),
    (single(encoding_rs::ISO_8859_16), "226 LATIN10 L10 885916"),
    (single(encoding_rs::KOI8_R), "KOI8R KOI8"),
    (single(encoding_rs::KOI8_U), "KOI8U"),
    (single(encoding_rs::IBM866), "866 866U 1125 RUSCII"),
    (single(encoding_rs::WINDOWS_874), "874"),
    (single(encoding_rs::WINDOWS_1250), "1250"),
    (single(encoding_rs::WINDOWS_1251), "1251"),
    (single(encoding_rs::WINDOWS_1252), "1252"),
    (single(encoding_rs::WINDOWS_1253), "1253"),
    (single(encoding_rs::WINDOWS_1254), "1254"),
    (single(encoding_rs::WINDOWS_1255), "1255"),
    (single(encoding_rs::WINDOWS_1256), "1256"),
    (single(encoding_rs::WINDOWS_1257), "1257"),
    (single(encoding_rs::WINDOWS_1258), "1258"),
];
