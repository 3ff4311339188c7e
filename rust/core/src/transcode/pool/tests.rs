//! The pool with workers that are scripts.

use std::os::fd::AsFd as _;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::{scope, yield_now, ScopedJoinHandle};
use std::time::Instant;

use super::*;

/// Takes small results, and has a file for large ones.
struct Taker {
    file: std::fs::File,
    taken: Vec<usize>,
    lent: usize,
    refuses: bool,
}

impl Taker {
    fn new() -> Self {
        Self {
            file: tempfile::tempfile().unwrap(),
            taken: Vec::new(),
            lent: 0,
            refuses: false,
        }
    }

    fn refusing() -> Self {
        Self {
            refuses: true,
            ..Self::new()
        }
    }

    fn admit(&self) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Sink for Taker {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        self.admit()?;
        self.lent += 1;
        Ok((self.file.as_fd(), 0))
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, result: &[u8]) -> io::Result<()> {
        self.admit()?;
        self.taken.push(result.len());
        Ok(())
    }

    fn take_over(&mut self, _bytes: u64) -> io::Result<()> {
        Ok(())
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
    assert_eq!(
        attempt(&["sh", "-c", "head -c1 >/dev/null; kill -SYS $$"]),
        "the decoder made a system call that is forbidden to it (signal 31)"
    );
    let began = Instant::now();
    assert_eq!(attempt(&["sleep", "60"]), "no progress for 0 s");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(attempt(&["/nonexistent"]).starts_with("cannot start a worker: No such file"));
}

/// A worker that reads each request and its go, and then says something.
fn saying(answer: &str) -> Pool {
    pool(&["sh", "-c", &forever(answer)])
}

fn forever(answer: &str) -> String {
    format!("while [ \"$(head -c1)$(head -c1)\" = '{{g' ]; do {answer}; done")
}

fn say(reply: &str) -> String {
    format!("printf '{reply}' >&0")
}

fn done(bytes: usize, in_memory: bool) -> String {
    say(&format!(
        r#"{{"Done":{{"frames":1,"bytes":{bytes},"in_memory":{in_memory}}}}}"#
    ))
}

#[test]
fn a_small_result_comes_in_memory_and_nobody_is_lent_a_file() {
    let file = tempfile::tempfile().unwrap();
    let pool = saying(&done(RESULT_BYTES, true));
    let mut sink = Taker::new();
    for count in 1..3 {
        let report = pool.transcode(&task(&file), &mut sink).unwrap();
        assert_eq!(report.bytes, RESULT_BYTES as u64);
        assert_eq!(sink.taken, vec![RESULT_BYTES; count]);
    }
    // What is not taken is no fault of the worker.
    let refused = pool.transcode(&task(&file), &mut Taker::refusing()).unwrap_err();
    assert_eq!((refused.code(), pool.live()), ("io", 1));
    pool.transcode(&task(&file), &mut sink).unwrap();
    assert_eq!((sink.lent, pool.live()), (0, 1));
}

#[test]
fn a_file_is_lent_to_who_asks_for_one() {
    let file = tempfile::tempfile().unwrap();
    let too_large = say(r#""TooLarge""#);
    let pool = saying(&format!(
        "{too_large}; [ \"$(head -c1)\" = '{{' ] || exit 3; {}",
        done(5, false)
    ));
    let mut sink = Taker::new();
    let report = pool.transcode(&task(&file), &mut sink).unwrap();
    assert_eq!((report.bytes, sink.lent, sink.taken.len()), (5, 1, 0));
    // It would wait for ever.
    let refused = pool.transcode(&task(&file), &mut Taker::refusing()).unwrap_err();
    assert_eq!((refused.code(), pool.live()), ("io", 0));
}

#[test]
fn a_worker_that_lies_is_replaced() {
    let file = tempfile::tempfile().unwrap();
    let untrue = "the result is not what the worker says";
    let too_large = say(r#""TooLarge""#);
    for (answer, text) in [
        (done(RESULT_BYTES + 1, true), untrue),
        (done(3, false), "an answer out of turn"),
        (say("nonsense"), "expected"),
        (
            say(r#"{"Failed":{"code":"secret","text":"secret"}}"#),
            "in a way that there is not",
        ),
        (
            say(r#"{"Failed":{"code":"io","text":""}}"#),
            "in a way that there is not",
        ),
        (format!("{too_large}; {too_large}"), "an answer out of turn"),
        (format!("{too_large}; exit 3"), "(exit code 3)"),
    ] {
        let pool = saying(&answer);
        let error = pool.transcode(&task(&file), &mut Taker::new()).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!((error.code(), pool.live()), ("worker", 0));
    }
}

/// A sink with a bug.
struct Panics;

impl Sink for Panics {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, _result: &[u8]) -> io::Result<()> {
        panic!("a bug");
    }

    fn take_over(&mut self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn a_bug_costs_one_worker_and_no_place() {
    let file = tempfile::tempfile().unwrap();
    let pool = saying(&done(3, true));
    for _ in 0..5 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.transcode(&task(&file), &mut Panics)
        }));
        assert!(outcome.is_err());
        assert_eq!(pool.live(), 0);
    }
}

#[test]
fn what_a_worker_tells_is_short_and_printable() {
    let text = format!("a\n\u{1b}[2J{}", "x".repeat(2_000));
    let error = TranscodeError::reported("codec", &text, false).unwrap();
    assert_eq!(error.code(), "codec");
    let told = error.to_string();
    assert!(told.len() < 320 && told.starts_with(r"a\n\u{1b}[2Jxxx"), "{told}");
}

#[test]
fn what_the_first_worker_tells_of_its_protections_is_remembered() {
    let file = tempfile::tempfile().unwrap();
    let started = say(r#"{"Started":{"missing":["Landlock"]}}"#);
    let pool = saying(&format!("{started}; {}", done(0, true)));
    assert_eq!(pool.missing_protections(), None);
    pool.transcode(&task(&file), &mut Taker::new()).unwrap();
    assert_eq!(pool.missing_protections(), Some(&[Protection::Landlock][..]));
}

#[test]
fn a_worker_does_not_learn_the_environment() {
    let ours = std::env::vars().filter(|(name, _)| name.starts_with("CARGO"));
    assert!(ours.count() > 0 && std::env::var_os("HOME").is_some());
    let theirs =
        "head -c1 >/dev/null; env | grep -q ^CARGO && exit 4; env | grep -q ^HOME= && exit 5; exit 6";
    assert_eq!(
        attempt(&["sh", "-c", theirs]),
        "the decoder crashed (exit code 5)"
    );
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
struct Holder {
    taker: Taker,
    goes_on: Option<Receiver<()>>,
    served: Sender<u32>,
    number: u32,
}

impl Sink for Holder {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        self.taker.file()
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
        let script = forever(&done(3, true));
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
