//! The prefilter: noise ends in the kernel, before anybody is woken.
//!
//! A program for the kernel (eBPF, `prefilter.bpf.c`) takes the place of the capture filter on each
//! packet socket. Of the datagrams of the right port and length it lets those through whose tag may
//! be known: it takes the mask off, as [`Sieve::sift`] does, and looks the tag up in a Bloom filter.
//! What it can't judge passes, and all passes when nobody has told it tags for some time. So it
//! decides nothing: the sieve looks at everything again.
//!
//! Where the kernel or the service manager does not permit it, the capture filter is what remains.

mod bloom;
mod settings;

pub use settings::Shape;

use crate::capture::KernelFilter;
use crate::clock::BootMicros;
use crate::frame::LinkType;
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{ProgramError, SocketFilter};
use aya::{Ebpf, EbpfLoader};
use bloom::{Page, Size};
use settings::{MAX_IDENTITIES, Settings};
use spa_proto::{Sieve, UnixMicros};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Made of `prefilter.bpf.c` by `make prefilter`, for processors that are little-endian.
#[cfg(target_endian = "little")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("prefilter.bpf.o");
#[cfg(not(target_endian = "little"))]
static OBJECT: &[u8] = &[];

/// Its programs.
const ON_ETHERNET: &str = "on_ethernet";
const ON_IP: &str = "on_ip";
/// Where the kernel says that it would not compile, but interpret programs.
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
/// Of each sender there are so many: the table reaches over as many epochs.
const TAGS_OF_A_SENDER: usize = 8;

/// Why there is no prefilter, or none on one socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrefilterError {
    /// It is not there for this machine.
    #[error("there is none for this kind of processor")]
    Processor,
    /// The kernel would interpret it, which takes longer than to wake this process.
    #[error("the kernel would not compile it; `sysctl net.core.bpf_jit_enable=1` has it do so")]
    Interpreted,
    /// The kernel does not take it.
    #[error(
        "the kernel does not take it ({0}); it takes root or the capability CAP_BPF, and Linux 5.8"
    )]
    Refused(String),
}

/// The prefilter of all captures.
pub struct Prefilter {
    shape: Shape,
    size: Size,
    kernel: Mutex<Kernel>,
}

struct Kernel {
    ebpf: Ebpf,
    settings: Array<MapData, [u8; settings::LENGTH]>,
    tags: Array<MapData, Page>,
    dropped: PerCpuArray<MapData, u64>,
    /// Of the tags that it was told last.
    generation: u64,
    /// No socket has refused it.
    is_everywhere: bool,
}

impl fmt::Debug for Prefilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefilter").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// What was dropped in the kernel since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Noise of the right port and length.
    pub unknown_tag: u64,
    /// What came to a knock port and had another length.
    pub length: u64,
}

impl Prefilter {
    /// For how long tags hold: they are told anew every minute, and those of the minutes around are
    /// among them.
    pub const HOLDS: Duration = Duration::from_secs(90);

    /// Has the kernel take it, with room for the tags of twice as many senders as there are; until
    /// the first [`Prefilter::know`] it lets through what the capture filter does.
    ///
    /// # Errors
    ///
    /// The kernel has no eBPF, or not for us.
    pub fn load(shape: Shape, senders: usize) -> Result<Self, PrefilterError> {
        if OBJECT.is_empty() {
            return Err(PrefilterError::Processor);
        }
        // In most network namespaces the file is not there, which says nothing.
        if std::fs::read_to_string(JIT).is_ok_and(|said| said.trim() == "0") {
            return Err(PrefilterError::Interpreted);
        }
        let size = Size::for_tags(senders.saturating_mul(2 * TAGS_OF_A_SENDER));
        // Nothing in it depends on how the kernel was built.
        let mut loader = EbpfLoader::new();
        let ebpf = loader.btf(None).map_max_entries("TAGS", size.pages()).load(OBJECT);
        let kernel = ebpf.map_err(refused).and_then(Kernel::of)?;
        let prefilter = Self { shape, size, kernel: Mutex::new(kernel) };
        prefilter.lock().tell(&prefilter, Duration::ZERO, Vec::new())?;
        Ok(prefilter)
    }

    /// From now on, and for this long, what nobody of these has sent is noise; nothing is from the
    /// moment on at which the sieve is late. Of an older generation than it knows already, nothing is
    /// taken. While it is being told, everything passes.
    ///
    /// # Errors
    ///
    /// The kernel did not take it: then everything passes.
    pub fn know(
        &self,
        sieve: &Sieve,
        generation: u64,
        now: UnixMicros,
        holds: Duration,
    ) -> Result<(), PrefilterError> {
        let mut kernel = self.lock();
        if generation < kernel.generation {
            return Ok(());
        }
        kernel.generation = generation;
        kernel.tell(self, Duration::ZERO, Vec::new())?;
        // A sieve that has no tags yet is late, too.
        let late_from = sieve.late_from();
        if sieve.is_late(now) || late_from <= now {
            return Ok(());
        }
        let until =
            BootMicros::now().since_boot().saturating_add(holds.min(late_from.distance(now)));
        kernel.tell_tags(&bloom::pages(self.size, sieve.tag_heads()))?;
        kernel.tell(self, until, sieve.masks().copied().collect())
    }

    /// Whether all captures have it that were opened.
    pub fn is_everywhere(&self) -> bool {
        self.lock().is_everywhere
    }

    /// What it has dropped.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn dropped(&self) -> Result<Dropped, PrefilterError> {
        let kernel = self.lock();
        let sum = |index: u32| -> Result<u64, PrefilterError> {
            let each = kernel.dropped.get(&index, 0).map_err(refused)?;
            Ok(each.iter().fold(0, |sum, one| sum.wrapping_add(*one)))
        };
        Ok(Dropped { unknown_tag: sum(0)?, length: sum(1)? })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelFilter for Prefilter {
    fn attach(&self, socket: BorrowedFd<'_>, link: LinkType) -> io::Result<()> {
        let name = match link {
            LinkType::Ethernet => ON_ETHERNET,
            // Cooked captures have a header that libpcap makes up, behind the filter.
            LinkType::RawIp | LinkType::LinuxSll | LinkType::LinuxSll2 => ON_IP,
            LinkType::Null | LinkType::Loop => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut kernel = self.lock();
        let program = kernel.program(name).map_err(io::Error::other);
        let attached = program.and_then(|program| program.attach(socket).map_err(io::Error::other));
        kernel.is_everywhere &= attached.is_ok();
        attached
    }
}

impl Kernel {
    fn of(mut ebpf: Ebpf) -> Result<Self, PrefilterError> {
        let mut map = |name| {
            ebpf.take_map(name).ok_or_else(|| PrefilterError::Refused(format!("no map {name}")))
        };
        let settings = map("SETTINGS")?.try_into().map_err(refused)?;
        let tags = map("TAGS")?.try_into().map_err(refused)?;
        let dropped = map("DROPPED")?.try_into().map_err(refused)?;
        let mut kernel = Self { ebpf, settings, tags, dropped, generation: 0, is_everywhere: true };
        for name in [ON_ETHERNET, ON_IP] {
            kernel.program(name)?.load().map_err(|error| match error {
                ProgramError::LoadError { io_error, verifier_log } => {
                    tracing::debug!("the kernel's verifier on the prefilter: {verifier_log}");
                    refused(io_error)
                }
                error => refused(error),
            })?;
        }
        Ok(kernel)
    }

    fn program(&mut self, name: &str) -> Result<&mut SocketFilter, PrefilterError> {
        let program = self.ebpf.program_mut(name);
        let program =
            program.ok_or_else(|| PrefilterError::Refused(format!("no program {name}")))?;
        program.try_into().map_err(refused)
    }

    fn tell(
        &mut self,
        Prefilter { shape, size, .. }: &Prefilter,
        until: Duration,
        masks: Vec<[u8; 32]>,
    ) -> Result<(), PrefilterError> {
        let settings = Settings { until, size: *size, shape, masks };
        let bytes = settings.bytes().ok_or_else(|| {
            PrefilterError::Refused(format!(
                "more ports than it knows, or than {MAX_IDENTITIES} keys"
            ))
        })?;
        self.settings.set(0, bytes, 0).map_err(refused)
    }

    fn tell_tags(&mut self, pages: &[Page]) -> Result<(), PrefilterError> {
        (0..).zip(pages).try_for_each(|(at, page)| self.tags.set(at, page, 0)).map_err(refused)
    }
}

/// What was said, and what the kernel has said to that.
fn refused(error: impl std::error::Error) -> PrefilterError {
    PrefilterError::Refused(crate::causes::with_causes(&error))
}
