//! A port under continuous observation.

use crate::lab::Host;
use crate::probe::{PATIENCE, PortState};
use crate::wait::eventually;
use anyhow::{Result, ensure};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Tries of one port that run side by side: with [`HASTE`], one about every five milliseconds.
const THREADS: usize = 4;
/// A port that is to be silent is tried again after this time. An answer that comes later is
/// missed by one try, and seen by the next.
const HASTE: Duration = Duration::from_millis(20);

/// Tries a TCP port again and again, in the background; see the module's text.
pub struct Watch {
    what: String,
    wanted: PortState,
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<Vec<PortState>>>>,
}

impl Watch {
    /// Tries `to` from a host, which is to look like `wanted` all the time.
    pub fn on(from: &Host, to: SocketAddr, wanted: PortState) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tries = Arc::new(AtomicU64::new(0));
        let threads = (0..THREADS).map(|_| {
            let (from, stop, tries) = (from.clone(), Arc::clone(&stop), Arc::clone(&tries));
            thread::spawn(move || {
                from.inside(|| {
                    let mut surprises = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let patience = if wanted == PortState::Filtered { HASTE } else { PATIENCE };
                        let seen = crate::probe::try_tcp(to, patience)?.err();
                        let seen = seen.unwrap_or(PortState::Open);
                        tries.fetch_add(1, Ordering::Relaxed);
                        if seen != wanted {
                            surprises.push(seen);
                        }
                        if seen != PortState::Filtered {
                            // It took no time.
                            thread::sleep(HASTE);
                        }
                    }
                    Ok(surprises)
                })
            })
        });
        let what = format!("{to} as seen from {}", from.namespace());
        Self { what, wanted, threads: threads.collect(), stop, tries }
    }

    /// How often it was tried up to now.
    pub fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }

    /// Waits until it was tried so many times more.
    pub fn await_tries(&self, more: u64) -> Result<()> {
        let goal = self.tries() + more;
        eventually(&format!("{} is to be tried", self.what), || {
            ensure!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "{} can't be tried any more",
                self.what
            );
            Ok((self.tries() >= goal).then_some(()))
        })
    }

    /// Ends it; an error, if the port ever looked otherwise.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut surprises = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(seen) => surprises.extend(seen?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        ensure!(
            surprises.is_empty(),
            "{} was not always {}: of {} tries, {} saw something else: {:?} first",
            self.what,
            self.wanted,
            self.tries(),
            surprises.len(),
            surprises.first()
        );
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Family, Lab};
    use crate::probe::Listener;

    #[test]
    fn a_moment_in_which_a_port_looks_otherwise_is_seen() {
        let lab = Lab::new().unwrap();
        let _listener = Listener::tcp(lab.server(), 7000).unwrap();
        let to = lab.server().at(Family::V4, 7000);
        let watch = Watch::on(lab.other(), to, PortState::Open);
        watch.await_tries(10).unwrap();
        watch.finish().unwrap();

        lab.server().sh("iptables -A INPUT -p tcp --dport 7000 -j DROP").unwrap();
        let watch = Watch::on(lab.other(), to, PortState::Filtered);
        watch.await_tries(10).unwrap();
        lab.server().sh("iptables -D INPUT -p tcp --dport 7000 -j DROP").unwrap();
        // Those that are under way may have begun before; the next ones see it.
        watch.await_tries(2 * THREADS as u64).unwrap();
        lab.server().sh("iptables -A INPUT -p tcp --dport 7000 -j DROP").unwrap();
        watch.await_tries(10).unwrap();
        let error = watch.finish().unwrap_err().to_string();
        assert!(error.contains("not always filtered"), "{error}");
    }
}
