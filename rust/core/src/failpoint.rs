//! Named places between the steps of the commit where tests end the process, as `kill -9` would.
//!
//! Only with the cargo feature `failpoints`, which no release has; without it, [`hit`] is nothing. The environment variable
//! `STORESCP_FAIL_POINT` arms one: its name, a colon, and how often it is passed before it ends the process, or, with `:panic`
//! behind it, only the instance, as a bug would.

/// The places, in the order of the commit; behind them those of a damaged data set that is kept.
pub const NAMES: [&str; 21] = [
    "received",
    "transcoded",
    "row_written",
    "journal_written",
    "journal_synced",
    "row_asked_for",
    "data_written",
    "row_durable",
    "folder_made",
    "put_aside",
    "named",
    "data_synced",
    "folder_synced",
    "row_publishable",
    "answered",
    "commit_begun",
    "commit_done",
    "delivered",
    "damaged_written",
    "damaged_noted",
    "damaged_named",
];

/// The places of this build: none but in one for tests.
#[must_use]
pub fn compiled() -> &'static [&'static str] {
    if cfg!(feature = "failpoints") {
        &NAMES
    } else {
        &[]
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::sync::OnceLock;

    struct Armed {
        name: String,
        left: AtomicI64,
        panics: bool,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn from_environment() -> Option<Armed> {
        let text = std::env::var("STORESCP_FAIL_POINT").ok()?;
        let (name, rest) = text.split_once(':')?;
        let (passes, panics) = rest
            .strip_suffix(":panic")
            .map_or((rest, false), |passes| (passes, true));
        Some(Armed {
            name: super::NAMES.contains(&name).then(|| name.to_owned())?,
            left: AtomicI64::new(passes.parse().ok()?),
            panics,
        })
    }

    pub(super) fn hit(name: &str) {
        let Some(armed) = ARMED.get_or_init(from_environment) else {
            return;
        };
        if armed.name == name && armed.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            assert!(!armed.panics, "fail point {name}");
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal may take a moment to arrive: nothing may happen until then.
            loop {
                std::thread::park();
            }
        }
    }
}

/// Ends the process where this place is armed and was passed often enough.
#[inline]
pub(crate) fn hit(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::hit(_name);
}
