//! What a thread of the gate does: it accepts, and reads until requests are complete.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;

use super::waiting::{Progress, Waiting};
use super::{lock, turn_away, Arrivals, Connection, Shared};
use crate::wire::pdu;

pub(super) const WAKE: Token = Token(0);
const READ_BYTES: usize = 64 * 1024;
const ACCEPTED_AT_ONCE: usize = 64;
/// Until the next attempt to accept where no descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        let mut balancers = self.shared.balancers.iter();
        let awaits_header = balancers.any(|network| network.contains(peer.ip()));
        let Some(slot) = self.shared.take_place(peer, awaits_header) else {
            return Ok(());
        };
        socket.set_nodelay(true)?;
        let mut waiting = Waiting::new(socket, peer, slot, awaits_header, &self.shared);
        if self.encrypted && !awaits_header {
            waiting.begin_tls(&self.shared)?;
        }
        let token = self.token();
        // A handshake may have to wait until it can write; the events come on change only.
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.register(waiting.stream.socket().as_raw_fd(), token, interest)?;
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
        let progress = waiting.advance(buffer, &self.shared, self.encrypted);
        if matches!(progress, Progress::More) {
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
        self.conclude(waiting, progress);
    }

    /// Hands over a connection whose request is complete; every other one is closed, and told where that matters.
    fn conclude(&self, waiting: Waiting, progress: Progress) {
        let shared = &self.shared;
        let (counters, peer) = (&shared.counters, Some(waiting.peer));
        match progress {
            Progress::Complete => {
                let connection = Connection {
                    stream: waiting.stream,
                    peer: waiting.peer,
                    proxy: waiting.proxy,
                    request: waiting.bytes,
                    slot: waiting.slot,
                    _share: waiting.share,
                };
                lock(&shared.ready).push_back(connection);
                shared.ready_changed.notify_one();
            }
            Progress::Malformed(reason) => {
                let stray = waiting.stray_header();
                let detail = stray.map_or_else(|| format!("{reason:?}"), str::to_owned);
                shared.refuse(&counters.malformed, peer, "malformed_request", detail);
                turn_away(&waiting.stream, &pdu::abort(reason));
            }
            Progress::NoMemory => {
                let detail = format!("{} bytes of it had come", waiting.bytes.len());
                shared.refuse(&counters.request_memory, peer, "request_memory", detail);
                turn_away(&waiting.stream, &pdu::REJECT_LOCAL_LIMIT);
            }
            Progress::Failed(detail) => {
                let detail = waiting.stray_header().map_or(detail, str::to_owned);
                shared.refuse(&counters.handshake, peer, "tls_handshake", detail);
                turn_away(&waiting.stream, &[]);
            }
            Progress::NoHeader(detail) => {
                shared.refuse(&counters.proxy_header, peer, "proxy_header", detail);
                turn_away(&waiting.stream, &[]);
            }
            Progress::OverLimit => turn_away(&waiting.stream, &[]),
            Progress::Closed if waiting.stream.is_handshaking() && !waiting.is_check() => {
                let detail = "the peer closed the connection".to_owned();
                shared.refuse(&counters.handshake, peer, "tls_handshake", detail);
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
            if let Some(header) = waiting.header.as_ref().filter(|_| expired) {
                let detail = header.overdue().to_owned();
                self.shared
                    .refuse(&counters.proxy_header, Some(waiting.peer), "proxy_header", detail);
            } else if expired && waiting.stream.is_handshaking() {
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
