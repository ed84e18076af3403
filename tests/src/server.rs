//! The real `spa-server`, in a namespace, with its files in a directory of the test.

use crate::command::{Finished, Quoted, finish};
use crate::config::Configuration;
use crate::lab::{Host, Lab};
use crate::programs::{faketime, our_binary};
use crate::state::TinyDisk;
use crate::wait::{DEADLINE, eventually, eventually_within};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spa_server::control::{ControlRequest, ControlResponse, GrantView, Status, call};
use spa_server::replay_store::{BootId, FileStore, Mark, ReplayStore, Snapshot};
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The replay store's file in the state directory.
pub(crate) const REPLAY_STORE: &str = "replay.log";

/// `InaccessiblePaths=-/sys/kernel/btf`, and on with the program.
const HIDING_TYPES: &str =
    "[ ! -d /sys/kernel/btf ] || mount -t tmpfs -o ro,mode=0 none /sys/kernel/btf; exec \"$@\"";

/// A server: its configuration, and the process while it runs.
pub struct Server {
    host: Host,
    directory: PathBuf,
    configuration: Configuration,
    environment: Vec<(OsString, OsString)>,
    disk: Option<TinyDisk>,
    /// Whether it sees of the kernel what the unit lets it see.
    as_in_the_unit: bool,
    /// Where it logs to, if not to its file.
    log: Option<File>,
    child: Option<Child>,
}

impl Server {
    /// Writes the configuration below `directory`; nothing is started. The replay store is that
    /// of a server that was stopped cleanly, so that no barrier stands at the first start.
    pub fn new(host: &Host, directory: &Path, configuration: Configuration) -> Result<Self> {
        configuration.write(directory)?;
        let server = Self {
            host: host.clone(),
            directory: directory.to_owned(),
            configuration,
            environment: Vec::new(),
            disk: None,
            as_in_the_unit: false,
            log: None,
            child: None,
        };
        server.seed_replay_store()?;
        Ok(server)
    }

    /// The server whose files `spa-server init --dir` has made.
    pub fn initialized(host: &Host, directory: &Path) -> Self {
        Self {
            host: host.clone(),
            directory: directory.to_owned(),
            // The same places; services and clients are what the files say.
            configuration: Configuration::new(directory),
            environment: Vec::new(),
            disk: None,
            as_in_the_unit: false,
            log: None,
            child: None,
        }
    }

    /// Writes an empty replay store with the mark of a clean stop.
    pub fn seed_replay_store(&self) -> Result<()> {
        let (mut store, _, _) = FileStore::load(&self.replay_store(), BootId([0; 16]));
        store.rewrite(&Snapshot::default(), Mark::Clean)?;
        Ok(())
    }

    /// Sets an environment variable for the process.
    pub fn set_env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Gives the process a realtime clock of its own, which the test sets.
    pub fn with_clock(&mut self) -> Result<Clock> {
        let clock = Clock { file: self.directory.join("clock") };
        clock.set(0)?;
        self.set_env("LD_PRELOAD", faketime()?);
        self.set_env("DONT_FAKE_MONOTONIC", "1");
        self.set_env("FAKETIME_TIMESTAMP_FILE", &clock.file);
        self.set_env("FAKETIME_NO_CACHE", "1");
        Ok(clock)
    }

    /// Hides the types of the kernel from the process, as the unit does: what loads the prefilter would
    /// read all of them.
    pub(crate) fn as_in_the_unit(&mut self) {
        self.as_in_the_unit = true;
    }

    /// From its next start on the process logs there, and not to its file.
    pub fn log_into(&mut self, log: File) {
        self.log = Some(log);
    }

    /// Puts the state directory on a disk of its own of so many KiB, which only the server's
    /// mount namespace sees.
    pub fn with_tiny_disk(&mut self, kib: u32) -> Result<&TinyDisk> {
        let disk = TinyDisk::mount(&self.configuration.state_directory, kib)?;
        let seed = self.replay_store();
        fs::copy(&seed, disk.path_of(&seed))?;
        Ok(self.disk.insert(disk))
    }

    /// The tiny disk.
    pub fn disk(&self) -> Result<&TinyDisk> {
        self.disk.as_ref().context("this server has no disk of its own")
    }

    /// Starts the process and waits until it answers on its control socket.
    pub fn start(&mut self) -> Result<()> {
        self.start_within(DEADLINE)
    }

    /// The same, when a start may take longer than that of a usual server.
    pub(crate) fn start_within(&mut self, deadline: Duration) -> Result<()> {
        self.spawn()?;
        eventually_within(deadline, "spa-server is to answer on its control socket", || {
            if let Some(status) = self.ended()? {
                bail!("spa-server ended at its start ({status}):\n{}", self.log()?);
            }
            Ok(self.status().ok().map(|_| ()))
        })
        .with_context(|| self.log().unwrap_or_default())
    }

    /// Starts the process, expects that it refuses to run, and gives back how it ended and what
    /// it logged.
    pub fn start_in_vain(&mut self) -> Result<(ExitStatus, String)> {
        let before = self.log()?.len();
        self.spawn()?;
        let status = eventually("spa-server is to refuse to start", || self.ended())?;
        self.child = None;
        ensure!(!status.success(), "spa-server ended with success instead of an error");
        Ok((status, self.log()?.get(before..).unwrap_or_default().to_owned()))
    }

    fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "spa-server runs already");
        let log = match &self.log {
            Some(log) => log.try_clone()?,
            None => File::options().create(true).append(true).open(self.log_path())?,
        };
        let mut command = self.program()?;
        command.arg("run").arg("--config").arg(self.config_path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
        // `ip netns exec` passes it on; it works for it as well, and harms nothing there.
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let text = Quoted(&command).to_string();
        self.child = Some(command.spawn().with_context(|| format!("cannot start {text}"))?);
        Ok(())
    }

    /// `spa-server` where it sees its state directory.
    fn program(&self) -> Result<Command> {
        let program = our_binary("spa-server")?;
        match &self.disk {
            Some(disk) => disk.command(&self.host, program),
            None if self.as_in_the_unit => {
                let mut command = self.host.command("sh")?;
                // It has a mount namespace of its own by `ip netns exec`.
                command.arg("-c").arg(HIDING_TYPES).args(["sh".into(), program]);
                Ok(command)
            }
            None => self.host.command(program),
        }
    }

    /// How the process ended, if it did.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Ends the process with SIGTERM and waits until it is gone.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = eventually_within(DEADLINE, "spa-server is to stop", || self.ended())?;
        self.child = None;
        ensure!(status.success(), "spa-server ended with {status}:\n{}", self.log()?);
        Ok(())
    }

    /// Kills the process: it can do nothing about it.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("spa-server does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits until a process that is about to end has ended.
    pub fn await_end(&mut self) -> Result<ExitStatus> {
        self.await_end_within(DEADLINE)
    }

    /// The same, where it may take so long.
    pub fn await_end_within(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let Some(status) =
            eventually_within(deadline, "spa-server is to end", || match self.child {
                Some(_) => Ok(self.ended()?.map(Some)),
                None => Ok(Some(None)),
            })?
        else {
            bail!("spa-server did not run");
        };
        self.child = None;
        Ok(status)
    }

    /// Stops and starts.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Sends a signal to the process; one that stops it, or has it go on, to its helper as well.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut all = vec![self.pid()?];
        if matches!(signal, Signal::SIGSTOP | Signal::SIGCONT) {
            all.insert(0, self.helper_pid()?);
        }
        for pid in all {
            kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        }
        Ok(())
    }

    /// Writes another configuration in place of the present one; the process is not told.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Configuration)) -> Result<()> {
        change(&mut self.configuration);
        self.configuration.write(&self.directory)
    }

    /// The process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("spa-server does not run")?.id())
    }

    /// The process id of its gate helper.
    pub fn helper_pid(&self) -> Result<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.pid()?);
        let children = std::fs::read_to_string(&children).with_context(|| children.clone())?;
        let helper = children.split_ascii_whitespace().find_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            line.split(|byte| *byte == 0).any(|word| word == b"gate-helper").then_some(pid)
        });
        Ok(helper.context("spa-server has no gate helper")?.parse()?)
    }

    /// That it is still the same process, and has not complained of itself.
    pub fn ensure_unharmed(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("spa-server ended ({status}):\n{}", self.log()?);
        }
        let log = self.log()?;
        ensure!(!log.contains("panicked"), "spa-server panicked:\n{log}");
        ensure!(self.status()?.pid == self.pid()?, "another process answers");
        Ok(())
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its configuration.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The file of the configuration.
    pub fn config_path(&self) -> PathBuf {
        self.directory.join("server.toml")
    }

    /// The file of the replay store, as seen from outside.
    pub fn replay_store(&self) -> PathBuf {
        let path = self.configuration.state_directory.join(REPLAY_STORE);
        self.disk.as_ref().map_or(path.clone(), |disk| disk.path_of(&path))
    }

    /// The file of the keys that clients have announced, as seen from outside.
    pub fn enrolments(&self) -> PathBuf {
        let path = self.configuration.state_directory.join("enrolments");
        self.disk.as_ref().map_or(path.clone(), |disk| disk.path_of(&path))
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// All that the process has printed.
    pub fn log(&self) -> Result<String> {
        match fs::read(self.log_path()) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The lines of the audit trail about this event, as `opened`.
    pub fn audit(&self, event: &str) -> Result<Vec<String>> {
        let wanted = format!("event={event} ");
        Ok(self.log()?.lines().filter(|line| line.contains(&wanted)).map(Into::into).collect())
    }

    /// One of the administrator's commands, as `["grants", "list"]`.
    pub fn admin(&self, words: &[&str]) -> Result<Finished> {
        let mut command = self.admin_command(words)?;
        finish(&mut command)
    }

    /// One of the administrator's commands, not started yet.
    pub fn admin_command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.program()?;
        command.args(words).arg("--config").arg(self.config_path());
        Ok(command)
    }

    fn ask(&self, request: &ControlRequest) -> Result<ControlResponse> {
        Ok(call(&self.configuration.control_socket, request)?)
    }

    /// How it is.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&ControlRequest::Status)? {
            ControlResponse::Status(status) => Ok(*status),
            other => bail!("asked for the status, got {other:?}"),
        }
    }

    /// What is open.
    pub fn grants(&self) -> Result<Vec<GrantView>> {
        match self.ask(&ControlRequest::GrantsList)? {
            ControlResponse::Grants(grants) => Ok(grants),
            other => bail!("asked for the grants, got {other:?}"),
        }
    }

    /// Forgets all replay windows and the barrier.
    pub fn reset_replay_windows(&self) -> Result<()> {
        match self.ask(&ControlRequest::ResetReplayWindow { client: None })? {
            ControlResponse::Done => Ok(()),
            other => bail!("asked for a reset, got {other:?}"),
        }
    }

    /// How many datagrams were dropped for this reason.
    pub fn dropped(&self, reason: &str) -> Result<u64> {
        let status = self.status()?;
        let count = status.dropped.get(reason).copied();
        count.with_context(|| format!("status has no drop reason {reason:?}: {:?}", status.dropped))
    }

    /// Waits until `count` datagrams were dropped for this reason.
    pub fn await_dropped(&self, reason: &str, count: u64) -> Result<()> {
        eventually(&format!("{count} datagrams are to be dropped as {reason:?}"), || {
            Ok((self.dropped(reason)? >= count).then_some(()))
        })
        .with_context(|| self.account())?;
        let dropped = self.dropped(reason)?;
        ensure!(dropped == count, "{dropped} datagrams were dropped as {reason:?}, not {count}");
        Ok(())
    }

    /// How many datagrams were dropped, for whatever reason.
    pub fn dropped_in_all(&self) -> Result<u64> {
        Ok(self.status()?.dropped.values().sum())
    }

    /// Waits until `count` knocks were accepted since the start.
    pub fn await_accepted(&self, count: u64) -> Result<()> {
        eventually(&format!("{count} knocks are to be accepted"), || {
            Ok((self.status()?.accepted >= count).then_some(()))
        })
        .with_context(|| self.account())?;
        let accepted = self.status()?.accepted;
        ensure!(accepted == count, "{accepted} knocks were accepted, not {count}");
        Ok(())
    }

    /// What it says of itself, for the message of a test that failed.
    pub fn account(&self) -> String {
        let counted = self.status().map(|status| {
            let dropped: Vec<_> = status.dropped.iter().filter(|(_, count)| **count > 0).collect();
            format!(
                "accepted {}, opened {}, failed {}, dropped {dropped:?}",
                status.accepted, status.opened, status.failed
            )
        });
        let log = self.log().unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(30).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("the server says: {counted:?}\n{tail}")
    }

    /// What the kernel's sets hold: the truth about what is open.
    pub fn elements(&self) -> Result<Vec<String>> {
        let saved = self.host.sh("ipset save")?;
        Ok(saved
            .lines()
            .filter_map(|line| line.strip_prefix("add "))
            .map(|line| line.split(" timeout").next().unwrap_or(line).to_owned())
            .collect())
    }

    /// Whom the kernel admits, and for how many seconds, whatever the back-end.
    pub fn admitted(&self) -> Result<Vec<(IpAddr, u64)>> {
        let shown = self.admin(&["gate", "show", "--json"])?.ok()?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let admitted = shown.get("admitted").and_then(serde_json::Value::as_array);
        let element = |live: &serde_json::Value| {
            let source = live.get("element")?.get("source")?.as_str()?.parse().ok()?;
            Some((source, live.get("seconds-left")?.as_u64()?))
        };
        let admitted: Option<Vec<_>> = admitted.and_then(|all| all.iter().map(element).collect());
        admitted.with_context(|| format!("gate show prints {shown}"))
    }

    /// Whether anything of a gate is in the kernel, of whichever back-end.
    pub fn has_gate(&self) -> Result<bool> {
        let tables = self.host.sh("nft list tables")?;
        Ok(tables.contains("inet spa") || self.rules()?.contains("SPA-"))
    }

    /// All rules of all chains, without their counters.
    pub fn rules(&self) -> Result<String> {
        let mut rules = String::new();
        for save in ["iptables-save", "ip6tables-save"] {
            let saved = self.host.sh(save)?;
            for line in saved.lines().filter(|line| !line.starts_with('#')) {
                rules.push_str(line.split(" [").next().unwrap_or(line));
                rules.push('\n');
            }
        }
        Ok(rules)
    }

    /// Waits until the server says that no barrier stands, at most for `window` and some more.
    pub fn await_barrier_end(&self, window: Duration) -> Result<()> {
        eventually_within(window + DEADLINE, "the barrier is to end", || {
            let until = self.status()?.barrier_until;
            Ok(until.is_none_or(|until| until < crate::now()).then_some(()))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("the log of spa-server:\n{}", self.log().unwrap_or_default());
        }
    }
}

/// The realtime clock of one process.
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Sets it ahead of the real time by so many seconds (behind, if negative).
    pub fn set(&self, ahead: i64) -> Result<()> {
        // In one step: the process reads it at any time.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{ahead:+}\n"))?;
        Ok(fs::rename(&next, &self.file)?)
    }
}

impl Lab {
    /// A directory of this lab for the files of a server.
    pub fn server_directory(&self) -> PathBuf {
        self.directory().join("server")
    }
}
