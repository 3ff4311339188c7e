//! Tests of the gate: whole requests, silence, junk and limits.

use super::*;
use std::net::TcpStream;
use std::time::Instant;

mod headers;

fn limits() -> GateLimits {
    GateLimits {
        connections: 10,
        per_address: 10,
        handshake_timeout: Duration::from_millis(100),
        request_timeout: Duration::from_millis(200),
        request_bytes: 1 << 20,
    }
}

/// A gate and where it listens.
fn started(limits: GateLimits) -> (Gate, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Gate::start(limits, Vec::new(), None).unwrap();
    gate.listen(listener, false).unwrap();
    (gate, address)
}

#[test]
fn a_whole_request_passes_and_what_follows_stays_in_the_socket() {
    let (gate, address) = started(limits());
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(&[1, 0, 0, 0, 0, 4, 9, 9]).unwrap();
    assert!(gate.next(Duration::from_millis(20)).is_none());
    client.write_all(&[9, 9, 4, 0]).unwrap();
    let connection = gate.next(Duration::from_secs(5)).unwrap();
    assert_eq!(connection.request(), [1, 0, 0, 0, 0, 4, 9, 9, 9, 9]);
    let (stream, slot) = connection.into_parts();
    let mut socket = &**stream.socket();
    socket.set_nonblocking(false).unwrap();
    let mut next = [0; 2];
    socket.read_exact(&mut next).unwrap();
    assert_eq!((next, gate.connections()), ([4, 0], 1));
    drop(slot);
    assert_eq!(gate.connections(), 0);
}

#[test]
fn silence_ends_at_the_deadline_and_junk_at_once() {
    let (gate, address) = started(limits());
    let mut answer = Vec::new();
    for (sent, reason) in [
        (&[4u8, 0, 0, 0, 0, 4][..], 2),
        (b"GET / ", 1),
        (&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF], 6),
    ] {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(sent).unwrap();
        answer.clear();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [7, 0, 0, 0, 0, 4, 0, 0, 2, reason]);
    }
    let mut silent = TcpStream::connect(address).unwrap();
    answer.clear();
    silent.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
    assert_eq!(gate.counters().timeout.load(Ordering::Relaxed), 1);
    // The place is given back after the peer sees the end.
    let patience = Instant::now() + Duration::from_secs(5);
    while gate.connections() > 0 && Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(gate.connections(), 0);
}

#[test]
fn one_address_cannot_take_all_places() {
    let (gate, address) = started(GateLimits {
        per_address: 2,
        request_timeout: Duration::from_secs(30),
        ..limits()
    });
    let _held = [
        TcpStream::connect(address).unwrap(),
        TcpStream::connect(address).unwrap(),
    ];
    let mut third = TcpStream::connect(address).unwrap();
    let mut answer = Vec::new();
    third.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
    assert_eq!(gate.counters().per_address.load(Ordering::Relaxed), 1);
    assert_eq!(gate.take_refused()[0].reason, "connections_per_address");
}

#[test]
fn who_waits_hears_of_connections_turned_away_and_of_the_end() {
    let (gate, address) = started(GateLimits {
        connections: 0,
        ..limits()
    });
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| gate.next(Duration::from_secs(60)));
        let mut client = TcpStream::connect(address).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        assert!(waiting.join().unwrap().is_none());
        assert_eq!(gate.take_refused()[0].reason, "connections");
        let waiting = scope.spawn(|| gate.next(Duration::from_secs(60)));
        gate.stop();
        assert!(waiting.join().unwrap().is_none());
    });
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn more_than_are_accepted_at_once_come_in_all_the_same() {
    let (gate, address) = started(GateLimits {
        connections: 1000,
        per_address: 1000,
        request_timeout: Duration::from_secs(30),
        ..limits()
    });
    let clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let patience = Instant::now() + Duration::from_secs(10);
    while gate.connections() < clients.len() && Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(gate.connections(), 200);
}
