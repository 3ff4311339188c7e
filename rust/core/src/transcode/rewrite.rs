//! The data set put together: what stays is copied byte for byte, what changes is written anew in its place.

mod edits;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use dicom_core::VR;
use storescp_codecs::{decoder_of, encoder, Colour, Decode, Description, Encode, Geometry};

use self::edits::is_length_of_a_changed_group;
pub(super) use self::edits::{write_edit, Edits};
use super::cells::{self, by_pixel, even, native_bytes, native_frame_of, BitJoin};
use super::convert::Writer;
use super::image::Image;
use super::nested::{Elements, MISLABELLED};
use super::output::Output;
use super::{frames, Job, Report, TranscodeError};
use crate::dataset::header::{ITEM, PIXEL_DATA, SEQUENCE_DELIMITATION, UNDEFINED};
use crate::dataset::walk::{next_top_level, TopLevel, Walk};
use crate::transfer_syntax::{is_native, Encoding};

/// PS3.5 7.1.1: FFFFFFFF means "undefined", and lengths are even.
const LARGEST_VALUE: u64 = 0xFFFF_FFFE;
/// Where a basic offset table with 32-bit offsets might not reach, there is none.
const LARGEST_WITH_OFFSETS: u64 = 0xF000_0000;

/// Where the frames of the source are.
enum Frames<'i> {
    Encapsulated {
        decoder: &'static dyn Decode,
        fragments: Vec<&'i [Range<usize>]>,
        description: Description,
    },
    Native {
        cells: Cow<'i, [u8]>,
        /// Words of 16 bits are turned around in each frame.
        swapped: bool,
        by_plane: bool,
    },
}

/// Pixel data on their way.
pub(super) struct Pixels<'i> {
    image: &'i Image<'i>,
    geometry: Geometry,
    count: usize,
    frames: Frames<'i>,
    encoder: Option<&'static dyn Encode>,
    threads: usize,
}

pub(super) fn rewrite(
    dataset: &[u8],
    job: &Job<'_>,
    out: &mut dyn Output,
    progress: &mut dyn FnMut(),
) -> Result<Report, TranscodeError> {
    let encoding = Encoding::of(job.source);
    let target = Encoding::of(job.target);
    let image = Image::read(dataset, encoding)?;
    if image.has_float_pixels && !is_native(job.target) {
        return Err(TranscodeError::Attribute("float pixels cannot be encapsulated"));
    }
    // Between native syntaxes the pixels stay what they are; the converter swaps bytes where it must.
    let only_elements = is_native(job.source) && is_native(job.target);
    let pixels = match &image.pixel_data {
        Some(pixel_data) if !only_elements => Some(prepare(&image, pixel_data, job)?),
        Some(pixel_data) => {
            if pixel_data.is_encapsulated {
                return Err(MISLABELLED);
            }
            image.has_swapped_words(pixel_data)?;
            None
        }
        None => None,
    };
    let edits = match &pixels {
        Some(pixels) => pixels.edits()?,
        None => Edits::new(),
    };
    let total = pixels.as_ref().map_or(0, Pixels::native_bytes);
    let mut source = Elements::new(dataset, encoding, job, total);
    let mut writer = Writer::new(out, target.explicit_vr, image.is_signed());
    let mut pending = edits.iter().peekable();
    let mut report = Report::default();
    let mut walk = Walk::new(dataset, encoding);
    while let Some(element) = next_top_level(&mut walk)? {
        while let Some((tag, edit)) =
            pending.next_if(|(tag, _)| **tag < element.tag || element.tag == PIXEL_DATA)
        {
            write_edit(&mut writer, *tag, edit.as_ref())?;
        }
        if let Some((tag, edit)) = pending.next_if(|(tag, _)| **tag == element.tag) {
            write_edit(&mut writer, *tag, edit.as_ref())?;
            continue;
        }
        if is_length_of_a_changed_group(element.tag, &edits, &image.groups_of_nested) {
            continue;
        }
        match &pixels {
            Some(pixels) if element.tag == PIXEL_DATA => {
                pixels.write(&mut writer, progress)?;
                report.frames = pixels.count;
            }
            _ => {
                let whole = source.whole(&element)?;
                let whole = whole.as_ref();
                if encoding == target && element.is_regular && says_its_vr(whole, encoding) {
                    writer.out().write(whole)?;
                } else {
                    writer.convert(whole, walk.encoding())?;
                }
            }
        }
    }
    for (tag, edit) in pending {
        write_edit(&mut writer, *tag, edit.as_ref())?;
    }
    report.frames += source.frames();
    report.bytes = out.position();
    Ok(report)
}

/// Whether an element has the form that its transfer syntax asks for. Some writers have others in the implicit form; who looks at
/// the first one to tell takes the whole data set for implicit, so what is rewritten must not be a mixture.
fn says_its_vr(element: &[u8], encoding: Encoding) -> bool {
    let vr = element.get(4..6).unwrap_or_default();
    !encoding.explicit_vr || vr.iter().all(u8::is_ascii_uppercase)
}

pub(super) fn prepare<'i>(
    image: &'i Image<'i>,
    pixel_data: &'i TopLevel,
    job: &Job<'_>,
) -> Result<Pixels<'i>, TranscodeError> {
    let no_codec = || TranscodeError::NoCodec {
        source_syntax: job.source.to_owned(),
        target: job.target.to_owned(),
    };
    let geometry = image.geometry()?;
    let count = image.frames()?;
    let total = native_bytes(&geometry, count).ok_or(TranscodeError::TooLarge("fit a number"))?;
    if total > job.max_decoded_bytes {
        return Err(TranscodeError::TooLarge("limits.max_decoded_bytes"));
    }
    let target_encoder = if is_native(job.target) {
        if total > LARGEST_VALUE {
            return Err(TranscodeError::TooLarge("native Pixel Data can hold"));
        }
        None
    } else {
        Some(encoder(job.target).ok_or_else(no_codec)?)
    };
    let frames = locate(image, pixel_data, (job.source, job.target), &geometry, count)?;
    Ok(Pixels {
        image,
        geometry,
        count,
        frames,
        encoder: target_encoder,
        threads: job.threads,
    })
}

/// Where the frames are, and how one becomes native.
fn locate<'i>(
    image: &'i Image<'i>,
    pixel_data: &'i TopLevel,
    (source, target): (&str, &str),
    geometry: &Geometry,
    count: usize,
) -> Result<Frames<'i>, TranscodeError> {
    if is_native(source) {
        if image.photometric().ends_with("_422") || image.photometric().ends_with("_420") {
            return Err(TranscodeError::Attribute("native pixels with subsampled colour"));
        }
        let value = image.native(pixel_data);
        let needed = usize::try_from(native_bytes(geometry, count).unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let (native, rest) = value.split_at_checked(needed).ok_or(TranscodeError::Frames(
            "Pixel Data is shorter than its attributes say",
        ))?;
        // Besides the byte that makes it even, some writers add others. A frame more would be lost.
        if rest.len() > needed % 2
            && (rest.len() >= geometry.frame_bytes() || rest.iter().any(|&byte| byte != 0))
        {
            return Err(TranscodeError::Frames(
                "Pixel Data is longer than its attributes say",
            ));
        }
        let mut swapped = image.has_swapped_words(pixel_data)?;
        let mut cells = Cow::Borrowed(native);
        if swapped && !geometry.frame_bits().is_multiple_of(16) {
            // Words that lie in two frames, or the last one in one and in the padding.
            let whole = value.get(..needed.next_multiple_of(2));
            cells = Cow::Borrowed(whole.unwrap_or(native));
            cells::swap(cells.to_mut(), 2);
            swapped = false;
        }
        Ok(Frames::Native {
            cells,
            swapped,
            by_plane: geometry.samples_per_pixel > 1 && image.planar_configuration == Some(1),
        })
    } else {
        let first = image.first_fragment(pixel_data);
        let decoder_of = |first: &[u8]| decoder_of(first, source, geometry.frame_bytes());
        let no_codec = || TranscodeError::NoCodec {
            source_syntax: source.to_owned(),
            target: target.to_owned(),
        };
        let decoder = decoder_of(first).ok_or_else(no_codec)?;
        let fragments = image.frames_of_fragments(pixel_data, count, decoder)?;
        let first = fragments.first().map(|first| image.frame_of(first));
        let first = first.as_deref().unwrap_or_default();
        // Its first fragment may have been too short to tell.
        let decoder = decoder_of(first).ok_or_else(no_codec)?;
        let description = decoder
            .describe(first, geometry)
            .map_err(|error| TranscodeError::codec(0, error))?;
        image.photometric_of(description.colour)?;
        Ok(Frames::Encapsulated {
            decoder,
            fragments,
            description,
        })
    }
}

impl<'i> Pixels<'i> {
    /// To look at frames, without a target.
    pub(super) fn to_look_at(
        image: &'i Image<'i>,
        pixel_data: &'i TopLevel,
        source: &str,
    ) -> Result<Self, TranscodeError> {
        let geometry = image.geometry()?;
        let count = image.frames()?;
        Ok(Self {
            image,
            geometry,
            count,
            frames: locate(image, pixel_data, (source, "native"), &geometry, count)?,
            encoder: None,
            threads: 1,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all frames when they are decoded.
    pub(super) fn native_bytes(&self) -> u64 {
        native_bytes(&self.geometry, self.count).unwrap_or(u64::MAX)
    }

    /// The geometry of what the encoder gets.
    pub(super) fn native_geometry(&self) -> Geometry {
        match &self.frames {
            Frames::Encapsulated { description, .. } if description.colour != Colour::AsStored => Geometry {
                rgb: true,
                jpeg2000_colour: false,
                ..self.geometry
            },
            _ => self.geometry,
        }
    }

    pub(super) fn write(
        &self,
        writer: &mut Writer<'_>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), TranscodeError> {
        match self.encoder {
            None => self.write_native(writer, progress),
            Some(encoder) => self.write_encapsulated(encoder, writer, progress),
        }
    }

    fn write_native(
        &self,
        writer: &mut Writer<'_>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), TranscodeError> {
        let total = self.native_bytes();
        writer.out().expect(total)?;
        let length = u32::try_from(total + total % 2)
            .map_err(|_| TranscodeError::TooLarge("native Pixel Data can hold"))?;
        // PS3.5 A.2: OW where more than 8 bits are allocated.
        let vr = if self.geometry.bits_allocated > 8 {
            VR::OW
        } else {
            VR::OB
        };
        writer.header(PIXEL_DATA, vr, length)?;
        let out = writer.out();
        let frame_bits = self.geometry.frame_bits();
        if frame_bits.is_multiple_of(8) {
            self.write_cells(out, total, progress)?;
        } else {
            let mut bits = BitJoin::default();
            self.each_frame(
                |frame| self.native_frame(frame).map(Cow::into_owned),
                |native| {
                    progress();
                    out.write(&bits.push(&native, frame_bits))?;
                    Ok(())
                },
            )?;
            out.write(&bits.rest())?;
        }
        if total % 2 == 1 {
            out.write(&[0])?;
        }
        Ok(())
    }

    /// Frames of whole bytes, each decoded to its place where the result can be written in any order.
    fn write_cells(
        &self,
        out: &mut dyn Output,
        total: u64,
        progress: &mut dyn FnMut(),
    ) -> Result<(), TranscodeError> {
        let frame_bytes = self.geometry.frame_bytes();
        if let Some(memory) = out.memory(total) {
            let places: Vec<_> = memory.chunks_exact_mut(frame_bytes).map(Mutex::new).collect();
            let decode = |frame: usize| match places.get(frame) {
                Some(place) => {
                    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                    self.native_frame_to(frame, &mut place)
                }
                None => Ok(()),
            };
            return frames::in_place(self.count, self.threads, decode, progress);
        }
        if self.count > 1 {
            if let Some(room) = out.room(total)? {
                let decode = |frame: usize, memory: &mut [u8]| self.native_frame_to(frame, memory);
                return frames::by_turns(self.count, self.threads, frame_bytes, decode, &room, progress);
            }
        }
        self.each_frame(
            |frame| self.native_frame(frame).map(Cow::into_owned),
            |native| {
                out.write(&native)?;
                progress();
                Ok(())
            },
        )
    }

    /// PS3.5 A.4: an offset table, one fragment for each frame, a delimiter.
    fn write_encapsulated(
        &self,
        encoder: &dyn Encode,
        writer: &mut Writer<'_>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), TranscodeError> {
        let total = self.native_bytes();
        // Lossless: hardly less than half of it, and at times more.
        writer.out().expect(total)?;
        let with_offsets = self.count > 1 && total < LARGEST_WITH_OFFSETS;
        let table_bytes = if with_offsets { self.count * 4 } else { 0 };
        writer.header(PIXEL_DATA, VR::OB, UNDEFINED)?;
        writer.item(ITEM, u32::try_from(table_bytes).unwrap_or(0))?;
        let table_at = writer.out().position();
        writer.out().write(&vec![0; table_bytes])?;
        let origin = writer.out().position();
        let mut table = Vec::with_capacity(table_bytes);
        self.each_frame(
            |frame| self.encoded_frame(encoder, frame),
            |fragment| {
                progress();
                let offset = writer.out().position() - origin;
                table.extend_from_slice(&u32::try_from(offset).unwrap_or(u32::MAX).to_le_bytes());
                let fragment = even(&fragment, 0);
                let length = u32::try_from(fragment.len())
                    .map_err(|_| TranscodeError::TooLarge("a fragment can hold"))?;
                writer.item(ITEM, length)?;
                writer.out().write(&fragment)?;
                Ok(())
            },
        )?;
        if with_offsets {
            if writer.out().position() - origin > u64::from(u32::MAX) {
                return Err(TranscodeError::TooLarge("an offset table can hold"));
            }
            writer.out().patch(table_at, &table)?;
        }
        writer.item(SEQUENCE_DELIMITATION, 0)
    }

    fn each_frame(
        &self,
        work: impl Fn(usize) -> Result<Vec<u8>, TranscodeError> + Sync,
        take: impl FnMut(Vec<u8>) -> Result<(), TranscodeError>,
    ) -> Result<(), TranscodeError> {
        frames::in_order(self.count, self.threads, work, take)
    }

    /// A frame as native pixel data, colour by pixel.
    pub(super) fn native_frame(&self, frame: usize) -> Result<Cow<'_, [u8]>, TranscodeError> {
        match &self.frames {
            Frames::Encapsulated { decoder, .. } => {
                let encoded = self.encoded(frame)?;
                decoder
                    .decode(&encoded, &self.geometry, self.threads_of_a_frame())
                    .map(Cow::Owned)
                    .map_err(|error| TranscodeError::codec(frame, error))
            }
            Frames::Native {
                cells,
                swapped,
                by_plane,
            } => {
                let mut native = native_frame_of(cells, &self.geometry, frame);
                if *swapped {
                    cells::swap(native.to_mut(), 2);
                }
                Ok(if *by_plane {
                    Cow::Owned(by_pixel(&native, &self.geometry))
                } else {
                    native
                })
            }
        }
    }

    /// The same, to where it belongs.
    fn native_frame_to(&self, frame: usize, place: &mut [u8]) -> Result<(), TranscodeError> {
        if let Frames::Encapsulated { decoder, .. } = &self.frames {
            let encoded = self.encoded(frame)?;
            return decoder
                .decode_to(&encoded, &self.geometry, self.threads_of_a_frame(), place)
                .map_err(|error| TranscodeError::codec(frame, error));
        }
        place.copy_from_slice(&self.native_frame(frame)?);
        Ok(())
    }

    /// The bytes of a compressed frame, which is what the first one is.
    fn encoded(&self, frame: usize) -> Result<Cow<'_, [u8]>, TranscodeError> {
        let Frames::Encapsulated {
            decoder,
            fragments,
            description,
        } = &self.frames
        else {
            return Err(TranscodeError::Frames("no fragments"));
        };
        let encoded = self
            .image
            .frame_of(fragments.get(frame).copied().unwrap_or_default());
        let found = decoder
            .describe(&encoded, &self.geometry)
            .map_err(|error| TranscodeError::codec(frame, error))?;
        if found != *description {
            return Err(TranscodeError::Frames("frames of different kinds"));
        }
        Ok(encoded)
    }

    /// One frame has all threads, several have one each.
    fn threads_of_a_frame(&self) -> u32 {
        let threads = if self.count == 1 { self.threads } else { 1 };
        u32::try_from(threads).unwrap_or(1)
    }

    /// A frame encoded, after a look that it decodes to what it was.
    fn encoded_frame(&self, encoder: &dyn Encode, frame: usize) -> Result<Vec<u8>, TranscodeError> {
        let native = self.native_frame(frame)?;
        let geometry = self.native_geometry();
        let codec = |error| TranscodeError::codec(frame, error);
        let result = encoder.encode(&native, &geometry).map_err(codec)?;
        let back = encoder.decode_back(&result, &geometry).map_err(codec)?;
        if back != *native {
            return Err(TranscodeError::NotExact(frame + 1));
        }
        Ok(result)
    }
}
