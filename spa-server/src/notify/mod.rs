//! Runs a command for events of the audit trail: to send a mail, say.
//!
//! It is a process of its own, which needs no right but to read the trail: the worker executes
//! nothing, and the gate helper, which may change the firewall, nothing of the administrator's.

mod follow;
mod lines;
mod notice;
mod outgoing;

use crate::audit::trail::Wanted;
use crate::causes::with_causes;
use crate::daemon::Log;
use crate::process::{ProcessError, Run};
use crate::state_file::{StateFile, StateFileError};
use follow::{Following, Heard, Position};
use notice::Notice;
use outgoing::{Due, Failed, Limits, Outgoing};
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Where in the state directory it stands how far the trail has been told.
const POSITION: &str = "position";
/// The search path of the command: fixed, since ours can be set by whoever starts us.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// How often it is written down how far the trail has come while nothing of it is told.
const WRITE_DOWN: Duration = Duration::from_secs(10);

/// What happens to wake somebody, if nothing else is said: what its owner has not done himself, or
/// should know of if it was not he.
pub(crate) const USUAL: [&str; 8] = [
    "failed",
    "refused",
    "gate-restored",
    "gate-contested",
    "enrolled",
    "rotation-announced",
    "rotated",
    "key-withdrawn",
];

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Order {
    /// The log to follow; `-` is standard input. Without it, the journal.
    pub(crate) file: Option<PathBuf>,
    pub(crate) wanted: Wanted,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// How long the command may take.
    pub(crate) time_limit: Duration,
    pub(crate) per_minute: u16,
    pub(crate) tries: u32,
    /// Where to remember how far the trail was told.
    pub(crate) state: Option<PathBuf>,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotifyError {
    /// There is nothing to follow.
    #[error("cannot follow {what}; is it there, and may this user read it?")]
    Follow { what: String, source: io::Error },
    /// It can't be followed any more.
    #[error("{0}")]
    Lost(String),
    /// It can't be remembered what was told.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// It can't be read what was told.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// No signals.
    #[error("cannot wait for signals")]
    Signals(#[from] io::Error),
}

type Delivery = Pin<Box<dyn Future<Output = Result<(), ProcessError>>>>;

/// Follows the trail until it ends, or until SIGTERM or SIGINT.
pub(crate) async fn run(order: Order, log: &Log) -> Result<(), NotifyError> {
    let order = Arc::new(order);
    let trail = match &order.file {
        None => follow::Trail::Journal,
        Some(path) if path == Path::new("-") => follow::Trail::StandardInput,
        Some(path) => follow::Trail::File(path.clone()),
    };
    let mut memory = Memory::open(&order, &trail)?;
    let mut following =
        Following::start(&trail, memory.known.clone()).map_err(|source| NotifyError::Follow {
            what: match &trail {
                follow::Trail::Journal => "the journal by /usr/bin/journalctl".into(),
                follow::Trail::File(path) => path.display().to_string(),
                follow::Trail::StandardInput => "standard input".into(),
            },
            source,
        })?;
    let limits = Limits { per_minute: order.per_minute.into(), tries: order.tries };
    let mut outgoing = Outgoing::new(limits);
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut delivery: Option<Delivery> = None;
    let (mut is_over, mut is_stopping, mut lost) = (false, false, None);
    tracing::info!("follows the audit trail, and runs {}", order.program.display());
    loop {
        let mut wake = None;
        if !is_stopping && delivery.is_none() {
            match outgoing.due(Instant::now()) {
                Due::Run(notice) => delivery = Some(deliver(&order, notice)),
                Due::At(at) => wake = Some(at),
                Due::Nothing => {}
            }
        }
        if delivery.is_none() && (is_stopping || is_over && outgoing.is_empty()) {
            break;
        }
        let woken = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        let delivered = async {
            match &mut delivery {
                Some(delivery) => delivery.await,
                None => pending().await,
            }
        };
        tokio::select! {
            outcome = delivered => {
                delivery = None;
                settle(&mut outgoing, outcome, is_stopping);
                memory.note(outgoing.told())?;
            }
            heard = following.next(), if !is_over && !is_stopping => match heard {
                Heard::Event(entry, upto) if order.wanted.is(&entry) => {
                    outgoing.take(Notice::new(entry, upto));
                }
                Heard::Event(_, upto) | Heard::Other(upto) => {
                    outgoing.pass(upto);
                    memory.later(outgoing.told());
                }
                Heard::End => is_over = true,
                Heard::Failed(why) => {
                    is_stopping = true;
                    lost = Some(why);
                }
            },
            () = woken => {}
            // What is under way is finished; what is not is told after the next start.
            _ = terminate.recv() => is_stopping = true,
            _ = interrupt.recv() => is_stopping = true,
            _ = tick.tick() => {
                log.tend();
                memory.tend()?;
            }
        }
    }
    memory.write_down()?;
    log.tend();
    lost.map_or(Ok(()), |why| Err(NotifyError::Lost(why)))
}

/// Tells the log how it went, and what comes of it.
fn settle(outgoing: &mut Outgoing, outcome: Result<(), ProcessError>, is_stopping: bool) {
    let Err(error) = outcome else {
        tracing::info!("told: {}", outgoing.first().unwrap_or_default());
        return outgoing.delivered();
    };
    let error = with_causes(&error);
    if is_stopping {
        return tracing::warn!("{error}; it is tried again after the next start");
    }
    let text = outgoing.first().unwrap_or_default();
    match outgoing.failed(Instant::now()) {
        Failed::Again { failures, rest } => tracing::warn!(
            "{error}; that was try {failures}, the next one is in {} s",
            rest.as_secs()
        ),
        Failed::GivenUp { failures } => {
            tracing::error!("{error}; given up after try {failures}, this was not told: {text}");
        }
    }
}

fn deliver(order: &Arc<Order>, notice: &Notice) -> Delivery {
    let (order, input, variables) = (Arc::clone(order), notice.json(), notice.environment());
    Box::pin(async move {
        let arguments: Vec<&str> = order.arguments.iter().map(String::as_str).collect();
        let variables = variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Run::new(&order.program, &arguments)
            .stdin(&input)
            .variables(variables.chain([("PATH", PATH)]))
            .time_limit(order.time_limit)
            .output()
            .await
            .map(drop)
    })
}

/// How far the trail has been told, in a file where there is one.
struct Memory {
    file: Option<StateFile>,
    known: Option<Position>,
    is_written: bool,
    written: Instant,
}

impl Memory {
    fn open(order: &Order, trail: &follow::Trail) -> Result<Self, NotifyError> {
        // What comes over standard input does not come again.
        let state = order.state.as_ref().filter(|_| *trail != follow::Trail::StandardInput);
        let file = state.map(|directory| StateFile::new(directory, POSITION));
        let mut memory = Self { file, known: None, is_written: true, written: Instant::now() };
        let Some(file) = &memory.file else { return Ok(memory) };
        let path = file.path();
        if let Some(text) = file.read().map_err(|source| NotifyError::Read { path, source })? {
            let known: Option<Position> = serde_json::from_str(&text).ok();
            memory.known = known.filter(|known| known.fits(trail));
            if memory.known.is_none() {
                tracing::warn!(
                    "what was told before is not known, since {} is of another trail; begins with what comes now",
                    file.path().display()
                );
            }
        }
        if memory.known.is_none() {
            // What comes from now on is told after the next start, if it is not told before.
            memory.note(Position::end_of(trail))?;
        }
        Ok(memory)
    }

    /// Keeps it at once, so that nothing is told twice.
    fn note(&mut self, told: Option<Position>) -> Result<(), NotifyError> {
        self.later(told);
        self.write_down()
    }

    /// Keeps it when there is time.
    fn later(&mut self, told: Option<Position>) {
        if let Some(told) = told {
            self.known = Some(told);
            self.is_written = false;
        }
    }

    fn tend(&mut self) -> Result<(), NotifyError> {
        if self.written.elapsed() < WRITE_DOWN { Ok(()) } else { self.write_down() }
    }

    fn write_down(&mut self) -> Result<(), NotifyError> {
        if let (Some(file), Some(known), false) = (&self.file, &self.known, self.is_written) {
            file.write_json(known)?;
            self.written = Instant::now();
        }
        self.is_written = true;
        Ok(())
    }
}
