//! Codecs of pixel data, one frame at a time, behind two traits: [`Decode`] and [`Encode`].
//!
//! A frame that is decoded is always laid out as native pixel data of PS3.5 8.2: little endian cells of
//! `bits_allocated`, colour by pixel. What a codec cannot reproduce exactly, or finds broken, is an error and never
//! an approximation: the caller keeps the original then.
//!
//! The C libraries behind this run in worker processes; a crash costs one object.

// Arithmetic on samples and table look-ups: sizes are checked once per frame in `Geometry` and in each codec's header,
// and a panic in a worker costs the object that caused it.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    clippy::many_single_char_names,
    clippy::similar_names
)]

mod geometry;
mod htj2k;
mod jpeg;
mod jpeg2000;
mod jpeg_ls;
mod jpeg_xl;
pub mod mapping;
mod markers;
mod native;
mod rle;
mod samples;
pub mod write_back;
pub mod writers;

pub use geometry::Geometry;

/// Why a frame cannot be decoded or encoded. The texts carry no patient data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Image attributes that no codec takes.
    #[error("image attributes: {0}")]
    Geometry(&'static str),
    /// The compressed frame says otherwise than the data set.
    #[error("the frame is {found}, the data set says {expected}")]
    Mismatch {
        /// What the frame is.
        found: String,
        /// What the data set says.
        expected: String,
    },
    /// The frame is damaged.
    #[error("{codec}: {reason}")]
    Damaged {
        /// The codec that found it.
        codec: &'static str,
        /// What it said.
        reason: String,
    },
    /// Something that the codec does not do.
    #[error("{codec} does not take {what}")]
    Unsupported {
        /// The codec.
        codec: &'static str,
        /// What was asked.
        what: &'static str,
    },
}

impl CodecError {
    pub(crate) fn damaged(codec: &'static str, reason: impl Into<String>) -> Self {
        Self::Damaged {
            codec,
            reason: reason.into(),
        }
    }
}

/// What the decoder does with the colours of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// The samples stay what the Photometric Interpretation says.
    AsStored,
    /// The result is RGB, whatever the Photometric Interpretation said.
    Rgb,
    /// The result is RGB, if what was encoded was: the Photometric Interpretation says RGB or XYB then.
    RgbOfXyb,
}

/// What is known of a compressed frame from its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The colours of the result.
    pub colour: Colour,
    /// The method if the compression lost something: a defined term of Lossy Image Compression Method (0028,2114),
    /// PS3.3 C.7.6.1.1.5.1.
    pub lossy: Option<&'static str>,
}

impl Description {
    pub(crate) const UNTOUCHED: Self = Self {
        colour: Colour::AsStored,
        lossy: None,
    };
}

/// Decodes frames of one family of transfer syntaxes.
pub trait Decode: Sync {
    /// What comes out, from the header of a frame.
    ///
    /// # Errors
    /// [`CodecError`] when the header cannot be read.
    fn describe(&self, frame: &[u8], geometry: &Geometry) -> Result<Description, CodecError>;

    /// Whether a fragment looks like the first one of a frame. Never where nothing tells.
    fn begins(&self, _fragment: &[u8]) -> bool {
        false
    }

    /// Decodes a frame to native pixel data: [`Geometry::frame_bytes`] bytes.
    ///
    /// # Errors
    /// [`CodecError`].
    fn decode(&self, frame: &[u8], geometry: &Geometry, threads: u32) -> Result<Vec<u8>, CodecError>;

    /// Decodes a frame to where it belongs: [`Geometry::frame_bytes`] bytes, which hold anything after an error.
    ///
    /// # Errors
    /// [`CodecError`].
    fn decode_to(
        &self,
        frame: &[u8],
        geometry: &Geometry,
        threads: u32,
        native: &mut [u8],
    ) -> Result<(), CodecError> {
        let decoded = self.decode(frame, geometry, threads)?;
        if decoded.len() != native.len() {
            return Err(CodecError::Geometry(
                "a frame of another size than its attributes say",
            ));
        }
        native.copy_from_slice(&decoded);
        Ok(())
    }
}

/// What [`Decode::decode`] is for a decoder whose own way is [`Decode::decode_to`].
fn decode_whole(
    decoder: &impl Decode,
    frame: &[u8],
    geometry: &Geometry,
    threads: u32,
) -> Result<Vec<u8>, CodecError> {
    let mut native = vec![0; geometry.frame_bytes()];
    decoder.decode_to(frame, geometry, threads, &mut native)?;
    Ok(native)
}

/// Encodes frames without loss.
pub trait Encode: Sync {
    /// Encodes native pixel data, colour by pixel.
    ///
    /// # Errors
    /// [`CodecError`] when the codec cannot represent the frame exactly.
    fn encode(&self, native: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError>;

    /// Decodes what was encoded, to see that it comes back.
    ///
    /// # Errors
    /// [`CodecError`].
    fn decode_back(&self, encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError>;

    /// Photometric Interpretation of the result where it is another than that of RGB pixels (PS3.5 8.2).
    fn photometric_of_rgb(&self) -> Option<&'static str> {
        None
    }
}

const JPEG_BASELINE: &str = "1.2.840.10008.1.2.4.50";
const JPEG_EXTENDED: &str = "1.2.840.10008.1.2.4.51";
const JPEG_SPECTRAL: &str = "1.2.840.10008.1.2.4.53";
const JPEG_PROGRESSIVE: &str = "1.2.840.10008.1.2.4.55";
const JPEG_LOSSLESS: &str = "1.2.840.10008.1.2.4.57";
const JPEG_LOSSLESS_SV1: &str = "1.2.840.10008.1.2.4.70";
const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
const JPEG_LS_NEAR: &str = "1.2.840.10008.1.2.4.81";
const JPEG_2000_LOSSLESS: &str = "1.2.840.10008.1.2.4.90";
const JPEG_2000: &str = "1.2.840.10008.1.2.4.91";
const JPEG_2000_PART_2_LOSSLESS: &str = "1.2.840.10008.1.2.4.92";
const JPEG_2000_PART_2: &str = "1.2.840.10008.1.2.4.93";
const JPEG_XL_LOSSLESS: &str = "1.2.840.10008.1.2.4.110";
const JPEG_XL_RECOMPRESSION: &str = "1.2.840.10008.1.2.4.111";
const JPEG_XL: &str = "1.2.840.10008.1.2.4.112";
const HTJ2K_LOSSLESS: &str = "1.2.840.10008.1.2.4.201";
const HTJ2K_LOSSLESS_RPCL: &str = "1.2.840.10008.1.2.4.202";
const HTJ2K: &str = "1.2.840.10008.1.2.4.203";
/// The UID that CornerstoneJS used for HTJ2K before the Standard had one.
const HTJ2K_BEFORE_THE_STANDARD: &str = "3.2.840.10008.1.2.4.96";
const RLE: &str = "1.2.840.10008.1.2.5";
const ENCAPSULATED_UNCOMPRESSED: &str = "1.2.840.10008.1.2.1.98";
const DEFLATED_FRAME: &str = "1.2.840.10008.1.2.8.1";

/// Encapsulated transfer syntaxes that can be decoded.
pub const DECODABLE: [&str; 22] = [
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_SPECTRAL,
    JPEG_PROGRESSIVE,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_LS_NEAR,
    JPEG_2000_LOSSLESS,
    JPEG_2000,
    JPEG_2000_PART_2_LOSSLESS,
    JPEG_2000_PART_2,
    JPEG_XL_LOSSLESS,
    JPEG_XL_RECOMPRESSION,
    JPEG_XL,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    HTJ2K,
    HTJ2K_BEFORE_THE_STANDARD,
    RLE,
    ENCAPSULATED_UNCOMPRESSED,
    DEFLATED_FRAME,
];

/// Encapsulated transfer syntaxes that can be encoded, all without loss.
pub const ENCODABLE: [&str; 5] = [
    RLE,
    JPEG_LS,
    JPEG_2000_LOSSLESS,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
];

/// The decoder of an encapsulated transfer syntax.
#[must_use]
pub fn decoder(transfer_syntax: &str) -> Option<&'static dyn Decode> {
    Some(match transfer_syntax {
        JPEG_BASELINE | JPEG_EXTENDED | JPEG_SPECTRAL | JPEG_PROGRESSIVE | JPEG_LOSSLESS
        | JPEG_LOSSLESS_SV1 => &jpeg::Jpeg,
        JPEG_LS | JPEG_LS_NEAR => &jpeg_ls::JpegLs,
        JPEG_2000_LOSSLESS
        | JPEG_2000
        | JPEG_2000_PART_2_LOSSLESS
        | JPEG_2000_PART_2
        | HTJ2K_LOSSLESS
        | HTJ2K_LOSSLESS_RPCL
        | HTJ2K
        | HTJ2K_BEFORE_THE_STANDARD => &jpeg2000::Jpeg2000,
        JPEG_XL_LOSSLESS | JPEG_XL_RECOMPRESSION | JPEG_XL => &jpeg_xl::JpegXl,
        RLE => &rle::Rle,
        ENCAPSULATED_UNCOMPRESSED => &native::Uncompressed,
        DEFLATED_FRAME => &native::Deflated,
        _ => return None,
    })
}

/// The decoder of a frame of an encapsulated transfer syntax, which is another one where the frame begins as those of another codec
/// do: there are devices that mislabel them, and readers that look at the frame. `native_bytes`: what it decodes to.
#[must_use]
pub fn decoder_of(frame: &[u8], transfer_syntax: &str, native_bytes: usize) -> Option<&'static dyn Decode> {
    let labelled = decoder(transfer_syntax)?;
    if transfer_syntax == ENCAPSULATED_UNCOMPRESSED && frame.len() == native_bytes.next_multiple_of(2) {
        // Samples may look like anything.
        return Some(labelled);
    }
    Some(if jpeg::Jpeg.begins(frame) {
        match markers::start_of_frame(frame) {
            Some(markers::SOF55) => &jpeg_ls::JpegLs,
            // It may be behind the first fragment.
            None if labelled.begins(frame) => labelled,
            _ => &jpeg::Jpeg,
        }
    } else if jpeg2000::Jpeg2000.begins(frame) {
        &jpeg2000::Jpeg2000
    } else {
        labelled
    })
}

/// The encoder of an encapsulated transfer syntax.
#[must_use]
pub fn encoder(transfer_syntax: &str) -> Option<&'static dyn Encode> {
    Some(match transfer_syntax {
        RLE => &rle::Rle,
        JPEG_LS => &jpeg_ls::JpegLs,
        JPEG_2000_LOSSLESS => &jpeg2000::Jpeg2000,
        HTJ2K_LOSSLESS | HTJ2K_LOSSLESS_RPCL => &htj2k::Htj2k,
        _ => return None,
    })
}

/// Libraries and their versions.
#[must_use]
pub fn versions() -> Vec<(&'static str, String)> {
    vec![
        ("libjpeg-turbo", jpeg::version()),
        ("CharLS", jpeg_ls::version()),
        ("OpenJPEG", jpeg2000::version()),
    ]
}
