//! Floods, slow sinks, and sinks that panic.

use crate::net::Sender;
use crate::sample::{IPV4, UDP, ethernet, ipv4, udp};
use crate::{
    Event, Events, PATIENCE, PORT, named, next_mark, payload, settings, start, wait_for, with_veth,
};
use spa_server::capture::{
    Arrival, Capture, CaptureError, CaptureSettings, InterfaceState, Interfaces, Sink, filter,
};
use spa_server::frame::{Datagram, FrameError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn knock() -> Vec<u8> {
    marked(1)
}

fn marked(mark: u8) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &payload(mark))))
}

/// Counts datagrams, and takes its time with each.
struct Slow {
    seen: Arc<AtomicU64>,
    drops: Arc<AtomicU64>,
    each: Duration,
}

impl Sink for Slow {
    fn datagram(&mut self, _: Arrival, _: &Datagram<'_>) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.each);
    }

    fn malformed(&mut self, error: FrameError) {
        panic!("{error}");
    }

    fn settle(&mut self) {}

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
            drop(capture);
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
                drop(capture);
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
        drop(capture);
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
        drop(capture);
    });
}

#[test]
fn a_sink_that_panics_shows_in_the_health_and_stop_still_returns() {
    struct Panics(mpsc::Sender<()>);
    impl Sink for Panics {
        fn datagram(&mut self, _: Arrival, _: &Datagram<'_>) {
            self.0.send(()).unwrap();
            panic!("as the test wants it");
        }
        fn malformed(&mut self, _: FrameError) {}
        fn settle(&mut self) {}
        fn kernel_drops(&mut self, _: u64) {}
    }
    with_veth(|_| {
        let (sender, called) = mpsc::channel();
        let capture = Capture::start(&settings(named("near")), |_| Panics(sender.clone())).unwrap();
        assert_eq!(capture.health()[0].state, InterfaceState::Running);
        Sender::on("far").send(&knock());
        called.recv_timeout(PATIENCE).unwrap();
        wait_for(&capture, "stopped", |state| *state == InterfaceState::Stopped);
        drop(capture);
    });
}

/// Passes everything on, and is busy with the first datagram until it is let go.
struct Busy {
    events: Events,
    let_go: mpsc::Receiver<()>,
    seen: bool,
}

impl Sink for Busy {
    fn datagram(&mut self, arrival: Arrival, datagram: &Datagram<'_>) {
        self.events.datagram(arrival, datagram);
        if !std::mem::replace(&mut self.seen, true) {
            self.let_go.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn malformed(&mut self, error: FrameError) {
        self.events.malformed(error);
    }

    fn settle(&mut self) {}

    fn kernel_drops(&mut self, total: u64) {
        self.events.kernel_drops(total);
    }
}

/// Captures with these settings, and sends `frame` 20,000 times while nothing is read: ten times
/// what the buffer of 1 MiB holds. What comes in after that is left for `then`.
fn flood_a_busy_thread(
    settings: &CaptureSettings,
    frame: &[u8],
    then: impl FnOnce(&mut Sender, mpsc::Receiver<Event>),
) {
    let (sender, events) = mpsc::channel();
    let (let_go, hold) = mpsc::channel();
    let mut busy = Some(Busy { events: Events(sender), let_go: hold, seen: false });
    let capture = Capture::start(settings, |_| busy.take().unwrap()).unwrap();
    let mut far = Sender::on("far");
    far.send(&knock());
    assert_eq!(next_mark(&events), 1);
    for _ in 0..20_000 {
        far.send(frame);
    }
    far.send(&marked(2));
    let_go.send(()).unwrap();
    then(&mut far, events);
    drop(capture);
}

/// The filter is in the kernel: what it refuses takes no place in the buffer. With as many ports as
/// are allowed, too.
#[test]
fn a_flood_of_other_lengths_takes_no_place_in_the_buffer() {
    let noise = ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &[0; 64])));
    let many: Vec<u16> = (0..64).map(|more| PORT + more).collect();
    assert_eq!(many.len(), filter::MAX_PORTS);
    with_veth(|_| {
        for interfaces in [named("near"), Interfaces::All] {
            for ports in [vec![PORT], many.clone()] {
                let settings = CaptureSettings { ports, ..settings(interfaces.clone()) };
                flood_a_busy_thread(&settings, &noise, |_, events| {
                    assert_eq!(next_mark(&events), 2);
                });
            }
        }
    });
}

/// The control of the test above, and the count of the frames that the kernel drops.
#[test]
fn a_flood_of_knocks_fills_the_buffer_and_the_kernel_says_how_many_it_dropped() {
    with_veth(|_| {
        for interfaces in [named("near"), Interfaces::All] {
            flood_a_busy_thread(&settings(interfaces), &knock(), |far, events| {
                // The first was taken before.
                let (mut datagrams, mut dropped) = (0, 0);
                while datagrams + dropped < 20_001 {
                    match events.recv_timeout(PATIENCE).unwrap() {
                        Event::Datagram(..) => datagrams += 1,
                        Event::Drops(total) => dropped = total,
                        other @ Event::Malformed(_) => panic!("{other:?}"),
                    }
                }
                assert_eq!(datagrams + dropped, 20_001, "{dropped} dropped");
                assert!(dropped > 10_000);
                far.send(&marked(3));
                assert_eq!(next_mark(&events), 3);
            });
        }
    });
}

#[test]
fn more_ports_than_a_filter_takes_are_refused() {
    with_veth(|_| {
        let too_many = vec![PORT; filter::MAX_PORTS + 1];
        let with = |ports| CaptureSettings { ports, ..settings(named("near")) };
        let (sender, _events) = mpsc::channel();
        let refused = Capture::start(&with(too_many), |_| Events(sender.clone()));
        assert!(matches!(refused, Err(CaptureError::TooManyPorts(65))), "{refused:?}");
        let refused = Capture::start(&with(vec![]), |_| Events(sender.clone()));
        assert!(matches!(refused, Err(CaptureError::NoPorts)), "{refused:?}");
    });
}
