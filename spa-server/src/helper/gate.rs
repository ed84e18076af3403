//! The gate as the worker has it: at the other end of the lines.

use super::line::{Line, hang_up};
use super::{HelperAnswer, HelperError, HelperRequest};
use crate::gate::{
    Backend, Change, Cut, Doubt, Gate, GateAnswer, GateError, GateRequest, InstallReport,
    LiveElement, Look, Plan,
};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a thread that reads knocks waits itself: the kernel takes a grant in a tenth of a
/// millisecond. Whoever waits longer leaves the thread to others.
const AT_ONCE: Duration = Duration::from_millis(5);
/// A helper that is so long about what takes no tool is frozen.
const PATIENCE: Duration = Duration::from_secs(60);
/// A look takes some tools at the most, one after another, each with its own time limit;
const PATIENCE_WITH_LOOKS: Duration = Duration::from_secs(120);
/// all else may take more of them.
const PATIENCE_WITH_TOOLS: Duration = Duration::from_secs(300);

/// See the module's text.
#[derive(Debug)]
pub struct RemoteGate {
    backend: Backend,
    /// For what changes something, and has to be in order.
    orders: Arc<Asked>,
    /// For looks, which hold up no order.
    looks: Arc<Asked>,
    doubts: Doubts,
}

/// A line over which one question is asked at a time.
#[derive(Debug)]
pub(super) struct Asked {
    line: Line,
    /// What ends with the helper.
    link: Arc<UnixStream>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Asked {
    pub(super) fn new(line: Line, link: &Arc<UnixStream>) -> Arc<Self> {
        Arc::new(Self { line, link: Arc::clone(link), turn: Arc::default() })
    }

    /// Asks, and waits for the answer. Whoever waits no more loses nothing but the answer: it is taken
    /// from the line all the same.
    async fn ask(
        self: &Arc<Self>,
        request: HelperRequest,
        at_once: Duration,
        patience: Duration,
    ) -> Result<HelperAnswer, HelperError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let asked = if at_once.is_zero() {
            Some(request)
        } else {
            self.begin(&request)?;
            if self.line.is_answered_within(at_once) {
                return self.end(patience);
            }
            None
        };
        let line = Arc::clone(self);
        let asking = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if let Some(request) = asked {
                line.begin(&request)?;
            }
            line.end(patience)
        });
        asking.await.unwrap_or_else(|error| Err(HelperError::Silent(io::Error::other(error))))
    }

    pub(super) fn begin(&self, request: &HelperRequest) -> Result<(), HelperError> {
        self.line.send(request).map_err(|error| self.broken(error))
    }

    pub(super) fn end(&self, patience: Duration) -> Result<HelperAnswer, HelperError> {
        let received = self.line.set_patience(Some(patience)).and_then(|()| self.line.receive());
        match received {
            Ok(Some(HelperAnswer::Failed(why))) => Err(HelperError::Refused(why)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// A helper that does not answer is given up, whatever it does: to wait for its end would be to wait
    /// for ever for one that is frozen.
    fn broken(&self, error: io::Error) -> HelperError {
        self.line.hang_up();
        hang_up(&self.link);
        HelperError::Silent(error)
    }
}

impl RemoteGate {
    pub(super) fn new(
        backend: Backend,
        orders: Arc<Asked>,
        looks: Arc<Asked>,
        doubts: Line,
    ) -> io::Result<Self> {
        Ok(Self { backend, orders, looks, doubts: Doubts::start(doubts)? })
    }

    /// Takes away the gates of other back-ends of ours. Says what did not work.
    pub async fn remove_others(&self) -> Vec<String> {
        let request = HelperRequest::RemoveOthers;
        match self.orders.ask(request, Duration::ZERO, PATIENCE_WITH_TOOLS).await {
            Ok(HelperAnswer::Removed(complaints)) => complaints,
            Ok(_) => vec![HelperError::Confused.to_string()],
            Err(error) => vec![crate::causes::with_causes(&error)],
        }
    }

    async fn order(&self, request: GateRequest) -> Result<GateAnswer, GateError> {
        let (at_once, patience) = match (&request, self.backend) {
            (GateRequest::Apply(_), Backend::Ipset | Backend::Nftables | Backend::DryRun) => {
                (AT_ONCE, PATIENCE)
            }
            (GateRequest::Snapshot, Backend::Ipset | Backend::Nftables | Backend::DryRun) => {
                (Duration::ZERO, PATIENCE)
            }
            _ => (Duration::ZERO, PATIENCE_WITH_TOOLS),
        };
        ask(&self.orders, request, at_once, patience).await
    }
}

async fn ask(
    line: &Arc<Asked>,
    request: GateRequest,
    at_once: Duration,
    patience: Duration,
) -> Result<GateAnswer, GateError> {
    match line.ask(HelperRequest::Gate(request), at_once, patience).await? {
        HelperAnswer::Gate(GateAnswer::Failed(why)) => Err(HelperError::Refused(why).into()),
        HelperAnswer::Gate(GateAnswer::NotInstalled) => Err(GateError::NotInstalled),
        HelperAnswer::Gate(GateAnswer::NotOrdered(why)) => Err(GateError::NotOrdered(why)),
        HelperAnswer::Gate(answer) => Ok(answer),
        _ => Err(HelperError::Confused.into()),
    }
}

/// Takes the answer that belongs to a question.
macro_rules! expect {
    ($answer:expr, $expected:pat => $value:expr) => {
        match $answer? {
            $expected => Ok($value),
            _ => Err(HelperError::Confused.into()),
        }
    };
}

impl Gate for RemoteGate {
    fn backend(&self) -> Backend {
        self.backend
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let answer = self.order(GateRequest::Install(plan.clone())).await;
        expect!(answer, GateAnswer::Installed(report) => report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        if changes.is_empty() {
            return Ok(());
        }
        let answer = self.order(GateRequest::Apply(changes.to_vec())).await;
        expect!(answer, GateAnswer::Applied => ())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        let answer = self.order(GateRequest::Snapshot).await;
        expect!(answer, GateAnswer::Snapshot(live) => live)
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let answer = self.order(GateRequest::Examine(plan.clone())).await;
        expect!(answer, GateAnswer::Examined(report) => report)
    }

    async fn disturbed(&self) -> Doubt {
        self.doubts.next().await
    }

    async fn look(&self, doubt: Doubt) -> Result<Look, GateError> {
        let request = GateRequest::Look(doubt);
        let answer = ask(&self.looks, request, Duration::ZERO, PATIENCE_WITH_LOOKS).await;
        expect!(answer, GateAnswer::Looked(look) => look)
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        let answer = self.order(GateRequest::Sever(cuts.to_vec())).await;
        expect!(answer, GateAnswer::Severed => ())
    }

    async fn lift(&self) -> Result<(), GateError> {
        let answer = self.order(GateRequest::Lift).await;
        expect!(answer, GateAnswer::Lifted => ())
    }

    async fn remove(&self) -> Result<(), GateError> {
        let answer = self.order(GateRequest::Remove).await;
        expect!(answer, GateAnswer::Removed => ())
    }
}

/// What the helper says of disturbances, asked for one after another, and kept until somebody wants
/// to know.
#[derive(Debug)]
struct Doubts {
    heard: Arc<Heard>,
    ask: mpsc::Sender<()>,
}

#[derive(Debug, Default)]
struct Heard {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    doubt: Option<Doubt>,
    is_asked: bool,
}

impl Heard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doubts {
    fn start(line: Line) -> io::Result<Self> {
        let heard = Arc::<Heard>::default();
        let (ask, asked) = mpsc::channel();
        let hears = Arc::clone(&heard);
        std::thread::Builder::new().name("doubts".into()).spawn(move || {
            for () in asked {
                // As long as it takes. A helper that is gone is told of by its link.
                let answer = line.send(&HelperRequest::Disturbed).and_then(|()| line.receive());
                let Ok(Some(HelperAnswer::Disturbed(doubt))) = answer else { return };
                *hears.state() = State { doubt: Some(doubt), is_asked: false };
                hears.changed.notify_one();
            }
        })?;
        Ok(Self { heard, ask })
    }

    async fn next(&self) -> Doubt {
        loop {
            {
                let mut state = self.heard.state();
                if let Some(doubt) = state.doubt.take() {
                    return doubt;
                }
                if !std::mem::replace(&mut state.is_asked, true) {
                    // Without the thread nothing is ever heard, and the process ends.
                    let _ = self.ask.send(());
                }
            }
            self.heard.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::await_end;
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_helper_that_does_not_answer_is_given_up() {
        let (here, there) = Line::pair().unwrap();
        let (link, its_link) = UnixStream::pair().unwrap();
        let asked = Asked::new(here, &Arc::new(link));
        for at_once in [Duration::ZERO, Duration::from_millis(1)] {
            let request = HelperRequest::Gate(GateRequest::Snapshot);
            let answer = asked.ask(request, at_once, Duration::from_millis(20)).await;
            assert!(matches!(answer, Err(HelperError::Silent(_))), "{answer:?}");
        }
        // It finds that nobody is there any more.
        assert!(there.receive::<HelperRequest>().unwrap().is_some());
        assert!(there.receive::<HelperRequest>().unwrap().is_none());
        await_end(&its_link);
    }

    #[tokio::test]
    async fn who_waits_no_more_leaves_no_answer_to_the_next_one() {
        let (here, there) = Line::pair().unwrap();
        let (link, _its_link) = UnixStream::pair().unwrap();
        let asked = Asked::new(here, &Arc::new(link));
        let first = HelperRequest::Gate(GateRequest::Snapshot);
        let asking = asked.ask(first, Duration::from_millis(1), SOON);
        assert!(tokio::time::timeout(Duration::from_millis(50), asking).await.is_err());
        let helper = std::thread::spawn(move || {
            for answer in [HelperAnswer::Reread, HelperAnswer::Removed(vec!["x".into()])] {
                there.receive::<HelperRequest>().unwrap().unwrap();
                there.send(&answer).unwrap();
            }
        });
        let answer = asked.ask(HelperRequest::RemoveOthers, Duration::ZERO, SOON).await.unwrap();
        assert_eq!(answer, HelperAnswer::Removed(vec!["x".into()]));
        helper.join().unwrap();
    }

    #[tokio::test]
    async fn a_disturbance_is_heard_once_whoever_has_waited_for_it() {
        let (here, there) = Line::pair().unwrap();
        let doubts = Doubts::start(here).unwrap();
        // The watch waits for several things at a time, and then begins anew.
        for _ in 0..3 {
            let waits = tokio::time::timeout(Duration::from_millis(5), doubts.next());
            assert!(waits.await.is_err());
        }
        let helper = std::thread::spawn(move || {
            for doubt in [Doubt::Elements, Doubt::Everything] {
                assert_eq!(there.receive().unwrap(), Some(HelperRequest::Disturbed));
                there.send(&HelperAnswer::Disturbed(doubt)).unwrap();
            }
            there
        });
        assert_eq!(doubts.next().await, Doubt::Elements);
        assert_eq!(doubts.next().await, Doubt::Everything);
        let there = helper.join().unwrap();
        assert!(!there.is_answered_within(Duration::from_millis(5)), "nobody has asked again");
    }
}
