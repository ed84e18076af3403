//! Runs one tool of the system: by absolute path, with a cleared environment, its input on stdin,
//! under a time limit, its exit status and its complaints reported.
//!
//! It knows no tool in particular; what to run and what an answer means is the caller's business.

use crate::priority::unhurried;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// What a tool may print, in bytes, before it is stopped. The rules of a large container host are
/// some tens of megabytes.
const OUTPUT_LIMIT: u64 = 128 * 1024 * 1024;
/// How much of a tool's complaint an error repeats, in characters.
const COMPLAINT_LIMIT: usize = 600;

/// One run of a tool: what is run, and for how long it may take.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    path: &'a Path,
    args: Vec<&'a str>,
    stdin: &'a [u8],
    variables: Vec<(&'a str, &'a str)>,
    time_limit: Duration,
}

/// What a tool left behind that was allowed to fail.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about; a tool that succeeds may warn here.
    pub stderr: String,
}

/// Why a run did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The path is not absolute: nothing is looked up in a search path.
    #[error("{0} is not an absolute path; name the tool by its full path")]
    NotAbsolute(PathBuf),
    /// The tool could not be started.
    #[error("cannot start {path}; check that it is there and may be executed")]
    Start {
        /// The tool.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its input or output broke.
    #[error("cannot talk to {path}")]
    Talk {
        /// The tool.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error(
        "{command} did not end within {limit:?} and was killed; is the machine overloaded, or another program holding a lock?"
    )]
    TimeLimit {
        /// The tool and its arguments.
        command: String,
        /// The limit.
        limit: Duration,
    },
    /// It printed more than anybody could want.
    #[error("{command} printed more than {} MiB and was killed", OUTPUT_LIMIT / (1024 * 1024))]
    TooMuchOutput {
        /// The tool and its arguments.
        command: String,
    },
    /// It said that it failed.
    #[error("{command} failed ({status}){}", said(.stderr))]
    Failed {
        /// The tool and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it complained about, all of it.
        stderr: String,
    },
}

impl ProcessError {
    /// The exit code of a tool that ran and said that it failed.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Failed { status, .. } => status.code(),
            _ => None,
        }
    }

    /// What a tool that ran and failed complained about; empty if it never got that far.
    pub fn complaint(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } => stderr,
            _ => "",
        }
    }
}

impl<'a> Run<'a> {
    /// How long a tool may take if nothing else is said.
    pub const TIME_LIMIT: Duration = Duration::from_secs(8);

    /// Prepares a run of the tool at this absolute path.
    pub fn new(path: &'a Path, args: &[&'a str]) -> Self {
        let (args, time_limit) = (args.to_vec(), Self::TIME_LIMIT);
        Self { path, args, stdin: &[], variables: Vec::new(), time_limit }
    }

    /// Gives the tool this input; without it, it reads nothing.
    pub fn stdin(mut self, input: &'a str) -> Self {
        self.stdin = input.as_bytes();
        self
    }

    /// Adds variables to its environment, in which there are no others but `LC_ALL`.
    pub fn variables(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// Sets how long the tool may take.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs the tool, and fails if it fails.
    ///
    /// What a successful tool writes to stderr is a warning, and logged as one.
    pub async fn output(self) -> Result<String, ProcessError> {
        let command = self.command_line();
        let Finished { status, stdout, stderr } = self.finish().await?;
        if !status.success() {
            return Err(ProcessError::Failed { command, status, stderr });
        }
        if !stderr.trim().is_empty() {
            tracing::debug!(%command, stderr = %shortened(&stderr), "a tool warned");
        }
        Ok(stdout)
    }

    /// Runs the tool; how it ended is the caller's to judge.
    ///
    /// When the future is dropped, the tool is killed, and all that it has started: it may be a script
    /// around another one, which must not go on by itself. It runs in a process group of its own, so
    /// that a Ctrl-C in the terminal doesn't stop it half-way.
    pub async fn finish(self) -> Result<Finished, ProcessError> {
        if !self.path.is_absolute() {
            return Err(ProcessError::NotAbsolute(self.path.into()));
        }
        let mut command = Command::new(self.path);
        command
            .args(&self.args)
            .env_clear()
            .env("LC_ALL", "C")
            .envs(self.variables.iter().copied())
            .current_dir("/")
            .stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = unhurried(|| command.spawn())
            .map_err(|source| ProcessError::Start { path: self.path.into(), source })?;
        let mut group = Group::of(&child);
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let talk = async {
            // All three at once: a tool that answers while it reads would else wait for us, and
            // we for it.
            let feed = async {
                match stdin {
                    Some(mut pipe) => broken_pipe_is_fine(pipe.write_all(self.stdin).await),
                    None => Ok(()),
                }
            };
            let ((), stdout, stderr) = tokio::try_join!(feed, all_of(stdout), all_of(stderr))?;
            if stdout.len() as u64 > OUTPUT_LIMIT || stderr.len() as u64 > OUTPUT_LIMIT {
                return Ok(None);
            }
            Ok::<_, io::Error>(Some((child.wait().await?, stdout, stderr)))
        };
        let outcome = tokio::time::timeout(self.time_limit, talk).await;
        match outcome {
            Err(_) => Err(ProcessError::TimeLimit {
                command: self.command_line(),
                limit: self.time_limit,
            }),
            Ok(Err(source)) => Err(ProcessError::Talk { path: self.path.into(), source }),
            Ok(Ok(None)) => Err(ProcessError::TooMuchOutput { command: self.command_line() }),
            Ok(Ok(Some((status, stdout, stderr)))) => {
                group.spare();
                Ok(Finished { status, stdout: text(&stdout), stderr: text(&stderr) })
            }
        }
    }

    fn command_line(&self) -> String {
        let mut line = self.path.display().to_string();
        for arg in &self.args {
            line.push(' ');
            line.push_str(arg);
        }
        line
    }
}

/// The process group of a child that has not been waited for: its number is nobody else's yet.
/// When it is dropped, all that is in it is killed.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    pub(crate) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    pub(crate) fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // It may be gone.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// Its child has been waited for: what is left of it is left alone.
    pub(crate) const fn spare(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A tool that ends before it has read everything says why by its status.
fn broken_pipe_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

async fn all_of(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_LIMIT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(stderr: &str) -> String {
    let complaint = shortened(stderr);
    if complaint.is_empty() { String::new() } else { format!(": {complaint}") }
}

/// The lines of a complaint on one line, cut to a length that a log can bear.
fn shortened(stderr: &str) -> String {
    let lines: Vec<_> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.join(" | ");
    match joined.char_indices().nth(COMPLAINT_LIMIT) {
        Some((end, _)) => format!("{}…", joined.get(..end).unwrap_or_default()),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const SH: &str = "/bin/sh";

    fn sh(script: &'static str) -> Run<'static> {
        Run::new(Path::new(SH), &["-c", script])
    }

    #[tokio::test]
    async fn input_goes_in_and_output_comes_back() {
        let big = "a line of input\n".repeat(100_000);
        let out = Run::new(Path::new("/bin/cat"), &[]).stdin(&big).output().await.unwrap();
        assert_eq!(out, big);
    }

    #[tokio::test]
    async fn nothing_of_our_environment_is_passed_on() {
        // Positive control: there is something to pass on.
        assert!(std::env::vars_os().next().is_some());
        let out = Run::new(Path::new("/usr/bin/env"), &[]).output().await.unwrap();
        assert_eq!(out, "LC_ALL=C\n");
    }

    #[tokio::test]
    async fn a_failure_tells_command_status_and_complaint() {
        let error = sh("echo first >&2; echo second >&2; exit 3").output().await.unwrap_err();
        assert_eq!(error.exit_code(), Some(3));
        let message = error.to_string();
        assert!(message.contains("/bin/sh -c"), "{message}");
        assert!(message.ends_with("(exit status: 3): first | second"), "{message}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed() {
        let began = Instant::now();
        let run = sh("echo $$; exec sleep 600").time_limit(Duration::from_millis(200));
        let error = run.output().await.unwrap_err();
        assert!(matches!(error, ProcessError::TimeLimit { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn what_a_tool_that_hangs_has_started_is_killed_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
        let run = Run::new(Path::new(SH), &["-c", &script]).time_limit(Duration::from_secs(2));
        let error = run.output().await.unwrap_err();
        assert!(matches!(error, ProcessError::TimeLimit { .. }), "{error}");
        let left = std::fs::read_to_string(pid).unwrap();
        // A zombie, whom an init that reaps nothing leaves lying, is dead.
        let lives = || {
            std::fs::read_to_string(format!("/proc/{}/stat", left.trim()))
                .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while lives() {
            assert!(Instant::now() < deadline, "{left} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_tool_that_reads_nothing_still_tells_its_status() {
        let big = "x".repeat(4 << 20);
        let error = sh("exit 9").stdin(&big).output().await.unwrap_err();
        assert_eq!(error.exit_code(), Some(9));
    }

    #[tokio::test]
    async fn what_is_missing_or_relative_is_not_run() {
        let error = Run::new(Path::new("/nonexistent/tool"), &[]).output().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/tool"), "{error}");
        let error = Run::new(Path::new("sh"), &["-c", "true"]).output().await.unwrap_err();
        assert!(matches!(error, ProcessError::NotAbsolute(_)), "{error}");
    }

    #[test]
    fn a_long_complaint_is_cut() {
        let cut = shortened(&"é".repeat(5000));
        assert_eq!(cut.chars().count(), COMPLAINT_LIMIT + 1);
    }
}
