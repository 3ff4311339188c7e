//! The elements of a data set that lies in memory, one token after the other.
//!
//! For data sets that [`super::scan`] has accepted. Like the scan it keeps an explicit stack and checks every length.

use std::ops::Range;

use dicom_core::{Tag, VR};

use super::header::{
    dictionary_says_sequence, holds_fragments, Header, ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION,
    UNDEFINED,
};
use super::scan::ScanError;
use crate::transfer_syntax::Encoding;

/// Deeper than any configured limit of the scan.
const DEEPEST: usize = 1024;

/// One step through a data set. Ranges are bytes of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// An element with a value.
    Element {
        tag: Tag,
        vr: Option<VR>,
        value: Range<usize>,
    },
    /// A sequence begins.
    Sequence { tag: Tag },
    /// An item of a sequence begins.
    Item,
    /// The item ends.
    ItemEnd,
    /// The sequence ends.
    SequenceEnd,
    /// Encapsulated pixel data begin.
    Fragments { tag: Tag, vr: Option<VR> },
    /// One of their items.
    Fragment(Range<usize>),
    /// They end.
    FragmentsEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sequence,
    Item,
    Fragments,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    kind: Kind,
    encoding: Encoding,
    end: Option<usize>,
}

/// Yields the tokens of a data set.
#[derive(Debug)]
pub(crate) struct Walk<'d> {
    dataset: &'d [u8],
    encoding: Encoding,
    at: usize,
    open: Vec<Open>,
}

impl<'d> Walk<'d> {
    pub(crate) fn new(dataset: &'d [u8], encoding: Encoding) -> Self {
        Self {
            dataset,
            encoding,
            at: 0,
            open: Vec::new(),
        }
    }

    /// Where the next token begins.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Sequences, items and fragments that are open.
    pub(crate) fn depth(&self) -> usize {
        self.open.len()
    }

    /// How what comes next is encoded.
    pub(crate) fn encoding(&self) -> Encoding {
        self.open.last().map_or(self.encoding, |open| open.encoding)
    }

    /// The next token; none at the end.
    ///
    /// # Errors
    /// [`ScanError`]; not for what the scan has accepted.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, ScanError> {
        let top = self.open.last().copied();
        if let Some(open) = top {
            match open.end {
                Some(end) if end == self.at => return Ok(Some(self.close(open.kind))),
                Some(end) if end < self.at => return Err(ScanError::BeyondContainer),
                _ => {}
            }
        }
        let rest = self.dataset.get(self.at..).unwrap_or_default();
        if rest.is_empty() || (top.is_none() && rest == [0]) {
            return if top.is_none() {
                Ok(None)
            } else {
                Err(ScanError::Truncated)
            };
        }
        let encoding = top.map_or(self.encoding, |open| open.encoding);
        let Header::Element {
            tag,
            vr,
            length,
            size,
            encoding,
        } = Header::parse(rest, encoding)
        else {
            return Err(ScanError::Truncated);
        };
        let value_at = self.at + size;
        match (top.map(|open| open.kind), tag) {
            (Some(Kind::Fragments | Kind::Sequence), SEQUENCE_DELIMITATION)
            | (Some(Kind::Item), ITEM_DELIMITATION) => {
                self.at = value_at;
                Ok(top.map(|open| self.close(open.kind)))
            }
            (Some(Kind::Fragments), ITEM) => {
                let value = self.value(value_at, length)?;
                self.at = value.end;
                Ok(Some(Token::Fragment(value)))
            }
            (Some(Kind::Sequence), ITEM) => {
                self.at = value_at;
                self.push(Kind::Item, encoding, length)?;
                Ok(Some(Token::Item))
            }
            (None | Some(Kind::Item), _) if tag.0 != 0xFFFE => {
                self.element(tag, vr, length, value_at, encoding)
            }
            _ => Err(ScanError::ItemStructure),
        }
    }

    fn element(
        &mut self,
        tag: Tag,
        vr: Option<VR>,
        length: u32,
        value_at: usize,
        encoding: Encoding,
    ) -> Result<Option<Token>, ScanError> {
        if length == UNDEFINED {
            self.at = value_at;
            if holds_fragments(tag, vr) {
                self.push(Kind::Fragments, encoding, length)?;
                return Ok(Some(Token::Fragments { tag, vr }));
            }
            // PS3.5 6.2.2 note 2: the value of such a UN is an Implicit VR Little Endian sequence.
            let inside = if vr == Some(VR::UN) {
                Encoding::IMPLICIT_LITTLE
            } else {
                encoding
            };
            self.push(Kind::Sequence, inside, length)?;
            return Ok(Some(Token::Sequence { tag }));
        }
        if vr == Some(VR::SQ) || (vr.is_none() && dictionary_says_sequence(tag)) {
            self.at = value_at;
            self.push(Kind::Sequence, encoding, length)?;
            return Ok(Some(Token::Sequence { tag }));
        }
        let value = self.value(value_at, length)?;
        self.at = value.end;
        Ok(Some(Token::Element { tag, vr, value }))
    }

    fn value(&self, at: usize, length: u32) -> Result<Range<usize>, ScanError> {
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| at.checked_add(length))
            .filter(|&end| end <= self.dataset.len())
            .ok_or(ScanError::Truncated)?;
        Ok(at..end)
    }

    fn push(&mut self, kind: Kind, encoding: Encoding, length: u32) -> Result<(), ScanError> {
        if self.open.len() >= DEEPEST {
            return Err(ScanError::Nesting);
        }
        let end = if length == UNDEFINED {
            None
        } else {
            Some(self.value(self.at, length)?.end)
        };
        self.open.push(Open { kind, encoding, end });
        Ok(())
    }

    fn close(&mut self, kind: Kind) -> Token {
        self.open.pop();
        match kind {
            Kind::Sequence => Token::SequenceEnd,
            Kind::Item => Token::ItemEnd,
            Kind::Fragments => Token::FragmentsEnd,
        }
    }
}

/// An element at the top of a data set, with everything inside it.
#[derive(Clone, Debug)]
pub(crate) struct TopLevel {
    pub(crate) tag: Tag,
    pub(crate) vr: Option<VR>,
    /// The whole element, from its tag to its last delimiter.
    pub(crate) whole: Range<usize>,
    /// The value of an element that is neither a sequence nor encapsulated.
    pub(crate) value: Option<Range<usize>>,
    /// Whether it is encapsulated pixel data itself.
    pub(crate) is_encapsulated: bool,
    /// The items of encapsulated pixel data, the offset table first.
    pub(crate) fragments: Vec<Range<usize>>,
    /// Whether encapsulated pixel data lie in an item of it, at any depth.
    pub(crate) holds_encapsulated: bool,
}

/// The next element at the top of a data set.
///
/// # Errors
/// As [`Walk::next`].
pub(crate) fn next_top_level(walk: &mut Walk<'_>) -> Result<Option<TopLevel>, ScanError> {
    let begin = walk.position();
    let Some(token) = walk.next()? else {
        return Ok(None);
    };
    let (tag, vr, value) = match &token {
        Token::Element { tag, vr, value } => (*tag, *vr, Some(value.clone())),
        Token::Sequence { tag } => (*tag, Some(VR::SQ), None),
        Token::Fragments { tag, vr } => (*tag, *vr, None),
        _ => return Err(ScanError::ItemStructure),
    };
    let mut element = TopLevel {
        tag,
        vr,
        whole: begin..walk.position(),
        value,
        is_encapsulated: matches!(token, Token::Fragments { .. }),
        fragments: Vec::new(),
        holds_encapsulated: false,
    };
    while walk.depth() > 0 {
        match walk.next()? {
            Some(Token::Fragment(range)) if walk.depth() == 1 => element.fragments.push(range),
            Some(Token::Fragments { .. }) => element.holds_encapsulated = true,
            Some(_) => {}
            None => return Err(ScanError::Truncated),
        }
    }
    element.whole.end = walk.position();
    Ok(Some(element))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPLICIT: Encoding = Encoding::EXPLICIT_LITTLE;

    fn element(tag: (u16, u16), vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        out.extend_from_slice(vr);
        out.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn top_level_elements_cover_the_data_set_without_gaps() {
        let inner = element((0x0008, 0x0060), b"CS", b"CT");
        let mut dataset = element((0x0008, 0x0005), b"CS", b"ISO_IR 6");
        dataset.extend_from_slice(b"\x08\x00\x15\x11SQ\0\0\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\xFF\xFF\xFF\xFF");
        dataset.extend_from_slice(&inner);
        dataset.extend_from_slice(b"\xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0");
        dataset.extend_from_slice(&element((0x0010, 0x0020), b"LO", b"P1"));
        dataset.extend_from_slice(b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\0\0\0\0");
        dataset.extend_from_slice(b"\xFE\xFF\x00\xE0\x02\0\0\0ab\xFE\xFF\xDD\xE0\0\0\0\0");
        let mut walk = Walk::new(&dataset, EXPLICIT);
        let mut end = 0;
        let mut tags = Vec::new();
        while let Some(found) = next_top_level(&mut walk).unwrap() {
            assert_eq!(found.whole.start, end);
            end = found.whole.end;
            tags.push(found.tag);
            if found.tag == Tag(0x7FE0, 0x0010) {
                let values: Vec<&[u8]> = found
                    .fragments
                    .iter()
                    .map(|range| &dataset[range.clone()])
                    .collect();
                assert_eq!(values, [&b""[..], b"ab"]);
            }
        }
        assert_eq!(end, dataset.len());
        assert_eq!(tags.len(), 4);
    }

    #[test]
    fn what_is_cut_short_is_an_error_everywhere() {
        let dataset = [
            element((0x0008, 0x0005), b"CS", b"ISO_IR 6"),
            b"\x08\x00\x15\x11SQ\0\0\x08\0\0\0\xFE\xFF\x00\xE0\0\0\0\0".to_vec(),
        ]
        .concat();
        let whole = |bytes: &[u8]| {
            let mut walk = Walk::new(bytes, EXPLICIT);
            while next_top_level(&mut walk)?.is_some() {}
            Ok::<_, ScanError>(())
        };
        whole(&dataset).unwrap();
        for end in 1..dataset.len() {
            assert_eq!(whole(&dataset[..end]).is_err(), end != 16, "{end}");
        }
    }
}
