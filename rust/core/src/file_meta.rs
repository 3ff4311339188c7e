//! The PS3.10 header of the files we write (PS3.10 7.1).

use crate::dataset::header::put_group_length;
use crate::uid::{trim_padding, Uid};
use crate::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};

const PREAMBLE_BYTES: usize = 128;

/// The header of a PS3.10 file: a zero preamble, `DICM`, and File Meta Information in Explicit VR Little Endian.
///
/// The preamble is always zero: a sender cannot plant a program in it.
#[must_use]
pub fn encode(sop_class: &Uid, sop_instance: &Uid, transfer_syntax: &str, source_ae_title: &str) -> Vec<u8> {
    let mut header = Vec::with_capacity(512);
    header.resize(PREAMBLE_BYTES, 0);
    header.extend_from_slice(b"DICM\x02\x00\x00\x00UL\x04\x00\0\0\0\0");
    let group_at = header.len();
    let group = &mut header;
    // (0002,0001) File Meta Information Version: 0001, OB with a 32-bit length.
    group.extend_from_slice(b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\x00\x01");
    element(group, 0x0002, *b"UI", sop_class.as_str(), 0);
    element(group, 0x0003, *b"UI", sop_instance.as_str(), 0);
    element(group, 0x0010, *b"UI", transfer_syntax, 0);
    element(group, 0x0012, *b"UI", IMPLEMENTATION_CLASS_UID, 0);
    element(group, 0x0013, *b"SH", IMPLEMENTATION_VERSION_NAME, b' ');
    if !source_ae_title.is_empty() {
        element(group, 0x0016, *b"AE", source_ae_title, b' ');
    }
    put_group_length(&mut header, group_at);
    header
}

fn element(group: &mut Vec<u8>, number: u16, vr: [u8; 2], value: &str, padding: u8) {
    let odd = value.len() % 2;
    group.extend_from_slice(&[0x02, 0x00]);
    group.extend_from_slice(&number.to_le_bytes());
    group.extend_from_slice(&vr);
    group.extend_from_slice(&u16::try_from(value.len() + odd).unwrap_or(0).to_le_bytes());
    group.extend_from_slice(value.as_bytes());
    if odd == 1 {
        group.push(padding);
    }
}

/// The File Meta Information of a PS3.10 file, as far as it is of interest here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileMeta {
    /// Where the data set begins.
    pub dataset_at: usize,
    /// Media Storage SOP Class UID (0002,0002).
    pub sop_class_uid: String,
    /// Transfer Syntax UID (0002,0010).
    pub transfer_syntax: String,
    /// Implementation Class UID (0002,0012): which program wrote the file.
    pub implementation_class_uid: String,
    /// Source Application Entity Title (0002,0016).
    pub source_ae_title: String,
}

/// Reads File Meta Information from the start of a file; `None` when it does not hold a whole header that we understand.
#[must_use]
pub fn decode(head: &[u8]) -> Option<FileMeta> {
    let body = head
        .get(PREAMBLE_BYTES..)?
        .strip_prefix(b"DICM\x02\x00\x00\x00UL\x04\x00")?;
    let (&length, rest) = body.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let mut group = rest.get(..length)?;
    let mut meta = FileMeta {
        dataset_at: head.len() - rest.len() + length,
        ..FileMeta::default()
    };
    while let Some((&[2, 0, low, high, v, r, a, b], after)) = group.split_first_chunk::<8>() {
        let (size, value) = if [v, r] == *b"OB" {
            let (&long, value) = after.split_first_chunk::<4>()?;
            (usize::try_from(u32::from_le_bytes(long)).ok()?, value)
        } else {
            (usize::from(u16::from_le_bytes([a, b])), after)
        };
        let (value, next) = value.split_at_checked(size)?;
        let text = || String::from_utf8(trim_padding(value).to_vec()).ok();
        match u16::from_le_bytes([low, high]) {
            0x0002 => meta.sop_class_uid = text()?,
            0x0010 => meta.transfer_syntax = text()?,
            0x0012 => meta.implementation_class_uid = text()?,
            0x0016 => meta.source_ae_title = text()?,
            _ => {}
        }
        group = next;
    }
    (!meta.transfer_syntax.is_empty()).then_some(meta)
}

/// Where the data set of a PS3.10 file begins, whatever wrote it: behind the last element of group 0002.
#[must_use]
pub fn dataset_at(head: &[u8]) -> Option<usize> {
    let mut rest = head.get(PREAMBLE_BYTES..)?.strip_prefix(b"DICM")?;
    while let Some((&[2, 0, _, _, v, r, a, b], after)) = rest.split_first_chunk::<8>() {
        let (size, value) = if matches!(&[v, r], b"OB" | b"UN") {
            let (&long, value) = after.split_first_chunk::<4>()?;
            (usize::try_from(u32::from_le_bytes(long)).ok()?, value)
        } else {
            (usize::from(u16::from_le_bytes([a, b])), after)
        };
        (_, rest) = value.split_at_checked(size)?;
    }
    Some(head.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_even_and_says_where_the_data_set_begins() {
        let class = Uid::parse(b"1.2.840.10008.5.1.4.1.1.2").unwrap();
        let instance = Uid::parse(b"1.2.34").unwrap();
        let header = encode(&class, &instance, "1.2.840.10008.1.2.1", "CT1");
        assert!(header.len().is_multiple_of(2) && header[..128].iter().all(|&b| b == 0));
        let mut file = header.clone();
        file.extend_from_slice(b"\x08\x00data");
        let meta = FileMeta {
            dataset_at: header.len(),
            sop_class_uid: class.to_string(),
            transfer_syntax: "1.2.840.10008.1.2.1".to_owned(),
            implementation_class_uid: IMPLEMENTATION_CLASS_UID.to_owned(),
            source_ae_title: "CT1".to_owned(),
        };
        assert_eq!(decode(&file), Some(meta));
        assert_eq!(dataset_at(&file), Some(header.len()));
        assert_eq!(dataset_at(&header[..header.len() - 1]), None);
        assert_eq!(dataset_at(b"junk"), None);
        assert_eq!(decode(&header[..header.len() - 1]), None);
        assert_eq!(decode(b"junk"), None);
    }
}
