//! The header of one element, item or delimiter (PS3.5 7.1, 7.5).

use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::StandardDataDictionary;

use crate::transfer_syntax::{Encoding, UnknownVr};

pub(crate) const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
pub(crate) const ITEM: Tag = Tag(0xFFFE, 0xE000);
pub(crate) const ITEM_DELIMITATION: Tag = Tag(0xFFFE, 0xE00D);
pub(crate) const SEQUENCE_DELIMITATION: Tag = Tag(0xFFFE, 0xE0DD);
/// PS3.5 7.1.1: the length that means "until the delimitation item".
pub(crate) const UNDEFINED: u32 = 0xFFFF_FFFF;

/// What a header turned out to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Header {
    /// More bytes are needed: this many in all.
    Incomplete(usize),
    /// The value representation is none, and the encoding does not say how to read on.
    Unknown(UnknownHeader),
    /// A whole header.
    Element(ElementHeader),
}

/// The header of an element, item or delimiter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ElementHeader {
    pub(crate) tag: Tag,
    /// None where the encoding does not say.
    pub(crate) vr: Option<VR>,
    pub(crate) length: u32,
    /// Bytes of the header.
    pub(crate) size: usize,
    pub(crate) encoding: Encoding,
    /// What stands where the value representation belongs is not in PS3.5 6.2.
    pub(crate) has_illegal_vr: bool,
}

/// A header whose value representation is not in PS3.5 6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownHeader {
    /// Its tag.
    pub tag: Tag,
    /// What stands where the value representation belongs.
    pub vr: [u8; 2],
}

impl std::fmt::Display for UnknownHeader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b] = self.vr;
        if self
            .vr
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte) && *byte != b'\\')
        {
            write!(formatter, "VR '{}{}'", char::from(a), char::from(b))?;
        } else {
            write!(formatter, "VR {a:02X}{b:02X}H")?;
        }
        write!(formatter, " of ({:04X},{:04X})", self.tag.0, self.tag.1)
    }
}

impl Header {
    /// Reads the header at the beginning of `bytes`.
    pub(crate) fn parse(bytes: &[u8], encoding: Encoding) -> Self {
        let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk::<8>() else {
            return Self::Incomplete(8);
        };
        let tag = encoding.tag([a, b, c, d]);
        let eight_bytes = |vr, length, encoding, has_illegal_vr| {
            Self::Element(ElementHeader {
                tag,
                vr,
                length,
                size: 8,
                encoding,
                has_illegal_vr,
            })
        };
        let short = |vr, length, encoding| eight_bytes(vr, length, encoding, false);
        let illegal = |vr, length, encoding| eight_bytes(vr, length, encoding, true);
        // PS3.5 7.5: items and delimiters have no VR in any syntax.
        if tag.0 == 0xFFFE || !encoding.explicit_vr {
            return short(None, encoding.u32([e, f, g, h]), encoding);
        }
        let vr = VR::from_binary([e, f]);
        let length = u32::from(encoding.u16([g, h]));
        match vr {
            Some(vr) if has_short_length(vr) => return short(Some(vr), length, encoding),
            Some(_) => {}
            None => match encoding.unknown_vr.form([e, f]) {
                None => return Self::Unknown(UnknownHeader { tag, vr: [e, f] }),
                Some(Form::Short) => return illegal(Some(VR::UN), length, encoding),
                Some(Form::Implicit) => {
                    return illegal(None, encoding.u32([e, f, g, h]), encoding.without_vr());
                }
                Some(Form::Long) => {}
            },
        }
        match bytes.get(8..12) {
            Some(&[i, j, k, l]) => Self::Element(ElementHeader {
                tag,
                vr: Some(vr.unwrap_or(VR::UN)),
                length: encoding.u32([i, j, k, l]),
                size: 12,
                encoding,
                has_illegal_vr: vr.is_none(),
            }),
            _ => Self::Incomplete(12),
        }
    }
}

/// How the rest of a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A 16-bit length behind two bytes of a value representation.
    Short,
    /// A 32-bit length behind two bytes of a value representation and two reserved ones.
    Long,
    /// No value representation: a 32-bit length.
    Implicit,
}

impl UnknownVr {
    /// How these two bytes are read, which are no value representation.
    fn form(self, vr: [u8; 2]) -> Option<Form> {
        let is_future = vr.iter().all(u8::is_ascii_uppercase);
        match self {
            Self::Undecided => None,
            // PS3.5 6.2: value representations of the future will have a 32-bit length.
            Self::Future | Self::Absent if is_future => Some(Form::Long),
            Self::Future => Some(Form::Short),
            Self::Short if (*b"AA"..=*b"ZZ").contains(&vr) => Some(Form::Short),
            Self::Short | Self::Absent => Some(Form::Implicit),
        }
    }
}

/// PS3.5 7.1.2: these have a 16-bit length; all others, future ones too (6.2), a 32-bit one after 2 bytes.
pub(crate) fn has_short_length(vr: VR) -> bool {
    matches!(
        vr,
        VR::AE
            | VR::AS
            | VR::AT
            | VR::CS
            | VR::DA
            | VR::DS
            | VR::DT
            | VR::FL
            | VR::FD
            | VR::IS
            | VR::LO
            | VR::LT
            | VR::PN
            | VR::SH
            | VR::SL
            | VR::SS
            | VR::ST
            | VR::TM
            | VR::UI
            | VR::UL
            | VR::US
    )
}

/// Whether an element of undefined length holds fragments and not items: pixel data, compressed icons and private
/// pixel data of an encapsulated syntax (PS3.5 A.4).
pub(crate) fn holds_fragments(tag: Tag, vr: Option<VR>) -> bool {
    tag == PIXEL_DATA || matches!(vr, Some(VR::OB | VR::OW))
}

/// Whether the data dictionary says that an element is a sequence.
pub(crate) fn dictionary_says_sequence(tag: Tag) -> bool {
    StandardDataDictionary
        .by_tag(tag)
        .is_some_and(|entry| entry.vr().exact() == Some(VR::SQ))
}

/// Group Length (gggg,0000): how many bytes lie behind its element, whose value ends at `end`.
pub(crate) fn put_group_length(bytes: &mut [u8], end: usize) {
    let length = u32::try_from(bytes.len().saturating_sub(end)).unwrap_or(0);
    if let Some(place) = end.checked_sub(4).and_then(|begin| bytes.get_mut(begin..end)) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}
