//! Running programs to their end, with a time limit and everything they said.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No program that a test waits for takes this long.
const LIMIT: Duration = Duration::from_secs(120);

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output, if the program ended with success.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("{self}");
        }
        Ok(self.stdout)
    }

    /// Whether it ended with success.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Standard output and standard error, one after the other.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}{}", self.command, self.status, self.stdout, self.stderr)
    }
}

/// Runs the command to its end.
pub fn finish(command: &mut Command) -> Result<Finished> {
    finish_within(LIMIT, command)
}

/// Runs the command to its end; one that takes longer than `limit` is killed, and an error.
pub fn finish_within(limit: Duration, command: &mut Command) -> Result<Finished> {
    run(limit, command.stdin(Stdio::null()), "")
}

/// Runs the command to its end; it reads `input`.
pub fn finish_reading(input: &str, command: &mut Command) -> Result<Finished> {
    run(LIMIT, command.stdin(Stdio::piped()), input)
}

fn run(limit: Duration, command: &mut Command, input: &str) -> Result<Finished> {
    let text = Quoted(command).to_string();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {text}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it doesn't read it doesn't need.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{text} did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let text_of = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Finished { command: text, status, stdout: text_of(stdout), stderr: text_of(stderr) })
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What a killed program did not say is no error of the reader.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A command as one would type it.
pub struct Quoted<'a>(pub &'a Command);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<_> =
            std::iter::once(self.0.get_program()).chain(self.0.get_args()).collect();
        // `ip netns exec NAMESPACE PROGRAM` reads better as `PROGRAM`.
        if words.get(1).is_some_and(|word| *word == "netns") && words.len() > 4 {
            words.drain(..4);
        }
        // Likewise what enters a machine's namespaces, of which this is the last.
        let last = words.iter().position(|word| word.as_encoded_bytes().starts_with(b"--pid=/"));
        words.drain(..last.map_or(0, |last| last + 1));
        let (program, arguments) = words.split_first().ok_or(fmt::Error)?;
        let name = Path::new(program).file_name().unwrap_or(program);
        write!(f, "{}", name.to_string_lossy())?;
        arguments.iter().try_for_each(|word| write!(f, " {}", word.to_string_lossy()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_an_error_with_all_it_said() {
        let finished =
            finish(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!(finished.said(), "out\nerr\n");
        assert!(finished.ok().unwrap_err().to_string().contains("exit status: 3"));
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let limit = Duration::from_millis(50);
        let error = finish_within(limit, Command::new("sleep").arg("60")).unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
