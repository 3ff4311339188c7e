//! Text in its Specific Character Set (PS3.3 C.12.1.1.2, PS3.5 Chapter 6 and Annexes H to K).
//!
//! Broken text never fails an instance: what cannot be decoded becomes U+FFFD, and [`Decoded::is_doubtful`] says so.
//! `terms` reads the names of the sets, `sets` decodes the bytes of one set, `iso2022` follows escape sequences.

mod iso2022;
mod sets;
mod terms;

use iso2022::ESCAPE;
use sets::Set;
use terms::{readings, Reading};
pub use terms::{DEFINED_TERMS, OTHER_TERMS};

/// How the text values of a data set are decoded: the value of (0008,0005), which is read when a text needs it.
#[derive(Clone, Copy, Debug)]
pub struct SpecificCharacterSet<'v> {
    value: &'v [u8],
}

/// A decoded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The text, with U+FFFD for what could not be decoded; control characters stay as they are.
    pub text: String,
    /// Whether U+FFFD was put in, or bytes above 7F were read that no known term declares.
    pub is_doubtful: bool,
}

impl<'v> SpecificCharacterSet<'v> {
    /// Takes the value of (0008,0005), empty where it is absent.
    #[must_use]
    pub fn from_value(value: &'v [u8]) -> Self {
        Self { value }
    }

    /// Decodes one value.
    #[must_use]
    pub fn decode(&self, value: &[u8]) -> Decoded {
        // ASCII is the same in every set.
        if value.is_ascii() && !value.contains(&ESCAPE) {
            return Decoded {
                text: String::from_utf8_lossy(value).into_owned(),
                is_doubtful: false,
            };
        }
        let mut decoded = self.decode_by_set(value);
        // A byte order mark is no character of the text.
        if decoded.text.starts_with('\u{FEFF}') {
            decoded.text.remove(0);
        }
        decoded
    }

    /// The first reading that leaves nothing open, else what the first declared set makes of the value.
    fn decode_by_set(&self, value: &[u8]) -> Decoded {
        let readings = readings(self.value);
        for &Reading { set, is_declared } in &readings {
            let found = iso2022::decode(value, set);
            if found.is_complete {
                return Decoded {
                    text: found.text,
                    is_doubtful: found.uses_initial && !is_declared,
                };
            }
        }
        let fallback = readings
            .iter()
            .find(|reading| reading.is_declared)
            .or(readings.last());
        let set = fallback.map_or(Set::Nothing, |reading| reading.set);
        Decoded {
            text: iso2022::decode(value, set).text,
            is_doubtful: true,
        }
    }
}

#[cfg(test)]
mod tests;
