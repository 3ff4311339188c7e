//! What negotiation answered: the same request gets the same answer, and devices send the same request each time.
//!
//! Negotiation is a function of the request and of what is offered; titles decide nothing in it and are only echoed, so
//! senders that differ in them share an answer. Who may come in is no part of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::request::Oddity;
use crate::wire::title;

/// Memory that remembered requests and their answers take together, in bytes.
const REMEMBERED_BYTES: usize = 16 << 20;
/// A request and its answer that take more than this are not remembered: those of devices take a hundredth of it.
const LARGEST_BYTES: usize = REMEMBERED_BYTES / 32;
/// What the allocator and a map's table add to a value.
const OVERHEAD_BYTES: usize = 32;
// Fields of A-ASSOCIATE-RQ and -AC (PS3.8 Tables 9-11 and 9-17).
const PROTOCOL_VERSION: usize = 7;
const CALLED: Range<usize> = 10..26;
const CALLING: Range<usize> = 26..42;
const FIXED_BYTES: usize = 74;

/// An accepted presentation context.
#[derive(Clone, Debug)]
pub struct Context {
    /// Abstract syntax.
    pub abstract_syntax: String,
    /// The one transfer syntax that was accepted.
    pub transfer_syntax: String,
}

/// A presentation context that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Abstract syntax.
    pub abstract_syntax: String,
    /// Result (PS3.8 Table 9-18).
    pub result: u8,
    /// Transfer syntaxes that were offered for it.
    pub transfer_syntaxes: Vec<String>,
}

/// What negotiation came to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Accepted contexts by id.
    pub contexts: HashMap<u8, Context>,
    /// The others.
    pub rejected: Vec<Rejected>,
    /// The peer's maximum PDU length, 0 for none.
    pub peer_max_pdu_length: u32,
    /// What was odd in the request.
    pub oddities: Vec<Oddity>,
    /// The A-ASSOCIATE-AC, with anybody's titles.
    pub pdu: Vec<u8>,
}

impl Answer {
    /// The A-ASSOCIATE-AC for a request: its titles are echoed, as PS3.8 9.3.3 asks.
    #[must_use]
    pub fn pdu_for(&self, request: &[u8]) -> Vec<u8> {
        with_titles(&self.pdu, request.get(CALLED.start..CALLING.end))
    }

    /// Memory that it takes, in bytes, and not less.
    fn held_bytes(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.capacity() + OVERHEAD_BYTES;
        // A table has places for up to twice as many as there are in it.
        let contexts = 2 * self.contexts.capacity() * (size_of::<(u8, Context)>() + 1);
        let syntaxes = self
            .contexts
            .values()
            .map(|one| text(&one.abstract_syntax) + text(&one.transfer_syntax));
        let rejected = self.rejected.iter().map(|one| {
            let offered: usize = one.transfer_syntaxes.iter().map(text).sum();
            size_of::<Rejected>() + text(&one.abstract_syntax) + offered
        });
        let oddities = self
            .oddities
            .iter()
            .map(|one| size_of::<Oddity>() + text(&one.detail));
        let lists = syntaxes.chain(rejected).chain(oddities).sum::<usize>();
        size_of::<Self>() + self.pdu.capacity() + contexts + lists
    }
}

/// Answers by request, the recently used ones.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Generations>);

/// What has not been asked for while the newer half filled up is forgotten.
#[derive(Debug, Default)]
struct Generations {
    newer: HashMap<Vec<u8>, Arc<Answer>>,
    older: HashMap<Vec<u8>, Arc<Answer>>,
    newer_bytes: usize,
}

impl Generations {
    fn put(&mut self, key: Vec<u8>, answer: Arc<Answer>) {
        let bytes = held_bytes(&key, &answer);
        if bytes > LARGEST_BYTES {
            return;
        }
        if self.newer_bytes + bytes > REMEMBERED_BYTES / 2 {
            self.older = std::mem::take(&mut self.newer);
            self.newer_bytes = 0;
        }
        self.newer_bytes += bytes;
        self.newer.insert(key, answer);
    }
}

/// Memory that a request and its answer take in a map, in bytes.
fn held_bytes(key: &Vec<u8>, answer: &Answer) -> usize {
    let entry = 2 * size_of::<(Vec<u8>, Arc<Answer>)>() + OVERHEAD_BYTES;
    entry + key.capacity() + answer.held_bytes()
}

impl Answers {
    /// The answer to a request that was asked before.
    #[must_use]
    pub fn find(&self, request: &[u8]) -> Option<Arc<Answer>> {
        let key = with_titles(request, None);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = kept.newer.get(&key) {
            return Some(Arc::clone(answer));
        }
        let answer = kept.older.remove(&key)?;
        kept.put(key, Arc::clone(&answer));
        Some(answer)
    }

    /// Keeps the answer to a request.
    pub fn remember(&self, request: &[u8], answer: Arc<Answer>) {
        let key = with_titles(request, None);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.newer.contains_key(&key) {
            kept.put(key, answer);
        }
    }
}

/// Called and calling AE title of a request whose fixed fields are as PS3.8 9.3.2 wants them; of others nothing.
#[must_use]
pub fn titles(request: &[u8]) -> Option<(String, String)> {
    if request.len() < FIXED_BYTES || request.get(PROTOCOL_VERSION)? & 1 == 0 {
        return None;
    }
    Some((
        plain_title(request.get(CALLED)?)?,
        plain_title(request.get(CALLING)?)?,
    ))
}

fn plain_title(field: &[u8]) -> Option<String> {
    title::read(field)
        .filter(|title| !title.is_odd)
        .map(|title| title.text)
}

/// A PDU with both titles of another, or with none.
fn with_titles(pdu: &[u8], titles: Option<&[u8]>) -> Vec<u8> {
    let mut pdu = pdu.to_vec();
    if let Some(field) = pdu.get_mut(CALLED.start..CALLING.end) {
        match titles {
            Some(titles) => field.copy_from_slice(titles),
            None => field.fill(b' '),
        }
    }
    pdu
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(called: &[u8; 16], calling: &[u8; 16], rest: &[u8]) -> Vec<u8> {
        let fixed = [
            &[1, 0, 0, 0, 0, 0, 0, 1, 0, 0],
            &called[..],
            &calling[..],
            &[0; 32],
        ];
        [&fixed.concat(), rest].concat()
    }

    fn answer(pdu: Vec<u8>) -> Arc<Answer> {
        Arc::new(Answer {
            contexts: HashMap::new(),
            rejected: Vec::new(),
            peer_max_pdu_length: 0,
            oddities: Vec::new(),
            pdu,
        })
    }

    #[test]
    fn who_differs_in_titles_shares_an_answer_and_gets_his_own_back() {
        let answers = Answers::default();
        let one = request(b"ME              ", b"CT1             ", b"items");
        let other = request(b"YOU             ", b"MR2             ", b"items");
        answers.remember(&one, answer(one.clone()));
        let found = answers.find(&other).unwrap();
        assert_eq!(found.pdu_for(&other), other);
        assert_eq!(found.pdu_for(&one), one);
        assert!(answers
            .find(&request(b"ME              ", b"CT1             ", b"other"))
            .is_none());
    }

    #[test]
    fn what_is_asked_for_again_outlives_what_is_not() {
        let answers = Answers::default();
        let of = |number: u32| {
            let mut rest = number.to_le_bytes().to_vec();
            rest.resize(256 << 10, 0);
            request(b"ME              ", b"CT1             ", &rest)
        };
        for number in 0..160 {
            answers.remember(&of(number), answer(Vec::new()));
            assert!(answers.find(&of(0)).is_some(), "{number}");
        }
        assert!(answers.find(&of(1)).is_none());
        let kept = answers.0.lock().unwrap();
        assert!(kept.newer.len() + kept.older.len() <= 64, "16 MiB");
    }

    #[test]
    fn answers_count_as_well_as_requests() {
        let answers = Answers::default();
        let large = |count: usize| {
            let rejected = Rejected {
                abstract_syntax: "1.2.3".to_owned(),
                result: 3,
                transfer_syntaxes: (0..count).map(|number| format!("1.2.{number}")).collect(),
            };
            let mut large = Arc::unwrap_or_clone(answer(Vec::new()));
            large.rejected.push(rejected);
            Arc::new(large)
        };
        let of = |number: u32| request(b"ME              ", b"CT1             ", &number.to_le_bytes());
        // 250 bytes of request each, and more than 100 KB of answer.
        for number in 0..2_000 {
            answers.remember(&of(number), large(1_500));
        }
        let kept = answers.0.lock().unwrap();
        let held = kept.newer.iter().chain(&kept.older);
        let bytes: usize = held.map(|(key, answer)| held_bytes(key, answer)).sum();
        assert!(kept.newer.len() > 10 && bytes <= REMEMBERED_BYTES, "{bytes}");
        drop(kept);
        answers.remember(&of(9_999), large(20_000));
        assert!(
            answers.find(&of(9_999)).is_none(),
            "one that is too large is not remembered"
        );
    }

    #[test]
    fn titles_of_odd_requests_are_for_somebody_else_to_judge() {
        let good = request(b"ME\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b" CT 1           ", b"");
        assert_eq!(titles(&good), Some(("ME".to_owned(), "CT 1".to_owned())));
        let mut old = good.clone();
        old[7] = 2;
        assert_eq!(titles(&old), None, "protocol version");
        assert_eq!(titles(&good[..73]), None, "too short");
        for odd in [
            b"                ",
            b"A\\B             ",
            b"A\nB             ",
            b"\xC4               ",
            b"A\0junk          ",
        ] {
            assert_eq!(titles(&request(odd, b"CT1             ", b"")), None);
            assert_eq!(titles(&request(b"ME              ", odd, b"")), None);
        }
    }
}
