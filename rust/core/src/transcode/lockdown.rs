//! What a process that decodes images gives up before its first job: new rights, files, the network, other processes.
//!
//! Three protections of Linux lie one behind the other. Each holds where another one is missing or is got round.
//!
//! - `no_new_privs`: no program that it would start has more rights.
//! - Landlock: no path can be opened, and no port; signals stay in the process.
//! - seccomp: what decoding does not need is no system call any more. Descriptors that the process holds stay usable.

use serde::{Deserialize, Serialize};

/// One of the protections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protection {
    /// `prctl(PR_SET_NO_NEW_PRIVS)`, since Linux 3.5.
    NoNewPrivileges,
    /// Since Linux 5.13; the network since 6.7, signals since 6.12.
    Landlock,
    /// Filters of system calls, on x86-64 and aarch64.
    Seccomp,
}

impl Protection {
    /// Its name for the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no_new_privs",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

/// Takes all of them on, for good. To be called before other threads are started: Landlock is a matter of the thread and of
/// those that it starts. Returns the protections that this kernel, or whoever started the process, does not let it have.
#[must_use]
pub fn lock_down() -> Vec<Protection> {
    [
        (Protection::NoNewPrivileges, imp::give_up_new_privileges()),
        (Protection::Landlock, imp::give_up_files_and_network()),
        (Protection::Seccomp, imp::give_up_system_calls()),
    ]
    .into_iter()
    .filter_map(|(protection, is_there)| (!is_there).then_some(protection))
    .collect()
}

#[cfg(target_os = "linux")]
mod calls;

#[cfg(target_os = "linux")]
mod imp {
    use landlock::{
        Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetError, RulesetStatus, Scope, ABI,
    };

    use super::calls;

    pub(super) fn give_up_new_privileges() -> bool {
        rustix::thread::set_no_new_privs(true).is_ok()
    }

    /// All that Landlock can forbid here, and no exception.
    pub(super) fn give_up_files_and_network() -> bool {
        const NEWEST: ABI = ABI::V10;
        let restrict = || -> Result<_, RulesetError> {
            Ruleset::default()
                .handle_access(AccessFs::from_all(NEWEST))?
                .handle_access(AccessNet::from_all(NEWEST))?
                .scope(Scope::from_all(NEWEST))?
                .create()?
                .restrict_self()
        };
        restrict().is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
    }

    /// The filters of all threads.
    pub(super) fn give_up_system_calls() -> bool {
        calls::filters().is_ok_and(|filters| {
            filters
                .iter()
                .all(|filter| seccompiler::apply_filter_all_threads(filter).is_ok())
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    pub(super) fn give_up_new_privileges() -> bool {
        false
    }

    pub(super) fn give_up_files_and_network() -> bool {
        false
    }

    pub(super) fn give_up_system_calls() -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn landlock_alone_keeps_a_thread_from_files_and_network() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut open = File::create(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(TcpStream::connect(address).unwrap());
        // A thread of its own: the other tests go on without it.
        let locked = std::thread::spawn(move || {
            assert!(imp::give_up_new_privileges());
            if !imp::give_up_files_and_network() {
                return false;
            }
            assert!(File::open(&path).is_err());
            assert!(File::create(path.with_extension("new")).is_err());
            assert!(std::fs::remove_file(&path).is_err());
            assert!(TcpStream::connect(address).is_err());
            // What is open stays open.
            std::io::Write::write_all(&mut open, b"text").unwrap();
            true
        });
        let has_landlock = locked.join().unwrap();
        assert!(has_landlock || std::env::var_os("STORESCP_REQUIRE_ALL").is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn there_is_a_filter_for_this_machine() {
        let filters = calls::filters().unwrap();
        // BPF_MAXINSNS.
        assert!(filters
            .iter()
            .all(|filter| !filter.is_empty() && filter.len() <= 4096));
    }
}
