//! Threads for what nobody waits for: they give way to those by whom knocks open.
//!
//! Only for that. What the main loop waits for, or does with something held that a grant needs, must
//! not run here: noise may take up the processor.

use std::io;
use std::thread::{Builder, JoinHandle};

/// The niceness of these threads: on a processor that noise takes up, they still get a tenth of it.
const NICENESS: i32 = 10;

/// Does `work` on a thread of its own.
pub(crate) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        work()
    })
}

/// On Linux a priority is that of the calling thread alone (setpriority(2)).
fn give_way() {
    let given = rustix::process::getpriority_process(None)
        .and_then(|now| rustix::process::setpriority_process(None, now.max(NICENESS)));
    if let Err(error) = given {
        tracing::debug!("a thread keeps its priority: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn such_a_thread_gives_way_and_no_other_does() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let there = begin("background", niceness).unwrap().join().unwrap();
        assert_eq!(there, before.max(NICENESS));
        assert_eq!(niceness(), before);
    }
}
