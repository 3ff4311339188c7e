//! The user information item of a request (PS3.8 Annex D.1, PS3.7 Annex D.3.3).

use super::items::{field, put, Container, Piece, Pieces};
use super::{note_padding, note_unknown, quoted, read_uid, Kind, Oddities, Unreadable};
use crate::uid::Uid;

const MAXIMUM_LENGTH: u8 = 0x51;
const IMPLEMENTATION_CLASS_UID: u8 = 0x52;
const ASYNCHRONOUS_OPERATIONS: u8 = 0x53;
const ROLE_SELECTION: u8 = 0x54;
const IMPLEMENTATION_VERSION_NAME: u8 = 0x55;
const EXTENDED_NEGOTIATION: u8 = 0x56;
const COMMON_EXTENDED_NEGOTIATION: u8 = 0x57;
const USER_IDENTITY: u8 = 0x58;
/// PS3.7 D.3.3.2: 1 to 16 characters.
const LONGEST_VERSION_NAME: usize = 16;
/// PS3.8 D.1.1: zero says that there is no maximum. Whoever sends none says the same.
const NO_MAXIMUM: [u8; 4] = [0; 4];
/// Of all sub-items, which are in an item with a 16-bit length.
const MOST_BYTES: usize = u16::MAX as usize;

/// What matters to an acceptor. The last of several sub-items counts, as for DCMTK; those that are not answered (asynchronous
/// operations, role selection, extended negotiation) are checked and left out.
#[derive(Default)]
pub(super) struct UserInformation<'a> {
    is_there: bool,
    maximum_length: Option<[u8; 4]>,
    class_uid: Option<Uid>,
    version_name: Option<&'a [u8]>,
    identity: Option<Identity<'a>>,
    seen: [bool; 4],
}

/// A user identity whose fields are all there.
struct Identity<'a> {
    kind: u8,
    wants_response: bool,
    primary: &'a [u8],
    secondary: &'a [u8],
}

impl<'a> UserInformation<'a> {
    pub(super) fn take(&mut self, value: &'a [u8], oddities: &mut Oddities) -> Result<(), Unreadable> {
        if self.is_there {
            oddities.add(Kind::RepeatedItem, "user information");
        }
        self.is_there = true;
        for piece in Pieces::of(value, Container::UserInformation) {
            match piece? {
                Piece::Item(kind, value) => self.take_item(kind, value, oddities),
                Piece::Padding(count) => note_padding(oddities, count, Container::UserInformation),
            }
        }
        Ok(())
    }

    fn take_item(&mut self, kind: u8, value: &'a [u8], oddities: &mut Oddities) {
        match kind {
            MAXIMUM_LENGTH => self.take_maximum_length(value, oddities),
            IMPLEMENTATION_CLASS_UID => {
                self.note_repeated(1, "implementation class UID", oddities);
                self.class_uid = read_uid(value, oddities);
                if self.class_uid.is_none() {
                    oddities.add(Kind::ImplementationClassUid, quoted(value));
                }
            }
            IMPLEMENTATION_VERSION_NAME => {
                self.note_repeated(2, "implementation version name", oddities);
                self.version_name = is_version_name(value).then_some(value);
                if self.version_name.is_none() {
                    oddities.add(Kind::ImplementationVersionName, quoted(value));
                }
            }
            USER_IDENTITY => {
                self.note_repeated(3, "user identity", oddities);
                self.identity = read_identity(value, oddities);
            }
            _ => check_unanswered(kind, value, oddities),
        }
    }

    fn take_maximum_length(&mut self, value: &[u8], oddities: &mut Oddities) {
        self.note_repeated(0, "maximum length", oddities);
        self.maximum_length = value.first_chunk().copied();
        if value.len() != 4 {
            oddities.add(Kind::MaximumLength, format!("{} bytes", value.len()));
        }
    }

    fn note_repeated(&mut self, number: usize, name: &str, oddities: &mut Oddities) {
        if let Some(is_seen) = self.seen.get_mut(number) {
            if std::mem::replace(is_seen, true) {
                oddities.add(Kind::RepeatedItem, name);
            }
        }
    }

    /// The value of the one user information item.
    pub(super) fn encode(self, oddities: &mut Oddities) -> Vec<u8> {
        let [has_maximum, ..] = self.seen;
        if !self.is_there {
            oddities.add(Kind::MissingItem, "user information");
        } else if !has_maximum {
            oddities.add(Kind::MissingItem, "maximum length");
        }
        let mut body = Vec::new();
        put(
            &mut body,
            MAXIMUM_LENGTH,
            &self.maximum_length.unwrap_or(NO_MAXIMUM),
        );
        if let Some(uid) = &self.class_uid {
            put(&mut body, IMPLEMENTATION_CLASS_UID, uid.as_str().as_bytes());
        }
        if let Some(name) = self.version_name {
            put(&mut body, IMPLEMENTATION_VERSION_NAME, name);
        }
        if let Some(identity) = self.identity.map(|identity| identity.encode()) {
            // Several user information items together may have more than one can hold.
            if body.len() + 4 + identity.len() <= MOST_BYTES {
                put(&mut body, USER_IDENTITY, &identity);
            } else {
                oddities.add(Kind::UserIdentity, format!("{} bytes", identity.len()));
            }
        }
        body
    }
}

impl Identity<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut value = vec![self.kind, u8::from(self.wants_response)];
        for text in [self.primary, self.secondary] {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            value.extend_from_slice(&length.to_be_bytes());
            value.extend_from_slice(text);
        }
        value
    }
}

fn is_version_name(value: &[u8]) -> bool {
    let is_character = |&byte: &u8| matches!(byte, 0x20..=0x7E) && byte != b'\\';
    (1..=LONGEST_VERSION_NAME).contains(&value.len()) && value.iter().all(is_character)
}

/// PS3.7 D.3.3.7: type, whether a response is wanted, primary and secondary field. Types are 1 to 5. Nothing of the value is
/// quoted: there may be a passcode in it.
fn read_identity<'a>(value: &'a [u8], oddities: &mut Oddities) -> Option<Identity<'a>> {
    let fields = || {
        let (&[kind, response], rest) = value.split_first_chunk::<2>()?;
        let (primary, rest) = field(rest)?;
        let (secondary, rest) = field(rest)?;
        Some((kind, response, primary, secondary, rest))
    };
    let Some((kind, response, primary, secondary, rest)) = fields() else {
        oddities.add(Kind::UserIdentity, format!("{} bytes", value.len()));
        return None;
    };
    if !(1..=5).contains(&kind) {
        oddities.add(Kind::UserIdentity, format!("type {kind}"));
        return None;
    }
    if response > 1 {
        oddities.add(Kind::UserIdentity, format!("response requested {response}"));
    }
    if !rest.is_empty() {
        oddities.add(Kind::UserIdentity, format!("{} more bytes", rest.len()));
    }
    Some(Identity {
        kind,
        wants_response: response != 0,
        primary,
        secondary,
    })
}

/// Sub-items that are not answered, so that the defaults apply whatever is in them.
fn check_unanswered(kind: u8, value: &[u8], oddities: &mut Oddities) {
    let (is_good, kind) = match kind {
        ASYNCHRONOUS_OPERATIONS => (value.len() == 4, Kind::AsynchronousOperations),
        ROLE_SELECTION => (is_role_selection(value), Kind::RoleSelection),
        EXTENDED_NEGOTIATION => (
            field(value).is_some_and(|(uid, _)| is_uid(uid)),
            Kind::ExtendedNegotiation,
        ),
        COMMON_EXTENDED_NEGOTIATION => (is_common_extended(value), Kind::CommonExtendedNegotiation),
        _ => {
            note_unknown(oddities, kind, Container::UserInformation);
            return;
        }
    };
    if !is_good {
        oddities.add(kind, quoted(value));
    }
}

/// UID and two bytes of 0 or 1 (PS3.7 D.3.3.4.1).
fn is_role_selection(value: &[u8]) -> bool {
    field(value).is_some_and(|(uid, roles)| is_uid(uid) && matches!(roles, [0 | 1, 0 | 1]))
}

/// SOP class, service class, and a list of related classes (PS3.7 D.3.3.6.1); what follows is reserved.
fn is_common_extended(value: &[u8]) -> bool {
    let lists = || {
        let (class, rest) = field(value)?;
        let (service, rest) = field(rest)?;
        let (related, _) = field(rest)?;
        Some((class, service, related))
    };
    let Some((class, service, mut related)) = lists() else {
        return false;
    };
    while !related.is_empty() {
        match field(related) {
            Some((uid, rest)) if is_uid(uid) => related = rest,
            _ => return false,
        }
    }
    is_uid(class) && is_uid(service)
}

fn is_uid(value: &[u8]) -> bool {
    Uid::parse(value).is_ok()
}
