//! Command sets.
#![no_main]

use dicom_core::Tag;
use libfuzzer_sys::fuzz_target;
use storescp_core::uid::Uid;
use storescp_core::wire::command::Command;

fuzz_target!(|bytes: &[u8]| {
    let Ok(command) = Command::parse(bytes, Some(Tag(0x1211, 0x1217))) else {
        return;
    };
    // Nothing comes out that was not there.
    for value in [command.affected_sop_class_uid, command.affected_sop_instance_uid] {
        assert!(value.is_empty() || bytes.windows(value.len()).any(|window| window == value));
        if let Ok(uid) = Uid::parse(value) {
            assert!((1..=64).contains(&uid.as_str().len()));
        }
    }
});
