//! An established association, from the A-ASSOCIATE-AC to release or abort (PS3.8 Section 7 and 9).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Transcoded};
use crate::exchange::Exchange;
use crate::ingest::Source;
use crate::net::admission::Place;
use crate::net::answers::Answer;
use crate::net::gate::Connection;
use crate::net::stream::Stream;
use crate::wire::pdu::{self, AbortReason, PduHeader, PduType, PDV_HEADER_BYTES};
use crate::wire::reader::{DeadlineReader, Patience, ReadEnd};

/// How often a silent socket is looked at for deadlines.
const TICK: Duration = Duration::from_secs(1);
/// How long a response may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the peer has to close after our last PDU (the ARTIM timer of PS3.8 9.1.5).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What negotiation decided.
#[derive(Clone, Debug)]
pub struct Agreement {
    /// What was answered.
    pub answer: Arc<Answer>,
    /// Who sends.
    pub source: Source,
}

/// How an association ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A-RELEASE.
    Released,
    /// A-ABORT by the peer.
    AbortedByPeer,
    /// A-ABORT by us, for a breach of the protocol.
    ProtocolError,
    /// A-ABORT by us: the peer was silent or too slow.
    Timeout,
    /// The connection broke.
    ConnectionLost,
    /// A-ABORT by us: the service stops.
    Stopped,
}

impl Outcome {
    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::AbortedByPeer => "aborted_by_peer",
            Self::ProtocolError => "protocol_error",
            Self::Timeout => "timeout",
            Self::ConnectionLost => "connection_lost",
            Self::Stopped => "stopped",
        }
    }
}

/// What an association brought of a study.
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// Patient ID of its first instance.
    pub patient_id: String,
    /// Accession Number of its first instance.
    pub accession_number: Option<String>,
    /// Instances by SOP class.
    pub classes: BTreeMap<String, u64>,
}

/// What is told about an association when it is over.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Number of the association in this process.
    pub association: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where we aborted.
    pub reason: &'static str,
    /// C-STOREs by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Duplicates that were the same.
    pub identical: u64,
    /// Duplicates where the first instance was kept.
    pub kept: u64,
    /// Duplicates that took the place of another instance.
    pub replaced: u64,
    /// Tenants whose instances it brought; where the association alone decides, also without any instance.
    pub tenants: BTreeSet<String>,
    /// Failures by status and comment, the first few kinds.
    pub failures: BTreeMap<(u16, String), u64>,
    /// Transcodings: source, target, `Success` or what kind of failure.
    pub transcodes: BTreeMap<Transcoded, u64>,
    /// Why transcoding failed, the first few reasons.
    pub transcode_failures: BTreeMap<String, u64>,
    /// Instances that were stored although something was odd, by the code of the anomaly.
    pub anomalies: BTreeMap<&'static str, u64>,
    /// SOP Instance UIDs of damaged data sets that are kept in quarantine, the first ones.
    pub quarantined: Vec<String>,
    /// What was stored of each tenant's study, where the configuration asks for it; the first studies.
    pub transfers: BTreeMap<(String, String), Transfer>,
    /// C-STOREs that failed, of which the first [`crate::events::MOST_NAMED`] were named.
    pub refused: u64,
    /// C-ECHOs.
    pub echoes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// P-DATA-TFs longer than the negotiated maximum that were tolerated.
    pub oversized_pdus: u64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Why the loop ended.
#[derive(Debug)]
pub(crate) struct End {
    outcome: Outcome,
    reason: &'static str,
    abort: Option<AbortReason>,
}

impl End {
    pub(crate) fn breach(abort: AbortReason, reason: &'static str) -> Self {
        Self {
            outcome: Outcome::ProtocolError,
            reason,
            abort: Some(abort),
        }
    }
}

impl From<ReadEnd> for End {
    fn from(end: ReadEnd) -> Self {
        match end {
            ReadEnd::Closed => Self {
                outcome: Outcome::ConnectionLost,
                reason: "the peer closed the connection",
                abort: None,
            },
            ReadEnd::Timeout => Self {
                outcome: Outcome::Timeout,
                reason: "the peer was silent or too slow",
                abort: Some(AbortReason::NotSpecified),
            },
        }
    }
}

/// Serves an association: sends the A-ASSOCIATE-AC and receives until release, abort or a deadline. `place` is given back
/// before the peer learns of the end, so that it finds one when it comes again at once.
///
/// Never panics and never returns an error: everything that can happen is an [`Outcome`].
pub fn receive(
    engine: &Engine,
    connection: Connection,
    agreement: &Agreement,
    place: Option<Place>,
) -> Summary {
    let accept_pdu = agreement.answer.pdu_for(connection.request());
    let (stream, slot) = connection.into_parts();
    let summary = serve(engine, &stream, &accept_pdu, agreement, place);
    drop((stream, slot));
    summary
}

/// [`receive`] on a stream that came by another way.
pub fn serve(
    engine: &Engine,
    stream: &Stream,
    accept_pdu: &[u8],
    agreement: &Agreement,
    place: Option<Place>,
) -> Summary {
    let started = Instant::now();
    let registration = engine.register(stream.socket(), &agreement.source);
    let scratch = engine.lend_memory();
    let mut exchange = Exchange::new(engine, stream, agreement, &registration.live, scratch, place);
    let mut reader = DeadlineReader::new(stream, Arc::clone(engine.blocks()));
    let end = match open(stream, accept_pdu) {
        Ok(()) => exchange_pdus(engine, &mut reader, &mut exchange),
        Err(_) => ReadEnd::Closed.into(),
    };
    let end = if engine.is_aborting() && end.outcome != Outcome::Released {
        End {
            outcome: Outcome::Stopped,
            reason: "the service stops",
            abort: Some(AbortReason::NotSpecified),
        }
    } else {
        end
    };
    // What is still spooled goes before the peer learns of the end.
    exchange.discard();
    exchange.leave();
    close(stream, &end);
    let mut summary = exchange.summary;
    summary.outcome = end.outcome;
    summary.reason = end.reason;
    summary.received_bytes = reader.received();
    engine.take_memory_back(exchange.scratch);
    summary.seconds = started.elapsed().as_secs_f64();
    summary
}

fn open(stream: &Stream, accept_pdu: &[u8]) -> io::Result<()> {
    stream.block(TICK, SEND_TIMEOUT)?;
    let mut sink = stream;
    sink.write_all(accept_pdu)
}

/// Lets the last PDU arrive: closing with unread bytes would reset the connection and may destroy it.
fn close(stream: &Stream, end: &End) {
    let mut sink = stream;
    if let Some(reason) = end.abort {
        if sink.write_all(&pdu::abort(reason)).is_err() {
            return;
        }
    }
    if stream.close_write().is_err() {
        return;
    }
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    let mut discard = [0; 16 * 1024];
    let mut source = &**stream.socket();
    while Instant::now() < deadline {
        match source.read(&mut discard) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => break,
        }
    }
}

fn exchange_pdus(engine: &Engine, reader: &mut DeadlineReader<&Stream>, exchange: &mut Exchange<'_>) -> End {
    loop {
        match one_pdu(engine, reader, exchange) {
            Ok(None) => {}
            Ok(Some(end)) | Err(end) => return end,
        }
    }
}

fn one_pdu(
    engine: &Engine,
    reader: &mut DeadlineReader<&Stream>,
    exchange: &mut Exchange<'_>,
) -> Result<Option<End>, End> {
    let limits = &engine.config().limits;
    let mut idle = Patience::new(Engine::seconds(limits.idle_timeout));
    let header = PduHeader::parse(reader.array(&mut idle)?);
    let fixed = Engine::seconds(limits.request_timeout);
    let mut patience = Patience::for_pdu(header.length, fixed, limits.min_rate);
    match header.pdu_type {
        PduType::PData => {
            exchange.check_length(header.length)?;
            data_pdu(reader, exchange, header.length, &mut patience)?;
            Ok(None)
        }
        PduType::ReleaseRq => {
            short_body(reader, header.length, &mut patience)?;
            if exchange.is_receiving() {
                return Err(End::breach(
                    AbortReason::UnexpectedPdu,
                    "release inside a message",
                ));
            }
            exchange.leave();
            exchange.send(&pdu::RELEASE_RP)?;
            Ok(Some(End {
                outcome: Outcome::Released,
                reason: "",
                abort: None,
            }))
        }
        PduType::Abort => {
            short_body(reader, header.length, &mut patience)?;
            Ok(Some(End {
                outcome: Outcome::AbortedByPeer,
                reason: "the peer aborted",
                abort: None,
            }))
        }
        PduType::AssociateRq | PduType::AssociateResponse | PduType::ReleaseRp => {
            Err(End::breach(AbortReason::UnexpectedPdu, "unexpected PDU"))
        }
        PduType::Unrecognised => Err(End::breach(AbortReason::UnrecognisedPdu, "unrecognised PDU")),
    }
}

/// A-RELEASE-RQ and A-ABORT have four bytes (PS3.8 Tables 9-24 and 9-26).
fn short_body(reader: &mut DeadlineReader<&Stream>, length: u32, patience: &mut Patience) -> Result<(), End> {
    if length != 4 {
        return Err(End::breach(
            AbortReason::InvalidPduParameter,
            "PDU of the wrong length",
        ));
    }
    reader.array::<4>(patience)?;
    Ok(())
}

/// The presentation data values of a P-DATA-TF (PS3.8 9.3.5.1).
fn data_pdu(
    reader: &mut DeadlineReader<&Stream>,
    exchange: &mut Exchange<'_>,
    length: u32,
    patience: &mut Patience,
) -> Result<(), End> {
    let invalid = || {
        End::breach(
            AbortReason::InvalidPduParameter,
            "invalid presentation data value",
        )
    };
    let mut left = length;
    if left < PDV_HEADER_BYTES {
        return Err(invalid());
    }
    while left > 0 {
        if left < PDV_HEADER_BYTES {
            return Err(invalid());
        }
        let [a, b, c, d, context_id, control] = reader.array(patience)?;
        let pdv_length = u32::from_be_bytes([a, b, c, d]);
        if pdv_length < 2 || pdv_length > left - 4 {
            return Err(invalid());
        }
        left -= pdv_length + 4;
        // Message control header (PS3.8 E.2): bit 0 command, bit 1 last fragment.
        let (is_command, is_last) = (control & 1 == 1, control & 2 == 2);
        exchange.begin_fragment(context_id, is_command)?;
        let mut remaining = usize::try_from(pdv_length - 2).unwrap_or(usize::MAX);
        while remaining > 0 {
            let chunk = reader.chunk(remaining, patience)?;
            let count = chunk.len();
            remaining -= count;
            if exchange.fragment(chunk)? {
                reader.keep(count);
            }
            let is_end = is_last && remaining == 0;
            let has_time = !is_end && reader.has_time() && exchange.is_written_as_it_comes();
            if has_time || reader.has_much() {
                reader.hand_over(exchange, has_time);
            }
        }
        if is_last {
            reader.hand_over(exchange, true);
            exchange.end_message_part()?;
        }
    }
    Ok(())
}
