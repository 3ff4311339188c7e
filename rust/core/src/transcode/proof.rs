//! The proof that a native result is native: its structure is followed while it is written.

use std::io;

use super::output::{Output, Room};
use super::TranscodeError;
use crate::dataset::anomaly::Anomaly;
use crate::dataset::captured::CapturedTags;
use crate::dataset::scan::{ScanError, ScanLimits, Scanner};
use crate::transfer_syntax::Encoding;

/// Passes a data set on, and looks at the header of each element. Values are passed over, so it costs nothing for each pixel.
pub(super) struct NativeOutput<'o> {
    out: &'o mut dyn Output,
    scanner: Scanner,
}

impl<'o> NativeOutput<'o> {
    pub(super) fn new(out: &'o mut dyn Output, encoding: Encoding) -> Self {
        // What was received has passed the configured limits.
        let limits = ScanLimits {
            nesting: usize::MAX,
            elements: u64::MAX,
            ..ScanLimits::default()
        };
        Self {
            out,
            scanner: Scanner::new(encoding, &CapturedTags::default(), limits),
        }
    }

    /// At the end of the data set.
    ///
    /// # Errors
    /// PS3.5 A.1 to A.3: no element of a native syntax is of undefined length with VR OB or OW. Its readers would not find their way,
    /// or would take compressed bytes for pixels.
    pub(super) fn finish(mut self) -> Result<(), TranscodeError> {
        self.scanner.finish()?;
        // What was odd about the source is not handed on.
        let anomalies = self.scanner.anomalies();
        let odd = [
            Anomaly::Delimiter,
            Anomaly::TrailingBytes,
            Anomaly::IllegalVr,
            Anomaly::SequenceContent,
        ];
        if odd.into_iter().any(|anomaly| anomalies.contains(anomaly)) {
            return Err(ScanError::ItemStructure.into());
        }
        if self.scanner.has_fragments() {
            return Err(TranscodeError::Frames(
                "encapsulated pixels would be left in a native data set",
            ));
        }
        Ok(())
    }
}

impl Output for NativeOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The scanner repeats an error at the end.
        let _ = self.scanner.feed(bytes);
        self.out.write(bytes)
    }

    fn position(&self) -> u64 {
        self.out.position()
    }

    fn patch(&mut self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        // Only offset tables are patched, and a native data set has none.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn expect(&mut self, bytes: u64) -> io::Result<()> {
        self.out.expect(bytes)
    }

    fn memory(&mut self, bytes: u64) -> Option<&mut [u8]> {
        let memory = self.out.memory(bytes)?;
        self.scanner.pass_over(bytes);
        Some(memory)
    }

    fn room(&mut self, bytes: u64) -> io::Result<Option<Room<'_>>> {
        let room = self.out.room(bytes)?;
        if room.is_some() {
            self.scanner.pass_over(bytes);
        }
        Ok(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: &[u8] = b"\xE0\x7F\x10\x00OB\0\0\x04\0\0\0abcd";
    const FRAGMENTS: &[u8] =
        b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";

    fn proof(encoding: Encoding, parts: &[&[u8]]) -> Result<(), TranscodeError> {
        let mut out = Vec::new();
        let mut native = NativeOutput::new(&mut out, encoding);
        for part in parts {
            native.write(part).unwrap();
        }
        native.finish()
    }

    fn nested(inside: &[u8], header: &[u8]) -> Vec<u8> {
        let item = b"\xFE\xFF\x00\xE0\xFF\xFF\xFF\xFF";
        let ends = b"\xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";
        [header, item.as_slice(), inside, ends].concat()
    }

    #[test]
    fn fragments_are_found_at_any_depth_and_values_are_not_looked_into() {
        let explicit = Encoding::EXPLICIT_LITTLE;
        let sequence = b"\x88\x00\x00\x02SQ\0\0\xFF\xFF\xFF\xFF";
        proof(explicit, &[PIXELS]).unwrap();
        proof(explicit, &[&nested(PIXELS, sequence), PIXELS]).unwrap();
        let value = [b"\x09\x00\x10\x10OB\0\0\x1C\0\0\0".as_slice(), FRAGMENTS].concat();
        proof(explicit, &[&value]).unwrap();
        for broken in [
            FRAGMENTS.to_vec(),
            nested(FRAGMENTS, sequence),
            nested(&nested(FRAGMENTS, sequence), sequence),
            [&[0x09, 0, 0x10, 0x10], FRAGMENTS.get(4..).unwrap()].concat(),
        ] {
            let code = |result: Result<(), TranscodeError>| result.unwrap_err().code().to_owned();
            assert_eq!(code(proof(explicit, &[&broken])), "frames");
            // However it is written.
            let bytes: Vec<&[u8]> = broken.chunks(1).collect();
            assert_eq!(code(proof(explicit, &bytes)), "frames");
        }
    }

    #[test]
    fn pixel_data_of_undefined_length_are_found_without_a_vr() {
        let implicit = b"\xE0\x7F\x10\x00\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";
        let error = proof(Encoding::IMPLICIT_LITTLE, &[implicit]).unwrap_err();
        assert_eq!(error.code(), "frames");
        // In a UN of undefined length, which is in Implicit VR (PS3.5 6.2.2 note 2).
        let unknown = nested(implicit, b"\x09\x00\x10\x10UN\0\0\xFF\xFF\xFF\xFF");
        assert!(proof(Encoding::EXPLICIT_LITTLE, &[&unknown]).is_err());
    }

    #[test]
    fn values_that_are_written_in_place_are_passed_over_and_no_more_than_they_are() {
        let header = PIXELS.get(..12).unwrap();
        for (bytes, fits) in [(4, true), (5, false), (3, false)] {
            let mut memory = [0; 64];
            let mut inner = super::super::output::MemoryOutput::new(&mut memory);
            let mut native = NativeOutput::new(&mut inner, Encoding::EXPLICIT_LITTLE);
            native.write(header).unwrap();
            assert_eq!(native.memory(bytes).unwrap().len() as u64, bytes);
            assert_eq!(native.finish().is_ok(), fits, "{bytes}");
        }
    }
}
