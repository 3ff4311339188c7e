//! Tenant ids and UIDs become paths: whatever passes their grammar stays beneath the root.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use storescp_core::layout::{InstancePath, TenantId};
use storescp_core::uid::Uid;

fuzz_target!(|input: (&str, &[u8], &[u8], &[u8])| {
    let (tenant, study, series, instance) = input;
    let Ok(tenant) = TenantId::parse(tenant) else { return };
    let (Ok(study), Ok(series), Ok(instance)) = (Uid::parse(study), Uid::parse(series), Uid::parse(instance)) else {
        return;
    };
    let path = InstancePath::new(&tenant, None, &study, &series, &instance);
    let relative = path.relative();
    let components: Vec<_> = Path::new(relative).components().collect();
    assert_eq!(components.len(), 5);
    assert!(components.iter().all(|component| matches!(component, Component::Normal(_))));
    assert!(!relative.starts_with('.') && relative.is_ascii() && relative.len() <= 300);
});
