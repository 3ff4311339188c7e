//! JPEG-LS (ISO/IEC 14495-1) through `CharLS`.

use std::borrow::Cow;
use std::ffi::{c_char, c_void, CStr};

use charls_sys as charls;

use crate::markers::{scans, segments, trimmed, Padding, Part, Segment, APP8, END_OF_IMAGE, SOF55, SOI, SOS};
use crate::samples::{bits_needed, from_cells, interleave, to_cells, words};
use crate::{decode_whole, CodecError, Decode, Description, Encode, Geometry};

const CODEC: &str = "JPEG-LS";
const BEGIN_OF_IMAGE: &[u8] = b"\xFF\xD8\xFF";
/// ISO/IEC 14495-1 A.1: behind FF, a bit of 0 is put among the samples.
const LEAST_MARKER: u8 = 0x80;

pub(crate) struct JpegLs;

extern "C" {
    /// charls/version.h; charls-sys does not declare it.
    fn charls_get_version_string() -> *const c_char;
}

pub(crate) fn version() -> String {
    // SAFETY: the text is static.
    unsafe { CStr::from_ptr(charls_get_version_string()) }
        .to_string_lossy()
        .into_owned()
}

/// What the first scan says of itself (ISO/IEC 14495-1 C.1.1.3 and C.2.3).
struct Scan {
    near: u8,
    by_plane: bool,
}

impl Decode for JpegLs {
    fn describe(&self, frame: &[u8], _geometry: &Geometry) -> Result<Description, CodecError> {
        let scan = first_scan(frame)?;
        Ok(Description {
            lossy: (scan.near > 0).then_some("ISO_14495_1"),
            ..Description::UNTOUCHED
        })
    }

    fn begins(&self, fragment: &[u8]) -> bool {
        fragment.starts_with(BEGIN_OF_IMAGE)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, threads: u32) -> Result<Vec<u8>, CodecError> {
        decode_whole(self, frame, geometry, threads)
    }

    fn decode_to(
        &self,
        frame: &[u8],
        geometry: &Geometry,
        _threads: u32,
        native: &mut [u8],
    ) -> Result<(), CodecError> {
        let frame = &terminated(frame);
        decode(frame, geometry, native).or_else(|error| {
            for padding in PADDING {
                if decode(&tidied(frame, padding)?, geometry, native).is_ok() {
                    return Ok(());
                }
            }
            Err(error)
        })
    }
}

/// The last byte of a scan may be zero: of zeros behind it, it cannot be told which are padding, so each is tried.
const PADDING: [Padding; 3] = [Padding::All, Padding::Zeros(0), Padding::Zeros(1)];

/// The same frame for `CharLS`, which wants the next marker at once behind a scan: without zeros there, and without metadata.
fn tidied(frame: &[u8], padding: Padding) -> Result<Vec<u8>, CodecError> {
    let mut stream = vec![0xFF, SOI];
    let mut components = 0;
    for segment in segments(CODEC, frame) {
        let segment = segment?;
        let Segment {
            marker,
            body,
            whole,
            begin,
        } = segment;
        if marker == SOF55 {
            components = body.get(5).copied().unwrap_or(0);
        }
        if marker == SOS {
            for part in scans(frame, begin, LEAST_MARKER).parts {
                match part {
                    Part::Segment(segment) if segment.is_metadata() => {}
                    Part::Segment(segment) => stream.extend_from_slice(segment.whole),
                    Part::Entropy(scan) => stream.extend_from_slice(trimmed(scan, padding)),
                }
            }
        } else if !segment.is_metadata() || (marker == APP8 && components > 1 && body.starts_with(b"mrfx")) {
            // HP's colour transform is in APP8, and none of one component.
            stream.extend_from_slice(whole);
        }
    }
    stream.extend_from_slice(&END_OF_IMAGE);
    Ok(stream)
}

/// With an end of image: without one `CharLS` counts to 2^31 behind the end of a stream that is cut short.
fn terminated(frame: &[u8]) -> Cow<'_, [u8]> {
    let end = frame.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    if frame[..end].ends_with(&END_OF_IMAGE) {
        Cow::Borrowed(frame)
    } else {
        Cow::Owned([frame, &END_OF_IMAGE].concat())
    }
}

fn decode(frame: &[u8], geometry: &Geometry, native: &mut [u8]) -> Result<(), CodecError> {
    let scan = first_scan(frame)?;
    let decoder = Decoder::new()?;
    let mut info = charls::charls_frame_info {
        width: 0,
        height: 0,
        bits_per_sample: 0,
        component_count: 0,
    };
    let mut size = 0;
    // SAFETY: the decoder is valid until it is dropped, `frame` outlives it, and the results are written to locals.
    unsafe {
        check(charls::charls_jpegls_decoder_set_source_buffer(
            decoder.0,
            frame.as_ptr().cast::<c_void>(),
            frame.len(),
        ))?;
        check(charls::charls_jpegls_decoder_read_header(decoder.0))?;
        check(charls::charls_jpegls_decoder_get_frame_info(
            decoder.0,
            &raw mut info,
        ))?;
    }
    geometry.expect_size(
        info.width.into(),
        info.height.into(),
        u64::try_from(info.component_count).unwrap_or(0),
    )?;
    let bits = u32::try_from(info.bits_per_sample).unwrap_or(0);
    geometry.expect_samples(bits, false)?;
    // SAFETY: as above.
    unsafe {
        check(charls::charls_jpegls_decoder_get_destination_size(
            decoder.0,
            0,
            &raw mut size,
        ))?;
    }
    let wide = bits > 8;
    if size != geometry.samples() * (1 + usize::from(wide)) {
        return Err(CodecError::damaged(CODEC, "the frame has another size"));
    }
    let by_plane = scan.by_plane && info.component_count > 1;
    let extend = geometry.signed && bits < u32::from(geometry.bits_allocated);
    let same_cells = geometry.bits_allocated == if wide { 16 } else { 8 };
    if same_cells && !by_plane {
        decoder.decode_to(native)?;
        if extend && wide {
            extend_words(native, bits);
        } else if extend {
            extend_bytes(native, bits);
        }
        return Ok(());
    }
    let mut out = vec![0u8; size];
    decoder.decode_to(&mut out)?;
    if by_plane {
        let cells = Geometry {
            bits_allocated: if wide { 16 } else { 8 },
            ..*geometry
        };
        out = interleave(&out, &cells);
    }
    let shift = if extend { 32 - bits } else { 0 };
    let extended = move |value: i32| value << shift >> shift;
    let cells = if wide {
        to_cells(words(&out).map(|value| extended(value.into())), geometry)
    } else {
        to_cells(out.iter().map(|&value| extended(value.into())), geometry)
    };
    native.copy_from_slice(&cells);
    Ok(())
}

/// Sign extension of samples of `bits` bits, in place.
fn extend_words(native: &mut [u8], bits: u32) {
    let shift = 16 - bits;
    for cell in native.chunks_exact_mut(2) {
        let value = i16::from_le_bytes([cell[0], cell[1]]);
        cell.copy_from_slice(&(value << shift >> shift).to_le_bytes());
    }
}

fn extend_bytes(native: &mut [u8], bits: u32) {
    let shift = 8 - bits;
    for cell in native {
        *cell = ((*cell as i8) << shift >> shift) as u8;
    }
}

impl Encode for JpegLs {
    fn encode(&self, native: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        if !matches!(geometry.bits_allocated, 8 | 16) {
            return Err(CodecError::Unsupported {
                codec: CODEC,
                what: "other than 8 or 16 bits allocated",
            });
        }
        // The samples are bit patterns here: a negative one, or one that could be taken for it, needs all bits of its cell.
        let unsigned = Geometry {
            signed: false,
            ..*geometry
        };
        let values = from_cells(native, &unsigned)?;
        let sign = 1i32 << (geometry.bits_stored - 1);
        let bits = if geometry.signed && values.iter().any(|&value| value >= sign) {
            u32::from(geometry.bits_allocated)
        } else {
            bits_needed(&values, &unsigned).max(2)
        };
        let narrowed: Vec<u8>;
        let source = if geometry.bits_allocated == 16 && bits <= 8 {
            // CharLS takes samples of up to 8 bits as bytes.
            narrowed = values.iter().map(|&value| value as u8).collect();
            &narrowed
        } else {
            native
        };
        let info = charls::charls_frame_info {
            width: geometry.columns.into(),
            height: geometry.rows.into(),
            bits_per_sample: bits as i32,
            component_count: geometry.samples_per_pixel.into(),
        };
        let encoder = Encoder::new()?;
        let mut size = 0;
        // SAFETY: the encoder is valid until it is dropped; `info` and `size` are locals.
        unsafe {
            check(charls::charls_jpegls_encoder_set_frame_info(
                encoder.0,
                &raw const info,
            ))?;
            check(charls::charls_jpegls_encoder_get_estimated_destination_size(
                encoder.0,
                &raw mut size,
            ))?;
        }
        // Noise can grow.
        let mut out = vec![0u8; size + native.len() / 2 + 1024];
        // SAFETY: `out` outlives the encoder's use of it and has the size given; so has `source`.
        unsafe {
            check(charls::charls_jpegls_encoder_set_destination_buffer(
                encoder.0,
                out.as_mut_ptr().cast::<c_void>(),
                out.len(),
            ))?;
            if geometry.samples_per_pixel > 1 {
                check(charls::charls_jpegls_encoder_set_interleave_mode(
                    encoder.0,
                    charls::charls_interleave_mode_sample,
                ))?;
            }
            check(charls::charls_jpegls_encoder_encode_from_buffer(
                encoder.0,
                source.as_ptr().cast::<c_void>(),
                source.len(),
                0,
            ))?;
            check(charls::charls_jpegls_encoder_get_bytes_written(
                encoder.0,
                &raw mut size,
            ))?;
        }
        out.truncate(size);
        Ok(out)
    }

    fn decode_back(&self, encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        self.decode(encoded, geometry, 1)
    }
}

/// Marker segments up to the first scan.
fn first_scan(frame: &[u8]) -> Result<Scan, CodecError> {
    let cut = || CodecError::damaged(CODEC, "the header is cut short");
    let mut is_jpeg_ls = false;
    for segment in segments(CODEC, frame) {
        let Segment { marker, body, .. } = segment?;
        is_jpeg_ls |= marker == SOF55;
        if marker == SOS {
            if !is_jpeg_ls {
                return Err(CodecError::damaged(CODEC, "not a JPEG-LS stream"));
            }
            // Ns, Ns times (component, mapping table), NEAR, ILV, point transform.
            let components = usize::from(*body.first().ok_or_else(cut)?);
            let &[near, interleave] = body
                .get(1 + 2 * components..3 + 2 * components)
                .and_then(|two| two.first_chunk())
                .ok_or_else(cut)?;
            return Ok(Scan {
                near,
                by_plane: interleave == 0,
            });
        }
    }
    Err(cut())
}

fn check(code: charls::charls_jpegls_errc) -> Result<(), CodecError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the text is static.
    let text = unsafe { CStr::from_ptr(charls::charls_get_error_message(code)) };
    Err(CodecError::damaged(CODEC, text.to_string_lossy()))
}

struct Decoder(*mut charls::charls_jpegls_decoder);

impl Decoder {
    fn new() -> Result<Self, CodecError> {
        // SAFETY: no arguments; a null pointer means no memory.
        let decoder = unsafe { charls::charls_jpegls_decoder_create() };
        if decoder.is_null() {
            return Err(CodecError::damaged(CODEC, "no memory"));
        }
        Ok(Self(decoder))
    }

    /// Decodes what was set as the source.
    fn decode_to(&self, out: &mut [u8]) -> Result<(), CodecError> {
        // SAFETY: the library writes no more than the size it is given.
        unsafe {
            check(charls::charls_jpegls_decoder_decode_to_buffer(
                self.0,
                out.as_mut_ptr().cast::<c_void>(),
                out.len(),
                0,
            ))
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { charls::charls_jpegls_decoder_destroy(self.0) }
    }
}

struct Encoder(*mut charls::charls_jpegls_encoder);

impl Encoder {
    fn new() -> Result<Self, CodecError> {
        // SAFETY: no arguments; a null pointer means no memory.
        let encoder = unsafe { charls::charls_jpegls_encoder_create() };
        if encoder.is_null() {
            return Err(CodecError::damaged(CODEC, "no memory"));
        }
        Ok(Self(encoder))
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { charls::charls_jpegls_encoder_destroy(self.0) }
    }
}
