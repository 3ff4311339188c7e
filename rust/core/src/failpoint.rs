//! Named places between the steps of the commit where tests end the process as `kill -9` would, fail an instance, or delay
//! it as a slow disk would.
//!
//! Only with the cargo feature `failpoints`, which no release has; without it, [`hit`] is nothing. The environment variable
//! `STORESCP_FAIL_POINT` arms one place: `NAME:PASSES[:ACTION]`. So many passes are let through, then the action follows:
//!
//! - none: the process ends;
//! - `panic`: the instance fails, as by a bug;
//! - `hang=MILLISECONDS`: this pass takes so long, once;
//! - `slow=MILLISECONDS`: this pass and all later ones take so long.

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
    use std::time::Duration;

    enum Action {
        End,
        Panic,
        Hang(Duration),
        Slow(Duration),
    }

    struct Armed {
        name: String,
        left: AtomicI64,
        action: Action,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn from_environment() -> Option<Armed> {
        let text = std::env::var("STORESCP_FAIL_POINT").ok()?;
        let mut parts = text.splitn(3, ':');
        let (name, passes) = (parts.next()?, parts.next()?);
        Some(Armed {
            name: super::NAMES.contains(&name).then(|| name.to_owned())?,
            left: AtomicI64::new(passes.parse().ok()?),
            action: parts.next().map_or(Some(Action::End), action)?,
        })
    }

    fn action(text: &str) -> Option<Action> {
        if text == "panic" {
            return Some(Action::Panic);
        }
        let (kind, milliseconds) = text.split_once('=')?;
        let pause = Duration::from_millis(milliseconds.parse().ok()?);
        match kind {
            "hang" => Some(Action::Hang(pause)),
            "slow" => Some(Action::Slow(pause)),
            _ => None,
        }
    }

    pub(super) fn hit(name: &str) {
        let Some(armed) = ARMED.get_or_init(from_environment) else {
            return;
        };
        if armed.name != name {
            return;
        }
        let left = armed.left.fetch_sub(1, Ordering::SeqCst);
        match armed.action {
            Action::Slow(pause) if left <= 0 => std::thread::sleep(pause),
            _ if left != 0 => {}
            Action::Hang(pause) | Action::Slow(pause) => std::thread::sleep(pause),
            Action::Panic => panic!("fail point {name}"),
            Action::End => end(),
        }
    }

    fn end() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal may take a moment to arrive: nothing may happen until then.
        loop {
            std::thread::park();
        }
    }
}

/// Does what this place is armed with, once it was passed often enough.
#[inline]
pub(crate) fn hit(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::hit(_name);
}
