//! Connections before they are associations: one thread watches them all until their request is complete.
//!
//! A connection costs a descriptor and its own bytes, no thread, however slowly it sends. It leaves with a whole
//! A-ASSOCIATE-RQ (PS3.8 9.3.2), or at its deadline, or when it sends something else.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};

use crate::wire::pdu::{self, AbortReason, PduHeader, PduType, HEADER_BYTES};

const WAKE: Token = Token(0);
/// A-ASSOCIATE-RQs that wait for their turn.
const READ_BYTES: usize = 64 * 1024;

/// Bounds on connections that are not associations yet.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// Connections in all, associations included.
    pub connections: usize,
    /// Connections of one address, associations included.
    pub per_address: usize,
    /// Until the request is complete.
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
}

/// A connection whose request is complete.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
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

    /// The stream and the place it occupies, for the association.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Slot) {
        (self.stream, self.slot)
    }

    /// Sends a last PDU (A-ASSOCIATE-RJ or A-ABORT) and closes.
    pub fn refuse(self, bytes: &[u8]) {
        turn_away(self.stream, bytes);
    }
}

/// Best effort: the peer may be gone, and it is closed either way.
fn turn_away(mut stream: TcpStream, bytes: &[u8]) {
    if stream.write_all(bytes).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        // Unread bytes would make the kernel reset the connection, which may destroy what was just sent.
        let _ = stream.set_nonblocking(true);
        let mut discard = [0; 4096];
        while matches!(stream.read(&mut discard), Ok(count) if count > 0) {}
    }
}

#[derive(Debug)]
struct Shared {
    limits: GateLimits,
    arrivals: Mutex<Vec<(TcpStream, SocketAddr, Slot)>>,
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

/// See the module documentation.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Gate {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(limits: GateLimits) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let shared = Arc::new(Shared {
            limits,
            arrivals: Mutex::default(),
            places: Mutex::default(),
            ready: Mutex::default(),
            ready_changed: Condvar::new(),
            counters: GateCounters::default(),
            stopping: AtomicBool::new(false),
        });
        let watcher = Watcher {
            poll,
            shared: Arc::clone(&shared),
            waiting: HashMap::new(),
            next_token: 1,
        };
        let thread = std::thread::Builder::new()
            .name("storescp-gate".to_owned())
            .spawn(move || watcher.run())?;
        Ok(Self {
            shared,
            waker,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Takes an accepted connection. One over a limit is closed at once.
    ///
    /// # Errors
    /// What the operating system says; the connection is closed then.
    pub fn add(&self, stream: TcpStream) -> io::Result<()> {
        let peer = stream.peer_addr()?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(slot) = self.take_place(peer.ip()) else {
            return Ok(());
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        lock(&self.shared.arrivals).push((stream, peer, slot));
        self.waker.wake()
    }

    fn take_place(&self, address: IpAddr) -> Option<Slot> {
        let mut places = lock(&self.shared.places);
        let of_address = places.by_address.get(&address).copied().unwrap_or(0);
        let refused = if of_address >= self.shared.limits.per_address {
            Some(&self.shared.counters.per_address)
        } else if places.total >= self.shared.limits.connections {
            Some(&self.shared.counters.connections)
        } else {
            None
        };
        if let Some(counter) = refused {
            counter.fetch_add(1, Ordering::Relaxed);
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

    /// Closes all connections that are no associations and ends the thread.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        self.shared.ready_changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Waiting {
    stream: mio::net::TcpStream,
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
}

struct Watcher {
    poll: Poll,
    shared: Arc<Shared>,
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
        lock(&self.shared.ready).clear();
    }

    fn admit_arrivals(&mut self, buffer: &mut [u8]) {
        let arrivals = std::mem::take(&mut *lock(&self.shared.arrivals));
        for (stream, peer, slot) in arrivals {
            let mut stream = mio::net::TcpStream::from_std(stream);
            let token = Token(self.next_token);
            self.next_token += 1;
            if self
                .poll
                .registry()
                .register(&mut stream, token, Interest::READABLE)
                .is_err()
            {
                continue;
            }
            let deadline = Instant::now() + self.shared.limits.request_timeout;
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
        let progress = waiting.read(buffer, self.shared.limits.request_bytes);
        if matches!(progress, Progress::More) {
            return;
        }
        let Some(mut waiting) = self.waiting.remove(&token) else {
            return;
        };
        // Fails only for a descriptor that is not registered; the stream is taken over or closed either way.
        let _ = self.poll.registry().deregister(&mut waiting.stream);
        let stream = TcpStream::from(std::os::fd::OwnedFd::from(waiting.stream));
        match progress {
            Progress::Complete => {
                let connection = Connection {
                    stream,
                    peer: waiting.peer,
                    request: waiting.bytes,
                    slot: waiting.slot,
                };
                lock(&self.shared.ready).push_back(connection);
                self.shared.ready_changed.notify_one();
            }
            Progress::Malformed(reason) => {
                self.shared.counters.malformed.fetch_add(1, Ordering::Relaxed);
                turn_away(stream, &pdu::abort(reason));
            }
            Progress::More | Progress::Closed => {}
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let expired = self
            .waiting
            .values()
            .filter(|waiting| waiting.deadline <= now)
            .count();
        // Counted before they are closed: whoever sees the end of the connection finds it counted.
        self.shared
            .counters
            .timeout
            .fetch_add(expired as u64, Ordering::Relaxed);
        self.waiting.retain(|_, waiting| waiting.deadline > now);
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
            match self.stream.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => return Progress::Closed,
                Ok(count) => self
                    .bytes
                    .extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
    }
}

#[cfg(test)]
mod tests;
