//! Tests of the gate: whole requests, silence, junk and limits.

use super::*;
use std::net::TcpListener;

fn limits() -> GateLimits {
    GateLimits {
        connections: 10,
        per_address: 10,
        handshake_timeout: Duration::from_millis(100),
        request_timeout: Duration::from_millis(200),
        request_bytes: 1 << 20,
    }
}

fn pair(listener: &TcpListener, gate: &Gate) -> TcpStream {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    gate.add(listener.accept().unwrap().0).unwrap();
    client
}

#[test]
fn a_whole_request_passes_and_what_follows_stays_in_the_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::start(limits(), None).unwrap();
    let mut client = pair(&listener, &gate);
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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::start(limits(), None).unwrap();
    let mut answer = Vec::new();
    for (sent, reason) in [
        (&[4u8, 0, 0, 0, 0, 4][..], 2),
        (b"GET / ", 1),
        (&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF], 6),
    ] {
        let mut client = pair(&listener, &gate);
        client.write_all(sent).unwrap();
        answer.clear();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [7, 0, 0, 0, 0, 4, 0, 0, 2, reason]);
    }
    let mut silent = pair(&listener, &gate);
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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::start(
        GateLimits {
            per_address: 2,
            request_timeout: Duration::from_secs(30),
            ..limits()
        },
        None,
    )
    .unwrap();
    let _held = [pair(&listener, &gate), pair(&listener, &gate)];
    let mut third = pair(&listener, &gate);
    let mut answer = Vec::new();
    third.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
    assert_eq!(gate.counters().per_address.load(Ordering::Relaxed), 1);
}
