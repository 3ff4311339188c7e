//! Text in any character set (PS3.5 6.1): never a panic, always bounded text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storescp_core::dataset::charset::SpecificCharacterSet;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (terms, value) = input;
    let text = SpecificCharacterSet::from_value(terms).decode(value).text;
    assert!(text.len() <= 3 * value.len() + 3);
    // What becomes a record is JSON.
    let json = serde_json::to_string(&text).unwrap();
    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
});
