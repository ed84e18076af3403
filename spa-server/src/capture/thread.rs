//! The thread of one capture: read, hand over, look whether the interface is still the same one,
//! open it again when it is not.

use super::handle::Handle;
use super::health::{InterfaceState, Shared};
use super::interface::Interface;
use super::{Arrival, CaptureError, CaptureSettings, Sink};
use crate::frame;
use crate::priority::hurry;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use spa_proto::UnixMicros;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames between two looks at the stop flag.
const BATCH: usize = 256;
/// How often the interface's index is compared. A capture whose interface was deleted is silent,
/// also when an interface of the same name comes back.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest and the longest wait before an interface is opened again.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The longest wait for an interface that is missing or down: looking for it costs little.
const MAX_ABSENCE: Duration = Duration::from_secs(1);

const READABLE: Token = Token(1);

/// Everything that the thread owns.
pub(super) struct Worker<S> {
    pub(super) interface: Interface,
    pub(super) settings: CaptureSettings,
    pub(super) sink: S,
    pub(super) poll: Poll,
    pub(super) shared: Arc<Shared>,
    pub(super) drops: DropCount,
}

/// Why [`Worker::serve`] returned.
enum Ended {
    Stop,
    Lost(CaptureError),
}

impl<S: Sink> Worker<S> {
    /// Runs until it is told to stop. `opened` is the first attempt's outcome.
    pub(super) fn run(mut self, mut opened: Result<Handle, CaptureError>) {
        let _ended = StoppedOnDrop(Arc::clone(&self.shared));
        hurry();
        let mut events = Events::with_capacity(4);
        let mut backoff = MIN_BACKOFF;
        while !self.shared.is_stopping() {
            let error = match opened {
                Ok(handle) => {
                    self.report_running();
                    let since = Instant::now();
                    match self.serve(handle, &mut events) {
                        Ended::Stop => return,
                        Ended::Lost(error) => {
                            if since.elapsed() >= MAX_BACKOFF {
                                backoff = MIN_BACKOFF;
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            let longest = match error {
                CaptureError::Missing { .. } | CaptureError::Down { .. } => MAX_ABSENCE,
                _ => MAX_BACKOFF,
            };
            self.report_retrying(&error);
            self.wait(backoff.min(longest), &mut events);
            backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
            opened = Handle::open(&self.interface, &self.settings);
        }
    }

    /// Reads from `handle` until it fails.
    fn serve(&mut self, mut handle: Handle, events: &mut Events) -> Ended {
        self.drops.reopened();
        let descriptor = handle.as_raw_fd();
        let mut source = SourceFd(&descriptor);
        if let Err(error) = self.poll.registry().register(&mut source, READABLE, Interest::READABLE)
        {
            return Ended::Lost(self.system(error));
        }
        let ended = self.serve_registered(&mut handle, events);
        // The descriptor is closed next, which takes it out of the poll in any case.
        let _ = self.poll.registry().deregister(&mut SourceFd(&descriptor));
        ended
    }

    fn serve_registered(&mut self, handle: &mut Handle, events: &mut Events) -> Ended {
        let mut next_check = Instant::now() + CHECK_INTERVAL;
        loop {
            self.shared.beat();
            if self.shared.is_stopping() {
                return Ended::Stop;
            }
            let read = match self.read_batch(handle) {
                Ok(read) => read,
                Err(source) => {
                    let interface = self.interface.to_string();
                    return Ended::Lost(CaptureError::Read { interface, source });
                }
            };
            let now = Instant::now();
            if now >= next_check {
                if let Err(error) = self.check(handle) {
                    return Ended::Lost(error);
                }
                next_check = now + CHECK_INTERVAL;
            }
            // The poll tells of what is new only: it is asked when the buffer has been emptied.
            if read < BATCH
                && let Err(error) = self.sleep(next_check.saturating_duration_since(now), events)
            {
                return Ended::Lost(self.system(error));
            }
        }
    }

    fn read_batch(&mut self, handle: &mut Handle) -> Result<usize, pcap::Error> {
        let Handle { pcap, link, index } = handle;
        let sink = &mut self.sink;
        let read = pcap.dispatch(Some(BATCH), |packet| match frame::parse(*link, packet.data) {
            Ok(datagram) => {
                let interface = datagram.interface_index.unwrap_or(*index);
                let at = captured_at(packet.header.ts.tv_sec, packet.header.ts.tv_usec);
                sink.datagram(Arrival { interface, at }, &datagram);
            }
            Err(error) => sink.malformed(error),
        });
        sink.settle();
        read
    }

    /// Reports what the kernel dropped, and finds out whether the interface is still there.
    fn check(&mut self, handle: &mut Handle) -> Result<(), CaptureError> {
        if let Ok(stats) = handle.pcap.stats()
            && let Some(total) = self.drops.update(stats.dropped)
        {
            self.sink.kernel_drops(total);
        }
        match self.interface.index() {
            Ok(index) if index != handle.index => {
                Err(CaptureError::Replaced { name: self.interface.to_string() })
            }
            Err(error @ CaptureError::Missing { .. }) => Err(error),
            // That the question could not be put is no reason to end a capture that works.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Waits for a frame, a call to stop, or the end of `duration`.
    fn sleep(&mut self, duration: Duration, events: &mut Events) -> io::Result<()> {
        match self.poll.poll(events, Some(duration)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    /// Waits for a call to stop, or the end of `duration`, with the heart beating.
    fn wait(&mut self, duration: Duration, events: &mut Events) {
        let end = Instant::now() + duration;
        loop {
            self.shared.beat();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.is_stopping() {
                return;
            }
            if self.sleep(left.min(CHECK_INTERVAL), events).is_err() {
                std::thread::sleep(left.min(MIN_BACKOFF));
            }
        }
    }

    fn report_running(&self) {
        if let InterfaceState::Retrying { .. } = self.shared.enter(InterfaceState::Running) {
            tracing::info!(interface = %self.interface, "capture works again");
        }
    }

    /// Only the first of several failures is worth a line.
    pub(super) fn report_retrying(&self, error: &CaptureError) {
        let state = InterfaceState::Retrying { error: error.to_string() };
        if self.shared.enter(state) == InterfaceState::Running {
            tracing::warn!(interface = %self.interface, %error, "capture lost, trying again");
        } else {
            tracing::debug!(interface = %self.interface, %error, "capture still lost");
        }
    }

    fn system(&self, source: io::Error) -> CaptureError {
        CaptureError::System { interface: self.interface.to_string(), source }
    }
}

/// libpcap's time stamp.
fn captured_at(seconds: i64, micros: i64) -> UnixMicros {
    let (seconds, micros) = (u64::try_from(seconds), u64::try_from(micros));
    let seconds = Duration::from_secs(seconds.unwrap_or_default());
    UnixMicros::default()
        .saturating_add(seconds)
        .saturating_add(Duration::from_micros(micros.unwrap_or_default()))
}

/// Tells of the thread's end, also when it panics.
struct StoppedOnDrop(Arc<Shared>);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.enter(InterfaceState::Stopped);
    }
}

/// Adds up the kernel's count of dropped frames, which has 32 bits and starts anew with each
/// opening.
#[derive(Debug, Default)]
pub(super) struct DropCount {
    total: u64,
    last: u32,
}

impl DropCount {
    fn reopened(&mut self) {
        self.last = 0;
    }

    /// The total, if it has grown.
    fn update(&mut self, dropped: u32) -> Option<u64> {
        let new = dropped.wrapping_sub(self.last);
        self.last = dropped;
        self.total = self.total.saturating_add(new.into());
        (new > 0).then_some(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_add_up_over_reopenings_and_a_wrapped_counter() {
        let mut drops = DropCount::default();
        assert_eq!(drops.update(0), None);
        assert_eq!(drops.update(u32::MAX), Some(u64::from(u32::MAX)));
        assert_eq!(drops.update(4), Some(u64::from(u32::MAX) + 5));
        drops.reopened();
        assert_eq!(drops.update(0), None);
        assert_eq!(drops.update(7), Some(u64::from(u32::MAX) + 12));
    }
}
