//! Tests of encrypted streams whose peer sends and does not read.

use std::net::TcpListener;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

/// Both ends of an encrypted connection whose handshake is over; the server's socket does not block.
fn connected() -> (Stream, Stream) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.cert.der().clone()],
            PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.send_tls13_tickets = 0;
    let of_client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(of_client), name).unwrap();
    let client = Stream::encrypted(socket, Connection::Client(connection));
    let connection = ServerConnection::new(Arc::new(config)).unwrap();
    let server = Stream::encrypted(listener.accept().unwrap().0, Connection::Server(connection));
    std::thread::scope(|scope| {
        // A stream belongs to one thread at a time.
        let client = scope.spawn(move || client.shake_hands().map(|()| client));
        server.shake_hands().unwrap();
        server.socket().set_nonblocking(true).unwrap();
        (server, client.join().unwrap().unwrap())
    })
}

/// Writes until the peer, who reads nothing, has room for no more.
fn fill(mut stream: &Stream) {
    let error = loop {
        if let Err(error) = stream.write(&[7; 16 * 1024]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

fn read_all(stream: &Stream, count: usize) -> Vec<u8> {
    let mut found = Vec::new();
    let mut source = stream;
    while found.len() < count {
        let mut buffer = [0; 5];
        match source.read(&mut buffer) {
            Ok(0) => panic!("closed after {found:?}"),
            Ok(read) => found.extend_from_slice(&buffer[..read]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    found
}

#[test]
fn what_was_read_is_not_lost_where_nothing_can_be_sent() {
    let (server, client) = connected();
    (&client).write_all(b"0123456789abcdef").unwrap();
    assert_eq!(read_all(&server, 5), b"01234");
    fill(&server);
    assert_eq!(read_all(&server, 11), b"56789abcdef");
}

#[test]
fn what_comes_is_read_where_nothing_can_be_sent() {
    let (server, client) = connected();
    fill(&server);
    (&client).write_all(b"0123456789abcdef").unwrap();
    assert_eq!(read_all(&server, 16), b"0123456789abcdef");
}
