//! Protocol data units of the DICOM upper layer (PS3.8 Section 9.3).

/// Bytes of every PDU header: type, reserved, 32-bit length.
pub const HEADER_BYTES: usize = 6;
/// Bytes of a presentation data value header: length, context id, message control header.
pub const PDV_HEADER_BYTES: u32 = 6;

/// The PDU types (PS3.8 Table 9-11 and following).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PduType {
    /// A-ASSOCIATE-RQ
    AssociateRq,
    /// A-ASSOCIATE-AC or A-ASSOCIATE-RJ: never sent to an acceptor.
    AssociateResponse,
    /// P-DATA-TF
    PData,
    /// A-RELEASE-RQ
    ReleaseRq,
    /// A-RELEASE-RP
    ReleaseRp,
    /// A-ABORT
    Abort,
    /// Anything else.
    Unrecognised,
}

/// The first six bytes of a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PduHeader {
    /// What follows.
    pub pdu_type: PduType,
    /// How many bytes follow.
    pub length: u32,
}

impl PduHeader {
    /// Reads a header.
    #[must_use]
    pub fn parse([kind, _reserved, a, b, c, d]: [u8; HEADER_BYTES]) -> Self {
        let pdu_type = match kind {
            0x01 => PduType::AssociateRq,
            0x02 | 0x03 => PduType::AssociateResponse,
            0x04 => PduType::PData,
            0x05 => PduType::ReleaseRq,
            0x06 => PduType::ReleaseRp,
            0x07 => PduType::Abort,
            _ => PduType::Unrecognised,
        };
        Self {
            pdu_type,
            length: u32::from_be_bytes([a, b, c, d]),
        }
    }
}

/// The reason of an A-ABORT by the service provider (PS3.8 Table 9-26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// 0: reason not specified.
    NotSpecified = 0,
    /// 1: unrecognised PDU.
    UnrecognisedPdu = 1,
    /// 2: unexpected PDU.
    UnexpectedPdu = 2,
    /// 6: invalid PDU parameter value.
    InvalidPduParameter = 6,
}

/// An A-ABORT with source 2, the service provider.
#[must_use]
pub fn abort(reason: AbortReason) -> [u8; 10] {
    [0x07, 0, 0, 0, 0, 4, 0, 0, 2, reason as u8]
}

/// An A-ASSOCIATE-RJ (PS3.8 Table 9-21): rejected-transient, service provider (presentation), local limit exceeded.
pub const REJECT_LOCAL_LIMIT: [u8; 10] = [0x03, 0, 0, 0, 0, 4, 0, 2, 3, 2];

/// An A-RELEASE-RP.
pub const RELEASE_RP: [u8; 10] = [0x06, 0, 0, 0, 0, 4, 0, 0, 0, 0];

/// Wraps a command set into P-DATA-TF PDUs no longer than the peer's maximum (0: no limit).
#[must_use]
pub fn wrap_command(context_id: u8, command: &[u8], peer_max_pdu_length: u32) -> Vec<u8> {
    // PS3.8 Annex D.1: the maximum counts what follows the PDU header, the PDV header included.
    let room = match peer_max_pdu_length {
        0 => command.len(),
        max => usize::try_from(max.saturating_sub(PDV_HEADER_BYTES)).unwrap_or(usize::MAX),
    };
    // Fragments have an even length (PS3.8 Annex E.1).
    let room = room.max(2) & !1;
    let mut out = Vec::with_capacity(command.len() + 12);
    let mut pieces = command.chunks(room).peekable();
    while let Some(piece) = pieces.next() {
        let pdv_length = u32::try_from(piece.len() + 2).unwrap_or(u32::MAX);
        let last = pieces.peek().is_none();
        out.extend_from_slice(&[0x04, 0]);
        out.extend_from_slice(&(pdv_length + 4).to_be_bytes());
        out.extend_from_slice(&pdv_length.to_be_bytes());
        // Message control header (PS3.8 E.2): bit 0 command, bit 1 last fragment.
        out.extend_from_slice(&[context_id, 0x01 | (u8::from(last) << 1)]);
        out.extend_from_slice(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_respect_the_peers_maximum() {
        let command = vec![7; 100];
        assert_eq!(wrap_command(1, &command, 0).len(), 112);
        let small = wrap_command(3, &command, 46);
        let lengths: Vec<u32> = small
            .chunks(52)
            .map(|pdu| PduHeader::parse(*pdu.first_chunk().unwrap()).length)
            .collect();
        assert_eq!(lengths, [46, 46, 26]);
        assert_eq!((small[11], small[52 + 11], small[104 + 11]), (1, 1, 3));
    }
}
