//! Between the samples of a codec and the cells of native pixel data.

use crate::{CodecError, Geometry};

/// Puts samples, colour by pixel, into cells of `bits_allocated`; the low bits of each value count.
pub(crate) fn to_cells(samples: impl ExactSizeIterator<Item = i32>, geometry: &Geometry) -> Vec<u8> {
    match geometry.bits_allocated {
        1 => pack_bits(samples.map(|sample| sample & 1 == 1)),
        8 => samples.map(|sample| sample as u8).collect(),
        16 => cells(samples, |sample| (sample as u16).to_le_bytes()),
        32 => cells(samples, i32::to_le_bytes),
        _ => cells(samples, |sample| i64::from(sample).to_le_bytes()),
    }
}

fn cells<const N: usize>(
    samples: impl ExactSizeIterator<Item = i32>,
    bytes: impl Fn(i32) -> [u8; N],
) -> Vec<u8> {
    let mut cells = vec![0; samples.len() * N];
    for (cell, sample) in cells.chunks_exact_mut(N).zip(samples) {
        cell.copy_from_slice(&bytes(sample));
    }
    cells
}

/// The values of cells of native pixel data, sign extended where the pixels are signed.
pub(crate) fn from_cells(native: &[u8], geometry: &Geometry) -> Result<Vec<i32>, CodecError> {
    if native.len() != geometry.frame_bytes() {
        return Err(CodecError::Geometry(
            "a frame of another size than its attributes say",
        ));
    }
    Ok(match (geometry.bits_allocated, geometry.signed) {
        (1, _) => (0..geometry.samples())
            .map(|at| i32::from(native[at / 8] >> (at % 8) & 1))
            .collect(),
        (8, false) => native.iter().map(|&cell| i32::from(cell)).collect(),
        (8, true) => native.iter().map(|&cell| i32::from(cell as i8)).collect(),
        (16, false) => words(native).map(i32::from).collect(),
        (16, true) => words(native).map(|cell| i32::from(cell as i16)).collect(),
        _ => return Err(CodecError::Geometry("more than 16 bits allocated")),
    })
}

/// The values of a frame for an encoder of up to 16 bits, and how many bits it must carry.
pub(crate) fn values_for(
    codec: &'static str,
    native: &[u8],
    geometry: &Geometry,
) -> Result<(Vec<i32>, u32), CodecError> {
    if geometry.bits_allocated > 16 {
        return Err(CodecError::Unsupported {
            codec,
            what: "more than 16 bits allocated",
        });
    }
    let values = from_cells(native, geometry)?;
    let bits = bits_needed(&values, geometry);
    Ok((values, bits))
}

/// 16-bit cells.
pub(crate) fn words(native: &[u8]) -> impl ExactSizeIterator<Item = u16> + '_ {
    native
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// The bits that a lossless codec must carry so that every cell comes back as it was, also where overlays or junk lie in
/// the bits that are not stored.
pub(crate) fn bits_needed(values: &[i32], geometry: &Geometry) -> u32 {
    let stored = u32::from(geometry.bits_stored);
    let fits = !geometry.is_shifted()
        && if geometry.signed {
            let limit = 1i64 << (stored - 1);
            values
                .iter()
                .all(|&value| (-limit..limit).contains(&i64::from(value)))
        } else {
            values.iter().all(|&value| i64::from(value) < 1i64 << stored)
        };
    if fits {
        stored
    } else {
        u32::from(geometry.bits_allocated)
    }
}

/// One bit a pixel, the first in the least significant bit (PS3.5 8.1.1, Annex D).
fn pack_bits(bits: impl ExactSizeIterator<Item = bool>) -> Vec<u8> {
    let mut packed = vec![0; bits.len().div_ceil(8)];
    for (at, bit) in bits.enumerate() {
        packed[at / 8] |= u8::from(bit) << (at % 8);
    }
    packed
}

/// From colour by plane to colour by pixel.
pub(crate) fn interleave(planes: &[u8], geometry: &Geometry) -> Vec<u8> {
    let (pixels, bytes) = (geometry.pixels(), geometry.sample_bytes());
    let samples = usize::from(geometry.samples_per_pixel);
    let mut out = vec![0; planes.len()];
    for (plane, values) in planes.chunks_exact(pixels * bytes).enumerate() {
        for (pixel, value) in values.chunks_exact(bytes).enumerate() {
            let at = (pixel * samples + plane) * bytes;
            out[at..at + bytes].copy_from_slice(value);
        }
    }
    out
}
