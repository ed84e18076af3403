//! Programs on a terminal of their own: a pseudo-terminal that the test reads and types on.

use nix::pty::{OpenptyResult, Winsize, openpty};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

/// Long enough for the slowest machine; nothing waits for it to pass when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program's process, and what it has written.
pub(crate) struct Screen {
    child: Child,
    keyboard: File,
    output: Receiver<Vec<u8>>,
    pub(crate) shown: String,
}

impl Screen {
    /// Starts the program as the leader of a session on a terminal of 120 columns.
    pub(crate) fn start(command: &Command) -> Self {
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let slave = File::from(slave);
        let mut session = Command::new("/usr/bin/setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        session.env_clear();
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = session
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(Stdio::from(slave))
            .spawn()
            .unwrap();
        drop(session);
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, output) = channel();
        spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error when the last program has gone from the terminal.
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, output, shown: String::new() }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` has been written since the last time something was waited for.
    pub(crate) fn await_text(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{error}: no {text:?} in {:?}", self.shown),
            }
        }
    }

    /// Waits for the end; gives back the status and all that was written since.
    pub(crate) fn end(mut self) -> (i32, String) {
        let start = Instant::now();
        while let Ok(bytes) = self.output.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        let status = self.child.wait().unwrap().code().unwrap();
        (status, std::mem::take(&mut self.shown))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
