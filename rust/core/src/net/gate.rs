//! Connections before they are associations: one thread watches them all until their request is complete, another one those
//! with TLS, so that handshakes hold up nobody else.
//!
//! A connection costs a descriptor and its own bytes, no thread, however slowly it sends. It leaves with a whole
//! A-ASSOCIATE-RQ (PS3.8 9.3.2), or at its deadline, or when it sends something else.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::stream::{Stream, TlsPeer};
use super::tls::TlsSetup;
use crate::wire::pdu::{self, AbortReason, PduHeader, PduType, HEADER_BYTES};

const WAKE: Token = Token(0);
const READ_BYTES: usize = 64 * 1024;
/// Refused connections that are remembered until somebody asks.
const MOST_REFUSALS: usize = 1000;

/// Bounds on connections that are not associations yet.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// Connections in all, associations included.
    pub connections: usize,
    /// Connections of one address, associations included.
    pub per_address: usize,
    /// Until the TLS handshake is over.
    pub handshake_timeout: Duration,
    /// From then on until the request is complete.
    pub request_timeout: Duration,
    /// Bytes of an A-ASSOCIATE-RQ.
    pub request_bytes: u32,
}

/// Connections that were turned away, since start.
#[derive(Debug, Default)]
pub struct GateCounters {
    /// Over the global limit.
    pub connections: AtomicU64,
    /// Over the limit of one address.
    pub per_address: AtomicU64,
    /// No complete request in time.
    pub timeout: AtomicU64,
    /// Something else than a request, or too long.
    pub malformed: AtomicU64,
    /// The TLS handshake failed, or was not over in time.
    pub handshake: AtomicU64,
}

/// A connection that was turned away.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Address and port of the peer.
    pub peer: SocketAddr,
    /// Why, as a word for metrics.
    pub reason: &'static str,
    /// More about it; nothing that the peer wrote.
    pub detail: String,
}

/// A connection whose request is complete.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    request: Vec<u8>,
    slot: Slot,
}

/// A place among the counted connections, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut places = lock(&self.shared.places);
        places.total -= 1;
        if let Some(count) = places.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                places.by_address.remove(&self.address);
            }
        }
    }
}

impl Connection {
    /// The whole A-ASSOCIATE-RQ, PDU header included.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Address and port of the peer; an IPv4-mapped IPv6 address is given as IPv4.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Who the peer is by TLS; none on a clear connection.
    #[must_use]
    pub fn tls_peer(&self) -> Option<TlsPeer> {
        self.stream.tls_peer()
    }

    /// The stream and the place it occupies, for the association.
    #[must_use]
    pub fn into_parts(self) -> (Stream, Slot) {
        (self.stream, self.slot)
    }

    /// Sends a last PDU (A-ASSOCIATE-RJ or A-ABORT) and closes.
    pub fn refuse(self, bytes: &[u8]) {
        turn_away(&self.stream, bytes);
    }
}

/// Best effort: the peer may be gone, and it is closed either way.
fn turn_away(stream: &Stream, bytes: &[u8]) {
    let (mut sink, mut socket) = (stream, &**stream.socket());
    if sink.write_all(bytes).is_ok() && stream.close_write().is_ok() {
        // Unread bytes would make the kernel reset the connection, which may destroy what was just sent.
        let _ = socket.set_nonblocking(true);
        let mut discard = [0; 4096];
        while matches!(socket.read(&mut discard), Ok(count) if count > 0) {}
    }
}

#[derive(Debug)]
struct Shared {
    limits: GateLimits,
    tls: Mutex<Option<TlsSetup>>,
    refused: Mutex<VecDeque<Refused>>,
    places: Mutex<Places>,
    ready: Mutex<VecDeque<Connection>>,
    ready_changed: Condvar,
    counters: GateCounters,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Places {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn refuse(&self, counter: &AtomicU64, peer: SocketAddr, reason: &'static str, detail: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut refused = lock(&self.refused);
        if refused.len() < MOST_REFUSALS {
            refused.push_back(Refused { peer, reason, detail });
        }
    }
}

/// A thread and the connections that it watches.
#[derive(Debug)]
struct Lane {
    arrivals: Arc<Arrivals>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Arrivals = Mutex<Vec<(Stream, SocketAddr, Slot)>>;

impl Lane {
    fn start(shared: &Arc<Shared>, name: &str) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let arrivals = Arc::<Arrivals>::default();
        let watcher = Watcher {
            poll,
            shared: Arc::clone(shared),
            arrivals: Arc::clone(&arrivals),
            waiting: HashMap::new(),
            next_token: 1,
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || watcher.run())?;
        Ok(Self {
            arrivals,
            waker,
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    clear: Lane,
    encrypted: Option<Lane>,
}

impl Gate {
    /// Starts the threads; that for TLS only where there is a set-up.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(limits: GateLimits, tls: Option<TlsSetup>) -> io::Result<Self> {
        let with_tls = tls.is_some();
        let shared = Arc::new(Shared {
            limits,
            tls: Mutex::new(tls),
            refused: Mutex::default(),
            places: Mutex::default(),
            ready: Mutex::default(),
            ready_changed: Condvar::new(),
            counters: GateCounters::default(),
            stopping: AtomicBool::new(false),
        });
        let clear = Lane::start(&shared, "storescp-gate")?;
        let encrypted = with_tls
            .then(|| Lane::start(&shared, "storescp-gate-tls"))
            .transpose()?;
        Ok(Self {
            shared,
            clear,
            encrypted,
        })
    }

    /// Takes an accepted connection. One over a limit is closed at once.
    ///
    /// # Errors
    /// What the operating system says; the connection is closed then.
    pub fn add(&self, socket: TcpStream) -> io::Result<()> {
        self.admit(socket, &self.clear, |socket| Ok(Stream::clear(socket)))
    }

    /// Takes an accepted connection that begins with a TLS handshake.
    ///
    /// # Errors
    /// As [`Gate::add`]; `Unsupported` where the gate was started without a set-up.
    pub fn add_encrypted(&self, socket: TcpStream) -> io::Result<()> {
        let setup = lock(&self.shared.tls).clone();
        let (Some(setup), Some(lane)) = (setup, &self.encrypted) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.admit(socket, lane, |socket| {
            let connection = setup.accept().map_err(io::Error::other)?;
            Ok(Stream::encrypted(socket, connection))
        })
    }

    /// What new connections get from now on.
    pub fn set_tls(&self, setup: TlsSetup) {
        *lock(&self.shared.tls) = Some(setup);
    }

    fn admit(
        &self,
        socket: TcpStream,
        lane: &Lane,
        wrap: impl FnOnce(TcpStream) -> io::Result<Stream>,
    ) -> io::Result<()> {
        let peer = socket.peer_addr()?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(slot) = self.take_place(peer) else {
            return Ok(());
        };
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        lock(&lane.arrivals).push((wrap(socket)?, peer, slot));
        lane.waker.wake()
    }

    fn take_place(&self, peer: SocketAddr) -> Option<Slot> {
        let address = peer.ip();
        let mut places = lock(&self.shared.places);
        let of_address = places.by_address.get(&address).copied().unwrap_or(0);
        let counters = &self.shared.counters;
        let refused = if of_address >= self.shared.limits.per_address {
            Some((&counters.per_address, "connections_per_address"))
        } else if places.total >= self.shared.limits.connections {
            Some((&counters.connections, "connections"))
        } else {
            None
        };
        if let Some((counter, reason)) = refused {
            self.shared.refuse(counter, peer, reason, String::new());
            return None;
        }
        places.total += 1;
        *places.by_address.entry(address).or_default() += 1;
        Some(Slot {
            shared: Arc::clone(&self.shared),
            address,
        })
    }

    /// The next connection whose request is complete.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<Connection> {
        let guard = lock(&self.shared.ready);
        let (mut ready, _) = self
            .shared
            .ready_changed
            .wait_timeout_while(guard, timeout, |ready| {
                ready.is_empty() && !self.shared.stopping.load(Ordering::Acquire)
            })
            .unwrap_or_else(PoisonError::into_inner);
        ready.pop_front()
    }

    /// Connections now open, associations included.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.shared.places).total
    }

    /// Connections turned away.
    #[must_use]
    pub fn counters(&self) -> &GateCounters {
        &self.shared.counters
    }

    /// Connections turned away since the last call, the first thousand.
    #[must_use]
    pub fn take_refused(&self) -> Vec<Refused> {
        lock(&self.shared.refused).drain(..).collect()
    }

    /// Closes all connections that are no associations and ends the threads.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        for lane in std::iter::once(&self.clear).chain(&self.encrypted) {
            let _ = lane.waker.wake();
            if let Some(thread) = lock(&lane.thread).take() {
                let _ = thread.join();
            }
        }
        lock(&self.shared.ready).clear();
        self.shared.ready_changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Waiting {
    stream: Stream,
    peer: SocketAddr,
    slot: Slot,
    bytes: Vec<u8>,
    deadline: Instant,
}

enum Progress {
    More,
    Complete,
    Closed,
    Malformed(AbortReason),
    /// Of TLS.
    Failed(String),
}

struct Watcher {
    poll: Poll,
    shared: Arc<Shared>,
    arrivals: Arc<Arrivals>,
    waiting: HashMap<Token, Waiting>,
    next_token: usize,
}

impl Watcher {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        while !self.shared.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            let timeout = self
                .waiting
                .values()
                .map(|waiting| waiting.deadline.saturating_duration_since(now))
                .min();
            // Interrupted by a signal: look again.
            if self.poll.poll(&mut events, timeout).is_err() {
                continue;
            }
            let tokens: Vec<Token> = events.iter().map(mio::event::Event::token).collect();
            for token in tokens {
                if token == WAKE {
                    self.admit_arrivals(&mut buffer);
                } else {
                    self.advance(token, &mut buffer);
                }
            }
            self.expire();
        }
    }

    fn admit_arrivals(&mut self, buffer: &mut [u8]) {
        let arrivals = std::mem::take(&mut *lock(&self.arrivals));
        for (stream, peer, slot) in arrivals {
            let token = Token(self.next_token);
            self.next_token += 1;
            if self
                .poll
                .registry()
                .register(
                    &mut SourceFd(&stream.socket().as_raw_fd()),
                    token,
                    // A handshake may have to wait until it can write; the events come on change only.
                    Interest::READABLE | Interest::WRITABLE,
                )
                .is_err()
            {
                continue;
            }
            let limits = &self.shared.limits;
            let patience = if stream.is_handshaking() {
                limits.handshake_timeout
            } else {
                limits.request_timeout
            };
            let deadline = Instant::now() + patience;
            self.waiting.insert(
                token,
                Waiting {
                    stream,
                    peer,
                    slot,
                    bytes: Vec::new(),
                    deadline,
                },
            );
            // The request is often there already.
            self.advance(token, buffer);
        }
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
                };
                lock(&self.shared.ready).push_back(connection);
                self.shared.ready_changed.notify_one();
            }
            Progress::Malformed(reason) => {
                let detail = format!("{reason:?}");
                self.shared
                    .refuse(&counters.malformed, waiting.peer, "malformed_request", detail);
                turn_away(&waiting.stream, &pdu::abort(reason));
            }
            Progress::Failed(detail) => {
                self.shared
                    .refuse(&counters.handshake, waiting.peer, "tls_handshake", detail);
                turn_away(&waiting.stream, &[]);
            }
            Progress::Closed if is_handshaking => {
                let detail = "the peer closed the connection".to_owned();
                self.shared
                    .refuse(&counters.handshake, waiting.peer, "tls_handshake", detail);
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
                    .refuse(&counters.handshake, waiting.peer, "tls_handshake", detail);
            } else if expired {
                self.shared
                    .refuse(&counters.timeout, waiting.peer, "request_timeout", String::new());
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
                Ok(count) => self
                    .bytes
                    .extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Progress::Failed(error.to_string())
                }
                Err(_) => return Progress::Closed,
            }
        }
    }
}

#[cfg(test)]
mod tests;
