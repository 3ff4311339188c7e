//! Elements from one encoding to another: VR written out or not, byte order (PS3.5 7.1, 7.3, A.1 to A.3).

use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry, VirtualVr};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, StandardDataDictionary};

use super::output::Output;
use super::TranscodeError;
use crate::dataset::header::{
    dictionary_says_sequence, has_short_length, ITEM, ITEM_DELIMITATION, PIXEL_DATA, SEQUENCE_DELIMITATION,
    UNDEFINED,
};
use crate::dataset::scan::ScanError;
use crate::dataset::walk::{Token, Walk};
use crate::transfer_syntax::Encoding;

/// What is swapped at a time, of a value as large as an instance: whole numbers.
const SWAPPED_BYTES: usize = 64 * 1024;

const INEXPRESSIBLE: TranscodeError = TranscodeError::Attribute("a VR that Implicit VR cannot express");

/// Writes elements in a target encoding.
pub(super) struct Writer<'o> {
    out: &'o mut dyn Output,
    explicit_vr: bool,
    /// Pixel Representation is 1: decides US or SS where the dictionary leaves it open.
    signed: bool,
}

impl<'o> Writer<'o> {
    /// A writer of little endian elements, with VR or without.
    pub(super) fn new(out: &'o mut dyn Output, explicit_vr: bool, signed: bool) -> Self {
        Self {
            out,
            explicit_vr,
            signed,
        }
    }

    pub(super) fn out(&mut self) -> &mut dyn Output {
        self.out
    }

    /// An element with a value that is little endian already.
    pub(super) fn element(&mut self, tag: Tag, vr: VR, value: &[u8]) -> Result<(), TranscodeError> {
        self.element_header(tag, vr, value)?;
        self.out.write(value)?;
        Ok(())
    }

    /// What stands before a value.
    fn element_header(&mut self, tag: Tag, vr: VR, value: &[u8]) -> Result<(), TranscodeError> {
        let length =
            u32::try_from(value.len()).map_err(|_| TranscodeError::TooLarge("an element can hold"))?;
        if !self.explicit_vr
            && vr != VR::SQ
            && dictionary_says_sequence(tag)
            && !(vr == VR::UN && is_sequence(value))
        {
            // Without its VR it would be read as what it is not.
            return Err(INEXPRESSIBLE);
        }
        self.header(tag, vr, length)
    }

    /// The header of an element.
    pub(super) fn header(&mut self, tag: Tag, vr: VR, length: u32) -> Result<(), TranscodeError> {
        let [g, h] = tag.0.to_le_bytes();
        let [n, m] = tag.1.to_le_bytes();
        let [a, b, c, d] = length.to_le_bytes();
        let [v, r] = vr.to_bytes();
        if !self.explicit_vr {
            self.out.write(&[g, h, n, m, a, b, c, d])?;
        } else if let (true, Ok(short)) = (has_short_length(vr), u16::try_from(length)) {
            let [a, b] = short.to_le_bytes();
            self.out.write(&[g, h, n, m, v, r, a, b])?;
        } else {
            // PS3.5 6.2.2 note 2: a value that is too long for its VR is written as UN.
            let [v, r] = if has_short_length(vr) { *b"UN" } else { [v, r] };
            self.out.write(&[g, h, n, m, v, r, 0, 0, a, b, c, d])?;
        }
        Ok(())
    }

    /// An item or a delimiter.
    pub(super) fn item(&mut self, tag: Tag, length: u32) -> Result<(), TranscodeError> {
        let [g, h] = tag.0.to_le_bytes();
        let [n, m] = tag.1.to_le_bytes();
        let [a, b, c, d] = length.to_le_bytes();
        self.out.write(&[g, h, n, m, a, b, c, d])?;
        Ok(())
    }

    /// Converts one element of a data set with everything inside it. Sequences and items become ones of undefined length,
    /// because the elements inside change theirs. Group lengths (retired) are left out for the same reason.
    pub(super) fn convert(&mut self, dataset: &[u8], encoding: Encoding) -> Result<(), TranscodeError> {
        let mut walk = Walk::new(dataset, encoding);
        let mut scratch = Vec::new();
        // An image in an item, such as an icon, has its own Pixel Representation; other items have that around them.
        let mut signed = vec![self.signed];
        while let Some(token) = walk.next()? {
            match token {
                Token::Element { tag, .. } if tag.1 == 0 => {}
                Token::Element { tag, vr, value } => {
                    let bytes = dataset.get(value).unwrap_or_default();
                    if let (tags::PIXEL_REPRESENTATION, Some(&raw), Some(innermost)) =
                        (tag, bytes.first_chunk(), signed.last_mut())
                    {
                        *innermost = encoding.u16(raw) == 1;
                    }
                    let vr = vr.unwrap_or_else(|| vr_of(tag, signed.last() == Some(&true)));
                    if !encoding.big_endian {
                        self.element(tag, vr, bytes)?;
                        continue;
                    }
                    self.element_header(tag, vr, bytes)?;
                    for part in bytes.chunks(SWAPPED_BYTES) {
                        scratch.clear();
                        scratch.extend_from_slice(part);
                        swap(&mut scratch, vr);
                        self.out.write(&scratch)?;
                    }
                }
                Token::Sequence { tag } => self.header(tag, VR::SQ, UNDEFINED)?,
                Token::Item => {
                    signed.push(signed.last() == Some(&true));
                    self.item(ITEM, UNDEFINED)?;
                }
                Token::ItemEnd => {
                    signed.pop();
                    self.item(ITEM_DELIMITATION, 0)?;
                }
                Token::SequenceEnd | Token::FragmentsEnd => self.item(SEQUENCE_DELIMITATION, 0)?,
                // Only Pixel Data is known to have fragments where the VR does not say so.
                Token::Fragments { tag, .. } if !self.explicit_vr && tag != PIXEL_DATA => {
                    return Err(INEXPRESSIBLE)
                }
                Token::Fragments { tag, vr } => self.header(tag, vr.unwrap_or(VR::OB), UNDEFINED)?,
                Token::Fragment(range) => {
                    let bytes = dataset.get(range).unwrap_or_default();
                    let length = u32::try_from(bytes.len()).map_err(|_| ScanError::Truncated)?;
                    self.item(ITEM, length)?;
                    self.out.write(bytes)?;
                }
            }
        }
        Ok(())
    }
}

/// The VR of an element that does not say its own (PS3.5 A.1, PS3.6).
fn vr_of(tag: Tag, signed: bool) -> VR {
    if tag.0 % 2 == 1 {
        // PS3.5 7.8.1: private creators are LO; what the others are only who reserved the block knows.
        return if (0x0010..=0x00FF).contains(&tag.1) {
            VR::LO
        } else {
            VR::UN
        };
    }
    match StandardDataDictionary.by_tag(tag).map(DataDictionaryEntry::vr) {
        Some(VirtualVr::Exact(vr)) => vr,
        Some(VirtualVr::Xs) if signed => VR::SS,
        Some(VirtualVr::Xs) => VR::US,
        Some(VirtualVr::Lt) if tag == tags::LUT_DESCRIPTOR => VR::US,
        Some(VirtualVr::Ox | VirtualVr::Px | VirtualVr::Lt) => VR::OW,
        _ => VR::UN,
    }
}

/// Whether the value of a UN is a sequence (PS3.5 6.2.2 note 2: Implicit VR Little Endian).
fn is_sequence(value: &[u8]) -> bool {
    let Ok(length) = u32::try_from(value.len()) else {
        return false;
    };
    // As the only element of a data set.
    let tag = tags::REFERENCED_STUDY_SEQUENCE;
    let mut whole = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    whole.extend_from_slice(&length.to_le_bytes());
    whole.extend_from_slice(value);
    let mut walk = Walk::new(&whole, Encoding::IMPLICIT_LITTLE);
    loop {
        match walk.next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Swaps the numbers of a value (PS3.5 7.3).
fn swap(value: &mut [u8], vr: VR) {
    let width = match vr {
        VR::AT | VR::OW | VR::SS | VR::US => 2,
        VR::FL | VR::OF | VR::OL | VR::SL | VR::UL => 4,
        VR::FD | VR::OD | VR::OV | VR::SV | VR::UV => 8,
        _ => return,
    };
    super::cells::swap(value, width);
}
