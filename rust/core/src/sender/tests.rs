//! The sender against a receiver of a few lines.

use super::*;
use std::net::TcpListener;

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";

fn request() -> Request {
    Request {
        calling_ae_title: "SENDER".to_owned(),
        called_ae_title: "PEER".to_owned(),
        contexts: vec![(CT.to_owned(), EXPLICIT.to_owned())],
    }
}

fn accept(max: u32) -> Vec<u8> {
    let mut body = vec![0; 68];
    let mut inner = vec![1, 0, 0, 0];
    item(&mut inner, 0x40, EXPLICIT.as_bytes());
    item(&mut body, 0x21, &inner);
    let mut user = Vec::new();
    item(&mut user, 0x51, &max.to_be_bytes());
    item(&mut body, 0x50, &user);
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
                let response = crate::wire::command::Response {
                    operation: crate::wire::command::Operation::CStore,
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
        let mut sender = Sender::connect(address, &request(), Duration::from_secs(10)).unwrap();
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
    for (answer, expected) in [
        (&[3, 0, 0, 0, 0, 4, 0, 2, 3, 1][..], "rejected (2/3/1)"),
        (&[7, 0, 0, 0, 0, 4, 0, 0, 2, 6], "aborted by the peer (2/6)"),
        (
            &[2, 0, 0, 0, 0, 2, 0, 0],
            "the peer breaks the protocol: A-ASSOCIATE-AC",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = std::thread::spawn(move || peer(&listener, answer));
        let error = Sender::connect(address, &request(), Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        theirs.join().unwrap();
    }
}

#[test]
fn only_accepted_contexts_are_used() {
    let (accepted, max) = parse_ac(&accept(4096)[6..], &request().contexts).unwrap();
    assert_eq!((accepted.len(), max), (1, 4096));
    let mut refused = accept(4096);
    // Result 3: abstract syntax not supported.
    let at = refused
        .windows(4)
        .position(|bytes| bytes == [1, 0, 0, 0])
        .unwrap();
    refused[at + 2] = 3;
    let (accepted, _) = parse_ac(&refused[6..], &request().contexts).unwrap();
    assert!(accepted.is_empty());
}
