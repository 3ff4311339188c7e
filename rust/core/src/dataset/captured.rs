//! Which values of a data set the scan keeps.

use std::sync::Arc;

use dicom_core::{Tag, VR};

/// The top-level elements whose values are kept: first those that identify an instance, on which all readings of a data set must
/// agree, then those that only describe it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CapturedTags(Arc<Slots>);

#[derive(Debug, Default)]
struct Slots {
    identifying: usize,
    /// By tag.
    slots: Vec<(Tag, usize)>,
}

impl CapturedTags {
    /// Each tag once: one that identifies does not describe.
    #[must_use]
    pub fn new(identifying: &[Tag], describing: &[Tag]) -> Self {
        let mut slots: Vec<(Tag, usize)> = Vec::new();
        let mut add = |tags: &[Tag]| {
            for &tag in tags {
                if slots.iter().all(|&(known, _)| known != tag) {
                    slots.push((tag, slots.len()));
                }
            }
            slots.len()
        };
        let identifying = add(identifying);
        add(describing);
        slots.sort_unstable();
        Self(Arc::new(Slots { identifying, slots }))
    }

    /// Those that identify, and no others.
    #[must_use]
    pub fn identifying(tags: &[Tag]) -> Self {
        Self::new(tags, &[])
    }

    /// Where the value of a tag is kept.
    #[must_use]
    pub fn slot(&self, tag: Tag) -> Option<usize> {
        let slots = &self.0.slots;
        let found = slots.binary_search_by_key(&tag, |&(known, _)| known).ok()?;
        slots.get(found).map(|&(_, slot)| slot)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.slots.len()
    }

    /// Slots below this one identify.
    pub(super) fn identifying_count(&self) -> usize {
        self.0.identifying
    }
}

/// A value kept by the scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// The bytes as received, at most [`super::scan::ScanLimits::value_bytes`]. Those of a sequence that describes are its items and,
    /// where its length is undefined, its delimiter; one that should identify has none.
    pub bytes: Vec<u8>,
    /// There is more of it than these bytes.
    pub cut: bool,
    /// The element occurred.
    pub present: bool,
    /// Value representation, where it is written.
    pub vr: Option<VR>,
    /// A sequence of undefined length.
    pub is_undefined_length: bool,
}

impl Captured {
    /// Whether it is the same value, however its header is read.
    pub(super) fn has_same_value(&self, other: &Self) -> bool {
        (&self.bytes, self.cut, self.present) == (&other.bytes, other.cut, other.present)
    }

    /// Forgets the value and keeps its memory.
    pub(super) fn clear(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Self {
            bytes,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_has_one_slot_and_identifying_ones_come_first() {
        let [a, b, c] = [1, 2, 3].map(|element| Tag(0x0010, element));
        let tags = CapturedTags::new(&[c, a, c], &[b, a]);
        assert_eq!((tags.count(), tags.identifying_count()), (3, 2));
        assert_eq!([c, a, b].map(|tag| tags.slot(tag)), [Some(0), Some(1), Some(2)]);
        assert_eq!(tags.slot(Tag(0x0010, 4)), None);
        assert_eq!(CapturedTags::default().count(), 0);
    }
}
