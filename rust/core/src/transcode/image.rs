//! The Image Pixel Module of a data set (PS3.3 C.7.6.3) and where its frames lie.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use storescp_codecs::{Colour, Decode, Geometry};

use super::TranscodeError;
use crate::dataset::header::PIXEL_DATA;
use crate::dataset::values::number_of_frames;
use crate::dataset::walk::{next_top_level, TopLevel, Walk};
use crate::transfer_syntax::Encoding;

/// What a transcoder must know of an image.
#[derive(Debug)]
pub(super) struct Image<'d> {
    dataset: &'d [u8],
    encoding: Encoding,
    rows: Option<u16>,
    columns: Option<u16>,
    samples_per_pixel: Option<u16>,
    bits_allocated: Option<u16>,
    bits_stored: Option<u16>,
    high_bit: Option<u16>,
    pixel_representation: Option<u16>,
    pub(super) planar_configuration: Option<u16>,
    photometric: Option<String>,
    pub(super) lossy: Option<String>,
    number_of_frames: &'d [u8],
    extended_offsets: Option<Range<usize>>,
    /// Float or Double Float Pixel Data, which are always native (PS3.5 8.2).
    pub(super) has_float_pixels: bool,
    /// Pixel Data.
    pub(super) pixel_data: Option<TopLevel>,
    /// The groups of sequences in which encapsulated pixel data lie.
    pub(super) groups_of_nested: Vec<u16>,
}

impl<'d> Image<'d> {
    /// Reads the attributes at the top of a data set.
    pub(super) fn read(dataset: &'d [u8], encoding: Encoding) -> Result<Self, TranscodeError> {
        let mut image = Self {
            dataset,
            encoding,
            rows: None,
            columns: None,
            samples_per_pixel: None,
            bits_allocated: None,
            bits_stored: None,
            high_bit: None,
            pixel_representation: None,
            planar_configuration: None,
            photometric: None,
            lossy: None,
            number_of_frames: &[],
            extended_offsets: None,
            has_float_pixels: false,
            pixel_data: None,
            groups_of_nested: Vec::new(),
        };
        let mut walk = Walk::new(dataset, encoding);
        let mut seen = HashSet::new();
        while let Some(element) = next_top_level(&mut walk)? {
            // Readers would not agree on which of two counts.
            if matches!(element.tag.0, 0x0028 | 0x7FE0) && !seen.insert(element.tag) {
                return Err(TranscodeError::Attribute("an element of the image occurs twice"));
            }
            if element.holds_encapsulated {
                image.groups_of_nested.push(element.tag.0);
            }
            match element.tag {
                tags::ROWS => image.rows = image.number(&element),
                tags::COLUMNS => image.columns = image.number(&element),
                tags::SAMPLES_PER_PIXEL => image.samples_per_pixel = image.number(&element),
                tags::BITS_ALLOCATED => image.bits_allocated = image.number(&element),
                tags::BITS_STORED => image.bits_stored = image.number(&element),
                tags::HIGH_BIT => image.high_bit = image.number(&element),
                tags::PIXEL_REPRESENTATION => image.pixel_representation = image.number(&element),
                tags::PLANAR_CONFIGURATION => image.planar_configuration = image.number(&element),
                tags::PHOTOMETRIC_INTERPRETATION => image.photometric = image.text(&element),
                tags::LOSSY_IMAGE_COMPRESSION => image.lossy = image.text(&element),
                tags::NUMBER_OF_FRAMES => {
                    image.number_of_frames = image.bytes(element.value.clone().unwrap_or_default());
                }
                tags::EXTENDED_OFFSET_TABLE => image.extended_offsets.clone_from(&element.value),
                tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA => image.has_float_pixels = true,
                PIXEL_DATA => image.pixel_data = Some(element),
                _ => {}
            }
        }
        Ok(image)
    }

    fn bytes(&self, range: Range<usize>) -> &'d [u8] {
        self.dataset.get(range).unwrap_or_default()
    }

    fn number(&self, element: &TopLevel) -> Option<u16> {
        let value = self.bytes(element.value.clone()?);
        value.first_chunk().map(|&two| self.encoding.u16(two))
    }

    fn text(&self, element: &TopLevel) -> Option<String> {
        let value = self.bytes(element.value.clone()?);
        let text = std::str::from_utf8(value).ok()?;
        Some(text.trim_matches([' ', '\0']).to_owned())
    }

    /// Photometric Interpretation, empty where absent.
    pub(super) fn photometric(&self) -> &str {
        self.photometric.as_deref().unwrap_or_default()
    }

    /// The same of pixels that a codec has decoded: with all samples of each pixel, in these colours.
    pub(super) fn photometric_of(&self, colour: Colour) -> Result<&str, TranscodeError> {
        let contradiction = |text| Err(TranscodeError::Attribute(text));
        match (colour, self.photometric()) {
            // No name is theirs at full size (PS3.3 C.7.6.3.1.2), and what range they have only the encoder knows.
            (_, "YBR_PARTIAL_422" | "YBR_PARTIAL_420") => {
                contradiction("YBR_PARTIAL of a codec that decodes to all samples")
            }
            (Colour::Rgb, _) | (Colour::RgbOfXyb, "RGB" | "XYB" | "") => Ok("RGB"),
            (Colour::RgbOfXyb, _) => contradiction("a frame in XYB, and another Photometric Interpretation"),
            (Colour::AsStored, "XYB") => contradiction("XYB of a frame that is not"),
            (Colour::AsStored, "YBR_FULL_422") => Ok("YBR_FULL"),
            (Colour::AsStored, other) => Ok(other),
        }
    }

    /// Whether Pixel Representation is 1.
    pub(super) fn is_signed(&self) -> bool {
        self.pixel_representation == Some(1)
    }

    /// The attributes that a codec needs.
    pub(super) fn geometry(&self) -> Result<Geometry, TranscodeError> {
        let need = |value: Option<u16>, absent| value.ok_or(TranscodeError::Attribute(absent));
        let bits_allocated = need(self.bits_allocated, "Bits Allocated is absent")?;
        let bits_stored = self.bits_stored.unwrap_or(bits_allocated);
        let geometry = Geometry {
            rows: need(self.rows, "Rows is absent")?,
            columns: need(self.columns, "Columns is absent")?,
            samples_per_pixel: need(self.samples_per_pixel, "Samples per Pixel is absent")?,
            bits_allocated,
            bits_stored,
            high_bit: self.high_bit.unwrap_or(bits_stored.saturating_sub(1)),
            signed: match self.pixel_representation.unwrap_or(0) {
                0 => false,
                1 => true,
                _ => return Err(TranscodeError::Attribute("Pixel Representation is not 0 or 1")),
            },
            rgb: self.photometric() == "RGB",
            jpeg2000_colour: matches!(self.photometric(), "YBR_RCT" | "YBR_ICT"),
        };
        geometry.checked().map_err(|error| match error {
            storescp_codecs::CodecError::Geometry(text) => TranscodeError::Attribute(text),
            _ => TranscodeError::Attribute("image attributes make no sense"),
        })
    }

    /// Number of Frames (0028,0008): 1 where absent or empty (PS3.3 C.7.6.6).
    pub(super) fn frames(&self) -> Result<usize, TranscodeError> {
        number_of_frames(self.number_of_frames)
            .and_then(|frames| usize::try_from(frames).ok())
            .ok_or(TranscodeError::Attribute("Number of Frames is not a number"))
    }

    /// The first fragment of the first frame, empty where there is none.
    pub(super) fn first_fragment(&self, pixel_data: &TopLevel) -> &'d [u8] {
        let first = pixel_data.fragments.get(1).cloned();
        first.map(|range| self.bytes(range)).unwrap_or_default()
    }

    /// The fragments of each frame of encapsulated Pixel Data.
    pub(super) fn frames_of_fragments<'i>(
        &self,
        pixel_data: &'i TopLevel,
        frames: usize,
        decoder: &dyn Decode,
    ) -> Result<Vec<&'i [Range<usize>]>, TranscodeError> {
        let (table, fragments) = pixel_data
            .fragments
            .split_first()
            .ok_or(TranscodeError::Frames("no fragments"))?;
        if fragments.is_empty() {
            return Err(TranscodeError::Frames("no fragments"));
        }
        if frames == 1 {
            // Of several, all but the first would be lost.
            return if self.starts_of_signatures(fragments, decoder).len() > 1 {
                Err(TranscodeError::Frames("more frames than the data set says"))
            } else {
                Ok(vec![fragments])
            };
        }
        if fragments.len() == frames {
            return Ok(fragments.chunks(1).collect());
        }
        if fragments.len() < frames {
            return Err(TranscodeError::Frames("fewer fragments than frames"));
        }
        let extended = self.extended_offsets.clone().map(|range| {
            self.bytes(range)
                .chunks_exact(8)
                .map(|raw| u64::from_le_bytes(raw.try_into().unwrap_or_default()))
                .collect::<Vec<_>>()
        });
        let basic = || {
            self.bytes(table.clone())
                .chunks_exact(4)
                .map(|raw| u64::from(u32::from_le_bytes(raw.try_into().unwrap_or_default())))
                .collect::<Vec<_>>()
        };
        let starts = extended
            .and_then(|offsets| starts_of_offsets(&offsets, fragments, frames))
            .or_else(|| starts_of_offsets(&basic(), fragments, frames))
            .or_else(|| {
                let starts = self.starts_of_signatures(fragments, decoder);
                (starts.len() == frames && starts.first() == Some(&0)).then_some(starts)
            })
            .ok_or(TranscodeError::Frames("it cannot be told where the frames begin"))?;
        let ends = starts.iter().skip(1).copied().chain([fragments.len()]);
        Ok(starts
            .iter()
            .zip(ends)
            .map(|(&begin, end)| fragments.get(begin..end).unwrap_or_default())
            .collect())
    }

    /// Where no table helps: each frame begins as its kind of codestream does.
    fn starts_of_signatures(&self, fragments: &[Range<usize>], decoder: &dyn Decode) -> Vec<usize> {
        fragments
            .iter()
            .enumerate()
            .filter(|(_, range)| decoder.begins(self.bytes((*range).clone())))
            .map(|(number, _)| number)
            .collect()
    }

    /// The bytes of a frame: borrowed where it is one fragment.
    pub(super) fn frame_of(&self, fragments: &[Range<usize>]) -> Cow<'d, [u8]> {
        match fragments {
            [one] => Cow::Borrowed(self.bytes(one.clone())),
            several => {
                let parts: Vec<_> = several.iter().map(|range| self.bytes(range.clone())).collect();
                Cow::Owned(parts.concat())
            }
        }
    }

    /// The value of native Pixel Data, in the byte order of the data set.
    pub(super) fn native(&self, pixel_data: &TopLevel) -> &'d [u8] {
        pixel_data
            .value
            .clone()
            .map(|range| self.bytes(range))
            .unwrap_or_default()
    }

    /// Whether native pixel data are big endian words of 16 bits.
    ///
    /// # Errors
    /// Cells of more than 16 bits in words of 16 bits, big endian: by PS3.5 8.1.1 and 7.3 the low word comes first, as DCMTK and
    /// GDCM have it, but there are files, and readers (pydicom), in which the cell is turned as a whole. Nothing in a file tells.
    pub(super) fn has_swapped_words(&self, pixel_data: &TopLevel) -> Result<bool, TranscodeError> {
        if !self.encoding.big_endian || matches!(pixel_data.vr, Some(VR::OB | VR::UN)) {
            return Ok(false);
        }
        if self.bits_allocated.is_some_and(|bits| bits > 16) {
            return Err(TranscodeError::Attribute(
                "big endian cells of more than 16 bits, which are read in two ways",
            ));
        }
        Ok(true)
    }
}

/// PS3.5 A.4: offsets from the first byte behind the offset table to the item of each frame's first fragment.
fn starts_of_offsets(offsets: &[u64], fragments: &[Range<usize>], frames: usize) -> Option<Vec<usize>> {
    const ITEM_HEADER: usize = 8;
    if offsets.len() != frames || offsets.first() != Some(&0) {
        return None;
    }
    let origin = fragments.first()?.start.checked_sub(ITEM_HEADER)?;
    let mut starts: Vec<usize> = Vec::with_capacity(frames);
    for &offset in offsets {
        let wanted = usize::try_from(offset).ok()?.checked_add(origin + ITEM_HEADER)?;
        let found = fragments
            .binary_search_by_key(&wanted, |range| range.start)
            .ok()?;
        if starts.last().is_some_and(|&last| last >= found) {
            return None;
        }
        starts.push(found);
    }
    Some(starts)
}

/// Attributes that describe an encapsulation and are wrong once it is another.
pub(super) const STALE: [Tag; 3] = [
    tags::EXTENDED_OFFSET_TABLE,
    tags::EXTENDED_OFFSET_TABLE_LENGTHS,
    tags::ENCAPSULATED_PIXEL_DATA_VALUE_TOTAL_LENGTH,
];
