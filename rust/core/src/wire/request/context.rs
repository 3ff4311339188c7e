//! Presentation context items of a request (PS3.8 9.3.2.2).

use super::items::{put, Container, Piece, Pieces};
use super::{
    note_padding, note_unknown, quoted, read_uid, Kind, Oddities, Unreadable, NO_SYNTAX, PRESENTATION_CONTEXT,
};
use crate::uid::Uid;

const ABSTRACT_SYNTAX: u8 = 0x30;
const TRANSFER_SYNTAX: u8 = 0x40;
/// Identifier and three reserved bytes.
const HEADER_BYTES: usize = 4;
/// Transfer syntaxes of a context that are looked at, twice as many as PS3.6 has. A request has room for 100,000 of them, each
/// of which would cost its reader a hundred times as much memory as it takes there.
const MOST_TRANSFER_SYNTAXES: usize = 128;

/// Whether an identifier can be answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    None,
    /// One context has it.
    Once,
    /// Several contexts have it, none of which was come by yet.
    Repeated,
    /// Several contexts have it, and it has its answer.
    Answered,
}

/// The identifiers of a request's contexts.
pub(super) struct Uses([Use; 256]);

impl Uses {
    fn of(&mut self, id: u8) -> Use {
        let Some(known) = self.0.get_mut(usize::from(id)) else {
            return Use::None;
        };
        match *known {
            Use::Repeated => std::mem::replace(known, Use::Answered),
            other => other,
        }
    }
}

/// Counts the identifiers of a request's contexts.
pub(super) fn uses_of_ids(variable: &[u8]) -> Result<Uses, Unreadable> {
    let mut uses = Uses([Use::None; 256]);
    for piece in Pieces::of(variable, Container::Request) {
        let Piece::Item(PRESENTATION_CONTEXT, value) = piece? else {
            continue;
        };
        let id = value
            .first_chunk::<HEADER_BYTES>()
            .map(|&[id, ..]| usize::from(id));
        if let Some(known) = id.and_then(|id| uses.0.get_mut(id)) {
            *known = if *known == Use::None {
                Use::Once
            } else {
                Use::Repeated
            };
        }
    }
    Ok(uses)
}

/// Appends a context made clean. An even identifier cannot be answered (PS3.8 9.3.2.2), so its context is left out. One that
/// several contexts have gets one answer for all (PS3.8 7.1.1.13): nobody could tell which of them would be accepted, so
/// it is result 3.
pub(super) fn clean(
    value: &[u8],
    uses: &mut Uses,
    out: &mut Vec<u8>,
    oddities: &mut Oddities,
) -> Result<(), Unreadable> {
    let Some((&[id, ..], items)) = value.split_first_chunk::<HEADER_BYTES>() else {
        oddities.add(Kind::PresentationContext, format!("{} bytes", value.len()));
        return Ok(());
    };
    let mut proposal = Proposal::default();
    for piece in Pieces::of(items, Container::PresentationContext) {
        proposal.take(id, piece?, oddities);
    }
    if id % 2 == 0 {
        oddities.add(Kind::ContextId, id.to_string());
        return Ok(());
    }
    proposal.note_missing(id, oddities);
    let found = uses.of(id);
    if found != Use::Once {
        oddities.add(Kind::RepeatedContextId, id.to_string());
        proposal.abstract_syntax = None;
    }
    if found != Use::Answered {
        put(out, PRESENTATION_CONTEXT, &proposal.encode(id));
    }
    Ok(())
}

/// What a context proposes.
#[derive(Default)]
struct Proposal {
    has_abstract: bool,
    abstract_syntax: Option<Uid>,
    /// Each once, in the sender's order.
    transfer_syntaxes: Vec<Uid>,
    /// More of them follow than are looked at.
    is_cut: bool,
}

impl Proposal {
    fn take(&mut self, id: u8, piece: Piece<'_>, oddities: &mut Oddities) {
        match piece {
            Piece::Item(ABSTRACT_SYNTAX, uid) => {
                if self.has_abstract {
                    oddities.add(Kind::RepeatedItem, format!("abstract syntax of {id}"));
                }
                self.has_abstract = true;
                self.abstract_syntax = read_uid(uid, oddities);
                if self.abstract_syntax.is_none() {
                    oddities.add(Kind::AbstractSyntax, format!("{id}: {}", quoted(uid)));
                }
            }
            Piece::Item(TRANSFER_SYNTAX, uid) => match read_uid(uid, oddities) {
                Some(uid) => self.take_transfer_syntax(id, uid, oddities),
                None => oddities.add(Kind::TransferSyntax, format!("{id}: {}", quoted(uid))),
            },
            Piece::Item(kind, _) => note_unknown(oddities, kind, Container::PresentationContext),
            Piece::Padding(count) => note_padding(oddities, count, Container::PresentationContext),
        }
    }

    fn take_transfer_syntax(&mut self, id: u8, uid: Uid, oddities: &mut Oddities) {
        if self.transfer_syntaxes.len() < MOST_TRANSFER_SYNTAXES {
            if !self.transfer_syntaxes.contains(&uid) {
                self.transfer_syntaxes.push(uid);
            }
        } else if !std::mem::replace(&mut self.is_cut, true) {
            oddities.add(
                Kind::TransferSyntax,
                format!("{id}: more than {MOST_TRANSFER_SYNTAXES}"),
            );
        }
    }

    fn note_missing(&self, id: u8, oddities: &mut Oddities) {
        if !self.has_abstract {
            oddities.add(Kind::AbstractSyntax, format!("{id}: none"));
        }
        if self.transfer_syntaxes.is_empty() {
            oddities.add(Kind::TransferSyntax, format!("{id}: none"));
        }
    }

    /// The value of the item. It is no longer than it was, or very short.
    fn encode(self, id: u8) -> Vec<u8> {
        let mut body = vec![id, 0, 0, 0];
        let abstract_syntax = self.abstract_syntax.as_ref().map_or(NO_SYNTAX, Uid::as_str);
        put(&mut body, ABSTRACT_SYNTAX, abstract_syntax.as_bytes());
        // A context that is answered with result 3 needs no more than one transfer syntax.
        let most = if self.abstract_syntax.is_none() {
            1
        } else {
            MOST_TRANSFER_SYNTAXES
        };
        for uid in self.transfer_syntaxes.iter().take(most) {
            put(&mut body, TRANSFER_SYNTAX, uid.as_str().as_bytes());
        }
        if self.transfer_syntaxes.is_empty() {
            put(&mut body, TRANSFER_SYNTAX, NO_SYNTAX.as_bytes());
        }
        body
    }
}
