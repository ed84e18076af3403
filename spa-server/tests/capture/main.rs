//! The capture on real interfaces, in network namespaces of its own. Needs root, and fails
//! without it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "all of this is a test, the functions without #[test] too"
)]

mod net;
#[path = "../../src/frame/sample.rs"]
#[expect(dead_code, reason = "the tests inside of the crate use the rest")]
mod sample;

mod interfaces;
mod links;
mod load;
mod prefilter;

use net::Namespace;
use spa_server::capture::{
    Arrival, Capture, CaptureError, CaptureSettings, InterfaceState, Interfaces, Sink,
};
use spa_server::clock::Now;
use spa_server::frame::{Datagram, FrameError};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

const PORT: u16 = 62_201;
const OTHER_PORT: u16 = 443;
const LENGTH: usize = 216;
/// Long enough for a busy machine; nothing waits for it to end when all goes well.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Interface index, source, destination port, payload.
    Datagram(u32, IpAddr, u16, Vec<u8>),
    Malformed(FrameError),
    Drops(u64),
}

struct Events(Sender<Event>);

impl Sink for Events {
    fn datagram(&mut self, Arrival { interface, at }: Arrival, datagram: &Datagram<'_>) {
        let waited = at.distance(Now::realtime());
        assert!(waited < PATIENCE, "captured {waited:?} ago, or ahead of time");
        let Datagram { source, destination_port, payload, .. } = *datagram;
        self.send(Event::Datagram(interface, source, destination_port, payload.to_vec()));
    }

    fn malformed(&mut self, error: FrameError) {
        self.send(Event::Malformed(error));
    }

    fn settle(&mut self) {}

    fn kernel_drops(&mut self, total: u64) {
        self.send(Event::Drops(total));
    }
}

impl Events {
    /// The test may have ended already.
    fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

fn settings(interfaces: Interfaces) -> CaptureSettings {
    CaptureSettings {
        interfaces,
        ports: vec![PORT, OTHER_PORT],
        packet_length: LENGTH,
        buffer_bytes: 1024 * 1024,
        kernel_filter: None,
    }
}

fn named(name: &str) -> Interfaces {
    Interfaces::Named(vec![name.to_owned()])
}

fn start(interfaces: Interfaces) -> Result<(Capture, Receiver<Event>), CaptureError> {
    let (sender, receiver) = mpsc::channel();
    let capture = Capture::start(&settings(interfaces), |_| Events(sender.clone()))?;
    Ok((capture, receiver))
}

/// A payload that can be told from others.
fn payload(mark: u8) -> Vec<u8> {
    vec![mark; LENGTH]
}

/// The mark of the next datagram, whatever its addresses.
fn next_mark(events: &Receiver<Event>) -> u8 {
    match events.recv_timeout(PATIENCE) {
        Ok(Event::Datagram(_, _, _, payload)) => payload[0],
        other => panic!("a datagram was expected, not {other:?}"),
    }
}

fn wait_for(capture: &Capture, what: &str, wanted: impl Fn(&InterfaceState) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !wanted(&capture.health()[0].state) {
        assert!(Instant::now() < end, "never {what}: {:?}", capture.health());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_running(state: &InterfaceState) -> bool {
    *state == InterfaceState::Running
}

fn is_retrying(state: &InterfaceState) -> bool {
    matches!(state, InterfaceState::Retrying { .. })
}

/// A namespace with a pair of virtual Ethernet interfaces: what is sent on `far` arrives on
/// `near`.
fn with_veth(test: impl FnOnce(&Namespace) + Send) {
    let namespace = Namespace::new();
    add_veth(&namespace);
    namespace.inside(|| test(&namespace));
}

fn add_veth(namespace: &Namespace) {
    namespace.ip("link add near type veth peer name far");
    namespace.ip("link set near up");
    namespace.ip("link set far up");
}
