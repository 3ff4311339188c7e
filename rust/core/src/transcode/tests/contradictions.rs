//! What a frame and its data set do not agree on: where readers would not, either, it is refused.

use super::*;

/// A data set with an element changed for another one, as they are written.
fn with(dataset: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = dataset
        .windows(old.len())
        .position(|window| window == old)
        .unwrap();
    [&dataset[..at], new, &dataset[at + old.len()..]].concat()
}

fn us(tag: (u16, u16), value: u16) -> Vec<u8> {
    short(tag, b"US", &value.to_le_bytes())
}

/// A made image of 12 bits stored in 16, said to have so many stored, up to this bit, and to be signed or not.
fn said_to_be(dataset: &[u8], stored: u16, high_bit: u16, signed: bool) -> Vec<u8> {
    let said_of_sign = [us((0x0028, 0x0103), 0), us((0x0028, 0x0103), 1)];
    let [no, yes] = &said_of_sign;
    let is_signed = dataset.windows(yes.len()).any(|window| window == yes);
    let dataset = with(dataset, &us((0x0028, 0x0101), 12), &us((0x0028, 0x0101), stored));
    let dataset = with(
        &dataset,
        &us((0x0028, 0x0102), 11),
        &us((0x0028, 0x0102), high_bit),
    );
    with(
        &dataset,
        if is_signed { yes } else { no },
        &said_of_sign[usize::from(signed)],
    )
}

#[test]
fn samples_that_could_be_a_sign_or_not_or_lie_elsewhere_are_refused() {
    for made_signed in [false, true] {
        let image = Made {
            signed: made_signed,
            ..Made::small()
        };
        let dataset = image.dataset(&image.pixels(3, true));
        for target in [JPEG_LS, JPEG_2000, "1.2.840.10008.1.2.4.201"] {
            let there = change(&dataset, EXPLICIT, target, 1).unwrap();
            let read = |stored, high_bit, signed| {
                code_of(change(
                    &said_to_be(&there, stored, high_bit, signed),
                    target,
                    EXPLICIT,
                    1,
                ))
            };
            // JPEG-LS takes a negative sample as a pattern of 16 bits, which hide nothing.
            let whole = made_signed && target == JPEG_LS;
            let refused = if whole { "none" } else { "codec" };
            assert_eq!(read(12, 11, made_signed), "none", "{target}");
            assert_eq!(read(12, 11, !made_signed), "none", "{target}");
            // By the frame, 0x800 is the sign; by the data set it is not.
            assert_eq!(
                read(16, 15, true),
                if target == JPEG_LS || !made_signed {
                    refused
                } else {
                    "none"
                }
            );
            // 12 bits above four others, of which the frame has none.
            assert_eq!(read(12, 15, made_signed), refused, "{target}");
            assert_eq!(read(12, 99, made_signed), "codec", "{target}");
        }
        // Whole cells.
        let there = change(&dataset, EXPLICIT, RLE, 1).unwrap();
        let read = change(&said_to_be(&there, 12, 15, made_signed), RLE, EXPLICIT, 1).unwrap();
        assert_eq!(pixels_of(&read), pixels_of(&dataset));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn bits_that_are_not_stored_come_back_too(
        cells in prop::collection::vec(any::<u16>(), 20), outside in any::<bool>(), signed in any::<bool>(),
        stored in 1u16..=16, above in prop_oneof![Just(0), 1u16..16],
    ) {
        let high_bit = (stored - 1 + above).min(15);
        let mask = if outside { u16::MAX } else { u16::MAX >> (16 - stored) };
        let image = Made { signed, frames: 1, ..Made::small() };
        let pixels: Vec<u8> = cells.iter().flat_map(|cell| (cell & mask).to_le_bytes()).collect();
        let dataset = said_to_be(&image.dataset(&pixels), stored, high_bit, signed);
        for target in TARGETS {
            let there = change(&dataset, EXPLICIT, target, 1).unwrap();
            let back = change(&there, target, EXPLICIT, 1).unwrap();
            prop_assert_eq!(pixels_of(&back), &pixels[..], "{}", target);
        }
    }
}

#[test]
fn frames_that_the_data_set_does_not_count_are_not_lost() {
    let image = Made::small();
    let dataset = image.dataset(&image.pixels(3, true));
    let of_one = |dataset: &[u8]| {
        with(
            dataset,
            &short((0x0028, 0x0008), b"IS", b"3   "),
            &short((0x0028, 0x0008), b"IS", b"1   "),
        )
    };
    for target in [RLE, JPEG_LS, JPEG_2000] {
        let there = change(&dataset, EXPLICIT, target, 1).unwrap();
        assert_eq!(
            code_of(change(&of_one(&there), target, EXPLICIT, 1)),
            "frames",
            "{target}"
        );
        assert_eq!(
            code_of(change(&of_one(&dataset), EXPLICIT, target, 1)),
            "frames",
            "{target}"
        );
    }
    let one = Made {
        frames: 1,
        ..Made::small()
    };
    let pixels = one.pixels(3, true);
    let padded = |padding: &[u8]| change(&one.dataset(&[&pixels[..], padding].concat()), EXPLICIT, RLE, 1);
    let unpadded = padded(b"").unwrap();
    assert_eq!(padded(&[0; 30]).unwrap(), unpadded);
    assert_eq!(code_of(padded(b"\0\0\0\x01")), "frames");
    assert_eq!(code_of(padded(&vec![0; pixels.len()])), "frames");
    // Native to native, all of it stays.
    let converted = change(&of_one(&dataset), EXPLICIT, IMPLICIT, 1).unwrap();
    assert!(converted.ends_with(pixels_of(&dataset)));
}

#[test]
fn a_name_of_subsampled_colour_is_not_that_of_all_samples() {
    let image = Made {
        samples: 3,
        allocated: 8,
        stored: 8,
        ..Made::small()
    };
    let dataset = image.dataset(&image.pixels(3, true));
    let photometric = |value: &[u8]| short((0x0028, 0x0004), b"CS", &even(value, b' '));
    let said_to_be =
        |dataset: &[u8], old: &[u8], new: &[u8]| with(dataset, &photometric(old), &photometric(new));
    for (source, old) in [(RLE, &b"RGB"[..]), (JPEG_LS, b"RGB"), (JPEG_2000, b"YBR_RCT")] {
        let there = change(&dataset, EXPLICIT, source, 1).unwrap();
        let subsampled = said_to_be(&there, old, b"YBR_FULL_422");
        for target in [EXPLICIT, RLE, JPEG_LS] {
            let full = change(&subsampled, source, target, 1).unwrap();
            let expected = change(&said_to_be(&there, old, b"YBR_FULL"), source, target, 1).unwrap();
            assert_eq!(full, expected, "{source} to {target}");
            assert!(full.windows(10).any(|ten| ten == b"CS\x08\0YBR_FU"));
        }
        for partial in [&b"YBR_PARTIAL_422"[..], b"YBR_PARTIAL_420"] {
            let partial = said_to_be(&there, old, partial);
            assert_eq!(
                code_of(change(&partial, source, EXPLICIT, 1)),
                "attribute",
                "{source}"
            );
        }
    }
}
