//! Unique identifiers (PS3.5 Chapter 9).

use std::fmt;

use arrayvec::ArrayString;

/// Characters at most (PS3.5 9.1).
const LONGEST: usize = 64;

/// A UID that is safe as one path component: `[0-9]+(\.[0-9]+)*`, 1 to 64 characters.
///
/// Components with leading zeros are accepted although PS3.5 9.1 forbids them: devices send them, and
/// they are harmless here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uid(ArrayString<LONGEST>);

/// The value breaks the grammar of PS3.5 9.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the UID breaks the grammar of PS3.5 9.1")]
pub struct UidGrammar;

impl Uid {
    /// Reads a UI value as received: trailing NUL and space are padding.
    ///
    /// # Errors
    /// [`UidGrammar`] when anything else but digits and single dots remains, or nothing, or more than 64.
    pub fn parse(value: &[u8]) -> Result<Self, UidGrammar> {
        let value = trim_padding(value);
        if value.is_empty() {
            return Err(UidGrammar);
        }
        let well_formed = value
            .split(|&byte| byte == b'.')
            .all(|component| !component.is_empty() && component.iter().all(u8::is_ascii_digit));
        if !well_formed {
            return Err(UidGrammar);
        }
        let text = std::str::from_utf8(value).map_err(|_| UidGrammar)?;
        ArrayString::from(text).map(Self).map_err(|_| UidGrammar)
    }

    /// The UID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Removes the padding of a value: trailing NUL and space (PS3.5 6.2).
#[must_use]
pub fn trim_padding(value: &[u8]) -> &[u8] {
    let end = value
        .iter()
        .rposition(|&byte| byte != 0 && byte != b' ')
        .map_or(0, |last| last + 1);
    value.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_uids_are_refused() {
        let long = "1".repeat(65);
        for value in [
            "",
            ".",
            "..",
            "1..2",
            ".1",
            "1.",
            "../../../../x",
            "/etc/x",
            "1\0.2",
            "1\r\n2",
            "\x1b[2J",
            "1.2\\1.3",
            "１.２",
            "%2e%2e%2f",
            "*",
            " 1.2",
            &long,
        ] {
            assert_eq!(Uid::parse(value.as_bytes()), Err(UidGrammar), "{value:?}");
        }
    }

    #[test]
    fn padding_is_trimmed_and_leading_zeros_stay() {
        assert_eq!(Uid::parse(b"1.02.3\0").unwrap().as_str(), "1.02.3");
        assert_eq!(Uid::parse(b"1.2 \0 ").unwrap().as_str(), "1.2");
        assert_eq!(Uid::parse("9".repeat(64).as_bytes()).unwrap().as_str().len(), 64);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_one_harmless_path_component(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(uid) = Uid::parse(&bytes) {
                prop_assert!(uid.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.'));
                prop_assert!(!uid.as_str().starts_with('.') && !uid.as_str().contains(".."));
                prop_assert!(uid.as_str().len() <= 64);
            }
        }
    }
}
