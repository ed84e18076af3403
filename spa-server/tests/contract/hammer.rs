//! Somebody who tries all the time: sees gaps that no single probe would.

use crate::lab::{BOTH, Lab};
use crate::probe::LONG;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const BETWEEN: Duration = Duration::from_micros(50);
/// How many make sure that some came, or none.
const MANY: usize = 100;

/// Datagrams to a port of the server's from one peer, over both families.
///
/// Each is the first of its flow as long as none of them gets through, so it begins when the port
/// is hidden; and what gets through is seen to, for the others follow it.
pub(crate) struct Hammer<'a> {
    lab: &'a Lab,
    port: u16,
    peers: [SocketAddr; 2],
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Hammer<'a> {
    pub(crate) fn start(lab: &'a Lab, who: [&str; 2], port: u16) -> Self {
        let flows = BOTH.map(|family| lab.flow(who, family, port));
        let peers = [flows[0].near, flows[1].near];
        let (sent, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for flow in &flows {
                    flow.send(b"let me in");
                }
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(BETWEEN);
            }
        });
        let hammer = Self { lab, port, peers, sent, stop, thread: Some(thread) };
        hammer.sends_on();
        hammer
    }

    /// How many have come, over both families.
    pub(crate) fn received(&self) -> usize {
        self.counts().iter().sum()
    }

    fn counts(&self) -> [usize; 2] {
        self.peers.map(|peer| self.lab.at_server.datagrams(self.port, peer))
    }

    /// Waits until it has sent many more.
    pub(crate) fn sends_on(&self) {
        let before = self.sent.load(Ordering::Relaxed);
        wait("datagrams sent", || self.sent.load(Ordering::Relaxed) > before + MANY);
    }

    /// Waits until many more have come, over each family.
    pub(crate) fn passes(&self) {
        let before = self.counts();
        let more = |family: &usize| self.counts()[*family] > before[*family] + MANY;
        wait("datagrams received", || BOTH.iter().all(more));
    }
}

impl Drop for Hammer<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "still not: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
