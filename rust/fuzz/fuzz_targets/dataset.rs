//! The scan of a data set: the pieces in which it arrives make no difference, and memory is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storescp_core::dataset::index::{Captures, IndexPlan};
use storescp_core::dataset::scan::ScanLimits;
use storescp_core::dataset::stream::DatasetScan;

const SYNTAXES: [&str; 4] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (syntax, piece, dataset) = input;
    let syntax = SYNTAXES[usize::from(syntax) % SYNTAXES.len()];
    let required = ["PatientID".to_owned(), "StudyDate".to_owned()];
    let described = ["PatientName", "StudyDescription", "SeriesNumber", "Rows", "RequestAttributesSequence"].map(str::to_owned);
    let captures = Captures::new(std::iter::once(&required[..]), None, &described).unwrap();
    let plan = IndexPlan::new(captures, &required).unwrap();
    let run = |piece: usize| {
        let mut scan = DatasetScan::new(syntax, plan.tags(), ScanLimits::default(), 1 << 20);
        let outcome = dataset
            .chunks(piece)
            .try_for_each(|bytes| scan.feed(bytes))
            .and_then(|()| scan.finish());
        outcome.map(|()| {
            for captured in scan.captured() {
                assert!(captured.bytes.len() <= 64 * 1024);
            }
            let read = plan.read(scan.captured(), scan.encoding());
            if let Ok(index) = &read {
                let json: serde_json::Value = serde_json::from_str(&index.described.text).unwrap();
                assert!(json.is_object() && index.described.text.len() <= 64 * 1024);
            }
            read.map_err(|refusal| refusal.status())
        })
    };
    let whole = run(dataset.len().max(1));
    let pieces = run(usize::from(piece).max(1));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
        (Err(_), Err(_)) => {}
        other => panic!("{other:?}"),
    }
});
