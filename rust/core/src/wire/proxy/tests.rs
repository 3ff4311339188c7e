//! Tests of PROXY headers, those of section 2 of the specification first.

use super::*;
use proptest::prelude::*;

/// A header of version 2.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap();
    [SIGNATURE, &[command, family], &length.to_be_bytes(), block].concat()
}

fn ipv4_block() -> Vec<u8> {
    vec![192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x2B, 0x67]
}

fn ipv6_block(source: Ipv6Addr) -> Vec<u8> {
    let ports = [0x30, 0x39, 0x2B, 0x67];
    [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &ports].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), value].concat()
}

/// TCP over IPv4 with TLVs.
fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(PROXY, TCP_OVER_IPV4, &[ipv4_block(), tlvs.concat()].concat())
}

/// CRC32C bit by bit (RFC 4960 Appendix B: the polynomial 0x1EDC6F41, reflected).
fn slow_crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            if sum & 1 == 1 {
                (sum >> 1) ^ 0x82F6_3B78
            } else {
                sum >> 1
            }
        })
    })
}

/// The same with a checksum among its TLVs.
fn with_checksum(before: &[Vec<u8>], after: &[Vec<u8>]) -> Vec<u8> {
    let at = FIXED_BYTES + IPV4_BYTES + before.concat().len() + 3;
    let tlvs = [before, &[tlv(CHECKSUM, &[0; 4])], after].concat();
    let mut header = with_tlvs(&tlvs);
    let sum = slow_crc32c(&header);
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Reads from a stream as a receiver does, in pieces of at most `most` bytes: what was read, and what came of it.
fn read(stream: &[u8], most: usize) -> (usize, Result<Progress, Malformed>) {
    let mut taken = 0;
    loop {
        match parse(&stream[..taken]) {
            Ok(Progress::More(wanted)) if taken < stream.len() => {
                assert!(wanted > 0);
                taken = (taken + wanted.min(most)).min(stream.len());
            }
            outcome => return (taken, outcome),
        }
    }
}

/// The header is read to its end and no further, whatever the pieces.
fn assert_whole(header: &[u8], source: Source) {
    let stream = [header, b"\r\n\r\nwhat follows"].concat();
    for most in [1, 2, 3, 5, 7, 16, 64, usize::MAX] {
        let expected = (header.len(), Ok(Progress::Complete(source)));
        assert_eq!(read(&stream, most), expected, "{most}: {header:02X?}");
    }
}

/// It is refused, at the latest when it is all there and the next byte is asked for.
fn assert_refused(header: &[u8], why: Malformed) {
    for most in [1, usize::MAX] {
        assert_eq!(read(header, most).1, Err(why), "{most}: {header:02X?}");
    }
}

fn peer(text: &str) -> Source {
    Source::Peer(text.parse().unwrap())
}

#[test]
fn a_line_names_the_peer() {
    for (line, source) in [
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            peer("255.255.255.255:65535"),
        ),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", peer("0.0.0.0:0")),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 12345 11111\r\n", peer("192.0.2.7:12345")),
        ("PROXY TCP6 :: :: 0 0\r\n", peer("[::]:0")),
        ("PROXY TCP6 2001:db8::7 2001:DB8::1 12345 11111\r\n", peer("[2001:db8::7]:12345")),
        (
            "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            peer("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::ffff:10.0.0.1 1 2\r\n", peer("192.0.2.7:1")),
        ("PROXY TCP6 ::ffff:c000:207 :: 1 2\r\n", peer("192.0.2.7:1")),
    ] {
        assert_whole(line.as_bytes(), source);
    }
}

#[test]
fn an_unknown_peer_is_whoever_connected() {
    for line in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        b"PROXY UNKNOWN \r \n \xFF\0 \r\r\n",
    ] {
        assert_whole(line, Source::Connection);
    }
}

#[test]
fn a_line_that_breaks_the_grammar_is_refused() {
    for addresses in [
        "192.0.2.7  10.0.0.1 1 2",
        " 192.0.2.7 10.0.0.1 1 2",
        "192.0.2.7 10.0.0.1 1 2 ",
        "192.0.2.7 10.0.0.1 1 2 3",
        "192.0.2.7 10.0.0.1 1          ",
        "192.0.2.07 10.0.0.1 1 2",
        "192.0.2.256 10.0.0.1 1 2",
        "192.0.2 10.0.0.1 1 2   ",
        "::1 10.0.0.1 1 2       ",
        "192.0.2.7 10.0.0.1 01 2",
        "192.0.2.7 10.0.0.1 1 65536",
        "192.0.2.7 10.0.0.1 +1 2",
        "192.0.2.7 10.0.0.1 -1 2",
        "192.0.2.7 10.0.0.1 1 2\t",
        "192.0.2.7 10.0.0.1 1\r\n 2",
        "192.0.2.7 10.0.0.1 1 2\r",
        "192.0.2.7%eth0 10.0.0.1 1 2",
    ] {
        assert_refused(
            format!("PROXY TCP4 {addresses}\r\n").as_bytes(),
            Malformed::Addresses,
        );
    }
    assert_refused(b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n", Malformed::Addresses);
    assert_refused(b"PROXY TCP6 fe80::1%1 :: 1 2\r\n", Malformed::Addresses);
    assert_refused(b"PROXY TCP6 ::12345 :: 1 2\r\n", Malformed::Addresses);
    for start in [
        "UDP4 ",
        "TCP5 ",
        "TCP4\t",
        "tcp4 ",
        "TCP4\r\n",
        "\r\n",
        " TCP4 ",
        "UNKNOWNS ",
        "UNKNOW ",
    ] {
        let line = format!("PROXY {start}192.0.2.7 10.0.0.1 1 2\r\n");
        assert_refused(line.as_bytes(), Malformed::Protocol);
    }
    assert_refused(
        &[b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        Malformed::LineEnd,
    );
    let line_of = |ignored: usize| [b"PROXY UNKNOWN ", &vec![b'x'; ignored][..], LINE_END].concat();
    assert_whole(&line_of(91), Source::Connection);
    assert_eq!(line_of(91).len(), MOST_LINE_BYTES);
    assert_refused(&line_of(92), Malformed::LineEnd);
}

#[test]
fn what_is_no_header_is_known_by_its_first_bytes() {
    for (bytes, decided_at) in [
        (&b"\x01\0\0\0\0\x44"[..], 1),
        (b"\x16\x03\x01\x02\0\x01", 1),
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\n", 2),
        (b"PROXY\tTCP4 ", 6),
        (b"\r\n\r\n\r\n", 5),
        (b"\r\n\r\n\0\r\nQUIX", 11),
    ] {
        assert_eq!(read(bytes, 1), (decided_at, Err(Malformed::Opening)), "{bytes:?}");
        assert!(!begins_header(bytes) || decided_at > OPENING_BYTES);
    }
    for bytes in [&b"PROXY "[..], b"PROXY TCP4 1", b"\r\n\r\n\0\r", SIGNATURE] {
        assert!(begins_header(bytes));
    }
    assert!(!begins_header(b"PROXY") && !begins_header(b""));
}

#[test]
fn a_binary_header_names_the_peer() {
    assert_whole(
        &binary(PROXY, TCP_OVER_IPV4, &ipv4_block()),
        peer("192.0.2.7:12345"),
    );
    let far = "2001:db8::7".parse().unwrap();
    assert_whole(
        &binary(PROXY, TCP_OVER_IPV6, &ipv6_block(far)),
        peer("[2001:db8::7]:12345"),
    );
    let mapped = "::ffff:192.0.2.7".parse().unwrap();
    assert_whole(
        &binary(PROXY, TCP_OVER_IPV6, &ipv6_block(mapped)),
        peer("192.0.2.7:12345"),
    );
    assert_whole(
        &with_tlvs(&[tlv(4, b""), tlv(2, b"pacs.example"), tlv(0xEA, &[0; 3000])]),
        peer("192.0.2.7:12345"),
    );
    let padding = MOST_BLOCK_BYTES - IPV4_BYTES - 3;
    assert_whole(&with_tlvs(&[tlv(4, &vec![0; padding])]), peer("192.0.2.7:12345"));
}

#[test]
fn local_and_unspecified_headers_are_of_whoever_connected() {
    for header in [
        binary(LOCAL, UNSPECIFIED, b""),
        binary(LOCAL, TCP_OVER_IPV4, &ipv4_block()),
        binary(LOCAL, 0xFF, b"anything"),
        binary(LOCAL, UNSPECIFIED, &tlv(CHECKSUM, b"none")),
        binary(PROXY, UNSPECIFIED, b""),
        binary(PROXY, UNSPECIFIED, b"anything"),
    ] {
        assert_whole(&header, Source::Connection);
    }
}

#[test]
fn a_binary_header_that_breaks_the_format_is_refused() {
    for (command, why) in [
        (0x11, Malformed::Version),
        (0x31, Malformed::Version),
        (0x22, Malformed::Command),
        (0x2F, Malformed::Command),
    ] {
        assert_refused(&binary(command, TCP_OVER_IPV4, &ipv4_block()), why);
    }
    for family in [0x01, 0x10, 0x12, 0x13, 0x20, 0x22, 0x31, 0x32, 0x41, 0xFF] {
        assert_refused(&binary(PROXY, family, &[0; 216]), Malformed::Protocol);
    }
    assert_refused(
        &binary(PROXY, TCP_OVER_IPV4, &ipv4_block()[1..]),
        Malformed::TooShort,
    );
    assert_refused(&binary(PROXY, TCP_OVER_IPV6, &[0; 35]), Malformed::TooShort);
    assert_refused(&binary(PROXY, TCP_OVER_IPV4, b""), Malformed::TooShort);
    for command in [LOCAL, PROXY] {
        let long = binary(command, TCP_OVER_IPV4, &vec![0; MOST_BLOCK_BYTES + 1]);
        assert_refused(&long, Malformed::TooLong);
        assert_eq!(read(&long, usize::MAX).0, FIXED_BYTES, "nothing of it is taken");
    }
    for tlvs in [&b"\x04"[..], b"\x04\0", b"\x04\0\x01", b"\x04\xFF\xFF\0"] {
        assert_refused(&with_tlvs(&[tlvs.to_vec()]), Malformed::Tlv);
    }
}

#[test]
fn a_checksum_is_compared_wherever_it_is() {
    let (noop, name) = (tlv(4, &[0; 5]), tlv(2, b"pacs.example"));
    for (before, after) in [
        (vec![], vec![]),
        (vec![noop.clone()], vec![name.clone()]),
        (vec![noop, name], vec![]),
    ] {
        let header = with_checksum(&before, &after);
        assert_whole(&header, peer("192.0.2.7:12345"));
        // Another port, address or checksum.
        for at in (FIXED_BYTES..FIXED_BYTES + IPV4_BYTES).chain(header.len() - 1..header.len()) {
            let mut changed = header.clone();
            changed[at] ^= 0x40;
            assert_refused(&changed, Malformed::Checksum);
        }
    }
    assert_refused(&with_tlvs(&[tlv(CHECKSUM, b"\0\0\0")]), Malformed::Checksum);
    let twice = with_checksum(&[], &[tlv(CHECKSUM, &[0; 4])]);
    assert_refused(&twice, Malformed::Checksum);
}

#[test]
fn the_checksum_is_that_of_rfc_3720() {
    // RFC 3720 B.4: 32 bytes of zeros, of ones, and counting up.
    for (bytes, sum) in [
        ([0; 32], 0x8A91_36AA),
        ([0xFF; 32], 0x62A8_AB43),
        (
            std::array::from_fn(|number| u8::try_from(number).unwrap()),
            0x46DD_794E,
        ),
    ] {
        assert_eq!((crc32c::crc32c(&bytes), slow_crc32c(&bytes)), (sum, sum));
    }
}

fn valid() -> impl Strategy<Value = (Vec<u8>, Source)> {
    let ipv4 = (any::<Ipv4Addr>(), any::<u16>(), any::<bool>()).prop_map(|(address, port, is_text)| {
        let header = if is_text {
            format!("PROXY TCP4 {address} 10.0.0.1 {port} 11111\r\n").into_bytes()
        } else {
            let block = [
                &address.octets()[..],
                &[10, 0, 0, 1],
                &port.to_be_bytes(),
                &[0; 2],
            ]
            .concat();
            binary(PROXY, TCP_OVER_IPV4, &block)
        };
        (header, Source::Peer(SocketAddr::new(address.into(), port)))
    });
    let ipv6 = (any::<Ipv6Addr>(), any::<u16>(), any::<bool>()).prop_map(|(address, port, is_text)| {
        let header = if is_text {
            format!("PROXY TCP6 {address} ::1 {port} 11111\r\n").into_bytes()
        } else {
            let block = [&address.octets()[..], &[0; 16], &port.to_be_bytes(), &[0; 2]].concat();
            binary(PROXY, TCP_OVER_IPV6, &block)
        };
        let canonical = IpAddr::from(address).to_canonical();
        (header, Source::Peer(SocketAddr::new(canonical, port)))
    });
    let tlvs = prop::collection::vec((4u8.., prop::collection::vec(any::<u8>(), 0..40)), 0..5);
    let checked = (tlvs, 0..5usize).prop_map(|(tlvs, at)| {
        let tlvs: Vec<_> = tlvs.iter().map(|(kind, value)| tlv(*kind, value)).collect();
        let (before, after) = tlvs.split_at(at.min(tlvs.len()));
        (
            with_checksum(before, after),
            Source::Peer("192.0.2.7:12345".parse().unwrap()),
        )
    });
    let own = prop::collection::vec(any::<u8>(), 0..300)
        .prop_map(|block| (binary(LOCAL, UNSPECIFIED, &block), Source::Connection));
    prop_oneof![ipv4, ipv6, checked, own]
}

proptest! {
    #[test]
    fn a_valid_header_is_read_to_its_last_byte((header, source) in valid(), most in 1..200usize, rest: Vec<u8>) {
        let stream = [header.clone(), rest].concat();
        prop_assert_eq!(read(&stream, most), (header.len(), Ok(Progress::Complete(source))));
    }

    /// Whatever the pieces, the same comes of the same bytes.
    #[test]
    fn pieces_make_no_difference(
        (mut header, _) in valid(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index, most in 1..200usize
    ) {
        let at = at.index(header.len());
        header[at] = byte;
        header.truncate(cut.index(header.len()) + 1);
        let (whole, pieces) = (read(&header, usize::MAX), read(&header, most));
        if matches!(whole.1, Ok(Progress::Complete(_))) {
            prop_assert_eq!(pieces, whole);
        } else {
            // How many bytes are missing, and what is wrong first, depends on where the pieces end.
            prop_assert_eq!(pieces.1.is_ok(), whole.1.is_ok());
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), is_text: bool) {
        let opening = if is_text { LINE_OPENING } else { SIGNATURE };
        for stream in [bytes.clone(), [opening, &bytes].concat()] {
            // As a reader gives them, and more at once than was asked for.
            let _ = read(&stream, usize::MAX);
            let _ = parse(&stream);
        }
    }
}
