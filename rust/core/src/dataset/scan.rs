//! The scan of a data set while it arrives: its structure to the last byte, and the values that identify it.
//!
//! Usually there is one way to read a data set. Behind a header whose value representation does not exist there are several, which
//! are followed side by side. The one that reaches the end is taken. Where several do, or one that does not is what other readers
//! might follow, they must agree on what identifies the instance.

use super::anomaly::{Anomalies, Anomaly};
use super::captured::{Captured, CapturedTags};
use super::header::UnknownHeader;
use super::reading::Reading;
use crate::transfer_syntax::{Encoding, UnknownVr};

/// In the order of preference.
const WAYS: [UnknownVr; 3] = [UnknownVr::Future, UnknownVr::Short, UnknownVr::Absent];

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
    /// An element of group 0000 in a data set (PS3.7 6.3).
    #[error("element of a group not allowed in a data set")]
    ForbiddenGroup,
    /// No way to read an unknown value representation reaches the end.
    #[error("no reading of {0} reaches the end")]
    IllegalVr(UnknownHeader),
    /// The ways to read it say that the data set is another instance, patient or study each.
    #[error("readings of {0} differ in identity")]
    Ambiguous(UnknownHeader),
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

/// The push parser. See the module documentation.
#[derive(Debug)]
pub struct Scanner {
    /// The reading that is taken as long as no other one is better.
    reading: Reading,
    others: Option<Box<Others>>,
    failed: Option<ScanError>,
}

/// The readings of a data set with an unknown value representation.
#[derive(Debug)]
struct Others {
    /// The first one.
    header: UnknownHeader,
    open: Vec<Reading>,
    /// Those that came to no end, and why.
    dead: Vec<(Reading, ScanError)>,
}

impl Scanner {
    /// A scanner that keeps the values of `wanted`.
    #[must_use]
    pub fn new(encoding: Encoding, wanted: &CapturedTags, limits: ScanLimits) -> Self {
        Self::reusing(Vec::new(), encoding, wanted, limits)
    }

    /// The same, with the memory of values that are not needed any more.
    #[must_use]
    pub fn reusing(
        values: Vec<Captured>,
        encoding: Encoding,
        wanted: &CapturedTags,
        limits: ScanLimits,
    ) -> Self {
        Self {
            reading: Reading::new(values, encoding, wanted, limits),
            others: None,
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
        let fed = match &mut self.others {
            Some(others) => others.feed(bytes),
            None => match self.reading.feed(bytes) {
                Ok(None) => Ok(()),
                Ok(Some((header, rest))) => {
                    let mut others = Box::new(Others::new(&self.reading, header));
                    let fed = others.feed(rest);
                    self.others = Some(others);
                    fed
                }
                Err(error) => Err(error),
            },
        };
        fed.inspect_err(|&error| self.failed = Some(error))
    }

    /// Ends the data set.
    ///
    /// # Errors
    /// [`ScanError::Truncated`] when an element or sequence is still open; [`ScanError::IllegalVr`] and
    /// [`ScanError::Ambiguous`].
    pub fn finish(&mut self) -> Result<(), ScanError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let finished = match self.others.take() {
            None => self.reading.finish(),
            Some(others) => others.finish().map(|reading| self.reading = reading),
        };
        finished.inspect_err(|&error| self.failed = Some(error))
    }

    /// Bytes that are left of a value that is skipped: the data set has so many more, at least. 0 where that is not known.
    #[must_use]
    pub fn skipping(&self) -> u64 {
        match self.others {
            None => self.reading.skipping(),
            Some(_) => 0,
        }
    }

    /// The captured values, by the slots of [`CapturedTags`].
    #[must_use]
    pub fn captured(&self) -> &[Captured] {
        self.reading.captured()
    }

    /// Whether the last of them is not whole: the scan stands inside a captured value.
    #[must_use]
    pub fn is_inside_value(&self) -> bool {
        self.others.is_some() || self.reading.is_inside_value()
    }

    /// The same, when the scan is over.
    #[must_use]
    pub fn into_captured(self) -> Vec<Captured> {
        self.reading.into_captured()
    }

    /// Passes over bytes of a value that are somewhere else.
    pub(crate) fn pass_over(&mut self, bytes: u64) {
        let passed = match self.others {
            _ if self.failed.is_some() => return,
            None => self.reading.pass_over(bytes),
            Some(_) => Err(ScanError::BeyondContainer),
        };
        self.failed = passed.err();
    }

    /// Whether encapsulated pixel data were seen, at any depth.
    #[must_use]
    pub fn has_fragments(&self) -> bool {
        self.reading.has_fragments()
    }

    /// Whether a top-level Pixel Data element was seen.
    #[must_use]
    pub fn has_pixel_data(&self) -> bool {
        self.reading.has_pixel_data()
    }

    /// Whether it was encapsulated (PS3.5 A.4).
    #[must_use]
    pub fn has_encapsulated_pixel_data(&self) -> bool {
        self.reading.has_encapsulated_pixel_data()
    }

    /// What was odd.
    #[must_use]
    pub fn anomalies(&self) -> Anomalies {
        self.reading.anomalies()
    }

    /// How the data set is encoded, and how unknown value representations were read.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.reading.encoding()
    }

    /// Bytes of group 0002 at the beginning of the data set.
    #[must_use]
    pub fn file_meta_bytes(&self) -> u64 {
        self.reading.file_meta_bytes()
    }
}

impl Others {
    fn new(reading: &Reading, header: UnknownHeader) -> Self {
        Self {
            header,
            open: WAYS.iter().map(|&way| reading.with(way)).collect(),
            dead: Vec::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        for mut reading in std::mem::take(&mut self.open) {
            match reading.feed(bytes) {
                // It is decided how to read, so it never stops.
                Ok(_) => self.open.push(reading),
                Err(error) => self.dead.push((reading, error)),
            }
        }
        if self.open.is_empty() {
            return Err(self.why());
        }
        Ok(())
    }

    /// The reading that counts: the first one that reaches the end, and of those one that passes nothing over.
    fn finish(mut self) -> Result<Reading, ScanError> {
        let mut whole = Vec::new();
        for mut reading in std::mem::take(&mut self.open) {
            match reading.finish() {
                Ok(()) => whole.push(reading),
                Err(error) => self.dead.push((reading, error)),
            }
        }
        whole.sort_by_key(|reading| reading.anomalies().contains(Anomaly::SequenceContent));
        let mut whole = whole.into_iter();
        let Some(chosen) = whole.next() else {
            return Err(self.why());
        };
        let agree = whole.all(|other| {
            let mut pairs = other.identity().iter().zip(chosen.identity());
            pairs.all(|(theirs, ours)| theirs.has_same_value(ours))
                && other.has_pixel_data() == chosen.has_pixel_data()
        });
        // Others may take what they read up to an error.
        let dead_agree = self.dead.iter().all(|(dead, _)| {
            let mut pairs = dead.identity().iter().zip(chosen.identity()).enumerate();
            pairs.all(|(slot, (theirs, ours))| !dead.has_captured(slot) || theirs.has_same_value(ours))
        });
        if agree && dead_agree {
            Ok(chosen)
        } else {
            Err(ScanError::Ambiguous(self.header))
        }
    }

    /// Why no reading reaches the end: a limit, or the header with which it began.
    fn why(&mut self) -> ScanError {
        let rank = |way: UnknownVr| WAYS.iter().position(|&known| known == way);
        self.dead
            .sort_by_key(|(reading, _)| rank(reading.encoding().unknown_vr));
        let is_structure = |error: &ScanError| {
            matches!(
                error,
                ScanError::Truncated
                    | ScanError::BeyondContainer
                    | ScanError::ItemStructure
                    | ScanError::UndefinedLength
                    | ScanError::ForbiddenGroup
            )
        };
        let mut errors = self.dead.iter().map(|&(_, error)| error);
        errors
            .find(|error| !is_structure(error))
            .unwrap_or(ScanError::IllegalVr(self.header))
    }
}

#[cfg(test)]
mod tests;
