//! JPEG (ISO/IEC 10918-1) through libjpeg-turbo: DCT with 8 and 12 bits, sequential and progressive, and lossless with
//! 2 to 16 bits.
//!
//! What libjpeg takes the components for depends on marker segments that many writers leave out or get wrong. So the
//! decision is made here, and told to libjpeg by an Adobe segment of our own.

use std::ffi::{c_int, CStr};

use turbojpeg_sys as tj;

use crate::samples::to_cells;
use crate::{CodecError, Colour, Decode, Description, Geometry};

const CODEC: &str = "JPEG";
/// More scans than any encoder makes; each costs a pass over the image.
const MOST_SCANS: c_int = 500;
const MOST_MEGABYTES: c_int = 1024;

const SOI: u8 = 0xD8;
const SOS: u8 = 0xDA;
const APP0: u8 = 0xE0;
const APP14: u8 = 0xEE;

pub(crate) struct Jpeg;

pub(crate) fn version() -> String {
    "3.1".to_owned()
}

/// What the marker segments before the first scan say.
struct Header {
    width: u16,
    height: u16,
    precision: u8,
    components: u8,
    lossless: bool,
    sequential: bool,
    components_are: Components,
}

/// What the components of a frame are taken for.
#[derive(PartialEq, Eq)]
enum Components {
    /// What the Photometric Interpretation says.
    AsStored,
    /// `YCbCr`, which becomes RGB.
    Ycc,
    /// RGB, whatever the data set says.
    Rgb,
}

impl Decode for Jpeg {
    fn describe(&self, frame: &[u8], geometry: &Geometry) -> Result<Description, CodecError> {
        let header = read_header(frame, geometry)?;
        Ok(Description {
            colour: match header.components_are {
                Components::AsStored => Colour::AsStored,
                Components::Ycc | Components::Rgb => Colour::Rgb,
            },
            lossy: (!header.lossless).then_some("ISO_10918_1"),
        })
    }

    fn begins(&self, fragment: &[u8]) -> bool {
        fragment.starts_with(&[0xFF, SOI, 0xFF])
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, _threads: u32) -> Result<Vec<u8>, CodecError> {
        let header = read_header(frame, geometry)?;
        geometry.expect_size(
            header.width.into(),
            header.height.into(),
            header.components.into(),
        )?;
        geometry.expect_samples(header.precision.into(), false)?;
        let format = match header.components {
            1 => tj::TJPF_TJPF_GRAY,
            3 => tj::TJPF_TJPF_RGB,
            _ => {
                return Err(CodecError::Unsupported {
                    codec: CODEC,
                    what: "four components",
                })
            }
        };
        let stream = &normalised(frame, &header)?;
        let decompressor = Decompressor::new()?;
        decompressor.read_header(stream, &header)?;
        // PixelRepresentation 1: the samples are two's complement of that many bits (PS3.5 8.2.1).
        let extend = geometry.signed && u16::from(header.precision) < geometry.bits_allocated;
        let shift = if extend {
            32 - u32::from(header.precision)
        } else {
            0
        };
        let samples = geometry.samples();
        match header.precision {
            2..=8 => {
                let out = decompressor.decompress(tj::tj3Decompress8, stream, format, samples)?;
                if geometry.bits_allocated == 8 && !extend {
                    return Ok(out);
                }
                Ok(cells(&out, shift, geometry))
            }
            9..=12 => {
                let out = decompressor.decompress(tj::tj3Decompress12, stream, format, samples)?;
                Ok(cells(&out, shift, geometry))
            }
            _ => {
                let out = decompressor.decompress(tj::tj3Decompress16, stream, format, samples)?;
                Ok(cells(&out, shift, geometry))
            }
        }
    }
}

fn cells<T: Copy + Into<i32>>(samples: &[T], shift: u32, geometry: &Geometry) -> Vec<u8> {
    to_cells(
        samples.iter().map(|&sample| {
            let value: i32 = sample.into();
            value << shift >> shift
        }),
        geometry,
    )
}

type Decompress<T> = unsafe extern "C" fn(tj::tjhandle, *const u8, tj::size_t, *mut T, c_int, c_int) -> c_int;

/// A handle of libjpeg-turbo.
struct Decompressor(tj::tjhandle);

impl Decompressor {
    fn new() -> Result<Self, CodecError> {
        // SAFETY: no arguments to get wrong; a null pointer means no memory.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        if handle.is_null() {
            return Err(CodecError::damaged(CODEC, "no memory"));
        }
        let decompressor = Self(handle);
        for (parameter, value) in [
            // A damaged stream would be filled with grey otherwise.
            (tj::TJPARAM_TJPARAM_STOPONWARNING, 1),
            (tj::TJPARAM_TJPARAM_SCANLIMIT, MOST_SCANS),
            (tj::TJPARAM_TJPARAM_MAXMEMORY, MOST_MEGABYTES),
        ] {
            // SAFETY: the handle is valid until it is dropped.
            let code = unsafe { tj::tj3Set(handle, parameter as c_int, value) };
            decompressor.check(code)?;
        }
        Ok(decompressor)
    }

    /// Runs one of libjpeg-turbo's three functions, which differ in the type of a sample.
    fn decompress<T: Default + Clone>(
        &self,
        function: Decompress<T>,
        stream: &[u8],
        format: tj::TJPF,
        samples: usize,
    ) -> Result<Vec<T>, CodecError> {
        let mut out = vec![T::default(); samples];
        // SAFETY: `out` has room for width x height x components samples: the caller checked them against our reading of
        // the header, and `read_header` that libjpeg's reading is the same.
        let code = unsafe {
            function(
                self.0,
                stream.as_ptr(),
                stream.len() as tj::size_t,
                out.as_mut_ptr(),
                0,
                format as c_int,
            )
        };
        self.check(code)?;
        Ok(out)
    }

    /// Has libjpeg read the header too, and makes sure that it sees what we see: the buffers are made from ours.
    fn read_header(&self, stream: &[u8], ours: &Header) -> Result<(), CodecError> {
        // SAFETY: the handle is valid, and the slice outlives the call.
        let code = unsafe { tj::tj3DecompressHeader(self.0, stream.as_ptr(), stream.len() as tj::size_t) };
        self.check(code)?;
        let get = |parameter: tj::TJPARAM| {
            // SAFETY: the handle is valid.
            unsafe { tj::tj3Get(self.0, parameter as c_int) }
        };
        let theirs = (
            get(tj::TJPARAM_TJPARAM_JPEGWIDTH),
            get(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
            get(tj::TJPARAM_TJPARAM_PRECISION),
            get(tj::TJPARAM_TJPARAM_COLORSPACE) == tj::TJCS_TJCS_GRAY as c_int,
        );
        let expected = (
            c_int::from(ours.width),
            c_int::from(ours.height),
            c_int::from(ours.precision),
            ours.components == 1,
        );
        if theirs == expected {
            Ok(())
        } else {
            Err(CodecError::damaged(
                CODEC,
                "frame headers that contradict each other",
            ))
        }
    }

    fn check(&self, code: c_int) -> Result<(), CodecError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the handle is valid, and the text is its own until the next call.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0)) };
        Err(CodecError::damaged(CODEC, text.to_string_lossy()))
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle.
        unsafe { tj::tj3Destroy(self.0) }
    }
}

/// The marker segments up to the first scan: marker and what follows its length.
fn segments(frame: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8], usize), CodecError>> + '_ {
    let mut at = 2;
    let mut over = !frame.starts_with(&[0xFF, SOI]);
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let cut = || CodecError::damaged(CODEC, "the header is cut short");
        // ISO/IEC 10918-1 B.1.1.2: a marker may have any number of fill bytes FF before it.
        while frame.get(at) == Some(&0xFF) && frame.get(at + 1) == Some(&0xFF) {
            at += 1;
        }
        let begin = at;
        let Some(&[0xFF, marker, high, low]) = frame.get(at..at + 4) else {
            over = true;
            return Some(Err(cut()));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(body) = frame.get(at + 4..at + 2 + length) else {
            over = true;
            return Some(Err(cut()));
        };
        at += 2 + length;
        over = marker == SOS;
        Some(Ok((marker, body, begin)))
    })
}

fn read_header(frame: &[u8], geometry: &Geometry) -> Result<Header, CodecError> {
    let mut start_of_frame = None;
    let mut jfif = false;
    let mut adobe = None;
    for segment in segments(frame) {
        let (marker, body, _) = segment?;
        match marker {
            // ISO/IEC 10918-1 Table B.1: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC).
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => start_of_frame = Some((marker, body)),
            APP0 => jfif |= body.starts_with(b"JFIF\0"),
            APP14 if body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
            _ => {}
        }
    }
    let (marker, body) = start_of_frame.ok_or_else(|| CodecError::damaged(CODEC, "no frame header"))?;
    let (&[precision, y1, y0, x1, x0, components], specification) = body
        .split_first_chunk::<6>()
        .ok_or_else(|| CodecError::damaged(CODEC, "the frame header is cut short"))?;
    let ids: Vec<u8> = specification.iter().step_by(3).copied().collect();
    let lossless = matches!(marker, 0xC3 | 0xC7 | 0xCB | 0xCF);
    let components_are = if components != 3 || lossless {
        Components::AsStored
    } else {
        match adobe {
            // Readers believe one or the other.
            Some(0) if !geometry.rgb => {
                return Err(CodecError::Mismatch {
                    found: "RGB by its Adobe segment".to_owned(),
                    expected: "another colour space".to_owned(),
                })
            }
            Some(0) => Components::AsStored,
            None if !jfif && ids == *b"RGB" => Components::Rgb,
            None if !jfif && geometry.rgb => Components::AsStored,
            Some(_) | None => Components::Ycc,
        }
    };
    Ok(Header {
        width: u16::from_be_bytes([x1, x0]),
        height: u16::from_be_bytes([y1, y0]),
        precision,
        components,
        lossless,
        // ISO/IEC 10918-1 Table B.1: baseline and extended sequential DCT.
        sequential: matches!(marker, 0xC0 | 0xC1 | 0xC9),
        components_are,
    })
}

/// The same stream, with an Adobe segment that says what the components are, and without what old encoders got wrong.
fn normalised(frame: &[u8], header: &Header) -> Result<Vec<u8>, CodecError> {
    let mut stream = Vec::with_capacity(frame.len() + 16);
    stream.extend_from_slice(&[0xFF, SOI]);
    if header.components == 3 {
        stream.extend_from_slice(b"\xFF\xEE\x00\x0EAdobe\x00\x64\x00\x00\x00\x00");
        stream.push(u8::from(header.components_are == Components::Ycc));
    }
    for segment in segments(frame) {
        let (marker, body, begin) = segment?;
        if marker == SOS {
            let scan = stream.len();
            stream.extend_from_slice(&frame[begin..]);
            if header.sequential && body.len() >= 3 {
                // ISO/IEC 10918-1 B.2.3: Ss, Se, Ah and Al have one value in a sequential scan, and some encoders write
                // another one.
                let parameters = scan + 4 + body.len() - 3;
                stream[parameters..parameters + 3].copy_from_slice(&[0, 63, 0]);
            }
        } else if marker != APP0 && marker != APP14 {
            stream.extend_from_slice(&frame[begin..begin + 4 + body.len()]);
        }
    }
    Ok(stream)
}
