//! Code extensions of ISO 2022 as DICOM uses them (PS3.5 6.1.2.4 and 6.1.2.5).

use super::sets::{Pairs, Set};

pub(super) const ESCAPE: u8 = 0x1B;

/// What the 7-bit codes, element G0, stand for.
#[derive(Clone, Copy)]
enum Lower {
    /// ASCII, or JIS X 0201 romaji, which is read as ASCII.
    Ascii,
    /// Half-width katakana.
    Katakana,
    /// Two codes a character.
    Pairs(Pairs),
}

/// What an escape sequence changes.
enum Designation {
    Lower(Lower),
    /// None for the initial set.
    Upper(Option<Set>),
}

/// A decoded value.
pub(super) struct Outcome {
    pub(super) text: String,
    /// Whether nothing had to be replaced.
    pub(super) is_complete: bool,
    /// Whether bytes above 7F were read in the initial set.
    pub(super) uses_initial: bool,
}

/// Decodes a value that begins with ASCII in G0 and `initial` in G1.
///
/// Escape sequences are followed whether the data set declares their sets or not: each names its set by itself.
pub(super) fn decode(value: &[u8], initial: Set) -> Outcome {
    if !value.contains(&ESCAPE) {
        if let Some(text) = initial.decode(value) {
            return Outcome {
                text,
                is_complete: true,
                uses_initial: !value.is_ascii(),
            };
        }
    }
    let mut machine = Machine::new(initial, value.len());
    let mut rest = value;
    while let Some(&byte) = rest.first() {
        let size = machine.step(byte, rest);
        rest = rest.get(size..).unwrap_or_default();
    }
    machine.outcome
}

struct Machine {
    initial: Set,
    lower: Lower,
    /// None while it is the initial set.
    upper: Option<Set>,
    outcome: Outcome,
}

impl Machine {
    fn new(initial: Set, bytes: usize) -> Self {
        Self {
            initial,
            lower: Lower::Ascii,
            upper: None,
            outcome: Outcome {
                text: String::with_capacity(bytes),
                is_complete: true,
                uses_initial: false,
            },
        }
    }

    /// Reads what `rest` begins with. Returns its number of bytes.
    fn step(&mut self, byte: u8, rest: &[u8]) -> usize {
        match (byte, self.lower) {
            (ESCAPE, _) => match designation(rest) {
                Some((Designation::Lower(lower), size)) => {
                    self.lower = lower;
                    size
                }
                Some((Designation::Upper(upper), size)) => {
                    self.upper = upper;
                    size
                }
                None => self.push((None, 1)),
            },
            (0x80.., _) => {
                self.outcome.uses_initial |= self.upper.is_none();
                self.push(self.upper.unwrap_or(self.initial).first(rest))
            }
            (0x21..=0x7E, Lower::Pairs(pairs)) => self.push(pairs.first(rest)),
            (0x21..=0x5F, Lower::Katakana) => self.push(Set::SHIFT_JIS.first(&[byte | 0x80])),
            _ => {
                // PS3.5 6.1.2.5.3: the initial sets are active again after these.
                if matches!(byte, b'\\' | 0x09 | 0x0A | 0x0C | 0x0D) {
                    self.lower = Lower::Ascii;
                    self.upper = None;
                }
                self.outcome.text.push(char::from(byte));
                1
            }
        }
    }

    /// Adds a character, or U+FFFD where there is none. Returns the number of bytes it took.
    fn push(&mut self, (character, size): (Option<String>, usize)) -> usize {
        if let Some(character) = character {
            self.outcome.text.push_str(&character);
        } else {
            self.outcome.is_complete = false;
            self.outcome.text.push(char::REPLACEMENT_CHARACTER);
        }
        size
    }
}

/// PS3.3 Tables C.12-3 and C.12-4, and the other registered sequences of the same sets: what the escape sequence at the
/// start of `bytes` designates, and its length.
fn designation(bytes: &[u8]) -> Option<(Designation, usize)> {
    use Designation::{Lower as G0, Upper as G1};
    let sequence = bytes.get(1..)?;
    let (designation, size) = match *sequence {
        [b'$', b')', b'C', ..] => (G1(Some(Set::KOREAN)), 4),
        [b'$', b')', b'A' | b'E', ..] => (G1(Some(Set::CHINESE)), 4),
        [b'$', b'(', b'D', ..] => (G0(Lower::Pairs(Pairs::Jis0212)), 4),
        [b'$', b'(', b'B' | b'@', ..] => (G0(Lower::Pairs(Pairs::Jis0208)), 4),
        [b'$', b'(', b'C', ..] => (G0(Lower::Pairs(Pairs::Ksx1001)), 4),
        [b'$', b'(', b'A', ..] => (G0(Lower::Pairs(Pairs::Gb2312)), 4),
        [b'$', b'B' | b'@', ..] => (G0(Lower::Pairs(Pairs::Jis0208)), 3),
        [b'$', b'A', ..] => (G0(Lower::Pairs(Pairs::Gb2312)), 3),
        [b'(', b'B' | b'J', ..] => (G0(Lower::Ascii), 3),
        [b'(', b'I', ..] => (G0(Lower::Katakana), 3),
        [b')', b'I', ..] => (G1(Some(Set::SHIFT_JIS)), 3),
        [b'-', registered, ..] => (G1(Some(registered_96(registered)?)), 3),
        // ISO 10646: UTF-8, and the return from it.
        [b'%', b'G', ..] => (G1(Some(Set::UTF_8)), 3),
        [b'%', b'@', ..] => (G1(None), 3),
        _ => return None,
    };
    Some((designation, size))
}

/// The sets of 96 characters by the final byte of their registration.
fn registered_96(final_byte: u8) -> Option<Set> {
    Some(match final_byte {
        b'A' => Set::Latin1,
        b'B' => Set::Single(encoding_rs::ISO_8859_2),
        b'C' => Set::Single(encoding_rs::ISO_8859_3),
        b'D' => Set::Single(encoding_rs::ISO_8859_4),
        b'L' => Set::Single(encoding_rs::ISO_8859_5),
        b'G' => Set::Single(encoding_rs::ISO_8859_6),
        b'F' => Set::Single(encoding_rs::ISO_8859_7),
        b'H' => Set::Single(encoding_rs::ISO_8859_8),
        b'M' => Set::Turkish,
        b'T' => Set::Thai,
        b'V' => Set::Single(encoding_rs::ISO_8859_10),
        b'Y' => Set::Single(encoding_rs::ISO_8859_13),
        b'_' => Set::Single(encoding_rs::ISO_8859_14),
        b'b' => Set::Single(encoding_rs::ISO_8859_15),
        b'f' => Set::Single(encoding_rs::ISO_8859_16),
        _ => return None,
    })
}
