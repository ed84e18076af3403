//! A grant that is there needs no knock, and what needs no knock needs no key.

use super::{WORDS, encrypted, home, run_detached, run_with, secret_file};
use crate::support::{Ear, Home, age_by_seconds};
use crate::terminal::Terminal;
use spa_keys::Overwrite;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

const LOCKED: &str = "is under a passphrase: there is no terminal";
const OPEN: [&str; 3] = ["open", "ssh@gw", "--wait"];

/// A server called `gw`, whose key is under a passphrase, and where something listens.
fn listening(ear: &Ear) -> (Home, TcpListener, String) {
    let home = home(ear);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    home.add_server("gw", &lines(ear, &port));
    (home, listener, port)
}

fn lines(ear: &Ear, port: &str) -> String {
    format!(
        "host = \"127.0.0.1\"\nknock-ports = [{}]\nlifetime = \"1m\"\n\
         services.ssh = [\"tcp/{port}\"]",
        ear.port()
    )
}

/// Has it opened, by the passphrase.
fn open(home: &Home, ear: &Ear) {
    let words = secret_file(home, "words", &format!("{WORDS}\n"));
    let open = [&OPEN[..], &["--fresh"]].concat();
    let ran = run_with(home, words.to_str().unwrap(), &open);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ear.knock();
}

#[test]
fn whoever_has_a_grant_is_not_asked_for_a_passphrase() {
    let ear = Ear::v4();
    let (home, listener, port) = listening(&ear);
    let ran = run_detached(&home, &OPEN);
    assert!(ran.status == 1 && ran.stderr.contains(LOCKED), "{}", ran.stderr);
    open(&home, &ear);
    for words in [&OPEN[..], &["open", "ssh@gw", "--no-wait"]] {
        let ran = run_detached(&home, words);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("was seen open at 127.0.0.1"), "{}", ran.stderr);
    }
    // What was seen open long ago is looked at again.
    age_by_seconds(&home.file("state/asked.json"), 35);
    let ran = run_detached(&home, &OPEN);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("ssh on gw is open (127.0.0.1 after "), "{}", ran.stderr);
    let ran = std::thread::scope(|scope| {
        // Those of the probes, and the proxy's own.
        scope.spawn(|| (0..3).for_each(|_| drop(listener.accept().unwrap())));
        run_detached(&home, &["proxy", "127.0.0.1", &port, "--server", "gw"])
    });
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    // All that needs a knock needs the key; that of --while comes when nobody can be asked.
    for words in [
        &["open", "ssh@gw", "--fresh"][..],
        &["open", "ssh@gw", "--timeout", "1s", "--wait"],
        &["open", "udp/53@gw"],
        &["open", "ssh@gw", "udp/53@gw", "--wait"],
        &["open", "ssh@gw", "--while", "--", "touch", "it-ran"],
        &["proxy", "127.0.0.1", &port, "--server", "gw", "--fresh"],
        &["close", "ssh@gw"],
    ] {
        let ran = run_detached(&home, words);
        assert!(ran.status == 1 && ran.stderr.contains(LOCKED), "{words:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("asked gw"), "{words:?}: {}", ran.stderr);
    }
    assert!(!home.file("it-ran").exists());
    assert!(!ear.has_more());
}

#[test]
fn where_a_grant_turns_out_to_be_gone_whoever_types_has_time() {
    let ear = Ear::v4();
    let (home, listener, port) = listening(&ear);
    let words = [&OPEN[..], &["--timeout", "3s"]].concat();
    let proxy = ["proxy", "127.0.0.1", &port, "--server", "gw", "--timeout", "3s"];
    drop(listener);
    let mut held = None;
    for words in [&words[..], &proxy] {
        let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
        open(&home, &ear);
        drop(listener);
        age_by_seconds(&home.file("state/asked.json"), 35);
        let began = Instant::now();
        let mut terminal = Terminal::start(&home, words);
        terminal.see("passphrase of ");
        assert!(began.elapsed() >= Duration::from_secs(1), "the grant was given no time");
        // Nothing of the record is relied on any more, whatever becomes of this program.
        let record = fs::read_to_string(home.file("state/asked.json")).unwrap();
        assert!(!record.contains("\"ssh\""), "{record}");
        sleep(Duration::from_secs(4));
        assert!(!ear.has_more(), "{words:?}: a knock left before the key was there");
        // It opens 1.5 seconds after the first knock: by the second one.
        terminal.answer_unseen("passphrase of ", WORDS);
        ear.knock();
        sleep(Duration::from_millis(1500));
        let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
        if words[0] == "proxy" {
            held = Some(std::thread::spawn(move || drop(listener.accept().unwrap())));
        }
        let (status, shown) = terminal.end();
        assert_eq!(status, 0, "{words:?}: {shown}");
        assert!(!shown.contains("passphrase of "), "{words:?}: once is enough: {shown}");
        ear.knock();
        assert!(!ear.has_more(), "{words:?}: no burst of knocks that were overdue");
    }
    held.unwrap().join().unwrap();
}

/// What another program has asked for meanwhile is left to it, and relied on.
#[test]
fn a_knock_of_another_program_meanwhile_will_do() {
    let ear = Ear::v4();
    let (home, listener, port) = listening(&ear);
    open(&home, &ear);
    age_by_seconds(&home.file("state/asked.json"), 35);
    drop(listener);
    let mut terminal = Terminal::start(&home, &OPEN);
    terminal.see("passphrase of ");
    let _listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    open(&home, &ear);
    terminal.answer_unseen("passphrase of ", WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("was seen open at 127.0.0.1"), "{shown}");
    assert!(!ear.has_more());
}

#[test]
fn a_server_that_has_to_be_knocked_at_waits_for_no_other_and_asks_alone() {
    let ear = Ear::v4();
    let (home, _listener, port) = listening(&ear);
    open(&home, &ear);
    home.write_key("plain.key");
    home.add_server("plain", &format!("identity = \"plain.key\"\n{}", lines(&ear, &port)));
    let ran = run_detached(&home, &["open", "ssh@plain", "ssh@gw", "--wait", "--json"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ear.knock();
    assert!(!ear.has_more());
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let named = |at: usize| (&report["servers"][at]["server"], &report["servers"][at]["reused"]);
    assert_eq!((named(0).0, named(1).0), (&"plain".into(), &"gw".into()), "in the given order");
    assert!(named(0).1.is_null() && named(1).1.is_object(), "{report}");
}

#[test]
fn no_passphrase_is_typed_twice_for_one_command() {
    let ear = Ear::v4();
    let home = home(&ear);
    let server = |name: &str, words: &str| {
        let file = format!("{name}.key");
        let keys = encrypted(words, false);
        spa_keys::write_stored_keys(home.file(&file), &keys, Overwrite::Refuse).unwrap();
        let port = ear.port();
        home.add_server(
            name,
            &format!("identity = \"{file}\"\nhost = \"127.0.0.1\"\nknock-ports = [{port}]"),
        );
    };
    server("a", "first");
    server("b", "second");
    server("c", "first");
    let words = ["open", "udp/1@a", "udp/1@b", "udp/1@c", "--while", "--close-after"];
    let mut terminal = Terminal::start(&home, &[&words[..], &["--", "true"]].concat());
    terminal.answer_unseen("a.key: ", "first");
    // The one that is known does not fit.
    terminal.answer_unseen("b.key: ", "second");
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    assert!(!shown.contains("passphrase of"), "{shown}");
    for _ in 0..6 {
        ear.knock();
    }
    assert!(!ear.has_more());
}
