//! Tests of the desk, with real sockets: who is served without anybody being asked, and who is not.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::association::Outcome;
use crate::net::answers::Context;
use crate::net::gate::GateLimits;
use crate::sender::{Identity, Patience, Request, Sender};
use crate::uid::Uid;

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const SOON: Duration = Duration::from_secs(10);

struct Fixture {
    engine: Engine,
    desk: Desk,
    admission: Arc<Admission>,
    answers: Arc<Answers>,
    address: SocketAddr,
    _root: tempfile::TempDir,
}

fn fixture(rules: &serde_json::Value) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "root": root.path().join("data"), "durability": "none", "duplicates": "replace", "min_free_bytes": 0,
        "create": true, "replaced_retention": 0.0, "replaced_max_bytes": null,
        "malformed": "refuse", "quarantine_max_bytes": 1 << 20,
        "viewer_transfer_syntaxes": [EXPLICIT], "required_attributes": [],
        "record": {"attributes": ["PatientName"], "node_id": "node", "created_time": "utc", "missing_study_date": null},
        "max_pdu_length": 16384, "strict": false, "spool_memory_bytes": 4096,
        "limits": {
            "max_instance_bytes": 1 << 20, "max_decoded_bytes": 1 << 24, "nesting": 64, "max_elements": 1 << 16,
            "max_connections": 10, "max_connections_per_address": 10, "request_timeout": 5.0, "idle_timeout": 5.0,
            "min_rate": 1024, "max_pdu_tolerated": 1 << 20
        },
        "outbox": {"max_rows": 1u64 << 40, "max_bytes": 1u64 << 40},
        "private_tenant": null, "audit": false, "tenants": {},
        "transcoding": {
            "target": EXPLICIT, "pool": {"command": ["/nonexistent"], "workers": 1, "threads": 1, "timeout": 1.0,
                     "instance_timeout": 1.0, "max_wait": 1.0}
        }
    });
    let mut all = serde_json::json!({
        "max_associations": 2, "max_per_address": null, "max_per_calling_ae": 1, "peers": [],
        "called_ae_titles": ["ME"], "calling_ae_titles": null, "tenants": [], "default_tenant": "a"
    });
    for (name, rule) in rules.as_object().unwrap() {
        all[name] = rule.clone();
    }
    let limits = GateLimits {
        connections: 10,
        per_address: 10,
        handshake_timeout: SOON,
        request_timeout: SOON,
        request_bytes: 1 << 20,
    };
    let gate = Arc::new(Gate::start(limits, Vec::new(), None).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    gate.listen(listener, false).unwrap();
    let admission = Arc::new(Admission::new(serde_json::from_value(all).unwrap()));
    let answers = Arc::<Answers>::default();
    Fixture {
        engine: Engine::open(serde_json::from_value(config).unwrap()).unwrap(),
        desk: Desk::new(gate, Arc::clone(&admission), Arc::clone(&answers), true),
        admission,
        answers,
        address,
        _root: root,
    }
}

impl Fixture {
    /// What negotiation would do for the first of them.
    fn remember(&self, request: &[u8]) {
        let context = Context {
            abstract_syntax: CT.to_owned(),
            transfer_syntax: EXPLICIT.to_owned(),
        };
        let mut pdu = vec![2, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        pdu.resize(74, b' ');
        for (kind, body) in [(0x21, &[1, 0, 0, 0][..]), (0x50, &[0x51, 0, 0, 4, 0, 0, 0x40, 0])] {
            pdu.extend_from_slice(&[kind, 0, 0, u8::try_from(body.len()).unwrap()]);
            pdu.extend_from_slice(body);
        }
        pdu[5] = u8::try_from(pdu.len() - 6).unwrap();
        let answer = Answer {
            contexts: HashMap::from([(1, context)]),
            rejected: Vec::new(),
            peer_max_pdu_length: 16384,
            oddities: Vec::new(),
            pdu,
        };
        self.answers.remember(request, Arc::new(answer));
    }

    fn next(&self) -> Visit {
        self.desk.next(&self.engine, SOON, true)
    }

    /// The request of somebody who is not known yet; the connection goes.
    fn unknown(&self, calling: &str) -> Vec<u8> {
        let address = self.address;
        let calling = calling.to_owned();
        let sender = thread::spawn(move || connect(address, &calling).is_err());
        let connection = self.next().unknown.expect("was served");
        let request = connection.request().to_vec();
        drop(connection);
        assert!(sender.join().unwrap(), "nobody answered");
        request
    }
}

fn connect(address: SocketAddr, calling: &str) -> Result<Sender, crate::sender::SendError> {
    let request = Request {
        calling_ae_title: calling.to_owned(),
        called_ae_title: "ME".to_owned(),
        contexts: vec![(CT.to_owned(), EXPLICIT.to_owned())],
        user: None,
    };
    let patience = Patience {
        connect: SOON,
        wait: SOON,
    };
    Sender::connect(address, &request, None, patience)
}

fn dataset(instance: &str) -> Vec<u8> {
    let mut dataset = Vec::new();
    for (element, value) in [(0x0016_u16, CT), (0x0018, instance)] {
        let mut value = value.as_bytes().to_vec();
        value.resize(value.len().next_multiple_of(2), 0);
        dataset.extend_from_slice(&[8, 0]);
        dataset.extend_from_slice(&element.to_le_bytes());
        dataset.extend_from_slice(b"UI");
        dataset.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
        dataset.extend_from_slice(&value);
    }
    for (element, value) in [(0x000D_u16, "1.2.3\0"), (0x000E, "1.2.3.4\0")] {
        dataset.extend_from_slice(&[0x20, 0]);
        dataset.extend_from_slice(&element.to_le_bytes());
        dataset.extend_from_slice(b"UI");
        dataset.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
        dataset.extend_from_slice(value.as_bytes());
    }
    dataset
}

#[test]
fn a_known_request_is_served_to_its_end_with_its_own_titles() {
    let fixture = fixture(&serde_json::json!({}));
    fixture.remember(&fixture.unknown("CT1"));
    let address = fixture.address;
    let sender = thread::spawn(move || {
        let mut sender = connect(address, "MR2").unwrap();
        let instance = Uid::parse(b"1.2.3.4.5").unwrap();
        let identity = Identity {
            sop_class: CT,
            sop_instance: instance.as_str(),
            transfer_syntax: EXPLICIT,
        };
        let answer = sender.store(&identity, &dataset(instance.as_str())).unwrap();
        sender.release().unwrap();
        answer
    });
    let served = fixture.next().served.pop().expect("nobody was needed");
    assert_eq!(sender.join().unwrap().comment, "");
    assert_eq!(served.summary.outcome, Outcome::Released);
    assert_eq!(served.summary.statuses.get(&0), Some(&1));
    assert_eq!(
        (
            served.source.calling_ae_title.as_str(),
            served.source.called_ae_title.as_str()
        ),
        ("MR2", "ME")
    );
    assert_eq!(served.source.tenant.unwrap().as_str(), "a");
    assert_eq!(fixture.admission.counts(), (0, 1));
}

/// Associations one after the other, with some who wait for them; their numbers, each as often as it was told of.
fn follow_each_other(fixture: &Fixture, count: usize) -> Vec<u64> {
    let address = fixture.address;
    let sender = thread::spawn(move || {
        let mut over = 0;
        while over < count {
            // Where nobody else is left to wait, one is given to who negotiates, which is nobody here.
            over += usize::from(connect(address, "CT1").is_ok_and(|sender| sender.release().is_ok()));
        }
    });
    let told = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while told.lock().unwrap().len() < count {
                    let visit = fixture.desk.next(&fixture.engine, SOON / 100, true);
                    let places = fixture.admission.counts().0;
                    assert!(
                        visit.unknown.is_none() || places == 0,
                        "there was no place for one who came again"
                    );
                    let numbers = visit.served.iter().map(|one| one.summary.association);
                    told.lock().unwrap().extend(numbers);
                }
            });
        }
    });
    sender.join().unwrap();
    told.into_inner().unwrap()
}

#[test]
fn who_comes_again_at_once_finds_the_place_free() {
    let fixture = fixture(&serde_json::json!({"max_associations": 1}));
    fixture.remember(&fixture.unknown("CT1"));
    follow_each_other(&fixture, 50);
    assert_eq!(fixture.admission.counts(), (0, 50));
}

#[test]
fn of_associations_that_follow_each_other_each_is_told_of_once() {
    let fixture = fixture(&serde_json::json!({}));
    fixture.remember(&fixture.unknown("CT1"));
    let mut told = follow_each_other(&fixture, 60);
    assert_eq!(told.len(), 60);
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), 60);
}

#[test]
fn a_known_request_is_admitted_anew_each_time() {
    for (what, rules) in [
        (
            "called_ae_title",
            serde_json::json!({"called_ae_titles": ["YOU"]}),
        ),
        (
            "calling_ae_title",
            serde_json::json!({"calling_ae_titles": ["MR2"]}),
        ),
        ("peer", serde_json::json!({"peers": [["10.0.0.0", 8]]})),
        ("places", serde_json::json!({"max_associations": 0})),
        ("places of an address", serde_json::json!({"max_per_address": 0})),
        ("places of a title", serde_json::json!({"max_per_calling_ae": 0})),
    ] {
        let fixture = fixture(&rules);
        fixture.remember(&fixture.unknown("CT1"));
        fixture.unknown("CT1");
        assert_eq!(fixture.admission.counts(), (0, 0), "{what}");
    }
    let fixture = fixture(&serde_json::json!({}));
    fixture.remember(&fixture.unknown("CT1"));
    fixture.admission.close(Some("licence_expired".to_owned()));
    fixture.unknown("CT1");
}

#[test]
fn the_last_that_waits_serves_nobody_unless_it_may() {
    let fixture = fixture(&serde_json::json!({}));
    let request = fixture.unknown("CT1");
    fixture.remember(&request);
    let mut client = TcpStream::connect(fixture.address).unwrap();
    client.write_all(&request).unwrap();
    let visit = fixture.desk.next(&fixture.engine, SOON, false);
    assert!(visit.unknown.is_some());
    drop(visit);
    assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    let visit = fixture.desk.next(&fixture.engine, Duration::from_millis(1), true);
    assert!(visit.unknown.is_none() && visit.served.is_empty());
    assert_eq!(fixture.desk.waiting(), 0);
}
