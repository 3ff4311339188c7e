//! DIMSE command sets (PS3.7 Section 6.3 and Annex E), always Implicit VR Little Endian.

use dicom_core::Tag;

use crate::dataset::header::put_group_length;

/// A command set larger than this is not a command set.
pub const MAX_BYTES: usize = 64 * 1024;

/// (0000,0800) "no data set present".
const NO_DATASET: u16 = 0x0101;
/// Of the element Command Group Length.
const GROUP_LENGTH_BYTES: usize = 12;

/// The operations of PS3.7 that a storage SCP meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// C-STORE-RQ
    CStore,
    /// C-ECHO-RQ
    CEcho,
    /// C-CANCEL-RQ: nothing of ours can be cancelled.
    CCancel,
    /// Another request.
    Other(u16),
    /// A response: not for an SCP.
    Response,
}

/// What is needed of a request.
#[derive(Clone, Debug)]
pub struct Command<'b> {
    /// (0000,0100) Command Field.
    pub operation: Operation,
    /// (0000,0110) Message ID.
    pub message_id: u16,
    /// Whether a data set follows, (0000,0800).
    pub has_dataset: bool,
    /// (0000,0002) Affected SOP Class UID, as received.
    pub affected_sop_class_uid: &'b [u8],
    /// (0000,1000) Affected SOP Instance UID, as received.
    pub affected_sop_instance_uid: &'b [u8],
    /// The private tenant element, where one is configured and present.
    pub private_tenant: Option<&'b [u8]>,
}

/// The bytes are no command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a command set")]
pub struct NotACommand;

impl<'b> Command<'b> {
    /// Reads a command set.
    ///
    /// # Errors
    /// [`NotACommand`] when an element exceeds the bytes, or the command field or the data set type is absent.
    pub fn parse(bytes: &'b [u8], private_tenant: Option<Tag>) -> Result<Self, NotACommand> {
        let mut field = None;
        let mut dataset_type = None;
        let mut message_id = None;
        let (mut class, mut instance, mut tenant) = (&[][..], &[][..], None);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (&[g, h, e, f, a, b, c, d], after) = rest.split_first_chunk::<8>().ok_or(NotACommand)?;
            let tag = Tag(u16::from_le_bytes([g, h]), u16::from_le_bytes([e, f]));
            let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(|_| NotACommand)?;
            let (value, next) = after.split_at_checked(length).ok_or(NotACommand)?;
            let number = || {
                <[u8; 2]>::try_from(value)
                    .map(u16::from_le_bytes)
                    .map_err(|_| NotACommand)
            };
            match tag {
                Tag(0x0000, 0x0100) => field = Some(number()?),
                Tag(0x0000, 0x0110) => message_id = Some(number()?),
                Tag(0x0000, 0x0800) => dataset_type = Some(number()?),
                Tag(0x0000, 0x0002) => class = value,
                Tag(0x0000, 0x1000) => instance = value,
                tag if Some(tag) == private_tenant => tenant = Some(value),
                Tag(0x0000, _) => {}
                Tag(group, _) if group % 2 == 1 => {}
                _ => return Err(NotACommand),
            }
            rest = next;
        }
        let operation = match field.ok_or(NotACommand)? {
            0x0001 => Operation::CStore,
            0x0030 => Operation::CEcho,
            0x0FFF => Operation::CCancel,
            response if response & 0x8000 != 0 => Operation::Response,
            other => Operation::Other(other),
        };
        let cancel_or_response = matches!(operation, Operation::CCancel | Operation::Response);
        Ok(Self {
            operation,
            message_id: match message_id {
                Some(id) => id,
                None if cancel_or_response => 0,
                None => return Err(NotACommand),
            },
            has_dataset: dataset_type.ok_or(NotACommand)? != NO_DATASET,
            affected_sop_class_uid: class,
            affected_sop_instance_uid: instance,
            private_tenant: tenant,
        })
    }
}

/// A response (PS3.7 9.1.1.2 and 9.1.5.2).
#[derive(Clone, Debug)]
pub struct Response<'a> {
    /// Command field of the request.
    pub operation: Operation,
    /// Message ID of the request.
    pub message_id: u16,
    /// Affected SOP Class UID, where the request had a valid one.
    pub sop_class_uid: Option<&'a str>,
    /// Affected SOP Instance UID, where the request had a valid one.
    pub sop_instance_uid: Option<&'a str>,
    /// Status (0000,0900).
    pub status: u16,
    /// Error Comment (0000,0902), at most 64 characters.
    pub error_comment: Option<&'a str>,
}

impl Response<'_> {
    /// The command set.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let request = match self.operation {
            Operation::CStore => 0x0001,
            Operation::CEcho => 0x0030,
            Operation::CCancel => 0x0FFF,
            Operation::Other(field) => field,
            Operation::Response => 0,
        };
        // (0000,0000) Command Group Length: what follows it.
        let mut command = Vec::with_capacity(256);
        command.extend_from_slice(&[0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        let body = &mut command;
        if let Some(uid) = self.sop_class_uid {
            text(body, 0x0002, uid, 0);
        }
        number(body, 0x0100, request | 0x8000);
        number(body, 0x0120, self.message_id);
        number(body, 0x0800, NO_DATASET);
        number(body, 0x0900, self.status);
        if let Some(comment) = self.error_comment {
            text(body, 0x0902, comment, b' ');
        }
        if let Some(uid) = self.sop_instance_uid {
            text(body, 0x1000, uid, 0);
        }
        put_group_length(&mut command, GROUP_LENGTH_BYTES);
        command
    }
}

fn number(body: &mut Vec<u8>, element: u16, value: u16) {
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&element.to_le_bytes());
    body.extend_from_slice(&[2, 0, 0, 0]);
    body.extend_from_slice(&value.to_le_bytes());
}

fn text(body: &mut Vec<u8>, element: u16, value: &str, padding: u8) {
    let odd = value.len() % 2;
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&element.to_le_bytes());
    body.extend_from_slice(&u32::try_from(value.len() + odd).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(value.as_bytes());
    if odd == 1 {
        body.push(padding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn echo(message_id: u16) -> Vec<u8> {
        let mut body = Vec::new();
        text(&mut body, 0x0002, "1.2.840.10008.1.1", 0);
        number(&mut body, 0x0100, 0x0030);
        number(&mut body, 0x0110, message_id);
        number(&mut body, 0x0800, NO_DATASET);
        body
    }

    #[test]
    fn a_request_is_read_and_its_message_id_answered() {
        let request = echo(4711);
        let command = Command::parse(&request, None).unwrap();
        assert_eq!(
            (command.operation, command.message_id, command.has_dataset),
            (Operation::CEcho, 4711, false)
        );
        let response = Response {
            operation: command.operation,
            message_id: command.message_id,
            sop_class_uid: Some("1.2.840.10008.1.1"),
            sop_instance_uid: None,
            status: 0,
            error_comment: None,
        };
        let bytes = response.encode();
        assert!(bytes
            .windows(10)
            .any(|w| w == [0, 0, 0x20, 0x01, 2, 0, 0, 0, 0x67, 0x12]));
        assert_eq!(bytes.len() % 2, 0);
        assert_eq!(
            Command::parse(&bytes, None).unwrap().operation,
            Operation::Response
        );
    }

    #[test]
    fn cut_command_sets_are_refused() {
        let bytes = echo(1);
        assert!(Command::parse(&bytes[..bytes.len() - 1], None).is_err());
        assert!(Command::parse(b"", None).is_err());
        assert!(Command::parse(&[0xFF; 64], None).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Command::parse(&bytes, Some(Tag(0x1211, 0x1217)));
        }
    }
}
