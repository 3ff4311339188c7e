//! Items and sub-items: type, a reserved byte, a 16-bit length, a value (PS3.8 9.3.1).

use super::Unreadable;

/// Bytes before the value of an item.
const HEADER_BYTES: usize = 4;

/// What items lie in, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// The A-ASSOCIATE-RQ itself.
    Request,
    /// A presentation context item.
    PresentationContext,
    /// The user information item.
    UserInformation,
}

impl Container {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "the request",
            Self::PresentationContext => "a presentation context",
            Self::UserInformation => "the user information",
        }
    }
}

/// What a container holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// An item: its type and value.
    Item(u8, &'a [u8]),
    /// Zero bytes at the end, too few for an item.
    Padding(usize),
}

/// The pieces of a container; nothing follows an error.
#[derive(Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    container: Container,
}

impl<'a> Pieces<'a> {
    /// Of the bytes of a container.
    pub fn of(bytes: &'a [u8], container: Container) -> Self {
        Self {
            rest: bytes,
            container,
        }
    }

    fn next_piece(&mut self) -> Result<Piece<'a>, Unreadable> {
        let rest = std::mem::take(&mut self.rest);
        let Some((&[kind, _reserved, high, low], after)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            if rest.iter().all(|&byte| byte == 0) {
                return Ok(Piece::Padding(rest.len()));
            }
            return Err(Unreadable::Rest(self.container.as_str()));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, next) = after.split_at_checked(length).ok_or(Unreadable::Overrun {
            kind,
            length,
            container: self.container.as_str(),
            left: after.len(),
        })?;
        self.rest = next;
        Ok(Piece::Item(kind, value))
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.next_piece())
    }
}

/// A field of a 16-bit length and so many bytes, and what follows it.
pub fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(length)))
}

/// Appends an item. The value is no longer than 65535 bytes: each caller takes it from one that was.
pub fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.get(..usize::from(length)).unwrap_or(value));
}
