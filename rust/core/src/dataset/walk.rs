//! The elements of a data set that lies in memory, one token after the other.
//!
//! For data sets that [`super::scan`] has accepted. Like the scan it keeps an explicit stack and checks every length.

use std::ops::Range;

use dicom_core::{Tag, VR};

use super::captured::CapturedTags;
use super::header::{
    dictionary_says_sequence, holds_fragments, ElementHeader, Header, ITEM, ITEM_DELIMITATION,
    SEQUENCE_DELIMITATION, UNDEFINED,
};
use super::scan::{ScanError, ScanLimits, Scanner};
use crate::transfer_syntax::{Encoding, UnknownVr};

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
    /// Headers so far that PS3.5 forbids and readers follow.
    oddities: u64,
    /// Where the header of the last token begins, and the oddities before it.
    begun: (usize, u64),
}

enum Step {
    Token(Token),
    /// Something without meaning was passed over.
    Skipped,
    End,
}

impl<'d> Walk<'d> {
    pub(crate) fn new(dataset: &'d [u8], encoding: Encoding) -> Self {
        Self {
            dataset,
            encoding,
            at: 0,
            open: Vec::new(),
            oddities: 0,
            begun: (0, 0),
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
    /// [`ScanError`]; not for what the scan has accepted, but for the content of a sequence that it passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, ScanError> {
        loop {
            match self.step()? {
                Step::Token(token) => return Ok(Some(token)),
                Step::End => return Ok(None),
                Step::Skipped => {}
            }
        }
    }

    fn step(&mut self) -> Result<Step, ScanError> {
        let top = self.open.last().copied();
        if let Some(open) = top {
            match open.end {
                Some(end) if end == self.at => return Ok(Step::Token(self.close(open.kind))),
                Some(end) if end < self.at => return Err(ScanError::BeyondContainer),
                _ => {}
            }
        }
        let rest = self.dataset.get(self.at..).unwrap_or_default();
        if top.is_none() && rest.iter().all(|&byte| byte == 0) {
            return Ok(Step::End);
        }
        self.begun = (self.at, self.oddities);
        let header = self.header()?;
        let value_at = self.at + header.size;
        self.oddities += u64::from(header.has_illegal_vr);
        match (top, header.tag) {
            (Some(open), SEQUENCE_DELIMITATION) if open.kind != Kind::Item => {
                self.delimited(open, header.length, value_at)
            }
            (Some(open), ITEM_DELIMITATION) if open.kind == Kind::Item => {
                self.delimited(open, header.length, value_at)
            }
            (Some(open), ITEM) if open.kind == Kind::Fragments => {
                let value = self.value(value_at, header.length)?;
                self.at = value.end;
                Ok(Step::Token(Token::Fragment(value)))
            }
            (Some(open), ITEM) if open.kind == Kind::Sequence => {
                self.at = value_at;
                self.push(Kind::Item, open.encoding, header.length)?;
                Ok(Step::Token(Token::Item))
            }
            (None, ITEM_DELIMITATION) => Ok(Step::End),
            (Some(_), ITEM_DELIMITATION) | (None, SEQUENCE_DELIMITATION | ITEM) => Ok(self.skip(value_at)),
            (Some(open), SEQUENCE_DELIMITATION | ITEM) if open.end.is_some() => Ok(self.skip(value_at)),
            (None | Some(Open { kind: Kind::Item, .. }), tag) if tag.0 != 0xFFFE => {
                self.element(&header, value_at).map(Step::Token)
            }
            _ => Err(ScanError::ItemStructure),
        }
    }

    /// The header at the current place. Where its value representation is unknown, the whole data set says how to read it.
    fn header(&mut self) -> Result<ElementHeader, ScanError> {
        loop {
            let encoding = match self.open.last() {
                None => self.encoding,
                Some(open) if open.kind == Kind::Item => open.encoding,
                // Items and delimiters have no value representation.
                Some(open) => open.encoding.without_vr(),
            };
            let rest = self.dataset.get(self.at..).unwrap_or_default();
            match Header::parse(rest, encoding) {
                Header::Incomplete(_) => return Err(ScanError::Truncated),
                Header::Unknown(_) => self.decide()?,
                Header::Element(header) => return Ok(header),
            }
        }
    }

    fn decide(&mut self) -> Result<(), ScanError> {
        let limits = ScanLimits {
            nesting: DEEPEST,
            ..ScanLimits::default()
        };
        let mut scanner = Scanner::new(self.encoding, &CapturedTags::default(), limits);
        scanner.feed(self.dataset)?;
        scanner.finish()?;
        // Where the data set has none, this part of it is not read as the scan read it.
        let way = match scanner.encoding().unknown_vr {
            UnknownVr::Undecided => UnknownVr::Absent,
            way => way,
        };
        self.encoding.unknown_vr = way;
        for open in &mut self.open {
            open.encoding.unknown_vr = way;
        }
        Ok(())
    }

    /// Goes on behind a delimiter or an empty item that has no meaning.
    fn skip(&mut self, to: usize) -> Step {
        self.oddities += 1;
        self.at = to;
        Step::Skipped
    }

    /// Readers do not look at the length of a delimiter.
    fn delimited(&mut self, open: Open, length: u32, behind: usize) -> Result<Step, ScanError> {
        if open.end.is_some_and(|end| end != behind) {
            return Err(ScanError::ItemStructure);
        }
        self.oddities += u64::from(open.end.is_some() || length != 0);
        self.at = behind;
        Ok(Step::Token(self.close(open.kind)))
    }

    fn element(&mut self, header: &ElementHeader, value_at: usize) -> Result<Token, ScanError> {
        let &ElementHeader {
            tag,
            vr,
            length,
            encoding,
            ..
        } = header;
        if length == UNDEFINED {
            self.at = value_at;
            if holds_fragments(tag, vr) {
                self.push(Kind::Fragments, encoding, length)?;
                return Ok(Token::Fragments { tag, vr });
            }
            // PS3.5 6.2.2 note 2: the value of such a UN is an Implicit VR Little Endian sequence.
            let inside = if vr == Some(VR::UN) {
                Encoding::IMPLICIT_LITTLE
            } else {
                encoding
            };
            self.push(Kind::Sequence, inside, length)?;
            return Ok(Token::Sequence { tag });
        }
        if vr == Some(VR::SQ) || (vr.is_none() && dictionary_says_sequence(tag)) {
            self.at = value_at;
            self.push(Kind::Sequence, encoding, length)?;
            return Ok(Token::Sequence { tag });
        }
        let value = self.value(value_at, length)?;
        self.at = value.end;
        Ok(Token::Element { tag, vr, value })
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
    /// Its headers are as PS3.5 wants them.
    pub(crate) is_regular: bool,
    /// Whether encapsulated pixel data lie in an item of it, at any depth.
    pub(crate) holds_encapsulated: bool,
}

/// The next element at the top of a data set.
///
/// # Errors
/// As [`Walk::next`].
pub(crate) fn next_top_level(walk: &mut Walk<'_>) -> Result<Option<TopLevel>, ScanError> {
    let Some(token) = walk.next()? else {
        return Ok(None);
    };
    let (begin, oddities) = walk.begun;
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
        is_regular: true,
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
    element.is_regular = walk.oddities == oddities;
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
