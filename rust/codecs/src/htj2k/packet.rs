//! Packets: which code-blocks are in, how long they are (ISO/IEC 15444-1 B.10).

use super::block::encode_block;
use super::wavelet::Band;
use super::BLOCK;

/// Lblock to begin with (B.10.7.1).
const FIRST_LENGTH_BITS: u32 = 3;

/// One packet on its way: header bits and the bodies behind them.
#[derive(Default)]
pub(super) struct PacketWriter {
    header: HeaderBits,
    body: Vec<u8>,
    begun: bool,
    /// What the header needs of each band, kept until it is known whether the packet is empty.
    bands: Vec<(usize, Vec<Option<Vec<u8>>>, u32)>,
}

impl PacketWriter {
    /// Takes the code-blocks of a subband, in raster order.
    pub(super) fn band(&mut self, band: &Band<'_>, magnitude_bits: u32) {
        if band.width == 0 || band.height == 0 {
            return;
        }
        let across = band.width.div_ceil(BLOCK);
        let mut blocks = Vec::with_capacity(across * band.height.div_ceil(BLOCK));
        for y in (0..band.height).step_by(BLOCK) {
            for x in (0..band.width).step_by(BLOCK) {
                let width = BLOCK.min(band.width - x);
                let height = BLOCK.min(band.height - y);
                let rows = (y..y + height).map(|row| &band.row(x, row)[..width]);
                blocks.push(encode_block(rows, width, height));
            }
        }
        self.begun |= blocks.iter().any(Option::is_some);
        self.bands.push((across, blocks, magnitude_bits));
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        self.header.push(u32::from(self.begun), 1);
        if self.begun {
            for (across, blocks, magnitude_bits) in std::mem::take(&mut self.bands) {
                self.write_band(across, &blocks, magnitude_bits);
            }
        }
        self.header.finish(out);
        out.extend_from_slice(&self.body);
    }

    fn write_band(&mut self, across: usize, blocks: &[Option<Vec<u8>>], magnitude_bits: u32) {
        let down = blocks.len() / across;
        // There is one layer: a block is in it (0) or never (1).
        let inclusion = blocks.iter().map(|block| u32::from(block.is_none())).collect();
        let mut inclusion = TagTree::new(across, down, inclusion);
        // All magnitude bits lie in the one cleanup pass, so all bit-planes but one count as missing. A block that is not in
        // has no say.
        let missing = vec![magnitude_bits - 1; blocks.len()];
        let mut missing = TagTree::new(across, down, missing);
        for (at, block) in blocks.iter().enumerate() {
            let (x, y) = (at % across, at / across);
            inclusion.encode(x, y, 1, &mut self.header);
            let Some(bytes) = block else {
                continue;
            };
            missing.encode(x, y, magnitude_bits, &mut self.header);
            // One coding pass (Table B.4).
            self.header.push(0, 1);
            let length = bytes.len() as u32;
            let bits = (length.ilog2() + 1).max(FIRST_LENGTH_BITS);
            for _ in FIRST_LENGTH_BITS..bits {
                self.header.push(1, 1);
            }
            self.header.push(0, 1);
            self.header.push(length, bits);
            self.body.extend_from_slice(bytes);
        }
    }
}

/// Bits of a packet header: a byte behind FF has only seven (B.10.1).
#[derive(Default)]
struct HeaderBits {
    bytes: Vec<u8>,
    open: u8,
    used: u32,
}

impl HeaderBits {
    fn push(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.open = self.open << 1 | (value >> bit & 1) as u8;
            self.used += 1;
            let room = if self.bytes.last() == Some(&0xFF) { 7 } else { 8 };
            if self.used == room {
                self.bytes.push(self.open);
                (self.open, self.used) = (0, 0);
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        while self.used > 0 {
            self.push(0, 1);
        }
        if self.bytes.last() == Some(&0xFF) {
            self.bytes.push(0);
        }
        out.append(&mut self.bytes);
    }
}

/// Numbers of a grid, told as far as they must be known (B.10.2).
struct TagTree {
    levels: Vec<Level>,
}

struct Level {
    width: usize,
    values: Vec<u32>,
    told: Vec<u32>,
    known: Vec<bool>,
}

impl TagTree {
    fn new(width: usize, height: usize, leaves: Vec<u32>) -> Self {
        let mut levels = vec![Level::new(width, leaves)];
        let (mut width, mut height) = (width, height);
        while width * height > 1 {
            let (wide, high) = (width.div_ceil(2), height.div_ceil(2));
            let below = levels[levels.len() - 1].values.clone();
            let mut values = vec![u32::MAX; wide * high];
            for (at, &value) in below.iter().enumerate() {
                let parent = at / width / 2 * wide + at % width / 2;
                values[parent] = values[parent].min(value);
            }
            levels.push(Level::new(wide, values));
            (width, height) = (wide, high);
        }
        Self { levels }
    }

    /// Tells whether the number at a place is below `threshold`, and which it is then.
    fn encode(&mut self, x: usize, y: usize, threshold: u32, bits: &mut HeaderBits) {
        let mut low = 0;
        for (depth, level) in self.levels.iter_mut().enumerate().rev() {
            let at = (y >> depth) * level.width + (x >> depth);
            level.told[at] = level.told[at].max(low);
            while level.told[at] < threshold && !level.known[at] {
                if level.told[at] >= level.values[at] {
                    bits.push(1, 1);
                    level.known[at] = true;
                } else {
                    bits.push(0, 1);
                    level.told[at] += 1;
                }
            }
            low = level.told[at];
        }
    }
}

impl Level {
    fn new(width: usize, values: Vec<u32>) -> Self {
        Self {
            width,
            told: vec![0; values.len()],
            known: vec![false; values.len()],
            values,
        }
    }
}
