//! RLE Lossless (PS3.5 Annex G): byte planes, most significant first, each packed by itself.

use crate::{decode_whole, CodecError, Decode, Description, Encode, Geometry};

const CODEC: &str = "RLE";
const HEADER_BYTES: usize = 64;
const MOST_SEGMENTS: usize = 15;
const LONGEST_RUN: usize = 128;
/// Of a plane, at a time.
const PART_BYTES: usize = 4096;

pub(crate) struct Rle;

impl Decode for Rle {
    fn describe(&self, _frame: &[u8], _geometry: &Geometry) -> Result<Description, CodecError> {
        Ok(Description::UNTOUCHED)
    }

    /// PS3.5 G.5: the first segment lies behind the header.
    fn begins(&self, fragment: &[u8]) -> bool {
        let word = |at: usize| fragment.get(at * 4..at * 4 + 4).and_then(|raw| raw.first_chunk());
        let number = |at| word(at).map(|&raw| u32::from_le_bytes(raw) as usize);
        number(0).is_some_and(|count| (1..=MOST_SEGMENTS).contains(&count)) && number(1) == Some(HEADER_BYTES)
    }

    fn decode(&self, frame: &[u8], geometry: &Geometry, threads: u32) -> Result<Vec<u8>, CodecError> {
        decode_whole(self, frame, geometry, threads)
    }

    fn decode_to(
        &self,
        frame: &[u8],
        geometry: &Geometry,
        _threads: u32,
        native: &mut [u8],
    ) -> Result<(), CodecError> {
        let segments = segments(frame)?;
        let (samples, bytes) = (usize::from(geometry.samples_per_pixel), geometry.sample_bytes());
        if segments.len() != samples * bytes {
            return Err(CodecError::Mismatch {
                found: format!("{} segments", segments.len()),
                expected: format!("{}", samples * bytes),
            });
        }
        let mut segments: Vec<_> = segments.into_iter().map(Unpacking::new).collect();
        if let [segment] = segments.as_mut_slice() {
            return segment.next(native);
        }
        let count = segments.len();
        // A part of each plane at a time, so that they are still at hand when they are joined.
        let mut parts = vec![0; PART_BYTES * count];
        for cells in native.chunks_mut(PART_BYTES * count) {
            let part_bytes = cells.len() / count;
            for (segment, part) in segments.iter_mut().zip(parts.chunks_exact_mut(PART_BYTES)) {
                segment.next(&mut part[..part_bytes])?;
            }
            // PS3.5 G.2: the bytes of a sample come most significant first; cells are little endian.
            let part = |at: usize| {
                let begin = (at / bytes * bytes + (bytes - 1 - at % bytes)) * PART_BYTES;
                &parts[begin..begin + part_bytes]
            };
            match count {
                2 => join([part(0), part(1)], cells),
                3 => join([part(0), part(1), part(2)], cells),
                count => {
                    for at in 0..count {
                        for (cell, &value) in cells[at..].iter_mut().step_by(count).zip(part(at)) {
                            *cell = value;
                        }
                    }
                }
            }
        }
        // What a segment has beyond its plane is left out: encoders pad planes, and pack them over their ends.
        Ok(())
    }
}

impl Encode for Rle {
    fn encode(&self, native: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        let (samples, bytes) = (usize::from(geometry.samples_per_pixel), geometry.sample_bytes());
        let count = samples * bytes;
        if geometry.bits_allocated == 1 {
            // PS3.5 Table 8.2.2-1 has none, and other readers do not take them.
            return Err(CodecError::Unsupported {
                codec: CODEC,
                what: "one bit a pixel",
            });
        }
        if count > MOST_SEGMENTS {
            return Err(CodecError::Unsupported {
                codec: CODEC,
                what: "more than 15 bytes a pixel",
            });
        }
        // PS3.5 G.3.1: each row is packed by itself.
        let row_bytes = usize::from(geometry.columns);
        let mut header = [0u8; HEADER_BYTES];
        header[..4].copy_from_slice(&(count as u32).to_le_bytes());
        let mut frame = vec![0; HEADER_BYTES];
        let mut row = Vec::with_capacity(row_bytes);
        for segment in 0..count {
            header[4 + segment * 4..8 + segment * 4].copy_from_slice(&(frame.len() as u32).to_le_bytes());
            let (sample, byte) = (segment / bytes, bytes - 1 - segment % bytes);
            for cells in native.chunks(row_bytes * count) {
                row.clear();
                row.extend(cells[sample * bytes + byte..].iter().step_by(count));
                pack(&row, &mut frame);
            }
            if frame.len() % 2 == 1 {
                frame.push(0);
            }
        }
        frame[..HEADER_BYTES].copy_from_slice(&header);
        Ok(frame)
    }

    fn decode_back(&self, encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, CodecError> {
        self.decode(encoded, geometry, 1)
    }
}

/// PS3.5 G.5: the number of segments, then their offsets from the beginning of the header.
fn segments(frame: &[u8]) -> Result<Vec<&[u8]>, CodecError> {
    let word = |at: usize| {
        frame
            .get(at * 4..at * 4 + 4)
            .map(|raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
            .ok_or_else(|| CodecError::damaged(CODEC, "the header is cut short"))
    };
    let count = word(0)?;
    if !(1..=MOST_SEGMENTS).contains(&count) || frame.len() < HEADER_BYTES {
        return Err(CodecError::damaged(CODEC, "1 to 15 segments are possible"));
    }
    // Some encoders count all fifteen. An offset of 0 is that of no segment.
    let count = (1..=count).take_while(|&number| word(number) != Ok(0)).count();
    let mut found = Vec::with_capacity(count);
    for number in 1..=count {
        let begin = word(number)?;
        let end = if number < count {
            word(number + 1)?
        } else {
            frame.len()
        };
        let segment = (begin >= HEADER_BYTES && begin <= end)
            .then(|| frame.get(begin..end))
            .flatten();
        found.push(segment.ok_or_else(|| CodecError::damaged(CODEC, "a segment is out of place"))?);
    }
    Ok(found)
}

/// The bytes of a cell from as many planes. A number known at compile time lets it take many cells at a time.
fn join<const N: usize>(planes: [&[u8]; N], native: &mut [u8]) {
    for (at, cell) in native.chunks_exact_mut(N).enumerate() {
        for (byte, plane) in cell.iter_mut().zip(planes) {
            *byte = plane[at];
        }
    }
}

/// A segment that is unpacked by and by (PS3.5 G.3.2: `PackBits`).
struct Unpacking<'s> {
    packed: &'s [u8],
    pending: Pending<'s>,
}

/// What a segment says of the next bytes.
enum Pending<'s> {
    Literal(&'s [u8]),
    Run { value: u8, count: usize },
}

impl<'s> Unpacking<'s> {
    fn new(packed: &'s [u8]) -> Self {
        Self {
            packed,
            pending: Pending::Literal(&[]),
        }
    }

    /// The next bytes of the plane.
    fn next(&mut self, mut plane: &mut [u8]) -> Result<(), CodecError> {
        while !plane.is_empty() {
            let taken = match &mut self.pending {
                Pending::Literal([]) | Pending::Run { count: 0, .. } => {
                    self.pending = self.read()?;
                    continue;
                }
                Pending::Literal(literal) => {
                    let taken = literal.len().min(plane.len());
                    let (now, later) = literal.split_at(taken);
                    plane[..taken].copy_from_slice(now);
                    *literal = later;
                    taken
                }
                Pending::Run { value, count } => {
                    let taken = (*count).min(plane.len());
                    plane[..taken].fill(*value);
                    *count -= taken;
                    taken
                }
            };
            plane = &mut plane[taken..];
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Pending<'s>, CodecError> {
        let short = || CodecError::damaged(CODEC, "a segment is cut short");
        let (&control, after) = self.packed.split_first().ok_or_else(short)?;
        let (pending, rest) = match control {
            0..=127 => {
                let (literal, rest) = after
                    .split_at_checked(usize::from(control) + 1)
                    .ok_or_else(short)?;
                (Pending::Literal(literal), rest)
            }
            128 => (Pending::Literal(&[]), after),
            129..=255 => {
                let (&value, rest) = after.split_first().ok_or_else(short)?;
                let count = 257 - usize::from(control);
                (Pending::Run { value, count }, rest)
            }
        };
        self.packed = rest;
        Ok(pending)
    }
}

/// PS3.5 G.3.1.
fn pack(row: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while at < row.len() {
        let run = run_length(&row[at..]);
        if run >= 2 {
            out.extend_from_slice(&[(257 - run) as u8, row[at]]);
            at += run;
            continue;
        }
        let begin = at;
        // A run of two inside a literal costs nothing; three end it.
        while at < row.len() && at - begin < LONGEST_RUN && run_length(&row[at..]) < 3 {
            at += 1;
        }
        out.push((at - begin - 1) as u8);
        out.extend_from_slice(&row[begin..at]);
    }
}

fn run_length(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take(LONGEST_RUN)
        .take_while(|&&byte| byte == bytes[0])
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(rows: u16, columns: u16, samples: u16, bits: u16) -> Geometry {
        Geometry {
            rows,
            columns,
            samples_per_pixel: samples,
            bits_allocated: bits,
            bits_stored: bits,
            high_bit: bits - 1,
            signed: false,
            rgb: false,
            jpeg2000_colour: false,
        }
    }

    #[test]
    fn packs_the_example_of_the_standard() {
        let mut out = Vec::new();
        pack(&[7; 300], &mut out);
        assert_eq!(out, [129, 7, 129, 7, 213, 7]);
        out.clear();
        pack(&[1, 2, 2, 3], &mut out);
        assert_eq!(out, [3, 1, 2, 2, 3]);
    }

    #[test]
    fn a_plane_ends_where_its_segment_says() {
        let frame = |packed: &[u8]| {
            let mut frame = vec![0; HEADER_BYTES];
            (frame[0], frame[4]) = (1, HEADER_BYTES as u8);
            frame.extend_from_slice(packed);
            Rle.decode(&frame, &geometry(2, 3, 1, 8), 1)
        };
        assert_eq!(frame(&[1, 1, 2, 128, 253, 7]).unwrap(), [1, 2, 7, 7, 7, 7]);
        assert_eq!(frame(&[251, 7, 0]).unwrap(), [7; 6]);
        // What is beyond it is cut.
        assert_eq!(frame(&[250, 7]).unwrap(), [7; 6]);
        assert_eq!(frame(&[6, 1, 2, 3, 4, 5, 6, 7]).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(frame(&[251, 7, 1, 9, 9]).unwrap(), [7; 6]);
        for packed in [&[252, 7][..], &[252, 7, 200], &[5, 1, 2, 3, 4, 5]] {
            let error = frame(packed).unwrap_err().to_string();
            assert!(error.contains("cut short"), "{packed:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            rows in 1u16..40, columns in 1u16..300, samples in prop::sample::select(vec![1u16, 3]),
            bits in prop::sample::select(vec![8u16, 16, 32]), seed in any::<u64>(), few in any::<bool>(),
        ) {
            let geometry = geometry(rows, columns, samples, bits);
            let mut state = seed | 1;
            let native: Vec<u8> = (0..geometry.frame_bytes()).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if few { (state % 2) as u8 } else { state as u8 }
            }).collect();
            let frame = Rle.encode(&native, &geometry).unwrap();
            prop_assert_eq!(frame.len() % 2, 0);
            prop_assert_eq!(Rle.decode(&frame, &geometry, 1).unwrap(), native);
        }

        #[test]
        fn junk_is_an_error_and_never_a_panic(frame in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Rle.decode(&frame, &geometry(4, 4, 1, 16), 1);
        }
    }
}
