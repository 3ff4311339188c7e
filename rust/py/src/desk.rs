//! From a connection to an association: who may come in, what is answered, and who needs nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use storescp_core::desk;
use storescp_core::net::{admission, answers};

use crate::boundary::{run, CoreError};
use crate::engine::{AssociationSummary, Engine};
use crate::gate::{Connection, Gate};
use crate::request::{tuples, CleanRequest, OddityTuple};

/// The rules of who may come in, and the places that are taken.
#[pyclass(frozen, module = "storescp._core")]
pub struct Admission(Arc<admission::Admission>);

/// The place of an association; given back by `leave`, by `Engine.receive` at its end, or when it is forgotten.
#[pyclass(frozen, module = "storescp._core")]
pub struct Place(Mutex<Option<admission::Place>>);

/// What negotiation came to.
#[pyclass(frozen, module = "storescp._core")]
pub struct Answer(pub Arc<answers::Answer>);

/// Answers by request, the recently used ones.
#[pyclass(frozen, module = "storescp._core")]
pub struct Answers(Arc<answers::Answers>);

/// Where connections are waited for; those that are known are served at once.
#[pyclass(frozen, module = "storescp._core")]
pub struct Desk(desk::Desk);

/// An association that is over, and that needed nobody.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct Served {
    summary: Py<AssociationSummary>,
    peer: (String, u16),
    proxy_address: Option<String>,
    calling_ae_title: String,
    called_ae_title: String,
    tenant: Option<String>,
    rejected_contexts: usize,
    oddities: Vec<(&'static str, String, usize)>,
}

fn address(text: &str) -> PyResult<IpAddr> {
    // A link-local address may come with its zone.
    let (address, _) = text.split_once('%').unwrap_or((text, ""));
    address.parse().map_err(|_| CoreError::new_err("not an address"))
}

#[pymethods]
impl Admission {
    /// From the JSON form of the rules.
    #[new]
    fn new(rules_json: &str) -> PyResult<Self> {
        let rules =
            serde_json::from_str(rules_json).map_err(|error| CoreError::new_err(error.to_string()))?;
        Ok(Self(Arc::new(admission::Admission::new(rules))))
    }

    /// From now on nobody is let in, for a reason in a word; None: again by the rules.
    fn close(&self, cause: Option<String>) {
        self.0.close(cause);
    }

    /// Places taken now, and associations that were let in since the start.
    fn counts(&self) -> (usize, u64) {
        self.0.counts()
    }

    /// The address and the calling AE title that hold most associations now, and how many each; None where there are none.
    fn largest(&self) -> (Option<(String, usize)>, Option<(String, usize)>) {
        let largest = self.0.largest();
        let address = largest
            .address
            .map(|(address, count)| (address.to_string(), count));
        (address, largest.calling_ae_title)
    }

    /// Whether an address may come in at all.
    fn allows(&self, peer: &str) -> PyResult<bool> {
        Ok(self.0.allows(address(peer)?))
    }

    /// A place, or the cause why there is none.
    fn enter(&self, peer: &str) -> PyResult<(Option<Place>, Option<String>)> {
        Ok(match self.0.enter(address(peer)?) {
            Ok(place) => (Some(Place(Mutex::new(Some(place)))), None),
            Err(denied) => (None, Some(denied.to_string())),
        })
    }

    /// The cause why these titles may not come in.
    fn check_titles(&self, called: &str, calling: &str) -> Option<String> {
        self.0
            .check_titles(called, calling)
            .err()
            .map(|denied| denied.to_string())
    }

    /// The tenant, and whether a rule named it. `with_subject`: numbers of the rules whose subject the certificate has.
    fn tenancy(
        &self,
        called: &str,
        calling: &str,
        peer: &str,
        with_subject: Vec<usize>,
    ) -> PyResult<(Option<String>, bool)> {
        let has_subject = move |number| with_subject.contains(&number);
        let tenancy = self.0.tenancy(called, calling, address(peer)?, has_subject);
        let tenant = tenancy.tenant.map(|tenant| tenant.as_str().to_owned());
        Ok((tenant, tenancy.by_rule))
    }
}

impl Place {
    pub fn take(&self) -> Option<admission::Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl Place {
    /// Takes one of the places of a calling AE title, too; the cause why there is none.
    fn enter_calling(&self, calling: &str) -> PyResult<Option<String>> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place
            .as_mut()
            .ok_or_else(|| CoreError::new_err("the place was given back"))?;
        Ok(place
            .enter_calling(calling)
            .err()
            .map(|denied| denied.to_string()))
    }

    /// Gives it back, once.
    fn leave(&self) {
        drop(self.take());
    }
}

#[pymethods]
impl Answer {
    /// `contexts`: id, abstract and transfer syntax of those that are accepted; `rejected_contexts`: abstract syntax, result
    /// (PS3.8 Table 9-18), transfer syntaxes that were offered for it; `pdu`: the A-ASSOCIATE-AC; `request`: what was asked.
    #[new]
    fn new(
        contexts: Vec<(u8, String, String)>,
        rejected_contexts: Vec<(String, u8, Vec<String>)>,
        peer_max_pdu_length: u32,
        pdu: Vec<u8>,
        request: &CleanRequest,
    ) -> Self {
        let contexts: HashMap<_, _> = contexts
            .into_iter()
            .map(|(id, abstract_syntax, transfer_syntax)| {
                (
                    id,
                    answers::Context {
                        abstract_syntax,
                        transfer_syntax,
                    },
                )
            })
            .collect();
        let rejected = rejected_contexts.into_iter();
        Self(Arc::new(answers::Answer {
            contexts,
            rejected: rejected
                .map(|(abstract_syntax, result, transfer_syntaxes)| answers::Rejected {
                    abstract_syntax,
                    result,
                    transfer_syntaxes,
                })
                .collect(),
            peer_max_pdu_length,
            oddities: request.to_oddities(),
            pdu,
        }))
    }

    /// Accepted contexts by id: abstract and transfer syntax.
    #[getter]
    fn contexts(&self) -> HashMap<u8, (&str, &str)> {
        let contexts = self.0.contexts.iter();
        contexts
            .map(|(&id, one)| (id, (one.abstract_syntax.as_str(), one.transfer_syntax.as_str())))
            .collect()
    }

    /// The others: abstract syntax, result, transfer syntaxes.
    #[getter]
    fn rejected_contexts(&self) -> Vec<(&str, u8, Vec<&str>)> {
        let rejected = self.0.rejected.iter();
        rejected
            .map(|one| {
                let syntaxes = one.transfer_syntaxes.iter().map(String::as_str).collect();
                (one.abstract_syntax.as_str(), one.result, syntaxes)
            })
            .collect()
    }

    /// The peer's maximum PDU length, 0 for none.
    #[getter]
    fn peer_max_pdu_length(&self) -> u32 {
        self.0.peer_max_pdu_length
    }

    /// What was odd in the request, AE titles excepted: code, detail, count.
    #[getter]
    fn oddities(&self) -> Vec<OddityTuple<'_>> {
        tuples(&self.0.oddities)
    }

    /// The A-ASSOCIATE-AC for a request: its titles are echoed.
    fn pdu_for<'py>(&self, py: Python<'py>, request: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pdu_for(request))
    }
}

#[pymethods]
impl Answers {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    /// The answer to a request that was asked before; titles make no difference.
    fn find(&self, request: &[u8]) -> Option<Answer> {
        self.0.find(request).map(Answer)
    }

    /// Keeps the answer to a request.
    fn remember(&self, request: &[u8], answer: &Answer) {
        self.0.remember(request, Arc::clone(&answer.0));
    }
}

#[pymethods]
impl Desk {
    /// `serves`: whether associations may be served without anybody being asked.
    #[new]
    fn new(gate: &Gate, admission: &Admission, answers: &Answers, serves: bool) -> Self {
        Self(desk::Desk::new(
            Arc::clone(&gate.0),
            Arc::clone(&admission.0),
            Arc::clone(&answers.0),
            serves,
        ))
    }

    /// How many wait.
    #[getter]
    fn waiting(&self) -> usize {
        self.0.waiting()
    }

    /// Associations that were known and are over, and the next connection that is not known. Neither after `timeout` seconds,
    /// when some were turned away, or when the gate stops. Where nobody else would wait meanwhile, nobody is served here unless
    /// `may_be_last`.
    fn next(
        &self,
        py: Python<'_>,
        engine: &Engine,
        timeout: f64,
        may_be_last: bool,
    ) -> PyResult<(Vec<Served>, Option<Connection>)> {
        let engine = engine.inner()?;
        let visit = run(py, || {
            let timeout = Duration::try_from_secs_f64(timeout)?;
            Ok::<_, std::time::TryFromFloatSecsError>(self.0.next(&engine, timeout, may_be_last))
        })?;
        let served = visit.served.into_iter().map(|served| {
            let source = served.source;
            Ok(Served {
                summary: Py::new(py, AssociationSummary::from(served.summary))?,
                peer: (source.address, served.peer.port()),
                proxy_address: served.proxy.map(|address| address.to_string()),
                calling_ae_title: source.calling_ae_title,
                called_ae_title: source.called_ae_title,
                tenant: source.tenant.map(|tenant| tenant.as_str().to_owned()),
                rejected_contexts: served.answer.rejected.len(),
                oddities: tuples(&served.answer.oddities)
                    .into_iter()
                    .map(|(code, detail, count)| (code, detail.to_owned(), count))
                    .collect(),
            })
        });
        let unknown = visit
            .unknown
            .map(|connection| Connection(Mutex::new(Some(*connection))));
        Ok((served.collect::<PyResult<_>>()?, unknown))
    }
}
