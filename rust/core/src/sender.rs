//! Being the sender: C-STORE to a peer, as fast as it takes instances (PS3.7 9.1.1, PS3.8 9.3).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek as _, SeekFrom, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::uid::trim_padding;
use crate::wire::pdu::{self, PduHeader, PduType, HEADER_BYTES};
use crate::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};

const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
/// Our own maximum: responses are short.
const OUR_MAX_PDU_LENGTH: u32 = 16_384;
/// PDUs towards a peer that names no maximum, and towards one that names more.
const LARGEST_PDU: usize = 1 << 20;
/// What one system call takes along: a multiple of most PDUs, small enough for the caches.
const PIECE: usize = 1 << 20;
/// Responses, A-ASSOCIATE-AC included.
const LARGEST_ANSWER: u32 = 1 << 20;
const DATA_HEADER: usize = 12;
/// Of `writev` on Linux.
const MOST_SLICES: usize = 1024;

/// Why an instance could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A-ASSOCIATE-RJ: result, source and reason (PS3.8 Table 9-21).
    #[error("rejected ({0}/{1}/{2})")]
    Rejected(u8, u8, u8),
    /// A-ABORT: source and reason (PS3.8 Table 9-26).
    #[error("aborted by the peer ({0}/{1})")]
    Aborted(u8, u8),
    /// The peer breaks the protocol.
    #[error("the peer breaks the protocol: {0}")]
    Protocol(&'static str),
    /// No accepted presentation context has this class in this transfer syntax.
    #[error("the peer does not accept its class in its transfer syntax")]
    NotAccepted,
}

/// What an association is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Our AE title.
    pub calling_ae_title: String,
    /// The peer's.
    pub called_ae_title: String,
    /// Abstract and transfer syntax of each presentation context, at most 128.
    pub contexts: Vec<(String, String)>,
}

/// What an instance is.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// SOP Class UID.
    pub sop_class: &'a str,
    /// SOP Instance UID.
    pub sop_instance: &'a str,
    /// Transfer syntax of the data set.
    pub transfer_syntax: &'a str,
}

/// What the peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status (0000,0900).
    pub status: u16,
    /// Error Comment (0000,0902).
    pub comment: String,
    /// From the first byte of the request to the last one of the answer.
    pub time: Duration,
}

/// An association as its requestor. Dropped without [`Sender::release`], it closes the connection.
#[derive(Debug)]
pub struct Sender {
    stream: TcpStream,
    accepted: HashMap<(String, String), u8>,
    /// Bytes of a data set in one PDU.
    room: usize,
    message_id: u16,
    buffer: Vec<u8>,
}

impl Sender {
    /// Connects and negotiates. `timeout` is for each wait for the network.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn connect(
        address: impl ToSocketAddrs,
        request: &Request,
        timeout: Duration,
    ) -> Result<Self, SendError> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => return Self::negotiate(stream, request, timeout),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    fn negotiate(mut stream: TcpStream, request: &Request, timeout: Duration) -> Result<Self, SendError> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.write_all(&associate_rq(request))?;
        let (header, body) = read_pdu(&mut stream)?;
        if header.pdu_type != PduType::AssociateResponse {
            return Err(SendError::Protocol("no answer to A-ASSOCIATE-RQ"));
        }
        let (accepted, max) = parse_ac(&body, &request.contexts)?;
        let max = match usize::try_from(max) {
            Ok(0) | Err(_) => LARGEST_PDU,
            Ok(max) => max.min(LARGEST_PDU),
        };
        Ok(Self {
            stream,
            accepted,
            // PS3.8 Annex D.1: the maximum counts the PDV header; fragments are even (E.1).
            room: max.saturating_sub(6).max(2) & !1,
            message_id: 0,
            buffer: Vec::new(),
        })
    }

    /// Whether an instance can be sent.
    #[must_use]
    pub fn accepts(&self, sop_class: &str, transfer_syntax: &str) -> bool {
        self.accepted
            .contains_key(&(sop_class.to_owned(), transfer_syntax.to_owned()))
    }

    /// Sends a data set that is in memory.
    ///
    /// # Errors
    /// [`SendError`]; after all but `NotAccepted` the association is of no more use.
    pub fn store(&mut self, identity: &Identity<'_>, dataset: &[u8]) -> Result<Answer, SendError> {
        let (context, command) = self.request(identity)?;
        let began = Instant::now();
        let mut pieces = dataset.chunks(self.piece()).peekable();
        let mut prefix = command;
        loop {
            let piece = pieces.next().unwrap_or_default();
            let last = pieces.peek().is_none();
            self.send_piece(context, &prefix, piece, last)?;
            if last {
                return self.read_answer(began);
            }
            prefix.clear();
        }
    }

    /// Sends the rest of a file, from where its data set begins. Nothing is decoded.
    ///
    /// # Errors
    /// As [`Sender::store`].
    pub fn store_file(
        &mut self,
        identity: &Identity<'_>,
        file: &mut File,
        dataset_at: u64,
    ) -> Result<Answer, SendError> {
        let (context, mut prefix) = self.request(identity)?;
        let mut left = file.metadata()?.len().saturating_sub(dataset_at);
        file.seek(SeekFrom::Start(dataset_at))?;
        let began = Instant::now();
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let count = left.min(self.piece() as u64);
            buffer.clear();
            if file.take(count).read_to_end(&mut buffer)? as u64 != count {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= count;
            self.send_piece(context, &prefix, &buffer, left == 0)?;
            prefix.clear();
            if left == 0 {
                self.buffer = buffer;
                return self.read_answer(began);
            }
        }
    }

    /// Ends the association in order.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn release(mut self) -> Result<(), SendError> {
        self.stream.write_all(&[0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0])?;
        match read_pdu(&mut self.stream)?.0.pdu_type {
            PduType::ReleaseRp => Ok(()),
            _ => Err(SendError::Protocol("no answer to A-RELEASE-RQ")),
        }
    }

    /// Whole PDUs.
    fn piece(&self) -> usize {
        (PIECE / self.room).clamp(1, MOST_SLICES / 2 - 1) * self.room
    }

    fn request(&mut self, identity: &Identity<'_>) -> Result<(u8, Vec<u8>), SendError> {
        let key = (identity.sop_class.to_owned(), identity.transfer_syntax.to_owned());
        let context = *self.accepted.get(&key).ok_or(SendError::NotAccepted)?;
        self.message_id = self.message_id.wrapping_add(1);
        let command = store_rq(identity, self.message_id);
        let max = u32::try_from(self.room + 6).unwrap_or(0);
        Ok((context, pdu::wrap_command(context, &command, max)))
    }

    /// One `writev` for what precedes, the headers and the data.
    fn send_piece(&mut self, context: u8, prefix: &[u8], piece: &[u8], last: bool) -> io::Result<()> {
        let fragments = piece.len().div_ceil(self.room).max(1);
        let mut headers = Vec::with_capacity(fragments);
        for number in 0..fragments {
            let size = piece.len().saturating_sub(number * self.room).min(self.room);
            let pdv = u32::try_from(size + 2).unwrap_or(u32::MAX);
            let mut header = [0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, context, 0];
            header[2..6].copy_from_slice(&(pdv + 4).to_be_bytes());
            header[6..10].copy_from_slice(&pdv.to_be_bytes());
            // Message control header (PS3.8 E.2): bit 1, the last fragment.
            header[DATA_HEADER - 1] = u8::from(last && number + 1 == fragments) << 1;
            headers.push(header);
        }
        let mut slices = Vec::with_capacity(2 * fragments + 1);
        slices.push(IoSlice::new(prefix));
        let mut data = piece.chunks(self.room);
        for header in &headers {
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(data.next().unwrap_or_default()));
        }
        write_all(&mut self.stream, &mut slices)
    }

    fn read_answer(&mut self, began: Instant) -> Result<Answer, SendError> {
        let mut command = Vec::new();
        loop {
            let (header, body) = read_pdu(&mut self.stream)?;
            if header.pdu_type != PduType::PData {
                return Err(SendError::Protocol("no answer to C-STORE-RQ"));
            }
            let mut rest = body.as_slice();
            while let Some((&length, after)) = rest.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                let (value, next) = after
                    .split_at_checked(length)
                    .ok_or(SendError::Protocol("a PDV is longer than its PDU"))?;
                let [_, control, fragment @ ..] = value else {
                    return Err(SendError::Protocol("a PDV without header"));
                };
                command.extend_from_slice(fragment);
                if control & 0b11 == 0b11 {
                    let (message_id, status, comment) = parse_response(&command)?;
                    if message_id != self.message_id {
                        return Err(SendError::Protocol("an answer to another message"));
                    }
                    let time = began.elapsed();
                    // Associations of others that wait for this core come before the next instance of this one.
                    std::thread::yield_now();
                    return Ok(Answer {
                        status,
                        comment,
                        time,
                    });
                }
                rest = next;
            }
        }
    }
}

fn write_all(stream: &mut TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let some = slices.len().min(MOST_SLICES);
        match stream.write_vectored(slices.get(..some).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_pdu(stream: &mut TcpStream) -> Result<(PduHeader, Vec<u8>), SendError> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head)?;
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

fn item(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(body);
}

/// PS3.8 9.3.2.
fn associate_rq(request: &Request) -> Vec<u8> {
    let mut body = vec![0, 1, 0, 0];
    for title in [&request.called_ae_title, &request.calling_ae_title] {
        let mut padded = [b' '; 16];
        for (place, byte) in padded.iter_mut().zip(title.bytes()) {
            *place = byte;
        }
        body.extend_from_slice(&padded);
    }
    body.extend_from_slice(&[0; 32]);
    item(&mut body, 0x10, APPLICATION_CONTEXT.as_bytes());
    for (number, (abstract_syntax, transfer_syntax)) in request.contexts.iter().enumerate() {
        let mut inner = vec![context_id(number), 0, 0, 0];
        item(&mut inner, 0x30, abstract_syntax.as_bytes());
        item(&mut inner, 0x40, transfer_syntax.as_bytes());
        item(&mut body, 0x20, &inner);
    }
    let mut user = Vec::new();
    item(&mut user, 0x51, &OUR_MAX_PDU_LENGTH.to_be_bytes());
    item(&mut user, 0x52, IMPLEMENTATION_CLASS_UID.as_bytes());
    item(&mut user, 0x55, IMPLEMENTATION_VERSION_NAME.as_bytes());
    item(&mut body, 0x50, &user);
    let mut pdu = vec![0x01, 0];
    pdu.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    pdu.extend_from_slice(&body);
    pdu
}

/// Odd numbers from 1 (PS3.8 9.3.2.2).
fn context_id(number: usize) -> u8 {
    u8::try_from(2 * number + 1).unwrap_or(u8::MAX)
}

type Accepted = HashMap<(String, String), u8>;

/// Accepted contexts, and the peer's maximum PDU length (PS3.8 9.3.3).
fn parse_ac(body: &[u8], contexts: &[(String, String)]) -> Result<(Accepted, u32), SendError> {
    let broken = SendError::Protocol("A-ASSOCIATE-AC");
    let (mut accepted, mut max) = (HashMap::new(), 0);
    let Some(mut rest) = body.get(68..) else {
        return Err(broken);
    };
    while let Some((&[kind, _, high, low], after)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((value, next)) = after.split_at_checked(length) else {
            return Err(broken);
        };
        match (kind, value) {
            (0x21, &[id, _, 0, _, ..]) => {
                let number = usize::from(id.wrapping_sub(1) / 2);
                if let Some(context) = contexts.get(number).filter(|_| context_id(number) == id) {
                    accepted.insert(context.clone(), id);
                }
            }
            (0x50, user) => {
                if let Some((&[0x51, _, 0, 4, a, b, c, d], _)) = user.split_first_chunk::<8>() {
                    max = u32::from_be_bytes([a, b, c, d]);
                }
            }
            _ => {}
        }
        rest = next;
    }
    Ok((accepted, max))
}

/// PS3.7 9.3.1.1.
fn store_rq(identity: &Identity<'_>, message_id: u16) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    let uid = |text: &str| {
        let mut value = text.as_bytes().to_vec();
        value.resize(value.len().next_multiple_of(2), 0);
        value
    };
    let mut element = |number: u16, value: &[u8]| {
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(&number.to_le_bytes());
        body.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_le_bytes());
        body.extend_from_slice(value);
    };
    element(0x0002, &uid(identity.sop_class));
    element(0x0100, &0x0001_u16.to_le_bytes());
    element(0x0110, &message_id.to_le_bytes());
    element(0x0700, &0_u16.to_le_bytes());
    element(0x0800, &0_u16.to_le_bytes());
    element(0x1000, &uid(identity.sop_instance));
    let mut command = vec![0, 0, 0, 0, 4, 0, 0, 0];
    command.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
    command.extend_from_slice(&body);
    command
}

/// Message ID, status and comment (PS3.7 9.3.1.2).
fn parse_response(command: &[u8]) -> Result<(u16, u16, String), SendError> {
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

#[cfg(test)]
mod tests;
