//! The HT cleanup pass over one code-block (ISO/IEC 15444-15 Clause 7): significance, exponents and magnitudes of quads of
//! two by two samples, in three streams that share one segment.

use std::sync::OnceLock;

use super::tables::{Row, FIRST_ROW, OTHER_ROWS};

/// Exponents of the run lengths of MEL (Table 2).
const MEL_EXPONENTS: [u32; 13] = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5];

/// A codeword for a quad and the exponent bits that it tells.
#[derive(Clone, Copy, Default)]
struct Code {
    word: u32,
    length: u32,
    known: u32,
}

/// Codes by context, significance pattern and the pattern of samples that have the largest exponent.
struct Codes([Vec<Code>; 2]);

fn codes() -> &'static Codes {
    static CODES: OnceLock<Codes> = OnceLock::new();
    CODES.get_or_init(|| Codes([table(&FIRST_ROW), table(&OTHER_ROWS)]))
}

fn index(context: u32, significant: u32, largest: u32) -> usize {
    (context << 8 | significant << 4 | largest) as usize
}

/// Of the rows that fit, the one that tells most.
fn table(rows: &[Row]) -> Vec<Code> {
    let mut codes = vec![Code::default(); 2048];
    let mut told = vec![0; 2048];
    for &(context, significant, with_exponents, known, values, word, length) in rows {
        for largest in 0..16u8 {
            let fits = if with_exponents == 0 {
                largest == 0
            } else {
                largest != 0 && largest & !significant == 0 && largest & known == values
            };
            let at = index(context.into(), significant.into(), largest.into());
            let tells = 1 + known.count_ones();
            if fits && tells > told[at] {
                told[at] = tells;
                codes[at] = Code {
                    word: word.into(),
                    length: length.into(),
                    known: known.into(),
                };
            }
        }
    }
    codes
}

/// Two by two samples in the order upper left, lower left, upper right, lower right.
#[derive(Clone, Copy, Default)]
struct Quad {
    /// One bit for each sample that is not zero.
    significant: u32,
    exponents: [u32; 4],
    largest: u32,
    /// 2 (magnitude - 1) + sign.
    values: [u32; 4],
}

impl Quad {
    fn of(samples: [i32; 4]) -> Self {
        let mut quad = Self::default();
        for (at, sample) in samples.into_iter().enumerate() {
            if sample != 0 {
                let twice = 2 * sample.unsigned_abs();
                let exponent = 32 - (twice - 1).leading_zeros();
                quad.significant |= 1 << at;
                quad.exponents[at] = exponent;
                quad.largest = quad.largest.max(exponent);
                quad.values[at] = twice - 2 + u32::from(sample < 0);
            }
        }
        quad
    }
}

/// The streams of a block.
#[derive(Default)]
struct Streams {
    mel: Mel,
    vlc: Backward,
    magnitudes: Forward,
}

/// What a row of quads leaves to the one below it, at the corners between quads.
struct Above {
    exponents: Vec<u32>,
    significant: Vec<u32>,
}

impl Above {
    fn new(quads: usize) -> Self {
        Self {
            exponents: vec![0; quads + 2],
            significant: vec![0; quads + 2],
        }
    }

    fn note(&mut self, at: usize, quad: &Quad) {
        self.exponents[at] = self.exponents[at].max(quad.exponents[1]);
        self.exponents[at + 1] = quad.exponents[3];
        self.significant[at] |= quad.significant >> 1 & 1;
        self.significant[at + 1] = quad.significant >> 3 & 1;
    }
}

/// Encodes a block; none where all samples are zero.
pub(super) fn encode_block<'r>(
    rows: impl Iterator<Item = &'r [i32]>,
    width: usize,
    height: usize,
) -> Option<Vec<u8>> {
    let rows: Vec<&[i32]> = rows.collect();
    if rows.iter().all(|row| row.iter().all(|&sample| sample == 0)) {
        return None;
    }
    let sample = |x: usize, y: usize| {
        if x < width && y < height {
            rows[y][x]
        } else {
            0
        }
    };
    let quads = width.div_ceil(2);
    let mut streams = Streams::default();
    let mut above: Option<Above> = None;
    for y in (0..height).step_by(2) {
        let mut here = Above::new(quads);
        let mut left = 0;
        for first in (0..quads).step_by(2) {
            let mut excess = [0; 2];
            for at in first..quads.min(first + 2) {
                let x = 2 * at;
                let quad = Quad::of([
                    sample(x, y),
                    sample(x, y + 1),
                    sample(x + 1, y),
                    sample(x + 1, y + 1),
                ]);
                excess[at - first] = streams.quad(&quad, left, at, above.as_ref());
                here.note(at, &quad);
                left = quad.significant;
            }
            streams.excess(excess, above.is_none());
        }
        above = Some(here);
    }
    Some(streams.finish())
}

impl Streams {
    /// Encodes a quad; by how much its largest exponent exceeds what was expected.
    fn quad(&mut self, quad: &Quad, left: u32, at: usize, above: Option<&Above>) -> u32 {
        let significant = quad.significant;
        let (context, expected) = match above {
            // 7.3.5: in the first row only the quad to the left counts.
            None => (left >> 1 | left & 1, 1),
            Some(above) => {
                let west = (left & 4) >> 1 | (left & 8) >> 2;
                let context = above.significant[at] | above.significant[at + 1] << 2 | west;
                // 7.3.7: neighbours above predict the exponent where more than one sample is significant.
                let predicted = above.exponents[at].max(above.exponents[at + 1]);
                let several = significant & significant.wrapping_sub(1) != 0;
                (context, if several { predicted.max(2) - 1 } else { 1 })
            }
        };
        let exponent = quad.largest.max(expected);
        let excess = exponent - expected;
        let mut largest = 0;
        if excess > 0 {
            for (bit, &one) in quad.exponents.iter().enumerate() {
                largest |= u32::from(one == quad.largest) << bit;
            }
        }
        let code = codes().0[usize::from(above.is_some())][index(context, significant, largest)];
        if context == 0 {
            self.mel.event(significant != 0);
        }
        if context != 0 || significant != 0 {
            self.vlc.push(code.word, code.length);
        }
        for bit in 0..4 {
            if significant >> bit & 1 == 1 {
                let count = exponent - (code.known >> bit & 1);
                self.magnitudes.push(quad.values[bit] & ((1 << count) - 1), count);
            }
        }
        excess
    }

    /// The excess of two quads (7.3.6, Table 3): prefixes of both, then suffixes of both.
    fn excess(&mut self, excess: [u32; 2], first_row: bool) {
        let [mut one, mut two] = excess;
        if first_row && one > 0 && two > 0 {
            let both = one.min(two) > 2;
            self.mel.event(both);
            if both {
                one -= 2;
                two -= 2;
            } else if one > 2 {
                // The second is 1 or 2: one bit tells which.
                let (prefix, suffix) = excess_code(one);
                self.vlc.push(prefix.0, prefix.1);
                self.vlc.push(two - 1, 1);
                self.vlc.push(suffix.0, suffix.1);
                return;
            }
        }
        let codes = [excess_code(one), excess_code(two)];
        for (prefix, _) in codes {
            self.vlc.push(prefix.0, prefix.1);
        }
        for (_, suffix) in codes {
            self.vlc.push(suffix.0, suffix.1);
        }
    }

    /// Joins the streams; the last twelve bits say how long MEL and VLC are (7.1.2).
    fn finish(self) -> Vec<u8> {
        let (mut mel, mut vlc) = (self.mel.finish(), self.vlc);
        // The last bits of both may share a byte.
        let mel_mask = 0xFFu32 << mel.room & 0xFF;
        let vlc_mask = 0xFFu32 >> (8 - vlc.used);
        if mel_mask | vlc_mask != 0 {
            let open = mel.open << mel.room;
            let fused = open | vlc.open;
            let fits = ((fused ^ open) & mel_mask) | ((fused ^ vlc.open) & vlc_mask) == 0;
            mel.bytes.push(open as u8);
            if fits && fused != 0xFF && vlc.bytes.len() > 1 {
                if let Some(last) = mel.bytes.last_mut() {
                    *last = fused as u8;
                }
            } else {
                vlc.bytes.push(vlc.open as u8);
            }
        }
        let tail = mel.bytes.len() + vlc.bytes.len();
        let mut out = self.magnitudes.finish();
        out.append(&mut mel.bytes);
        out.extend(vlc.bytes.iter().rev());
        let end = out.len();
        out[end - 1] = (tail >> 4) as u8;
        out[end - 2] = out[end - 2] & 0xF0 | (tail & 0x0F) as u8;
        out
    }
}

/// Prefix and suffix, each a word and its length, the least significant bit first.
fn excess_code(excess: u32) -> ((u32, u32), (u32, u32)) {
    match excess {
        0 => ((0, 0), (0, 0)),
        1 => ((1, 1), (0, 0)),
        2 => ((2, 2), (0, 0)),
        3 | 4 => ((4, 3), (excess - 3, 1)),
        _ => ((0, 3), (excess - 5, 5)),
    }
}

/// The adaptive run-length coder (7.1.3).
struct Mel {
    bytes: Vec<u8>,
    open: u32,
    room: u32,
    run: u32,
    state: usize,
}

impl Default for Mel {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            open: 0,
            room: 8,
            run: 0,
            state: 0,
        }
    }
}

impl Mel {
    fn event(&mut self, happened: bool) {
        let exponent = MEL_EXPONENTS[self.state];
        if happened {
            self.bit(0);
            for bit in (0..exponent).rev() {
                self.bit(self.run >> bit & 1);
            }
            self.run = 0;
            self.state = self.state.saturating_sub(1);
        } else {
            self.run += 1;
            if self.run >= 1 << exponent {
                self.bit(1);
                self.run = 0;
                self.state = (self.state + 1).min(12);
            }
        }
    }

    fn bit(&mut self, bit: u32) {
        self.open = self.open << 1 | bit;
        self.room -= 1;
        if self.room == 0 {
            self.bytes.push(self.open as u8);
            self.room = if self.open == 0xFF { 7 } else { 8 };
            self.open = 0;
        }
    }

    fn finish(mut self) -> Self {
        if self.run > 0 {
            self.bit(1);
        }
        self
    }
}

/// A stream that grows backwards from the end of the segment (7.1.4): a byte behind one above 8F has seven bits if
/// they are all ones. Its first 12 bits are room for the length.
struct Backward {
    bytes: Vec<u8>,
    open: u32,
    used: u32,
    above_8f: bool,
}

impl Default for Backward {
    fn default() -> Self {
        Self {
            bytes: vec![0xFF],
            open: 0x0F,
            used: 4,
            above_8f: true,
        }
    }
}

impl Backward {
    fn push(&mut self, word: u32, count: u32) {
        let (mut word, mut count) = (word, count);
        while count > 0 {
            let room = 8 - u32::from(self.above_8f) - self.used;
            let taken = room.min(count);
            self.open |= (word & ((1 << taken) - 1)) << self.used;
            self.used += taken;
            word >>= taken;
            count -= taken;
            if taken == room {
                if self.above_8f && self.open != 0x7F {
                    // Not all ones: the eighth bit can be used.
                    self.above_8f = false;
                    continue;
                }
                self.bytes.push(self.open as u8);
                self.above_8f = self.open > 0x8F;
                (self.open, self.used) = (0, 0);
            }
        }
    }
}

/// The stream of magnitudes and signs (7.1.5): a byte behind FF has seven bits.
struct Forward {
    bytes: Vec<u8>,
    open: u32,
    used: u32,
    room: u32,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            open: 0,
            used: 0,
            room: 8,
        }
    }
}

impl Forward {
    fn push(&mut self, word: u32, count: u32) {
        let (mut word, mut count) = (word, count);
        while count > 0 {
            let taken = (self.room - self.used).min(count);
            self.open |= (word & ((1 << taken) - 1)) << self.used;
            self.used += taken;
            word >>= taken;
            count -= taken;
            if self.used == self.room {
                self.bytes.push(self.open as u8);
                self.room = if self.open == 0xFF { 7 } else { 8 };
                (self.open, self.used) = (0, 0);
            }
        }
    }

    /// Filled with ones; a last byte of FF is understood and left out.
    fn finish(mut self) -> Vec<u8> {
        if self.used != 0 {
            let byte = self.open | ((1 << (self.room - self.used)) - 1) << self.used;
            if byte != 0xFF {
                self.bytes.push(byte as u8);
            }
        } else if self.room == 7 {
            self.bytes.pop();
        }
        self.bytes
    }
}
