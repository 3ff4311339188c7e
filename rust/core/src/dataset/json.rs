//! Captured values in the DICOM JSON model (PS3.18 Annex F).

use std::borrow::Cow;
use std::fmt::Write as _;

use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _, VirtualVr};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, StandardDataDictionary};

use super::captured::{Captured, CapturedTags};
use super::charset::SpecificCharacterSet;
use super::header::UNDEFINED;
use super::walk::{Token, Walk};
use crate::transfer_syntax::Encoding;
use crate::uid::trim_padding;

/// Bytes of one object: no record is much longer, whatever a peer sends.
const MOST_BYTES: usize = 64 * 1024;

/// An attribute that records have.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// Its tag.
    pub tag: Tag,
    /// Its keyword (PS3.6 Chapter 6).
    pub keyword: String,
    /// Its value representation by the data dictionary.
    vr: VR,
}

/// Why an attribute cannot be part of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownAttribute {
    /// No such keyword.
    #[error("{0:?} is not a keyword of the DICOM data dictionary")]
    Keyword(String),
    /// Its values are bytes, or other attributes say what they are, or it is Specific Character Set: records are in UTF-8.
    #[error("{0:?} cannot be part of a record")]
    NotInRecords(String),
}

/// One object of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DicomJson {
    /// JSON text.
    pub text: String,
    /// Keywords of the attributes that the data set has and the text has not: too long, or not to be read.
    pub omitted: Vec<String>,
}

impl Default for DicomJson {
    fn default() -> Self {
        Self {
            text: "{}".to_owned(),
            omitted: Vec::new(),
        }
    }
}

impl Attribute {
    /// By its keyword.
    ///
    /// # Errors
    /// [`UnknownAttribute`].
    pub fn of(keyword: &str) -> Result<Self, UnknownAttribute> {
        let entry = StandardDataDictionary
            .by_name(keyword)
            .ok_or_else(|| UnknownAttribute::Keyword(keyword.to_owned()))?;
        let vr = match entry.vr() {
            _ if entry.tag() == tags::SPECIFIC_CHARACTER_SET => None,
            VirtualVr::Exact(vr) if vr == VR::SQ || has_json_value(vr) => Some(vr),
            _ => None,
        };
        Ok(Self {
            tag: entry.tag(),
            keyword: keyword.to_owned(),
            vr: vr.ok_or_else(|| UnknownAttribute::NotInRecords(keyword.to_owned()))?,
        })
    }
}

/// How the values of a data set are encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueEncoding<'v> {
    /// Of numbers and of what is in sequences.
    pub(super) elements: Encoding,
    /// Of text.
    pub(super) charset: SpecificCharacterSet<'v>,
}

impl ValueEncoding<'_> {
    /// That of a value with this representation. PS3.5 6.2.2 note 2: of UN the least significant byte comes first.
    fn of(self, vr: Option<VR>) -> Self {
        let elements = Encoding {
            big_endian: self.elements.big_endian && vr != Some(VR::UN),
            ..self.elements
        };
        Self { elements, ..self }
    }
}

/// The attributes of `described` that were captured, in this order, and whether a text is doubtful.
pub(super) fn of_captured(
    described: &[Attribute],
    tags: &CapturedTags,
    captured: &[Captured],
    encoding: ValueEncoding<'_>,
) -> (DicomJson, bool) {
    let mut writer = Writer {
        out: String::with_capacity(1024),
        is_doubtful: false,
    };
    let mut omitted = Vec::new();
    writer.out.push('{');
    for attribute in described {
        let value = tags.slot(attribute.tag).and_then(|slot| captured.get(slot));
        let Some(value) = value.filter(|value| value.present) else {
            continue;
        };
        let begin = writer.out.len();
        let is_written = !value.cut && writer.attribute(attribute, value, encoding).is_some();
        // One byte is left for the brace at the end.
        if !is_written || writer.out.len() >= MOST_BYTES {
            writer.out.truncate(begin);
            omitted.push(attribute.keyword.clone());
        }
    }
    writer.out.push('}');
    let text = writer.out;
    (DicomJson { text, omitted }, writer.is_doubtful)
}

/// Whether values are text or numbers.
fn has_json_value(vr: VR) -> bool {
    is_text(vr) || number_bytes(vr).is_some()
}

fn is_text(vr: VR) -> bool {
    has_one_value(vr)
        || matches!(
            vr,
            VR::AE
                | VR::AS
                | VR::CS
                | VR::DA
                | VR::DS
                | VR::DT
                | VR::IS
                | VR::LO
                | VR::PN
                | VR::SH
                | VR::TM
                | VR::UC
                | VR::UI
        )
}

/// PS3.5 6.2: whether there is one value only, and a backslash is part of it.
fn has_one_value(vr: VR) -> bool {
    matches!(vr, VR::LT | VR::ST | VR::UR | VR::UT)
}

/// Bytes of one binary value.
fn number_bytes(vr: VR) -> Option<usize> {
    match vr {
        VR::SS | VR::US => Some(2),
        VR::AT | VR::FL | VR::SL | VR::UL => Some(4),
        VR::FD | VR::SV | VR::UV => Some(8),
        _ => None,
    }
}

/// Writes values behind each other. What returns None may have written a part.
struct Writer {
    out: String,
    is_doubtful: bool,
}

impl Writer {
    fn attribute(
        &mut self,
        attribute: &Attribute,
        value: &Captured,
        encoding: ValueEncoding<'_>,
    ) -> Option<()> {
        let encoding = encoding.of(value.vr);
        let vr = value.vr.filter(|&vr| vr != VR::UN).unwrap_or(attribute.vr);
        self.key(attribute.tag, vr)?;
        if vr == VR::SQ {
            self.sequence(attribute.tag, value, encoding)?;
        } else if value.is_undefined_length {
            return None;
        } else {
            self.value(vr, &value.bytes, encoding)?;
        }
        self.out.push('}');
        Some(())
    }

    /// `"ggggeeee":{"vr":"XX"`, behind a comma where it is not the first.
    fn key(&mut self, tag: Tag, vr: VR) -> Option<()> {
        self.comma();
        write!(
            self.out,
            "\"{:04X}{:04X}\":{{\"vr\":\"{}\"",
            tag.0,
            tag.1,
            vr.to_string()
        )
        .ok()
    }

    /// Between what stands in an object or an array.
    fn comma(&mut self) {
        if !self.out.ends_with(['{', '[']) {
            self.out.push(',');
        }
    }

    fn value(&mut self, vr: VR, bytes: &[u8], encoding: ValueEncoding<'_>) -> Option<()> {
        if let Some(size) = number_bytes(vr) {
            return self.numbers(vr, bytes, size, encoding.elements);
        }
        if !is_text(vr) {
            return None;
        }
        let text = self.text(vr, bytes, encoding.charset);
        if text.is_empty() {
            return Some(());
        }
        self.out.push_str(",\"Value\":[");
        if has_one_value(vr) {
            self.string(&text)?;
        } else {
            for one in text.split('\\') {
                self.comma();
                self.one(vr, one)?;
            }
        }
        self.out.push(']');
        Some(())
    }

    /// One of several values of a text.
    fn one(&mut self, vr: VR, value: &str) -> Option<()> {
        let value = value.trim_end_matches(' ');
        let trimmed = value.trim_start_matches(' ');
        match vr {
            // PS3.18 F.2.5: the empty one of several.
            _ if trimmed.is_empty() => self.out.push_str("null"),
            VR::PN => self.person_name(value)?,
            VR::IS => match integer(trimmed) {
                Some(number) => write!(self.out, "{number}").ok()?,
                None => self.string(value)?,
            },
            VR::DS => match trimmed.parse().ok().filter(|number: &f64| number.is_finite()) {
                Some(number) => self.float(number)?,
                None => self.string(value)?,
            },
            VR::AE => self.string(trimmed)?,
            _ => self.string(value)?,
        }
        Some(())
    }

    /// PS3.18 F.2.2: an object of up to three component groups.
    fn person_name(&mut self, name: &str) -> Option<()> {
        self.out.push('{');
        let groups = ["Alphabetic", "Ideographic", "Phonetic"];
        for (group, value) in groups.into_iter().zip(name.split('=')) {
            if !value.is_empty() {
                self.comma();
                write!(self.out, "\"{group}\":").ok()?;
                self.string(value)?;
            }
        }
        self.out.push('}');
        Some(())
    }

    fn numbers(&mut self, vr: VR, bytes: &[u8], size: usize, encoding: Encoding) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        if !bytes.len().is_multiple_of(size) {
            return None;
        }
        self.out.push_str(",\"Value\":[");
        for value in bytes.chunks_exact(size) {
            self.comma();
            self.number(vr, value, encoding)?;
        }
        self.out.push(']');
        Some(())
    }

    fn number(&mut self, vr: VR, bytes: &[u8], encoding: Encoding) -> Option<()> {
        let out = &mut self.out;
        let two = || bytes.try_into().ok().map(|bytes| encoding.u16(bytes));
        let four = || bytes.try_into().ok().map(|bytes| encoding.u32(bytes));
        let eight = || bytes.try_into().ok().map(|bytes| encoding.u64(bytes));
        match vr {
            VR::US => write!(out, "{}", two()?),
            VR::SS => write!(out, "{}", two()?.cast_signed()),
            VR::UL => write!(out, "{}", four()?),
            VR::SL => write!(out, "{}", four()?.cast_signed()),
            VR::UV => write!(out, "{}", eight()?),
            VR::SV => write!(out, "{}", eight()?.cast_signed()),
            VR::FL => return self.float(f32::from_bits(four()?).into()),
            VR::FD => return self.float(f64::from_bits(eight()?)),
            // PS3.18 F.2.2: eight hexadecimal digits.
            VR::AT => {
                let tag = encoding.tag(bytes.try_into().ok()?);
                write!(out, "\"{:04X}{:04X}\"", tag.0, tag.1)
            }
            _ => return None,
        }
        .ok()
    }

    /// JSON has no other numbers: what is not finite is a string.
    fn float(&mut self, number: f64) -> Option<()> {
        if number.is_finite() {
            write!(self.out, "{number:?}").ok()
        } else {
            write!(self.out, "\"{number}\"").ok()
        }
    }

    /// Items with those of their attributes that are text or numbers; sequences inside them are left out.
    fn sequence(&mut self, tag: Tag, value: &Captured, encoding: ValueEncoding<'_>) -> Option<()> {
        let (element, elements) = as_element(tag, value, encoding.elements)?;
        let begin = self.out.len();
        self.out.push_str(",\"Value\":[");
        let mut charset = encoding.charset;
        let mut last = None;
        let mut walk = Walk::new(&element, elements);
        while let Some(token) = walk.next().ok()? {
            match token {
                Token::Item if walk.depth() == 2 => {
                    self.comma();
                    self.out.push('{');
                    (charset, last) = (encoding.charset, None);
                }
                Token::ItemEnd if walk.depth() == 1 => self.out.push('}'),
                Token::Element { tag, vr, value } if walk.depth() == 2 => {
                    let bytes = element.get(value)?;
                    if tag == tags::SPECIFIC_CHARACTER_SET {
                        charset = SpecificCharacterSet::from_value(trim_padding(bytes));
                    } else if last < Some(tag) {
                        // One that is out of its place may have been there before.
                        let elements = walk.encoding();
                        self.member(tag, vr, bytes, ValueEncoding { elements, charset })?;
                        last = Some(tag);
                    }
                }
                _ => {}
            }
        }
        if self.out.ends_with('[') {
            // PS3.18 F.2.5: what is empty has no value.
            self.out.truncate(begin);
        } else {
            self.out.push(']');
        }
        Some(())
    }

    /// An element of an item, where it is one of the Standard that is text or numbers, and no group length.
    fn member(&mut self, tag: Tag, vr: Option<VR>, bytes: &[u8], encoding: ValueEncoding<'_>) -> Option<()> {
        let encoding = encoding.of(vr);
        let by_dictionary = || StandardDataDictionary.by_tag(tag)?.vr().exact();
        let vr = vr.filter(|&vr| vr != VR::UN).or_else(by_dictionary);
        let is_standard = tag.0.is_multiple_of(2) && tag.1 != 0;
        let Some(vr) = vr.filter(|&vr| has_json_value(vr) && is_standard) else {
            return Some(());
        };
        self.key(tag, vr)?;
        self.value(vr, bytes, encoding)?;
        self.out.push('}');
        Some(())
    }

    /// Decodes a value. Padding at its end is left out, and control characters become U+FFFD but for those that long texts may
    /// have (PS3.5 6.1.3).
    fn text<'v>(&mut self, vr: VR, bytes: &'v [u8], charset: SpecificCharacterSet<'_>) -> Cow<'v, str> {
        let is_long = matches!(vr, VR::LT | VR::ST | VR::UT);
        let is_control = |c: char| c < ' ' && !(is_long && matches!(c, '\t' | '\n' | '\x0C' | '\r'));
        let bytes = trim_padding(bytes);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() && !text.contains('\x1B') => Cow::Borrowed(text),
            // Also of those that have the default repertoire alone (PS3.5 6.1.2.2): devices write what they have.
            _ => {
                let decoded = charset.decode(bytes);
                self.is_doubtful |= decoded.is_doubtful;
                Cow::Owned(decoded.text)
            }
        };
        if text.contains(is_control) {
            return Cow::Owned(text.replace(is_control, "\u{FFFD}"));
        }
        text
    }

    fn string(&mut self, text: &str) -> Option<()> {
        let is_plain = |byte| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.out.push('"');
            self.out.push_str(text);
            self.out.push('"');
        } else {
            self.out.push_str(&serde_json::to_string(text).ok()?);
        }
        Some(())
    }
}

/// An integer, also one that is written with a fraction of zeros.
fn integer(text: &str) -> Option<i64> {
    let digits = match text.split_once('.') {
        Some((digits, fraction)) if fraction.bytes().all(|byte| byte == b'0') => digits,
        _ => text,
    };
    digits.parse().ok()
}

/// A captured sequence with a header, and how both are encoded. PS3.5 6.2.2 note 2: a sequence in a UN is in Implicit VR Little Endian.
fn as_element(tag: Tag, value: &Captured, encoding: Encoding) -> Option<(Vec<u8>, Encoding)> {
    let encoding = match value.vr {
        Some(VR::UN) => Encoding::IMPLICIT_LITTLE,
        _ => encoding,
    };
    let length = if value.is_undefined_length {
        UNDEFINED
    } else {
        u32::try_from(value.bytes.len()).ok()?
    };
    let mut element = Vec::with_capacity(value.bytes.len() + 12);
    for half in [tag.0, tag.1] {
        element.extend_from_slice(&encoding.u16(half.to_le_bytes()).to_le_bytes());
    }
    if encoding.explicit_vr {
        element.extend_from_slice(b"SQ\0\0");
    }
    element.extend_from_slice(&encoding.u32(length.to_le_bytes()).to_le_bytes());
    element.extend_from_slice(&value.bytes);
    Some((element, encoding))
}

#[cfg(test)]
mod tests;
