//! Runs one command of the administrator's: cleared environment, nothing on its input, a time
//! limit that ends all that it has started.
//!
//! Other than a tool of the system it may leave programs behind when it ends, which must not be
//! waited for; and what it prints is nobody's business unless it fails.

use super::command::{CommandLine, Occasion, environment};
use crate::priority::unhurried;
use crate::process::{Group, ProcessError};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};

/// How much of a complaint is kept, in bytes.
const COMPLAINT_LIMIT: usize = 4096;
/// How long the complaint of a command that has ended is waited for.
const AFTERMATH: Duration = Duration::from_millis(100);

/// A command that was begun, by which a later process knows it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Running {
    /// Its process, which leads a group of its own.
    pid: i32,
    /// When that started, in the kernel's ticks.
    started: u64,
    /// The session that it is in, as is all of its group.
    session: i32,
}

impl Running {
    fn of(child: &Child) -> Option<Self> {
        let pid = i32::try_from(child.id()?).ok()?;
        let Stat { started, session, .. } = Stat::read(pid)?;
        Some(Self { pid, started, session })
    }

    /// Kills what an earlier process of this boot has begun and left: it could still open what is
    /// about to be closed.
    pub(super) fn kill(self) {
        let Some(group) = self.group() else { return };
        let is_ours = match Stat::read(self.pid) {
            Some(leader) => leader.started == self.started,
            // The number of a group that is gone may be another's by now, whose leader has ended too.
            None => session_of(self.pid) == Some(self.session),
        };
        if !is_ours {
            return;
        }
        let deadline = Instant::now().checked_add(AFTERMATH);
        // Until nobody is left in it; the dead may stay for a while until somebody sweeps them up.
        while killpg(group, Signal::SIGKILL).is_ok() && deadline > Some(Instant::now()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Of what a damaged record says, 0 would be our own group, and 1 all processes there are.
    fn group(self) -> Option<Pid> {
        (self.pid > 1).then(|| Pid::from_raw(self.pid))
    }
}

/// What the kernel says of a process (`proc_pid_stat(5)`).
struct Stat {
    group: i32,
    session: i32,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        // From field 3 on, the state.
        let mut fields = fields.split_ascii_whitespace();
        let group = fields.nth(2)?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self { group, session, started })
    }
}

/// The session that the processes of a group are in, if there are any.
fn session_of(group: i32) -> Option<i32> {
    let all = std::fs::read_dir("/proc").ok()?;
    let mut numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.find_map(|pid| Stat::read(pid).filter(|stat| stat.group == group)).map(|it| it.session)
}

/// Runs the command, and fails if it fails. `begun` is told as soon as it runs.
///
/// When the future is dropped, or the limit reached, its process group is killed.
pub(super) async fn run(
    line: &CommandLine,
    occasion: &Occasion,
    limit: Duration,
    begun: impl FnOnce(Running),
) -> Result<(), ProcessError> {
    let arguments = line.arguments(occasion);
    let command = || {
        let words = std::iter::once(line.program().display().to_string());
        words.chain(arguments.iter().cloned()).collect::<Vec<_>>().join(" ")
    };
    let mut child = Command::new(line.program());
    child
        .args(&arguments)
        .env_clear()
        .envs(environment(occasion))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = unhurried(|| child.spawn())
        .map_err(|source| ProcessError::Start { path: line.program().into(), source })?;
    let mut group = Group::of(&child);
    if let Some(running) = Running::of(&child) {
        begun(running);
    }
    let mut complaint = Vec::new();
    let ended = {
        let pipe = child.stderr.take();
        let mut listening = pin!(listen(pipe, &mut complaint));
        let mut heard_all = false;
        let ended = tokio::time::timeout(limit, async {
            loop {
                tokio::select! {
                    status = child.wait() => return status,
                    () = &mut listening, if !heard_all => heard_all = true,
                }
            }
        })
        .await;
        if !heard_all && ended.is_ok() {
            // Whatever it has left running may hold the pipe open.
            let _ = tokio::time::timeout(AFTERMATH, listening).await;
        }
        ended
    };
    match ended {
        Err(_) => {
            group.kill();
            // Nothing resists, but a disk may keep it for a while.
            let _ = tokio::time::timeout(AFTERMATH, child.wait()).await;
            Err(ProcessError::TimeLimit { command: command(), limit })
        }
        Ok(Err(source)) => Err(ProcessError::Talk { path: line.program().into(), source }),
        Ok(Ok(status)) => {
            group.spare();
            let stderr = String::from_utf8_lossy(&complaint).into_owned();
            if !status.success() {
                return Err(ProcessError::Failed { command: command(), status, stderr });
            }
            if !stderr.trim().is_empty() {
                tracing::debug!(command = command(), %stderr, "a hook command warned");
            }
            Ok(())
        }
    }
}

async fn listen(pipe: Option<ChildStderr>, complaint: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut some = [0; 1024];
    while let Ok(count @ 1..) = pipe.read(&mut some).await {
        // What is too much is read all the same: nobody is to wait for us.
        let room = COMPLAINT_LIMIT.saturating_sub(complaint.len());
        complaint.extend(some.iter().take(count.min(room)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::Action;
    use super::*;
    use crate::gate::types::Element;
    use crate::service::Target;
    use std::fs;
    use std::io::BufRead as _;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn sh(script: &str, limit: Duration) -> Result<(), ProcessError> {
        let words = ["/bin/sh", "-c", script, "{source}"].map(str::to_owned);
        let element =
            Element { source: "192.0.2.7".parse().unwrap(), ports: "tcp/22".parse().unwrap() };
        let occasion =
            Occasion { action: Action::Open, element, target: Target::Here, seconds: 30 };
        run(&CommandLine::parse(&words).unwrap(), &occasion, limit, drop).await
    }

    #[tokio::test]
    async fn it_gets_its_environment_and_nothing_of_ours() {
        // Positive control: there is something to pass on.
        assert!(std::env::vars_os().next().is_some());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seen");
        let script = format!("(env; pwd; echo \"$0\"; cat) >{}", path.display());
        sh(&script, LIMIT).await.unwrap();
        let seen = fs::read_to_string(path).unwrap();
        let names: Vec<_> =
            seen.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        let others: Vec<_> = names
            .into_iter()
            .filter(|name| !name.starts_with("SPA_") && !["PATH", "LC_ALL", "PWD"].contains(name))
            .collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(
            seen.contains("SPA_SOURCE=192.0.2.7\n") && seen.ends_with("/\n192.0.2.7\n"),
            "{seen}"
        );
    }

    #[tokio::test]
    async fn a_failure_tells_status_and_complaint() {
        let error = sh("echo no such zone >&2; exit 3", LIMIT).await.unwrap_err();
        assert_eq!(error.exit_code(), Some(3));
        assert!(error.to_string().ends_with("(exit status: 3): no such zone"), "{error}");
        let error = sh("kill -9 $$", LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("signal: 9"), "{error}");
    }

    #[tokio::test]
    async fn a_flood_of_words_blocks_nobody_and_is_cut() {
        let error = sh("yes | head -c 1000000 >&2; exit 1", LIMIT).await.unwrap_err();
        assert_eq!(error.complaint().len(), COMPLAINT_LIMIT);
    }

    #[tokio::test]
    async fn what_it_leaves_behind_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let began = Instant::now();
        sh(&format!("sleep 60 & echo $! >{}", pid.display()), LIMIT).await.unwrap();
        assert!(began.elapsed() < LIMIT);
        let left: i32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn at_the_limit_all_that_it_started_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! >{}; wait", pid.display());
        let error = sh(&script, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(error, ProcessError::TimeLimit { .. }), "{error}");
        let left: i32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + LIMIT;
        while is_alive(left) {
            assert!(Instant::now() < deadline, "{left} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn what_an_earlier_process_has_left_is_killed_and_nobody_else() {
        let left = |lines: &str| {
            let mut child = std::process::Command::new("/bin/sh");
            std::os::unix::process::CommandExt::process_group(&mut child, 0);
            child.args(["-c", lines]).stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut child = left("sleep 60 & echo $!; wait");
        let mut line = String::new();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        { output }.read_line(&mut line).unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let Stat { started, session, .. } = Stat::read(pid).unwrap();
        let running = Running { pid, started, session };
        // A process that has got the number since is another one.
        Running { started: started + 1, ..running }.kill();
        assert!(child.try_wait().unwrap().is_none());
        running.kill();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        assert!(!is_alive(grandchild));
        running.kill();
    }

    #[test]
    fn a_group_whose_leader_has_ended_is_killed_unless_it_is_in_another_session() {
        let mut child = std::process::Command::new("/bin/sh");
        std::os::unix::process::CommandExt::process_group(&mut child, 0);
        child.args(["-c", "sleep 60 >/dev/null & echo $!"]).stdout(Stdio::piped());
        let child = child.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let output = child.wait_with_output().unwrap();
        let left: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        // The leader is gone, and whoever is left in its group is of no known age.
        let session = Stat::read(left).unwrap().session;
        let running = Running { pid, started: 0, session };
        Running { session: session.wrapping_add(1), ..running }.kill();
        assert!(is_alive(left));
        running.kill();
        assert!(!is_alive(left));
    }

    #[test]
    fn a_damaged_record_does_not_have_everybody_killed() {
        let group = |pid| Running { pid, started: 7, session: 7 }.group();
        assert_eq!([-1, 0, 1].map(group), [None; 3]);
        assert_eq!(group(2), Some(Pid::from_raw(2)));
    }

    /// A zombie, whom an init that reaps nothing leaves lying, is dead.
    fn is_alive(pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
    }
}
