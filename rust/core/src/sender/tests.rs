//! The sender against a receiver of a few lines.

use super::messages::item;
use super::*;
use crate::wire::command::{Command, Operation, Response};
use std::net::{SocketAddr, TcpListener};

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";

fn request() -> Request {
    Request {
        calling_ae_title: "SENDER".to_owned(),
        called_ae_title: "PEER".to_owned(),
        contexts: vec![(CT.to_owned(), EXPLICIT.to_owned())],
        user: None,
    }
}

fn connect(address: SocketAddr) -> Result<Sender, SendError> {
    let wait = Duration::from_secs(10);
    Sender::connect(address, &request(), None, Patience { connect: wait, wait })
}

fn accept(max: u32) -> Vec<u8> {
    let mut body = vec![0; 68];
    let mut inner = vec![1, 0, 0, 0];
    item(&mut inner, 0x40, EXPLICIT.as_bytes()).unwrap();
    item(&mut body, 0x21, &inner).unwrap();
    let mut user = Vec::new();
    item(&mut user, 0x51, &max.to_be_bytes()).unwrap();
    item(&mut body, 0x50, &user).unwrap();
    let mut pdu = vec![0x02, 0];
    pdu.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    pdu.extend_from_slice(&body);
    pdu
}

/// Takes one instance and answers; what the peer saw of it: PDU lengths, data set.
fn peer(listener: &TcpListener, answer: &[u8]) -> (Vec<u32>, Vec<u8>) {
    let (mut stream, _) = listener.accept().unwrap();
    read_pdu(&mut stream).unwrap();
    stream.write_all(answer).unwrap();
    let (mut lengths, mut dataset) = (Vec::new(), Vec::new());
    loop {
        let Ok((header, body)) = read_pdu(&mut stream) else {
            return (lengths, dataset);
        };
        lengths.push(header.length);
        if body[5] & 1 == 0 {
            dataset.extend_from_slice(&body[6..]);
            if body[5] & 2 != 0 {
                let response = Response {
                    operation: Operation::CStore,
                    message_id: 1,
                    sop_class_uid: None,
                    sop_instance_uid: None,
                    status: 0xA700,
                    error_comment: Some("full"),
                };
                stream
                    .write_all(&pdu::wrap_command(1, &response.encode(), 0))
                    .unwrap();
                return (lengths, dataset);
            }
        }
    }
}

fn identity() -> Identity<'static> {
    Identity {
        sop_class: CT,
        sop_instance: "1.2.3",
        transfer_syntax: EXPLICIT,
    }
}

#[test]
fn data_sets_of_any_length_arrive_in_pdus_no_longer_than_the_peer_takes() {
    for (length, max) in [
        (0, 4096),
        (1, 4096),
        (4090, 4096),
        (4091, 4096),
        (3_000_001, 16_384),
        (3_000_000, 0),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = std::thread::spawn(move || peer(&listener, &accept(max)));
        let dataset: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
        let mut sender = connect(address).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"header").unwrap();
        file.write_all(&dataset).unwrap();
        let answer = if length % 2 == 0 {
            sender.store(&identity(), &dataset)
        } else {
            sender.store_file(&identity(), &mut file, 6)
        };
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.comment.as_str()), (0xA700, "full"));
        let (lengths, received) = theirs.join().unwrap();
        assert_eq!(received, dataset);
        assert!(max == 0 || lengths.iter().all(|&length| length <= max));
    }
}

#[test]
fn what_the_peer_says_instead_is_told() {
    for (answer, code, text) in [
        (
            &[3, 0, 0, 0, 0, 4, 0, 2, 3, 1][..],
            "rejected",
            "rejected (2/3/1)",
        ),
        (
            &[7, 0, 0, 0, 0, 4, 0, 0, 2, 6],
            "aborted",
            "aborted by the peer (2/6)",
        ),
        (
            &[2, 0, 0, 0, 0, 2, 0, 0],
            "protocol",
            "the peer breaks the protocol: A-ASSOCIATE-AC",
        ),
        (&[0x15, 3, 1, 0, 2, 2, 70], "tls.expected", "it expects TLS"),
        (&[], "closed", "the peer closed the connection"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_pdu(&mut stream).unwrap();
            stream.write_all(answer).unwrap();
        });
        let error = connect(address).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
        theirs.join().unwrap();
    }
}

#[test]
fn where_nobody_listens_the_connection_is_refused() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(connect(address).unwrap_err().code(), "connect.refused");
}

#[test]
fn an_abort_that_comes_while_data_is_sent_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let theirs = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_pdu(&mut stream).unwrap();
        stream.write_all(&accept(0)).unwrap();
        // Something of the instance has come, and the rest is never read.
        stream.read_exact(&mut [0; 100]).unwrap();
        stream.write_all(&[7, 0, 0, 0, 0, 4, 0, 0, 2, 1]).unwrap();
    });
    let mut sender = connect(address).unwrap();
    let error = sender.store(&identity(), &vec![0; 64 << 20]).unwrap_err();
    assert_eq!((error.code(), error.numbers()), ("aborted", vec![2, 1]));
    theirs.join().unwrap();
}

#[test]
fn an_answer_does_not_go_on_for_ever() {
    for fragment in [0, 50_000] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_pdu(&mut stream).unwrap();
            stream.write_all(&accept(0)).unwrap();
            let pdv = u32::try_from(fragment + 2).unwrap();
            let mut pdu = vec![4, 0];
            pdu.extend_from_slice(&(pdv + 4).to_be_bytes());
            pdu.extend_from_slice(&pdv.to_be_bytes());
            // A fragment of a command set, never the last one.
            pdu.extend_from_slice(&[1, 1]);
            pdu.resize(pdu.len() + fragment, 0);
            while stream.write_all(&pdu).is_ok() {}
        });
        let mut sender = connect(address).unwrap();
        assert_eq!(sender.store(&identity(), b"").unwrap_err().code(), "protocol");
        drop(sender);
        theirs.join().unwrap();
    }
}

#[test]
fn only_accepted_contexts_are_used() {
    let accepted = parse_ac(&accept(4096)[6..], &request().contexts).unwrap();
    assert_eq!((accepted.contexts.len(), accepted.max_pdu_length), (1, 4096));
    assert!(!accepted.confirms_user);
    let mut refused = accept(4096);
    // Result 3: abstract syntax not supported.
    let at = refused
        .windows(4)
        .position(|bytes| bytes == [1, 0, 0, 0])
        .unwrap();
    refused[at + 2] = 3;
    let accepted = parse_ac(&refused[6..], &request().contexts).unwrap();
    assert!(accepted.contexts.is_empty());
}

#[test]
fn a_user_is_asked_about_as_the_standard_says() {
    for (passcode, expected) in [
        (None, &b"\x58\0\0\x09\x01\x01\0\x03ct1\0\0"[..]),
        (Some("abc"), b"\x58\0\0\x0c\x02\x01\0\x03ct1\0\x03abc"),
    ] {
        let user = Some(User {
            name: "ct1".to_owned(),
            passcode: passcode.map(ToOwned::to_owned),
        });
        let pdu = associate_rq(&Request { user, ..request() }).unwrap();
        assert!(pdu.ends_with(expected), "{pdu:?}");
    }
    let mut user = Vec::new();
    item(&mut user, 0x51, &4096_u32.to_be_bytes()).unwrap();
    item(&mut user, 0x59, &[0, 0]).unwrap();
    let mut body = vec![0; 68];
    item(&mut body, 0x50, &user).unwrap();
    assert!(parse_ac(&body, &[]).unwrap().confirms_user);
}

#[test]
fn a_request_that_does_not_fit_is_not_sent() {
    let user = Some(User {
        name: "x".repeat(70_000),
        passcode: None,
    });
    let error = associate_rq(&Request { user, ..request() }).unwrap_err();
    assert_eq!(error.code(), "request_too_long");
}

#[test]
fn a_passcode_is_never_printed() {
    let user = User {
        name: "ct1".to_owned(),
        passcode: Some("CANARY".to_owned()),
    };
    assert!(!format!("{user:?}").contains("CANARY"));
}

#[test]
fn an_echo_is_a_command_without_a_data_set() {
    let request = echo_rq(7);
    let command = Command::parse(&request, None).unwrap();
    assert_eq!(
        (command.operation, command.message_id, command.has_dataset),
        (Operation::CEcho, 7, false)
    );
}
