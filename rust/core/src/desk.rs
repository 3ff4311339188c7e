//! Where connections are waited for. A request that was answered before is answered at once, and its association is
//! served, without asking anybody; every other one goes to whoever negotiates.

mod untold;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::association::{receive, Agreement, Summary};
use crate::engine::Engine;
use crate::ingest::Source;
use crate::net::admission::{Admission, Place};
use crate::net::answers::{titles, Answer, Answers};
use crate::net::gate::{Connection, Gate};
use untold::Untold;

/// See the module documentation.
#[derive(Debug)]
pub struct Desk {
    gate: Arc<Gate>,
    admission: Arc<Admission>,
    answers: Arc<Answers>,
    serves: bool,
    waiting: AtomicUsize,
    untold: Untold<Served>,
}

/// What there is to do after a wait; nothing when time is up, some were turned away, or the gate stops.
#[derive(Debug, Default)]
pub struct Visit {
    /// To tell of: associations that are over, in the order in which they ended.
    pub served: Vec<Served>,
    /// Somebody to negotiate with, or to refuse.
    pub unknown: Option<Box<Connection>>,
}

/// An association that needed nobody.
#[derive(Debug)]
pub struct Served {
    /// How it went.
    pub summary: Summary,
    /// Address and port of the peer.
    pub peer: SocketAddr,
    /// The load balancer that passed the connection on, where it began with a PROXY header.
    pub proxy: Option<IpAddr>,
    /// Who sent.
    pub source: Source,
    /// What was answered.
    pub answer: Arc<Answer>,
}

/// What a known request needs to be served.
struct Welcome {
    place: Place,
    answer: Arc<Answer>,
    source: Source,
}

impl Desk {
    /// `serves`: whether anything may be decided here; else everybody is unknown.
    #[must_use]
    pub fn new(gate: Arc<Gate>, admission: Arc<Admission>, answers: Arc<Answers>, serves: bool) -> Self {
        Self {
            gate,
            admission,
            answers,
            serves,
            waiting: AtomicUsize::new(0),
            untold: Untold::new(),
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Waits for connections, and serves those that can be, until there is something else to do. Where nobody else would wait
    /// meanwhile, nobody is served unless `may_be_last`: the caller gets the connection, and can see to it that somebody does.
    #[must_use]
    pub fn next(&self, engine: &Engine, timeout: Duration, may_be_last: bool) -> Visit {
        let deadline = Instant::now() + timeout;
        loop {
            let began = Instant::now();
            let rest = deadline.saturating_duration_since(began);
            let look = self.untold.watch();
            let patience = look.map_or(rest, |look| look.min(rest));
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let connection = self.gate.next(patience);
            let is_last = self.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
            let due = if look.is_some() {
                self.untold.leave(connection.is_some())
            } else {
                Vec::new()
            };
            let Some(connection) = connection else {
                if due.is_empty() && patience < rest && began.elapsed() >= patience {
                    continue;
                }
                return self.visit(due, None);
            };
            // What has to be told of does not wait for an association that may take hours.
            if !due.is_empty() || !self.serves || (is_last && !may_be_last) {
                return self.visit(due, Some(connection));
            }
            let Some(welcome) = self.welcome(engine, &connection) else {
                return self.visit(due, Some(connection));
            };
            let due = self.untold.push(serve(engine, connection, welcome));
            if !due.is_empty() {
                return self.visit(due, None);
            }
        }
    }

    /// Whoever goes to tell takes all with him.
    fn visit(&self, mut served: Vec<Served>, unknown: Option<Connection>) -> Visit {
        served.extend(self.untold.take());
        Visit {
            served,
            unknown: unknown.map(Box::new),
        }
    }

    /// Nothing where anything is unknown or speaks against it: whoever negotiates finds out what it is.
    fn welcome(&self, engine: &Engine, connection: &Connection) -> Option<Welcome> {
        if !connection.is_clear() {
            return None;
        }
        let address = connection.peer().ip();
        let (called, calling) = titles(connection.request())?;
        let answer = self.answers.find(connection.request())?;
        engine.admit().ok()?;
        self.admission.check_titles(&called, &calling).ok()?;
        let mut place = self.admission.enter(address).ok()?;
        place.enter_calling(&calling).ok()?;
        let tenancy = self.admission.tenancy(&called, &calling, address, |_| false);
        Some(Welcome {
            place,
            answer,
            source: Source {
                calling_ae_title: calling,
                called_ae_title: called,
                address: address.to_string(),
                tenant: tenancy.tenant,
                tenant_by_rule: tenancy.by_rule,
            },
        })
    }
}

fn serve(engine: &Engine, connection: Connection, welcome: Welcome) -> Served {
    let (peer, proxy) = (connection.peer(), connection.proxy());
    let agreement = Agreement {
        answer: welcome.answer,
        source: welcome.source,
    };
    let summary = receive(engine, connection, &agreement, Some(welcome.place));
    Served {
        summary,
        peer,
        proxy,
        answer: agreement.answer,
        source: agreement.source,
    }
}

#[cfg(test)]
mod tests;
