//! A daemon of others', in a namespace, with what it prints in a file.

use crate::command::finish;
use crate::lab::Host;
use crate::programs::program;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// See the module's text.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
}

/// Counts what a growing file says: only what is new is read.
pub(super) struct Tail {
    file: File,
    what: &'static str,
    count: usize,
    /// What may be the beginning of one.
    rest: String,
}

impl Tail {
    pub(super) fn of(path: &Path, what: &'static str) -> Result<Self> {
        Ok(Self { file: File::open(path)?, what, count: 0, rest: String::new() })
    }

    /// How often it stands there so far, in complete lines.
    pub(super) fn count(&mut self) -> Result<usize> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let rest = self.rest.rfind('\n').map(|end| self.rest.split_off(end + 1));
        if let Some(rest) = rest {
            self.count += self.rest.matches(self.what).count();
            self.rest = rest;
        }
        Ok(self.count)
    }
}

impl Daemon {
    /// Starts `words`, of which the first is a path or a program of Debian's, and waits until the file
    /// `log` says `ready`; standard output and standard error go there too.
    pub(super) fn start(host: &Host, words: &[&str], log: &Path, ready: &str) -> Result<Self> {
        let (name, arguments) = words.split_first().context("no program")?;
        let path = if name.contains('/') { name.into() } else { installed(name, program)? };
        let output = File::create(log)?;
        let mut command = host.command(path)?;
        command.args(arguments).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output).env_remove("NOTIFY_SOCKET");
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut daemon = Self { child, log: log.to_owned() };
        eventually(&format!("{name} is to say {ready:?}"), || {
            daemon.check().with_context(|| format!("starting {name}"))?;
            Ok(daemon.said()?.contains(ready).then_some(()))
        })?;
        Ok(daemon)
    }

    /// That it has not ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it has ended ({status}): {}", self.said()?),
            None => Ok(()),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has printed.
    pub(super) fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Counts how often it says this, from its start on.
    pub(super) fn count(&self, what: &'static str) -> Result<Tail> {
        Tail::of(&self.log, what)
    }

    /// Kills it, and whatever else runs in the namespace, which is nobody else's.
    pub(super) fn kill(&mut self, host: &Host) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let pids = finish(Command::new(program("ip")?).args(["netns", "pids", host.namespace()]))?;
        for pid in pids.ok()?.split_whitespace() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        Ok(())
    }
}

/// Where a program of others is, as `find` knows it.
pub(super) fn installed(name: &str, find: fn(&str) -> Result<PathBuf>) -> Result<PathBuf> {
    find(name).map_err(|_| anyhow::anyhow!("{name} is not installed; `make bench` installs it"))
}

/// The firewall that a host of the others has: it refuses all but what is established, and what
/// they open.
pub(super) fn base_rules(host: &Host) -> Result<()> {
    for rule in [
        "-P INPUT DROP",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    ] {
        host.sh(&format!("iptables {rule}"))?;
    }
    Ok(())
}

/// Takes all rules away.
pub(super) fn clear_rules(host: &Host) -> Result<()> {
    for action in ["-P INPUT ACCEPT", "-F", "-X"] {
        host.sh(&format!("iptables {action}"))?;
    }
    Ok(())
}

/// Writes many rules at once.
pub(super) fn restore(host: &Host, directory: &Path, rules: &str) -> Result<()> {
    let file = directory.join("rules");
    fs::write(&file, format!("*filter\n{rules}COMMIT\n"))?;
    let path = file.to_str().context("a path that is no text")?;
    host.sh(&format!("iptables-restore --noflush {path}")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_a_growing_file_says_is_counted_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::of(file.path(), "opened").unwrap();
        assert_eq!(tail.count().unwrap(), 0);
        file.write_all(b"opened\nopened\nope").unwrap();
        assert_eq!(tail.count().unwrap(), 2);
        file.write_all(b"ned\n").unwrap();
        assert_eq!(tail.count().unwrap(), 3);
        assert_eq!(tail.count().unwrap(), 3);
    }
}
