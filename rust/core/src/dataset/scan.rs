//! One forward pass over the elements of a data set (PS3.5 Chapter 7).
//!
//! The scanner is a push parser: it takes the bytes as they arrive in pieces of any size, keeps an explicit
//! stack instead of recursing, and never holds more than one header and the few captured values. It follows
//! lengths, items and delimiters to the last byte, so a truncated image is an error and not a success.

use dicom_core::{Tag, VR};

use super::header::{
    dictionary_says_sequence, holds_fragments, Header, ITEM, ITEM_DELIMITATION, PIXEL_DATA,
    SEQUENCE_DELIMITATION, UNDEFINED,
};
use crate::transfer_syntax::Encoding;

/// Bounds on what a peer may make the scanner do.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// Sequences within sequences.
    pub nesting: usize,
    /// Elements, items and fragments of one data set.
    pub elements: u64,
    /// Bytes kept of one captured value; longer ones are marked as cut.
    pub value_bytes: usize,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            nesting: 64,
            elements: 1 << 24,
            value_bytes: 10_240,
        }
    }
}

/// Why a data set cannot be taken. The text becomes an Error Comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes ended inside an element, item or sequence.
    #[error("data set ends inside an element or sequence")]
    Truncated,
    /// An element, item or sequence reaches beyond what contains it.
    #[error("an element is longer than what contains it")]
    BeyondContainer,
    /// A delimitation item or item where none belongs, or something else where one does.
    #[error("item or delimiter out of place")]
    ItemStructure,
    /// Undefined length on a value representation that cannot have it.
    #[error("undefined length on a VR that cannot have it")]
    UndefinedLength,
    /// An element of group 0000 to 0007 (but 0004), or FFFF, in a data set (PS3.5 7.1).
    #[error("element of a group not allowed in a data set")]
    ForbiddenGroup,
    /// An identifying attribute occurs twice.
    #[error("an identifying attribute occurs twice")]
    Repeated,
    /// `limits.nesting`.
    #[error("sequences are nested too deep")]
    Nesting,
    /// `limits.elements`.
    #[error("too many elements")]
    Elements,
    /// The deflate stream is broken.
    #[error("deflate stream is invalid")]
    Deflate,
    /// The data set inflates to more than `limits.max_decoded_bytes`.
    #[error("data set inflates beyond the limit")]
    DecodedSize,
}

/// A value kept by the scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// The bytes as received, at most [`ScanLimits::value_bytes`].
    pub bytes: Vec<u8>,
    /// The value was longer than that.
    pub cut: bool,
    /// The element occurred.
    pub present: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Sequence,
    Item,
    Fragments,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    container: Container,
    encoding: Encoding,
    /// Where it ends, if its length is defined.
    end: Option<u64>,
    /// Nothing inside may reach beyond this: the nearest defined end around it.
    bound: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A header is being gathered.
    Header,
    /// A value is passed over.
    Skip { left: u64 },
    /// A value is kept in `captured[slot]`.
    Capture { slot: usize, left: u64 },
}

/// The push parser. See the module documentation.
#[derive(Debug)]
pub struct Scanner {
    encoding: Encoding,
    limits: ScanLimits,
    wanted: Vec<Tag>,
    captured: Vec<Captured>,
    stack: Vec<Frame>,
    sequences: usize,
    state: State,
    header: [u8; 12],
    header_len: usize,
    position: u64,
    elements: u64,
    pixel_data: bool,
    fragments: bool,
    failed: Option<ScanError>,
}

impl Scanner {
    /// A scanner that captures the top-level values of `wanted`.
    #[must_use]
    pub fn new(encoding: Encoding, wanted: &[Tag], limits: ScanLimits) -> Self {
        Self::reusing(Vec::new(), encoding, wanted, limits)
    }

    /// The same, with the memory of values that are not needed any more.
    #[must_use]
    pub fn reusing(
        mut values: Vec<Captured>,
        encoding: Encoding,
        wanted: &[Tag],
        limits: ScanLimits,
    ) -> Self {
        for value in &mut values {
            value.bytes.clear();
            (value.cut, value.present) = (false, false);
        }
        values.resize_with(wanted.len(), Captured::default);
        Self {
            encoding,
            limits,
            wanted: wanted.to_vec(),
            captured: values,
            stack: Vec::new(),
            sequences: 0,
            state: State::Header,
            header: [0; 12],
            header_len: 0,
            position: 0,
            elements: 0,
            pixel_data: false,
            fragments: false,
            failed: None,
        }
    }

    /// Takes the next bytes of the data set.
    ///
    /// # Errors
    /// The first [`ScanError`]; it is repeated by every later call.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance(bytes)
            .inspect_err(|&error| self.failed = Some(error))
    }

    /// Ends the data set.
    ///
    /// # Errors
    /// [`ScanError::Truncated`] when an element or sequence is still open.
    pub fn finish(&mut self) -> Result<(), ScanError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.close_finished()?;
        // A data set of odd length is padded with one zero byte by senders (PS3.8 Annex D asks for even fragments).
        let padded = self.header_len == 1 && self.header[0] == 0 && self.stack.is_empty();
        let complete =
            matches!(self.state, State::Header) && (self.header_len == 0 || padded) && self.stack.is_empty();
        if complete {
            Ok(())
        } else {
            Err(ScanError::Truncated)
        }
    }

    /// Bytes that are left of a value that is skipped: the data set has so many more, at least.
    #[must_use]
    pub fn skipping(&self) -> u64 {
        match self.state {
            State::Skip { left } => left,
            State::Header | State::Capture { .. } => 0,
        }
    }

    /// The captured values, in the order of `wanted`.
    #[must_use]
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// The same, when the scan is over.
    #[must_use]
    pub fn into_captured(self) -> Vec<Captured> {
        self.captured
    }

    /// Passes over bytes of a value that are somewhere else.
    pub(crate) fn pass_over(&mut self, bytes: u64) {
        let passed = match self.state {
            _ if self.failed.is_some() => return,
            State::Skip { left } if bytes <= left => {
                self.position += bytes;
                self.pass(left - bytes, |left| State::Skip { left })
            }
            _ if bytes == 0 => return,
            _ => Err(ScanError::BeyondContainer),
        };
        self.failed = passed.err();
    }

    /// Whether encapsulated pixel data were seen, at any depth.
    #[must_use]
    pub fn has_fragments(&self) -> bool {
        self.fragments
    }

    /// Whether a top-level Pixel Data element was seen.
    #[must_use]
    pub fn has_pixel_data(&self) -> bool {
        self.pixel_data
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), ScanError> {
        while !bytes.is_empty() {
            match self.state {
                State::Header => bytes = self.take_header(bytes)?,
                State::Skip { left } => {
                    let (used, rest) = split_u64(bytes, left);
                    self.position += used.len() as u64;
                    self.pass(left - used.len() as u64, |left| State::Skip { left })?;
                    bytes = rest;
                }
                State::Capture { slot, left } => {
                    let (used, rest) = split_u64(bytes, left);
                    self.position += used.len() as u64;
                    if let Some(value) = self.captured.get_mut(slot) {
                        let room = self.limits.value_bytes.saturating_sub(value.bytes.len());
                        value.cut |= used.len() > room;
                        value.bytes.extend_from_slice(used.get(..room).unwrap_or(used));
                    }
                    self.pass(left - used.len() as u64, |left| State::Capture { slot, left })?;
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    fn pass(&mut self, left: u64, state: impl Fn(u64) -> State) -> Result<(), ScanError> {
        if left > 0 {
            self.state = state(left);
            return Ok(());
        }
        self.state = State::Header;
        self.close_finished()
    }

    /// Gathers a header across pieces; returns what is left of `bytes`.
    fn take_header<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], ScanError> {
        if self.header_len == 0 {
            // The common case: the whole header lies in this piece.
            if let Header::Element {
                tag,
                vr,
                length,
                size,
                encoding,
            } = self.parse_header(bytes)
            {
                self.position += size as u64;
                self.element(tag, vr, length, encoding)?;
                return Ok(bytes.get(size..).unwrap_or_default());
            }
        }
        let mut rest = bytes;
        loop {
            let header = self.header;
            match self.parse_header(header.get(..self.header_len).unwrap_or_default()) {
                Header::Element {
                    tag,
                    vr,
                    length,
                    size,
                    encoding,
                } => {
                    self.position += size as u64;
                    self.header_len = 0;
                    self.element(tag, vr, length, encoding)?;
                    return Ok(rest);
                }
                Header::Incomplete(needed) => {
                    let missing = needed.saturating_sub(self.header_len);
                    let (used, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
                    if let Some(room) = self.header.get_mut(self.header_len..self.header_len + used.len()) {
                        room.copy_from_slice(used);
                    }
                    self.header_len += used.len();
                    rest = after;
                    if used.len() < missing {
                        return Ok(rest);
                    }
                }
            }
        }
    }

    fn parse_header(&self, bytes: &[u8]) -> Header {
        Header::parse(
            bytes,
            self.stack.last().map_or(self.encoding, |frame| frame.encoding),
        )
    }

    /// Acts on one header; `position` is just behind it.
    fn element(
        &mut self,
        tag: Tag,
        vr: Option<VR>,
        length: u32,
        encoding: Encoding,
    ) -> Result<(), ScanError> {
        self.elements += 1;
        if self.elements > self.limits.elements {
            return Err(ScanError::Elements);
        }
        let top = self.stack.last().copied();
        let bound = top.map_or(u64::MAX, |frame| frame.bound);
        if self.position > bound || (length != UNDEFINED && self.position + u64::from(length) > bound) {
            return Err(ScanError::BeyondContainer);
        }
        match top.map(|frame| (frame.container, frame)) {
            Some((Container::Fragments, _)) => self.fragment(tag, length),
            Some((Container::Sequence, frame)) => self.sequence_member(tag, length, frame),
            Some((Container::Item, frame)) if tag == ITEM_DELIMITATION => self.delimited(frame, length),
            _ if tag.0 == 0xFFFE => Err(ScanError::ItemStructure),
            _ if length == UNDEFINED => self.undefined_length(tag, vr, encoding),
            top => self.defined_length(tag, vr, length, encoding, top.is_none()),
        }
    }

    /// PS3.5 A.4: items of pixel data, closed by a sequence delimitation item.
    fn fragment(&mut self, tag: Tag, length: u32) -> Result<(), ScanError> {
        match (tag, length) {
            (SEQUENCE_DELIMITATION, 0) => {
                self.stack.pop();
                self.close_finished()
            }
            (ITEM, length) if length != UNDEFINED => {
                self.pass(u64::from(length), |left| State::Skip { left })
            }
            _ => Err(ScanError::ItemStructure),
        }
    }

    /// PS3.5 7.5: a sequence holds items only.
    fn sequence_member(&mut self, tag: Tag, length: u32, sequence: Frame) -> Result<(), ScanError> {
        match tag {
            ITEM => {
                let end = (length != UNDEFINED).then(|| self.position + u64::from(length));
                self.stack.push(Frame {
                    container: Container::Item,
                    encoding: sequence.encoding,
                    end,
                    bound: end.unwrap_or(sequence.bound),
                });
                self.close_finished()
            }
            SEQUENCE_DELIMITATION => self.delimited(sequence, length),
            _ => Err(ScanError::ItemStructure),
        }
    }

    /// A delimitation item closes what has no defined length (PS3.5 7.5.1, 7.5.2).
    fn delimited(&mut self, frame: Frame, length: u32) -> Result<(), ScanError> {
        if frame.end.is_some() || length != 0 {
            return Err(ScanError::ItemStructure);
        }
        self.pop();
        self.close_finished()
    }

    fn undefined_length(&mut self, tag: Tag, vr: Option<VR>, encoding: Encoding) -> Result<(), ScanError> {
        self.note(tag)?;
        match vr {
            vr if holds_fragments(tag, vr) => {
                self.push_fragments(encoding);
                Ok(())
            }
            Some(VR::SQ) | None => self.push_sequence(encoding, None),
            // PS3.5 6.2.2 note 2: the value of such a UN is an Implicit VR Little Endian sequence.
            Some(VR::UN) => self.push_sequence(Encoding::IMPLICIT_LITTLE, None),
            Some(_) => Err(ScanError::UndefinedLength),
        }
    }

    fn defined_length(
        &mut self,
        tag: Tag,
        vr: Option<VR>,
        length: u32,
        encoding: Encoding,
        top_level: bool,
    ) -> Result<(), ScanError> {
        if top_level {
            self.note(tag)?;
        }
        let is_sequence = vr == Some(VR::SQ) || (vr.is_none() && dictionary_says_sequence(tag));
        if is_sequence {
            let end = self.position + u64::from(length);
            self.push_sequence(encoding, Some(end))?;
            return self.close_finished();
        }
        let slot = if top_level {
            self.wanted.iter().position(|&wanted| wanted == tag)
        } else {
            None
        };
        let left = u64::from(length);
        match slot {
            Some(slot) => self.pass(left, |left| State::Capture { slot, left }),
            None => self.pass(left, |left| State::Skip { left }),
        }
    }

    /// Records that a top-level element occurred.
    fn note(&mut self, tag: Tag) -> Result<(), ScanError> {
        if !self.stack.is_empty() {
            return Ok(());
        }
        // PS3.5 7.1: command, file meta and reserved groups are no part of a data set. A file meta element here
        // would be read as ours by whoever opens the file.
        if (tag.0 < 0x0008 && tag.0 != 0x0004) || tag.0 == 0xFFFF {
            return Err(ScanError::ForbiddenGroup);
        }
        self.pixel_data |= tag == PIXEL_DATA;
        if let Some(slot) = self.wanted.iter().position(|&wanted| wanted == tag) {
            if let Some(value) = self.captured.get_mut(slot) {
                if value.present {
                    return Err(ScanError::Repeated);
                }
                value.present = true;
            }
        }
        Ok(())
    }

    fn push_fragments(&mut self, encoding: Encoding) {
        self.fragments = true;
        let bound = self.stack.last().map_or(u64::MAX, |frame| frame.bound);
        self.stack.push(Frame {
            container: Container::Fragments,
            encoding,
            end: None,
            bound,
        });
    }

    fn push_sequence(&mut self, encoding: Encoding, end: Option<u64>) -> Result<(), ScanError> {
        if self.sequences >= self.limits.nesting {
            return Err(ScanError::Nesting);
        }
        self.sequences += 1;
        let around = self.stack.last().map_or(u64::MAX, |frame| frame.bound);
        self.stack.push(Frame {
            container: Container::Sequence,
            encoding,
            end,
            bound: end.unwrap_or(around),
        });
        Ok(())
    }

    fn pop(&mut self) {
        if let Some(frame) = self.stack.pop() {
            if frame.container == Container::Sequence {
                self.sequences -= 1;
            }
        }
    }

    /// Closes every sequence and item whose defined end is reached.
    fn close_finished(&mut self) -> Result<(), ScanError> {
        while let Some(frame) = self.stack.last() {
            match frame.end {
                Some(end) if end == self.position => self.pop(),
                Some(end) if end < self.position => return Err(ScanError::BeyondContainer),
                _ => break,
            }
        }
        Ok(())
    }
}

fn split_u64(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    usize::try_from(at)
        .ok()
        .and_then(|at| bytes.split_at_checked(at))
        .unwrap_or((bytes, &[]))
}

#[cfg(test)]
mod tests;
