//! Pixel Data in items: icons, and images in sequences of any kind, at any depth.
//!
//! They are native in every result. PS3.5 A.4 lets them be so beside encapsulated Pixel Data, and in a native transfer syntax they
//! have to be. Around them stays what was received, byte for byte, but for lengths that would be wrong.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use super::convert::Writer;
use super::image::Image;
use super::rewrite::{prepare, write_edit, Edits, Pixels};
use super::{Job, TranscodeError};
use crate::dataset::header::{ITEM_DELIMITATION, PIXEL_DATA, SEQUENCE_DELIMITATION, UNDEFINED};
use crate::dataset::scan::ScanError;
use crate::dataset::walk::{next_top_level, Token, TopLevel, Walk};
use crate::transfer_syntax::{is_native, Encoding};

/// The pixels of an item are written in the form of this one, whatever the encoding around them.
const NATIVE: &str = "1.2.840.10008.1.2.1";

/// Only who wrote them knows what they are.
const NOT_PIXEL_DATA: TranscodeError =
    TranscodeError::Frames("fragments in an element that is not Pixel Data");

/// In a native transfer syntax nothing tells how they are compressed.
pub(super) const MISLABELLED: TranscodeError =
    TranscodeError::Frames("encapsulated pixels in a native transfer syntax");

/// The elements of a data set besides its Pixel Data.
pub(super) struct Elements<'d> {
    dataset: &'d [u8],
    encoding: Encoding,
    job: &'d Job<'d>,
    /// Bytes that pixels in items may decode to.
    budget: u64,
    frames: usize,
}

impl<'d> Elements<'d> {
    /// `decoded_bytes` are those of the pixels at the top, which count as well.
    pub(super) fn new(dataset: &'d [u8], encoding: Encoding, job: &'d Job<'d>, decoded_bytes: u64) -> Self {
        Self {
            dataset,
            encoding,
            job,
            budget: job.max_decoded_bytes.saturating_sub(decoded_bytes),
            frames: 0,
        }
    }

    /// Frames of images in items.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// A whole element, as it is in the source but for encapsulated pixels in it, which are decoded.
    pub(super) fn whole(&mut self, element: &TopLevel) -> Result<Cow<'d, [u8]>, TranscodeError> {
        let whole = self.dataset.get(element.whole.clone()).unwrap_or_default();
        if element.is_encapsulated {
            return Err(NOT_PIXEL_DATA);
        }
        if !element.holds_encapsulated {
            return Ok(Cow::Borrowed(whole));
        }
        if is_native(self.job.source) {
            return Err(MISLABELLED);
        }
        if !element.is_regular {
            return Err(TranscodeError::OddPixelData);
        }
        let (whole, frames) = decoded(whole, self.encoding, self.job, &mut self.budget)?;
        self.frames += frames;
        Ok(Cow::Owned(whole))
    }
}

/// What stands in the place of a part of an element; an empty range is a place between two bytes.
struct Splice {
    range: Range<usize>,
    bytes: Vec<u8>,
}

/// A sequence or an item that is open.
struct Open {
    /// That of a sequence; an item has none.
    group: Option<u16>,
    /// The length in its header, which is followed by what it holds.
    length_at: usize,
    has_length: bool,
    holds_encapsulated: bool,
    /// An item with encapsulated Pixel Data among its elements.
    is_image: bool,
    /// Group Length (gggg,0000) among its elements.
    group_lengths: Vec<(u16, Range<usize>)>,
    /// Groups of which something changes.
    changed: BTreeSet<u16>,
}

/// One element at the top of a data set with all encapsulated pixels in it decoded; how many frames they were. `budget`: how many
/// bytes they may decode to, and what is left of that.
fn decoded(
    element: &[u8],
    encoding: Encoding,
    job: &Job<'_>,
    budget: &mut u64,
) -> Result<(Vec<u8>, usize), TranscodeError> {
    let mut nested = Nested {
        element,
        job,
        budget,
        open: Vec::new(),
        splices: Vec::new(),
        frames: 0,
    };
    let mut walk = Walk::new(element, encoding);
    loop {
        let begin = walk.position();
        let inside = walk.encoding();
        let Some(token) = walk.next()? else { break };
        nested.step(&token, begin..walk.position(), inside)?;
    }
    let frames = nested.frames;
    Ok((nested.spliced()?, frames))
}

struct Nested<'n> {
    element: &'n [u8],
    job: &'n Job<'n>,
    budget: &'n mut u64,
    open: Vec<Open>,
    splices: Vec<Splice>,
    frames: usize,
}

impl Nested<'_> {
    /// Acts on one token; `bytes` is its header, or a whole element.
    fn step(&mut self, token: &Token, bytes: Range<usize>, inside: Encoding) -> Result<(), TranscodeError> {
        match token {
            Token::Sequence { tag } => self.push(Some(tag.0), bytes.end),
            Token::Item => self.push(None, bytes.end),
            Token::Element { tag, .. } if tag.1 == 0 => {
                if let Some(item) = self.open.last_mut() {
                    item.group_lengths.push((tag.0, bytes));
                }
            }
            Token::Fragments { tag: PIXEL_DATA, .. } => {
                for open in &mut self.open {
                    open.holds_encapsulated = true;
                }
                if let Some(item) = self.open.last_mut() {
                    item.is_image = true;
                }
            }
            Token::Fragments { .. } => return Err(NOT_PIXEL_DATA),
            Token::SequenceEnd | Token::ItemEnd => self.close(bytes.start, inside)?,
            Token::Element { .. } | Token::Fragment(_) | Token::FragmentsEnd => {}
        }
        Ok(())
    }

    fn push(&mut self, group: Option<u16>, content_at: usize) {
        // PS3.5 7.1.2, 7.1.3, 7.5: in each form the length is what comes last.
        let length_at = content_at.saturating_sub(4);
        let length = self.element.get(length_at..content_at);
        self.open.push(Open {
            group,
            length_at,
            has_length: length != Some(UNDEFINED.to_le_bytes().as_slice()),
            holds_encapsulated: false,
            is_image: false,
            group_lengths: Vec::new(),
            changed: BTreeSet::new(),
        });
    }

    /// `end` is where what it holds ends.
    fn close(&mut self, end: usize, inside: Encoding) -> Result<(), TranscodeError> {
        let Some(mut closed) = self.open.pop().filter(|closed| closed.holds_encapsulated) else {
            return Ok(());
        };
        if closed.is_image {
            self.decode(closed.length_at + 4..end, inside)?;
            closed.changed.extend([0x0028, PIXEL_DATA.0]);
        }
        for (group, range) in closed.group_lengths {
            if closed.changed.contains(&group) {
                self.splice(range, Vec::new());
            }
        }
        if closed.has_length {
            self.splice(
                closed.length_at..closed.length_at + 4,
                UNDEFINED.to_le_bytes().to_vec(),
            );
            let mut delimiter = Vec::new();
            let tag = match closed.group {
                Some(_) => SEQUENCE_DELIMITATION,
                None => ITEM_DELIMITATION,
            };
            Writer::new(&mut delimiter, false, false).item(tag, 0)?;
            self.splice(end..end, delimiter);
        }
        if let (Some(group), Some(around)) = (closed.group, self.open.last_mut()) {
            around.changed.insert(group);
        }
        Ok(())
    }

    /// The image that an item is: its Pixel Data, and the attributes that change with them.
    fn decode(&mut self, content: Range<usize>, encoding: Encoding) -> Result<(), TranscodeError> {
        let item = self.element.get(content.clone()).unwrap_or_default();
        let image = Image::read(item, encoding)?;
        let pixel_data = image
            .pixel_data
            .as_ref()
            .ok_or(TranscodeError::Frames("no fragments"))?;
        let job = Job {
            target: NATIVE,
            max_decoded_bytes: *self.budget,
            ..*self.job
        };
        let pixels = prepare(&image, pixel_data, &job)?;
        *self.budget = self.budget.saturating_sub(pixels.native_bytes());
        self.frames += pixels.count();
        let edits = pixels.edits_in_an_item()?;
        self.splice_image(content.start, item, encoding, (&pixels, &edits))
    }

    fn splice_image(
        &mut self,
        origin: usize,
        item: &[u8],
        encoding: Encoding,
        (pixels, edits): (&Pixels<'_>, &Edits),
    ) -> Result<(), TranscodeError> {
        let mut pending = edits.iter().peekable();
        let mut walk = Walk::new(item, encoding);
        let written = |edit: &dyn Fn(&mut Writer<'_>) -> Result<(), TranscodeError>| {
            let mut bytes = Vec::new();
            edit(&mut Writer::new(&mut bytes, encoding.explicit_vr, false))?;
            Ok::<_, TranscodeError>(bytes)
        };
        while let Some(element) = next_top_level(&mut walk)? {
            let whole = origin + element.whole.start..origin + element.whole.end;
            while let Some((tag, edit)) =
                pending.next_if(|(tag, _)| **tag < element.tag || element.tag == PIXEL_DATA)
            {
                let bytes = written(&|writer| write_edit(writer, *tag, edit.as_ref()))?;
                self.splice(whole.start..whole.start, bytes);
            }
            if let Some((tag, edit)) = pending.next_if(|(tag, _)| **tag == element.tag) {
                let bytes = written(&|writer| write_edit(writer, *tag, edit.as_ref()))?;
                self.splice(whole, bytes);
            } else if element.tag == PIXEL_DATA {
                let bytes = written(&|writer| pixels.write(writer, &mut || ()))?;
                self.splice(whole, bytes);
            }
        }
        Ok(())
    }

    fn splice(&mut self, range: Range<usize>, bytes: Vec<u8>) {
        self.splices.push(Splice { range, bytes });
    }

    /// The element with every splice in its place. They do not overlap, and those of one place are in order: what is inside is closed
    /// before what is around it.
    fn spliced(mut self) -> Result<Vec<u8>, TranscodeError> {
        self.splices.sort_by_key(|splice| splice.range.start);
        let mut whole = Vec::with_capacity(self.element.len());
        let mut at = 0;
        for splice in &self.splices {
            let kept = self.element.get(at..splice.range.start);
            whole.extend_from_slice(kept.ok_or(ScanError::ItemStructure)?);
            whole.extend_from_slice(&splice.bytes);
            at = splice.range.end;
        }
        whole.extend_from_slice(self.element.get(at..).unwrap_or_default());
        Ok(whole)
    }
}
