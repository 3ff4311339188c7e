//! Marker segments of JPEG and JPEG-LS frames (ISO/IEC 10918-1 Annex B, ISO/IEC 14495-1 Annex C).
//!
//! Application segments and comments tell nothing of the samples. Damage in them, and between segments, is passed over as
//! other decoders do; damage in what the samples need is an error.

use crate::CodecError;

pub(crate) const SOI: u8 = 0xD8;
pub(crate) const EOI: u8 = 0xD9;
pub(crate) const SOS: u8 = 0xDA;
pub(crate) const DNL: u8 = 0xDC;
pub(crate) const DRI: u8 = 0xDD;
pub(crate) const APP0: u8 = 0xE0;
pub(crate) const APP8: u8 = 0xE8;
pub(crate) const APP14: u8 = 0xEE;
const APP15: u8 = 0xEF;
const COM: u8 = 0xFE;
/// ISO/IEC 14495-1: start of frame, which tells JPEG-LS from JPEG.
pub(crate) const SOF55: u8 = 0xF7;
pub(crate) const END_OF_IMAGE: [u8; 2] = [0xFF, EOI];

/// A marker with what follows its length.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'f> {
    pub(crate) marker: u8,
    pub(crate) body: &'f [u8],
    /// From the marker on.
    pub(crate) whole: &'f [u8],
    /// Where it begins in the frame.
    pub(crate) begin: usize,
}

impl Segment<'_> {
    /// Whether the samples are the same without it.
    pub(crate) fn is_metadata(&self) -> bool {
        is_metadata(self.marker)
    }
}

fn is_metadata(marker: u8) -> bool {
    matches!(marker, APP0..=APP15 | COM)
}

/// Where the next marker is. ISO/IEC 10918-1 B.1.1.2: any number of fill bytes FF may stand before it. Other bytes are junk.
fn place_of_marker(frame: &[u8], at: usize) -> Option<usize> {
    let is_marker = |two: &[u8]| two[0] == 0xFF && !matches!(two[1], 0 | 0xFF);
    Some(at + frame.get(at..)?.windows(2).position(is_marker)?)
}

fn marker_behind(frame: &[u8], at: usize) -> Option<u8> {
    frame.get(place_of_marker(frame, at)? + 1).copied()
}

/// The segment that begins at a place, or behind it.
fn segment_at(frame: &[u8], at: usize) -> Option<Segment<'_>> {
    let begin = place_of_marker(frame, at)?;
    let &[_, marker, high, low] = frame.get(begin..)?.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // The length counts its own two bytes.
    let length = if is_metadata(marker) {
        length.max(2)
    } else {
        length
    };
    Some(Segment {
        marker,
        body: frame.get(begin + 4..begin + 2 + length)?,
        whole: frame.get(begin..begin + 2 + length)?,
        begin,
    })
}

/// The marker segments up to the first scan, that of the scan included.
pub(crate) fn segments<'f>(
    codec: &'static str,
    frame: &'f [u8],
) -> impl Iterator<Item = Result<Segment<'f>, CodecError>> + 'f {
    let mut at = 2;
    let mut over = !frame.starts_with(&[0xFF, SOI]);
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let found = segment_at(frame, at).filter(|segment| !matches!(segment.marker, SOI | EOI));
        over = found.is_none_or(|segment| segment.marker == SOS);
        if let Some(segment) = found {
            at = segment.begin + segment.whole.len();
        }
        Some(found.ok_or_else(|| CodecError::damaged(codec, "the header is cut short")))
    })
}

/// The marker of the frame header, as far as it is there.
pub(crate) fn start_of_frame(frame: &[u8]) -> Option<u8> {
    segments("", frame)
        .map_while(Result::ok)
        .map(|segment| segment.marker)
        .find(|&marker| marker == SOF55 || is_start_of_frame(marker))
}

/// ISO/IEC 10918-1 Table B.1: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC).
pub(crate) fn is_start_of_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// What follows the header.
pub(crate) struct Scans<'f> {
    pub(crate) parts: Vec<Part<'f>>,
    /// Whether the end of the image is there.
    pub(crate) is_ended: bool,
}

pub(crate) enum Part<'f> {
    Segment(Segment<'f>),
    /// The samples of a scan, restart markers among them.
    Entropy(&'f [u8]),
}

/// What follows from the first scan's segment on, up to the end of the image or of the bytes. `least`: the lowest byte that makes
/// a marker of the FF before it.
pub(crate) fn scans(frame: &[u8], first: usize, least: u8) -> Scans<'_> {
    let mut parts = Vec::new();
    let mut at = first;
    loop {
        let Some(segment) = segment_at(frame, at) else {
            let is_ended = marker_behind(frame, at) == Some(EOI);
            return Scans { parts, is_ended };
        };
        if segment.marker == EOI {
            let is_ended = true;
            return Scans { parts, is_ended };
        }
        at = segment.begin + segment.whole.len();
        parts.push(Part::Segment(segment));
        if segment.marker == SOS {
            let rest = frame.get(at..).unwrap_or_default();
            let is_marker =
                |two: &[u8]| two[0] == 0xFF && two[1] >= least && !matches!(two[1], 0xD0..=0xD7 | 0xFF);
            let length = rest.windows(2).position(is_marker).unwrap_or(rest.len());
            parts.push(Part::Entropy(&rest[..length]));
            at += length;
        }
    }
}

/// What is left of zeros and fill bytes FF behind entropy-coded bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Padding {
    All,
    /// As many zeros, and FF 00, which is a byte FF of the samples.
    Zeros(usize),
    None,
}

/// Entropy-coded bytes as they might be without what some encoders put behind them.
pub(crate) fn trimmed(entropy: &[u8], padding: Padding) -> &[u8] {
    let without = entropy
        .iter()
        .rposition(|&byte| !matches!(byte, 0 | 0xFF))
        .map_or(0, |last| last + 1);
    let end = match padding {
        Padding::All => entropy.len(),
        Padding::Zeros(zeros) if entropy.get(without..without + 2) == Some(&[0xFF, 0]) => without + 2 + zeros,
        Padding::Zeros(zeros) => without + zeros,
        Padding::None => without,
    };
    &entropy[..entropy.len().min(end)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn markers(frame: &[u8]) -> Option<Vec<(u8, usize)>> {
        segments("test", frame)
            .map(|segment| segment.ok().map(|segment| (segment.marker, segment.body.len())))
            .collect()
    }

    #[test]
    fn damage_in_and_behind_metadata_is_passed_over() {
        for (metadata, body) in [
            (&b"\xFF\xE1\x00\x04ab"[..], 2),
            (b"\xFF\xE1\x00\x00", 0),
            (b"\xFF\xE1\x00\x01", 0),
            (b"\xFF\xE1\x00\x03abcd", 1),
            (b"\xFF\xE1\x00\x04ab\x00\x00\x00", 2),
            (b"\xFF\xFF\xFF\xE1\x00\x04ab\xFF\xFF", 2),
        ] {
            let frame = [b"\xFF\xD8", metadata, b"\xFF\xDB\x00\x03c\xFF\xDA\x00\x02more"].concat();
            let expected = [(0xE1, body), (0xDB, 1), (SOS, 0)];
            assert_eq!(markers(&frame).unwrap(), expected, "{metadata:?}");
        }
    }

    #[test]
    fn a_header_that_does_not_come_to_a_scan_is_an_error() {
        for rest in [
            &b""[..],
            b"\xFF\xE1\x00\x09ab",
            b"\xFF\xDB\x00\x00\xFF\xDA\x00\x02",
            b"\xFF\xD8\xFF\xDA\x00\x02",
            b"\xFF\xD9\x00\x02\xFF\xDA\x00\x02",
        ] {
            assert_eq!(markers(&[b"\xFF\xD8", rest].concat()), None, "{rest:?}");
        }
    }

    #[test]
    fn scans_end_at_a_marker_that_is_none_of_theirs() {
        let frame =
            b"\xFF\xDA\x00\x02ab\xFF\x00c\xFF\xD3d\xFF\xFE\x00\x02\xFF\xDA\x00\x02e\xFF\xFF\xFF\xD9more";
        let entropy = |frame: &[u8], least| {
            let scans = scans(frame, 0, least);
            let parts = scans.parts.iter().filter_map(|part| match part {
                Part::Entropy(entropy) => Some(entropy.to_vec()),
                Part::Segment(_) => None,
            });
            (parts.collect::<Vec<_>>(), scans.is_ended)
        };
        let expected = vec![b"ab\xFF\x00c\xFF\xD3d".to_vec(), b"e\xFF\xFF".to_vec()];
        assert_eq!(entropy(frame, 1), (expected.clone(), true));
        assert_eq!(entropy(frame, 0x80), (expected, true));
        assert_eq!(
            entropy(b"\xFF\xDA\x00\x02a\xFF\x7Fb", 0x80),
            (vec![b"a\xFF\x7Fb".to_vec()], false)
        );
    }

    #[test]
    fn only_as_much_padding_is_left_as_is_asked_for() {
        use Padding::{All, None, Zeros};
        for (entropy, padding, expected) in [
            (&b"ab\0\0\0"[..], Zeros(0), &b"ab"[..]),
            (b"ab\0\0\0", Zeros(1), b"ab\0"),
            (b"ab\0\0\0", Zeros(9), b"ab\0\0\0"),
            (b"ab\0\0\0", All, b"ab\0\0\0"),
            (b"ab\0\0\0", None, b"ab"),
            (b"ab\xFF\xFF", Zeros(0), b"ab"),
            (b"ab\xFF\0", Zeros(0), b"ab\xFF\0"),
            (b"ab\xFF\0\0\0", Zeros(0), b"ab\xFF\0"),
            (b"ab\xFF\0\0\0", None, b"ab"),
            (b"\0\0", None, b""),
            (b"", Zeros(1), b""),
        ] {
            assert_eq!(trimmed(entropy, padding), expected, "{entropy:?} {padding:?}");
        }
    }

    proptest! {
        #[test]
        fn junk_is_never_a_panic(frame in prop::collection::vec(any::<u8>(), 0..200), least in 1u8..=0x80) {
            let _ = markers(&[&[0xFF, SOI], frame.as_slice()].concat());
            let _ = start_of_frame(&frame);
            for part in scans(&frame, 0, least).parts {
                if let Part::Entropy(entropy) = part {
                    let _ = trimmed(entropy, Padding::Zeros(1));
                }
            }
        }
    }
}
