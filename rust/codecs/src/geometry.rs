//! The attributes of the Image Pixel Module that a codec needs (PS3.3 C.7.6.3).

use crate::CodecError;

/// The image attributes of a frame, checked: no combination makes arithmetic overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Rows (0028,0010).
    pub rows: u16,
    /// Columns (0028,0011).
    pub columns: u16,
    /// Samples per Pixel (0028,0002).
    pub samples_per_pixel: u16,
    /// Bits Allocated (0028,0100).
    pub bits_allocated: u16,
    /// Bits Stored (0028,0101).
    pub bits_stored: u16,
    /// High Bit (0028,0102).
    pub high_bit: u16,
    /// Pixel Representation (0028,0103) is 1: two's complement.
    pub signed: bool,
    /// Photometric Interpretation (0028,0004) is RGB.
    pub rgb: bool,
    /// Photometric Interpretation (0028,0004) is `YBR_RCT` or `YBR_ICT`: JPEG 2000's own transforms of RGB.
    pub jpeg2000_colour: bool,
}

impl Geometry {
    /// The same attributes if they make sense together.
    ///
    /// # Errors
    /// [`CodecError::Geometry`].
    pub fn checked(self) -> Result<Self, CodecError> {
        if self.rows == 0 || self.columns == 0 {
            return Err(CodecError::Geometry("Rows and Columns must not be 0"));
        }
        if !matches!(self.samples_per_pixel, 1 | 3 | 4) {
            return Err(CodecError::Geometry("Samples per Pixel must be 1, 3 or 4"));
        }
        if !matches!(self.bits_allocated, 1 | 8 | 16 | 32 | 64) {
            return Err(CodecError::Geometry("Bits Allocated must be 1, 8, 16, 32 or 64"));
        }
        if self.bits_stored == 0 || self.bits_stored > self.bits_allocated {
            return Err(CodecError::Geometry("Bits Stored must be 1 to Bits Allocated"));
        }
        if self.bits_allocated == 1 && self.samples_per_pixel != 1 {
            return Err(CodecError::Geometry("one bit takes one sample per pixel"));
        }
        Ok(self)
    }

    /// Pixels of a frame.
    #[must_use]
    pub fn pixels(&self) -> usize {
        usize::from(self.rows) * usize::from(self.columns)
    }

    /// Samples of a frame.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.pixels() * usize::from(self.samples_per_pixel)
    }

    /// Bits of a frame of native pixel data. Frames of one bit a pixel follow each other without padding (PS3.5 8.1.1).
    #[must_use]
    pub fn frame_bits(&self) -> u64 {
        self.samples() as u64 * u64::from(self.bits_allocated)
    }

    /// Bytes of a frame of native pixel data by itself.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        usize::try_from(self.frame_bits().div_ceil(8)).unwrap_or(usize::MAX)
    }

    /// Bytes of a sample; 1 where samples are bits.
    #[must_use]
    pub fn sample_bytes(&self) -> usize {
        usize::from(self.bits_allocated.div_ceil(8))
    }

    pub(crate) fn expect_size(&self, width: u64, height: u64, components: u64) -> Result<(), CodecError> {
        let expected = (
            u64::from(self.columns),
            u64::from(self.rows),
            u64::from(self.samples_per_pixel),
        );
        if (width, height, components) == expected {
            return Ok(());
        }
        let (columns, rows, samples) = expected;
        Err(CodecError::Mismatch {
            found: format!("{width} x {height} x {components}"),
            expected: format!("{columns} x {rows} x {samples}"),
        })
    }

    /// Whether the samples of a frame can only be taken for what the data set says of its cells.
    pub(crate) fn expect_samples(&self, bits: u32, signed: bool) -> Result<(), CodecError> {
        let stored = u32::from(self.bits_stored);
        let fits = bits >= 1 && bits <= u32::from(self.bits_allocated);
        // By the frame's precision, the highest bit of its samples may be a sign that by Bits Stored is none.
        let sign_is_known = signed == self.signed || bits >= stored;
        // The bits stored lie above others, which the frame may have left out.
        let place_is_known = !self.is_shifted() || bits > u32::from(self.high_bit);
        if fits && sign_is_known && place_is_known {
            return Ok(());
        }
        let sign = |signed| if signed { "signed" } else { "unsigned" };
        Err(CodecError::Mismatch {
            found: format!("{bits} bits a sample, {}", sign(signed)),
            expected: format!(
                "{} bits allocated, {stored} stored up to bit {}, {}",
                self.bits_allocated,
                self.high_bit,
                sign(self.signed)
            ),
        })
    }

    /// Whether the bits stored are not the lowest ones of a cell.
    pub(crate) fn is_shifted(&self) -> bool {
        self.high_bit != self.bits_stored - 1
    }
}
