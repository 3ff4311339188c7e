//! The reversible 5-3 wavelet transform (ISO/IEC 15444-1 F.4.8.1) and where its subbands lie.

/// Samples of a component, then its subbands: after each level the low ones lie in the upper left.
pub(super) struct Plane {
    width: usize,
    height: usize,
    pub(super) samples: Vec<i32>,
}

/// A subband of a resolution.
pub(super) struct Band<'p> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// log2 of the gain: 0 for LL, 1 for HL and LH, 2 for HH (ISO/IEC 15444-1 Table E.1).
    pub(super) gain: u32,
    samples: &'p [i32],
    stride: usize,
}

impl<'p> Band<'p> {
    /// A square of it, or what there is of one.
    pub(super) fn part(&self, x: usize, y: usize, size: usize) -> Band<'p> {
        let (width, height) = (self.width.saturating_sub(x), self.height.saturating_sub(y));
        Band {
            width: width.min(size),
            height: height.min(size),
            gain: self.gain,
            samples: self.samples.get(y * self.stride + x..).unwrap_or_default(),
            stride: self.stride,
        }
    }

    /// A row from a column on.
    pub(super) fn row(&self, x: usize, y: usize) -> &[i32] {
        &self.samples[y * self.stride + x..]
    }

    /// The bits of the largest magnitude.
    pub(super) fn bits(&self) -> u32 {
        if self.width == 0 {
            return 0;
        }
        let rows = (0..self.height).map(|y| &self.row(0, y)[..self.width]);
        // The bits of all magnitudes together have the length of the largest.
        let all = rows.flatten().fold(0, |all, sample| all | sample.unsigned_abs());
        u32::BITS - all.leading_zeros()
    }
}

impl Plane {
    pub(super) fn new(width: usize, height: usize, samples: Vec<i32>) -> Self {
        Self {
            width,
            height,
            samples,
        }
    }

    /// Width and height after a number of levels.
    pub(super) fn size(&self, level: u32) -> (usize, usize) {
        (self.width.div_ceil(1 << level), self.height.div_ceil(1 << level))
    }

    pub(super) fn transform(&mut self, levels: u32) {
        for level in 0..levels {
            let (width, height) = self.size(level);
            self.columns(width, height);
            self.rows(width, height);
        }
    }

    fn rows(&mut self, width: usize, height: usize) {
        let mut line = vec![0; width];
        for y in 0..height {
            let row = &mut self.samples[y * self.width..][..width];
            lift(row);
            separate(row, &mut line);
        }
    }

    /// Whole rows at a time: the samples of a column lie far apart.
    fn columns(&mut self, width: usize, height: usize) {
        if height < 2 {
            return;
        }
        let stride = self.width;
        for y in (1..height).step_by(2) {
            let below = if y + 1 < height { y + 1 } else { y - 1 };
            for x in 0..width {
                let sum = self.samples[(y - 1) * stride + x] + self.samples[below * stride + x];
                self.samples[y * stride + x] -= sum >> 1;
            }
        }
        for y in (0..height).step_by(2) {
            let above = if y > 0 { y - 1 } else { 1 };
            let below = if y + 1 < height { y + 1 } else { above };
            for x in 0..width {
                let sum = self.samples[above * stride + x] + self.samples[below * stride + x];
                self.samples[y * stride + x] += (sum + 2) >> 2;
            }
        }
        let low = height.div_ceil(2);
        let mut sorted = vec![0; width * height];
        for y in 0..height {
            let to = if y % 2 == 0 { y / 2 } else { low + y / 2 };
            sorted[to * width..][..width].copy_from_slice(&self.samples[y * stride..][..width]);
        }
        for y in 0..height {
            self.samples[y * stride..][..width].copy_from_slice(&sorted[y * width..][..width]);
        }
    }

    /// The subbands of a resolution: LL for 0, else HL, LH and HH.
    pub(super) fn bands(&self, levels: u32, resolution: u32) -> Vec<Band<'_>> {
        let band = |x: usize, y: usize, width: usize, height: usize, gain| Band {
            width,
            height,
            gain,
            samples: if width * height == 0 {
                &[]
            } else {
                &self.samples[y * self.width + x..]
            },
            stride: self.width,
        };
        if resolution == 0 {
            let (width, height) = self.size(levels);
            return vec![band(0, 0, width, height, 0)];
        }
        let (low_width, low_height) = self.size(levels - resolution + 1);
        let (width, height) = self.size(levels - resolution);
        let (high_width, high_height) = (width - low_width, height - low_height);
        vec![
            band(low_width, 0, high_width, low_height, 1),
            band(0, low_height, low_width, high_height, 1),
            band(low_width, low_height, high_width, high_height, 2),
        ]
    }
}

/// Odd samples become high-pass, even ones low-pass.
fn lift(line: &mut [i32]) {
    let count = line.len();
    if count < 2 {
        return;
    }
    for at in (1..count).step_by(2) {
        let after = if at + 1 < count { at + 1 } else { at - 1 };
        line[at] -= (line[at - 1] + line[after]) >> 1;
    }
    for at in (0..count).step_by(2) {
        let before = if at > 0 { at - 1 } else { 1 };
        let after = if at + 1 < count { at + 1 } else { before };
        line[at] += (line[before] + line[after] + 2) >> 2;
    }
}

/// Low-pass samples first.
fn separate(line: &mut [i32], scratch: &mut [i32]) {
    let low = line.len().div_ceil(2);
    for (at, &sample) in line.iter().enumerate() {
        scratch[if at % 2 == 0 { at / 2 } else { low + at / 2 }] = sample;
    }
    line.copy_from_slice(scratch);
}
