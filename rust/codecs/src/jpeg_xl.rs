//! JPEG XL (ISO/IEC 18181-1) through jxl-rs, the decoder of the JPEG XL project.

use jxl::api::{
    Endianness, Event, JxlBasicInfo, JxlBitDepth, JxlColorProfile, JxlColorType, JxlDataFormat, JxlDecoder,
    JxlDecoderOptions, JxlOutputBuffer, JxlPixelFormat, ProfileLevel,
};

use crate::samples::to_cells;
use crate::{CodecError, Colour, Decode, Description, Geometry};

const CODEC: &str = "JPEG XL";
/// How a codestream begins that is not in a container, ISO/IEC 18181-1 D.1.
const BARE: &[u8] = b"\xFF\x0A";
/// ISO/IEC 18181-2 9.1.
const CONTAINER: &[u8] = b"\0\0\0\x0cJXL ";
/// As much of a frame header as is read here, and more.
const HEADER_BYTES: usize = 16;

pub(crate) struct JpegXl;

impl Decode for JpegXl {
    fn describe(&self, frame: &[u8], geometry: &Geometry) -> Result<Description, CodecError> {
        let mut options = options();
        options.scan_frames_only = true;
        let mut decoder = Decoder::begin(frame, options)?;
        while decoder.next(None)? != Event::Complete {}
        let [only] = decoder.inner.scanned_frames() else {
            return Err(unsupported("several frames in one"));
        };
        let at = usize::try_from(only.file_offset).unwrap_or(usize::MAX);
        let form = if decoder.info.uses_original_profile {
            form(&codestream_from(frame, at)).ok_or_else(cut_short)?
        } else {
            Form::Xyb
        };
        Ok(Description {
            colour: match form {
                Form::Xyb if geometry.samples_per_pixel == 3 => Colour::RgbOfXyb,
                Form::Ycbcr if geometry.samples_per_pixel == 3 => Colour::Rgb,
                _ => Colour::AsStored,
            },
            lossy: (form != Form::Samples).then_some("ISO_18181_1"),
        })
    }

    fn begins(&self, fragment: &[u8]) -> bool {
        fragment.starts_with(BARE) || fragment.starts_with(CONTAINER)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, _threads: u32) -> Result<Vec<u8>, CodecError> {
        let decoder = Decoder::begin(frame, options())?;
        if !decoder.info.extra_channels.is_empty() {
            return Err(unsupported("channels besides those of colour"));
        }
        let channels = decoder
            .inner
            .embedded_color_profile()
            .map_or(0, JxlColorProfile::channels);
        let (width, height) = decoder.info.size;
        geometry.expect_size(width as u64, height as u64, channels as u64)?;
        let JxlBitDepth::Int {
            bits_per_sample: bits,
        } = decoder.info.bit_depth
        else {
            return Err(unsupported("samples that are no whole numbers"));
        };
        geometry.expect_samples(bits, false)?;
        if bits > 16 {
            return Err(unsupported("more than 16 bits a sample"));
        }
        let samples = decoder.samples(geometry, bits)?;
        let extend = geometry.signed && bits < u32::from(geometry.bits_allocated);
        let shift = if extend { 32 - bits } else { 0 };
        let samples = samples.chunks_exact(2).map(|sample| {
            let level = i32::from(u16::from_le_bytes([sample[0], sample[1]]));
            level << shift >> shift
        });
        Ok(to_cells(samples, geometry))
    }
}

/// A frame that is decoded as far as its basic information, at least.
struct Decoder<'f> {
    inner: JxlDecoder,
    input: &'f [u8],
    info: JxlBasicInfo,
}

impl<'f> Decoder<'f> {
    fn begin(frame: &'f [u8], options: JxlDecoderOptions) -> Result<Self, CodecError> {
        let mut inner = JxlDecoder::new(options);
        let mut input = frame;
        while inner.basic_info().is_none() {
            step(&mut inner, &mut input, None)?;
        }
        let info = inner.basic_info().cloned().ok_or_else(cut_short)?;
        Ok(Self { inner, input, info })
    }

    fn next(&mut self, buffers: Option<&mut [JxlOutputBuffer<'_>]>) -> Result<Event, CodecError> {
        step(&mut self.inner, &mut self.input, buffers)
    }

    /// The samples of the only frame, colour by pixel, as little endian words.
    fn samples(mut self, geometry: &Geometry, bits: u32) -> Result<Vec<u8>, CodecError> {
        let format = JxlPixelFormat {
            color_type: if geometry.samples_per_pixel == 3 {
                JxlColorType::Rgb
            } else {
                JxlColorType::Grayscale
            },
            color_data_format: Some(JxlDataFormat::U16 {
                endianness: Endianness::LittleEndian,
                bit_depth: bits as u8,
            }),
            extra_channel_format: Vec::new(),
        };
        self.inner
            .set_pixel_format(format)
            .map_err(|error| damaged(&error))?;
        let bytes = 2 * geometry.samples();
        let rows = usize::from(geometry.rows);
        let mut memory = vec![0; bytes + 1];
        // The rows have to begin at whole words.
        let begin = memory.as_ptr().align_offset(2).min(1);
        let place = &mut memory[begin..begin + bytes];
        let mut frames = 0;
        loop {
            let buffer = JxlOutputBuffer::new(place, rows, bytes / rows);
            match self.next(Some(&mut [buffer]))? {
                Event::FrameComplete { .. } => frames += 1,
                Event::Complete => break,
                _ => {}
            }
        }
        if frames != 1 {
            return Err(unsupported("several frames in one"));
        }
        memory.drain(..begin);
        memory.truncate(bytes);
        Ok(memory)
    }
}

fn options() -> JxlDecoderOptions {
    let mut options = JxlDecoderOptions::default();
    options.max_profile_level = ProfileLevel::Main10;
    options
}

fn step(
    decoder: &mut JxlDecoder,
    input: &mut &[u8],
    buffers: Option<&mut [JxlOutputBuffer<'_>]>,
) -> Result<Event, CodecError> {
    match decoder
        .process(input, buffers, None)
        .map_err(|error| damaged(&error))?
    {
        Event::NeedMoreInput { .. } => Err(cut_short()),
        event => Ok(event),
    }
}

/// The first bytes of the codestream at or behind a place in a file, which may have it in several boxes
/// (ISO/IEC 18181-2 9.2 and 9.9: the size with its header, the type, in a `jxlp` the number of the part).
fn codestream_from(frame: &[u8], at: usize) -> Vec<u8> {
    let upto = |bytes: &[u8]| bytes[..bytes.len().min(HEADER_BYTES)].to_vec();
    if frame.starts_with(BARE) {
        return upto(frame.get(at..).unwrap_or_default());
    }
    let mut found = Vec::new();
    let mut begin = 0;
    while found.len() < HEADER_BYTES {
        let Some((size, rest)) = frame.get(begin..).and_then(|rest| rest.split_first_chunk::<4>()) else {
            break;
        };
        let (header, size) = match (u32::from_be_bytes(*size), rest.get(4..12)) {
            (0, _) => (8, frame.len() - begin),
            (1, Some(size)) => (
                16,
                size.iter().fold(0, |size, &byte| size << 8 | usize::from(byte)),
            ),
            (size, _) => (8, size as usize),
        };
        let end = begin.saturating_add(size).min(frame.len());
        let content = match rest.get(..4) {
            Some(b"jxlc") => begin + header,
            Some(b"jxlp") => begin + header + 4,
            _ => end,
        };
        found.extend_from_slice(frame.get(content.max(at)..end).unwrap_or_default());
        if size < 8 {
            break;
        }
        begin = end;
    }
    upto(&found)
}

/// What a frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The samples themselves.
    Samples,
    /// Their transform coefficients.
    Coefficients,
    /// YCbCr, as JPEG has it.
    Ycbcr,
    /// The colours of the codec.
    Xyb,
}

/// The form of a frame that is not in XYB, by its header: ISO/IEC 18181-1 F.2. None where it is too short.
fn form(header: &[u8]) -> Option<Form> {
    let mut bits = header
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| u32::from(byte >> bit & 1)));
    let mut read = |count: u32| (0..count).try_fold(0, |value, bit| Some(value | bits.next()? << bit));
    let all_default = read(1)? == 1;
    if all_default {
        return Some(Form::Coefficients);
    }
    let _frame_type = read(2)?;
    let is_modular = read(1)? == 1;
    // The flags have no say: a U64, B.2.3.
    let selector = read(2)?;
    read(4 * selector)?;
    let mut flag_bits = 12;
    while selector == 3 && flag_bits < 64 && read(1)? == 1 {
        let more = (64 - flag_bits).min(8);
        read(more)?;
        flag_bits += more;
    }
    let in_ycbcr = read(1)? == 1;
    Some(match (is_modular, in_ycbcr) {
        (_, true) => Form::Ycbcr,
        (false, false) => Form::Coefficients,
        (true, false) => Form::Samples,
    })
}

fn damaged(error: &jxl::error::Error) -> CodecError {
    CodecError::damaged(CODEC, error.to_string())
}

fn cut_short() -> CodecError {
    CodecError::damaged(CODEC, "the stream is cut short")
}

fn unsupported(what: &'static str) -> CodecError {
    CodecError::Unsupported { codec: CODEC, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of which these are the lowest bits first.
    fn bytes(bits: &str) -> Vec<u8> {
        let bits: Vec<_> = bits
            .bytes()
            .filter(u8::is_ascii_digit)
            .map(|bit| bit - b'0')
            .collect();
        bits.chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |all, (at, bit)| all | bit << at))
            .collect()
    }

    #[test]
    fn a_frame_header_says_what_a_frame_has() {
        let flags = [
            "00",
            "10 0001",
            "01 1111 0000",
            "11 0000 0000 1111 0",
            "11 0000 0000 1111 1 0101 0101 0",
            "11 0000 0000 1111 1 1111 1111 1 1111 1111 1 1111 1111 1 1111 1111 1 1111 1111 1 1111 1111 1 1111",
        ];
        assert_eq!(form(&bytes("1")), Some(Form::Coefficients));
        for flags in flags {
            for (encoding, in_ycbcr, expected) in [
                ("0", "0", Form::Coefficients),
                ("0", "1", Form::Ycbcr),
                ("1", "1", Form::Ycbcr),
                ("1", "0", Form::Samples),
            ] {
                let header = bytes(&format!("0 00 {encoding} {flags} {in_ycbcr} 11111111"));
                assert!(header.len() < HEADER_BYTES);
                assert_eq!(form(&header), Some(expected), "{encoding} {flags} {in_ycbcr}");
            }
        }
        assert_eq!(form(&bytes("0 00 1 11 0000")), None);
    }

    #[test]
    fn the_codestream_is_found_in_the_boxes_of_a_container() {
        let bare = b"\xFF\x0Aabcdefghijklmnopqrstuvwxyz";
        assert_eq!(codestream_from(bare, 4), b"cdefghijklmnopqr");
        assert_eq!(codestream_from(bare, 26), b"yz");
        assert_eq!(codestream_from(bare, 100), b"");
        let mut container = b"\0\0\0\x0cJXL \r\n\x87\n".to_vec();
        container.extend(b"\0\0\0\x10jxlp\0\0\0\0\xFF\x0Aab");
        container.extend(b"\0\0\0\x01xml \0\0\0\0\0\0\0\x13<a/");
        container.extend(b"\0\0\0\x01jxlp\0\0\0\0\0\0\0\x17\0\0\0\x01cde");
        container.extend(b"\0\0\0\0jxlp\x80\0\0\x02fgh");
        assert_eq!(codestream_from(&container, 26), b"abcdefgh");
        assert_eq!(codestream_from(&container, 28), b"cdefgh");
        // Sizes that are none, and boxes that end in the middle of their header.
        for size in 0..=255 {
            let mut broken = container.clone();
            broken[31] = size;
            codestream_from(&broken, 26);
            broken[31] = 1;
            broken[36..44].fill(size);
            codestream_from(&broken, 26);
        }
        for end in 0..container.len() {
            codestream_from(&container[..end], 26);
        }
    }
}
