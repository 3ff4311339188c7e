//! The bytes of one character set.

use encoding_rs::{Encoding, BIG5, EUC_JP, EUC_KR, GB18030, SHIFT_JIS, UTF_8};

/// What the bytes above 7F stand for; those below are ASCII.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Set {
    /// No character.
    Nothing,
    /// ISO 8859-1. The encoding of that name in `encoding_rs` is windows-1252, which differs in 80 to 9F.
    Latin1,
    /// ISO 8859-9. The encoding of that name in `encoding_rs` is windows-1254, which differs in 80 to 9F.
    Turkish,
    /// TIS 620. The encoding of that name in `encoding_rs` is windows-874, which differs in 80 to 9F.
    Thai,
    /// One byte a character.
    Single(&'static Encoding),
    /// Several bytes a character; the second may be below 80.
    Multiple(&'static Encoding),
}

impl Set {
    pub(super) const UTF_8: Self = Self::Multiple(UTF_8);
    /// GB 18030, of which GBK and GB 2312 are subsets.
    pub(super) const CHINESE: Self = Self::Multiple(GB18030);
    /// KS X 1001 and its extension by Microsoft.
    pub(super) const KOREAN: Self = Self::Multiple(EUC_KR);
    /// JIS X 0201 katakana, and the kanji that senders mix into it.
    pub(super) const SHIFT_JIS: Self = Self::Multiple(SHIFT_JIS);
    pub(super) const EUC_JP: Self = Self::Multiple(EUC_JP);
    pub(super) const BIG5: Self = Self::Multiple(BIG5);

    /// Decodes a value without escape sequences; None where a byte stands for nothing.
    pub(super) fn decode(self, value: &[u8]) -> Option<String> {
        match self {
            Self::Nothing => value
                .is_ascii()
                .then(|| String::from_utf8_lossy(value).into_owned()),
            Self::Latin1 => Some(value.iter().map(|&byte| char::from(byte)).collect()),
            Self::Turkish => Some(value.iter().map(|&byte| turkish(byte)).collect()),
            Self::Thai => value.iter().map(|&byte| thai(byte)).collect(),
            Self::Multiple(encoding) if encoding == BIG5 && has_extension_of_big5(value) => None,
            Self::Single(encoding) | Self::Multiple(encoding) => {
                let text = encoding.decode_without_bom_handling_and_without_replacement(value)?;
                Some(if encoding == SHIFT_JIS || encoding == EUC_JP {
                    text.chars().map(of_jis).collect()
                } else {
                    text.into_owned()
                })
            }
        }
    }

    /// The character at the start of `bytes`, and how many bytes it takes; None for bytes that stand for nothing.
    pub(super) fn first(self, bytes: &[u8]) -> (Option<String>, usize) {
        let width = match self {
            Self::Multiple(encoding) if encoding == UTF_8 => return first_of_utf8(bytes),
            Self::Multiple(encoding) => width(encoding, bytes),
            _ => 1,
        };
        let found = bytes.get(..width).and_then(|character| self.decode(character));
        let is_followed_by_ascii = bytes.get(1).is_none_or(u8::is_ascii);
        // A second byte that is ASCII is read again by itself.
        let size = if found.is_none() {
            if width > 1 && !is_followed_by_ascii {
                2
            } else {
                1
            }
        } else {
            width
        };
        (found, size)
    }
}

/// How many bytes the character at the start of `bytes` takes, as its first bytes say.
fn width(encoding: &'static Encoding, bytes: &[u8]) -> usize {
    match (bytes.first(), bytes.get(1)) {
        (Some(0xA1..=0xDF), _) if encoding == SHIFT_JIS => 1,
        (Some(0x8F), Some(_)) if encoding == EUC_JP => 3,
        (Some(0x81..=0xFE), Some(0x30..=0x39)) if encoding == GB18030 => 4,
        (Some(0x81..=0xFE), Some(0x30..)) => 2,
        _ => 1,
    }
}

/// Whether there is a character of the extensions of Big5 for Hong Kong, which other vendors use for other characters.
fn has_extension_of_big5(mut value: &[u8]) -> bool {
    while let Some((&lead, rest)) = value.split_first() {
        value = rest;
        if lead >= 0x80 {
            let trail = rest.first().copied().unwrap_or_default();
            if matches!(lead, 0x80..=0xA0 | 0xC7 | 0xC8 | 0xFA..)
                || matches!((lead, trail), (0xA3, 0xC0..=0xE0) | (0xC6, 0xA1..))
            {
                return true;
            }
            value = rest.get(1..).unwrap_or_default();
        }
    }
    false
}

fn first_of_utf8(bytes: &[u8]) -> (Option<String>, usize) {
    let Some(chunk) = bytes.utf8_chunks().next() else {
        return (None, 1);
    };
    match chunk.valid().chars().next() {
        Some(character) => (Some(character.into()), character.len_utf8()),
        None => (None, chunk.invalid().len()),
    }
}

/// Six characters of ISO 8859-1 have their place taken by letters of Turkish.
fn turkish(byte: u8) -> char {
    match byte {
        0xD0 => 'Ğ',
        0xDD => 'İ',
        0xDE => 'Ş',
        0xF0 => 'ğ',
        0xFD => 'ı',
        0xFE => 'ş',
        _ => char::from(byte),
    }
}

fn thai(byte: u8) -> Option<char> {
    match byte {
        // Unicode has the block in the order of TIS 620.
        0xA1..=0xDA | 0xDF..=0xFB => char::from_u32(0x0E01 + u32::from(byte - 0xA1)),
        0..=0xA0 => Some(char::from(byte)),
        _ => None,
    }
}

/// Microsoft's table, which `encoding_rs` has, gives six characters of JIS X 0208 other code points than the Standard's
/// sources (and other DICOM readers) do.
fn of_jis(character: char) -> char {
    match character {
        '\u{FF5E}' => '\u{301C}',
        '\u{2225}' => '\u{2016}',
        '\u{FF0D}' => '\u{2212}',
        '\u{FFE0}' => '\u{00A2}',
        '\u{FFE1}' => '\u{00A3}',
        '\u{FFE2}' => '\u{00AC}',
        other => other,
    }
}

/// Sets of two 7-bit codes a character.
#[derive(Clone, Copy)]
pub(super) enum Pairs {
    Jis0208,
    Jis0212,
    Ksx1001,
    Gb2312,
}

impl Pairs {
    /// The character at the start of `bytes`, and how many bytes it takes.
    pub(super) fn first(self, bytes: &[u8]) -> (Option<String>, usize) {
        let &[first, second @ 0x21..=0x7E, ..] = bytes else {
            return (None, 1);
        };
        let (first, second) = (first | 0x80, second | 0x80);
        let found = match self {
            Self::Jis0208 => Set::EUC_JP.decode(&[first, second]),
            // EUC-JP has JIS X 0212 behind the shift byte 8F.
            Self::Jis0212 => Set::EUC_JP
                .decode(&[0x8F, first, second])
                .map(|character| character.replace('\u{301C}', "~")),
            Self::Ksx1001 => Set::KOREAN.decode(&[first, second]),
            Self::Gb2312 => Set::CHINESE.decode(&[first, second]),
        };
        (found, 2)
    }
}
