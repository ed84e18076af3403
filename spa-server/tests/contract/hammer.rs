//! Somebody who tries all the time: sees gaps that no single probe would.

use crate::lab::{BOTH, Lab, SERVER, at};
use crate::probe::LONG;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The ports that it sends from, each one once: every datagram is the first of its flow.
const PORTS: std::ops::Range<u16> = 2000..62000;
const BETWEEN: Duration = Duration::from_millis(2);
/// How many make sure that some came, or none.
const MANY: usize = 40;

/// Datagrams to a port of the server's from one peer, over both families.
pub(crate) struct Hammer<'a> {
    lab: &'a Lab,
    port: u16,
    who: [IpAddr; 2],
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Hammer<'a> {
    pub(crate) fn start(lab: &'a Lab, who: [&str; 2], port: u16) -> Self {
        let who = who.map(|address| address.parse().unwrap());
        let (sent, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let space = lab.clients.clone();
        let thread = thread::spawn(move || {
            space.enter();
            for from in PORTS {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                for family in BOTH {
                    // One that is in use is left out.
                    if let Ok(socket) = UdpSocket::bind((who[family], from)) {
                        socket.send_to(b"let me in", at(SERVER[family], port)).unwrap();
                    }
                }
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(BETWEEN);
            }
        });
        Self { lab, port, who, sent, stop, thread: Some(thread) }
    }

    /// How many have come, over both families.
    pub(crate) fn received(&self) -> usize {
        self.counts().iter().sum()
    }

    fn counts(&self) -> [usize; 2] {
        self.who.map(|peer| self.lab.at_server.datagrams_from(self.port, peer))
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
