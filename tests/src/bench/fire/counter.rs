//! A program that only counts datagrams: what any program that reads them through libpcap has to
//! spend. It is a mode of the benchmark, so that it is built as the server is.

use crate::lab::Host;
use anyhow::{Context, Result, bail};
use pcap::Direction;
use spa_proto::PacketLength;
use spa_server::capture::CaptureSettings;
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What libpcap gathers for at most, where it gathers.
const GATHER_MS: i32 = 100;

/// When the kernel hands packets over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Each at once: a single knock waits for nobody.
    Immediate,
    /// When there are many, or a tenth of a second has passed.
    Gathered,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Immediate => "immediate",
            Self::Gathered => "gathered",
        })
    }
}

/// The counting program in a namespace.
pub(super) struct Counter {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Counter {
    pub(super) fn start(host: &Host, delivery: Delivery, filter: &str) -> Result<Self> {
        let me = std::env::current_exe()?;
        let mut command: Command = host.command(me)?;
        command.args(["--count", "eth0", &delivery.to_string(), filter]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let questions = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut counter = Self { child, questions, answers };
        counter.count()?;
        Ok(counter)
    }

    /// How many it has counted so far.
    pub(super) fn count(&mut self) -> Result<u64> {
        writeln!(self.questions)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the counter says {line:?}"))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts what comes to the interface; for every line on standard input it prints how many. The
/// arguments: an interface, `immediate` or `gathered`, and a filter.
pub fn count_for_ever(arguments: &[String]) -> Result<()> {
    let [interface, delivery, filter] = arguments else { bail!("three arguments are needed") };
    let inactive = pcap::Capture::from_device(interface.as_str())?;
    // What the server has.
    let snap_length = CaptureSettings::snap_length(PacketLength::default().packet());
    let buffer_bytes = i32::try_from(CaptureSettings::BUFFER_BYTES)?;
    let inactive = inactive.promisc(false).snaplen(snap_length).buffer_size(buffer_bytes);
    let inactive = match delivery.as_str() {
        "immediate" => inactive.immediate_mode(true),
        "gathered" => inactive.timeout(GATHER_MS),
        other => bail!("{other:?} is no way of delivery"),
    };
    let mut capture = inactive.open()?;
    capture.direction(Direction::In)?;
    capture.filter(filter, true)?;
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn({
        let count = Arc::clone(&count);
        move || {
            for _ in std::io::stdin().lines() {
                if writeln!(std::io::stdout(), "{}", count.load(Ordering::Relaxed)).is_err() {
                    break;
                }
            }
            std::process::exit(0)
        }
    });
    loop {
        let mut some = 0;
        capture.dispatch(None, |_| some += 1)?;
        count.fetch_add(some, Ordering::Relaxed);
    }
}
