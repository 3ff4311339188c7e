//! The header of one element, item or delimiter (PS3.5 7.1, 7.5).

use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::StandardDataDictionary;

use crate::transfer_syntax::Encoding;

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
    /// A whole header.
    Element {
        tag: Tag,
        /// None where the encoding does not say.
        vr: Option<VR>,
        length: u32,
        /// Bytes of the header.
        size: usize,
        encoding: Encoding,
    },
}

impl Header {
    /// Reads the header at the beginning of `bytes`.
    pub(crate) fn parse(bytes: &[u8], encoding: Encoding) -> Self {
        let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk::<8>() else {
            return Self::Incomplete(8);
        };
        let tag = encoding.tag([a, b, c, d]);
        let short = |vr, length, encoding| Self::Element {
            tag,
            vr,
            length,
            size: 8,
            encoding,
        };
        // PS3.5 7.5: items and delimiters have no VR in any syntax.
        if tag.0 == 0xFFFE || !encoding.explicit_vr {
            return short(None, encoding.u32([e, f, g, h]), encoding);
        }
        if !(e.is_ascii_uppercase() && f.is_ascii_uppercase()) {
            // Not a VR at all: some writers fall back to the implicit form for single elements, and readers follow.
            let implicit = Encoding {
                explicit_vr: false,
                ..encoding
            };
            return short(None, encoding.u32([e, f, g, h]), implicit);
        }
        let vr = VR::from_binary([e, f]);
        if vr.is_some_and(has_short_length) {
            return short(vr, u32::from(encoding.u16([g, h])), encoding);
        }
        match bytes.get(8..12) {
            Some(&[i, j, k, l]) => Self::Element {
                tag,
                vr: Some(vr.unwrap_or(VR::UN)),
                length: encoding.u32([i, j, k, l]),
                size: 12,
                encoding,
            },
            _ => Self::Incomplete(12),
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
