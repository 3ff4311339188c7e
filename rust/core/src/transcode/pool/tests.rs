//! The pool with workers that are scripts.

use std::os::fd::AsFd as _;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::{scope, yield_now, ScopedJoinHandle};
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
    Pool::new(config(command))
}

fn config(command: &[&str]) -> PoolConfig {
    PoolConfig {
        command: command.iter().map(ToString::to_string).collect(),
        workers: 1,
        threads: 1,
        timeout: 0.3,
        instance_timeout: 60.0,
        max_wait: 20.0,
    }
}

fn task(file: &std::fs::File) -> Task<'_> {
    Task {
        source: "1.2.840.10008.1.2.5",
        target: "1.2.840.10008.1.2.1",
        max_decoded_bytes: 1,
        input: Input::File(file.as_fd(), 0),
        stop: None,
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

#[test]
fn a_worker_that_makes_frame_after_frame_is_ended_when_the_instance_took_too_long() {
    let endless = "head -c1 >/dev/null; while printf '\"Progress\"' >&0; do sleep 0.02; done";
    let pool = Pool::new(PoolConfig {
        instance_timeout: 1.0,
        ..config(&["sh", "-c", endless])
    });
    let file = tempfile::tempfile().unwrap();
    let began = Instant::now();
    let error = pool.transcode(&task(&file), &mut Taker::new()).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("worker", "not finished within 1 s")
    );
    // Its timeout of 0.3 s without a frame did not end it.
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(pool.live(), 0);
}

/// Keeps its worker until it is told to go on, and tells when it was served.
struct Holder<'p> {
    taker: Taker<'p>,
    goes_on: Option<Receiver<()>>,
    served: Sender<u32>,
    number: u32,
}

impl<'p> Sink<'p> for Holder<'p> {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        self.taker.file()
    }

    fn has_all_written(&self) -> bool {
        true
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        self.served.send(self.number).unwrap();
        if let Some(goes_on) = &self.goes_on {
            goes_on.recv().unwrap();
        }
        Ok(())
    }

    fn take(&mut self, result: &[u8]) -> io::Result<()> {
        self.taker.take(result)
    }

    fn take_later(&mut self, writing: Writing<'p>) -> Result<(), TranscodeError> {
        writing.finish()
    }

    fn take_over(&mut self, bytes: u64) -> io::Result<()> {
        self.taker.take_over(bytes)
    }
}

type Asked<'s> = ScopedJoinHandle<'s, Result<Report, TranscodeError>>;

/// A pool of one worker, and what its tests share.
struct Queue {
    pool: Pool,
    served: Sender<u32>,
    stop: AtomicBool,
}

impl Queue {
    /// It, and who was served.
    fn new(max_wait: f64) -> (Self, Receiver<u32>) {
        let script = done_then("printf '\"Written\"' >&0");
        let (served, when_served) = channel();
        let queue = Self {
            pool: Pool::new(PoolConfig {
                timeout: 20.0,
                max_wait,
                ..config(&["sh", "-c", &script])
            }),
            served,
            stop: AtomicBool::new(false),
        };
        (queue, when_served)
    }

    fn ask<'s>(
        &'s self,
        scope: &'s std::thread::Scope<'s, '_>,
        number: u32,
        goes_on: Option<Receiver<()>>,
        stop: Option<&'s AtomicBool>,
    ) -> Asked<'s> {
        let served = self.served.clone();
        scope.spawn(move || {
            let file = tempfile::tempfile().unwrap();
            let mut sink = Holder {
                taker: Taker::new(),
                goes_on,
                served,
                number,
            };
            let task = Task { stop, ..task(&file) };
            self.pool.transcode(&task, &mut sink)
        })
    }

    fn until_waiting(&self, count: usize) {
        while self.pool.lock().waiting.len() != count {
            yield_now();
        }
    }
}

#[test]
fn an_instance_that_waited_too_long_gives_up_and_leaves_the_queue() {
    let (queue, served) = Queue::new(0.2);
    scope(|scope| {
        let (go_on, goes_on) = channel();
        let holder = queue.ask(scope, 1, Some(goes_on), None);
        assert_eq!(served.recv(), Ok(1));
        let began = Instant::now();
        let error = queue.ask(scope, 2, None, None).join().unwrap().unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("busy", "no process was free within 0.2 s")
        );
        assert!(began.elapsed() >= Duration::from_millis(200));
        queue.until_waiting(0);
        go_on.send(()).unwrap();
        holder.join().unwrap().unwrap();
        queue.ask(scope, 3, None, None).join().unwrap().unwrap();
        assert_eq!(served.try_iter().collect::<Vec<_>>(), [3]);
    });
}

#[test]
fn those_who_wait_are_served_in_the_order_of_asking_also_when_one_of_them_leaves() {
    let (queue, served) = Queue::new(20.0);
    scope(|scope| {
        let (go_on, goes_on) = channel();
        let holder = queue.ask(scope, 1, Some(goes_on), None);
        assert_eq!(served.recv(), Ok(1));
        let mut asked: Vec<Asked<'_>> = Vec::new();
        for number in 2..7 {
            // The first of those who wait, and one in their midst.
            let stop = matches!(number, 2 | 4).then_some(&queue.stop);
            asked.push(queue.ask(scope, number, None, stop));
            queue.until_waiting(asked.len());
        }
        queue.stop.store(true, Ordering::Release);
        queue.pool.look_up();
        queue.until_waiting(3);
        go_on.send(()).unwrap();
        let outcomes: Vec<_> = asked.into_iter().map(|one| one.join().unwrap()).collect();
        let codes: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map_or_else(TranscodeError::code, |_| "Success"))
            .collect();
        assert_eq!(codes, ["io", "Success", "io", "Success", "Success"]);
        holder.join().unwrap().unwrap();
        assert_eq!(served.try_iter().collect::<Vec<_>>(), [3, 5, 6]);
        assert_eq!(queue.pool.live(), 1);
    });
}
