//! Made images through every target and back, offset tables of every kind, and what must be refused.

mod contradictions;
mod nested;

use std::io::{Read as _, Seek as _, Write as _};

use proptest::prelude::*;

use super::*;
use crate::transcode::cells::even;
use crate::transcode::output::FileOutput;
use crate::transcode::plan::can_encode;

const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";
const BIG: &str = "1.2.840.10008.1.2.2";
const RLE: &str = "1.2.840.10008.1.2.5";
const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
const JPEG_2000: &str = "1.2.840.10008.1.2.4.90";
const TARGETS: [&str; 8] = [
    IMPLICIT,
    EXPLICIT,
    "1.2.840.10008.1.2.1.99",
    RLE,
    JPEG_LS,
    JPEG_2000,
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
];

/// The attributes of a made image.
#[derive(Clone, Debug)]
struct Made {
    rows: u16,
    columns: u16,
    samples: u16,
    allocated: u16,
    stored: u16,
    signed: bool,
    frames: usize,
}

impl Made {
    fn small() -> Self {
        Self {
            rows: 4,
            columns: 5,
            samples: 1,
            allocated: 16,
            stored: 12,
            signed: false,
            frames: 3,
        }
    }

    fn native_bytes(&self) -> usize {
        let bits =
            usize::from(self.rows) * usize::from(self.columns) * usize::from(self.samples * self.allocated);
        (bits * self.frames).div_ceil(8)
    }

    fn pixels(&self, seed: u64, noise: bool) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        if self.allocated == 1 {
            let mut packed: Vec<u8> = (0..self.native_bytes())
                .map(|_| random().to_le_bytes()[0])
                .collect();
            let used = usize::from(self.rows * self.columns) * self.frames % 8;
            if let (Some(last), true) = (packed.last_mut(), used > 0) {
                *last &= (1 << used) - 1;
            }
            return packed;
        }
        let count = self.native_bytes() / usize::from(self.allocated / 8);
        (0..count)
            .flat_map(|at| {
                let value = if noise {
                    random()
                } else {
                    at as u64 / 3 + random() % 2
                };
                let value = value & ((1 << self.stored) - 1);
                let negative = self.signed && value >> (self.stored - 1) == 1;
                let value = if negative {
                    value | u64::MAX << self.stored
                } else {
                    value
                };
                value
                    .to_le_bytes()
                    .into_iter()
                    .take(usize::from(self.allocated / 8))
            })
            .collect()
    }

    /// A whole data set, Explicit VR Little Endian, with native pixels.
    fn dataset(&self, pixels: &[u8]) -> Vec<u8> {
        let vr = if self.allocated > 8 { b"OW" } else { b"OB" };
        let mut padded = pixels.to_vec();
        if padded.len() % 2 == 1 {
            padded.push(0);
        }
        [self.attributes(), long((0x7FE0, 0x0010), vr, &padded)].concat()
    }

    /// The same with encapsulated pixels: the items as given, the offset table first.
    fn encapsulated(&self, items: &[Vec<u8>]) -> Vec<u8> {
        let mut dataset = self.attributes();
        dataset.extend_from_slice(b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF");
        for item in items {
            dataset.extend_from_slice(b"\xFE\xFF\x00\xE0");
            dataset.extend_from_slice(&u32::try_from(item.len()).unwrap().to_le_bytes());
            dataset.extend_from_slice(item);
        }
        dataset.extend_from_slice(b"\xFE\xFF\xDD\xE0\0\0\0\0");
        dataset
    }

    fn attributes(&self) -> Vec<u8> {
        let us = |tag, value: u16| short(tag, b"US", &value.to_le_bytes());
        let photometric: &[u8] = if self.samples == 3 {
            b"RGB "
        } else {
            b"MONOCHROME2 "
        };
        let mut parts = vec![
            short((0x0008, 0x0060), b"CS", b"OT"),
            long((0x0009, 0x1010), b"UN", b"private!"),
            // A sequence of defined length with a nested icon that is never touched.
            long(
                (0x0040, 0x0555),
                b"SQ",
                b"\xFE\xFF\x00\xE0\x0A\0\0\0\x08\0\x00\x01SH\x02\0AB",
            ),
        ];
        parts.splice(
            2..2,
            [
                us((0x0028, 0x0002), self.samples),
                short((0x0028, 0x0004), b"CS", photometric),
            ],
        );
        if self.samples > 1 {
            parts.insert(4, us((0x0028, 0x0006), 0));
        }
        let at = parts.len() - 1;
        parts.splice(
            at..at,
            [
                short((0x0028, 0x0008), b"IS", format!("{:<4}", self.frames).as_bytes()),
                us((0x0028, 0x0010), self.rows),
                us((0x0028, 0x0011), self.columns),
                us((0x0028, 0x0100), self.allocated),
                us((0x0028, 0x0101), self.stored),
                us((0x0028, 0x0102), self.stored - 1),
                us((0x0028, 0x0103), u16::from(self.signed)),
            ],
        );
        parts.concat()
    }
}

fn short(tag: (u16, u16), vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_le_bytes();
    [&tag.0.to_le_bytes()[..], &tag.1.to_le_bytes(), vr, &length, value].concat()
}

fn long(tag: (u16, u16), vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_le_bytes();
    [
        &tag.0.to_le_bytes()[..],
        &tag.1.to_le_bytes(),
        vr,
        &[0, 0],
        &length,
        value,
    ]
    .concat()
}

fn change(dataset: &[u8], source: &str, target: &str, threads: usize) -> Result<Vec<u8>, TranscodeError> {
    let job = Job {
        source,
        target,
        max_decoded_bytes: 1 << 24,
        threads,
    };
    let mut out = Vec::new();
    let report = transcode(dataset, &job, &mut out, &mut || {})?;
    assert_eq!(report.bytes, out.len() as u64);
    Ok(out)
}

/// As `change`, behind other bytes in a file, where threads may write in any order.
fn change_in_file(dataset: &[u8], source: &str, target: &str, threads: usize) -> Vec<u8> {
    let job = Job {
        source,
        target,
        max_decoded_bytes: 1 << 24,
        threads,
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    let mut out = FileOutput::new(&file, 6);
    let report = transcode(dataset, &job, &mut out, &mut || {}).unwrap();
    out.flush().unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let rest = bytes.split_off(6);
    assert_eq!(bytes, b"before");
    assert_eq!(report.bytes, rest.len() as u64);
    rest
}

fn code_of(result: Result<Vec<u8>, TranscodeError>) -> String {
    result.map_or_else(|error| error.code().to_owned(), |_| "none".to_owned())
}

/// The value of Pixel Data in an Explicit VR Little Endian data set.
fn pixels_of(dataset: &[u8]) -> &[u8] {
    let at = dataset
        .windows(8)
        .rposition(|eight| eight.starts_with(b"\xE0\x7F\x10\x00O") && eight[6..] == [0, 0])
        .unwrap();
    let length = u32::from_le_bytes(dataset[at + 8..at + 12].try_into().unwrap()) as usize;
    &dataset[at + 12..at + 12 + length]
}

/// The items of encapsulated Pixel Data at the end of a data set, the offset table first.
fn items_of(dataset: &[u8]) -> Vec<Vec<u8>> {
    let marker = b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF";
    let mut at = dataset.windows(12).rposition(|twelve| twelve == marker).unwrap() + 12;
    let mut items = Vec::new();
    while dataset[at..at + 4] == *b"\xFE\xFF\x00\xE0" {
        let length = u32::from_le_bytes(dataset[at + 4..at + 8].try_into().unwrap()) as usize;
        items.push(dataset[at + 8..at + 8 + length].to_vec());
        at += 8 + length;
    }
    items
}

fn made() -> impl Strategy<Value = Made> {
    let depth = prop::sample::select(vec![
        (8u16, 8u16),
        (8, 7),
        (16, 9),
        (16, 10),
        (16, 12),
        (16, 15),
        (16, 16),
    ]);
    (
        1u16..40,
        1u16..40,
        prop::sample::select(vec![1u16, 3]),
        depth,
        any::<bool>(),
        1usize..6,
    )
        .prop_map(
            |(rows, columns, samples, (allocated, stored), signed, frames)| Made {
                rows,
                columns,
                samples,
                allocated,
                stored,
                signed,
                frames,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_image_comes_back_from_every_target(
        image in made(), seed in any::<u64>(), noise in any::<bool>(), threads in 1usize..4,
    ) {
        let pixels = image.pixels(seed, noise);
        let dataset = image.dataset(&pixels);
        for target in TARGETS {
            let there = change(&dataset, EXPLICIT, target, threads).unwrap();
            let back = change(&there, target, EXPLICIT, threads).unwrap();
            prop_assert_eq!(&pixels_of(&back)[..pixels.len()], &pixels[..], "{}", target);
            prop_assert_eq!(&change_in_file(&dataset, EXPLICIT, target, threads), &there, "{}", target);
            prop_assert_eq!(&change_in_file(&there, target, EXPLICIT, threads), &back, "{}", target);
        }
    }

    #[test]
    fn bits_and_wide_samples_come_back_where_the_target_has_them(
        image in made(), allocated in prop::sample::select(vec![1u16, 32]), seed in any::<u64>(),
    ) {
        let image = Made {
            allocated,
            stored: allocated,
            signed: false,
            samples: if allocated == 1 { 1 } else { image.samples },
            ..image
        };
        let pixels = image.pixels(seed, true);
        for target in [IMPLICIT, "1.2.840.10008.1.2.1.99", RLE, JPEG_2000] {
            if (target, allocated) == (RLE, 1) || (target, allocated) == (JPEG_2000, 32) {
                prop_assert_eq!(code_of(change(&image.dataset(&pixels), EXPLICIT, target, 1)), "codec");
                continue;
            }
            let there = change(&image.dataset(&pixels), EXPLICIT, target, 2).unwrap();
            let back = change(&there, target, EXPLICIT, 2).unwrap();
            prop_assert_eq!(&pixels_of(&back)[..pixels.len()], &pixels[..], "{}", target);
        }
    }

    #[test]
    fn damage_is_an_error_or_the_same_pixels_and_never_a_panic(
        image in made(), seed in any::<u64>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        target in prop::sample::select(vec![RLE, JPEG_LS]),
    ) {
        let mut there = change(&image.dataset(&image.pixels(seed, false)), EXPLICIT, target, 1).unwrap();
        let at = at.index(there.len());
        there[at] = byte;
        let _ = change(&there, target, EXPLICIT, 2);
    }
}

#[test]
fn what_is_not_pixel_data_passes_through_byte_for_byte() {
    let image = Made::small();
    let dataset = image.dataset(&image.pixels(1, true));
    for target in [RLE, JPEG_LS, JPEG_2000] {
        let there = change(&dataset, EXPLICIT, target, 1).unwrap();
        let attributes = image.attributes();
        assert_eq!(there[..attributes.len()], attributes[..], "{target}");
        let back = change(&there, target, EXPLICIT, 1).unwrap();
        assert_eq!(back, dataset, "{target}");
    }
}

#[test]
fn a_number_of_pixels_is_signed_as_those_beside_it_are() {
    let element = |tag: (u16, u16), value: &[u8]| {
        let length = u32::try_from(value.len()).unwrap().to_le_bytes();
        [&tag.0.to_le_bytes()[..], &tag.1.to_le_bytes(), &length, value].concat()
    };
    let signed = element((0x0028, 0x0103), &[1, 0]);
    let unsigned = element((0x0028, 0x0103), &[0, 0]);
    let smallest = element((0x0028, 0x0106), &[0xFE, 0xFF]);
    let icon = [&unsigned[..], &smallest].concat();
    let items = [
        element((0xFFFE, 0xE000), &icon),
        element((0xFFFE, 0xE000), &smallest),
    ]
    .concat();
    let dataset = [signed, smallest, element((0x0088, 0x0200), &items)].concat();
    let explicit = change(&dataset, IMPLICIT, EXPLICIT, 1).unwrap();
    let vrs: Vec<_> = explicit
        .windows(6)
        .filter(|six| six.starts_with(b"\x28\x00\x06\x01"))
        .map(|six| six[4..].to_vec())
        .collect();
    assert_eq!(vrs, [b"SS", b"US", b"SS"]);
}

#[test]
fn native_syntaxes_convert_into_each_other() {
    let image = Made::small();
    let pixels = image.pixels(7, true);
    let dataset = image.dataset(&pixels);
    let implicit = change(&dataset, EXPLICIT, IMPLICIT, 1).unwrap();
    assert!(!implicit.windows(2).any(|two| two == b"US"));
    let explicit = change(&implicit, IMPLICIT, EXPLICIT, 1).unwrap();
    assert_eq!(pixels_of(&explicit)[..pixels.len()], pixels[..]);
    // What only its creator knows comes back as UN, which it was.
    assert!(explicit
        .windows(16)
        .any(|part| part == b"\x09\0\x10\x10UN\0\0\x08\0\0\0priv"));
    assert!(
        change(&dataset, EXPLICIT, BIG, 1).is_err(),
        "retired: never written"
    );
}

#[test]
fn big_endian_pixels_are_swapped_as_their_vr_says() {
    let us = |tag: (u16, u16), value: u16| {
        [
            &tag.0.to_be_bytes()[..],
            &tag.1.to_be_bytes(),
            b"US\0\x02",
            &value.to_be_bytes(),
        ]
        .concat()
    };
    let mut big = [
        us((0x0028, 0x0002), 1),
        us((0x0028, 0x0010), 1),
        us((0x0028, 0x0011), 3),
        us((0x0028, 0x0100), 16),
        us((0x0028, 0x0101), 16),
    ]
    .concat();
    big.extend_from_slice(b"\x7F\xE0\x00\x10OW\0\0\0\0\0\x06\x01\x02\x03\x04\x05\x06");
    let little = change(&big, BIG, EXPLICIT, 1).unwrap();
    assert_eq!(pixels_of(&little), b"\x02\x01\x04\x03\x06\x05");
    let packed = change(&big, BIG, RLE, 1).unwrap();
    let back = change(&packed, RLE, EXPLICIT, 1).unwrap();
    assert_eq!(pixels_of(&back), b"\x02\x01\x04\x03\x06\x05");
}

#[test]
fn a_long_big_endian_value_is_swapped_to_its_end() {
    for words in [32_767_u32, 32_768, 32_769, 100_001] {
        let little: Vec<u8> = (0..words)
            .flat_map(|word| word.to_le_bytes()[..2].to_vec())
            .collect();
        let big: Vec<u8> = (0..words)
            .flat_map(|word| word.to_be_bytes()[2..].to_vec())
            .collect();
        let mut dataset = b"\x7F\xE0\x00\x10OW\0\0".to_vec();
        dataset.extend_from_slice(&u32::try_from(big.len()).unwrap().to_be_bytes());
        dataset.extend_from_slice(&big);
        assert_eq!(pixels_of(&change(&dataset, BIG, EXPLICIT, 1).unwrap()), little);
    }
}

#[test]
fn big_endian_frames_are_swapped_wherever_their_words_lie() {
    let element = |tag: (u16, u16), vr: &[u8], value: &[u8]| {
        let length = u16::try_from(value.len()).unwrap();
        [
            &tag.0.to_be_bytes()[..],
            &tag.1.to_be_bytes(),
            vr,
            &length.to_be_bytes(),
            value,
        ]
        .concat()
    };
    // Samples, columns, bits, frames; the last: 3 bytes each, so that words lie in two frames, and the last one in the padding.
    for (samples, columns, bits, frames) in [
        (1_u16, 4_u16, 16_u16, 3_usize),
        (3, 2, 16, 3),
        (1, 3, 8, 3),
        (1, 4, 32, 2),
    ] {
        let us = |number: u16| number.to_be_bytes();
        let frame_bytes = usize::from(samples * columns * bits / 8);
        let little: Vec<u8> = (0..frames * frame_bytes)
            .map(|at| u8::try_from(at + 1).unwrap())
            .collect();
        let mut value = even(&little, 0);
        value.chunks_exact_mut(2).for_each(<[u8]>::reverse);
        let mut big = [
            element((0x0028, 0x0002), b"US", &us(samples)),
            element(
                (0x0028, 0x0004),
                b"CS",
                if samples == 3 { b"RGB " } else { b"MONOCHROME2 " },
            ),
            element((0x0028, 0x0006), b"US", &us(1)),
            element((0x0028, 0x0008), b"IS", format!("{frames} ").as_bytes()),
            element((0x0028, 0x0010), b"US", &us(1)),
            element((0x0028, 0x0011), b"US", &us(columns)),
            element((0x0028, 0x0100), b"US", &us(bits)),
            element((0x0028, 0x0101), b"US", &us(bits)),
        ]
        .concat();
        big.extend_from_slice(b"\x7F\xE0\x00\x10OW\0\0");
        big.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        big.extend_from_slice(&value);
        let cell = usize::from(bits / 8);
        let by_pixel: Vec<u8> = little
            .chunks_exact(frame_bytes)
            .flat_map(|frame| {
                let cells: Vec<_> = frame.chunks_exact(cell).collect();
                let (columns, samples) = (usize::from(columns), usize::from(samples));
                let places =
                    (0..columns).flat_map(|at| (0..samples).map(move |sample| sample * columns + at));
                places.flat_map(|at| cells[at].to_vec()).collect::<Vec<u8>>()
            })
            .collect();
        let what = format!("{samples} x {columns}, {bits} bits");
        if bits == 32 {
            // Some write the low word first, others the cell as a whole.
            for target in TARGETS {
                let refused = change(&big, BIG, target, 1);
                assert!(matches!(refused, Err(TranscodeError::Attribute(_))), "{target}");
            }
            continue;
        }
        // Planes stay planes where nothing is encoded.
        let native = change(&big, BIG, EXPLICIT, 1).unwrap();
        assert_eq!(pixels_of(&native)[..little.len()], little, "{what}");
        let packed = change(&big, BIG, RLE, 2).unwrap();
        let back = change(&packed, RLE, EXPLICIT, 1).unwrap();
        assert_eq!(pixels_of(&back)[..little.len()], by_pixel, "{what}");
    }
}

#[test]
fn elements_in_the_implicit_form_among_explicit_ones_become_explicit() {
    let image = Made::small();
    let pixels = image.pixels(5, true);
    let explicit = image.dataset(&pixels);
    let implicit = change(&explicit, EXPLICIT, IMPLICIT, 1).unwrap();
    let attributes = implicit.len() - pixels.len() - 8;
    let packed = change(&explicit, EXPLICIT, RLE, 1).unwrap();
    let at = packed
        .windows(6)
        .rposition(|six| six == b"\xE0\x7F\x10\x00OB")
        .unwrap();
    // What pretends to be RLE has no VR before its pixels.
    let mixed = [&implicit[..attributes], &packed[at..]].concat();
    for target in TARGETS {
        let wanted = change(&implicit, IMPLICIT, target, 1).unwrap();
        assert_eq!(change(&mixed, RLE, target, 1).unwrap(), wanted, "{target}");
    }
}

#[test]
fn frames_are_found_by_every_kind_of_table_and_without_one() {
    let image = Made::small();
    let pixels = image.pixels(3, true);
    for target in [RLE, JPEG_LS, JPEG_2000] {
        let items = items_of(&change(&image.dataset(&pixels), EXPLICIT, target, 1).unwrap());
        let frames = &items[1..];
        let native = |dataset: &[u8]| {
            change(dataset, target, EXPLICIT, 1).map(|out| pixels_of(&out)[..pixels.len()].to_vec())
        };
        let whole = |table: Vec<u8>| image.encapsulated(&[vec![table], frames.to_vec()].concat());
        assert_eq!(
            native(&whole(items[0].clone())).unwrap(),
            pixels,
            "{target}: basic"
        );
        assert_eq!(native(&whole(Vec::new())).unwrap(), pixels, "{target}: none");
        assert_eq!(
            native(&whole(b"\xFF\xFF\xFF\xFF\x02\0\0\0\0\0\0\0".to_vec())).unwrap(),
            pixels,
            "{target}: lying"
        );

        // Each frame in two fragments: with a basic table, with an extended one, and with none.
        let mut halves = Vec::new();
        let mut offsets = Vec::new();
        let mut at = 0u64;
        for frame in frames {
            offsets.push(at);
            let middle = frame.len() / 4 * 2;
            for half in [&frame[..middle], &frame[middle..]] {
                halves.push(half.to_vec());
                at += 8 + half.len() as u64;
            }
        }
        let basic: Vec<u8> = offsets
            .iter()
            .flat_map(|&offset| u32::try_from(offset).unwrap().to_le_bytes())
            .collect();
        let split = |table: Vec<u8>| image.encapsulated(&[vec![table], halves.clone()].concat());
        assert_eq!(native(&split(basic)).unwrap(), pixels, "{target}: split, basic");
        let extended: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let table = long((0x7FE0, 0x0001), b"OV", &extended);
        let plain = split(Vec::new());
        let begin = image.attributes().len();
        let with_extended = [&plain[..begin], &table, &plain[begin..]].concat();
        let out = change(&with_extended, target, EXPLICIT, 1).unwrap();
        assert_eq!(
            pixels_of(&out)[..pixels.len()],
            pixels[..],
            "{target}: split, extended"
        );
        assert!(
            !out.windows(4).any(|four| four == b"\xE0\x7F\x01\x00"),
            "the stale table is gone"
        );
        assert_eq!(native(&plain).unwrap(), pixels, "{target}: split, none");
    }
}

#[test]
fn one_frame_may_lie_in_any_number_of_fragments() {
    let image = Made {
        frames: 1,
        ..Made::small()
    };
    let pixels = image.pixels(5, true);
    let items = items_of(&change(&image.dataset(&pixels), EXPLICIT, RLE, 1).unwrap());
    let pieces: Vec<Vec<u8>> = items[1].chunks(6).map(<[u8]>::to_vec).collect();
    let dataset = image.encapsulated(&[vec![Vec::new()], pieces].concat());
    let back = change(&dataset, RLE, EXPLICIT, 1).unwrap();
    assert_eq!(pixels_of(&back)[..pixels.len()], pixels[..]);
}

#[test]
fn delimiters_inside_a_codestream_are_pixels_like_all_others() {
    let image = Made {
        frames: 1,
        ..Made::small()
    };
    let pixels = image.pixels(5, true);
    let mut items = items_of(&change(&image.dataset(&pixels), EXPLICIT, JPEG_2000, 1).unwrap());
    // A comment segment behind SIZ (ISO/IEC 15444-1 A.9.2) that looks like the end of the sequence.
    let siz = 4 + usize::from(u16::from_be_bytes(items[1][4..6].try_into().unwrap()));
    let comment = b"\xFF\x64\x00\x0C\x00\x00\xFE\xFF\xDD\xE0\0\0\0\0";
    items[1].splice(siz..siz, comment.iter().copied());
    let back = change(&image.encapsulated(&items), JPEG_2000, EXPLICIT, 1).unwrap();
    assert_eq!(pixels_of(&back)[..pixels.len()], pixels[..]);
}

#[test]
fn attributes_that_make_no_sense_are_refused_before_memory_is_taken() {
    let image = Made {
        frames: 1,
        ..Made::small()
    };
    let items = items_of(&change(&image.dataset(&image.pixels(5, true)), EXPLICIT, RLE, 1).unwrap());
    let with = |changed: Made| code_of(change(&changed.encapsulated(&items), RLE, EXPLICIT, 1));
    assert_eq!(
        with(Made {
            rows: 65535,
            columns: 65535,
            ..image.clone()
        }),
        "too_large"
    );
    assert_eq!(
        with(Made {
            frames: 0x7FFF_FFFF,
            ..image.clone()
        }),
        "too_large"
    );
    for allocated in [0, 2, 12, 2048, 65535] {
        assert_eq!(
            with(Made {
                allocated,
                ..image.clone()
            }),
            "attribute",
            "{allocated}"
        );
    }
    for samples in [0, 2, 5, 65535] {
        assert_eq!(
            with(Made {
                samples,
                ..image.clone()
            }),
            "attribute",
            "{samples}"
        );
    }
    assert_eq!(
        with(Made {
            rows: 0,
            ..image.clone()
        }),
        "attribute"
    );
    assert_eq!(
        with(Made {
            stored: 17,
            ..image.clone()
        }),
        "attribute"
    );
    assert_eq!(
        with(Made {
            rows: 5,
            ..image.clone()
        }),
        "codec"
    );
    assert_eq!(
        with(Made {
            frames: 2,
            ..image.clone()
        }),
        "frames"
    );
    let junk = image.encapsulated(&items);
    let at = junk.windows(4).position(|four| four == b"1   ").unwrap();
    for (text, code) in [
        (b"-1  ", "attribute"),
        (b"1.5 ", "attribute"),
        (b"junk", "attribute"),
        (b"99e9", "attribute"),
        (b"2.0 ", "frames"),
        (b"0   ", "none"),
        (b"1.0 ", "none"),
        (b"1\\2 ", "none"),
        (b"\t1\0\0", "none"),
    ] {
        let mut junk = junk.clone();
        junk[at..at + 4].copy_from_slice(text);
        assert_eq!(code_of(change(&junk, RLE, EXPLICIT, 1)), code, "{text:?}");
    }
}

#[test]
fn native_pixels_of_more_than_4_gib_are_refused_whatever_the_limit() {
    let image = Made {
        rows: 65535,
        columns: 65535,
        frames: 1,
        ..Made::small()
    };
    let job = Job {
        source: RLE,
        target: EXPLICIT,
        max_decoded_bytes: u64::MAX,
        threads: 1,
    };
    let mut out = Vec::new();
    let dataset = image.encapsulated(&[Vec::new(), vec![0; 64]]);
    let error = transcode(&dataset, &job, &mut out, &mut || {}).unwrap_err();
    assert_eq!(error.code(), "too_large");
    assert!(error.to_string().contains("native Pixel Data can hold"));
}

#[test]
fn an_element_of_the_image_that_occurs_twice_is_refused() {
    let image = Made::small();
    let dataset = image.dataset(&image.pixels(5, true));
    let rows = short((0x0028, 0x0010), b"US", &[4, 0]);
    let at = dataset.windows(rows.len()).position(|part| part == rows).unwrap();
    let twice = [&dataset[..at], &rows, &dataset[at..]].concat();
    assert_eq!(code_of(change(&twice, EXPLICIT, RLE, 1)), "attribute");
    let pixels = long((0x7FE0, 0x0010), b"OW", &[0; 4]);
    let twice = [&dataset[..], &pixels].concat();
    assert_eq!(code_of(change(&twice, EXPLICIT, RLE, 1)), "attribute");
}

#[test]
fn fragments_that_are_not_what_they_say_are_refused() {
    let image = Made {
        frames: 1,
        ..Made::small()
    };
    let empty = Vec::new();
    assert_eq!(
        code_of(change(&image.encapsulated(&[]), RLE, EXPLICIT, 1)),
        "frames"
    );
    assert_eq!(
        code_of(change(
            &image.encapsulated(std::slice::from_ref(&empty)),
            RLE,
            EXPLICIT,
            1
        )),
        "frames"
    );
    let mut header = vec![0u8; 64];
    for (segments, offset) in [(255u32, 64u32), (2, 0xFFFF_FFF0), (2, 3), (0, 64), (3, 64)] {
        header[..4].copy_from_slice(&segments.to_le_bytes());
        header[4..8].copy_from_slice(&offset.to_le_bytes());
        header[8..12].copy_from_slice(&offset.to_le_bytes());
        let dataset = image.encapsulated(&[empty.clone(), header.clone()]);
        assert_eq!(
            code_of(change(&dataset, RLE, EXPLICIT, 1)),
            "codec",
            "{segments} {offset}"
        );
    }
    // JPEG 2000 with an image of 2^32 - 1 columns.
    let mut items =
        items_of(&change(&image.dataset(&image.pixels(5, true)), EXPLICIT, JPEG_2000, 1).unwrap());
    items[1][8..12].copy_from_slice(&[0xFF; 4]);
    assert_eq!(
        code_of(change(&image.encapsulated(&items), JPEG_2000, EXPLICIT, 1)),
        "codec"
    );
    let truncated = items[1][..items[1].len() / 2].to_vec();
    for source in [
        JPEG_LS,
        JPEG_2000,
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.110",
    ] {
        for junk in [truncated.clone(), vec![0xFF; 50], b"\xFF\xD8".to_vec(), vec![0]] {
            let dataset = image.encapsulated(&[empty.clone(), junk]);
            assert_eq!(
                code_of(change(&dataset, source, EXPLICIT, 1)),
                "codec",
                "{source}"
            );
        }
    }
}

#[test]
fn a_truncated_codestream_is_an_error_and_not_a_grey_image() {
    let image = Made {
        rows: 64,
        columns: 64,
        frames: 1,
        ..Made::small()
    };
    let pixels = image.pixels(9, true);
    for target in [RLE, JPEG_LS, JPEG_2000, "1.2.840.10008.1.2.4.201"] {
        let items = items_of(&change(&image.dataset(&pixels), EXPLICIT, target, 1).unwrap());
        for kept in [items[1].len() / 3, items[1].len() * 9 / 10] {
            let dataset = image.encapsulated(&[Vec::new(), items[1][..kept / 2 * 2].to_vec()]);
            assert_eq!(
                code_of(change(&dataset, target, EXPLICIT, 1)),
                "codec",
                "{target} {kept}"
            );
        }
    }
}

#[test]
fn a_deflated_data_set_inflates_only_so_far() {
    let image = Made {
        rows: 2000,
        columns: 2000,
        frames: 4,
        ..Made::small()
    };
    let dataset = image.dataset(&vec![0; image.native_bytes()]);
    let job = Job {
        source: EXPLICIT,
        target: "1.2.840.10008.1.2.1.99",
        max_decoded_bytes: 1 << 26,
        threads: 1,
    };
    let mut deflated = Vec::new();
    transcode(&dataset, &job, &mut deflated, &mut || {}).unwrap();
    assert!(deflated.len() < 100_000);
    assert_eq!(deflated.len() % 2, 0);
    assert_eq!(code_of(change(&deflated, job.target, EXPLICIT, 1)), "structure");
}

#[test]
fn every_target_of_the_tests_can_be_encoded_and_there_are_no_others() {
    let encodable: Vec<&str> = crate::transfer_syntax::known()
        .map(|(uid, _)| uid)
        .filter(|uid| can_encode(uid))
        .collect();
    assert_eq!(encodable.len(), TARGETS.len());
    assert!(TARGETS.iter().all(|target| encodable.contains(target)));
}

/// Found by fuzzing: fragments of what is not Pixel Data.
#[test]
fn fragments_of_what_is_not_pixel_data_are_an_error() {
    let dataset = b"\xE1\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";
    let to = |target| code_of(change(dataset, RLE, target, 1));
    for target in TARGETS {
        assert_eq!(to(target), "frames", "{target}");
    }
}

/// Found by fuzzing: a time where the data dictionary has a sequence.
#[test]
fn a_vr_that_implicit_vr_cannot_express_is_an_error() {
    let tag = b"\x08\x00\x10\x11";
    for (vr, value, code) in [
        (b"TM", &b"140815"[..], "attribute"),
        (b"UN", &b"140815"[..], "attribute"),
        (b"UN", &b"\xFE\xFF\x00\xE0\0\0\0\0"[..], "none"),
        (b"SQ", &b"\xFE\xFF\x00\xE0\0\0\0\0"[..], "none"),
    ] {
        let mut dataset = [tag.as_slice(), vr].concat();
        if vr == b"TM" {
            dataset.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
        } else {
            dataset.extend_from_slice(&[0, 0]);
            dataset.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        }
        dataset.extend_from_slice(value);
        let outcome = change(&dataset, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", 1);
        assert_eq!(code_of(outcome), code, "{vr:?}");
    }
}
