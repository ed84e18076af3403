//! OpenSSH behind the gate: a real sshd with throw-away keys, and real sessions.

use crate::command::{Finished, finish};
use crate::lab::{Family, Host};
use crate::probe::PortState;
use crate::programs::program;
use crate::wait::{DEADLINE, eventually};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A running sshd that lets the test in.
pub struct Sshd {
    host: Host,
    directory: PathBuf,
    port: u16,
    child: Child,
}

impl Sshd {
    /// Starts sshd on `port` of every address of `host`, with its files in `directory`.
    pub fn start(host: &Host, directory: &Path, port: u16) -> Result<Self> {
        fs::create_dir_all(directory)?;
        // Debian's sshd does not start without it; its unit makes it, and here is no unit.
        fs::create_dir_all("/run/sshd").context("cannot create /run/sshd")?;
        let keygen = program("ssh-keygen")?;
        for name in ["host_key", "user_key"] {
            finish(
                Command::new(&keygen)
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                    .arg(directory.join(name)),
            )?
            .ok()?;
        }
        let public = fs::read_to_string(directory.join("host_key.pub"))?;
        fs::write(directory.join("known_hosts"), format!("gateway {public}"))?;
        let path = |name: &str| directory.join(name).display().to_string();
        let config = format!(
            "Port {port}\n\
             HostKey {}\n\
             AuthorizedKeysFile {}\n\
             PidFile none\n\
             StrictModes no\n\
             UsePAM {}\n\
             PermitRootLogin prohibit-password\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             UseDNS no\n\
             Subsystem sftp internal-sftp\n\
             LogLevel VERBOSE\n\
             MaxStartups 500\n",
            path("host_key"),
            path("user_key.pub"),
            if root_is_locked() { "yes" } else { "no" },
        );
        fs::write(directory.join("sshd_config"), config)?;
        let log = File::create(directory.join("sshd.log"))?;
        let child = host
            .command("sshd")?
            .args(["-D", "-e", "-f"])
            .arg(directory.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut sshd = Self { host: host.clone(), directory: directory.to_owned(), port, child };
        eventually("sshd is to listen", || {
            if let Some(status) = sshd.child.try_wait()? {
                bail!("sshd ended at once ({status}): {}", sshd.log()?);
            }
            let own = (Ipv4Addr::LOCALHOST, port).into();
            Ok((sshd.host.tcp(own)? == PortState::Open).then_some(()))
        })?;
        Ok(sshd)
    }

    /// What sshd logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log_path())?)
    }

    /// Where that is.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("sshd.log")
    }

    /// The lines of a configuration of ssh that every login here needs.
    pub fn client_lines(&self) -> String {
        format!(
            "    User root\n    Port {}\n    IdentityFile {}\n    UserKnownHostsFile {}\n    \
             HostKeyAlias gateway\n    StrictHostKeyChecking yes\n    IdentitiesOnly yes\n    \
             BatchMode yes\n    LogLevel ERROR\n",
            self.port,
            self.directory.join("user_key").display(),
            self.directory.join("known_hosts").display()
        )
    }

    /// What a user has who may log in: the private key, and the known hosts.
    pub fn users_files(&self) -> Result<[String; 2]> {
        let [key, known] = ["user_key", "known_hosts"].map(|name| self.directory.join(name));
        Ok([fs::read_to_string(key)?, fs::read_to_string(known)?])
    }

    /// Runs `command` over a new ssh connection from `host`.
    pub fn login(&self, host: &Host, family: Family, command: &str) -> Result<Finished> {
        self.login_as("root", host, family, command)
    }

    /// The same for another user than the one who may log in.
    pub fn login_as(
        &self,
        user: &str,
        host: &Host,
        family: Family,
        command: &str,
    ) -> Result<Finished> {
        finish(self.ssh(host, family)?.args(["-l", user]).arg(command))
    }

    /// Opens a session from `host` that stays, and proves that it is alive.
    pub fn session(&self, host: &Host, family: Family) -> Result<Session> {
        let mut session = self.start_session(host, family, "cat")?;
        session.ensure_alive()?;
        Ok(session)
    }

    /// Opens a session from `host` in which commands can be run, one after the other.
    pub fn shell(&self, host: &Host, family: Family) -> Result<Shell> {
        let mut shell = Shell(self.start_session(host, family, "exec sh")?);
        let (code, said) = shell.run("echo hello")?;
        ensure!(code == 0 && said == "hello\n", "the shell says {said:?} ({code})");
        Ok(shell)
    }

    fn start_session(&self, host: &Host, family: Family, command: &str) -> Result<Session> {
        let mut child = self
            .ssh(host, family)?
            .args(["-l", "root", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("ssh has no standard input")?;
        let stdout = child.stdout.take().context("ssh has no standard output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if line.map_or(true, |line| sender.send(line).is_err()) {
                    return;
                }
            }
        });
        Ok(Session { child, stdin, lines })
    }

    /// The ssh client, up to the command to run.
    fn ssh(&self, host: &Host, family: Family) -> Result<Command> {
        let mut command = host.command("ssh")?;
        command
            .args(["-F", "none", "-T", "-p", &self.port.to_string(), "-i"])
            .arg(self.directory.join("user_key"))
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.directory.join("known_hosts").display()));
        for option in [
            "HostKeyAlias=gateway",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=10",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.arg(self.host.address(family).to_string());
        command.env_remove("SSH_AUTH_SOCK");
        Ok(command)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An established ssh session.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    /// Sends a line through the session and waits until it comes back; gives the time it took.
    pub fn ensure_alive(&mut self) -> Result<Duration> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let line = format!("still there {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        let echoed = writeln!(self.stdin, "{line}")
            .and_then(|()| self.stdin.flush())
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.lines.recv_timeout(DEADLINE)?));
        match echoed {
            Ok(answer) => {
                ensure!(answer == line, "the session answers {answer:?} to {line:?}");
                Ok(start.elapsed())
            }
            Err(error) => {
                let status = self.child.try_wait()?;
                bail!("the ssh session is dead ({error}; ssh: {status:?})")
            }
        }
    }
}

/// An established ssh session with a shell at its other end.
pub struct Shell(Session);

impl Shell {
    /// Runs a command; gives back its exit status, and what it said on both its outputs.
    pub fn run(&mut self, command: &str) -> Result<(i32, String)> {
        const END: &str = "the end, with status ";
        let Session { stdin, lines, .. } = &mut self.0;
        writeln!(stdin, "{command} 2>&1; echo \"{END}$?\"")?;
        stdin.flush()?;
        let mut said = String::new();
        loop {
            let line = lines.recv_timeout(DEADLINE).context("the shell does not answer")?;
            if let Some(status) = line.strip_prefix(END) {
                return Ok((status.parse()?, said));
            }
            said.push_str(&line);
            said.push('\n');
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without PAM, sshd lets nobody in whose password is locked with `!`, with PAM it does.
fn root_is_locked() -> bool {
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    shadow.lines().any(|line| line.starts_with("root:!"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn a_session_echoes_until_it_is_cut_off() {
        let lab = Lab::new().unwrap();
        let sshd = Sshd::start(lab.server(), &lab.directory().join("ssh"), 22).unwrap();
        for family in Family::BOTH {
            let answer = sshd.login(lab.owner(), family, "echo hello").unwrap().ok().unwrap();
            assert_eq!(answer, "hello\n");
        }
        let mut session = sshd.session(lab.owner(), Family::V4).unwrap();
        session.ensure_alive().unwrap();
        drop(sshd);
        session.child.kill().unwrap();
        session.child.wait().unwrap();
        assert!(session.ensure_alive().unwrap_err().to_string().contains("dead"));
    }
}
