//! Somebody who has never used this: a user of a host's own, without root, with an empty home and a
//! terminal (tmux) to type in.

use crate::command::finish;
use crate::lab::Host;
use crate::programs::{our_binary, program};
use crate::wait::eventually_within;
use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Nobody's on Debian.
const UID: u32 = 60_321;
/// What the shell says when it has nothing to do.
const PROMPT: &str = "laptop$ ";
/// Commands here go over a network, and machines may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// See the module's text.
pub struct Newcomer {
    host: Host,
    directory: TempDir,
}

impl Newcomer {
    /// Makes the user, and opens the terminal.
    pub fn new(host: &Host) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let newcomer = Self { host: host.clone(), directory };
        let home = newcomer.home();
        // OpenSSH asks passwd, and not $HOME, where somebody is at home.
        let users = fs::read_to_string("/etc/passwd")?;
        let user = format!("newcomer:x:{UID}:{UID}::{}:/bin/sh\n", home.display());
        fs::write(host.overlay().join("passwd"), format!("{users}{user}"))?;
        fs::create_dir(&home)?;
        fs::create_dir(newcomer.bin())?;
        // The directory that it was built in need not be open to everybody.
        fs::copy(our_binary("spa-client")?, newcomer.bin().join("spa-client"))?;
        chown(&home, Some(UID), Some(UID))?;
        let mut start = newcomer.tmux()?;
        start.args(["new-session", "-d", "-x", "100", "-y", "50", "/bin/sh"]).current_dir(&home);
        finish(&mut start)?.ok()?;
        newcomer.await_screen("a prompt", |screen| screen == PROMPT.trim_end())?;
        Ok(newcomer)
    }

    /// The home directory.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Where `spa-client` is.
    pub fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// Puts a file of mode 0600 into the home.
    pub fn give(&self, name: &str, content: &str) -> Result<()> {
        let path = self.home().join(name);
        let parent = path.parent().context("a file lies in a directory")?;
        if !parent.is_dir() {
            fs::create_dir(parent)?;
            fs::set_permissions(parent, Permissions::from_mode(0o700))?;
            chown(parent, Some(UID), Some(UID))?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(chown(&path, Some(UID), Some(UID))?)
    }

    /// Types a line, and Enter.
    pub fn types(&self, line: &str) -> Result<()> {
        finish(self.tmux()?.args(["send-keys", "-l", "--", line]))?.ok()?;
        finish(self.tmux()?.args(["send-keys", "Enter"]))?.ok()?;
        Ok(())
    }

    /// Types a command of the own shell, and waits until that has its prompt again.
    pub fn runs(&self, command: &str) -> Result<String> {
        let before = prompts(&self.screen()?);
        self.types(command)?;
        self.await_screen(command, |screen| prompts(screen) == before + 1 && is_prompted(screen))
    }

    /// Waits until what was written to the terminal since it was opened is as `is` wants it.
    pub fn await_screen(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let waited = eventually_within(DEADLINE, what, || {
            let screen = self.screen()?;
            Ok(is(&screen).then_some(screen))
        });
        waited.with_context(|| format!("the screen:\n{}", self.screen().unwrap_or_default()))
    }

    /// All that was written to the terminal, lines that were wrapped in one, without blanks at
    /// their ends.
    fn screen(&self) -> Result<String> {
        let printed = finish(self.tmux()?.args(["capture-pane", "-p", "-J", "-S", "-"]))?.ok()?;
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        Ok(lines.join("\n").trim_end().to_owned())
    }

    /// tmux with a socket of its own, on the host and as the user.
    fn tmux(&self) -> Result<Command> {
        let mut command = self.host.command("setpriv")?;
        let uid = UID.to_string();
        command
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
            .arg(program("tmux")?)
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(self.home().join(".tmux"))
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.bin().display()))
            .env("HOME", self.home())
            .env("LANG", "C.UTF-8")
            .env("PS1", PROMPT);
        Ok(command)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Ok(mut tmux) = self.tmux() {
            let _ = finish(tmux.arg("kill-server"));
        }
    }
}

fn prompts(screen: &str) -> usize {
    screen.lines().filter(|line| line.starts_with(PROMPT.trim_end())).count()
}

fn is_prompted(screen: &str) -> bool {
    screen.lines().next_back() == Some(PROMPT.trim_end())
}
