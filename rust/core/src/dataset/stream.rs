//! The scan of a data set in its transfer syntax, deflated ones included (PS3.5 A.5).

use flate2::{Decompress, FlushDecompress, Status};

use super::anomaly::{Anomalies, Anomaly};
use super::captured::{Captured, CapturedTags};
use super::scan::{ScanError, ScanLimits, Scanner};
use crate::transfer_syntax::{is_deflated, is_native, is_standard_encapsulated, Encoding};

const WINDOW_BYTES: usize = 64 * 1024;
/// What may follow a deflate stream besides zero bytes: one byte pads it to an even length (PS3.5 A.5), and some writers add
/// the eight bytes of the trailer of RFC 1952.
const TRAILER_BYTES: u64 = 9;

/// A [`Scanner`] behind the inflater that its transfer syntax needs; memory is constant.
#[derive(Debug)]
pub struct DatasetScan {
    scanner: Scanner,
    inflater: Option<Inflater>,
    is_native: bool,
    is_encapsulated: bool,
}

#[derive(Debug)]
struct Inflater {
    state: Decompress,
    window: Vec<u8>,
    ended: bool,
    /// Bytes behind the end, and those of them up to the last that is not zero.
    behind: u64,
    trailer: u64,
    max_bytes: u64,
}

impl DatasetScan {
    /// Scans a data set of `transfer_syntax`, capturing `wanted`; a deflated one may inflate to
    /// `max_decoded_bytes`.
    #[must_use]
    pub fn new(
        transfer_syntax: &str,
        wanted: &CapturedTags,
        limits: ScanLimits,
        max_decoded_bytes: u64,
    ) -> Self {
        Self::reusing(Vec::new(), transfer_syntax, wanted, limits, max_decoded_bytes)
    }

    /// The same, with the memory of values that are not needed any more.
    #[must_use]
    pub fn reusing(
        values: Vec<Captured>,
        transfer_syntax: &str,
        wanted: &CapturedTags,
        limits: ScanLimits,
        max_decoded_bytes: u64,
    ) -> Self {
        let inflater = is_deflated(transfer_syntax).then(|| Inflater {
            state: Decompress::new(false),
            window: vec![0; WINDOW_BYTES],
            ended: false,
            behind: 0,
            trailer: 0,
            max_bytes: max_decoded_bytes,
        });
        Self {
            scanner: Scanner::reusing(values, Encoding::of(transfer_syntax), wanted, limits),
            inflater,
            is_native: is_native(transfer_syntax),
            is_encapsulated: is_standard_encapsulated(transfer_syntax),
        }
    }

    /// Takes the next bytes as received.
    ///
    /// # Errors
    /// See [`Scanner::feed`]; [`ScanError::Deflate`] and [`ScanError::DecodedSize`] besides.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        match &mut self.inflater {
            None => self.scanner.feed(bytes),
            Some(inflater) => inflater.feed(bytes, &mut self.scanner),
        }
    }

    /// Ends the data set.
    ///
    /// # Errors
    /// [`ScanError::Truncated`] when it, or its deflate stream, is not complete.
    pub fn finish(&mut self) -> Result<(), ScanError> {
        if self.inflater.as_ref().is_some_and(|inflater| !inflater.ended) {
            return Err(ScanError::Truncated);
        }
        self.scanner.finish()
    }

    /// Bytes, as received, that are left of a value that is skipped: feeding fewer costs nothing, and so many more come at
    /// least. 0 where that is not known.
    #[must_use]
    pub fn skipping(&self) -> u64 {
        match self.inflater {
            None => self.scanner.skipping(),
            Some(_) => 0,
        }
    }

    /// Passes over bytes of a value that is skipped, at most as many as [`Self::skipping`] says.
    pub fn pass_over(&mut self, bytes: u64) {
        self.scanner.pass_over(bytes);
    }

    /// The captured values, by the slots of [`CapturedTags`].
    #[must_use]
    pub fn captured(&self) -> &[Captured] {
        self.scanner.captured()
    }

    /// How the data set is encoded, once the scan is over.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.scanner.encoding()
    }

    /// Whether one of them may not be whole: the scan stands inside a captured value.
    #[must_use]
    pub fn is_inside_value(&self) -> bool {
        self.scanner.is_inside_value()
    }

    /// The same, when the scan is over.
    #[must_use]
    pub fn into_captured(self) -> Vec<Captured> {
        self.scanner.into_captured()
    }

    /// Whether a top-level Pixel Data element was seen.
    #[must_use]
    pub fn has_pixel_data(&self) -> bool {
        self.scanner.has_pixel_data()
    }

    /// What was odd, once the data set has ended.
    #[must_use]
    pub fn anomalies(&self) -> Anomalies {
        let mut anomalies = self.scanner.anomalies();
        let other_form = if self.scanner.has_encapsulated_pixel_data() {
            self.is_native
        } else {
            self.is_encapsulated
        };
        if self.has_pixel_data() && other_form {
            anomalies.insert_in_pixel_data(Anomaly::PixelDataEncoding);
        }
        anomalies
    }

    /// Bytes as received at the beginning of the data set that are elements of group 0002. What is deflated begins with none: no
    /// reader takes it for the file's own.
    #[must_use]
    pub fn file_meta_bytes(&self) -> u64 {
        match self.inflater {
            None => self.scanner.file_meta_bytes(),
            Some(_) => 0,
        }
    }
}

impl Inflater {
    fn feed(&mut self, mut bytes: &[u8], scanner: &mut Scanner) -> Result<(), ScanError> {
        while !bytes.is_empty() {
            if self.ended {
                if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
                    self.trailer = self.behind + last as u64 + 1;
                }
                self.behind += bytes.len() as u64;
                return if self.trailer <= TRAILER_BYTES {
                    Ok(())
                } else {
                    Err(ScanError::Deflate)
                };
            }
            let (before_in, before_out) = (self.state.total_in(), self.state.total_out());
            let status = self
                .state
                .decompress(bytes, &mut self.window, FlushDecompress::None)
                .map_err(|_| ScanError::Deflate)?;
            let used = usize::try_from(self.state.total_in() - before_in).unwrap_or(usize::MAX);
            let made = usize::try_from(self.state.total_out() - before_out).unwrap_or(usize::MAX);
            if self.state.total_out() > self.max_bytes {
                return Err(ScanError::DecodedSize);
            }
            scanner.feed(self.window.get(..made).unwrap_or_default())?;
            self.ended = status == Status::StreamEnd;
            if used == 0 && made == 0 && !self.ended {
                return Err(ScanError::Deflate);
            }
            bytes = bytes.get(used..).unwrap_or_default();
        }
        self.drain(scanner)
    }

    /// What the inflater still holds when the input is used up.
    fn drain(&mut self, scanner: &mut Scanner) -> Result<(), ScanError> {
        while !self.ended {
            let before = self.state.total_out();
            let status = self
                .state
                .decompress(&[], &mut self.window, FlushDecompress::None);
            let made = usize::try_from(self.state.total_out() - before).unwrap_or(usize::MAX);
            if self.state.total_out() > self.max_bytes {
                return Err(ScanError::DecodedSize);
            }
            scanner.feed(self.window.get(..made).unwrap_or_default())?;
            match status {
                Ok(Status::StreamEnd) => self.ended = true,
                Ok(_) if made > 0 => {}
                // Nothing more without input: not an error (zlib's Z_BUF_ERROR).
                Ok(_) | Err(_) => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dicom_core::Tag;

    use super::*;
    use std::io::Write as _;

    const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
    const STUDY: Tag = Tag(0x0020, 0x000D);

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn dataset(pixel_bytes: u32) -> Vec<u8> {
        let mut bytes = b"\x20\x00\x0d\x00UI\x06\x001.2.3\0\xe0\x7f\x10\x00OB\0\0".to_vec();
        bytes.extend_from_slice(&pixel_bytes.to_le_bytes());
        bytes.resize(bytes.len() + pixel_bytes as usize, 0);
        bytes
    }

    fn scan(bytes: &[u8], piece: usize, max: u64) -> Result<DatasetScan, ScanError> {
        let mut scan = DatasetScan::new(
            DEFLATED,
            &CapturedTags::identifying(&[STUDY]),
            ScanLimits::default(),
            max,
        );
        bytes.chunks(piece).try_for_each(|part| scan.feed(part))?;
        scan.finish()?;
        Ok(scan)
    }

    #[test]
    fn what_is_left_of_a_value_is_known_unless_it_is_deflated() {
        let (native, deflated) = (dataset(1000), deflate(&dataset(1000)));
        for (syntax, bytes, expected) in [("1.2.840.10008.1.2.1", &native, 990), (DEFLATED, &deflated, 0)] {
            let mut scan = DatasetScan::new(
                syntax,
                &CapturedTags::identifying(&[STUDY]),
                ScanLimits::default(),
                1 << 30,
            );
            assert_eq!(scan.skipping(), 0);
            scan.feed(bytes.get(..bytes.len().min(native.len() - 990)).unwrap())
                .unwrap();
            assert_eq!(scan.skipping(), expected);
        }
    }

    #[test]
    fn a_deflated_data_set_is_read_in_any_pieces_and_with_its_padding() {
        let mut bytes = deflate(&dataset(300_000));
        for piece in [1, 7, 4096] {
            assert_eq!(
                scan(&bytes, piece, 1 << 30).unwrap().captured()[0].bytes,
                b"1.2.3\0"
            );
        }
        bytes.extend_from_slice(&[7; 9]);
        assert!(scan(&bytes, 4096, 1 << 30).is_ok());
        bytes.extend_from_slice(&[0; 5000]);
        assert!(scan(&bytes, 4096, 1 << 30).is_ok());
        bytes.push(7);
        assert_eq!(scan(&bytes, 4096, 1 << 30).unwrap_err(), ScanError::Deflate);
    }

    #[test]
    fn a_cut_or_foreign_stream_is_an_error() {
        let bytes = deflate(&dataset(300_000));
        assert_eq!(
            scan(&bytes[..bytes.len() - 3], 4096, 1 << 30).unwrap_err(),
            ScanError::Truncated
        );
        assert_eq!(scan(&[0xFF; 64], 64, 1 << 30).unwrap_err(), ScanError::Deflate);
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bytes = deflate(&dataset(64 << 20));
        assert!(bytes.len() < 100_000);
        assert_eq!(scan(&bytes, 4096, 1 << 20).unwrap_err(), ScanError::DecodedSize);
    }
}
