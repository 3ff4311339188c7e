//! A row as bytes in the journal: header, fields, checksum.

use crate::digest::checksum_with_seed;
use crate::outbox::NewRow;

/// Length of the fields, number of the entry, checksum.
const HEADER_BYTES: usize = 4 + 8 + 8;

const FIXED_BYTES: usize = 8 + 16 + 8 + 1;
/// In the last byte. Earlier versions had 1 there where nothing lay at the path.
const REPLACES: u8 = 2;

/// The last one is not used any more: it was the name of a temporary file.
fn texts(row: &NewRow) -> [&str; 5] {
    [&row.trace_id, &row.key, &row.payload, &row.path, ""]
}

/// Bytes of an entry.
pub(super) fn length(row: &NewRow) -> usize {
    let texts: usize = texts(row).iter().map(|text| 4 + text.len()).sum();
    HEADER_BYTES + texts + FIXED_BYTES
}

/// An entry: `number` grows from one to the next, and seeds the checksum.
pub(super) fn encode(number: u64, row: &NewRow) -> Vec<u8> {
    let mut entry = Vec::with_capacity(length(row));
    entry.resize(HEADER_BYTES, 0);
    for text in texts(row) {
        entry.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        entry.extend_from_slice(text.as_bytes());
    }
    entry.extend_from_slice(&row.size.to_le_bytes());
    entry.extend_from_slice(&row.digest);
    entry.extend_from_slice(&row.created.to_le_bytes());
    entry.push(if row.replaces { REPLACES } else { 0 });
    let (header, fields) = entry.split_at_mut(HEADER_BYTES);
    let length = u32::try_from(fields.len()).unwrap_or(u32::MAX);
    let (length_at, rest) = header.split_at_mut(4);
    let (number_at, checksum_at) = rest.split_at_mut(8);
    length_at.copy_from_slice(&length.to_le_bytes());
    number_at.copy_from_slice(&number.to_le_bytes());
    checksum_at.copy_from_slice(&checksum_with_seed(fields, number).to_le_bytes());
    entry
}

/// The entries at the beginning of a file. It ends where the checksum is wrong, or where numbers stop growing: behind that
/// lies what was torn, or what the file held before.
pub(super) fn decode_all(mut bytes: &[u8]) -> Vec<(u64, NewRow)> {
    let mut rows = Vec::new();
    let mut last = 0;
    while let Some((number, row)) = decode(&mut bytes).filter(|(number, _)| *number > last) {
        last = number;
        rows.push((number, row));
    }
    rows
}

fn decode(bytes: &mut &[u8]) -> Option<(u64, NewRow)> {
    let length = usize::try_from(u32::from_le_bytes(array(bytes)?)).ok()?;
    let number = u64::from_le_bytes(array(bytes)?);
    let checksum = u64::from_le_bytes(array(bytes)?);
    let mut fields = take(bytes, length)?;
    if checksum_with_seed(fields, number) != checksum {
        return None;
    }
    let mut text = || {
        let length = usize::try_from(u32::from_le_bytes(array(&mut fields)?)).ok()?;
        String::from_utf8(take(&mut fields, length)?.to_vec()).ok()
    };
    let [trace_id, key, payload, path, _] = [text()?, text()?, text()?, text()?, text()?];
    let row = NewRow {
        trace_id,
        key,
        payload,
        path,
        size: u64::from_le_bytes(array(&mut fields)?),
        digest: array(&mut fields)?,
        created: i64::from_le_bytes(array(&mut fields)?),
        replaces: fields.first() == Some(&REPLACES),
    };
    Some((number, row))
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}
