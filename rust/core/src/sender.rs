//! Being the sender: C-ECHO and C-STORE to a peer, as fast as it takes instances (PS3.7 9.1, PS3.8 9.3).

mod failure;
mod messages;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

pub use failure::SendError;
use messages::{
    associate_rq, echo_rq, parse_ac, parse_response, read_pdu, store_rq, LARGEST_ANSWER, VERIFICATION,
};
pub use tls::{ClientFiles, ClientTls, TlsFailure};

use crate::net::stream::Stream;
use crate::wire::pdu::{self, PduType};

/// Of C-ECHO, which has no data set.
const IMPLICIT: &str = "1.2.840.10008.1.2";
/// PDUs towards a peer that names no maximum, and towards one that names more.
const LARGEST_PDU: usize = 1 << 20;
/// What one system call takes along: a multiple of most PDUs, small enough for the caches.
const PIECE: usize = 1 << 20;
/// PDUs that one response may come in.
const MOST_PDUS: usize = 100;
const DATA_HEADER: usize = 12;
/// Of `writev` on Linux.
const MOST_SLICES: usize = 1024;

/// What an association is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Our AE title.
    pub calling_ae_title: String,
    /// The peer's.
    pub called_ae_title: String,
    /// Abstract and transfer syntax of each presentation context, at most 128.
    pub contexts: Vec<(String, String)>,
    /// Who asks, where the peer wants to know (PS3.7 D.3.3.7).
    pub user: Option<User>,
}

/// A username, and its passcode.
#[derive(Clone)]
pub struct User {
    /// Username.
    pub name: String,
    /// Passcode; without it only the name is sent.
    pub passcode: Option<String>,
}

impl fmt::Debug for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("User")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How long the network may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To open a connection to each address of the peer.
    pub connect: Duration,
    /// For each other wait.
    pub wait: Duration,
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
    stream: Stream,
    contexts: HashMap<(String, String), u8>,
    confirms_user: bool,
    /// Bytes of a data set in one PDU.
    room: usize,
    message_id: u16,
    buffer: Vec<u8>,
}

impl Sender {
    /// Connects and negotiates, with `tls` over TLS.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn connect(
        address: impl ToSocketAddrs,
        request: &Request,
        tls: Option<&ClientTls>,
        patience: Patience,
    ) -> Result<Self, SendError> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs().map_err(SendError::Name)? {
            match TcpStream::connect_timeout(&address, patience.connect) {
                Ok(socket) => return Self::negotiate(open(socket, tls, patience)?, request),
                Err(error) => last = error,
            }
        }
        Err(SendError::Connect(last))
    }

    fn negotiate(stream: Stream, request: &Request) -> Result<Self, SendError> {
        let mut sink = &stream;
        let sent = sink.write_all(&associate_rq(request)?);
        sent.map_err(|error| reason_of(&stream, error))?;
        let (header, body) = read_pdu(&stream)?;
        if header.pdu_type != PduType::AssociateResponse {
            return Err(SendError::Protocol("no answer to A-ASSOCIATE-RQ"));
        }
        let accepted = parse_ac(&body, &request.contexts)?;
        let max = match usize::try_from(accepted.max_pdu_length) {
            Ok(0) | Err(_) => LARGEST_PDU,
            Ok(max) => max.min(LARGEST_PDU),
        };
        Ok(Self {
            stream,
            contexts: accepted.contexts,
            confirms_user: accepted.confirms_user,
            // PS3.8 Annex D.1: the maximum counts the PDV header; fragments are even (E.1).
            room: max.saturating_sub(6).max(2) & !1,
            message_id: 0,
            buffer: Vec::new(),
        })
    }

    /// Whether the peer says that it has looked at the user identity (PS3.7 D.3.3.7.2).
    #[must_use]
    pub fn confirms_user(&self) -> bool {
        self.confirms_user
    }

    /// Whether an instance can be sent.
    #[must_use]
    pub fn accepts(&self, sop_class: &str, transfer_syntax: &str) -> bool {
        self.contexts
            .contains_key(&(sop_class.to_owned(), transfer_syntax.to_owned()))
    }

    /// Presentation context of a C-ECHO: abstract and transfer syntax.
    #[must_use]
    pub fn echo_context() -> (String, String) {
        (VERIFICATION.to_owned(), IMPLICIT.to_owned())
    }

    /// Sends a C-ECHO.
    ///
    /// # Errors
    /// [`SendError`]; after all but `NotAccepted` the association is of no more use.
    pub fn echo(&mut self) -> Result<Answer, SendError> {
        let context = self.context(&Self::echo_context())?;
        let command = pdu::wrap_command(context, &echo_rq(self.next_message_id()), self.max_pdu_length());
        let began = Instant::now();
        let mut sink = &self.stream;
        let sent = sink.write_all(&command);
        sent.map_err(|error| reason_of(&self.stream, error))?;
        self.read_answer(began)
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
        let length = file.metadata().map_err(SendError::File)?.len();
        let mut left = length.saturating_sub(dataset_at);
        file.seek(SeekFrom::Start(dataset_at)).map_err(SendError::File)?;
        let began = Instant::now();
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let count = left.min(self.piece() as u64);
            buffer.clear();
            let read = file.take(count).read_to_end(&mut buffer);
            if read.map_err(SendError::File)? as u64 != count {
                return Err(SendError::File(io::ErrorKind::UnexpectedEof.into()));
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
    pub fn release(self) -> Result<(), SendError> {
        let mut sink = &self.stream;
        let sent = sink.write_all(&[0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        sent.map_err(|error| reason_of(&self.stream, error))?;
        match read_pdu(&self.stream)?.0.pdu_type {
            PduType::ReleaseRp => Ok(()),
            _ => Err(SendError::Protocol("no answer to A-RELEASE-RQ")),
        }
    }

    /// Whole PDUs.
    fn piece(&self) -> usize {
        (PIECE / self.room).clamp(1, MOST_SLICES / 2 - 1) * self.room
    }

    fn request(&mut self, identity: &Identity<'_>) -> Result<(u8, Vec<u8>), SendError> {
        let context = self.context(&(identity.sop_class.to_owned(), identity.transfer_syntax.to_owned()))?;
        let command = store_rq(identity, self.next_message_id());
        Ok((
            context,
            pdu::wrap_command(context, &command, self.max_pdu_length()),
        ))
    }

    fn context(&self, syntaxes: &(String, String)) -> Result<u8, SendError> {
        self.contexts.get(syntaxes).copied().ok_or(SendError::NotAccepted)
    }

    fn next_message_id(&mut self) -> u16 {
        self.message_id = self.message_id.wrapping_add(1);
        self.message_id
    }

    fn max_pdu_length(&self) -> u32 {
        u32::try_from(self.room + 6).unwrap_or(0)
    }

    /// One `writev` for what precedes, the headers and the data.
    fn send_piece(&self, context: u8, prefix: &[u8], piece: &[u8], last: bool) -> Result<(), SendError> {
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
        write_all(&self.stream, &mut slices).map_err(|error| reason_of(&self.stream, error))
    }

    fn read_answer(&mut self, began: Instant) -> Result<Answer, SendError> {
        crate::os::acknowledge_at_once(self.stream.socket())?;
        let mut command = Vec::new();
        for _ in 0..MOST_PDUS {
            let (header, body) = read_pdu(&self.stream)?;
            if header.pdu_type != PduType::PData {
                return Err(SendError::Protocol("no answer to the request"));
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
                if command.len() + fragment.len() > LARGEST_ANSWER as usize {
                    return Err(SendError::Protocol("an answer that is too long"));
                }
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
        Err(SendError::Protocol("an answer in too many pieces"))
    }
}

fn open(socket: TcpStream, tls: Option<&ClientTls>, patience: Patience) -> Result<Stream, SendError> {
    socket.set_nodelay(true)?;
    let stream = match tls {
        None => Stream::clear(socket),
        Some(tls) => {
            let connection = tls
                .connection()
                .map_err(|error| SendError::Tls((&error).into()))?;
            let stream = Stream::encrypted(socket, connection);
            stream.block(patience.connect, patience.connect)?;
            stream
                .shake_hands()
                .map_err(|error| match SendError::from(error) {
                    SendError::Closed => SendError::Tls(TlsFailure::Closed),
                    SendError::Silent => SendError::Tls(TlsFailure::Silent),
                    other => other,
                })?;
            stream
        }
    };
    stream.block(patience.wait, patience.wait)?;
    Ok(stream)
}

/// Why nothing more could be written. A peer that closes in the middle has often said why before: an A-ABORT, or an alert of TLS.
fn reason_of(stream: &Stream, error: io::Error) -> SendError {
    let failure = SendError::from(error);
    if !matches!(failure, SendError::Closed) {
        return failure;
    }
    match read_pdu(stream) {
        Err(said @ (SendError::Tls(_) | SendError::Aborted(..) | SendError::Rejected(..))) => said,
        _ => failure,
    }
}

fn write_all(mut stream: &Stream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
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

#[cfg(test)]
mod tests;
