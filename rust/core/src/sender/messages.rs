//! The PDUs and command sets of a sender, to be sent and as they come back.

use std::collections::HashMap;
use std::io::Read;

use super::failure::SendError;
use super::{Identity, Request};
use crate::uid::trim_padding;
use crate::wire::pdu::{PduHeader, HEADER_BYTES};
use crate::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};

const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
pub(super) const VERIFICATION: &str = "1.2.840.10008.1.1";
/// Our own maximum: responses are short.
const OUR_MAX_PDU_LENGTH: u32 = 16_384;
/// Responses, A-ASSOCIATE-AC included.
pub(super) const LARGEST_ANSWER: u32 = 1 << 20;
/// (0000,0800): a data set follows, or does not.
const DATASET: u16 = 0x0000;
const NO_DATASET: u16 = 0x0101;
/// TLS alert, the first byte of a record (RFC 8446 5.1).
const TLS_ALERT: u8 = 0x15;

/// What the peer accepted.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Presentation context IDs by abstract and transfer syntax.
    pub(super) contexts: HashMap<(String, String), u8>,
    /// Its maximum PDU length, 0 for none.
    pub(super) max_pdu_length: u32,
    /// Whether it answered to the user identity.
    pub(super) confirms_user: bool,
}

pub(super) fn read_pdu(mut stream: impl Read) -> Result<(PduHeader, Vec<u8>), SendError> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head)?;
    // The second byte of a PDU is reserved; that of a TLS record is 3.
    if let [TLS_ALERT, 3, ..] = head {
        return Err(SendError::ExpectsTls);
    }
    let header = PduHeader::parse(head);
    if header.length > LARGEST_ANSWER {
        return Err(SendError::Protocol("an answer that is too long"));
    }
    let mut body = vec![0; usize::try_from(header.length).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    match (head[0], body.as_slice()) {
        (0x03, &[_, result, source, reason, ..]) => Err(SendError::Rejected(result, source, reason)),
        (0x07, &[_, _, source, reason, ..]) => Err(SendError::Aborted(source, reason)),
        _ => Ok((header, body)),
    }
}

pub(super) fn item(out: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<(), SendError> {
    out.extend_from_slice(&[kind, 0]);
    field(out, body)
}

/// A value behind its length.
fn field(out: &mut Vec<u8>, value: &[u8]) -> Result<(), SendError> {
    let length = u16::try_from(value.len()).map_err(|_| SendError::RequestTooLong)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// PS3.8 9.3.2.
pub(super) fn associate_rq(request: &Request) -> Result<Vec<u8>, SendError> {
    let mut body = vec![0, 1, 0, 0];
    for title in [&request.called_ae_title, &request.calling_ae_title] {
        let mut padded = [b' '; 16];
        for (place, byte) in padded.iter_mut().zip(title.bytes()) {
            *place = byte;
        }
        body.extend_from_slice(&padded);
    }
    body.extend_from_slice(&[0; 32]);
    item(&mut body, 0x10, APPLICATION_CONTEXT.as_bytes())?;
    for (number, (abstract_syntax, transfer_syntax)) in request.contexts.iter().enumerate() {
        let mut inner = vec![context_id(number), 0, 0, 0];
        item(&mut inner, 0x30, abstract_syntax.as_bytes())?;
        item(&mut inner, 0x40, transfer_syntax.as_bytes())?;
        item(&mut body, 0x20, &inner)?;
    }
    let mut user = Vec::new();
    item(&mut user, 0x51, &OUR_MAX_PDU_LENGTH.to_be_bytes())?;
    item(&mut user, 0x52, IMPLEMENTATION_CLASS_UID.as_bytes())?;
    item(&mut user, 0x55, IMPLEMENTATION_VERSION_NAME.as_bytes())?;
    if let Some(identity) = &request.user {
        item(
            &mut user,
            0x58,
            &user_identity(&identity.name, identity.passcode.as_deref())?,
        )?;
    }
    item(&mut body, 0x50, &user)?;
    let mut pdu = vec![0x01, 0];
    let length = u32::try_from(body.len()).map_err(|_| SendError::RequestTooLong)?;
    pdu.extend_from_slice(&length.to_be_bytes());
    pdu.extend_from_slice(&body);
    Ok(pdu)
}

/// PS3.7 D.3.3.7.1: type 1 is a username, type 2 a username and a passcode. A positive response is asked for, because who ignores
/// the item lets everybody in.
fn user_identity(name: &str, passcode: Option<&str>) -> Result<Vec<u8>, SendError> {
    let mut body = vec![if passcode.is_some() { 2 } else { 1 }, 1];
    field(&mut body, name.as_bytes())?;
    field(&mut body, passcode.unwrap_or_default().as_bytes())?;
    Ok(body)
}

/// Odd numbers from 1 (PS3.8 9.3.2.2).
fn context_id(number: usize) -> u8 {
    u8::try_from(2 * number + 1).unwrap_or(u8::MAX)
}

/// The items or sub-items of a PDU, by their type.
fn items(mut rest: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), SendError>> {
    std::iter::from_fn(move || {
        let (&[kind, _, high, low], after) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((value, next)) = after.split_at_checked(length) else {
            rest = &[];
            return Some(Err(SendError::Protocol("A-ASSOCIATE-AC")));
        };
        rest = next;
        Some(Ok((kind, value)))
    })
}

/// What an A-ASSOCIATE-AC says (PS3.8 9.3.3, PS3.7 D.3.3).
pub(super) fn parse_ac(body: &[u8], contexts: &[(String, String)]) -> Result<Accepted, SendError> {
    let mut accepted = Accepted::default();
    for item in items(body.get(68..).ok_or(SendError::Protocol("A-ASSOCIATE-AC"))?) {
        match item? {
            (0x21, &[id, _, 0, _, ..]) => {
                let number = usize::from(id.wrapping_sub(1) / 2);
                if let Some(context) = contexts.get(number).filter(|_| context_id(number) == id) {
                    accepted.contexts.insert(context.clone(), id);
                }
            }
            (0x50, user) => {
                for inner in items(user) {
                    match inner? {
                        (0x51, &[a, b, c, d]) => {
                            accepted.max_pdu_length = u32::from_be_bytes([a, b, c, d]);
                        }
                        (0x59, _) => accepted.confirms_user = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(accepted)
}

/// An Implicit VR command set without its group length, which goes in front of it.
struct CommandSet(Vec<u8>);

impl CommandSet {
    fn element(mut self, number: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&number.to_le_bytes());
        let length = u32::try_from(value.len()).unwrap_or(0);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(value);
        self
    }

    fn number(self, number: u16, value: u16) -> Self {
        self.element(number, &value.to_le_bytes())
    }

    fn uid(self, number: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.resize(value.len().next_multiple_of(2), 0);
        self.element(number, &value)
    }

    fn finish(self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(0).to_le_bytes();
        let mut command = Self(Vec::with_capacity(self.0.len() + 12)).element(0, &length).0;
        command.extend_from_slice(&self.0);
        command
    }
}

/// PS3.7 9.3.1.1.
pub(super) fn store_rq(identity: &Identity<'_>, message_id: u16) -> Vec<u8> {
    CommandSet(Vec::with_capacity(256))
        .uid(0x0002, identity.sop_class)
        .number(0x0100, 0x0001)
        .number(0x0110, message_id)
        .number(0x0700, 0)
        .number(0x0800, DATASET)
        .uid(0x1000, identity.sop_instance)
        .finish()
}

/// PS3.7 9.3.5.1.
pub(super) fn echo_rq(message_id: u16) -> Vec<u8> {
    CommandSet(Vec::with_capacity(128))
        .uid(0x0002, VERIFICATION)
        .number(0x0100, 0x0030)
        .number(0x0110, message_id)
        .number(0x0800, NO_DATASET)
        .finish()
}

/// Message ID, status and comment (PS3.7 9.3.1.2, 9.3.5.2).
pub(super) fn parse_response(command: &[u8]) -> Result<(u16, u16, String), SendError> {
    let (mut message_id, mut status, mut comment) = (None, None, String::new());
    let mut rest = command;
    while let Some((&[0, 0, low, high, a, b, c, d], after)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let (value, next) = after
            .split_at_checked(length)
            .ok_or(SendError::Protocol("an element is longer than its command set"))?;
        let number = value.first_chunk::<2>().map(|&bytes| u16::from_le_bytes(bytes));
        match u16::from_le_bytes([low, high]) {
            0x0120 => message_id = number,
            0x0900 => status = number,
            0x0902 => comment = String::from_utf8_lossy(trim_padding(value)).into_owned(),
            _ => {}
        }
        rest = next;
    }
    match (message_id, status) {
        (Some(message_id), Some(status)) => Ok((message_id, status, comment)),
        _ => Err(SendError::Protocol("a response without Message ID or Status")),
    }
}
