//! From one transfer syntax to another: only Pixel Data and what must change with it are rewritten.
//!
//! [`plan`] decides whether, `image` reads the attributes and finds the frames, `frames` runs the codecs on several
//! frames at a time, `rewrite` puts the data set together, and `convert` changes the encoding of elements where the target has
//! another. `nested` does the same with icons and other images in items, and `proof` looks at what was written. [`worker`] is this in a process of its own,
//! which [`lockdown`] keeps to itself, [`pool`] the supervisor of such processes.
//!
//! The result is exact or there is none: damage, contradiction and doubt are errors, and the original is kept.

mod cells;
mod convert;
mod frames;
mod image;
pub mod lockdown;
mod nested;
pub mod output;
pub mod plan;
pub mod pool;
mod proof;
mod rewrite;
#[cfg(test)]
mod tests;
pub mod thumbnail;
pub mod worker;

use std::borrow::Cow;
use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use storescp_codecs::CodecError;

use crate::dataset::scan::ScanError;
use crate::transfer_syntax::{is_deflated, is_native, Encoding};
use output::Output;

/// Why a data set is not transcoded. The texts carry no patient data.
#[derive(Debug, thiserror::Error)]
pub enum TranscodeError {
    /// There is no codec for it.
    #[error("no codec from {source_syntax} to {target}")]
    NoCodec {
        /// Transfer syntax of the data set.
        source_syntax: String,
        /// Transfer syntax that was wanted.
        target: String,
    },
    /// An attribute of the Image Pixel Module is absent or makes no sense.
    #[error("{0}")]
    Attribute(&'static str),
    /// It cannot be told where the frames begin, or there are more or fewer than the data set says.
    #[error("{0}")]
    Frames(&'static str),
    /// The pixels are more than `limits.max_decoded_bytes`, or more than a native element can hold.
    #[error("the pixels decode to more bytes than {0}")]
    TooLarge(&'static str),
    /// Readers do not agree on where Pixel Data begin and end, or the transfer syntax does not fit them.
    #[error("the structure of Pixel Data is odd")]
    OddPixelData,
    /// A codec failed on a frame.
    #[error("frame {frame}: {error}")]
    Codec {
        /// Number of the frame, from 1.
        frame: usize,
        /// What the codec said.
        error: CodecError,
    },
    /// What was encoded does not decode to the same pixels.
    #[error("frame {0}: does not come back as it was")]
    NotExact(usize),
    /// The structure of the data set.
    #[error("{0}")]
    Structure(#[from] ScanError),
    /// The result cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// One of the others, as a worker process tells it.
    #[error("{text}")]
    Reported {
        /// Its code.
        code: &'static str,
        /// Its text.
        text: String,
    },
    /// All processes had other instances, for so many seconds.
    #[error("no process was free within {0} s")]
    Busy(f64),
    /// The process that did it crashed, hung, took too long or used too much memory.
    #[error("{0}")]
    Worker(String),
}

impl TranscodeError {
    /// What a codec said of a frame, counted from 0.
    pub(crate) fn codec(frame: usize, error: CodecError) -> Self {
        Self::Codec {
            frame: frame + 1,
            error,
        }
    }

    /// What a worker process tells. It may have been taken over, so the text becomes short and printable. Nothing for a code that
    /// there is not; only a worker that has a file can fail to write to it.
    pub(crate) fn reported(code: &str, text: &str, has_file: bool) -> Option<Self> {
        let code = REPORTED
            .iter()
            .find(|&&known| known == code && (known != "io" || has_file))?;
        let text = text
            .chars()
            .take(LONGEST_TEXT)
            .flat_map(char::escape_debug)
            .collect();
        Some(Self::Reported { code, text })
    }

    /// A word for metrics and logs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::NoCodec { .. } => "no_codec",
            Self::Attribute(_) => "attribute",
            Self::Frames(_) => "frames",
            Self::TooLarge(_) => "too_large",
            Self::OddPixelData => "odd_pixel_data",
            Self::Codec { .. } => "codec",
            Self::NotExact(_) => "not_exact",
            Self::Structure(_) => "structure",
            Self::Io(_) => "io",
            Self::Reported { code, .. } => code,
            Self::Busy(_) => "busy",
            Self::Worker(_) => "worker",
        }
    }
}

/// The codes of what a worker can tell of.
const REPORTED: [&str; 9] = [
    "no_codec",
    "attribute",
    "frames",
    "too_large",
    "odd_pixel_data",
    "codec",
    "not_exact",
    "structure",
    "io",
];
/// Characters of what a worker tells.
const LONGEST_TEXT: usize = 300;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Job<'j> {
    /// Transfer syntax of the data set.
    pub source: &'j str,
    /// Transfer syntax that is wanted.
    pub target: &'j str,
    /// Bytes that the pixels may decode to.
    pub max_decoded_bytes: u64,
    /// Frames at a time.
    pub threads: usize,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that went through a codec.
    pub frames: usize,
    /// Bytes of the result.
    pub bytes: u64,
}

/// Writes `dataset` in the target transfer syntax to `out`. `progress` is called now and then while it works.
///
/// # Errors
/// [`TranscodeError`]; what was written until then is worth nothing.
pub fn transcode(
    dataset: &[u8],
    job: &Job<'_>,
    out: &mut dyn Output,
    progress: &mut dyn FnMut(),
) -> Result<Report, TranscodeError> {
    if !plan::can_decode(job.source) || !plan::can_encode(job.target) {
        return Err(TranscodeError::NoCodec {
            source_syntax: job.source.to_owned(),
            target: job.target.to_owned(),
        });
    }
    let dataset = if is_deflated(job.source) {
        Cow::Owned(inflate(dataset, job.max_decoded_bytes)?)
    } else {
        Cow::Borrowed(dataset)
    };
    if is_deflated(job.target) {
        let mut deflated = output::Deflated::new(out);
        let mut report = proven(&dataset, job, &mut deflated, progress)?;
        deflated.finish()?;
        report.bytes = out.position();
        return Ok(report);
    }
    proven(&dataset, job, out, progress)
}

/// The data set rewritten, and a native result followed to its end.
fn proven(
    dataset: &[u8],
    job: &Job<'_>,
    out: &mut dyn Output,
    progress: &mut dyn FnMut(),
) -> Result<Report, TranscodeError> {
    if !is_native(job.target) {
        return rewrite::rewrite(dataset, job, out, progress);
    }
    let mut native = proof::NativeOutput::new(out, Encoding::of(job.target));
    let report = rewrite::rewrite(dataset, job, &mut native, progress)?;
    native.finish()?;
    Ok(report)
}

fn inflate(dataset: &[u8], most: u64) -> Result<Vec<u8>, TranscodeError> {
    let mut inflated = Vec::with_capacity(dataset.len().saturating_mul(4));
    let mut state = Decompress::new(false);
    loop {
        let used = usize::try_from(state.total_in()).unwrap_or(usize::MAX);
        let rest = dataset.get(used..).unwrap_or_default();
        inflated.reserve(1 << 16);
        let status = state
            .decompress_vec(rest, &mut inflated, FlushDecompress::None)
            .map_err(|_| ScanError::Deflate)?;
        if inflated.len() as u64 > most {
            return Err(ScanError::DecodedSize.into());
        }
        if status == Status::StreamEnd {
            return Ok(inflated);
        }
        if state.total_in() == used as u64 && rest.is_empty() {
            return Err(ScanError::Truncated.into());
        }
    }
}
