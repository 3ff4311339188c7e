//! JPEG 2000 (ISO/IEC 15444-1, -2 and -15) through OpenJPEG, which also decodes high throughput block coding.

mod stream;

use std::collections::HashSet;
use std::ffi::{c_char, c_void, CStr};

use openjpeg_sys as opj;

use stream::{read, seek, skip, write, write_seek, write_skip, Source, Stream, Target};

use crate::samples::{to_cells, values_for};
use crate::{CodecError, Colour, Decode, Description, Encode, Geometry};

const CODEC: &str = "JPEG 2000";
/// The wavelets of more have no room in the 32 bits that OpenJPEG has for them: without an error there are other pixels.
const MOST_BITS: u32 = 28;
/// ISO/IEC 15444-1 I.5.1: a JP2 file; a DICOM frame should be a bare codestream, and some are not.
const JP2_SIGNATURE: &[u8] = b"\0\0\0\x0cjP  ";
/// SOC and SIZ (ISO/IEC 15444-1 A.4.1, A.5.1).
const CODESTREAM: &[u8] = b"\xFF\x4F\xFF\x51";
const SOC: u16 = 0xFF4F;
const COD: u16 = 0xFF52;
const CAP: u16 = 0xFF50;
const SOT: u16 = 0xFF90;
const SIZ: u16 = 0xFF51;
const MOST_RESOLUTIONS: u32 = 6;
/// Compressed bytes of a frame from which on several threads decode it faster, also where they share a core for the first
/// milliseconds: OpenJPEG starts them for each frame, and Linux does not always spread them at once. High throughput blocks are
/// decoded about eight times as fast.
const WORTH_THREADS: usize = 128 * 1024;
const WORTH_THREADS_HIGH_THROUGHPUT: usize = 8 * WORTH_THREADS;

pub(crate) struct Jpeg2000;

pub(crate) fn version() -> String {
    // SAFETY: the text is static.
    unsafe { CStr::from_ptr(opj::opj_version()) }
        .to_string_lossy()
        .into_owned()
}

impl Decode for Jpeg2000 {
    fn describe(&self, frame: &[u8], geometry: &Geometry) -> Result<Description, CodecError> {
        let style = read_style(codestream(frame)?)?;
        Ok(Description {
            colour: if geometry.jpeg2000_colour {
                Colour::Rgb
            } else {
                Colour::AsStored
            },
            lossy: (!style.reversible).then_some(if style.high_throughput {
                "ISO_15444_15"
            } else {
                "ISO_15444_1"
            }),
        })
    }

    fn begins(&self, fragment: &[u8]) -> bool {
        fragment.starts_with(CODESTREAM) || fragment.starts_with(JP2_SIGNATURE)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, threads: u32) -> Result<Vec<u8>, CodecError> {
        let image = decode_image(frame, geometry, useful_threads(frame, threads)?)?;
        let mut planes = Vec::with_capacity(usize::from(geometry.samples_per_pixel));
        for component in image.components() {
            if component.dx != 1 || component.dy != 1 {
                return Err(CodecError::Unsupported {
                    codec: CODEC,
                    what: "subsampled components",
                });
            }
            if (component.w, component.h) != (geometry.columns.into(), geometry.rows.into())
                || component.data.is_null()
            {
                return Err(CodecError::damaged(CODEC, "components of different sizes"));
            }
            geometry.expect_samples(component.prec, component.sgnd == 1)?;
            if component.prec > MOST_BITS {
                return Err(CodecError::Unsupported {
                    codec: CODEC,
                    what: "more than 28 bits a sample",
                });
            }
            // SAFETY: OpenJPEG gives w x h samples; the slice is used while `image` lives.
            let samples = unsafe { std::slice::from_raw_parts(component.data, geometry.pixels()) };
            // Pixel Representation wins over what the codestream says of its sign; the bits are the same.
            let bits = component.prec.min(32);
            let narrow = if (component.sgnd == 1) == geometry.signed || bits == 32 {
                Narrow::Not
            } else if geometry.signed {
                Narrow::Signed(32 - bits)
            } else {
                Narrow::Unsigned((1u32 << bits) - 1)
            };
            planes.push((samples, narrow));
        }
        let all_full = image.components().iter().all(|component| component.prec == 8);
        match planes.as_slice() {
            [(only, narrow)] => Ok(to_cells(only.iter().map(|&value| narrow.apply(value)), geometry)),
            // The low eight bits are the same whatever the sign is taken for.
            [(red, _), (green, _), (blue, _)] if geometry.bits_allocated == 8 && all_full => {
                Ok(interleaved_bytes(red, green, blue))
            }
            planes => {
                let samples = (0..geometry.samples()).map(|at| {
                    let (plane, narrow) = planes[at % planes.len()];
                    narrow.apply(plane[at / planes.len()])
                });
                Ok(to_cells(samples, geometry))
            }
        }
    }
}

fn useful_threads(frame: &[u8], threads: u32) -> Result<u32, CodecError> {
    let worth = if read_style(codestream(frame)?)?.high_throughput {
        WORTH_THREADS_HIGH_THROUGHPUT
    } else {
        WORTH_THREADS
    };
    Ok(if frame.len() < worth { 1 } else { threads })
}

/// Three planes of bytes: by far the most common colour image.
fn interleaved_bytes(red: &[i32], green: &[i32], blue: &[i32]) -> Vec<u8> {
    let mut out = vec![0; red.len() * 3];
    for (pixel, ((&r, &g), &b)) in out.chunks_exact_mut(3).zip(red.iter().zip(green).zip(blue)) {
        pixel.copy_from_slice(&[r as u8, g as u8, b as u8]);
    }
    out
}

/// From the codestream's idea of a sign to the data set's.
#[derive(Clone, Copy)]
enum Narrow {
    Not,
    Signed(u32),
    Unsigned(u32),
}

impl Narrow {
    fn apply(self, value: i32) -> i32 {
        match self {
            Self::Not => value,
            Self::Signed(shift) => value << shift >> shift,
            Self::Unsigned(mask) => (value as u32 & mask) as i32,
        }
    }
}

impl Encode for Jpeg2000 {
    fn encode(&self, native: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        let (values, bits) = values_for(CODEC, native, geometry)?;
        let image = Image::for_encoding(&values, geometry, bits)?;
        let mut out = Vec::with_capacity(native.len());
        encode_image(&image, geometry, bits, &mut out)?;
        Ok(out)
    }

    fn photometric_of_rgb(&self) -> Option<&'static str> {
        Some("YBR_RCT")
    }

    fn decode_back(&self, encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        self.decode(encoded, geometry, 1)
    }
}

struct Style {
    reversible: bool,
    high_throughput: bool,
}

/// The codestream without the JP2 header that should not be there. What that says of colours does not count: the data set
/// says it (PS3.5 8.2.4).
fn codestream(frame: &[u8]) -> Result<&[u8], CodecError> {
    if !frame.starts_with(JP2_SIGNATURE) {
        return Ok(frame);
    }
    codestream_box(frame)
        .or_else(|| {
            // Boxes that lie about their lengths.
            let begin = frame.windows(4).position(|four| four == CODESTREAM)?;
            frame.get(begin..)
        })
        .ok_or_else(|| CodecError::damaged(CODEC, "no codestream behind the JP2 header"))
}

/// The contents of the first box with a codestream (ISO/IEC 15444-1 I.4), and what is behind it.
fn codestream_box(frame: &[u8]) -> Option<&[u8]> {
    let mut rest = frame;
    loop {
        let (&length, behind) = rest.split_first_chunk()?;
        let (kind, contents) = behind.split_first_chunk::<4>()?;
        if kind == b"jp2c" && contents.starts_with(CODESTREAM) {
            return Some(contents);
        }
        // 0 is a box up to the end, 1 one whose length follows.
        let length = match u32::from_be_bytes(length) {
            1 => usize::try_from(u64::from_be_bytes(*contents.first_chunk()?)).ok()?,
            length => length as usize,
        };
        rest = rest.get(length..).filter(|_| length >= 8)?;
    }
}

/// Where the next marker of a main header is. ISO/IEC 15444-1 A.1.3: some markers have no segment.
fn next_marker(
    at: usize,
    marker: u16,
    length: impl Fn() -> Result<u16, CodecError>,
) -> Result<usize, CodecError> {
    if matches!(marker, 0xFF30..=0xFF3F) {
        return Ok(at + 2);
    }
    Ok(at + 2 + usize::from(length()?))
}

/// The coding style of the main header (ISO/IEC 15444-1 A.6.1).
fn read_style(frame: &[u8]) -> Result<Style, CodecError> {
    let cut = || CodecError::damaged(CODEC, "the header is cut short");
    let word = |at: usize| {
        frame
            .get(at..at + 2)
            .map(|two| u16::from_be_bytes([two[0], two[1]]))
            .ok_or_else(cut)
    };
    if word(0)? != SOC || word(2)? != SIZ {
        return Err(CodecError::damaged(CODEC, "not a JPEG 2000 codestream"));
    }
    let mut at = 2;
    let mut high_throughput = false;
    loop {
        let marker = word(at)?;
        match marker {
            CAP => high_throughput = true,
            // Lcod, Scod, SGcod (4), SPcod: levels, block width, block height, block style, transformation.
            COD => {
                let transformation = *frame.get(at + 13).ok_or_else(cut)?;
                return Ok(Style {
                    reversible: transformation == 1,
                    high_throughput,
                });
            }
            SOT => return Err(CodecError::damaged(CODEC, "no coding style in the header")),
            _ => {}
        }
        at = next_marker(at, marker, || word(at + 2))?;
    }
}

/// Whether every tile has a tile-part: OpenJPEG leaves the others black without a word (ISO/IEC 15444-1 A.4.2, A.5.1, B.3).
fn check_tiles(frame: &[u8]) -> Result<(), CodecError> {
    let missing = || CodecError::damaged(CODEC, "tiles are missing");
    let long = |at: usize| {
        frame
            .get(at..at + 4)
            .map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
            .ok_or_else(missing)
    };
    let word = |at: usize| {
        frame
            .get(at..at + 2)
            .map(|two| u16::from_be_bytes([two[0], two[1]]))
            .ok_or_else(missing)
    };
    // SOC, SIZ, Lsiz, Rsiz, then Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz, YTOsiz.
    let across = |size: usize, tile: usize, origin: usize| {
        let extent = long(size)?.checked_sub(long(origin)?).ok_or_else(missing)?;
        let tile = long(tile)?;
        if tile == 0 {
            return Err(missing());
        }
        Ok(u64::from(extent.div_ceil(tile)))
    };
    let tiles = across(8, 24, 32)? * across(12, 28, 36)?;
    let mut at = 2;
    while word(at)? != SOT {
        at = next_marker(at, word(at)?, || word(at + 2))?;
    }
    let mut found = HashSet::new();
    // Where the next tile-part should be and is not, the last one ended.
    while matches!(word(at), Ok(SOT)) {
        found.insert(word(at + 4)?);
        match long(at + 6)? as usize {
            // It reaches to the end (A.4.2).
            0 => break,
            length => at += length.max(12),
        }
    }
    if found.len() as u64 == tiles {
        Ok(())
    } else {
        Err(missing())
    }
}

unsafe extern "C" fn keep_message(text: *const c_char, user: *mut c_void) {
    // SAFETY: `user` is the text that the codec was made with, and outlives it; the message ends with a zero byte.
    let (kept, text) = unsafe { (&mut *user.cast::<String>(), CStr::from_ptr(text)) };
    if kept.is_empty() {
        text.to_string_lossy().trim_end().clone_into(kept);
    }
}

/// A codec of OpenJPEG with the first message that it had.
struct Codec {
    codec: *mut opj::opj_codec_t,
    /// Written by OpenJPEG's error handler, so only ever reached through this pointer.
    message: *mut String,
}

impl Codec {
    fn new(codec: *mut opj::opj_codec_t) -> Result<Self, CodecError> {
        if codec.is_null() {
            return Err(CodecError::damaged(CODEC, "no memory"));
        }
        let message = Box::into_raw(Box::<String>::default());
        // SAFETY: the codec is valid, and the message lives as long as the codec.
        unsafe { opj::opj_set_error_handler(codec, Some(keep_message), message.cast::<c_void>()) };
        Ok(Self { codec, message })
    }

    fn check(&self, ok: opj::OPJ_BOOL) -> Result<(), CodecError> {
        if ok == 1 {
            return Ok(());
        }
        // SAFETY: OpenJPEG writes it only during calls, and none is on its way.
        let message = unsafe { &*self.message };
        let reason = if message.is_empty() {
            "the stream is damaged"
        } else {
            message.as_str()
        };
        Err(CodecError::damaged(CODEC, reason))
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        // SAFETY: nobody else has them; the message goes after the codec that writes it.
        unsafe {
            opj::opj_destroy_codec(self.codec);
            drop(Box::from_raw(self.message));
        }
    }
}

struct Image(*mut opj::opj_image_t);

impl Image {
    fn components(&self) -> &[opj::opj_image_comp_t] {
        // SAFETY: OpenJPEG keeps `numcomps` components with the image.
        unsafe {
            let image = &*self.0;
            std::slice::from_raw_parts(image.comps, image.numcomps as usize)
        }
    }

    fn for_encoding(values: &[i32], geometry: &Geometry, bits: u32) -> Result<Self, CodecError> {
        let samples = usize::from(geometry.samples_per_pixel);
        let mut parameters: Vec<opj::opj_image_cmptparm_t> = vec![
            opj::opj_image_cmptparm_t {
                dx: 1,
                dy: 1,
                w: geometry.columns.into(),
                h: geometry.rows.into(),
                x0: 0,
                y0: 0,
                prec: bits,
                bpp: bits,
                sgnd: geometry.signed.into(),
            };
            samples
        ];
        let space = if samples == 3 {
            opj::COLOR_SPACE::OPJ_CLRSPC_SRGB
        } else {
            opj::COLOR_SPACE::OPJ_CLRSPC_GRAY
        };
        // SAFETY: there are as many parameters as components.
        let image = unsafe {
            opj::opj_image_create(
                u32::from(geometry.samples_per_pixel),
                parameters.as_mut_ptr(),
                space,
            )
        };
        if image.is_null() {
            return Err(CodecError::damaged(CODEC, "no memory"));
        }
        let image = Self(image);
        // SAFETY: the image is ours.
        unsafe {
            (*image.0).x1 = geometry.columns.into();
            (*image.0).y1 = geometry.rows.into();
        }
        for (number, component) in image.components().iter().enumerate() {
            // SAFETY: OpenJPEG made room for w x h samples in each component.
            let plane = unsafe { std::slice::from_raw_parts_mut(component.data, geometry.pixels()) };
            for (sample, value) in plane.iter_mut().zip(values[number..].iter().step_by(samples)) {
                *sample = *value;
            }
        }
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { opj::opj_image_destroy(self.0) }
    }
}

fn decode_image(frame: &[u8], geometry: &Geometry, threads: u32) -> Result<Image, CodecError> {
    let frame = codestream(frame)?;
    check_tiles(frame)?;
    let mut source = Source { bytes: frame, at: 0 };
    // SAFETY: every pointer given is valid for the calls: codec, stream and image are owned by guards that are dropped
    // after the last call, and `source` outlives the stream.
    unsafe {
        let codec = Codec::new(opj::opj_create_decompress(opj::CODEC_FORMAT::OPJ_CODEC_J2K))?;
        let mut parameters = std::mem::zeroed::<opj::opj_dparameters_t>();
        opj::opj_set_default_decoder_parameters(&raw mut parameters);
        codec.check(opj::opj_setup_decoder(codec.codec, &raw mut parameters))?;
        // Strict by default, and not to be asked for: that would turn off the correction of a wrong number of tile-parts,
        // and the tile-parts beyond it would be left out without a word.
        if threads > 1 {
            codec.check(opj::opj_codec_set_threads(codec.codec, threads as i32))?;
        }
        let stream = Stream(opj::opj_stream_create(frame.len().clamp(1, 1 << 20), 1));
        opj::opj_stream_set_user_data(stream.0, (&raw mut source).cast::<c_void>(), None);
        opj::opj_stream_set_user_data_length(stream.0, frame.len() as u64);
        opj::opj_stream_set_read_function(stream.0, Some(read));
        opj::opj_stream_set_skip_function(stream.0, Some(skip));
        opj::opj_stream_set_seek_function(stream.0, Some(seek));
        let mut image = std::ptr::null_mut();
        codec.check(opj::opj_read_header(stream.0, codec.codec, &raw mut image))?;
        let image = Image(image);
        let header = &*image.0;
        geometry.expect_size(
            u64::from(header.x1.saturating_sub(header.x0)),
            u64::from(header.y1.saturating_sub(header.y0)),
            header.numcomps.into(),
        )?;
        codec.check(opj::opj_decode(codec.codec, stream.0, image.0))?;
        codec.check(opj::opj_end_decompress(codec.codec, stream.0))?;
        Ok(image)
    }
}

fn encode_image(image: &Image, geometry: &Geometry, bits: u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let smallest = u32::from(geometry.rows.min(geometry.columns));
    let mut target = Target { bytes: out, at: 0 };
    // SAFETY: as in `decode_image`.
    unsafe {
        let codec = Codec::new(opj::opj_create_compress(opj::CODEC_FORMAT::OPJ_CODEC_J2K))?;
        let mut parameters = std::mem::zeroed::<opj::opj_cparameters_t>();
        opj::opj_set_default_encoder_parameters(&raw mut parameters);
        parameters.tcp_numlayers = 1;
        parameters.tcp_rates[0] = 0.0;
        parameters.cp_disto_alloc = 1;
        parameters.irreversible = 0;
        // The wavelets of a noisy bit can be larger than OpenJPEG's two guard bits have room for.
        let most = if bits == 1 { 1 } else { MOST_RESOLUTIONS };
        parameters.numresolution = (smallest.ilog2() + 1).min(most) as i32;
        parameters.tcp_mct = c_char::from(geometry.rgb && geometry.samples_per_pixel == 3);
        codec.check(opj::opj_setup_encoder(codec.codec, &raw mut parameters, image.0))?;
        let stream = Stream(opj::opj_stream_create(1 << 18, 0));
        opj::opj_stream_set_user_data(stream.0, (&raw mut target).cast::<c_void>(), None);
        opj::opj_stream_set_write_function(stream.0, Some(write));
        opj::opj_stream_set_skip_function(stream.0, Some(write_skip));
        opj::opj_stream_set_seek_function(stream.0, Some(write_seek));
        codec.check(opj::opj_start_compress(codec.codec, image.0, stream.0))?;
        codec.check(opj::opj_encode(codec.codec, stream.0))?;
        codec.check(opj::opj_end_compress(codec.codec, stream.0))?;
    }
    Ok(())
}
