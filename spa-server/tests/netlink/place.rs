//! A network namespace of a test's own.

use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// A network namespace in which only loopback is up; it goes with this value.
pub(crate) struct Place(String);

impl Place {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = Self(format!("spanl{}n{count}", std::process::id()));
        run("ip", &["netns", "add", &place.0], "");
        place.on("ip link set lo up");
        place
    }

    /// Runs a command in the namespace; it must succeed.
    pub(crate) fn on(&self, command: &str) -> String {
        self.feed(command, "")
    }

    /// Runs a command in the namespace, with this input; it must succeed.
    pub(crate) fn feed(&self, command: &str, input: &str) -> String {
        let words: Vec<_> =
            ["netns", "exec", &self.0].into_iter().chain(command.split(' ')).collect();
        run("ip", &words, input)
    }

    /// Runs code on a thread that has entered the namespace. What it opens stays there.
    pub(crate) fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.0);
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                    code()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// What this thread has cost so far, the kernel's work for it included: what else the machine does
/// doesn't count.
pub(crate) fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, words: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
