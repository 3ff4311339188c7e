//! A connection until its request is complete: what it has to read next, and what that comes to.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

use super::header::{self, Header};
use super::{lock, Share, Shared, Slot};
use crate::net::stream::Stream;
use crate::wire::pdu::{AbortReason, PduHeader, PduType, HEADER_BYTES};
use crate::wire::proxy::{self, Source};

/// See the module documentation.
pub(super) struct Waiting {
    pub(super) stream: Stream,
    pub(super) peer: SocketAddr,
    /// The PROXY header that is still to come.
    pub(super) header: Option<Header>,
    /// Who sent it.
    pub(super) proxy: Option<IpAddr>,
    /// Whether a PROXY header is in the place of a TLS handshake; none where that was not looked at.
    is_stray: Option<bool>,
    pub(super) slot: Slot,
    pub(super) bytes: Vec<u8>,
    pub(super) share: Share,
    pub(super) deadline: Instant,
}

/// A request grows by so much at a time: most have that much in all.
const GROWTH_BYTES: usize = 4 << 10;

/// What reading comes to for now.
pub(super) enum Progress {
    More,
    Complete,
    Closed,
    Malformed(AbortReason),
    /// No more memory for requests.
    NoMemory,
    /// Of TLS.
    Failed(String),
    /// No PROXY header, or one that cannot be followed.
    NoHeader(String),
    /// Over the limit of its address, which is told already.
    OverLimit,
}

impl Waiting {
    /// A clear connection until TLS begins, with as long as a request may take.
    pub(super) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        slot: Slot,
        awaits_header: bool,
        shared: &Shared,
    ) -> Self {
        Self {
            stream: Stream::clear(socket),
            peer,
            header: awaits_header.then(Header::default),
            proxy: awaits_header.then(|| peer.ip()),
            is_stray: None,
            slot,
            bytes: Vec::new(),
            share: Share::new(&shared.request_memory, peer.ip()),
            deadline: Instant::now() + shared.limits.request_timeout,
        }
    }

    /// What comes from here on is TLS.
    pub(super) fn begin_tls(&mut self, shared: &Shared) -> io::Result<()> {
        let setup = lock(&shared.tls).clone().ok_or(io::ErrorKind::Unsupported)?;
        self.stream.begin_tls(setup.accept().map_err(io::Error::other)?);
        self.deadline = Instant::now() + shared.limits.handshake_timeout;
        Ok(())
    }

    /// Reads what is there: the PROXY header where one is to come, then the request, with TLS or without.
    pub(super) fn advance(&mut self, buffer: &mut [u8], shared: &Shared, encrypted: bool) -> Progress {
        if let Some(header) = &mut self.header {
            match header.read(self.stream.socket(), buffer) {
                header::Outcome::More => return Progress::More,
                header::Outcome::Closed => return Progress::Closed,
                header::Outcome::Malformed(detail) => return Progress::NoHeader(detail),
                header::Outcome::Complete(Source::Connection) => {}
                header::Outcome::Complete(Source::Peer(peer)) => self.peer = peer,
            }
            self.header = None;
            if !self.slot.count_for(self.peer) {
                return Progress::OverLimit;
            }
            self.share = Share::new(&shared.request_memory, self.peer.ip());
            if encrypted {
                if let Err(error) = self.begin_tls(shared) {
                    return Progress::Failed(error.to_string());
                }
            }
        }
        let was_handshaking = self.stream.is_handshaking();
        if was_handshaking && self.is_stray.is_none() {
            self.is_stray = header::is_next(self.stream.socket());
        }
        let progress = self.read(buffer, shared.limits.request_bytes);
        if was_handshaking && !self.stream.is_handshaking() {
            self.deadline = Instant::now() + shared.limits.request_timeout;
        }
        progress
    }

    /// Whether nothing came behind its PROXY header, as in the checks of balancers.
    pub(super) fn is_check(&self) -> bool {
        self.proxy.is_some() && self.is_stray.is_none()
    }

    /// What is to be said of a PROXY header where none is read.
    pub(super) fn stray_header(&self) -> Option<&'static str> {
        let is_stray = self.is_stray == Some(true) || proxy::begins_header(&self.bytes);
        is_stray.then_some(if self.proxy.is_some() {
            proxy::SECOND
        } else {
            proxy::UNEXPECTED
        })
    }

    /// Reads no byte beyond the request: what follows belongs to the association.
    fn read(&mut self, buffer: &mut [u8], most: u32) -> Progress {
        loop {
            let wanted = match self.bytes.first_chunk::<HEADER_BYTES>() {
                None => HEADER_BYTES - self.bytes.len(),
                Some(&header) => {
                    let header = PduHeader::parse(header);
                    match header.pdu_type {
                        PduType::AssociateRq if header.length <= most => {}
                        PduType::AssociateRq => return Progress::Malformed(AbortReason::InvalidPduParameter),
                        PduType::Unrecognised => return Progress::Malformed(AbortReason::UnrecognisedPdu),
                        _ => return Progress::Malformed(AbortReason::UnexpectedPdu),
                    }
                    let whole = HEADER_BYTES + usize::try_from(header.length).unwrap_or(usize::MAX);
                    whole - self.bytes.len()
                }
            };
            if wanted == 0 {
                return Progress::Complete;
            }
            let room = wanted.min(buffer.len());
            let mut source = &self.stream;
            match source.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => return Progress::Closed,
                Ok(count) if !self.take(buffer.get(..count).unwrap_or_default()) => {
                    return Progress::NoMemory
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Progress::Failed(error.to_string())
                }
                Err(_) => return Progress::Closed,
            }
        }
    }

    /// Whether there is memory for what came. A request may never become as long as its header says, so it grows as it
    /// comes, and what it has room for is counted.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let room = needed.next_multiple_of(GROWTH_BYTES);
            if !self.share.cover(room) {
                return false;
            }
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        true
    }
}
