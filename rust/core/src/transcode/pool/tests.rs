//! The pool with workers that are scripts.

use std::os::fd::AsFd as _;
use std::time::Instant;

use super::*;

/// Takes small results, which are written by whoever made them.
struct Taker<'p> {
    file: std::fs::File,
    taken: Vec<usize>,
    refuses: bool,
    writing: Option<Writing<'p>>,
}

impl Taker<'_> {
    fn new() -> Self {
        Self {
            file: tempfile::tempfile().unwrap(),
            taken: Vec::new(),
            refuses: false,
            writing: None,
        }
    }
}

impl<'p> Sink<'p> for Taker<'p> {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        Ok((self.file.as_fd(), 0))
    }

    fn has_all_written(&self) -> bool {
        true
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, result: &[u8]) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.taken.push(result.len());
        Ok(())
    }

    fn take_later(&mut self, writing: Writing<'p>) -> Result<(), TranscodeError> {
        self.writing = Some(writing);
        Ok(())
    }

    fn take_over(&mut self, _bytes: u64) -> io::Result<()> {
        unreachable!()
    }
}

fn pool(command: &[&str]) -> Pool {
    Pool::new(PoolConfig {
        command: command.iter().map(ToString::to_string).collect(),
        workers: 1,
        threads: 1,
        timeout: 0.3,
    })
}

fn task(file: &std::fs::File) -> Task<'_> {
    Task {
        source: "1.2.840.10008.1.2.5",
        target: "1.2.840.10008.1.2.1",
        max_decoded_bytes: 1,
        input: Input::File(file.as_fd(), 0),
    }
}

fn attempt(command: &[&str]) -> String {
    let pool = pool(command);
    let file = tempfile::tempfile().unwrap();
    let task = task(&file);
    let texts: Vec<String> = (0..2)
        .map(|_| pool.transcode(&task, &mut Taker::new()).unwrap_err().to_string())
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

/// A worker that reads a request and its go, says that it is done, and then what else.
fn done_then(end: &str) -> String {
    let done = r#"{"Done":{"frames":1,"bytes":3,"in_memory":true}}"#;
    format!("while [ \"$(head -c1)$(head -c1)\" = '{{g' ]; do printf '{done}' >&0; {end}; done")
}

#[test]
fn what_a_worker_still_writes_is_waited_for_before_its_next_job() {
    let file = tempfile::tempfile().unwrap();
    let script = done_then("sleep 0.05; printf '\"Written\"' >&0");
    let pool = pool(&["sh", "-c", &script]);
    let mut sink = Taker::new();
    for count in 1..3 {
        let report = pool.transcode(&task(&file), &mut sink).unwrap();
        assert_eq!(
            (report, sink.taken.len()),
            (Report { frames: 1, bytes: 3 }, count)
        );
        sink.writing.take().unwrap().finish().unwrap();
    }
    // Nobody asks whether it was written, or it is not even taken: the answer is not left over.
    pool.transcode(&task(&file), &mut sink).unwrap();
    drop(sink.writing.take());
    sink.refuses = true;
    let refused = pool.transcode(&task(&file), &mut sink).unwrap_err();
    assert_eq!(refused.code(), "io");
    sink.refuses = false;
    pool.transcode(&task(&file), &mut sink).unwrap();
    sink.writing.take().unwrap().finish().unwrap();
    assert_eq!((sink.taken, pool.live()), (vec![3; 4], 1));
}

#[test]
fn a_worker_that_ends_or_talks_nonsense_while_it_writes_is_found_out() {
    let file = tempfile::tempfile().unwrap();
    let failed = r#"{"Failed":{"code":"io","text":"no space"}}"#;
    for (end, text, live) in [
        ("exit 3", "the decoder crashed (exit code 3)", 0),
        ("sleep 60", "no progress for 0 s", 0),
        ("printf nonsense >&0", "expected value", 0),
        (&format!("printf '{failed}' >&0"), "no space", 1),
    ] {
        let pool = pool(&["sh", "-c", &done_then(end)]);
        let mut sink = Taker::new();
        pool.transcode(&task(&file), &mut sink).unwrap();
        let error = sink.writing.take().unwrap().finish().unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(pool.live(), live);
    }
}
