//! JPEG XL (ISO/IEC 18181-1) through jxl-oxide.

use jxl_oxide::image::BitDepth;
use jxl_oxide::{EnumColourEncoding, JxlImage, RenderingIntent};

use crate::samples::to_cells;
use crate::{CodecError, Colour, Decode, Description, Geometry};

const CODEC: &str = "JPEG XL";

pub(crate) struct JpegXl;

impl Decode for JpegXl {
    fn describe(&self, frame: &[u8], geometry: &Geometry) -> Result<Description, CodecError> {
        let image = open(frame)?;
        let header = image
            .frame_header(0)
            .ok_or_else(|| CodecError::damaged(CODEC, "no frame"))?;
        let transformed = header.encoding == jxl_oxide::frame::Encoding::VarDct
            || header.do_ycbcr
            || image.image_header().metadata.xyb_encoded;
        Ok(Description {
            colour: if geometry.samples_per_pixel == 3 && transformed {
                Colour::Rgb
            } else {
                Colour::AsStored
            },
            lossy: transformed.then_some("ISO_18181_1"),
        })
    }

    /// ISO/IEC 18181-1 D.1 and 18181-2 9.1.
    fn begins(&self, fragment: &[u8]) -> bool {
        fragment.starts_with(b"\xFF\x0A") || fragment.starts_with(b"\0\0\0\x0cJXL ")
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, _threads: u32) -> Result<Vec<u8>, CodecError> {
        let mut image = open(frame)?;
        let unsupported = |what| Err(CodecError::Unsupported { codec: CODEC, what });
        let metadata = &image.image_header().metadata;
        if image.num_loaded_keyframes() != 1 {
            return unsupported("several frames in one");
        }
        if !metadata.ec_info.is_empty() {
            return unsupported("channels besides those of colour");
        }
        let channels = image.pixel_format().channels();
        geometry.expect_size(image.width().into(), image.height().into(), channels as u64)?;
        let BitDepth::IntegerSample {
            bits_per_sample: bits,
        } = metadata.bit_depth
        else {
            return unsupported("samples that are no whole numbers");
        };
        geometry.expect_samples(bits, false)?;
        if bits > 16 {
            return unsupported("more than 16 bits a sample");
        }
        if metadata.xyb_encoded {
            image.request_color_encoding(if channels == 1 {
                EnumColourEncoding::gray_srgb(RenderingIntent::Relative)
            } else {
                EnumColourEncoding::srgb(RenderingIntent::Relative)
            });
        }
        let render = image
            .render_frame(0)
            .map_err(|error| CodecError::damaged(CODEC, error.to_string()))?;
        let mut stream = render.stream_no_alpha();
        let mut values = vec![0f32; geometry.samples()];
        if stream.write_to_buffer(&mut values) != values.len() {
            return Err(CodecError::damaged(CODEC, "fewer samples than pixels"));
        }
        let largest = f32::from(u16::MAX >> (16 - bits));
        let extend = geometry.signed && bits < u32::from(geometry.bits_allocated);
        let shift = if extend { 32 - bits } else { 0 };
        // Whole numbers of up to 16 bits are exact in a float.
        let samples = values.into_iter().map(|value| {
            let level = (value * largest).round().clamp(0.0, largest) as i32;
            level << shift >> shift
        });
        Ok(to_cells(samples, geometry))
    }
}

fn open(frame: &[u8]) -> Result<JxlImage, CodecError> {
    let image = JxlImage::builder()
        .read(frame)
        .map_err(|error| CodecError::damaged(CODEC, error.to_string()))?;
    if image.is_loading_done() {
        Ok(image)
    } else {
        Err(CodecError::damaged(CODEC, "the stream is cut short"))
    }
}
