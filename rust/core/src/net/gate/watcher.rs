//! What a thread of the gate does: it accepts, and reads until requests are complete.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;

use super::{lock, turn_away, Arrivals, Connection, Share, Shared, Slot};
use crate::net::stream::Stream;
use crate::wire::pdu::{self, AbortReason, PduHeader, PduType, HEADER_BYTES};

pub(super) const WAKE: Token = Token(0);
const READ_BYTES: usize = 64 * 1024;
const ACCEPTED_AT_ONCE: usize = 64;
/// Until the next attempt to accept where no descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Waiting {
    stream: Stream,
    peer: SocketAddr,
    slot: Slot,
    bytes: Vec<u8>,
    share: Share,
    deadline: Instant,
}

enum Progress {
    More,
    Complete,
    Closed,
    Malformed(AbortReason),
    /// No more memory for requests.
    NoMemory,
    /// Of TLS.
    Failed(String),
}

/// A thread's connections, and the sockets where it accepts them.
pub(super) struct Watcher {
    poll: Poll,
    shared: Arc<Shared>,
    arrivals: Arc<Arrivals>,
    encrypted: bool,
    listeners: HashMap<Token, TcpListener>,
    /// When to go on accepting: at once, or after descriptors had run out.
    accept_again: Option<Instant>,
    waiting: HashMap<Token, Waiting>,
    next_token: usize,
}

impl Watcher {
    pub(super) fn new(poll: Poll, shared: Arc<Shared>, arrivals: Arc<Arrivals>, encrypted: bool) -> Self {
        Self {
            poll,
            shared,
            arrivals,
            encrypted,
            listeners: HashMap::new(),
            accept_again: None,
            waiting: HashMap::new(),
            next_token: 1,
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        while !self.shared.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            let timeout = self
                .waiting
                .values()
                .map(|waiting| waiting.deadline)
                .chain(self.accept_again)
                .min()
                .map(|deadline| deadline.saturating_duration_since(now));
            // Interrupted by a signal: look again.
            if self.poll.poll(&mut events, timeout).is_err() {
                continue;
            }
            let tokens: Vec<Token> = events.iter().map(mio::event::Event::token).collect();
            for token in tokens {
                if token == WAKE {
                    self.register_listeners(&mut buffer);
                } else if self.listeners.contains_key(&token) {
                    self.accept(token, &mut buffer);
                } else {
                    self.advance(token, &mut buffer);
                }
            }
            if self.accept_again.is_some_and(|again| again <= Instant::now()) {
                self.accept_again = None;
                for token in self.listeners.keys().copied().collect::<Vec<_>>() {
                    self.accept(token, &mut buffer);
                }
            }
            self.expire();
        }
    }

    fn register_listeners(&mut self, buffer: &mut [u8]) {
        let arrivals = std::mem::take(&mut *lock(&self.arrivals));
        for listener in arrivals {
            let token = self.token();
            if self
                .register(listener.as_raw_fd(), token, Interest::READABLE)
                .is_ok()
            {
                self.listeners.insert(token, listener);
                // Events come on change only, and somebody may have knocked before.
                self.accept(token, buffer);
            }
        }
    }

    /// Those that wait in the backlog; of many the rest in a moment, so that they do not hold up connections that are in.
    fn accept(&mut self, token: Token, buffer: &mut [u8]) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(listener) = self.listeners.get(&token) else {
                return;
            };
            match crate::os::accept(listener) {
                Ok((socket, Some(peer))) => {
                    // A peer that is gone already needs no line.
                    if let Ok(peer) = SocketAddr::try_from(peer) {
                        let _ = self.admit(TcpStream::from(socket), peer, buffer);
                    }
                }
                Ok((_, None)) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::WOULDBLOCK) => return,
                Err(error) => {
                    // Out of descriptors, most likely: a moment passes instead of a busy loop.
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    let reason = io::Error::from(error).to_string();
                    self.shared
                        .refuse(&self.shared.counters.not_accepted, None, "not_accepted", reason);
                    return;
                }
            }
        }
        self.accept_again = Some(Instant::now());
    }

    /// Takes an accepted connection; one over a limit is closed at once.
    fn admit(&mut self, socket: TcpStream, peer: SocketAddr, buffer: &mut [u8]) -> io::Result<()> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(slot) = self.shared.take_place(peer) else {
            return Ok(());
        };
        socket.set_nodelay(true)?;
        let stream = if self.encrypted {
            let setup = lock(&self.shared.tls).clone().ok_or(io::ErrorKind::Unsupported)?;
            Stream::encrypted(socket, setup.accept().map_err(io::Error::other)?)
        } else {
            Stream::clear(socket)
        };
        let token = self.token();
        // A handshake may have to wait until it can write; the events come on change only.
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.register(stream.socket().as_raw_fd(), token, interest)?;
        let limits = &self.shared.limits;
        let patience = if self.encrypted {
            limits.handshake_timeout
        } else {
            limits.request_timeout
        };
        let waiting = Waiting {
            stream,
            peer,
            slot,
            bytes: Vec::new(),
            share: Share::new(&self.shared.request_memory, peer.ip()),
            deadline: Instant::now() + patience,
        };
        self.waiting.insert(token, waiting);
        // The request is often there already.
        self.advance(token, buffer);
        Ok(())
    }

    fn token(&mut self) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        token
    }

    fn register(&self, descriptor: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&descriptor), token, interest)
    }

    fn advance(&mut self, token: Token, buffer: &mut [u8]) {
        let Some(waiting) = self.waiting.get_mut(&token) else {
            return;
        };
        let was_handshaking = waiting.stream.is_handshaking();
        let progress = waiting.read(buffer, self.shared.limits.request_bytes);
        let is_handshaking = waiting.stream.is_handshaking();
        if matches!(progress, Progress::More) {
            if was_handshaking && !is_handshaking {
                waiting.deadline = Instant::now() + self.shared.limits.request_timeout;
            }
            return;
        }
        let Some(waiting) = self.waiting.remove(&token) else {
            return;
        };
        // Fails only for a descriptor that is not registered; the stream is taken over or closed either way.
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&waiting.stream.socket().as_raw_fd()));
        let counters = &self.shared.counters;
        match progress {
            Progress::Complete => {
                let connection = Connection {
                    stream: waiting.stream,
                    peer: waiting.peer,
                    request: waiting.bytes,
                    slot: waiting.slot,
                    _share: waiting.share,
                };
                lock(&self.shared.ready).push_back(connection);
                self.shared.ready_changed.notify_one();
            }
            Progress::Malformed(reason) => {
                let detail = format!("{reason:?}");
                self.shared.refuse(
                    &counters.malformed,
                    Some(waiting.peer),
                    "malformed_request",
                    detail,
                );
                turn_away(&waiting.stream, &pdu::abort(reason));
            }
            Progress::NoMemory => {
                let detail = format!("{} bytes of it had come", waiting.bytes.len());
                let counter = &counters.request_memory;
                self.shared
                    .refuse(counter, Some(waiting.peer), "request_memory", detail);
                turn_away(&waiting.stream, &pdu::REJECT_LOCAL_LIMIT);
            }
            Progress::Failed(detail) => {
                self.shared
                    .refuse(&counters.handshake, Some(waiting.peer), "tls_handshake", detail);
                turn_away(&waiting.stream, &[]);
            }
            Progress::Closed if is_handshaking => {
                let detail = "the peer closed the connection".to_owned();
                self.shared
                    .refuse(&counters.handshake, Some(waiting.peer), "tls_handshake", detail);
            }
            Progress::More | Progress::Closed => {}
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let counters = &self.shared.counters;
        self.waiting.retain(|_, waiting| {
            let expired = waiting.deadline <= now;
            // Counted before they are closed: whoever sees the end of the connection finds it counted.
            if expired && waiting.stream.is_handshaking() {
                let detail = "not over in time".to_owned();
                self.shared
                    .refuse(&counters.handshake, Some(waiting.peer), "tls_handshake", detail);
            } else if expired {
                self.shared.refuse(
                    &counters.timeout,
                    Some(waiting.peer),
                    "request_timeout",
                    String::new(),
                );
            }
            !expired
        });
    }
}

impl Waiting {
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
                Ok(count) if !self.take(buffer.get(..count).unwrap_or_default(), room) => {
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

    /// Whether there is memory for what came, of which so much was wanted at a time. A request may never become as long as
    /// its header says, so it grows as it comes.
    fn take(&mut self, bytes: &[u8], wanted: usize) -> bool {
        if !self.share.cover(self.bytes.len() + bytes.len()) {
            return false;
        }
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            self.bytes.reserve_exact(wanted);
        }
        self.bytes.extend_from_slice(bytes);
        true
    }
}
