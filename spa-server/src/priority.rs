//! Who goes first where there are more threads than processors: by whom knocks come in, then all the
//! others, then those for what nobody waits for.
//!
//! On Linux a priority is that of the calling thread alone, and whatever it starts inherits it
//! (setpriority(2)). It counts among the threads of one control group, if processors are shared out by
//! these, or of one session, if the kernel groups by that (sched(7), autogroup); else among all. Raising one takes RLIMIT_NICE or CAP_SYS_NICE; without, all goes on as before,
//! and a knock waits its turn, some milliseconds on a busy machine.

use rustix::process::{getpriority_process, setpriority_process};
use std::cell::Cell;
use std::io;
use std::thread::{Builder, JoinHandle};

/// How much nicer than the others a thread is that nobody waits for: on a processor that noise takes
/// up, by a thread that reads it, it still gets a tenth of it.
const BACKGROUND: i32 = 5;
/// How much less nice a thread is that reads knocks. It is enough for the kernel to let it go first
/// when it wakes up; a flood of what only this process can judge leaves others a quarter of a
/// processor.
const CAPTURE: i32 = -5;

thread_local! {
    /// The niceness that this thread had before it was hurried.
    static USUAL: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Does `work` on a thread of its own, which gives way to all others. What the main loop waits for, or
/// does with something held that a grant needs, must not run there: noise may take up the processor.
pub(crate) fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = get().and_then(|now| set(now.max(BACKGROUND))) {
            tracing::debug!("a thread keeps its priority: {error}");
        }
        work()
    })
}

/// From now on this thread goes before others.
pub(crate) fn hurry() {
    let hurried = get().and_then(|now| {
        set(now.saturating_add(CAPTURE))?;
        USUAL.set(Some(now));
        Ok(())
    });
    if let Err(error) = hurried {
        tracing::debug!("a thread that reads knocks has no priority: {error}");
    }
}

/// Starts something that is not to go before others, whatever this thread does.
pub(crate) fn unhurried<T>(start: impl FnOnce() -> T) -> T {
    let Some(usual) = USUAL.get() else { return start() };
    let _hurried = get().and_then(|hurried| set(usual).map(|()| Hurried(hurried)));
    start()
}

/// A niceness that comes back, also after a panic.
struct Hurried(i32);

impl Drop for Hurried {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = set(self.0);
    }
}

fn get() -> io::Result<i32> {
    Ok(getpriority_process(None)?)
}

fn set(niceness: i32) -> io::Result<()> {
    Ok(setpriority_process(None, niceness)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_the_background_gives_way_and_no_other_does() {
        let before = get().unwrap();
        let there = in_background("background", || get().unwrap()).unwrap().join().unwrap();
        assert_eq!(there, before.max(BACKGROUND));
        assert_eq!(get().unwrap(), before);
    }

    /// Tests run as root.
    #[test]
    fn a_hurried_thread_goes_first_and_what_it_starts_does_not() {
        let before = get().unwrap();
        let there = std::thread::spawn(|| {
            hurry();
            let started = unhurried(|| std::thread::spawn(|| get().unwrap()));
            (get().unwrap(), started.join().unwrap())
        });
        assert_eq!(there.join().unwrap(), (before + CAPTURE, before));
        assert_eq!(get().unwrap(), before);
    }
}
