//! A small picture of an instance, for people who watch the service. Never for diagnosis.

use std::borrow::Cow;
use std::fs::File;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use storescp_codecs::mapping::Mapping;
use storescp_codecs::Geometry;

use super::image::Image;
use super::rewrite::Pixels;
use super::{inflate, TranscodeError};
use crate::dataset::walk::{next_top_level, Walk};
use crate::file_meta;
use crate::transfer_syntax::{is_deflated, Encoding};

/// Of so many grey values at either end of the histogram no notice is taken, where the image has no window.
const OUTLIERS_PER_MILLE: usize = 5;

/// [`thumbnail`] of a PS3.10 file of ours. The process may be ended by the system where somebody cuts the file meanwhile: it is
/// one of its own.
///
/// # Errors
/// As [`thumbnail`].
pub fn thumbnail_of(file: &File, edge: u16, max_frame_bytes: u64) -> Result<Vec<u8>, TranscodeError> {
    const HEAD_BYTES: usize = 1 << 16;
    let file = Mapping::of(file)?;
    let bytes = file.as_ref();
    let meta = file_meta::decode(bytes.get(..HEAD_BYTES).unwrap_or(bytes))
        .ok_or(TranscodeError::Attribute("not a PS3.10 file"))?;
    let dataset = bytes.get(meta.dataset_at..).unwrap_or_default();
    thumbnail(dataset, &meta.transfer_syntax, edge, max_frame_bytes)
}

/// The middle frame of a data set as PNG: grey or RGB, at most `edge` pixels wide and high. Grey is shown with the first
/// window of the image (PS3.3 C.11.2.1.2), else with one that fits its values.
///
/// # Errors
/// [`TranscodeError`]: no image, no codec, damage, or a frame of more than `max_frame_bytes`.
pub fn thumbnail(
    dataset: &[u8],
    transfer_syntax: &str,
    edge: u16,
    max_frame_bytes: u64,
) -> Result<Vec<u8>, TranscodeError> {
    let dataset = if is_deflated(transfer_syntax) {
        Cow::Owned(inflate(dataset, max_frame_bytes)?)
    } else {
        Cow::Borrowed(dataset)
    };
    let encoding = Encoding::of(transfer_syntax);
    let image = Image::read(&dataset, encoding)?;
    let pixel_data = image
        .pixel_data
        .as_ref()
        .ok_or(TranscodeError::Attribute("no Pixel Data"))?;
    if image.geometry()?.frame_bytes() as u64 > max_frame_bytes {
        return Err(TranscodeError::TooLarge("a picture may need"));
    }
    let pixels = Pixels::to_look_at(&image, pixel_data, transfer_syntax)?;
    let geometry = pixels.native_geometry();
    let native = pixels.native_frame(pixels.count() / 2)?;
    let display = Display::read(&dataset, encoding)?;
    let grid = Grid::fitting(&geometry, edge);
    let samples = Samples {
        native: &native,
        geometry: &geometry,
    };
    let photometric = if geometry.rgb { "RGB" } else { image.photometric() };
    match (geometry.samples_per_pixel, photometric, display.palette()) {
        (1, "PALETTE COLOR", Some(palette)) => {
            let channels = palette.map(|lut| grid.reduce(|pixel| f64::from(lut.value(samples.at(pixel)))));
            grid.rgb(&channels)
        }
        (1, ..) => {
            #[allow(clippy::cast_precision_loss)] // for the eye
            let values = grid.reduce(|pixel| samples.at(pixel) as f64);
            grid.grey(&display.grey(&values, photometric == "MONOCHROME1"))
        }
        (count, ..) => {
            let shift = geometry.bits_stored.saturating_sub(8);
            let channel = |number| {
                grid.reduce(|pixel| {
                    let sample = samples.at(pixel * usize::from(count) + number) >> shift;
                    f64::from(u8::try_from(sample.clamp(0, 255)).unwrap_or(0))
                })
            };
            let mut channels = [channel(0), channel(1), channel(2)];
            if photometric.starts_with("YBR_FULL") || photometric.starts_with("YBR_PARTIAL") {
                to_rgb(&mut channels);
            }
            grid.rgb(&channels)
        }
    }
}

/// The samples of a native frame.
struct Samples<'s> {
    native: &'s [u8],
    geometry: &'s Geometry,
}

impl Samples<'_> {
    /// A sample; bits above Bits Stored may be anything, overlays for instance.
    fn at(&self, number: usize) -> i64 {
        let cell = |bytes: usize| {
            let cell = self
                .native
                .get(number * bytes..(number + 1) * bytes)
                .unwrap_or_default();
            cell.iter()
                .rev()
                .fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let raw = match self.geometry.bits_allocated {
            1 => u64::from(self.native.get(number / 8).copied().unwrap_or(0) >> (number % 8) & 1),
            bits => cell(usize::from(bits / 8)),
        };
        let unused = 64 - u32::from(self.geometry.bits_stored.clamp(1, 64));
        if self.geometry.signed {
            i64::from_ne_bytes((raw << unused).to_ne_bytes()) >> unused
        } else {
            i64::try_from(raw << unused >> unused).unwrap_or(i64::MAX)
        }
    }
}

/// The pixels of a picture, each of which stands for a rectangle of the frame.
struct Grid {
    frame: (usize, usize),
    picture: (usize, usize),
}

impl Grid {
    fn fitting(geometry: &Geometry, edge: u16) -> Self {
        let (columns, rows, edge) = (
            usize::from(geometry.columns),
            usize::from(geometry.rows),
            usize::from(edge.max(1)),
        );
        let longer = columns.max(rows).max(1);
        let scaled = |side: usize| {
            if longer <= edge {
                side
            } else {
                (side * edge / longer).max(1)
            }
        };
        Self {
            frame: (columns, rows),
            picture: (scaled(columns), scaled(rows)),
        }
    }

    /// The mean of each rectangle, row by row.
    fn reduce(&self, value: impl Fn(usize) -> f64) -> Vec<f64> {
        let ((columns, rows), (width, height)) = (self.frame, self.picture);
        let mut means = Vec::with_capacity(width * height);
        for y in 0..height {
            let of_rows = y * rows / height..(y + 1) * rows / height;
            for x in 0..width {
                let of_columns = x * columns / width..(x + 1) * columns / width;
                let count = of_rows.len() * of_columns.len();
                let sum: f64 = of_rows
                    .clone()
                    .flat_map(|row| of_columns.clone().map(move |column| row * columns + column))
                    .map(&value)
                    .sum();
                #[allow(clippy::cast_precision_loss)] // fewer than 2^32 pixels
                means.push(sum / count.max(1) as f64);
            }
        }
        means
    }

    fn grey(&self, values: &[f64]) -> Result<Vec<u8>, TranscodeError> {
        let bytes: Vec<u8> = values.iter().copied().map(byte).collect();
        self.png(png::ColorType::Grayscale, &bytes)
    }

    fn rgb(&self, [red, green, blue]: &[Vec<f64>; 3]) -> Result<Vec<u8>, TranscodeError> {
        let bytes: Vec<u8> = red
            .iter()
            .zip(green)
            .zip(blue)
            .flat_map(|((&red, &green), &blue)| [byte(red), byte(green), byte(blue)])
            .collect();
        self.png(png::ColorType::Rgb, &bytes)
    }

    fn png(&self, colour: png::ColorType, bytes: &[u8]) -> Result<Vec<u8>, TranscodeError> {
        let side = |side| u32::try_from(side).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, side(self.picture.0), side(self.picture.1));
        encoder.set_color(colour);
        encoder.set_depth(png::BitDepth::Eight);
        encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(bytes))
            .map_err(std::io::Error::other)?;
        Ok(out)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
fn byte(value: f64) -> u8 {
    value.clamp(0.0, 255.0).round() as u8
}

/// `YBR_FULL` to RGB (PS3.3 C.7.6.3.1.2).
fn to_rgb([first, second, third]: &mut [Vec<f64>; 3]) {
    for ((first, second), third) in first.iter_mut().zip(second).zip(third) {
        let (y, cb, cr) = (*first, *second - 128.0, *third - 128.0);
        *first = y + 1.402 * cr;
        *second = y - 0.344_136 * cb - 0.714_136 * cr;
        *third = y + 1.772 * cb;
    }
}

/// A look-up table of one colour (PS3.3 C.7.6.3.1.5).
struct Lut {
    first: i64,
    entries: Vec<u8>,
}

impl Lut {
    fn value(&self, index: i64) -> u8 {
        let last = self.entries.len().saturating_sub(1);
        let at = usize::try_from(index.saturating_sub(self.first))
            .unwrap_or(0)
            .min(last);
        self.entries.get(at).copied().unwrap_or(0)
    }
}

/// What a data set says of how it is to be shown.
#[derive(Default)]
struct Display {
    window: Option<(f64, f64)>,
    slope: f64,
    intercept: f64,
    luts: [Option<Lut>; 3],
}

impl Display {
    fn read(dataset: &[u8], encoding: Encoding) -> Result<Self, TranscodeError> {
        const DESCRIPTORS: [Tag; 3] = [
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
        ];
        const TABLES: [Tag; 3] = [
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        ];
        let words = |value: &[u8]| -> Vec<u16> {
            let pairs = value.chunks_exact(2);
            pairs
                .filter_map(|pair| pair.first_chunk())
                .map(|&pair| encoding.u16(pair))
                .collect()
        };
        let mut display = Self {
            slope: 1.0,
            ..Self::default()
        };
        let (mut centre, mut width) = (None, None);
        let mut descriptors: [Vec<u16>; 3] = Default::default();
        let mut walk = Walk::new(dataset, encoding);
        while let Some(element) = next_top_level(&mut walk)? {
            let Some(value) = element.value.clone().and_then(|range| dataset.get(range)) else {
                continue;
            };
            match element.tag {
                tags::WINDOW_CENTER => centre = number(value),
                tags::WINDOW_WIDTH => width = number(value),
                tags::RESCALE_SLOPE => display.slope = number(value).unwrap_or(1.0),
                tags::RESCALE_INTERCEPT => display.intercept = number(value).unwrap_or(0.0),
                tag => {
                    let place = |of: [Tag; 3]| of.iter().position(|&one| one == tag);
                    if let Some(descriptor) = place(DESCRIPTORS).and_then(|at| descriptors.get_mut(at)) {
                        *descriptor = words(value);
                    }
                    if let Some(at) = place(TABLES) {
                        let descriptor = descriptors.get(at).map(Vec::as_slice).unwrap_or_default();
                        if let Some(lut) = display.luts.get_mut(at) {
                            *lut = table(descriptor, value, &words(value));
                        }
                    }
                }
            }
        }
        display.window = centre.zip(width.filter(|&width| width >= 1.0));
        Ok(display)
    }

    fn palette(&self) -> Option<[&Lut; 3]> {
        match &self.luts {
            [Some(red), Some(green), Some(blue)] => Some([red, green, blue]),
            _ => None,
        }
    }

    /// Values between 0 and 255.
    fn grey(&self, values: &[f64], inverted: bool) -> Vec<f64> {
        let rescaled: Vec<f64> = values
            .iter()
            .map(|value| value * self.slope + self.intercept)
            .collect();
        let (low, span) = match self.window {
            // PS3.3 C.11.2.1.2.1.
            Some((centre, width)) => (
                centre - 0.5 - (width - 1.0) / 2.0,
                (width - 1.0).max(f64::MIN_POSITIVE),
            ),
            None => range_of(&rescaled),
        };
        rescaled
            .iter()
            .map(|value| ((value - low) / span).clamp(0.0, 1.0) * 255.0)
            .map(|grey| if inverted { 255.0 - grey } else { grey })
            .collect()
    }
}

/// Where most values lie: the lowest, and how far the highest is from it.
fn range_of(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let left_out = sorted.len() * OUTLIERS_PER_MILLE / 1000;
    let at = |number: usize| sorted.get(number).copied().unwrap_or(0.0);
    let (low, high) = (at(left_out), at(sorted.len().saturating_sub(1 + left_out)));
    (low, (high - low).max(f64::MIN_POSITIVE))
}

/// The first value of a decimal string (PS3.5 6.2).
fn number(value: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(value).ok()?;
    let number: f64 = text.split('\\').next()?.trim_matches([' ', '\0']).parse().ok()?;
    number.is_finite().then_some(number)
}

/// Entries, first index and bits of an entry; 0 entries are 65536.
fn table(descriptor: &[u16], bytes: &[u8], words: &[u16]) -> Option<Lut> {
    let &[count, first, bits] = descriptor else {
        return None;
    };
    let count = if count == 0 { 65_536 } else { usize::from(count) };
    let entries: Vec<u8> = if bytes.len() < count * 2 {
        bytes.iter().copied().take(count).collect()
    } else {
        // Some files have eight bits in each word and say that there are sixteen.
        let wide = bits > 8 && words.iter().any(|&word| word > 255);
        let byte = |&word: &u16| {
            let [high, low] = word.to_be_bytes();
            if wide {
                high
            } else {
                low
            }
        };
        words.iter().take(count).map(byte).collect()
    };
    Some(Lut {
        first: i64::from(i16::from_ne_bytes(first.to_ne_bytes())),
        entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Explicit VR Little Endian.
    fn element(tag: Tag, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut bytes = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        bytes.extend_from_slice(vr);
        if matches!(vr, b"OB" | b"OW") {
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        } else {
            bytes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
        }
        bytes.extend_from_slice(value);
        bytes
    }

    fn us(tag: Tag, value: u16) -> Vec<u8> {
        element(tag, b"US", &value.to_le_bytes())
    }

    fn image(photometric: &str, samples: u16, bits: u16, more: &[Vec<u8>], pixels: &[u8]) -> Vec<u8> {
        let mut elements = vec![
            us(tags::SAMPLES_PER_PIXEL, samples),
            element(tags::PHOTOMETRIC_INTERPRETATION, b"CS", photometric.as_bytes()),
            us(tags::ROWS, 2),
            us(tags::COLUMNS, 2),
            us(tags::BITS_ALLOCATED, bits),
            us(tags::BITS_STORED, bits),
            us(tags::PIXEL_REPRESENTATION, 0),
        ];
        elements.extend_from_slice(more);
        elements.push(element(tags::PIXEL_DATA, b"OW", pixels));
        elements.concat()
    }

    fn picture(dataset: &[u8], edge: u16) -> (u32, u32, Vec<u8>) {
        let png = thumbnail(dataset, "1.2.840.10008.1.2.1", edge, 1 << 20).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        (info.width, info.height, bytes)
    }

    fn words(values: [u16; 4]) -> Vec<u8> {
        values.map(u16::to_le_bytes).concat()
    }

    #[test]
    fn grey_values_are_shown_by_the_window_of_the_image() {
        let window = [
            element(tags::WINDOW_CENTER, b"DS", b"50\\9 "),
            element(tags::WINDOW_WIDTH, b"DS", b"101 "),
            element(tags::RESCALE_INTERCEPT, b"DS", b"-1000 "),
        ];
        let pixels = words([0, 1000, 1050, 2000]);
        let (width, height, bytes) = picture(&image("MONOCHROME2 ", 1, 16, &window, &pixels), 16);
        assert_eq!((width, height), (2, 2));
        assert_eq!(bytes, [0, 1, 129, 255]);
        let inverted = picture(&image("MONOCHROME1 ", 1, 16, &window, &pixels), 16).2;
        assert_eq!(inverted, [255, 254, 126, 0]);
    }

    #[test]
    fn without_a_window_the_values_fill_the_range_and_a_picture_is_no_larger_than_asked() {
        let dataset = image("MONOCHROME2 ", 1, 16, &[], &words([100, 200, 300, 500]));
        assert_eq!(picture(&dataset, 2).2, [0, 64, 128, 255]);
        assert_eq!(picture(&dataset, 1).0, 1);
    }

    #[test]
    fn colours_come_from_samples_palettes_and_luminance() {
        let rgb = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9];
        assert_eq!(picture(&image("RGB ", 3, 8, &[], &rgb), 2).2, rgb);
        let ybr = [76, 85, 255, 150, 44, 21, 29, 255, 107, 9, 128, 128];
        let found = picture(&image("YBR_FULL", 3, 8, &[], &ybr), 2).2;
        assert!(
            found.iter().zip(rgb).all(|(&a, b)| a.abs_diff(b) <= 2),
            "{found:?}"
        );
        let descriptor = [3_u16, 0, 16].map(u16::to_le_bytes).concat();
        let lut = |high: [u8; 3]| high.iter().flat_map(|&byte| [0, byte]).collect::<Vec<u8>>();
        let palette = [
            element(
                tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                b"US",
                &descriptor,
            ),
            element(
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                b"US",
                &descriptor,
            ),
            element(
                tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
                b"US",
                &descriptor,
            ),
            element(tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA, b"OW", &lut([1, 2, 3])),
            element(
                tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
                b"OW",
                &lut([4, 5, 6]),
            ),
            element(tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA, b"OW", &lut([7, 8, 9])),
        ];
        let found = picture(&image("PALETTE COLOR ", 1, 8, &palette, &[0, 1, 2, 99]), 2).2;
        assert_eq!(found, [1, 4, 7, 2, 5, 8, 3, 6, 9, 3, 6, 9]);
    }

    #[test]
    fn what_has_no_picture_says_so() {
        let error = |dataset: &[u8], most| {
            thumbnail(dataset, "1.2.840.10008.1.2.1", 64, most)
                .unwrap_err()
                .code()
                .to_owned()
        };
        assert_eq!(error(&us(tags::ROWS, 2), 1 << 20), "attribute");
        let dataset = image("MONOCHROME2 ", 1, 16, &[], &words([1, 2, 3, 4]));
        assert_eq!(error(&dataset, 7), "too_large");
        assert_eq!(error(&dataset[..dataset.len() - 2], 1 << 20), "structure");
    }
}
