//! Frames of native pixel data as bytes and bits (PS3.5 8.1, 8.2).

use std::borrow::Cow;

use storescp_codecs::Geometry;

/// A frame of native pixel data, cut out where it is not a whole number of bytes.
pub(super) fn native_frame_of<'c>(cells: &'c [u8], geometry: &Geometry, frame: usize) -> Cow<'c, [u8]> {
    let bits = usize::try_from(geometry.frame_bits()).unwrap_or(usize::MAX);
    if bits % 8 == 0 {
        let bytes = bits / 8;
        let range = frame * bytes..(frame + 1) * bytes;
        return Cow::Borrowed(cells.get(range).unwrap_or_default());
    }
    let mut cut = vec![0; bits.div_ceil(8)];
    for bit in 0..bits {
        let at = frame * bits + bit;
        let set = cells.get(at / 8).copied().unwrap_or(0) >> (at % 8) & 1;
        if let Some(byte) = cut.get_mut(bit / 8) {
            *byte |= set << (bit % 8);
        }
    }
    Cow::Owned(cut)
}

/// The other byte order (PS3.5 7.3): turns each word of so many bytes around.
pub(super) fn swap(bytes: &mut [u8], word_bytes: usize) {
    match word_bytes {
        2 => swap_words::<2>(bytes),
        4 => swap_words::<4>(bytes),
        8 => swap_words::<8>(bytes),
        _ => {}
    }
}

fn swap_words<const BYTES: usize>(bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(BYTES) {
        word.reverse();
    }
}

/// From colour by plane to colour by pixel (Planar Configuration 1 to 0).
pub(super) fn by_pixel(planes: &[u8], geometry: &Geometry) -> Vec<u8> {
    let bytes = geometry.sample_bytes();
    let planes: Vec<&[u8]> = planes.chunks_exact(geometry.pixels() * bytes).collect();
    let mut pixels = Vec::with_capacity(geometry.frame_bytes());
    for pixel in 0..geometry.pixels() {
        for plane in &planes {
            pixels.extend_from_slice(plane.get(pixel * bytes..(pixel + 1) * bytes).unwrap_or_default());
        }
    }
    pixels
}

/// Joins frames that are not whole numbers of bytes (PS3.5 8.1.1).
#[derive(Default)]
pub(super) struct BitJoin {
    open: u8,
    used: u32,
}

impl BitJoin {
    pub(super) fn push(&mut self, frame: &[u8], bits: u64) -> Vec<u8> {
        let mut full = Vec::with_capacity(frame.len());
        for bit in 0..bits {
            let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX);
            let set = frame.get(byte).copied().unwrap_or(0) >> (bit % 8) & 1;
            self.open |= set << self.used;
            self.used += 1;
            if self.used == 8 {
                full.push(self.open);
                (self.open, self.used) = (0, 0);
            }
        }
        full
    }

    pub(super) fn rest(&self) -> Vec<u8> {
        if self.used == 0 {
            Vec::new()
        } else {
            vec![self.open]
        }
    }
}

/// Bytes of all frames; those of one bit a pixel follow each other without padding.
pub(super) fn native_bytes(geometry: &Geometry, count: usize) -> Option<u64> {
    let bits = geometry.frame_bits().checked_mul(count as u64)?;
    Some(bits.div_ceil(8))
}

/// A value of even length (PS3.5 7.1.1).
pub(super) fn even(value: &[u8], padding: u8) -> Vec<u8> {
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(padding);
    }
    value
}
