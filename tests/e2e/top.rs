//! `spa-server top` in a real terminal, of 80 columns and 24 lines and of more: it shows what the daemon tells,
//! says when it is not there, finds it again, and leaves the terminal as it was.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spa_tests::{Family, Scene, eventually, finish, our_binary, program};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A terminal with a shell in it.
struct Terminal {
    directory: PathBuf,
}

impl Terminal {
    fn new(scene: &Scene, columns: &str, lines: &str) -> Result<Self> {
        let directory = scene.lab.directory().join("terminal");
        fs::create_dir_all(&directory)?;
        let terminal = Self { directory };
        let start = [
            "new-session",
            "-d",
            "-x",
            columns,
            "-y",
            lines,
            "env -i PATH=/usr/bin:/bin TERM=tmux PS1=ready: sh",
        ];
        finish(terminal.tmux()?.args(start))?.ok()?;
        terminal.await_shown("ready:")?;
        Ok(terminal)
    }

    fn tmux(&self) -> Result<Command> {
        let mut command = Command::new(program("tmux")?);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
        command.args(["-f", "/dev/null", "-S"]).arg(self.directory.join("socket"));
        Ok(command)
    }

    fn keys(&self, keys: &[&str]) -> Result<()> {
        finish(self.tmux()?.arg("send-keys").args(keys))?.ok().map(|_| ())
    }

    fn type_line(&self, line: &str) -> Result<()> {
        finish(self.tmux()?.args(["send-keys", "-l", "--", line]))?.ok()?;
        self.keys(&["Enter"])
    }

    fn shown(&self) -> Result<String> {
        finish(self.tmux()?.args(["capture-pane", "-p"]))?.ok()
    }

    fn await_shown(&self, text: &str) -> Result<String> {
        let mut last = String::new();
        eventually(&format!("the terminal is to show {text:?}"), || {
            last = self.shown()?;
            Ok(last.contains(text).then(|| last.clone()))
        })
        .with_context(|| self.shown().unwrap_or_default())
    }

    /// Whether the other screen is shown, and the cursor.
    fn modes(&self) -> Result<String> {
        let what = "#{alternate_on} #{cursor_flag}";
        Ok(finish(self.tmux()?.args(["display-message", "-p", what]))?.ok()?.trim().to_owned())
    }

    /// How the terminal is set, as the shell's programs see it.
    fn settings(&self, round: &str) -> Result<String> {
        let file = self.directory.join(round);
        self.type_line(&format!("stty -a > {}; echo noted-$((40 + 2))", file.display()))?;
        self.await_shown("noted-42")?;
        self.type_line("clear")?;
        eventually("the screen is to be clear", || {
            Ok((!self.shown()?.contains("noted-42")).then_some(()))
        })?;
        Ok(fs::read_to_string(file)?)
    }

    /// Begins to watch.
    fn watch(&self, scene: &Scene) -> Result<()> {
        self.type_line(&format!(
            "sh -c 'echo $$ > {}; exec {} top --config {}'; echo ended-$?",
            self.directory.join("pid").display(),
            our_binary("spa-server")?.display(),
            scene.server.config_path().display()
        ))
    }

    /// It has ended, and the terminal is as it was.
    fn ensure_given_back(&self, before: &str, round: &str) -> Result<()> {
        self.await_shown("ended-0")?;
        ensure!(self.modes()? == "0 1", "{}", self.modes()?);
        ensure!(self.settings(round)? == before, "{round}: it is set otherwise than before");
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(mut tmux) = self.tmux() {
            let _ = finish(tmux.arg("kill-server"));
        }
    }
}

#[test]
fn a_terminal_shows_what_the_daemon_tells_and_is_given_back() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let owner = scene.lab.owner().clone();
    let terminal = Terminal::new(&scene, "80", "24")?;
    let before = terminal.settings("before")?;

    // There is no daemon yet.
    terminal.watch(&scene)?;
    terminal.await_shown("the daemon does not run")?;
    ensure!(terminal.modes()? == "1 0", "{}", terminal.modes()?);
    scene.server.start()?;
    let shown = terminal.await_shown("gate installed (")?;
    ensure!(shown.contains("0 open, of 1 client") && !shown.contains("does not run"), "{shown}");

    for family in Family::BOTH {
        scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    }
    let shown = terminal.await_shown(" 2 open")?;
    for text in ["10.66.0.2", "laptop", "tcp/22", "knocks/s", "latency 50%", "2 knocks"] {
        ensure!(shown.contains(text), "{text}:\n{shown}");
    }
    ensure!(shown.contains(" 10m ") || shown.contains(" 9m"), "{shown}");
    ensure!(shown.lines().count() == 24, "{shown}");
    ensure!(shown.lines().last().is_some_and(|last| last.starts_with("q quit")), "{shown}");
    for _ in 0..500 {
        scene.knock(&owner, Family::V4, &[0x5a; 216])?;
    }
    let shown = terminal.await_shown("500")?;
    ensure!(shown.contains("unknown-tag") && shown.contains('\u{2588}'), "{shown}");

    // What is paused stands still, and goes on.
    terminal.keys(&["p"])?;
    terminal.await_shown("paused")?;
    scene.revoke_all()?;
    let accepted = scene.server.status()?.accepted;
    scene.knock(&owner, Family::V4, &scene.laptop.open("web").seal()?)?;
    scene.server.await_accepted(accepted + 1)?;
    ensure!(terminal.shown()?.contains(" 2 open"));
    terminal.keys(&["p"])?;
    terminal.await_shown(" 1 open")?;

    // It goes and comes back; what was known is there meanwhile.
    scene.server.stop()?;
    let shown = terminal.await_shown("the daemon does not run")?;
    ensure!(shown.contains(" 1 open"), "{shown}");
    scene.server.start()?;
    terminal.await_shown("gate installed (")?;

    let pid = fs::read_to_string(terminal.directory.join("pid"))?;
    kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGTERM)?;
    terminal.ensure_given_back(&before, "terminated")?;
    for (key, round) in [("q", "quit"), ("C-c", "interrupted")] {
        terminal.watch(&scene)?;
        terminal.await_shown("gate installed (")?;
        terminal.keys(&[key])?;
        terminal.ensure_given_back(&before, round)?;
    }
    Ok(())
}

#[test]
fn a_wide_terminal_is_filled() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let terminal = Terminal::new(&scene, "200", "50")?;
    terminal.watch(&scene)?;
    terminal.await_shown("gate installed (")?;
    scene.knock(&owner, Family::V6, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    let shown = terminal.await_shown(" 1 open")?;
    for text in ["fd66::2", "laptop", "tcp/22", "knocks/s", "latency 50%"] {
        ensure!(shown.contains(text), "{text}:\n{shown}");
    }
    ensure!(shown.lines().count() == 50, "{shown}");
    ensure!(shown.lines().last().is_some_and(|last| last.starts_with("q quit")), "{shown}");
    let widest = shown.lines().map(|line| line.chars().count()).max();
    ensure!(widest.is_some_and(|widest| widest > 150), "{widest:?} columns of 200:\n{shown}");
    Ok(())
}

#[test]
fn without_a_terminal_it_names_status() -> Result<()> {
    let scene = Scene::new()?;
    let done = scene.server.admin(&["top"])?;
    ensure!(!done.success() && done.stdout.is_empty(), "{done}");
    ensure!(done.stderr.contains("no terminal; `spa-server status`"), "{done}");
    // The control.
    scene.server.admin(&["status"])?.ok().map(|_| ())
}
