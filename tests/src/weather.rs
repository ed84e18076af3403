//! A bad link: frames between the owner and everybody else come late, and some never.
//!
//! The kernel's own emulator (netem) is not in every kernel; this one needs nothing but a veth
//! pair in the middle.

use crate::lab::{Host, Lab};
use anyhow::{Context, Result};
use pcap::{Active, Capture, Direction};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// See the module's text. It clears up when this goes.
pub struct Weather {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Weather {
    /// Each frame, in each direction, comes so much later, and of a hundred so many never come.
    pub fn over(lab: &Lab, delay: Duration, percent_lost: u8) -> Result<Self> {
        let hub = lab.hub();
        for host in [lab.owner(), lab.server()] {
            // What is copied from one link to another has to be whole.
            host.sh("ethtool -K eth0 tx off tso off gso off gro off")?;
        }
        for line in [
            "ip link add weather0 type veth peer name weather1",
            "ip link set weather1 master br0",
            "ip link set weather1 up",
            "ip link set weather0 up",
            "ip link set p2 nomaster",
        ] {
            hub.sh(line)?;
        }
        let mut ways = [
            Way { from: open(hub, "p2")?, to: open(hub, "weather0")?, coming: VecDeque::new() },
            Way { from: open(hub, "weather0")?, to: open(hub, "p2")?, coming: VecDeque::new() },
        ];
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), lost.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for way in &mut ways {
                    way.carry(delay, percent_lost, &counted);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { stop, lost, thread: Some(thread) })
    }

    /// How many frames were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One direction.
struct Way {
    from: Capture<Active>,
    to: Capture<Active>,
    coming: VecDeque<(Instant, Vec<u8>)>,
}

impl Way {
    fn carry(&mut self, delay: Duration, percent_lost: u8, lost: &AtomicU64) {
        while let Ok(frame) = self.from.next_packet() {
            if u16::from(byte()) * 100 < u16::from(percent_lost) * 256 {
                lost.fetch_add(1, Ordering::Relaxed);
            } else {
                self.coming.push_back((Instant::now() + delay, frame.data.to_vec()));
            }
        }
        while let Some((_, frame)) = self.coming.pop_front_if(|(at, _)| *at <= Instant::now()) {
            // A link that is gone loses all.
            let _ = self.to.sendpacket(frame);
        }
    }
}

fn byte() -> u8 {
    let mut byte = [0];
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}

fn open(hub: &Host, interface: &str) -> Result<Capture<Active>> {
    hub.inside(|| {
        let capture = Capture::from_device(interface)?.immediate_mode(true).snaplen(65_535);
        let capture = capture.open().with_context(|| format!("cannot capture on {interface}"))?;
        capture.direction(Direction::In)?;
        Ok(capture.setnonblock()?)
    })
}
