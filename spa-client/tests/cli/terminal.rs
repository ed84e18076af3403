//! A program at a terminal of its own, and somebody who types.

use crate::support::Home;
use nix::sys::termios::{LocalFlags, tcgetattr};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for the slowest machine; nothing waits for it to pass when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, and the other end of its terminal.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// Kept open, to see what state the terminal is in.
    state: OwnedFd,
    shown: String,
}

impl Terminal {
    /// Starts `spa-client` with these words. Its standard input is empty: what it asks, it has to
    /// ask at the terminal. Its standard error is the terminal, its standard output too.
    pub(crate) fn start(home: &Home, words: &[&str]) -> Self {
        Self::start_with(home, words, "</dev/null")
    }

    /// The same, with the shell's redirections in place of the empty standard input.
    pub(crate) fn start_with(home: &Home, words: &[&str], redirections: &str) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let program = home.command(&[]);
        // `setsid --ctty` makes the terminal on its standard input the one of the new session.
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait", "sh", "-c"])
            .arg(format!("exec \"$0\" \"$@\" {redirections}"))
            .arg(program.get_program())
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SPA_CONFIG_DIR", home.path())
            .env("SPA_STATE_DIR", home.file("state"))
            .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
            .stdout(Stdio::from(pty.slave.try_clone().unwrap()))
            .stderr(Stdio::from(pty.slave.try_clone().unwrap()));
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, state: pty.slave, shown: String::new() }
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.state).unwrap().local_flags.contains(LocalFlags::ECHO)
    }

    /// Waits until this is on the screen.
    pub(crate) fn see(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = self.screen.recv_timeout(left);
            let more = more.unwrap_or_else(|_| panic!("{text:?} is not in {:?}", self.shown));
            self.shown.push_str(&String::from_utf8(more).unwrap());
        }
    }

    /// Waits for the question, and for the echo to go; types a line.
    pub(crate) fn answer_unseen(&mut self, question: &str, line: &str) {
        self.see(question);
        let deadline = Instant::now() + PATIENCE;
        while self.echoes() {
            assert!(Instant::now() < deadline, "the terminal still echoes: {}", self.shown);
            thread::sleep(Duration::from_millis(1));
        }
        self.shown.clear();
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for the question; types a line, for all to see.
    pub(crate) fn answer(&mut self, question: &str, line: &str) {
        self.see(question);
        assert!(self.echoes());
        self.shown.clear();
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The exit status, and what was shown since the last answer.
    pub(crate) fn end(mut self) -> (i32, String) {
        let status = self.child.wait().unwrap();
        assert!(self.echoes(), "the terminal was left without echo");
        drop(self.state);
        while let Ok(more) = self.screen.recv_timeout(PATIENCE) {
            self.shown.push_str(&String::from_utf8(more).unwrap());
        }
        (status.code().unwrap(), self.shown.replace("\r\n", "\n"))
    }
}
