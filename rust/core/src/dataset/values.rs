//! Dates and counts as devices write them.

use chrono::NaiveDate;

/// PS3.5 6.2: an IS value is a signed 32-bit number.
const MOST_FRAMES: u32 = 0x7FFF_FFFF;

/// Number of Frames (0028,0008), an IS value (PS3.5 6.2), as pydicom or DCMTK reads it; None where neither can or they differ.
///
/// - An empty value and zero are one frame: an instance with pixels has at least one.
/// - The first of several values counts.
/// - Padding is any white space or NUL at either end; a sign, leading zeros, and a fraction of zeros are allowed.
#[must_use]
pub fn number_of_frames(value: &[u8]) -> Option<u32> {
    let first = value.split(|&byte| byte == b'\\').next().unwrap_or_default();
    let text = std::str::from_utf8(without_padding(first)).ok()?;
    if text.is_empty() {
        return Some(1);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = match text.split_once('.') {
        Some((digits, fraction)) if fraction.bytes().all(|byte| byte == b'0') => digits,
        Some(_) => return None,
        None => text,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let frames: u32 = digits.parse().ok()?;
    (frames <= MOST_FRAMES).then_some(frames.max(1))
}

/// A DA value (PS3.5 6.2): YYYYMMDD, or with the separators `.` (ACR-NEMA), `-` or `/`. A time behind the date is left out.
#[must_use]
pub fn date(value: &[u8]) -> Option<NaiveDate> {
    let text = without_padding(value);
    let (digits, rest) = match *text {
        [a, b, c, d, s @ (b'.' | b'-' | b'/'), e, f, t, g, h, ref rest @ ..] if s == t => {
            ([a, b, c, d, e, f, g, h], rest)
        }
        [a, b, c, d, e, f, g, h, ref rest @ ..] => ([a, b, c, d, e, f, g, h], rest),
        _ => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) || !(rest.is_empty() || is_time(rest)) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    let year = i32::try_from(number / 10_000).ok()?;
    NaiveDate::from_ymd_opt(year, number / 100 % 100, number % 100).filter(|_| year > 0)
}

/// Whether what stands behind a date is a time of day, as in a DT value (PS3.5 6.2) or in ISO 8601: hours, minutes, seconds, a
/// fraction and an offset from UTC, each of the latter only behind the former.
fn is_time(text: &[u8]) -> bool {
    let mut rest = text.strip_prefix(b"T").unwrap_or(text).trim_ascii_start();
    for (place, limit) in [24, 59, 60].into_iter().enumerate() {
        let digits = match *rest {
            [b':', a, b, ..] if place > 0 => Some((a, b, 3)),
            [a, b, ..] => Some((a, b, 2)),
            _ => None,
        };
        let Some((a, b, size)) = digits.filter(|(a, b, _)| a.is_ascii_digit() && b.is_ascii_digit()) else {
            if place == 0 {
                return false;
            }
            break;
        };
        if (a - b'0') * 10 + (b - b'0') > limit {
            return false;
        }
        rest = rest.get(size..).unwrap_or_default();
    }
    if let [b'.' | b',', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = fraction.get(digits..).unwrap_or_default();
    }
    match *rest.trim_ascii_start() {
        [] | [b'Z'] => true,
        [b'+' | b'-', a, b, c, d] | [b'+' | b'-', a, b, b':', c, d] => {
            [a, b, c, d].iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// Without white space and NUL at both ends.
fn without_padding(value: &[u8]) -> &[u8] {
    let is_padding = |byte: &u8| matches!(byte, 0 | b'\t'..=b'\r' | b' ');
    let begin = value
        .iter()
        .position(|byte| !is_padding(byte))
        .unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(|byte| !is_padding(byte))
        .map_or(begin, |last| last + 1);
    value.get(begin..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_frames_is_read_as_others_read_it() {
        for (value, frames) in [
            (&b"12"[..], Some(12)),
            (b"12 ", Some(12)),
            (b" 12\0", Some(12)),
            (b"\t5\r\n", Some(5)),
            (b"5\0\0\0", Some(5)),
            (b"+5", Some(5)),
            (b"0005", Some(5)),
            (b"1.0", Some(1)),
            (b"2.", Some(2)),
            (b"3.000", Some(3)),
            (b"0", Some(1)),
            (b"00", Some(1)),
            (b"+0", Some(1)),
            (b"0.0", Some(1)),
            (b"", Some(1)),
            (b" \0 ", Some(1)),
            (b"2\\3", Some(2)),
            (b"\\3", Some(1)),
            (b"2147483647", Some(0x7FFF_FFFF)),
            (b"2147483648", None),
            (b"99999999999", None),
            (b"-3", None),
            (b"1.5", None),
            (b"1e1", None),
            (b"1_0", None),
            (b"++5", None),
            (b"5 6", None),
            (b"5\x006", None),
            (b".", None),
            (b"junk", None),
            (b"\xff", None),
            ("５".as_bytes(), None),
        ] {
            assert_eq!(number_of_frames(value), frames, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn dates_are_read_with_separators_and_times() {
        let day = NaiveDate::from_ymd_opt(2026, 1, 2);
        for value in [
            "20260102",
            " 20260102 \0",
            "2026.01.02",
            "2026-01-02",
            "2026/01/02",
            "20260102120000",
            "202601021200",
            "2026010212",
            "20260102120000.123456",
            "20260102120000.123456+0100",
            "20260102120000-0500",
            "20260102 120000",
            "20260102T120000Z",
            "20260102 12:00:00",
            "2026-01-02T12:00:00.5+01:00",
            "2026-01-02 12:00",
            "2026.01.02 12:00:60",
        ] {
            assert_eq!(date(value.as_bytes()), day, "{value}");
        }
        for value in [
            "",
            "2026",
            "20261",
            "2026010",
            "20260230",
            "20261301",
            "00000101",
            "2026-0102",
            "2026.01.02.120000",
            "2026-01.02",
            "01-02-2026",
            "02/01/2026",
            "20260102-20260103",
            "20260102-0500",
            "20260102\\20260103",
            "202601021",
            "20260102250000",
            "20260102126000",
            "20260102120000.",
            "20260102 noon",
            "20260102T",
            "２０２６０１０２",
        ] {
            assert_eq!(date(value.as_bytes()), None, "{value}");
        }
    }
}
