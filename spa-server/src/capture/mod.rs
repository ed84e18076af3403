//! Reads knocks off the wire with libpcap: one thread for each interface, or one for all of them.
//!
//! It hands every UDP datagram of the right ports and length to a [`Sink`], on the thread of the
//! capture. It must not know what is in a datagram, or who may send one.

pub mod filter;
mod handle;
mod health;
mod interface;
mod thread;

pub use health::{InterfaceHealth, InterfaceState, Pulse};

use crate::frame::{Datagram, FrameError, LinkType, UnsupportedLink};
use handle::Handle;
use health::Shared;
use interface::Interface;
use mio::{Poll, Token, Waker};
use spa_proto::UnixMicros;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Where and what to capture.
#[derive(Debug, Clone)]
pub struct CaptureSettings {
    /// Where.
    pub interfaces: Interfaces,
    /// The UDP ports to which knocks are sent: at least one, at most [`filter::MAX_PORTS`].
    pub ports: Vec<u16>,
    /// The length of a knock: bytes of UDP payload.
    pub packet_length: usize,
    /// Bytes of the kernel's buffer, for each interface: [`CaptureSettings::BUFFER_BYTES`].
    pub buffer_bytes: u32,
    /// What takes the place of the capture filter where the kernel has it.
    pub kernel_filter: Option<Arc<dyn KernelFilter>>,
}

/// A program of the kernel's that lets through a part of what the capture filter does.
pub trait KernelFilter: fmt::Debug + Send + Sync {
    /// Filters the frames of this packet socket, in place of what has filtered them before. The link
    /// type says what they begin with.
    ///
    /// # Errors
    ///
    /// Those of before are still filtered as they were.
    fn attach(&self, socket: BorrowedFd<'_>, link: LinkType) -> io::Result<()>;
}

impl CaptureSettings {
    /// A good size of the buffer: 3 MiB hold 6,900 frames with knocks of the default length, which
    /// come in 7 ms at a million a second. What waits longer is late, and all of it is resident.
    pub const BUFFER_BYTES: u32 = 3 * 1024 * 1024;

    /// Bytes of a frame that are captured beside the knock itself. Ethernet with two VLAN tags (22)
    /// or a cooked header (20), UDP (8), and IPv4 with all its options (60), or IPv6 (40) with two
    /// extension headers of 32.
    const HEADERS: usize = 136;
    /// More is captured of none.
    const MOST: usize = 512;

    /// Bytes of a frame that are captured for knocks of this length. In immediate mode the kernel
    /// reserves as much for every frame, so more would only make the buffer hold fewer of them.
    pub fn snap_length(packet_length: usize) -> i32 {
        let wanted = packet_length.saturating_add(Self::HEADERS).min(Self::MOST);
        i32::try_from(wanted).unwrap_or(i32::MAX)
    }

    fn check(&self) -> Result<(), CaptureError> {
        match self.ports.len() {
            0 => Err(CaptureError::NoPorts),
            1..=filter::MAX_PORTS => Ok(()),
            many => Err(CaptureError::TooManyPorts(many)),
        }
    }
}

/// The interfaces to capture on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// All that there are, and all that will be (the pseudo-device `any`).
    All,
    /// These.
    Named(Vec<String>),
}

/// Where and when a datagram came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The index of the interface; 0 if it can't be known (only where `any` has nothing but version
    /// 1 of its headers).
    pub interface: u32,
    /// When the kernel captured it.
    pub at: UnixMicros,
}

/// What takes the datagrams of one capture thread.
///
/// The calls are made on that thread. While one of them blocks, the capture doesn't read, and its
/// heartbeat stands still.
pub trait Sink: Send {
    /// A UDP datagram came in.
    fn datagram(&mut self, arrival: Arrival, datagram: &Datagram<'_>);

    /// A frame passed the kernel's filter, and there is no datagram in it.
    fn malformed(&mut self, error: FrameError);

    /// What had come was handed over; what comes next is waited for, or comes right away. At least
    /// twice a second, also when nothing comes.
    fn settle(&mut self);

    /// The kernel has dropped frames because this thread did not keep up: so many since the start.
    fn kernel_drops(&mut self, total: u64);
}

/// Why a capture could not be started or went silent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The list of interfaces is empty.
    #[error("no interface to capture on; name at least one, or all of them with \"any\"")]
    NoInterfaces,
    /// The list of ports is empty.
    #[error("no knock port to capture; name at least one")]
    NoPorts,
    /// The list of ports is too long.
    #[error("{0} knock ports are too many for a capture filter; name at most {max}", max = filter::MAX_PORTS)]
    TooManyPorts(usize),
    /// No interface has the name.
    #[error("there is no interface {name:?}; this host has {}", Listed(existing))]
    Missing {
        /// The name.
        name: String,
        /// The names that there are.
        existing: Vec<String>,
    },
    /// The interface exists and is down.
    #[error("interface {name} is down; bring it up with \"ip link set {name} up\"")]
    Down {
        /// Its name.
        name: String,
    },
    /// The interface was deleted, or another one has its name now.
    #[error("interface {name} has been replaced or deleted")]
    Replaced {
        /// Its name.
        name: String,
    },
    /// libpcap could not open the interface.
    #[error(
        "the capture on {interface} can't be opened: {source}; \
         it takes root or the capability CAP_NET_RAW"
    )]
    Open {
        /// The interface, or `any`.
        interface: String,
        /// What libpcap says.
        source: pcap::Error,
    },
    /// Frames of this interface can't be read.
    #[error("the capture on {interface} is of no use: {source}; capture on \"any\" instead")]
    Link {
        /// The interface.
        interface: String,
        /// Which link type it has.
        source: UnsupportedLink,
    },
    /// The kernel filter does not compile.
    #[error("the capture filter for {interface} was refused: {source}; the filter is {filter}")]
    Filter {
        /// The interface, or `any`.
        interface: String,
        /// The filter's text.
        filter: String,
        /// What libpcap says.
        source: pcap::Error,
    },
    /// libpcap reported an error while reading.
    #[error("the capture on {interface} failed: {source}")]
    Read {
        /// The interface, or `any`.
        interface: String,
        /// What libpcap says.
        source: pcap::Error,
    },
    /// A call to the operating system failed.
    #[error("the capture on {interface} failed: {source}")]
    System {
        /// The interface, or `any`.
        interface: String,
        /// What the system says.
        source: io::Error,
    },
}

struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join(", ")) }
    }
}

/// A running capture. Dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    waker: Waker,
    join: JoinHandle<()>,
}

const WAKE: Token = Token(0);

impl Capture {
    /// Opens the captures and starts their threads.
    ///
    /// `make_sink` is called once for each thread, with the name of the interface (`"any"` for
    /// all). An interface that can't be captured on is an error; so it is when none of them exists.
    /// One that is down or isn't there yet is waited for: it must not keep out those who come by
    /// the others. An interface that vanishes or fails later is opened again, for as long as it
    /// takes.
    pub fn start<S: Sink + 'static>(
        settings: &CaptureSettings,
        mut make_sink: impl FnMut(&str) -> S,
    ) -> Result<Self, CaptureError> {
        settings.check()?;
        let mut handles = Vec::new();
        for interface in Interface::list(&settings.interfaces)? {
            let handle = match Handle::open(&interface, settings) {
                Err(error @ (CaptureError::Down { .. } | CaptureError::Missing { .. })) => {
                    Err(error)
                }
                opened => Ok(opened?),
            };
            handles.push((interface, handle));
        }
        let is_there =
            |(_, handle): &(_, Result<_, _>)| !matches!(handle, Err(CaptureError::Missing { .. }));
        if !handles.iter().any(is_there)
            && let Some((_, handle)) = handles.pop()
        {
            handle?;
        }

        let mut capture = Self { threads: Vec::new() };
        for (interface, handle) in handles {
            let sink = make_sink(interface.name());
            let failed = |source| CaptureError::System { interface: interface.to_string(), source };
            let poll = Poll::new().map_err(failed)?;
            let waker = Waker::new(poll.registry(), WAKE).map_err(failed)?;
            let shared = Arc::new(Shared::new(interface.name()));
            let worker = thread::Worker {
                interface: interface.clone(),
                settings: settings.clone(),
                sink,
                poll,
                shared: Arc::clone(&shared),
                drops: thread::DropCount::default(),
            };
            if let Err(error) = &handle {
                worker.report_retrying(error);
            }
            let join = std::thread::Builder::new()
                .name(format!("capture-{interface}"))
                .spawn(move || worker.run(handle))
                .map_err(failed)?;
            capture.threads.push(Thread { shared, waker, join });
        }
        Ok(capture)
    }

    /// Opens each interface as [`start`](Self::start) does, and closes it again. Whatever would
    /// keep datagrams from coming in is an error.
    pub fn try_out(settings: &CaptureSettings) -> Result<(), CaptureError> {
        settings.check()?;
        for interface in Interface::list(&settings.interfaces)? {
            Handle::open(&interface, settings)?;
        }
        Ok(())
    }

    /// How each interface fares.
    pub fn health(&self) -> Vec<InterfaceHealth> {
        self.threads.iter().map(|thread| thread.shared.health()).collect()
    }

    /// What tells whether the threads hang, for as long as they run.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.threads.iter().map(|thread| Arc::clone(&thread.shared)).collect())
    }

    /// Ends the threads, and returns when they have ended.
    pub fn stop(&mut self) {
        for thread in &self.threads {
            thread.shared.stop();
            if let Err(error) = thread.waker.wake() {
                // The thread looks at its stop flag once a second anyway.
                tracing::debug!(%error, "capture thread not woken");
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join.join().is_err() {
                tracing::error!(interface = thread.shared.name(), "capture thread had panicked");
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}
