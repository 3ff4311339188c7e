//! Encapsulated Uncompressed (PS3.5 A.4.11) and Deflated Image Frame Compression (PS3.5 A.4.13).

use flate2::{Decompress, FlushDecompress, Status};

use crate::{CodecError, Decode, Description, Geometry};

/// Native frames in fragments.
pub(crate) struct Uncompressed;

impl Decode for Uncompressed {
    fn describe(&self, _frame: &[u8], _geometry: &Geometry) -> Result<Description, CodecError> {
        Ok(Description::UNTOUCHED)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, _threads: u32) -> Result<Vec<u8>, CodecError> {
        let wanted = geometry.frame_bytes();
        // A fragment has an even length, so a frame of odd length has a byte of padding.
        if frame.len() != wanted + wanted % 2 && frame.len() != wanted {
            return Err(CodecError::Mismatch {
                found: format!("{} bytes", frame.len()),
                expected: format!("{wanted} bytes"),
            });
        }
        Ok(frame[..wanted].to_vec())
    }
}

/// Each frame is a deflate stream (RFC 1951).
pub(crate) struct Deflated;

impl Decode for Deflated {
    fn describe(&self, _frame: &[u8], _geometry: &Geometry) -> Result<Description, CodecError> {
        Ok(Description::UNTOUCHED)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, _threads: u32) -> Result<Vec<u8>, CodecError> {
        const CODEC: &str = "deflate";
        let wanted = geometry.frame_bytes();
        // A frame of odd length may be padded before it is compressed. One byte more shows that there is too much.
        let mut native = vec![0; wanted + 2];
        let mut inflate = Decompress::new(false);
        let status = inflate
            .decompress(frame, &mut native, FlushDecompress::Finish)
            .map_err(|error| CodecError::damaged(CODEC, error.to_string()))?;
        let found = inflate.total_out();
        if status != Status::StreamEnd || (found != wanted as u64 && found != (wanted + wanted % 2) as u64) {
            return Err(CodecError::damaged(CODEC, "the frame has another size"));
        }
        native.truncate(wanted);
        Ok(native)
    }
}
