//! PROXY headers in front of requests; those in front of TLS are in `tests/integration/test_proxy.py`.

use super::*;
use crate::wire::proxy;

const REQUEST: [u8; 10] = [1, 0, 0, 0, 0, 4, 9, 9, 9, 9];
const SOON: Duration = Duration::from_secs(5);

/// A gate to which everybody on this machine is a load balancer.
fn behind_a_balancer(limits: GateLimits) -> (Gate, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let everybody = Network::new("127.0.0.0".parse().unwrap(), 8);
    let gate = Gate::start(limits, vec![everybody], None).unwrap();
    gate.listen(listener, false).unwrap();
    (gate, address)
}

fn patient() -> GateLimits {
    GateLimits {
        request_timeout: Duration::from_secs(30),
        ..limits()
    }
}

/// What is sent to a client until the end.
fn answer_to(address: SocketAddr, sent: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(sent).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    answer
}

fn wait_for(gate: &Gate, connections: usize) {
    let patience = Instant::now() + SOON;
    while gate.connections() != connections && Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(gate.connections(), connections);
}

#[test]
fn the_peer_is_the_one_that_the_header_names() {
    let (gate, address) = behind_a_balancer(patient());
    for (header, peer) in [
        (
            &b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 104\r\n"[..],
            Some("192.0.2.7:12345"),
        ),
        (b"PROXY UNKNOWN\r\n", None),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", None),
    ] {
        let mut client = TcpStream::connect(address).unwrap();
        let own = client.local_addr().unwrap();
        for byte in header.iter().chain(&REQUEST) {
            client.write_all(&[*byte]).unwrap();
        }
        client.write_all(b"next").unwrap();
        let connection = gate.next(SOON).unwrap();
        let expected = peer.map_or(own, |peer| peer.parse().unwrap());
        assert_eq!(
            (connection.peer(), connection.proxy()),
            (expected, Some(own.ip()))
        );
        assert_eq!(connection.request(), REQUEST);
        let (stream, _slot) = connection.into_parts();
        stream.block(SOON, SOON).unwrap();
        let mut next = [0; 4];
        (&stream).read_exact(&mut next).unwrap();
        assert_eq!(&next, b"next");
    }
}

#[test]
fn what_is_no_header_is_closed_without_an_answer() {
    let (gate, address) = behind_a_balancer(limits());
    for (sent, detail) in [
        (&REQUEST[..], proxy::Malformed::Opening.to_string()),
        (
            b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
            proxy::Malformed::Protocol.to_string(),
        ),
        (b"", proxy::ABSENT.to_owned()),
        (b"PROXY TCP4 192.0.2.7", proxy::LATE.to_owned()),
    ] {
        assert!(answer_to(address, sent).is_empty());
        let [refused] = &gate.take_refused()[..] else {
            panic!("one was refused");
        };
        assert_eq!((refused.reason, &refused.detail), ("proxy_header", &detail));
        assert!(refused.peer.unwrap().ip().is_loopback());
    }
    drop(TcpStream::connect(address).unwrap());
    wait_for(&gate, 0);
    let mut cut = TcpStream::connect(address).unwrap();
    cut.write_all(b"PROXY TCP4").unwrap();
    cut.shutdown(std::net::Shutdown::Write).unwrap();
    cut.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(
        gate.take_refused()[0].detail,
        proxy::CUT,
        "and nothing of the one before"
    );
    assert_eq!(gate.counters().proxy_header.load(Ordering::Relaxed), 5);
}

#[test]
fn a_header_that_nobody_expects_is_told() {
    let (gate, address) = started(limits());
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 104\r\n";
    assert_eq!(answer_to(address, header), [7, 0, 0, 0, 0, 4, 0, 0, 2, 1]);
    let refused = gate.take_refused().remove(0);
    assert_eq!(
        (refused.reason, &refused.detail[..]),
        ("malformed_request", proxy::UNEXPECTED)
    );
    let (gate, address) = behind_a_balancer(limits());
    assert_eq!(answer_to(address, &[&header[..], header].concat())[0], 7);
    let refused = gate.take_refused().remove(0);
    assert_eq!(
        (refused.reason, &refused.detail[..]),
        ("malformed_request", proxy::SECOND)
    );
    assert_eq!(refused.peer.unwrap().ip().to_string(), "192.0.2.7");
}

#[test]
fn places_are_counted_for_the_address_of_the_header() {
    let (gate, address) = behind_a_balancer(GateLimits {
        connections: 6,
        per_address: 2,
        ..patient()
    });
    let connect = |header: &[u8]| {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(header).unwrap();
        client
    };
    let connection_of = |header: &[u8]| {
        let client = connect(&[header, &REQUEST].concat());
        (client, gate.next(SOON).unwrap())
    };
    // Those without a header yet take no places of the balancer.
    let silent: Vec<_> = (0..3).map(|_| connect(b"")).collect();
    let of_one = b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n";
    let known = [connection_of(of_one), connection_of(of_one)];
    let mut over = connect(of_one);
    assert!(matches!(over.read(&mut [0; 1]), Ok(0) | Err(_)));
    let refused = gate.take_refused().remove(0);
    assert_eq!(refused.reason, "connections_per_address");
    assert_eq!(refused.peer.unwrap().ip().to_string(), "192.0.2.7");
    let other = connection_of(b"PROXY TCP4 192.0.2.8 10.0.0.1 1 2\r\n");
    wait_for(&gate, 6);
    assert!(matches!(connect(b"").read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!(gate.take_refused()[0].reason, "connections");
    drop((silent, known, other));
    wait_for(&gate, 0);
    let again = [connection_of(of_one), connection_of(of_one)];
    assert!(
        gate.take_refused().is_empty(),
        "the places of the address came back"
    );
    drop(again);
}
