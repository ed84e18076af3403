//! A line on the terminal that shows that something is waited for, and for how long. It is there
//! for people only: nothing of it is written where standard error is no terminal, or one that
//! can't take a line back.

use core::time::Duration;
use std::env::var_os;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};
use std::time::Instant;

/// What is over sooner needs no line.
const PATIENCE: Duration = Duration::from_millis(300);
const TURN: Duration = Duration::from_millis(100);
const SHAPES: [char; 4] = ['|', '/', '-', '\\'];
/// The text is cut here, so that the line stays one on a terminal of 80 columns.
const WIDTH: usize = 60;
/// To the first column, and erase from there (ECMA-48).
const TAKE_BACK: &str = "\r\x1b[K";

/// Whether the line is there now. Whoever writes to standard error meanwhile holds this.
static SHOWN: Mutex<bool> = Mutex::new(false);

/// The line, until it is dropped.
pub(super) struct Spinner(Option<(Sender<()>, JoinHandle<()>)>);

/// Shows `text` and the time from now on, where that can be.
pub(super) fn start(text: &str) -> Spinner {
    let is_dumb = || var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if !io::stderr().is_terminal() || is_dumb() {
        return Spinner(None);
    }
    let text: String = text.chars().filter(|it| !it.is_control()).take(WIDTH).collect();
    let (stop, stopped) = channel();
    let begun = Instant::now();
    let thread = spawn(move || {
        let mut pause = PATIENCE;
        for shape in SHAPES.iter().cycle() {
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            pause = TURN;
            let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
            let seconds = begun.elapsed().as_secs();
            let _ = write!(io::stderr(), "{TAKE_BACK}{shape} {text} ({seconds} s)");
            *shown = true;
        }
    });
    Spinner(Some((stop, thread)))
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
            above(|_| Ok(()));
        }
    }
}

/// Writes to standard error with the line out of the way; it comes back by itself.
pub(super) fn above(write: impl FnOnce(&mut io::StderrLock<'_>) -> io::Result<()>) {
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stderr = io::stderr().lock();
    if core::mem::take(&mut *shown) {
        let _ = write!(stderr, "{TAKE_BACK}");
    }
    let _ = write(&mut stderr);
}
