//! Waiting: until something holds, or a deadline that only a broken program reaches; and for
//! several things side by side.

use anyhow::{Result, bail};
use std::io::{self, ErrorKind};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// How long a test waits for what takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` until it has an answer, at most for [`DEADLINE`]; `what` is for the error.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    eventually_within(DEADLINE, what, probe)
}

/// Asks `probe` until it has an answer, at most for `deadline`; `what` is for the error.
///
/// An error of the probe ends the waiting at once: it is for what can't get better.
pub fn eventually_within<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s in vain: {what}", deadline.as_secs());
        }
        sleep(PAUSE);
    }
}

/// Reads again as often as it was interrupted: a read that has a time limit ends so when the machine
/// was frozen for a moment (signal(7)), or a child ends elsewhere in this process.
pub(crate) fn uninterrupted<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Does `work` with all items side by side, and gives back what came of each, in their order.
pub fn at_once<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(|| work(item))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
