//! What can be read of a data set that may be damaged, to show it to a person.

use dicom_core::Tag;

use super::captured::CapturedTags;
use super::scan::ScanLimits;
use super::stream::DatasetScan;

const MOST_INFLATED: u64 = 1 << 31;

/// Values of elements as far as the data set can be read. `None` for an element that is absent, and for one inside which the data
/// set ends. A tag is group and element in one number.
#[must_use]
pub fn values(dataset: &[u8], transfer_syntax: &str, tags: &[u32]) -> Vec<Option<Vec<u8>>> {
    let wanted: Vec<Tag> = tags.iter().copied().map(tag_of).collect();
    let wanted = CapturedTags::identifying(&wanted);
    let limits = ScanLimits::default();
    let mut scan = DatasetScan::new(transfer_syntax, &wanted, limits, MOST_INFLATED);
    // Why it cannot be read further is not asked here.
    let _ = scan.feed(dataset).and_then(|()| scan.finish());
    let captured = scan.captured();
    let last = tags.iter().copied().map(tag_of).filter(|&tag| {
        let value = wanted.slot(tag).and_then(|slot| captured.get(slot));
        value.is_some_and(|value| value.present)
    });
    let last = last.max().and_then(|tag| wanted.slot(tag));
    let cut = last.filter(|_| scan.is_inside_value());
    let value_of = |tag: &u32| {
        let slot = wanted.slot(tag_of(*tag))?;
        let value = captured.get(slot).filter(|value| value.present)?;
        (Some(slot) != cut).then(|| value.bytes.clone())
    };
    tags.iter().map(value_of).collect()
}

fn tag_of(number: u32) -> Tag {
    let [a, b, c, d] = number.to_be_bytes();
    Tag(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMPLICIT: &str = "1.2.840.10008.1.2";
    const CLASS: u32 = 0x0008_0016;
    const INSTANCE: u32 = 0x0008_0018;
    const PRIVATE: u32 = 0x1211_1217;

    fn element(tag: u32, value: &[u8]) -> Vec<u8> {
        let Tag(group, number) = tag_of(tag);
        let length = u32::try_from(value.len()).unwrap().to_le_bytes();
        [&group.to_le_bytes()[..], &number.to_le_bytes(), &length, value].concat()
    }

    #[test]
    fn what_lies_before_the_damage_is_read_and_what_is_cut_is_not() {
        let whole = [element(CLASS, b"1.2\0"), element(INSTANCE, b"1.2.3.45")].concat();
        let tags = [INSTANCE, PRIVATE, CLASS];
        let both = [Some(b"1.2.3.45".to_vec()), None, Some(b"1.2\0".to_vec())];
        assert_eq!(values(&whole, IMPLICIT, &tags), both);
        let behind = [whole.clone(), vec![0xFF; 5]].concat();
        assert_eq!(values(&behind, IMPLICIT, &tags), both);
        let cut = &whole[..whole.len() - 2];
        assert_eq!(values(cut, IMPLICIT, &tags), [None, None, both[2].clone()]);
        let private = [whole, element(PRIVATE, b"A ")].concat();
        assert_eq!(values(&private, IMPLICIT, &[PRIVATE]), [Some(b"A ".to_vec())]);
    }
}
