//! How the worker comes by a helper.

use super::gate::Asked;
use super::line::{Line, await_end, hand_over};
use super::{HelperAnswer, HelperError, RemoteConnections, RemoteGate};
use crate::privileges;
use anyhow::Context as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// It tries out which back-end works, with several tools.
const UNTIL_IT_HAS_CHOSEN: Duration = Duration::from_secs(300);

/// Where a helper is met by those who can't start one (packaging/spa-helper.socket).
const SOCKET: &str = "/run/spa-helper.sock";

/// Comes when the helper is gone.
pub type Gone = oneshot::Receiver<()>;

/// A helper that runs.
#[derive(Debug)]
pub struct Helper {
    /// What it does.
    pub gate: RemoteGate,
    /// What it lists and ends.
    pub connections: RemoteConnections,
    /// Back-ends that can't be used here, and why not.
    pub passed_over: Vec<String>,
    /// Comes when it is gone.
    pub gone: Gone,
}

impl Helper {
    /// Meets the helper that is started for whoever connects to `socket`. Where there is none, starts this
    /// program as the helper, by the same configuration, with the capabilities that this thread has now.
    ///
    /// What changes the firewall this thread then gives up; it writes only below its state directory, and
    /// executes nothing.
    pub(crate) fn start(
        config: &Path,
        state_directory: &Path,
        socket: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let keep_to_less = || {
            privileges::keep_to_the_capture()
                .context("cannot give up what changes the firewall")?;
            if config.starts_with(state_directory) {
                tracing::warn!(
                    "{} lies in the state directory, where whoever takes this process over can write it; move it",
                    config.display()
                );
            }
            privileges::confine_the_worker(&[state_directory]);
            Ok(())
        };
        // Whoever has changed the unit's command would else have a helper that can do nothing.
        let usual = Path::new(SOCKET);
        let is_needed = || !privileges::may_change_the_firewall() && usual.exists();
        if let Some(socket) = socket.or_else(|| is_needed().then_some(usual)) {
            let link = UnixStream::connect(socket).with_context(|| {
                format!(
                    "cannot reach the gate helper at {}; is spa-helper.socket there? systemctl start spa-helper.socket",
                    socket.display()
                )
            })?;
            keep_to_less()?;
            return Self::meet(link, None);
        }
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let kept = ["SPA_LOG", "SPA_LOG_FORMAT", "JOURNAL_STREAM"];
        let kept = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut command = Command::new(&program);
        command.arg("--config").arg(config).arg("gate-helper").env_clear().envs(kept);
        Self::start_by(command, keep_to_less)
    }

    /// Starts a helper by this command; `then` is done before there is another thread, which would
    /// keep what this one gives up.
    pub fn start_by(
        mut command: Command,
        then: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // What a terminal sends to the worker, which then has things to finish, is not for it.
            .process_group(0);
        let program = command.get_program().to_owned();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start the gate helper, {}", program.display()))?;
        drop(command);
        then()?;
        Self::meet(link, Some(child))
    }

    /// Gives the helper at the other end its ends of the lines, and waits until it has a gate.
    fn meet(link: UnixStream, child: Option<Child>) -> anyhow::Result<Self> {
        let pairs = [Line::pair()?, Line::pair()?, Line::pair()?, Line::pair()?, Line::pair()?];
        let ([orders, looks, doubts, lists, behind], given) = split(pairs);
        hand_over(&link, &given).context("cannot talk to the gate helper")?;
        drop(given);

        let link = Arc::new(link);
        let (tell, gone) = oneshot::channel();
        let end = Arc::clone(&link);
        let lines = [&orders, &looks, &doubts, &lists, &behind].map(Line::again);
        let lines: Vec<Line> = lines.into_iter().collect::<Result<_, _>>()?;
        std::thread::Builder::new().name("helper".into()).spawn(move || {
            await_end(&end);
            // Who waits for it at one of them waits in vain: if it was given up, it may be there.
            lines.iter().for_each(Line::hang_up);
            // Nobody may be left to tell.
            let _ = tell.send(());
            if let Some(mut child) = child {
                let _ = child.wait();
            }
        })?;

        let orders = Asked::new(orders, &link);
        let chosen = orders.end(UNTIL_IT_HAS_CHOSEN);
        let (backend, passed_over) = match chosen {
            Ok(HelperAnswer::Chosen { backend, passed_over }) => (backend, passed_over),
            Ok(_) => return Err(HelperError::Confused.into()),
            Err(HelperError::Refused(why)) => anyhow::bail!("{why}"),
            Err(error) => return Err(error.into()),
        };
        let gate = RemoteGate::new(backend, orders, Asked::new(looks, &link), doubts)?;
        let asked = |line| Asked::new(line, &link);
        let connections = RemoteConnections::new(asked(lists), asked(behind));
        Ok(Self { gate, connections, passed_over, gone })
    }
}

fn split<const N: usize>(pairs: [(Line, Line); N]) -> ([Line; N], [Line; N]) {
    let mut theirs = Vec::with_capacity(N);
    let ours = pairs.map(|(ours, its)| {
        theirs.push(its);
        ours
    });
    match theirs.try_into() {
        Ok(theirs) => (ours, theirs),
        Err(_) => unreachable!("one for each"),
    }
}
