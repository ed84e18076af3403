//! What people on a terminal see while they wait, and what nobody sees elsewhere.

use crate::screen::Screen;
use crate::support::{Ear, Home};
use std::process::Command;

/// A server on loopback, and a service of it that refuses: nothing listens there.
fn home(ear: &Ear) -> (Home, String) {
    let shut = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = shut.local_addr().unwrap().port();
    let lines = format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port());
    (Home::with_server(&lines), format!("tcp/{port}"))
}

fn on_terminal(home: &Home, words: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut command: Command = home.command(words);
    command.env("TERM", "xterm").envs(environment.iter().copied());
    Screen::start(&command).end()
}

#[test]
fn who_waits_on_a_terminal_sees_for_how_long_and_the_line_goes_again() {
    let ear = Ear::v4();
    let (home, target) = home(&ear);
    let words = ["open", &target, "--wait", "--timeout", "3s"];
    let (status, shown) = on_terminal(&home, &words, &[]);
    assert_eq!(status, 1, "{shown}");
    assert!(shown.contains(&format!("waiting for {target} (0 s)")), "{shown:?}");
    let later = |seconds| shown.contains(&format!("waiting for {target} ({seconds} s)"));
    assert!(later(1) || later(2), "{shown:?}");
    // What was said meanwhile stands on a line of its own, and nothing of the other is left.
    let said = format!("\r\x1b[K{target} on work is not open yet");
    assert!(shown.contains(&said), "{shown:?}");
    let (_, after) = shown.rsplit_once("waiting for ").unwrap();
    let (rest, end) = after.split_once("\r\x1b[K").expect("the line is taken back");
    assert!(rest.ends_with(" s)") && end.starts_with("error: "), "{shown:?}");
}

#[test]
fn the_lines_of_doctor_stand_alone_while_it_is_waited_for() {
    let ear = Ear::v4();
    let (home, target) = home(&ear);
    let (status, shown) = on_terminal(&home, &["doctor", "--service", &target], &[]);
    assert_eq!(status, 1, "{shown}");
    assert!(shown.contains("looking (0 s)"), "{shown:?}");
    let line = shown.lines().find(|line| line.contains("knock          udp/")).unwrap();
    assert!(line.rsplit("\x1b[K").next().unwrap().starts_with("trouble "), "{line:?}");
    let (_, after) = shown.rsplit_once("looking (").unwrap();
    assert!(after.contains("\r\x1b[K") && after.contains("most likely: "), "{shown:?}");
}

#[test]
fn nothing_moves_where_nobody_looks_or_nobody_wants_it() {
    let ear = Ear::v4();
    let (home, target) = home(&ear);
    let words = ["open", &target, "--wait", "--timeout", "700ms"];
    // The control.
    assert!(on_terminal(&home, &words, &[]).1.contains("waiting for"));
    let (_, dumb) = on_terminal(&home, &words, &[("TERM", "dumb")]);
    assert!(!dumb.contains('\x1b') && dumb.contains("did not open"), "{dumb:?}");
    let quiet = [&words[..], &["--quiet"]].concat();
    let (_, quiet) = on_terminal(&home, &quiet, &[]);
    assert!(quiet.starts_with("error: ") && !quiet.contains('\x1b'), "{quiet:?}");
    let piped = home.run(&words);
    assert!(!piped.stderr.contains('\x1b') && !piped.stderr.contains("waiting"), "{piped:?}");
    // What is told in the end is the same as ever.
    let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp/{}", open.local_addr().unwrap().port());
    let (status, shown) = on_terminal(&home, &["open", &target, "--wait"], &[]);
    assert!(status == 0 && shown.contains(" is open ("), "{shown:?}");
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let home = Home::empty();
    for words in [&["--help"][..], &["open", "--help"], &["opne"]] {
        // The control: on a terminal there is some.
        let (_, coloured) = on_terminal(&home, words, &[]);
        assert!(coloured.contains("\x1b["), "{words:?}: {coloured:?}");
        for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let (_, plain) = on_terminal(&home, words, &[environment]);
            assert!(!plain.contains('\x1b'), "{words:?} {environment:?}: {plain:?}");
        }
        let piped = home.run(words);
        assert!(!piped.stdout.contains('\x1b') && !piped.stderr.contains('\x1b'), "{words:?}");
    }
}
