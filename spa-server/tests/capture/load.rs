//! Floods, slow sinks, and sinks that panic.

use crate::net::{Sender, index};
use crate::sample::{IPV4, UDP, ethernet, ipv4, udp};
use crate::{PATIENCE, PORT, named, payload, settings, start, wait_for, with_veth};
use spa_server::capture::{Capture, InterfaceState, Interfaces, Sink};
use spa_server::frame::{Datagram, FrameError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn knock() -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &payload(1))))
}

/// Counts datagrams, and takes its time with each.
struct Slow {
    seen: Arc<AtomicU64>,
    drops: Arc<AtomicU64>,
    each: Duration,
}

impl Sink for Slow {
    fn datagram(&mut self, _: u32, _: &Datagram<'_>) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.each);
    }

    fn malformed(&mut self, error: FrameError) {
        panic!("{error}");
    }

    fn kernel_drops(&mut self, total: u64) {
        self.drops.store(total, Ordering::Relaxed);
    }
}

/// Sends knocks as fast as it can until `ends` is set, for 30 s at most.
fn flood(ends: &AtomicBool) {
    let frame = knock();
    let mut far = Sender::on("far");
    let end = Instant::now() + Duration::from_secs(30);
    while !ends.load(Ordering::Relaxed) && Instant::now() < end {
        for _ in 0..64 {
            far.send(&frame);
        }
    }
}

#[test]
fn stop_returns_quickly_under_a_flood_that_never_lets_the_buffer_run_empty() {
    with_veth(|_| {
        let (seen, drops) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        // 100 us each: the flood is faster.
        let each = Duration::from_micros(100);
        let capture = Capture::start(&settings(named("near")), |_| Slow {
            seen: Arc::clone(&seen),
            drops: Arc::clone(&drops),
            each,
        })
        .unwrap();
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| flood(&ends));
            // The flood is on, and more comes than is taken.
            let patience = Instant::now() + PATIENCE;
            while drops.load(Ordering::Relaxed) == 0 {
                assert!(Instant::now() < patience, "the kernel never dropped a frame");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(seen.load(Ordering::Relaxed) > 1000);
            let heartbeat = capture.health()[0].heartbeat;
            assert!(heartbeat.elapsed() < Duration::from_secs(5));

            let before = Instant::now();
            capture.stop();
            let took = before.elapsed();
            assert!(!flood.is_finished(), "the flood went on meanwhile");
            ends.store(true, Ordering::Relaxed);
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
    });
}

/// The thread would look at its flag by itself half a second after the start. Of several times the
/// shortest counts, for the machine may be busy.
#[test]
fn stop_wakes_a_thread_that_waits_for_frames() {
    with_veth(|_| {
        for interfaces in [named("near"), Interfaces::All] {
            let quickest = (0..5).map(|_| {
                let (capture, _events) = start(interfaces.clone()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                let before = Instant::now();
                capture.stop();
                before.elapsed()
            });
            let quickest = quickest.min().unwrap();
            assert!(quickest < Duration::from_millis(300), "{quickest:?}");
        }
    });
}

#[test]
fn stop_returns_while_the_interface_is_gone() {
    with_veth(|namespace| {
        let (capture, _events) = start(named("near")).unwrap();
        namespace.ip("link del near");
        wait_for(&capture, "noticed", crate::is_retrying);
        capture.stop();
    });
}

#[test]
fn the_heart_beats_while_nothing_arrives_and_while_the_interface_is_gone() {
    with_veth(|namespace| {
        let (capture, _events) = start(named("near")).unwrap();
        let beats = || {
            let last = capture.health()[0].heartbeat;
            let end = Instant::now() + PATIENCE;
            while capture.health()[0].heartbeat <= last {
                assert!(Instant::now() < end, "no heartbeat");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        beats();
        namespace.ip("link del near");
        wait_for(&capture, "noticed", crate::is_retrying);
        beats();
        beats();
        capture.stop();
    });
}

#[test]
fn a_sink_that_panics_shows_in_the_health_and_stop_still_returns() {
    struct Panics(mpsc::Sender<()>);
    impl Sink for Panics {
        fn datagram(&mut self, _: u32, _: &Datagram<'_>) {
            self.0.send(()).unwrap();
            panic!("as the test wants it");
        }
        fn malformed(&mut self, _: FrameError) {}
        fn kernel_drops(&mut self, _: u64) {}
    }
    with_veth(|_| {
        let (sender, called) = mpsc::channel();
        let capture = Capture::start(&settings(named("near")), |_| Panics(sender.clone())).unwrap();
        assert_eq!(capture.health()[0].state, InterfaceState::Running);
        Sender::on("far").send(&knock());
        called.recv_timeout(PATIENCE).unwrap();
        wait_for(&capture, "stopped", |state| *state == InterfaceState::Stopped);
        capture.stop();
    });
}

/// The kernel counts what its filter refused as not received.
#[test]
fn a_flood_of_other_lengths_never_reaches_the_daemon() {
    with_veth(|_| {
        let (capture, events) = start(named("near")).unwrap();
        let mut far = Sender::on("far");
        let noise = ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &[0; 64])));
        // More than the buffer of 1 MiB holds: were they in it, the knock would be dropped.
        for _ in 0..20_000 {
            far.send(&noise);
        }
        far.send(&knock());
        assert_eq!(crate::next_mark(&events), 1);
        capture.stop();
        assert!(events.recv_timeout(PATIENCE).is_err(), "neither a drop nor a datagram");
        assert_ne!(index("near"), 0);
    });
}
