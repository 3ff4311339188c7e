//! AE titles as they come in an A-ASSOCIATE-RQ (PS3.8 Table 9-11).

/// What stands around titles: PS3.8 asks for spaces, some senders pad with NUL or keep the end of a line.
const PADDING: [u8; 5] = [b' ', 0, b'\t', b'\r', b'\n'];

/// A title that can be worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Title {
    /// Printable ASCII without backslash; a byte beyond ASCII is a question mark.
    pub text: String,
    /// The field has more or other bytes than the text and its padding with spaces or NULs.
    pub is_odd: bool,
}

/// Reads a title field. What follows a NUL does not count: senders copy short titles into buffers that are not cleared.
///
/// None for a blank title and for one with a control character or a backslash. They would be two values of
/// Source Application Entity Title (0002,0016), or lines of their own wherever the title is printed.
#[must_use]
pub fn read(field: &[u8]) -> Option<Title> {
    let (title, rest) = split(field);
    let is_refused = |byte: &u8| byte.is_ascii_control() || *byte == b'\\';
    if title.is_empty() || title.iter().any(is_refused) {
        return None;
    }
    let is_plain = |byte: &u8| *byte == b' ' || *byte == 0;
    let before = field.len() - rest.len() - title.len();
    let is_odd = !title.is_ascii() || !rest.iter().all(is_plain) || !field.iter().take(before).all(is_plain);
    Some(Title {
        text: printable(title),
        is_odd,
    })
}

/// The printable ASCII of a title field, whatever is in it; blank where there is nothing.
#[must_use]
pub fn printable_text(field: &[u8]) -> String {
    printable(split(field).0)
}

/// The title, and what follows it in the field.
fn split(field: &[u8]) -> (&[u8], &[u8]) {
    let is_title = |byte: &u8| !PADDING.contains(byte);
    let from = field.iter().position(is_title).unwrap_or(field.len());
    let whole = field.get(from..).unwrap_or_default();
    let until_nul = whole.split(|&byte| byte == 0).next().unwrap_or_default();
    let length = until_nul.iter().rposition(is_title).map_or(0, |last| last + 1);
    whole.split_at_checked(length).unwrap_or_default()
}

fn printable(title: &[u8]) -> String {
    let plain = |&byte: &u8| match byte {
        b'\\' => '?',
        0x20..=0x7E => char::from(byte),
        _ => '?',
    };
    title.iter().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn title(text: &str, is_odd: bool) -> Title {
        let text = text.to_owned();
        Title { text, is_odd }
    }

    #[test]
    fn padding_is_no_part_of_a_title() {
        for field in [
            b"CT 1            ",
            b"  CT 1          ",
            b"CT 1\0\0\0\0\0\0\0\0\0\0\0\0",
            b" \0CT 1 \0 \0      ",
        ] {
            assert_eq!(read(field), Some(title("CT 1", false)), "{field:?}");
        }
    }

    #[test]
    fn what_devices_leave_in_the_field_is_odd_and_no_reason_to_refuse() {
        assert_eq!(read(b"CT1\0\x01\x7Fxyz       "), Some(title("CT1", true)));
        assert_eq!(read(b"CT1\r\n           "), Some(title("CT1", true)));
        assert_eq!(read(b"\tCT1            "), Some(title("CT1", true)));
        assert_eq!(read(b"\xC9CHO            "), Some(title("?CHO", true)));
    }

    #[test]
    fn blank_titles_control_characters_and_backslashes_are_refused() {
        for field in [
            &b"                "[..],
            &[0; 16],
            b"",
            b"\r\n",
            b"A\\B",
            b"A\nB",
            b"\x1b[2J",
            b"A\x7F",
        ] {
            assert_eq!(read(field), None, "{field:?}");
        }
        assert_eq!(printable_text(b"A\\B\n\xC4"), "A?B??");
        assert_eq!(printable_text(b" \0 "), "");
    }

    proptest! {
        #[test]
        fn what_is_read_is_printable_and_read_again_as_it_is(field in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some(title) = read(&field) {
                prop_assert!(!title.text.is_empty() && title.text.len() <= field.len());
                let again = read(title.text.as_bytes());
                prop_assert_eq!(again, Some(Title { text: title.text, is_odd: false }));
            }
        }
    }
}
