//! The A-ASSOCIATE-RQ, PDU framing and everything behind it: what a peer sends before and after its association was accepted.
#![no_main]

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use storescp_core::association::{serve, Agreement, Outcome};
use storescp_core::engine::Engine;
use storescp_core::ingest::Source;
use storescp_core::layout::TenantId;
use storescp_core::net::answers::{Answer, Context};
use storescp_core::net::stream::Stream;
use storescp_core::wire::request::{clean, title_oddities};
use storescp_core::wire::title;

struct Fixture {
    engine: Engine,
    listener: TcpListener,
    agreement: Agreement,
    root: tempfile::TempDir,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "root": root.path().join("data"), "durability": "none", "duplicates": "replace", "min_free_bytes": 0,
        "create": true, "replaced_retention": 0.0, "replaced_max_bytes": null,
        "malformed": "refuse", "quarantine_max_bytes": 1 << 20,
        "viewer_transfer_syntaxes": ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"], "required_attributes": [],
        "record": {"attributes": ["PatientName"], "node_id": "node", "created_time": "utc", "missing_study_date": null},
        "max_pdu_length": 16384, "strict": false, "spool_memory_bytes": 4096,
        "limits": {
            "max_instance_bytes": 1 << 20, "max_decoded_bytes": 1 << 24, "nesting": 64, "max_elements": 1 << 16,
            "max_connections": 10, "max_connections_per_address": 10, "request_timeout": 5.0, "idle_timeout": 5.0,
            "min_rate": 1024, "max_pdu_tolerated": 1 << 20
        },
        "outbox": {"max_rows": 1u64 << 40, "max_bytes": 1u64 << 40},
        "private_tenant": {"group": 0x1211, "element": 0x1217, "known": ["b"]},
        "audit": true, "tenants": {},
        "transcoding": {
            "target": "1.2.840.10008.1.2.1",
            "pool": {"command": ["/nonexistent"], "workers": 1, "threads": 1, "timeout": 1.0,
                     "instance_timeout": 1.0, "max_wait": 1.0}
        }
    });
    let context = |abstract_syntax: &str, transfer_syntax: &str| Context {
        abstract_syntax: abstract_syntax.to_owned(),
        transfer_syntax: transfer_syntax.to_owned(),
    };
    let ct = "1.2.840.10008.5.1.4.1.1.2";
    let contexts = HashMap::from([
        (1, context(ct, "1.2.840.10008.1.2.1")),
        (3, context(ct, "1.2.840.10008.1.2")),
        (5, context(ct, "1.2.840.10008.1.2.1.99")),
        (7, context("1.2.840.10008.1.1", "1.2.840.10008.1.2")),
    ]);
    Fixture {
        engine: Engine::open(serde_json::from_value(config).unwrap()).unwrap(),
        listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        agreement: Agreement {
            answer: Arc::new(Answer {
                contexts,
                rejected: Vec::new(),
                peer_max_pdu_length: 16384,
                oddities: Vec::new(),
                pdu: Vec::new(),
            }),
            source: Source {
                calling_ae_title: "FUZZ".to_owned(),
                called_ae_title: "STORE-SCP".to_owned(),
                address: "127.0.0.1".to_owned(),
                tenant: Some(TenantId::parse("a").unwrap()),
                tenant_by_rule: false,
            },
        },
        root,
    }
});

const TITLES: [std::ops::Range<usize>; 2] = [10..26, 26..42];

/// What is cleaned is a request that any reader takes: cleaning it again changes nothing and finds nothing odd.
fn check_request(request: &[u8]) {
    let oddities = title_oddities(request);
    assert!(oddities.len() <= 2);
    let Ok(cleaned) = clean(request) else {
        return;
    };
    assert!(cleaned.oddities.len() <= 17);
    for oddity in cleaned.oddities.iter().chain(&oddities) {
        assert!(oddity.detail.len() < 200 && oddity.detail.bytes().all(|byte| matches!(byte, 0x20..=0x7E)));
    }
    let again = clean(&cleaned.pdu).expect("cleaned requests can be read");
    assert_eq!(again.pdu, cleaned.pdu);
    assert!(again.oddities.is_empty() && title_oddities(&cleaned.pdu).is_empty());
    for field in TITLES {
        let (before, after) = (title::read(&request[field.clone()]), title::read(&cleaned.pdu[field]));
        assert!(before.is_none() || before.map(|title| title.text) == after.map(|title| title.text));
    }
    check_contexts(&cleaned.pdu);
}

/// The items of a clean request, read by nothing of ours: identifiers are odd and differ, each context has an abstract
/// and a transfer syntax, and one user information item is at the end.
fn check_contexts(pdu: &[u8]) {
    let mut ids = std::collections::HashSet::new();
    let mut kinds = Vec::new();
    let mut rest = &pdu[74..];
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        let value = &rest[4..4 + length];
        kinds.push(rest[0]);
        if rest[0] == 0x20 {
            assert!(value[0] % 2 == 1 && ids.insert(value[0]));
            assert_eq!(value[4], 0x30);
            let transfer_at = 8 + usize::from(u16::from_be_bytes([value[6], value[7]]));
            assert_eq!(value[transfer_at], 0x40);
        }
        rest = &rest[4 + length..];
    }
    assert!(kinds.is_sorted() && kinds.iter().filter(|&&kind| kind == 0x50).count() == 1);
    assert!(kinds.iter().filter(|&&kind| kind == 0x10).count() <= 1);
}

/// As it came, and with the length that it has: what is cut or grows on the way of a fuzzer is no reason to look no further.
fn check_requests(sent: &[u8]) {
    check_request(sent);
    let mut request = sent.to_vec();
    if let Some(length) = request.len().checked_sub(6).and_then(|length| u32::try_from(length).ok()) {
        request[2..6].copy_from_slice(&length.to_be_bytes());
        check_request(&request);
    }
}

fuzz_target!(|sent: &[u8]| {
    if sent.first() == Some(&0x01) {
        check_requests(sent);
        return;
    }
    // More than the buffers of the loopback would need a second thread.
    if sent.len() > 100_000 {
        return;
    }
    let fixture = &*FIXTURE;
    let mut client = TcpStream::connect(fixture.listener.local_addr().unwrap()).unwrap();
    let (server, _) = fixture.listener.accept().unwrap();
    client.write_all(sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let summary = serve(&fixture.engine, &Stream::clear(server), b"", &fixture.agreement, None);
    assert!(summary.outcome != Outcome::Timeout && summary.outcome != Outcome::Stopped);
    assert!(!summary.statuses.contains_key(&0x0110), "a caught panic");
    let root = fixture.root.path();
    let names: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["data"], "outside the root");
    for entry in std::fs::read_dir(root.join("data")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!([".incoming", ".outbox", "a", "b"].iter().any(|&good| name == good), "{name:?}");
    }
    let left = std::fs::read_dir(root.join("data/.incoming")).unwrap().count();
    assert_eq!(left, 0, "temporary files");
});
