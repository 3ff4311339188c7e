//! Connections before they are associations: one thread accepts and watches them until their request is complete, another
//! one those with TLS, so that handshakes hold up nobody else.
//!
//! A connection costs a descriptor and its own bytes, no thread, however slowly it sends. It leaves with a whole
//! A-ASSOCIATE-RQ (PS3.8 9.3.2), or at its deadline, or when it sends something else. That of a load balancer begins with a
//! PROXY header, which names the peer.

mod budget;
mod header;
mod places;
mod waiting;
mod watcher;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Poll, Waker};

use super::admission::Network;
use super::stream::{Stream, TlsPeer};
use super::tls::TlsSetup;
use budget::{Budget, Share};
use places::Places;
use watcher::{Watcher, WAKE};

pub use places::Slot;

/// Refused connections that are remembered until somebody asks.
const MOST_REFUSALS: usize = 1000;

/// Reads of 4 KiB from a peer that is turned away: what is in a socket's receive buffer, and no stream without end.
const MOST_DISCARDED_READS: usize = 256;

/// Bounds on connections that are not associations yet.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// Connections in all, associations included.
    pub connections: usize,
    /// Connections of one address, associations included.
    pub per_address: usize,
    /// Until the TLS handshake is over.
    pub handshake_timeout: Duration,
    /// From then on until the request is complete; a PROXY header is a part of it, and where TLS follows has as long.
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
    /// All requests together, or those of one address, took too much memory.
    pub request_memory: AtomicU64,
    /// The TLS handshake failed, or was not over in time.
    pub handshake: AtomicU64,
    /// No PROXY header, or a wrong one, where a connection has to begin with it.
    pub proxy_header: AtomicU64,
    /// There was no descriptor or no memory to accept with; the connection waits in the backlog.
    pub not_accepted: AtomicU64,
}

/// A connection that was turned away.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Address and port of the peer, where it is known.
    pub peer: Option<SocketAddr>,
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
    proxy: Option<IpAddr>,
    request: Vec<u8>,
    slot: Slot,
    /// Of the memory of all requests.
    _share: Share,
}

impl Connection {
    /// The whole A-ASSOCIATE-RQ, PDU header included.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Address and port of the peer, by its PROXY header where there was one; an IPv4-mapped IPv6 address is given as IPv4.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whose connection it is where it began with a PROXY header: the load balancer's address.
    #[must_use]
    pub fn proxy(&self) -> Option<IpAddr> {
        self.proxy
    }

    /// Who the peer is by TLS; none on a clear connection.
    #[must_use]
    pub fn tls_peer(&self) -> Option<TlsPeer> {
        self.stream.tls_peer()
    }

    /// Whether it is without TLS.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.stream.is_clear()
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
        // Unread bytes would make the kernel reset the connection, which may destroy what was just sent. A peer that sends
        // faster than this takes the risk.
        let _ = socket.set_nonblocking(true);
        let mut discard = [0; 4096];
        for _ in 0..MOST_DISCARDED_READS {
            if !matches!(socket.read(&mut discard), Ok(count) if count > 0) {
                break;
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    limits: GateLimits,
    /// Where load balancers are, whose connections begin with a PROXY header.
    balancers: Vec<Network>,
    tls: Mutex<Option<TlsSetup>>,
    refused: Mutex<VecDeque<Refused>>,
    places: Mutex<Places>,
    request_memory: Arc<Budget>,
    ready: Mutex<VecDeque<Connection>>,
    ready_changed: Condvar,
    counters: GateCounters,
    stopping: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn refuse(&self, counter: &AtomicU64, peer: Option<SocketAddr>, reason: &'static str, detail: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut refused = lock(&self.refused);
        if refused.len() < MOST_REFUSALS {
            refused.push_back(Refused { peer, reason, detail });
        }
        drop(refused);
        // Under the lock of those who wait: otherwise one may look and fall asleep in between.
        let _waiting = lock(&self.ready);
        self.ready_changed.notify_one();
    }
}

/// A thread and the connections that it watches.
#[derive(Debug)]
struct Lane {
    arrivals: Arc<Arrivals>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Listening sockets that a lane is to accept from.
type Arrivals = Mutex<Vec<TcpListener>>;

impl Lane {
    fn start(shared: &Arc<Shared>, name: &str, encrypted: bool) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let arrivals = Arc::<Arrivals>::default();
        let watcher = Watcher::new(poll, Arc::clone(shared), Arc::clone(&arrivals), encrypted);
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
    /// Starts the threads; that for TLS only where there is a set-up. Connections from `balancers` begin with a PROXY header,
    /// and no others do.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(limits: GateLimits, balancers: Vec<Network>, tls: Option<TlsSetup>) -> io::Result<Self> {
        let with_tls = tls.is_some();
        let shared = Arc::new(Shared {
            limits,
            balancers,
            tls: Mutex::new(tls),
            refused: Mutex::default(),
            places: Mutex::default(),
            request_memory: Arc::default(),
            ready: Mutex::default(),
            ready_changed: Condvar::new(),
            counters: GateCounters::default(),
            stopping: AtomicBool::new(false),
        });
        let clear = Lane::start(&shared, "storescp-gate", false)?;
        let encrypted = with_tls
            .then(|| Lane::start(&shared, "storescp-gate-tls", true))
            .transpose()?;
        Ok(Self {
            shared,
            clear,
            encrypted,
        })
    }

    /// Accepts from a listening socket until [`Gate::stop`]; what it accepts is clear, or begins with a TLS handshake.
    ///
    /// # Errors
    /// What the operating system says; `Unsupported` for TLS where the gate was started without a set-up.
    pub fn listen(&self, listener: TcpListener, encrypted: bool) -> io::Result<()> {
        let lane = if encrypted {
            self.encrypted.as_ref().ok_or(io::ErrorKind::Unsupported)?
        } else {
            &self.clear
        };
        listener.set_nonblocking(true)?;
        lock(&lane.arrivals).push(listener);
        lane.waker.wake()
    }

    /// What new connections get from now on.
    pub fn set_tls(&self, setup: TlsSetup) {
        *lock(&self.shared.tls) = Some(setup);
    }

    /// The next connection whose request is complete. None when time is up, some were turned away, or the gate stops.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<Connection> {
        let guard = lock(&self.shared.ready);
        let (mut ready, _) = self
            .shared
            .ready_changed
            .wait_timeout_while(guard, timeout, |ready| {
                ready.is_empty()
                    && !self.shared.stopping.load(Ordering::Acquire)
                    && lock(&self.shared.refused).is_empty()
            })
            .unwrap_or_else(PoisonError::into_inner);
        ready.pop_front()
    }

    /// Connections now open, associations included.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.shared.places).total
    }

    /// Whether its threads live, or were told to end.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let lives = |lane: &Lane| {
            lock(&lane.thread)
                .as_ref()
                .is_none_or(|thread| !thread.is_finished())
        };
        self.shared.stopping.load(Ordering::Acquire)
            || std::iter::once(&self.clear).chain(&self.encrypted).all(lives)
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
        let mut ready = lock(&self.shared.ready);
        let left = std::mem::take(&mut *ready);
        self.shared.ready_changed.notify_all();
        drop(ready);
        drop(left);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
