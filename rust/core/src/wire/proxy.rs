//! The header in which a load balancer names the peer whose connection it passes on: the PROXY protocol, versions 1 and 2
//! (proxy-protocol.txt of `HAProxy`, sections 2.1 and 2.2).
//!
//! A push parser. It gets the bytes so far and says how many more certainly belong to the header, so that a reader takes
//! no byte of what follows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest line of version 1, line end included (section 2.1: the worst case).
const MOST_LINE_BYTES: usize = 107;
/// The longest block behind the fixed part of version 2. The specification allows 65,535 bytes; senders use a few hundred.
const MOST_BLOCK_BYTES: usize = 16 * 1024;

const LINE_OPENING: &[u8] = b"PROXY ";
const LINE_END: &[u8] = b"\r\n";
const UNKNOWN: &[u8] = b"UNKNOWN";
const TCP4: &[u8] = b"TCP4 ";
const TCP6: &[u8] = b"TCP6 ";
/// Protocols of a line, and the bytes of the shortest line of each: `PROXY UNKNOWN`, `PROXY TCP4 0.0.0.0 0.0.0.0 0 0` and
/// `PROXY TCP6 :: :: 0 0` with their line ends.
const PROTOCOLS: [(&[u8], usize); 3] = [(UNKNOWN, 15), (TCP4, 32), (TCP6, 22)];
/// The shortest header of all.
const LEAST_BYTES: usize = 15;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;
const COMMAND_AT: usize = 12;
const FAMILY_AT: usize = 13;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Source and destination address, source and destination port.
const IPV4_BYTES: usize = 2 * (4 + 2);
const IPV6_BYTES: usize = 2 * (16 + 2);
/// `PP2_TYPE_CRC32C` (section 2.2.3).
const CHECKSUM: u8 = 0x03;

/// Bytes that tell a PROXY header from an A-ASSOCIATE-RQ and from a TLS record.
pub const OPENING_BYTES: usize = LINE_OPENING.len();

/// What is told of a header where none is read.
pub const UNEXPECTED: &str =
    "a PROXY header from an address that is not in dicom_store_scp.proxy_protocol_from";
/// What is told of a header behind the one that was read.
pub const SECOND: &str = "a second PROXY header";
/// What is told of a connection that ended in the middle of its header.
pub const CUT: &str = "the connection ended within the PROXY header";
/// What is told where time was up before the first byte.
pub const ABSENT: &str = "no PROXY header came in time";
/// What is told where time was up in the middle.
pub const LATE: &str = "the PROXY header was not complete in time";

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// That of whoever connected: the balancer speaks for itself (`LOCAL`) or does not know (`UNKNOWN`, `AF_UNSPEC`).
    Connection,
    /// That of a peer of the balancer; an IPv4-mapped IPv6 address is given as IPv4.
    Peer(SocketAddr),
}

/// What the bytes so far come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes more certainly belong to the header; at least one.
    More(usize),
    /// The header is complete, and the bytes are the header.
    Complete(Source),
}

/// Why bytes are no PROXY header. The texts hold nothing that the peer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither `PROXY` nor the signature of version 2.
    #[error("the connection does not begin with a PROXY header")]
    Opening,
    /// UDP, UNIX sockets, reserved values, or another word than TCP4, TCP6 and UNKNOWN.
    #[error("the PROXY header is for another protocol than TCP over IPv4 or IPv6")]
    Protocol,
    /// Version 1 without CR LF in its first 107 bytes.
    #[error("the PROXY header has no line end within 107 bytes")]
    LineEnd,
    /// Addresses or ports of version 1 that break the grammar.
    #[error("the addresses and ports of the PROXY header cannot be read")]
    Addresses,
    /// The signature of version 2 and another version.
    #[error("the PROXY header has another version than 1 and 2")]
    Version,
    /// A reserved command of version 2.
    #[error("the PROXY header has another command than LOCAL and PROXY")]
    Command,
    /// Version 2 with a length over the bound.
    #[error("the PROXY header is longer than 16384 bytes")]
    TooLong,
    /// Version 2 with a length below that of its addresses.
    #[error("the PROXY header is too short for its addresses")]
    TooShort,
    /// A TLV of version 2 that reaches beyond the header, or a part of one.
    #[error("a TLV of the PROXY header reaches beyond its end")]
    Tlv,
    /// A CRC32C that differs, has not four bytes, or is there twice.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Whether bytes begin as a PROXY header does; false while there are fewer than [`OPENING_BYTES`].
#[must_use]
pub fn begins_header(bytes: &[u8]) -> bool {
    bytes.len() >= OPENING_BYTES && (agree(bytes, LINE_OPENING) || agree(bytes, SIGNATURE))
}

/// Looks at the bytes so far, which are never more than were asked for.
///
/// # Errors
/// [`Malformed`] as soon as no further bytes can make a header of them.
pub fn parse(bytes: &[u8]) -> Result<Progress, Malformed> {
    if bytes.is_empty() {
        Ok(Progress::More(LEAST_BYTES))
    } else if agree(bytes, LINE_OPENING) {
        parse_line(bytes)
    } else if agree(bytes, SIGNATURE) {
        parse_binary(bytes)
    } else {
        Err(Malformed::Opening)
    }
}

/// Whether two texts are equal as far as the shorter one goes.
fn agree(bytes: &[u8], text: &[u8]) -> bool {
    bytes.iter().zip(text).all(|(byte, expected)| byte == expected)
}

/// Version 1: a line of text.
fn parse_line(bytes: &[u8]) -> Result<Progress, Malformed> {
    let rest = bytes.get(LINE_OPENING.len()..).unwrap_or_default();
    let possible = PROTOCOLS.iter().filter(|(name, _)| agree(rest, name));
    let least = possible.map(|(_, least)| *least).min();
    let least = least.ok_or(Malformed::Protocol)?;
    if bytes.len() > MOST_LINE_BYTES {
        return Err(Malformed::LineEnd);
    }
    if let Some(content) = bytes.strip_suffix(LINE_END) {
        return decode_line(content).map(Progress::Complete);
    }
    check_unfinished(rest)?;
    // A lone CR may be the first half of the line end.
    let end = if bytes.ends_with(b"\r") { 1 } else { LINE_END.len() };
    if bytes.len() + end > MOST_LINE_BYTES {
        return Err(Malformed::LineEnd);
    }
    Ok(Progress::More(end.max(least.saturating_sub(bytes.len()))))
}

/// What can be said of a line before its end: that it will not be one.
fn check_unfinished(rest: &[u8]) -> Result<(), Malformed> {
    if let Some(ignored) = rest.strip_prefix(UNKNOWN) {
        return match ignored.first() {
            None | Some(b' ' | b'\r') => Ok(()),
            Some(_) => Err(Malformed::Protocol),
        };
    }
    let Some(addresses) = rest.strip_prefix(TCP4).or_else(|| rest.strip_prefix(TCP6)) else {
        return Ok(());
    };
    let addresses = addresses.strip_suffix(b"\r").unwrap_or(addresses);
    let is_readable = |byte: &u8| byte.is_ascii_hexdigit() || b".: ".contains(byte);
    if addresses.iter().all(is_readable) {
        Ok(())
    } else {
        Err(Malformed::Addresses)
    }
}

/// A line without its end.
fn decode_line(content: &[u8]) -> Result<Source, Malformed> {
    let rest = content.get(LINE_OPENING.len()..).unwrap_or_default();
    if let Some(ignored) = rest.strip_prefix(UNKNOWN) {
        // Section 2.1: "the receiver must ignore anything presented before the CRLF is found".
        let ends_early = ignored.windows(LINE_END.len()).any(|pair| pair == LINE_END);
        return match ignored.first() {
            _ if ends_early => Err(Malformed::LineEnd),
            None | Some(b' ') => Ok(Source::Connection),
            Some(_) => Err(Malformed::Protocol),
        };
    }
    let peer = if let Some(text) = rest.strip_prefix(TCP4) {
        addresses::<Ipv4Addr>(text)
    } else if let Some(text) = rest.strip_prefix(TCP6) {
        // Senders write mapped addresses as inet_ntop(3) does, with a dotted end, which is read too.
        addresses::<Ipv6Addr>(text)
    } else {
        return Err(Malformed::Protocol);
    };
    peer.map(Source::Peer).ok_or(Malformed::Addresses)
}

/// The source of `source destination source-port destination-port`.
fn addresses<A: FromStr + Into<IpAddr>>(text: &[u8]) -> Option<SocketAddr> {
    let mut fields = std::str::from_utf8(text).ok()?.split(' ');
    let source: A = fields.next()?.parse().ok()?;
    let _destination: A = fields.next()?.parse().ok()?;
    let source_port = port(fields.next()?)?;
    let _destination_port = port(fields.next()?)?;
    let is_whole = fields.next().is_none();
    is_whole.then(|| SocketAddr::new(source.into().to_canonical(), source_port))
}

/// A decimal number without sign and leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// Version 2. What is wrong in the fixed part is told as soon as its byte is there.
fn parse_binary(bytes: &[u8]) -> Result<Progress, Malformed> {
    let address_bytes = address_bytes(bytes)?;
    let Some((fixed, block)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(Progress::More(FIXED_BYTES - bytes.len()));
    };
    let [.., high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MOST_BLOCK_BYTES {
        return Err(Malformed::TooLong);
    }
    if length < address_bytes.unwrap_or(0) || length < block.len() {
        return Err(Malformed::TooShort);
    }
    if length > block.len() {
        return Ok(Progress::More(length - block.len()));
    }
    let Some(address_bytes) = address_bytes else {
        return Ok(Progress::Complete(Source::Connection));
    };
    check_tlvs(bytes, FIXED_BYTES + address_bytes)?;
    let peer = if address_bytes == IPV4_BYTES {
        binary_peer::<4>(block)
    } else {
        binary_peer::<16>(block)
    };
    peer.map(|peer| Progress::Complete(Source::Peer(peer)))
        .ok_or(Malformed::TooShort)
}

/// How long the addresses of version 2 are, by its command and family as far as these are there; none where they do not count.
fn address_bytes(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let command = bytes.get(COMMAND_AT).copied().unwrap_or(LOCAL);
    if command >> 4 != LOCAL >> 4 {
        return Err(Malformed::Version);
    }
    if command != LOCAL && command != PROXY {
        return Err(Malformed::Command);
    }
    match (command, bytes.get(FAMILY_AT).copied().unwrap_or(UNSPECIFIED)) {
        // Section 2.2: for LOCAL "discard the protocol block including the family", and for AF_UNSPEC "ignore address
        // information": nobody can say where its TLVs would begin.
        (LOCAL, _) | (_, UNSPECIFIED) => Ok(None),
        (_, TCP_OVER_IPV4) => Ok(Some(IPV4_BYTES)),
        (_, TCP_OVER_IPV6) => Ok(Some(IPV6_BYTES)),
        _ => Err(Malformed::Protocol),
    }
}

/// The source of an address block: both addresses of `N` bytes, then both ports.
fn binary_peer<const N: usize>(block: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (_destination, ports) = rest.split_first_chunk::<N>()?;
    let (source_port, _) = ports.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*source_port);
    Some(SocketAddr::new(IpAddr::from(*source).to_canonical(), port))
}

/// Follows the TLVs of a whole header to its last byte, and compares the checksum where there is one.
fn check_tlvs(header: &[u8], from: usize) -> Result<(), Malformed> {
    let mut at = from;
    let mut has_checksum = false;
    while let Some(rest) = header.get(at..).filter(|rest| !rest.is_empty()) {
        let (&[kind, high, low], rest) = rest.split_first_chunk::<3>().ok_or(Malformed::Tlv)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value = rest.get(..length).ok_or(Malformed::Tlv)?;
        let value_at = at + 3;
        if kind == CHECKSUM {
            let expected: [u8; 4] = value.try_into().map_err(|_| Malformed::Checksum)?;
            if has_checksum || checksum(header, value_at) != u32::from_be_bytes(expected) {
                return Err(Malformed::Checksum);
            }
            has_checksum = true;
        }
        at = value_at + length;
    }
    Ok(())
}

/// CRC32C of a header in which the four bytes of its checksum are zero (section 2.2.3).
fn checksum(header: &[u8], value_at: usize) -> u32 {
    let before = crc32c::crc32c(header.get(..value_at).unwrap_or_default());
    let with_zeros = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(with_zeros, header.get(value_at + 4..).unwrap_or_default())
}

#[cfg(test)]
mod tests;
