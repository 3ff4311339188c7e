//! The attributes that change with Pixel Data.

use std::collections::BTreeMap;
use std::ops::Range;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use storescp_codecs::Encode;

use super::{Frames, Pixels};
use crate::dataset::header::PIXEL_DATA;
use crate::transcode::cells::{even, native_bytes};
use crate::transcode::convert::Writer;
use crate::transcode::image::STALE;
use crate::transcode::TranscodeError;

/// New values by tag; none: the element goes.
pub(in crate::transcode) type Edits = BTreeMap<Tag, Option<(VR, Vec<u8>)>>;

pub(in crate::transcode) fn write_edit(
    writer: &mut Writer<'_>,
    tag: Tag,
    edit: Option<&(VR, Vec<u8>)>,
) -> Result<(), TranscodeError> {
    match edit {
        Some((vr, value)) => writer.element(tag, *vr, value),
        None => Ok(()),
    }
}

/// Group lengths (gggg,0000) are retired (PS3.5 7.2); one of a group that changes would be wrong. `nested`: the groups in which
/// pixels in items change.
pub(super) fn is_length_of_a_changed_group(tag: Tag, edits: &Edits, nested: &[u16]) -> bool {
    tag.1 == 0 && (!edits.is_empty() && (tag.0 == 0x0028 || tag.0 == PIXEL_DATA.0) || nested.contains(&tag.0))
}

impl Pixels<'_> {
    /// What changes besides Pixel Data.
    pub(super) fn edits(&self) -> Result<Edits, TranscodeError> {
        let mut edits = self.edits_in_an_item()?;
        if let Frames::Encapsulated {
            description,
            fragments,
            ..
        } = &self.frames
        {
            if let Some(method) = description.lossy {
                self.note_loss(method, fragments, &mut edits);
            }
        }
        Ok(edits)
    }

    /// The same of an image in an item: an icon has no attributes that tell of a loss (PS3.3 C.7.6.1.1.6).
    pub(in crate::transcode) fn edits_in_an_item(&self) -> Result<Edits, TranscodeError> {
        let mut edits: Edits = STALE.iter().map(|&tag| (tag, None)).collect();
        let mut photometric = self.image.photometric();
        if let Frames::Encapsulated { description, .. } = &self.frames {
            photometric = self.image.photometric_of(description.colour)?;
        }
        if self.geometry.samples_per_pixel > 1 && self.image.planar_configuration != Some(0) {
            edits.insert(
                tags::PLANAR_CONFIGURATION,
                Some((VR::US, 0u16.to_le_bytes().to_vec())),
            );
        }
        if self.geometry.samples_per_pixel == 3 && photometric == "RGB" {
            if let Some(encoded) = self.encoder.and_then(Encode::photometric_of_rgb) {
                photometric = encoded;
            }
        }
        if photometric != self.image.photometric() {
            edits.insert(
                tags::PHOTOMETRIC_INTERPRETATION,
                Some((VR::CS, even(photometric.as_bytes(), b' '))),
            );
        }
        Ok(edits)
    }

    /// PS3.3 C.7.6.1.1.5: once lossy, always lossy. What the sender says of the compression stays.
    fn note_loss(&self, method: &str, fragments: &[&[Range<usize>]], edits: &mut Edits) {
        if self.image.lossy.as_deref() == Some("01") {
            return;
        }
        let compressed: usize = fragments
            .iter()
            .flat_map(|frame| frame.iter().map(ExactSizeIterator::len))
            .sum();
        let native = native_bytes(&self.geometry, self.count).unwrap_or(0);
        // In hundredths, as a decimal string (DS).
        let ratio = native.saturating_mul(100) / (compressed as u64).max(1);
        let ratio = format!("{}.{:02}", ratio / 100, ratio % 100);
        let mut set = |tag, vr, text: &str| edits.insert(tag, Some((vr, even(text.as_bytes(), b' '))));
        set(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "01");
        set(tags::LOSSY_IMAGE_COMPRESSION_RATIO, VR::DS, &ratio);
        set(tags::LOSSY_IMAGE_COMPRESSION_METHOD, VR::CS, method);
    }
}
