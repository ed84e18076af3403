//! `spa-server top`: how the running daemon is, live. It only asks.
//!
//! One thread reads the keys and one asks the daemon, so that neither a slow answer keeps a key
//! waiting nor the other way round; this one draws, and hears signals. However it ends, the terminal
//! is as it was.

mod frame;
mod state;

use super::{CommandError, Done};
use crate::config::Settings;
use crate::control::{ControlRequest, ControlResponse, call};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use state::{Answer, MOST_LISTED, Scroll, State};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);

enum News {
    Terminal(io::Result<Event>),
    Daemon(Result<Answer, String>),
}

pub(crate) fn run(config: &Path) -> Done {
    if !io::stdout().is_terminal() {
        return Err(CommandError::Failed(
            "standard output is no terminal; `spa-server status` says the same once, with --json for programs".into(),
        ));
    }
    if !config.exists() {
        // Which says that there is none.
        Settings::load(config)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let watched = runtime.and_then(|runtime| {
        let socket = Settings::control_socket_of(config);
        runtime.block_on(async {
            // Before the terminal is another one: they are to find it as it was.
            let signals = Signals::new()?;
            let mut screen = Screen::enter()?;
            watch(&mut screen, signals, socket).await
        })
    });
    watched.map_err(|error| {
        CommandError::Failed(format!("the terminal can't be used any more: {error}"))
    })
}

/// Shows what is so until somebody has seen enough.
async fn watch(screen: &mut Screen, mut signals: Signals, socket: PathBuf) -> io::Result<()> {
    let (news, mut heard) = mpsc::channel(16);
    let from_terminal = news.clone();
    // These end with the process: they wait for what may never come.
    std::thread::spawn(
        move || {
            while from_terminal.blocking_send(News::Terminal(event::read())).is_ok() {}
        },
    );
    std::thread::spawn(move || {
        let began = Instant::now();
        while news.blocking_send(News::Daemon(ask(&socket, began))).is_ok() {
            std::thread::sleep(EVERY);
        }
    });
    let mut state = State::default();
    loop {
        screen.0.draw(|frame| frame::draw(frame, &mut state))?;
        let news = tokio::select! {
            news = heard.recv() => news,
            () = signals.any() => return Ok(()),
        };
        match news {
            Some(News::Terminal(Ok(Event::Key(key)))) => {
                if !obey(&mut state, key) {
                    return Ok(());
                }
            }
            // Of another size, say: it is drawn anew.
            Some(News::Terminal(Ok(_))) => {}
            Some(News::Terminal(Err(error))) => return Err(error),
            Some(News::Daemon(answer)) => state.heard(answer),
            None => return Err(io::Error::other("nobody asks any more")),
        }
    }
}

/// Does what a key is for; whether to go on.
fn obey(state: &mut State, KeyEvent { code, modifiers, kind, .. }: KeyEvent) -> bool {
    if kind == KeyEventKind::Release {
        return true;
    }
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') => return false,
        KeyCode::Char('p') => state.paused = !state.paused,
        KeyCode::Up => state.scroll(Scroll::Up),
        KeyCode::Down => state.scroll(Scroll::Down),
        KeyCode::PageUp => state.scroll(Scroll::PageUp),
        KeyCode::PageDown => state.scroll(Scroll::PageDown),
        KeyCode::Home => state.scroll(Scroll::First),
        KeyCode::End => state.scroll(Scroll::Last),
        _ => {}
    }
    true
}

fn ask(socket: &Path, began: Instant) -> Result<Answer, String> {
    let ask = |request| call(socket, &request).map_err(|error| error.to_string());
    let ControlResponse::Status(status) = ask(ControlRequest::Status)? else {
        return Err("the daemon answers something else than was asked".into());
    };
    let grants = if status.grants > MOST_LISTED {
        None
    } else {
        match ask(ControlRequest::GrantsList)? {
            ControlResponse::Grants(grants) => Some(grants),
            _ => return Err("the daemon answers something else than was asked".into()),
        }
    };
    Ok(Answer { at: began.elapsed(), status, grants })
}

/// The terminal, for as long as it is ours. A panic gives it back as well, before it is told: see
/// [`ratatui::try_init`].
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self([terminate?, interrupt?, hangup?]))
    }

    async fn any(&mut self) {
        let Self([terminate, interrupt, hangup]) = self;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_they_are_for() {
        let mut state = State::default();
        let plain = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(obey(&mut state, plain(KeyCode::Char('p'))) && state.paused);
        assert!(obey(&mut state, plain(KeyCode::Char('p'))) && !state.paused);
        assert!(obey(&mut state, plain(KeyCode::Char('c'))));
        assert!(!obey(&mut state, plain(KeyCode::Char('q'))));
        assert!(!obey(&mut state, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        state.fits(2);
        state.heard(Ok(state::tests::answer(1, 9)));
        for (code, first) in [
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 3),
            (KeyCode::Up, 2),
            (KeyCode::PageUp, 0),
            (KeyCode::End, 7),
            (KeyCode::Home, 0),
        ] {
            assert!(obey(&mut state, plain(code)));
            assert_eq!(state.first, first, "{code}");
        }
    }
}
