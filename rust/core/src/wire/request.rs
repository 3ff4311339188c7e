//! A-ASSOCIATE-RQs (PS3.8 9.3.2) as devices send them, made into what the Standard has.
//!
//! What is odd in a request costs the item that it is in and nothing else. What is left is a request that any reader
//! takes: the application context, presentation contexts with identifiers that are odd and differ, and one user
//! information item with what matters to an acceptor of C-STORE. The walk follows lengths only, without recursion; a
//! length that reaches beyond its container cannot be followed, and nor can the request.

mod context;
mod items;
mod oddity;
mod user;

use crate::uid::Uid;
use crate::wire::pdu::HEADER_BYTES;
use crate::wire::title::{printable_text, read};

use items::{put, Container, Piece, Pieces};
pub use oddity::{quoted, Kind, Oddities, Oddity};
use user::UserInformation;

/// A UID that names neither a SOP class nor a transfer syntax (it is that of the application context, PS3.7 A.2.1). It stands for
/// one that cannot be read, so that the context is answered with result 3 or 4.
pub const NO_SYNTAX: &str = APPLICATION_CONTEXT_NAME;
const APPLICATION_CONTEXT_NAME: &str = "1.2.840.10008.3.1.1.1";

const ASSOCIATE_RQ: u8 = 0x01;
// Fields before the items (PS3.8 Table 9-11): PDU header, version, 2 reserved bytes, both titles, 32 reserved bytes.
const FIXED_BYTES: usize = 74;
const TITLE_BYTES: usize = 16;
const APPLICATION_CONTEXT: u8 = 0x10;
const PRESENTATION_CONTEXT: u8 = 0x20;
const USER_INFORMATION: u8 = 0x50;

/// A request that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no A-ASSOCIATE-RQ, or its fixed fields are not all there.
    #[error("no A-ASSOCIATE-RQ")]
    NoRequest,
    /// Its length is not that of its header.
    #[error("the length of the PDU is not that of its header")]
    PduLength,
    /// An item is longer than what it lies in.
    #[error("item {kind:02X} of {length} bytes reaches beyond the end of {container}, {left} bytes on")]
    Overrun {
        /// Its type.
        kind: u8,
        /// The length it has.
        length: usize,
        /// What it lies in.
        container: &'static str,
        /// Bytes that are there.
        left: usize,
    },
    /// There are bytes behind the last item, too few for another one, that are not zero.
    #[error("what follows the last item of {0} is no item")]
    Rest(&'static str),
}

/// A request that any reader takes, and what was odd about the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// The A-ASSOCIATE-RQ.
    pub pdu: Vec<u8>,
    /// Whether the original proposes a presentation context, be it one that cannot be answered.
    pub has_proposals: bool,
    /// What was odd, AE titles excepted: see [`title_oddities`].
    pub oddities: Vec<Oddity>,
}

/// Makes a request clean. What is clean already stays as it is, but for items that nobody answers.
///
/// # Errors
/// [`Unreadable`] where the items cannot be followed to the end.
pub fn clean(request: &[u8]) -> Result<Cleaned, Unreadable> {
    let (fixed, variable) = request
        .split_at_checked(FIXED_BYTES)
        .ok_or(Unreadable::NoRequest)?;
    check_header(fixed, request.len())?;
    let mut contents = Contents::default();
    let mut uses = context::uses_of_ids(variable)?;
    for piece in Pieces::of(variable, Container::Request) {
        contents.take(piece?, &mut uses)?;
    }
    let Contents {
        application_context,
        has_proposals,
        contexts,
        user,
        mut oddities,
    } = contents;
    let mut pdu = fixed_fields(fixed);
    if let Some(name) = application_context {
        put(&mut pdu, APPLICATION_CONTEXT, name.as_str().as_bytes());
    }
    pdu.extend_from_slice(&contexts);
    put(&mut pdu, USER_INFORMATION, &user.encode(&mut oddities));
    let length = u32::try_from(pdu.len() - HEADER_BYTES).map_err(|_| Unreadable::PduLength)?;
    if let Some(field) = pdu.get_mut(2..HEADER_BYTES) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    Ok(Cleaned {
        pdu,
        has_proposals,
        oddities: oddities.into_vec(),
    })
}

/// What is odd about the titles of a request. It is apart from the others because senders that differ in titles only share an
/// answer.
#[must_use]
pub fn title_oddities(request: &[u8]) -> Vec<Oddity> {
    let mut oddities = Oddities::default();
    for (name, at) in [("called", CALLED_AT), ("calling", CALLED_AT + TITLE_BYTES)] {
        let field = request.get(at..at + TITLE_BYTES).unwrap_or_default();
        if read(field).is_some_and(|title| title.is_odd) {
            oddities.add(Kind::AeTitle, format!("{name}: {}", quoted(field)));
        }
    }
    oddities.into_vec()
}

const VERSION_AT: usize = 6;
const CALLED_AT: usize = 10;

fn check_header(fixed: &[u8], length: usize) -> Result<(), Unreadable> {
    let Some(&[ASSOCIATE_RQ, _, a, b, c, d]) = fixed.first_chunk::<HEADER_BYTES>() else {
        return Err(Unreadable::NoRequest);
    };
    let declared = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok();
    if declared != length.checked_sub(HEADER_BYTES) {
        return Err(Unreadable::PduLength);
    }
    Ok(())
}

/// The fixed fields: whoever knows version 1 reads this one as version 1 (PS3.8 9.3.2), titles are printable, what is reserved
/// is zero. The length is filled in later.
fn fixed_fields(fixed: &[u8]) -> Vec<u8> {
    let version = match fixed.get(VERSION_AT..CALLED_AT) {
        Some(&[_, low, ..]) if low & 1 == 1 => [0, 1],
        Some(&[high, low, ..]) => [high, low],
        _ => [0, 0],
    };
    let mut pdu = vec![ASSOCIATE_RQ, 0, 0, 0, 0, 0];
    pdu.extend_from_slice(&version);
    pdu.extend_from_slice(&[0, 0]);
    for at in [CALLED_AT, CALLED_AT + TITLE_BYTES] {
        let text = printable_text(fixed.get(at..at + TITLE_BYTES).unwrap_or_default());
        pdu.extend_from_slice(format!("{text:TITLE_BYTES$}").as_bytes());
    }
    pdu.resize(FIXED_BYTES, 0);
    pdu
}

/// What is collected on the way.
#[derive(Default)]
struct Contents<'a> {
    application_context: Option<Uid>,
    has_proposals: bool,
    /// Encoded presentation context items.
    contexts: Vec<u8>,
    user: UserInformation<'a>,
    oddities: Oddities,
}

impl<'a> Contents<'a> {
    fn take(&mut self, piece: Piece<'a>, uses: &mut context::Uses) -> Result<(), Unreadable> {
        match piece {
            Piece::Item(APPLICATION_CONTEXT, name) => self.take_application_context(name),
            Piece::Item(PRESENTATION_CONTEXT, value) => {
                self.has_proposals = true;
                context::clean(value, uses, &mut self.contexts, &mut self.oddities)?;
            }
            Piece::Item(USER_INFORMATION, value) => self.user.take(value, &mut self.oddities)?,
            Piece::Item(kind, _) => note_unknown(&mut self.oddities, kind, Container::Request),
            Piece::Padding(count) => note_padding(&mut self.oddities, count, Container::Request),
        }
        Ok(())
    }

    /// Where there are several, that of DICOM counts.
    fn take_application_context(&mut self, name: &[u8]) {
        let Some(uid) = read_uid(name, &mut self.oddities) else {
            self.oddities.add(Kind::ApplicationContext, quoted(name));
            return;
        };
        match &self.application_context {
            None => self.application_context = Some(uid),
            Some(first) => {
                self.oddities.add(Kind::RepeatedItem, "application context");
                if first.as_str() != APPLICATION_CONTEXT_NAME {
                    self.application_context = Some(uid);
                }
            }
        }
    }
}

fn note_unknown(oddities: &mut Oddities, kind: u8, container: Container) {
    oddities.add(Kind::UnknownItem, format!("{kind:02X} in {}", container.as_str()));
}

fn note_padding(oddities: &mut Oddities, count: usize, container: Container) {
    oddities.add(Kind::TrailingBytes, format!("{count} in {}", container.as_str()));
}

/// A UID, whatever it is padded with. As for a reader in C, it ends at the first NUL.
fn read_uid(value: &[u8], oddities: &mut Oddities) -> Option<Uid> {
    let until_nul = value.split(|&byte| byte == 0).next().unwrap_or_default();
    let uid = Uid::parse(until_nul.trim_ascii()).ok()?;
    if uid.as_str().len() != value.len() {
        oddities.add(Kind::PaddedUid, quoted(value));
    }
    Some(uid)
}

#[cfg(test)]
mod tests;
