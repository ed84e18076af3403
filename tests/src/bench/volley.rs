//! Sends frames one after the other, and tells what that costs.
//!
//! The other end of a virtual cable takes a packet in the sender's own time: what the receiving
//! host does with it, its firewall included, is paid by the processor that sends. So the cost of
//! a volley over the number of its frames is the cost of a packet's whole way.

use crate::frames::Frame;
use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, SockaddrStorage,
    bind, send, socket,
};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Sends on one interface, past the sender's network stack.
pub(super) struct Volleys {
    socket: OwnedFd,
    link: String,
}

impl Volleys {
    /// On this interface of the thread's namespace.
    pub(super) fn on(link: &str) -> Result<Self> {
        // No protocol: it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &address(link)?)?;
        Ok(Self { socket, link: link.to_owned() })
    }

    /// Sends all of these, and gives back how many nanoseconds each cost.
    pub(super) fn send(&self, frames: &[Frame]) -> Result<f64> {
        let start = Spent::now()?;
        for frame in frames {
            send(self.socket.as_raw_fd(), &frame.0, MsgFlags::empty())
                .with_context(|| format!("sending on {}", self.link))?;
        }
        let spent = Spent::now()?.since(start);
        Ok(spent.as_secs_f64() * 1e9 / super::elements::to_f64(frames.len()))
    }

    /// How many packets have come to this interface so far, settled: none came for a moment.
    pub(super) fn received(&self) -> Result<u64> {
        let mut last = received(&self.link)?;
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(10) {
            let now = received(&self.link)?;
            if now != last {
                last = now;
                since = Instant::now();
            }
        }
        Ok(last)
    }
}

/// Keeps this thread on one processor: the last one, since most else begins with the first.
pub(super) fn stay_on_one_processor() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(last_processor())?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Keeps these threads off the processor of [`stay_on_one_processor`], if there is another.
pub(super) fn leave_that_processor(threads: impl IntoIterator<Item = i32>) -> Result<()> {
    let mut others = CpuSet::new();
    for processor in 0..last_processor() {
        others.set(processor)?;
    }
    for thread in threads {
        if last_processor() > 0 {
            match sched_setaffinity(Pid::from_raw(thread), &others) {
                // It has ended meanwhile.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn last_processor() -> usize {
    // Once: a thread that stays on one processor is told of no other.
    static LAST: OnceLock<usize> = OnceLock::new();
    *LAST.get_or_init(|| std::thread::available_parallelism().map_or(0, |count| count.get() - 1))
}

/// Processor time: of this thread, and of the kernel's thread that takes over what arrives on its
/// processor when there is much of it. Whatever else the machine does is not in it.
#[derive(Clone, Copy)]
pub(super) struct Spent {
    thread: Duration,
    kernel: Duration,
}

impl Spent {
    pub(super) fn now() -> Result<Self> {
        let thread = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        Ok(Self { thread: Duration::from(thread), kernel: kernel_thread().unwrap_or_default() })
    }

    pub(super) fn since(self, start: Self) -> Duration {
        self.thread.saturating_sub(start.thread) + self.kernel.saturating_sub(start.kernel)
    }
}

/// What `ksoftirqd` of that processor has run so far; a container may not see it.
fn kernel_thread() -> Option<Duration> {
    thread_local! {
        static PID: Option<u32> = find_kernel_thread();
    }
    let pid = PID.with(|pid| *pid)?;
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

fn find_kernel_thread() -> Option<u32> {
    let name = format!("ksoftirqd/{}", last_processor());
    // Kernel threads are among the first processes.
    (1..1000).find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

pub(super) fn address(link: &str) -> Result<LinkAddr> {
    let found = getifaddrs()?
        .filter(|interface| interface.interface_name == link)
        .filter_map(|interface| interface.address)
        .find(|address: &SockaddrStorage| address.family() == Some(AddressFamily::Packet));
    let found = found.with_context(|| format!("there is no interface {link}"))?;
    found.as_link_addr().copied().with_context(|| format!("{link} has no link address"))
}

/// How many packets have come to this interface of the thread's namespace.
pub(super) fn received(link: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'));
    let line = line.with_context(|| format!("there is no interface {link}"))?;
    let packets = line.split_whitespace().nth(1).context("no count of packets")?;
    Ok(packets.parse()?)
}
