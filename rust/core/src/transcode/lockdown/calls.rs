//! The system calls of a process that decodes images: those that it needs, and those that are answered with an error.
//! Any other ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// On descriptors that are open, on memory of the process, and on its own threads.
const NEEDED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Libraries ask for these, and go on where they get an error: they read settings, or look for a module of Python.
const REFUSED: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_ioctl,
    libc::SYS_uname,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
];

/// Numbers of the kernel's headers, in the form of a filter.
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const SHARED: u64 = libc::MAP_SHARED as u64;
const ANONYMOUS: u64 = libc::MAP_ANONYMOUS as u64;
/// `RLIMIT_DATA` does not count a stack that grows.
const GROWS: u64 = libc::MAP_GROWSDOWN as u64;
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
/// A new user namespace has rights that the process has not.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
const NAME_A_THREAD: u64 = libc::PR_SET_NAME as u64;
/// Asked for with each filter.
const NO_NEW_PRIVILEGES: u64 = libc::PR_SET_NO_NEW_PRIVS as u64;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// All of them apply to each system call, and the strictest answer counts. To be installed in this order: behind the last one no
/// filter can be.
pub(super) fn filters() -> Result<[BpfProgram; 3], BackendError> {
    let allowed = filter(allowed()?, SeccompAction::KillProcess, SeccompAction::Allow)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let refused = filter(refused_calls()?, SeccompAction::Allow, refused)?;
    // Its flags are in memory, where no filter looks. glibc takes clone(2) where this is not there.
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let unknown = filter(
        always(&[libc::SYS_clone3]).collect(),
        SeccompAction::Allow,
        unknown,
    )?;
    Ok([unknown, refused, allowed])
}

fn filter(rules: Rules, otherwise: SeccompAction, then: SeccompAction) -> Result<BpfProgram, BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, then, machine)?.try_into()
}

fn always(calls: &[i64]) -> impl Iterator<Item = (i64, Vec<SeccompRule>)> + '_ {
    calls.iter().map(|&call| (call, Vec::new()))
}

/// What does not end the process: what is needed, and what the other filters refuse.
fn allowed() -> Result<Rules, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};

    let mut rules: Rules = always(NEEDED)
        .chain(always(REFUSED))
        .chain(always(&[libc::SYS_clone3, libc::SYS_prctl]))
        .collect();
    let own = u64::from(std::process::id());
    let commands = [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
    let asks = |&command: &i32| rule(vec![argument(1, Eq, command.unsigned_abs().into())?]);
    let some = [
        // Memory that counts against the limit of the process, and files that were handed to it.
        (
            libc::SYS_mmap,
            vec![
                rule(vec![not_executable()?, argument(3, MaskedEq(SHARED | GROWS), 0)?])?,
                rule(vec![
                    not_executable()?,
                    argument(3, MaskedEq(SHARED | GROWS | ANONYMOUS), SHARED)?,
                ])?,
            ],
        ),
        (libc::SYS_mprotect, vec![rule(vec![not_executable()?])?]),
        (
            libc::SYS_clone,
            vec![rule(vec![argument(0, MaskedEq(THREAD | NAMESPACES), THREAD)?])?],
        ),
        // abort(3) of a thread.
        (libc::SYS_tgkill, vec![rule(vec![argument(0, Eq, own)?])?]),
        // Others could have signals sent to another process (F_SETOWN).
        (
            libc::SYS_fcntl,
            commands.iter().map(asks).collect::<Result<_, _>>()?,
        ),
        // This thread, and not another process.
        (
            libc::SYS_sched_setaffinity,
            vec![rule(vec![argument(0, Eq, 0)?])?],
        ),
        (
            libc::SYS_prlimit64,
            vec![rule(vec![argument(0, Eq, 0)?, whole_argument(2, 0)?])?],
        ),
    ];
    rules.extend(some);
    Ok(rules)
}

fn refused_calls() -> Result<Rules, BackendError> {
    let mut rules: Rules = always(REFUSED).collect();
    let others = [NAME_A_THREAD, NO_NEW_PRIVILEGES]
        .map(|option| argument(0, SeccompCmpOp::Ne, option))
        .into_iter()
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_prctl, vec![rule(others)?]);
    Ok(rules)
}

fn not_executable() -> Result<SeccompCondition, BackendError> {
    argument(2, SeccompCmpOp::MaskedEq(EXECUTABLE), 0)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions)
}

/// Of 32 bits: the kernel does not look at the others.
fn argument(number: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, compare, value)
}

fn whole_argument(number: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}
