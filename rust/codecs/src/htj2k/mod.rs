//! Lossless encoding of high throughput JPEG 2000 (ISO/IEC 15444-15): one tile, one layer, a cleanup pass for each
//! code-block, progression by resolution (RPCL) with the lengths of tile-parts (TLM), as both lossless transfer syntaxes
//! want it (PS3.5 8.2.14, 10.17).
//!
//! Decoding is OpenJPEG's, in [`crate::jpeg2000`].

mod block;
mod packet;
mod tables;
mod wavelet;

use crate::jpeg2000::Jpeg2000;
use crate::samples::values_for;
use crate::{CodecError, Decode as _, Encode, Geometry};
use packet::PacketWriter;
use wavelet::Plane;

const CODEC: &str = "HTJ2K";
const BLOCK: usize = 64;
/// The size of precincts where none is said (ISO/IEC 15444-1 A.6.1).
const PRECINCT: usize = 1 << 15;
const LEAST_GUARD_BITS: u32 = 2;
const USUAL_LEVELS: u32 = 5;

pub(crate) struct Htj2k;

impl Encode for Htj2k {
    fn encode(&self, native: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        let (values, bits) = values_for(CODEC, native, geometry)?;
        Ok(encode(&values, geometry, bits))
    }

    fn decode_back(&self, encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        Jpeg2000.decode(encoded, geometry, 1)
    }

    fn photometric_of_rgb(&self) -> Option<&'static str> {
        Some("YBR_RCT")
    }
}

/// What the markers say and the packets follow.
struct Style {
    bits: u32,
    colour_transform: bool,
    levels: u32,
    guard_bits: u32,
}

impl Style {
    /// Magnitude bits of a subband with this gain (ISO/IEC 15444-1 E.1, Equation E-2).
    fn magnitude_bits(&self, gain: u32) -> u32 {
        self.exponent(gain) + self.guard_bits - 1
    }

    /// The colour transform makes differences of one bit more.
    fn exponent(&self, gain: u32) -> u32 {
        self.bits + u32::from(self.colour_transform) + gain
    }
}

fn encode(values: &[i32], geometry: &Geometry, bits: u32) -> Vec<u8> {
    let (width, height) = (usize::from(geometry.columns), usize::from(geometry.rows));
    let components = usize::from(geometry.samples_per_pixel);
    let mut style = Style {
        bits,
        colour_transform: components == 3 && geometry.rgb,
        levels: levels(width, height),
        guard_bits: LEAST_GUARD_BITS,
    };
    let shift = if geometry.signed { 0 } else { 1 << (bits - 1) };
    let mut planes: Vec<Plane> = (0..components)
        .map(|component| {
            let samples = values[component..].iter().step_by(components);
            Plane::new(width, height, samples.map(|&value| value - shift).collect())
        })
        .collect();
    if style.colour_transform {
        reversible_colour(&mut planes);
    }
    for plane in &mut planes {
        plane.transform(style.levels);
    }
    style.guard_bits = guard_bits(&planes, &style);
    let packets = packets(&planes, &style);
    let mut out = Vec::with_capacity(packets.len() + 256);
    main_header(&mut out, geometry, &style, packets.len());
    tile(&mut out, &packets);
    out
}

/// The usual number, but the lowest resolution is no larger than 64 x 64 (PS3.5 10.17), and no dimension vanishes early.
fn levels(width: usize, height: usize) -> u32 {
    let needed = width.max(height).div_ceil(BLOCK).next_power_of_two().ilog2();
    let possible = width.min(height).max(1).ilog2();
    needed.max(USUAL_LEVELS.min(possible))
}

/// What the largest coefficients of each subband need: by rounding, those of a noisy bit exceed what two have room for. Some
/// decoders do not mind (that of OpenJPEG), others find another number.
fn guard_bits(planes: &[Plane], style: &Style) -> u32 {
    let bands = |resolution| {
        planes
            .iter()
            .flat_map(move |plane| plane.bands(style.levels, resolution))
    };
    (0..=style.levels)
        .flat_map(bands)
        .map(|band| (band.bits() + 1).saturating_sub(style.exponent(band.gain)))
        .fold(LEAST_GUARD_BITS, u32::max)
}

/// ISO/IEC 15444-1 G.2.
fn reversible_colour(planes: &mut [Plane]) {
    let [red, green, blue] = planes else {
        return;
    };
    for ((r, g), b) in red
        .samples
        .iter_mut()
        .zip(&mut green.samples)
        .zip(&mut blue.samples)
    {
        let (y, u, v) = ((*r + 2 * *g + *b) >> 2, *b - *g, *r - *g);
        (*r, *g, *b) = (y, u, v);
    }
}

/// One packet for each resolution, precinct and component.
fn packets(planes: &[Plane], style: &Style) -> Vec<u8> {
    let mut out = Vec::new();
    for resolution in 0..=style.levels {
        let (width, height) = planes
            .first()
            .map_or((0, 0), |plane| plane.size(style.levels - resolution));
        // In the coordinates of subbands, which are half as large but for the lowest.
        let precinct = if resolution == 0 { PRECINCT } else { PRECINCT / 2 };
        let (down, across) = (height.div_ceil(PRECINCT), width.div_ceil(PRECINCT));
        for at in 0..down * across {
            let (x, y) = (at % across * precinct, at / across * precinct);
            for plane in planes {
                let mut packet = PacketWriter::default();
                for band in plane.bands(style.levels, resolution) {
                    let magnitude_bits = style.magnitude_bits(band.gain);
                    packet.band(&band.part(x, y, precinct), magnitude_bits);
                }
                packet.finish(&mut out);
            }
        }
    }
    out
}

fn main_header(out: &mut Vec<u8>, geometry: &Geometry, style: &Style, packet_bytes: usize) {
    let mut segment = |marker: u16, parts: &[&[u8]]| {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        out.extend_from_slice(&marker.to_be_bytes());
        out.extend_from_slice(&((length + 2) as u16).to_be_bytes());
        for part in parts {
            out.extend_from_slice(part);
        }
    };
    let width = u32::from(geometry.columns).to_be_bytes();
    let height = u32::from(geometry.rows).to_be_bytes();
    let zero = [0; 4];
    let depth = (style.bits - 1) as u8 | u8::from(geometry.signed) << 7;
    let components: Vec<u8> = [depth, 1, 1].repeat(usize::from(geometry.samples_per_pixel));
    // SIZ (A.5.1): capabilities of Part 15, one tile.
    let count = geometry.samples_per_pixel.to_be_bytes();
    let size: [&[u8]; 10] = [
        &[0x40, 0x00],
        &width,
        &height,
        &zero,
        &zero,
        &width,
        &height,
        &zero,
        &zero,
        &count,
    ];
    segment(0xFF51, &[&size.concat(), &components]);
    // CAP (ISO/IEC 15444-15 A.3): only HT blocks, reversible; the bound on magnitudes in the low bits.
    let bound = match style.magnitude_bits(2) {
        bits @ 0..=8 => bits.saturating_sub(8),
        bits @ 9..=27 => bits - 8,
        bits => 13 + (bits >> 2),
    };
    segment(
        0xFF50,
        &[&0x0002_0000u32.to_be_bytes(), &(bound as u16).to_be_bytes()],
    );
    // COD (A.6.1): RPCL, one layer, code-blocks of 64 x 64, HT, the reversible 5-3 transform.
    let transform = u8::from(style.colour_transform);
    segment(
        0xFF52,
        &[&[0, 2, 0, 1, transform, style.levels as u8, 4, 4, 0x40, 1]],
    );
    // QCD (A.6.4): no quantisation, an exponent for each subband.
    let mut exponents = vec![style.exponent(0)];
    for _ in 0..style.levels {
        exponents.extend([style.exponent(1), style.exponent(1), style.exponent(2)]);
    }
    let exponents: Vec<u8> = exponents.iter().map(|&exponent| (exponent << 3) as u8).collect();
    segment(0xFF5C, &[&[(style.guard_bits << 5) as u8], &exponents]);
    // TLM (A.7.1): one tile-part.
    segment(
        0xFF55,
        &[&[0, 0x40], &tile_part_bytes(packet_bytes).to_be_bytes()],
    );
    out.splice(0..0, [0xFF, 0x4F]);
}

/// SOT with its segment, SOD, and what follows.
fn tile_part_bytes(packet_bytes: usize) -> u32 {
    (12 + 2 + packet_bytes) as u32
}

fn tile(out: &mut Vec<u8>, packets: &[u8]) {
    out.extend_from_slice(&[0xFF, 0x90, 0, 10, 0, 0]);
    out.extend_from_slice(&tile_part_bytes(packets.len()).to_be_bytes());
    out.extend_from_slice(&[0, 1, 0xFF, 0x93]);
    out.extend_from_slice(packets);
    out.extend_from_slice(&[0xFF, 0xD9]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn every_image_comes_back_through_another_decoder(
            rows in prop::sample::select(vec![1u16, 2, 3, 5, 31, 64, 65, 130, 257]),
            columns in prop::sample::select(vec![1u16, 2, 3, 7, 33, 64, 66, 129, 300]),
            samples_per_pixel in prop::sample::select(vec![1u16, 3]),
            bits_stored in prop::sample::select(vec![1u16, 2, 7, 8, 10, 12, 15, 16]),
            signed in any::<bool>(), kind in 0u8..4, seed in any::<u64>(),
        ) {
            let geometry = Geometry {
                rows, columns, samples_per_pixel,
                bits_allocated: if bits_stored > 8 { 16 } else { 8 },
                bits_stored, high_bit: bits_stored - 1, signed,
                rgb: samples_per_pixel == 3, jpeg2000_colour: false,
            };
            let mut state = seed | 1;
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let (low, span) = if signed { (-(1i64 << (bits_stored - 1)), 1i64 << bits_stored) } else { (0, 1i64 << bits_stored) };
            let values: Vec<i64> = (0..geometry.samples() as i64).map(|at| low + match kind {
                0 => (random() % span as u64) as i64,
                1 => (at / 3 + (random() % 3) as i64) % span,
                2 => if at / 50 % 2 == 0 { 0 } else { span - 1 },
                _ => span / 2,
            }).collect();
            let native: Vec<u8> = if geometry.bits_allocated == 8 {
                values.iter().map(|&value| value as u8).collect()
            } else {
                values.iter().flat_map(|&value| (value as i16).to_le_bytes()).collect()
            };
            let encoded = Htj2k.encode(&native, &geometry).unwrap();
            prop_assert_eq!(Htj2k.decode_back(&encoded, &geometry).unwrap(), native);
        }
    }

    #[test]
    fn more_than_a_precinct_comes_back() {
        for (rows, columns, samples_per_pixel) in [(1, 65535, 1), (32770, 2, 3), (3, 32769, 1)] {
            let geometry = Geometry {
                rows,
                columns,
                samples_per_pixel,
                bits_allocated: 8,
                bits_stored: 8,
                high_bit: 7,
                signed: false,
                rgb: samples_per_pixel == 3,
                jpeg2000_colour: false,
            };
            let native: Vec<u8> = (0..geometry.samples()).map(|at| ((at * at) >> 7) as u8).collect();
            let encoded = Htj2k.encode(&native, &geometry).unwrap();
            assert_eq!(Htj2k.decode_back(&encoded, &geometry).unwrap(), native);
        }
    }

    #[test]
    fn every_coefficient_has_room() {
        let geometry = Geometry {
            rows: 33,
            columns: 33,
            samples_per_pixel: 1,
            bits_allocated: 8,
            bits_stored: 1,
            high_bit: 0,
            signed: false,
            rgb: false,
            jpeg2000_colour: false,
        };
        let mut state = 1u64;
        let mut guard_bits = Vec::new();
        for _ in 0..1000 {
            let noise: Vec<u8> = (0..geometry.pixels())
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 40 & 1) as u8
                })
                .collect();
            let mut plane = Plane::new(33, 33, noise.iter().map(|&bit| i32::from(bit) - 1).collect());
            plane.transform(5);
            let largest = plane.bands(5, 0)[0].bits();
            let encoded = Htj2k.encode(&noise, &geometry).unwrap();
            let quantization = encoded
                .windows(2)
                .position(|marker| marker == [0xFF, 0x5C])
                .unwrap();
            let guard = u32::from(encoded[quantization + 4] >> 5);
            let exponent = u32::from(encoded[quantization + 5] >> 3);
            assert!(largest < exponent + guard);
            guard_bits.push(guard);
        }
        // Seldom enough that the usual tests do not see it.
        assert!(guard_bits.contains(&2) && guard_bits.contains(&3));
    }

    #[test]
    fn the_lowest_resolution_is_small_and_no_dimension_vanishes() {
        assert_eq!(levels(1, 1), 0);
        assert_eq!(levels(64, 64), 5);
        assert_eq!(levels(512, 512), 5);
        assert_eq!(levels(4096, 3000), 6);
        assert_eq!(levels(3, 5), 1);
        assert_eq!(levels(65535, 1), 10);
    }
}
