//! One forward pass over the elements of a data set (PS3.5 Chapter 7), with one way to read unknown value representations.
//!
//! A push parser: it takes the bytes as they arrive in pieces of any size, keeps an explicit stack instead of recursing, and never
//! holds more than one header and the few captured values. It follows lengths, items and delimiters to the last byte, so a
//! truncated image is an error and not a success. What other readers follow although PS3.5 forbids it is an [`Anomaly`].

mod structure;

use dicom_core::VR;

use super::anomaly::{Anomalies, Anomaly};
use super::captured::{Captured, CapturedTags};
use super::header::{ElementHeader, Header, UnknownHeader};
use super::scan::{ScanError, ScanLimits};
use crate::transfer_syntax::{Encoding, UnknownVr};

/// The shortest header.
const HEADER_BYTES: usize = 8;

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
    /// Behind the last element: zero bytes only.
    Zeros,
}

/// What the first bytes of a header turn out to be.
enum Look {
    /// A whole header.
    Element(ElementHeader),
    /// More bytes are needed: this many in all.
    Incomplete(usize),
    /// The value representation is unknown; the header is read again once it is decided how.
    Unknown(UnknownHeader),
    /// It would reach beyond what contains it.
    Beyond,
    /// The first of the zero bytes behind the last element.
    Zeros,
}

/// The push parser. See the module documentation.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // facts about what came so far, each by itself
pub(super) struct Reading {
    encoding: Encoding,
    limits: ScanLimits,
    wanted: CapturedTags,
    captured: Vec<Captured>,
    /// The slot of a sequence that is kept as a whole, while it is open.
    kept_sequence: Option<usize>,
    stack: Vec<Frame>,
    sequences: usize,
    state: State,
    header: [u8; 12],
    header_len: usize,
    position: u64,
    elements: u64,
    pixel_data: bool,
    encapsulated: bool,
    fragments: bool,
    anomalies: Anomalies,
    /// Bytes of group 0002 before all other elements, as soon as another one came.
    file_meta_bytes: u64,
    /// Something else than group 0002 came.
    past_file_meta: bool,
    /// An item delimitation item came at top level: readers take it for the end.
    ended: bool,
}

impl Reading {
    pub(super) fn new(
        mut values: Vec<Captured>,
        encoding: Encoding,
        wanted: &CapturedTags,
        limits: ScanLimits,
    ) -> Self {
        values.iter_mut().for_each(Captured::clear);
        values.resize_with(wanted.count(), Captured::default);
        Self {
            encoding,
            limits,
            wanted: wanted.clone(),
            captured: values,
            kept_sequence: None,
            stack: Vec::new(),
            sequences: 0,
            state: State::Header,
            header: [0; 12],
            header_len: 0,
            position: 0,
            elements: 0,
            pixel_data: false,
            encapsulated: false,
            fragments: false,
            anomalies: Anomalies::default(),
            file_meta_bytes: 0,
            past_file_meta: false,
            ended: false,
        }
    }

    /// The same, from here on with another way to read unknown value representations.
    pub(super) fn with(&self, unknown_vr: UnknownVr) -> Self {
        let mut other = self.clone();
        other.encoding.unknown_vr = unknown_vr;
        for frame in &mut other.stack {
            frame.encoding.unknown_vr = unknown_vr;
        }
        other
    }

    /// How the data set is encoded, as far as it is decided.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Whether it stands inside a value that is captured.
    pub(super) fn is_inside_value(&self) -> bool {
        matches!(self.state, State::Capture { .. })
    }

    /// Takes the next bytes. Stops before a header whose value representation is unknown, unless it is decided how to read it;
    /// then the bytes from there on are returned, to be fed again.
    pub(super) fn feed<'b>(
        &mut self,
        mut bytes: &'b [u8],
    ) -> Result<Option<(UnknownHeader, &'b [u8])>, ScanError> {
        while !bytes.is_empty() {
            match self.state {
                State::Header => {
                    let (look, rest) = self.gather(bytes);
                    self.keep_of_sequence(bytes, rest);
                    bytes = rest;
                    match look {
                        Look::Incomplete(_) => return Ok(None),
                        Look::Unknown(header) => return Ok(Some((header, rest))),
                        look => self.header(&look)?,
                    }
                }
                State::Skip { left } => {
                    let (used, rest) = split_u64(bytes, left);
                    self.keep_of_sequence(bytes, rest);
                    self.position += used.len() as u64;
                    self.pass(left - used.len() as u64, |left| State::Skip { left })?;
                    bytes = rest;
                }
                State::Capture { slot, left } => {
                    let (used, rest) = split_u64(bytes, left);
                    self.position += used.len() as u64;
                    self.keep(slot, used);
                    self.pass(left - used.len() as u64, |left| State::Capture { slot, left })?;
                    bytes = rest;
                }
                // An element of group 0000 belongs to a command set.
                State::Zeros if bytes.iter().any(|&byte| byte != 0) => return Err(ScanError::ForbiddenGroup),
                State::Zeros => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Passes over bytes of a value that is skipped.
    pub(super) fn pass_over(&mut self, bytes: u64) -> Result<(), ScanError> {
        match self.state {
            State::Skip { left } if bytes <= left => {
                self.position += bytes;
                self.pass(left - bytes, |left| State::Skip { left })
            }
            _ if bytes == 0 => Ok(()),
            _ => Err(ScanError::BeyondContainer),
        }
    }

    /// Ends the data set.
    pub(super) fn finish(&mut self) -> Result<(), ScanError> {
        self.close_finished()?;
        if self.header_len == 0 && self.stack.last().is_some_and(|top| top.bound == self.position) {
            // What is open inside a sequence of defined length ends with it.
            self.or_passed_over(Err(ScanError::ItemStructure))?;
        }
        let gathered = self.header.get(..self.header_len).unwrap_or_default();
        let complete = match self.state {
            State::Header => self.stack.is_empty() && gathered.iter().all(|&byte| byte == 0),
            State::Zeros => true,
            State::Skip { .. } | State::Capture { .. } => false,
        };
        if !complete {
            return Err(ScanError::Truncated);
        }
        // One zero byte pads a data set of odd length (PS3.8 Annex D asks for even fragments).
        if self.header_len > 1 {
            self.anomalies.insert(Anomaly::TrailingBytes);
        }
        Ok(())
    }

    /// Bytes that are left of a value that is skipped: the data set has so many more, at least.
    pub(super) fn skipping(&self) -> u64 {
        match self.state {
            State::Skip { left } if !self.keeps_sequence() => left,
            State::Skip { .. } | State::Header | State::Capture { .. } | State::Zeros => 0,
        }
    }

    pub(super) fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// Those of them that identify the instance.
    pub(super) fn identity(&self) -> &[Captured] {
        let count = self.wanted.identifying_count();
        self.captured.get(..count).unwrap_or(&self.captured)
    }

    /// Whether the value of a slot is there as a whole.
    pub(super) fn has_captured(&self, slot: usize) -> bool {
        let is_whole = !matches!(self.state, State::Capture { slot: open, .. } if open == slot);
        is_whole && self.captured.get(slot).is_some_and(|value| value.present)
    }

    pub(super) fn into_captured(self) -> Vec<Captured> {
        self.captured
    }

    pub(super) fn has_pixel_data(&self) -> bool {
        self.pixel_data
    }

    /// Whether they were encapsulated.
    pub(super) fn has_encapsulated_pixel_data(&self) -> bool {
        self.encapsulated
    }

    /// Whether anything was encapsulated, at any depth.
    pub(super) fn has_fragments(&self) -> bool {
        self.fragments
    }

    pub(super) fn anomalies(&self) -> Anomalies {
        self.anomalies
    }

    pub(super) fn file_meta_bytes(&self) -> u64 {
        self.file_meta_bytes
    }

    fn keep(&mut self, slot: usize, bytes: &[u8]) {
        if let Some(value) = self.captured.get_mut(slot) {
            let room = self.limits.value_bytes.saturating_sub(value.bytes.len());
            value.cut |= bytes.len() > room;
            value.bytes.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    /// Keeps what was taken of `bytes`, up to `rest`, where it belongs to a sequence that is kept.
    fn keep_of_sequence(&mut self, bytes: &[u8], rest: &[u8]) {
        if let Some(slot) = self.kept_sequence {
            self.keep(slot, bytes.get(..bytes.len() - rest.len()).unwrap_or(bytes));
        }
    }

    /// Whether it stands inside a sequence more of which is to be kept.
    fn keeps_sequence(&self) -> bool {
        let value = self.kept_sequence.and_then(|slot| self.captured.get(slot));
        value.is_some_and(|value| !value.cut)
    }

    /// A sequence begins whose value is wanted. No sequence identifies anything: what is in it is nobody's name.
    fn begin_sequence(&mut self, slot: usize, vr: Option<VR>, is_undefined_length: bool) {
        let describes = slot >= self.wanted.identifying_count();
        if let Some(value) = self.captured.get_mut(slot) {
            value.vr = vr;
            value.is_undefined_length = is_undefined_length;
            value.cut = !describes;
        }
        self.kept_sequence = Some(slot).filter(|_| describes);
    }

    /// The value of a slot is not kept: it is encapsulated.
    fn leave_out(&mut self, slot: usize) {
        if let Some(value) = self.captured.get_mut(slot) {
            value.cut = true;
        }
    }

    fn pass(&mut self, left: u64, state: impl Fn(u64) -> State) -> Result<(), ScanError> {
        if left > 0 {
            self.state = state(left);
            return Ok(());
        }
        self.state = State::Header;
        self.close_finished()
    }

    /// What is wrong inside a sequence of defined length is passed over with it: whoever does not open it reads on behind it. An
    /// element that is longer than what contains it is not: something of it was lost.
    fn or_passed_over(&mut self, taken: Result<(), ScanError>) -> Result<(), ScanError> {
        let Err(error) = taken else {
            return Ok(());
        };
        let is_structure = matches!(error, ScanError::ItemStructure | ScanError::UndefinedLength);
        let end = self.stack.first().and_then(|outermost| outermost.end);
        let begun = self.position + self.header_len as u64;
        let Some(left) = end
            .and_then(|end| end.checked_sub(begun))
            .filter(|_| is_structure)
        else {
            return Err(error);
        };
        self.anomalies.insert(Anomaly::SequenceContent);
        if let Some(value) = self
            .kept_sequence
            .take()
            .and_then(|slot| self.captured.get_mut(slot))
        {
            value.cut = true;
        }
        self.stack.clear();
        self.sequences = 0;
        self.position = begun;
        self.header_len = 0;
        self.pass(left, |left| State::Skip { left })
    }

    /// Gathers a header across pieces. Returns what it is, and the bytes behind it.
    fn gather<'b>(&mut self, bytes: &'b [u8]) -> (Look, &'b [u8]) {
        if self.header_len == 0 {
            // The common case: the whole header lies in this piece.
            match self.look(bytes) {
                Look::Incomplete(_) => {}
                look => {
                    let size = match look {
                        Look::Element(header) => header.size,
                        _ => 0,
                    };
                    return (look, bytes.get(size..).unwrap_or_default());
                }
            }
        }
        let mut rest = bytes;
        loop {
            let header = self.header;
            match self.look(header.get(..self.header_len).unwrap_or_default()) {
                Look::Incomplete(needed) => {
                    let missing = needed.saturating_sub(self.header_len);
                    let (used, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
                    if let Some(room) = self.header.get_mut(self.header_len..self.header_len + used.len()) {
                        room.copy_from_slice(used);
                    }
                    self.header_len += used.len();
                    rest = after;
                    if used.len() < missing {
                        return (Look::Incomplete(needed), rest);
                    }
                }
                Look::Unknown(header) => {
                    // Its last byte is fed again, so that there is one even where the piece ends with it.
                    self.header_len -= 1;
                    let fed = bytes.len() - rest.len();
                    return (
                        Look::Unknown(header),
                        bytes.get(fed.saturating_sub(1)..).unwrap_or_default(),
                    );
                }
                look => return (look, rest),
            }
        }
    }

    fn look(&self, header: &[u8]) -> Look {
        let top = self.stack.last();
        if top.is_none() && header.first_chunk() == Some(&[0; HEADER_BYTES]) {
            return Look::Zeros;
        }
        let room = top.map_or(u64::MAX, |frame| frame.bound.saturating_sub(self.position));
        let encoding = match top {
            None => self.encoding,
            Some(frame) if frame.container == Container::Item => frame.encoding,
            // Items and delimiters have no value representation.
            Some(frame) => frame.encoding.without_vr(),
        };
        let (look, size) = match Header::parse(header, encoding) {
            Header::Unknown(header) => (Look::Unknown(header), HEADER_BYTES),
            Header::Incomplete(needed) => (Look::Incomplete(needed), needed),
            Header::Element(header) => (Look::Element(header), header.size),
        };
        if size as u64 > room {
            Look::Beyond
        } else {
            look
        }
    }

    /// Acts on what was gathered.
    fn header(&mut self, look: &Look) -> Result<(), ScanError> {
        match *look {
            Look::Zeros => {
                self.header_len = 0;
                self.state = State::Zeros;
                self.anomalies.insert(Anomaly::TrailingBytes);
                Ok(())
            }
            Look::Element(header) => {
                self.header_len = 0;
                let at = self.position;
                self.position += header.size as u64;
                if header.has_illegal_vr {
                    self.note_illegal_vr(header.tag, header.vr);
                }
                let taken = self.element(&header, at);
                self.or_passed_over(taken)
            }
            // Nothing is left of a sequence of defined length in which something is still open.
            _ if self.stack.last().is_some_and(|top| top.bound == self.position) => {
                self.or_passed_over(Err(ScanError::ItemStructure))
            }
            _ => Err(ScanError::BeyondContainer),
        }
    }
}

fn split_u64(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    usize::try_from(at)
        .ok()
        .and_then(|at| bytes.split_at_checked(at))
        .unwrap_or((bytes, &[]))
}
