//! The pool with workers that are scripts.

use super::*;

/// Nothing comes of any task here.
struct Nowhere;

impl Sink for Nowhere {
    fn take(&mut self, _result: &[u8]) -> io::Result<()> {
        unreachable!()
    }

    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        unreachable!()
    }

    fn take_over(&mut self, _bytes: u64) -> io::Result<()> {
        unreachable!()
    }
}

fn attempt(command: &[&str]) -> String {
    let pool = Pool::new(PoolConfig {
        command: command.iter().map(ToString::to_string).collect(),
        workers: 1,
        threads: 1,
        timeout: 0.3,
    });
    let file = tempfile::tempfile().unwrap();
    let task = Task {
        source: "1.2.840.10008.1.2.5",
        target: "1.2.840.10008.1.2.1",
        max_decoded_bytes: 1,
        input: Input::File(file.as_fd(), 0),
    };
    let texts: Vec<String> = (0..2)
        .map(|_| pool.transcode(&task, &mut Nowhere).unwrap_err().to_string())
        .collect();
    assert_eq!(texts[0], texts[1]);
    assert_eq!(pool.live(), 0);
    texts[0].clone()
}

#[test]
fn a_worker_that_ends_hangs_or_does_not_start_costs_the_task_and_no_more() {
    // Each reads the job before it does what it does.
    assert_eq!(
        attempt(&["sh", "-c", "head -c1 >/dev/null; exit 3"]),
        "the decoder crashed (exit code 3)"
    );
    assert_eq!(
        attempt(&["sh", "-c", "head -c1 >/dev/null; kill -SEGV $$"]),
        "the decoder crashed (signal 11)"
    );
    let began = Instant::now();
    assert_eq!(attempt(&["sleep", "60"]), "no progress for 0 s");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(attempt(&["/nonexistent"]).starts_with("cannot start a worker: No such file"));
}
