//! What a header means where it stands: containers, their ends, and what is odd about them (PS3.5 7.5, A.4).

use dicom_core::{Tag, VR};

use super::{Container, Frame, Reading, State};
use crate::dataset::anomaly::Anomaly;
use crate::dataset::header::{
    dictionary_says_sequence, holds_fragments, ElementHeader, ITEM, ITEM_DELIMITATION, PIXEL_DATA,
    SEQUENCE_DELIMITATION, UNDEFINED,
};
use crate::dataset::scan::ScanError;
use crate::transfer_syntax::Encoding;

/// File Meta Information (PS3.10 7.1).
const FILE_META_GROUP: u16 = 0x0002;

impl Reading {
    /// Acts on one header, which begins at `at`; `position` is just behind it.
    pub(super) fn element(&mut self, header: &ElementHeader, at: u64) -> Result<(), ScanError> {
        let &ElementHeader {
            tag,
            vr,
            length,
            encoding,
            ..
        } = header;
        self.elements += 1;
        if self.elements > self.limits.elements {
            return Err(ScanError::Elements);
        }
        let top = self.stack.last().copied();
        let bound = top.map_or(u64::MAX, |frame| frame.bound);
        let is_beyond = length != UNDEFINED && self.position + u64::from(length) > bound;
        match top.map(|frame| (frame.container, frame)) {
            Some((Container::Fragments | Container::Sequence, _)) if is_beyond && tag == ITEM => {
                Err(ScanError::BeyondContainer)
            }
            Some((Container::Fragments, _)) => self.fragment(tag, length),
            Some((Container::Sequence, frame)) => self.sequence_member(tag, length, frame),
            Some((Container::Item, frame)) if tag == ITEM_DELIMITATION => self.delimited(frame, length),
            _ if tag.0 == 0xFFFE => self.stray(tag, length, top),
            _ if self.ended && top.is_none() => Err(ScanError::ItemStructure),
            _ if is_beyond => Err(ScanError::BeyondContainer),
            _ => {
                let slot = match top {
                    None => self.note(tag, at)?,
                    Some(_) => None,
                };
                if length == UNDEFINED {
                    self.undefined_length(tag, vr, encoding, slot)
                } else {
                    self.defined_length(tag, vr, length, encoding, slot)
                }
            }
        }
    }

    /// PS3.5 A.4: items of pixel data, closed by a sequence delimitation item. Readers do not look at the length of a delimiter,
    /// and look for the sequence's where an item's stands.
    fn fragment(&mut self, tag: Tag, length: u32) -> Result<(), ScanError> {
        match tag {
            SEQUENCE_DELIMITATION => {
                if length != 0 {
                    self.anomalies.insert_in_pixel_data(Anomaly::Delimiter);
                }
                self.stack.pop();
                self.close_finished()
            }
            ITEM_DELIMITATION if length == 0 => {
                self.anomalies.insert_in_pixel_data(Anomaly::Delimiter);
                Ok(())
            }
            ITEM if length != UNDEFINED => self.pass(u64::from(length), |left| State::Skip { left }),
            _ => Err(ScanError::ItemStructure),
        }
    }

    /// PS3.5 7.5: a sequence holds items only. The delimiter of an item whose length is defined is superfluous.
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
            ITEM_DELIMITATION => {
                self.anomalies.insert(Anomaly::Delimiter);
                self.close_finished()
            }
            _ => Err(ScanError::ItemStructure),
        }
    }

    /// A delimitation item closes what has no defined length (PS3.5 7.5.1, 7.5.2). At the end of what has one it is superfluous.
    fn delimited(&mut self, frame: Frame, length: u32) -> Result<(), ScanError> {
        if frame.end.is_some_and(|end| end != self.position) {
            return Err(ScanError::ItemStructure);
        }
        if frame.end.is_some() || length != 0 {
            self.anomalies.insert(Anomaly::Delimiter);
        }
        self.pop();
        self.close_finished()
    }

    /// An item or delimiter among elements: readers take it for an empty element, or for the end of the data set.
    fn stray(&mut self, tag: Tag, length: u32, top: Option<Frame>) -> Result<(), ScanError> {
        let is_bounded = top.is_none_or(|frame| frame.end.is_some());
        match (tag, length) {
            (ITEM_DELIMITATION, _) | (SEQUENCE_DELIMITATION, UNDEFINED) if top.is_none() => self.ended = true,
            (SEQUENCE_DELIMITATION | ITEM, 0) if is_bounded => {}
            _ => return Err(ScanError::ItemStructure),
        }
        self.anomalies.insert(Anomaly::Delimiter);
        self.close_finished()
    }

    fn undefined_length(
        &mut self,
        tag: Tag,
        vr: Option<VR>,
        encoding: Encoding,
        slot: Option<usize>,
    ) -> Result<(), ScanError> {
        let inside = match vr {
            vr if holds_fragments(tag, vr) => {
                self.push_fragments(tag, encoding);
                if let Some(slot) = slot {
                    self.leave_out(slot);
                }
                return Ok(());
            }
            Some(VR::SQ) | None => encoding,
            // PS3.5 6.2.2 note 2: the value of such a UN is an Implicit VR Little Endian sequence.
            Some(VR::UN) => Encoding::IMPLICIT_LITTLE,
            Some(_) => return Err(ScanError::UndefinedLength),
        };
        self.push_sequence(inside, None)?;
        if let Some(slot) = slot {
            self.begin_sequence(slot, vr, true);
        }
        Ok(())
    }

    fn defined_length(
        &mut self,
        tag: Tag,
        vr: Option<VR>,
        length: u32,
        encoding: Encoding,
        slot: Option<usize>,
    ) -> Result<(), ScanError> {
        let is_sequence = vr == Some(VR::SQ) || (vr.is_none() && dictionary_says_sequence(tag));
        if is_sequence {
            let end = self.position + u64::from(length);
            self.push_sequence(encoding, Some(end))?;
            if let Some(slot) = slot {
                self.begin_sequence(slot, vr, false);
            }
            return self.close_finished();
        }
        let left = u64::from(length);
        let Some(slot) = slot else {
            return self.pass(left, |left| State::Skip { left });
        };
        if let Some(value) = self.captured.get_mut(slot) {
            value.vr = vr;
        }
        self.pass(left, |left| State::Capture { slot, left })
    }

    /// Records that a top-level element occurred, which begins at `at`. Returns where its value is kept.
    fn note(&mut self, tag: Tag, at: u64) -> Result<Option<usize>, ScanError> {
        match tag.0 {
            // PS3.7 6.3: a command set is no part of a data set, and readers of files take it for one.
            0x0000 => return Err(ScanError::ForbiddenGroup),
            FILE_META_GROUP if !self.past_file_meta => self.anomalies.insert(Anomaly::FileMetaInDataSet),
            FILE_META_GROUP | 0x0001 | 0x0003 | 0x0005..=0x0007 | 0xFFFF => {
                self.anomalies.insert(Anomaly::ReservedGroup);
            }
            _ => {}
        }
        if tag.0 != FILE_META_GROUP && !self.past_file_meta {
            (self.past_file_meta, self.file_meta_bytes) = (true, at);
        }
        self.pixel_data |= tag == PIXEL_DATA;
        let slot = self.wanted.slot(tag);
        if let Some((slot, value)) = slot.and_then(|slot| Some((slot, self.captured.get_mut(slot)?))) {
            if value.present && slot < self.wanted.identifying_count() {
                return Err(ScanError::Repeated);
            }
            // Readers take the last one.
            value.clear();
            value.present = true;
        }
        Ok(slot)
    }

    pub(super) fn note_illegal_vr(&mut self, tag: Tag, vr: Option<VR>) {
        // In the implicit form nothing is unclear.
        if tag == PIXEL_DATA && vr.is_some() {
            self.anomalies.insert_in_pixel_data(Anomaly::IllegalVr);
        } else {
            self.anomalies.insert(Anomaly::IllegalVr);
        }
    }

    fn push_fragments(&mut self, tag: Tag, encoding: Encoding) {
        self.fragments = true;
        self.encapsulated |= tag == PIXEL_DATA && self.stack.is_empty();
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

    pub(super) fn pop(&mut self) {
        if let Some(frame) = self.stack.pop() {
            if frame.container == Container::Sequence {
                self.sequences -= 1;
            }
        }
    }

    /// Closes every sequence and item whose defined end is reached.
    pub(super) fn close_finished(&mut self) -> Result<(), ScanError> {
        while let Some(frame) = self.stack.last() {
            match frame.end {
                Some(end) if end == self.position => self.pop(),
                Some(end) if end < self.position => return Err(ScanError::BeyondContainer),
                _ => return Ok(()),
            }
        }
        self.kept_sequence = None;
        Ok(())
    }
}
