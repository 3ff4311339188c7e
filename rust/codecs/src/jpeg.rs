//! JPEG (ISO/IEC 10918-1) through libjpeg-turbo: DCT with 8 and 12 bits, sequential and progressive, and lossless with
//! 2 to 16 bits.
//!
//! What libjpeg takes the components for depends on marker segments that many writers leave out or get wrong. So the
//! decision is made here, and told to libjpeg by an Adobe segment of our own.

use std::ffi::{c_int, CStr};

use turbojpeg_sys as tj;

use crate::markers::{
    is_start_of_frame, scans, segments, trimmed, Padding, Part, Scans, Segment, APP0, APP14, DNL, DRI,
    END_OF_IMAGE, SOI, SOS,
};
use crate::samples::to_cells;
use crate::{CodecError, Colour, Decode, Description, Geometry};

const CODEC: &str = "JPEG";
/// More scans than any encoder makes; each costs a pass over the image.
const MOST_SCANS: c_int = 500;
const MOST_MEGABYTES: c_int = 1024;

/// ISO/IEC 10918-1 B.1.1.5: FF 00 is a byte of the samples.
const LEAST_MARKER: u8 = 1;

pub(crate) struct Jpeg;

pub(crate) fn version() -> String {
    env!("STORESCP_LIBJPEG_TURBO_VERSION").to_owned()
}

/// What the marker segments before the first scan say.
struct Header {
    width: u16,
    height: u16,
    precision: u8,
    components: u8,
    lossless: bool,
    /// A scan has some of the coefficients, or some of their bits.
    progressive: bool,
    arithmetic: bool,
    /// The components by their identifiers.
    ids: Vec<u8>,
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
        let stream = normalised(frame, &header)?;
        decode(&stream, &header, geometry).or_else(|error| {
            let mut tried = vec![stream];
            for other in tidied(frame, &header)? {
                if tried.contains(&other) {
                    continue;
                }
                if let Ok(native) = decode(&other, &header, geometry) {
                    return Ok(native);
                }
                tried.push(other);
            }
            Err(error)
        })
    }
}

/// What may be left of the padding behind a scan. The last byte of its samples may be zero, and which zeros are padding cannot be told:
/// each is tried.
const PADDING: [Padding; 3] = [Padding::All, Padding::Zeros(0), Padding::Zeros(1)];
/// Where the end of the image is missing, the samples may be cut short too, and nothing must stand for them that may be padding.
const PADDING_WITHOUT_END: [Padding; 1] = [Padding::None];

fn decode(stream: &[u8], header: &Header, geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
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
    let decompressor = Decompressor::new()?;
    decompressor.read_header(stream, header)?;
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

fn read_header(frame: &[u8], geometry: &Geometry) -> Result<Header, CodecError> {
    let mut start_of_frame = None;
    let mut jfif = false;
    let mut adobe = None;
    let mut first_scan = 0;
    for segment in segments(CODEC, frame) {
        let Segment {
            marker, body, begin, ..
        } = segment?;
        first_scan = begin;
        match marker {
            _ if is_start_of_frame(marker) => start_of_frame = Some((marker, body)),
            APP0 => jfif |= body.starts_with(b"JFIF\0"),
            APP14 if body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
            _ => {}
        }
    }
    let (marker, body) = start_of_frame.ok_or_else(|| CodecError::damaged(CODEC, "no frame header"))?;
    let (&[precision, y1, y0, x1, x0, components], specification) = body
        .split_first_chunk::<6>()
        .ok_or_else(|| CodecError::damaged(CODEC, "the frame header is cut short"))?;
    let ids: Vec<u8> = specification
        .iter()
        .step_by(3)
        .take(components.into())
        .copied()
        .collect();
    let lossless = matches!(marker, 0xC3 | 0xC7 | 0xCB | 0xCF);
    let height = match u16::from_be_bytes([y1, y0]) {
        0 => lines_behind(frame, first_scan).unwrap_or(0),
        height => height,
    };
    let components_are = if components != 3 || lossless {
        Components::AsStored
    } else {
        three_components(adobe, jfif, ids == *b"RGB", geometry)?
    };
    Ok(Header {
        width: u16::from_be_bytes([x1, x0]),
        height,
        precision,
        components,
        lossless,
        progressive: matches!(marker, 0xC2 | 0xC6 | 0xCA | 0xCE),
        arithmetic: matches!(marker, 0xC9..=0xCF),
        ids,
        components_are,
    })
}

/// What three components are, by the segments and identifiers of a frame; where those do not tell, by the data set.
fn three_components(
    adobe: Option<u8>,
    jfif: bool,
    are_named_rgb: bool,
    geometry: &Geometry,
) -> Result<Components, CodecError> {
    match adobe {
        // Readers believe one or the other.
        Some(0) if !geometry.rgb => Err(CodecError::Mismatch {
            found: "RGB by its Adobe segment".to_owned(),
            expected: "another colour space".to_owned(),
        }),
        Some(0) => Ok(Components::AsStored),
        None if !jfif && are_named_rgb => Ok(Components::Rgb),
        None if !jfif && geometry.rgb => Ok(Components::AsStored),
        Some(_) | None => Ok(Components::Ycc),
    }
}

/// ISO/IEC 10918-1 B.2.5: a frame header of no lines has their number behind the first scan.
fn lines_behind(frame: &[u8], first_scan: usize) -> Option<u16> {
    let scans = scans(frame, first_scan, LEAST_MARKER);
    scans.parts.iter().find_map(|part| match part {
        Part::Segment(segment) if segment.marker == DNL => {
            segment.body.first_chunk().copied().map(u16::from_be_bytes)
        }
        _ => None,
    })
}

/// The same stream, with an Adobe segment that says what the components are, without other metadata, and without what old encoders got
/// wrong.
fn normalised(frame: &[u8], header: &Header) -> Result<Vec<u8>, CodecError> {
    let (mut stream, scan) = head(frame, header)?;
    let is_only_scan = !header.progressive && scan.body.first() == Some(&header.components);
    if !is_only_scan && !has_all(&scans(frame, scan.begin, LEAST_MARKER), header) {
        return Err(CodecError::damaged(CODEC, "scans are missing"));
    }
    push_scan(&mut stream, &scan, header);
    stream.extend_from_slice(&frame[scan.begin + scan.whole.len()..]);
    Ok(stream)
}

/// What the stream may have been: with nothing behind the samples of each scan but the next marker, and with an end of image. None
/// where more than that may be missing.
fn tidied(frame: &[u8], header: &Header) -> Result<Vec<Vec<u8>>, CodecError> {
    let (head, first) = head(frame, header)?;
    let scans = scans(frame, first.begin, LEAST_MARKER);
    let paddings: &[Padding] = if scans.is_ended {
        &PADDING
    } else if may_be_cut(&scans, header) {
        &[]
    } else {
        &PADDING_WITHOUT_END
    };
    Ok(paddings
        .iter()
        .map(|&padding| with_end(head.clone(), &scans, header, padding))
        .collect())
}

fn with_end(mut stream: Vec<u8>, scans: &Scans<'_>, header: &Header, padding: Padding) -> Vec<u8> {
    for part in &scans.parts {
        match part {
            Part::Segment(scan) if scan.marker == SOS => push_scan(&mut stream, scan, header),
            Part::Segment(segment) if segment.is_metadata() || segment.marker == DNL => {}
            Part::Segment(segment) => stream.extend_from_slice(segment.whole),
            Part::Entropy(entropy) => stream.extend_from_slice(trimmed(entropy, padding)),
        }
    }
    stream.extend_from_slice(&END_OF_IMAGE);
    stream
}

/// Whether samples may be missing of a stream without its end, beyond what libjpeg sees: it misses bits of a scan, but no scans, and
/// knows no end of arithmetic coding.
fn may_be_cut(scans: &Scans<'_>, header: &Header) -> bool {
    header.arithmetic || !has_all(scans, header)
}

/// The stream up to its first scan, and that scan's segment.
fn head<'f>(frame: &'f [u8], header: &Header) -> Result<(Vec<u8>, Segment<'f>), CodecError> {
    let mut stream = Vec::with_capacity(frame.len() + 16);
    stream.extend_from_slice(&[0xFF, SOI]);
    if header.components == 3 {
        stream.extend_from_slice(b"\xFF\xEE\x00\x0EAdobe\x00\x64\x00\x00\x00\x00");
        stream.push(u8::from(header.components_are == Components::Ycc));
    }
    for segment in segments(CODEC, frame) {
        let segment = segment?;
        if segment.marker == SOS {
            return Ok((stream, segment));
        }
        if segment.is_metadata() || is_idle_restart(&segment, header) {
            continue;
        }
        let begin = stream.len();
        stream.extend_from_slice(segment.whole);
        if is_start_of_frame(segment.marker) {
            // Marker, length, precision, lines.
            if let Some(lines) = stream.get_mut(begin + 5..begin + 7) {
                lines.copy_from_slice(&header.height.to_be_bytes());
            }
        }
    }
    Err(CodecError::damaged(CODEC, "no scan"))
}

fn push_scan(stream: &mut Vec<u8>, scan: &Segment<'_>, header: &Header) {
    stream.extend_from_slice(scan.whole);
    if !header.progressive && !header.lossless && scan.body.len() >= 3 {
        // ISO/IEC 10918-1 B.2.3: Ss, Se, Ah and Al have one value in a sequential scan, and some encoders write another one.
        let parameters = stream.len() - 3;
        stream[parameters..].copy_from_slice(&[0, 63, 0]);
    }
}

/// Whether a restart interval of a lossless frame is longer than the frame. libjpeg wants whole lines.
fn is_idle_restart(segment: &Segment<'_>, header: &Header) -> bool {
    let interval = segment.body.first_chunk().copied().map(u16::from_be_bytes);
    header.lossless
        && segment.marker == DRI
        && interval
            .is_some_and(|interval| u32::from(interval) >= u32::from(header.width) * u32::from(header.height))
}

/// Whether the scans have every bit of every coefficient of every component. libjpeg makes the others grey without a word.
fn has_all(scans: &Scans<'_>, header: &Header) -> bool {
    // For each component and coefficient, how many of its low bits are still missing.
    let mut missing = vec![[u8::MAX; 64]; header.ids.len()];
    for part in &scans.parts {
        let Part::Segment(scan) = part else { continue };
        if scan.marker != SOS || scan.body.len() < 4 {
            continue;
        }
        // Ns, Ns times (component, tables), Ss, Se, Ah and Al.
        let (list, parameters) = scan.body.split_at(scan.body.len() - 3);
        let (band, bits) = if header.progressive {
            (
                usize::from(parameters[0])..usize::from(parameters[1]) + 1,
                parameters[2] & 15,
            )
        } else {
            (0..64, 0)
        };
        for id in list[1..].iter().step_by(2) {
            let component = header.ids.iter().position(|known| known == id);
            if let Some(band) = component.and_then(|at| missing[at].get_mut(band.clone())) {
                band.fill(bits);
            }
        }
    }
    missing.as_flattened().iter().all(|&bits| bits == 0)
}
