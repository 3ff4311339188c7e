//! Images in items.

use super::*;

const ITEM: &[u8] = b"\xFE\xFF\x00\xE0";
const ITEM_END: &[u8] = b"\xFE\xFF\x0D\xE0\0\0\0\0";
const SEQUENCE_END: &[u8] = b"\xFE\xFF\xDD\xE0\0\0\0\0";
const UNDEFINED: &[u8] = &[0xFF; 4];
const ICONS: &[u8] = b"\x88\x00\x00\x02";
const REFERENCED: &[u8] = b"\x08\x00\x40\x11";

fn length(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap().to_le_bytes()
}

/// A sequence of one item, with their lengths or without.
fn sequence(tag: &[u8], content: &[u8], with_lengths: bool) -> Vec<u8> {
    let (item, sequence) = (length(content.len()), length(content.len() + 8));
    if with_lengths {
        [tag, b"SQ\0\0", &sequence, ITEM, &item, content].concat()
    } else {
        let end = [ITEM_END, SEQUENCE_END].concat();
        [tag, b"SQ\0\0", UNDEFINED, ITEM, UNDEFINED, content, &end].concat()
    }
}

fn icon() -> Made {
    Made {
        frames: 1,
        ..Made::small()
    }
}

/// Native, and compressed.
fn both(image: &Made, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let native = image.dataset(&image.pixels(seed, true));
    let compressed = change(&native, EXPLICIT, RLE, 1).unwrap();
    (native, compressed)
}

/// An element before the first one of group 0028 of an image.
fn with(element: &[u8], image: &[u8]) -> Vec<u8> {
    let at = image.windows(4).position(|four| four == [0x28, 0, 2, 0]).unwrap();
    [&image[..at], element, &image[at..]].concat()
}

#[test]
fn icons_are_native_at_every_depth_and_nothing_else_changes() {
    let (native, compressed) = both(&Made::small(), 3);
    let (mut after, mut before) = both(&icon(), 4);
    for depth in 0..40 {
        let tag = if depth == 0 { ICONS } else { REFERENCED };
        (before, after) = (
            sequence(tag, &before, depth % 2 == 0),
            sequence(tag, &after, false),
        );
        let result = change(&with(&before, &compressed), RLE, EXPLICIT, 1).unwrap();
        assert_eq!(result, with(&after, &native), "{depth}");
    }
    // In a compressed result as well.
    let result = change(&with(&before, &compressed), RLE, JPEG_LS, 1).unwrap();
    let main = change(&compressed, RLE, JPEG_LS, 1).unwrap();
    assert_eq!(result, with(&after, &main));
}

#[test]
fn a_group_length_that_would_be_wrong_goes_and_others_stay() {
    let (native, compressed) = both(&Made::small(), 3);
    let (after, before) = both(&icon(), 4);
    let group = |number: u16| short((number, 0), b"UL", &[9, 0, 0, 0]);
    let wrong = [group(0x0028), before].concat();
    let other = group(0x0010);
    let icons = [other.clone(), group(0x0088), sequence(ICONS, &wrong, true)].concat();
    let expected = [other.clone(), sequence(ICONS, &after, false)].concat();
    let result = change(&with(&icons, &compressed), RLE, EXPLICIT, 1).unwrap();
    assert_eq!(result, with(&expected, &native));
    let around = sequence(REFERENCED, &icons, true);
    let result = change(&with(&around, &compressed), RLE, EXPLICIT, 1).unwrap();
    assert_eq!(result, with(&sequence(REFERENCED, &expected, false), &native));
}

#[test]
fn one_image_that_cannot_be_decoded_costs_the_result() {
    let (_, compressed) = both(&Made::small(), 3);
    let (native, good) = both(&icon(), 4);
    let damaged = &icon().encapsulated(&[Vec::new(), vec![1; 64]]);
    let pixel_data = b"\xE0\x7F\x10\x00OB";
    let at = good.windows(6).position(|six| six == pixel_data).unwrap();
    for (content, code) in [(damaged.as_slice(), "codec"), (&good[at..], "attribute")] {
        for target in TARGETS.into_iter().filter(|&target| target != RLE) {
            let icons = sequence(ICONS, content, true);
            assert_eq!(code_of(change(&with(&icons, &compressed), RLE, target, 1)), code);
        }
    }
    // Native ones cost nothing.
    let icons = sequence(ICONS, &native, true);
    assert_eq!(
        code_of(change(&with(&icons, &compressed), RLE, EXPLICIT, 1)),
        "none"
    );
}

#[test]
fn encapsulated_pixels_in_a_native_syntax_are_an_error() {
    let (native, compressed) = both(&Made::small(), 3);
    let icons = sequence(ICONS, &both(&icon(), 4).1, true);
    for target in TARGETS {
        for dataset in [&compressed, &with(&icons, &native)] {
            assert_eq!(
                code_of(change(dataset, EXPLICIT, target, 1)),
                "frames",
                "{target}"
            );
        }
    }
}
