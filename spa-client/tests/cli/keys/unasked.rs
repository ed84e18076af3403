//! A grant that is there needs no knock, and what needs no knock needs no key.

use super::{WORDS, encrypted, home, run_detached, run_with, secret_file};
use crate::support::{Ear, Home, age_by_seconds};
use crate::terminal::Terminal;
use socket2::{Domain, Socket, Type};
use spa_keys::Overwrite;
use std::fs;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const LOCKED: &str = "is under a passphrase: there is no terminal";
const OPEN: [&str; 3] = ["open", "ssh@gw", "--wait"];

/// A port that is open, shut, and open again, and nobody else's all the time.
struct Door(Socket);

impl Door {
    fn opened() -> Self {
        let bound = |port: u16| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            // To listen anew beside connections that are still ending.
            socket.set_reuse_address(true).unwrap();
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            socket.bind(&at.into()).map(|()| Self(socket))
        };
        // Linux takes a port that it has chosen itself away when listening ends.
        let chosen = || bound(0).unwrap().port().parse().unwrap();
        let door = (0..10).find_map(|_| bound(chosen()).ok()).unwrap();
        door.open();
        door
    }

    fn port(&self) -> String {
        self.0.local_addr().unwrap().as_socket().unwrap().port().to_string()
    }

    fn open(&self) {
        self.0.listen(64).unwrap();
    }

    /// Linux ends listening by this, and leaves the socket its port.
    fn shut(&self) {
        self.0.shutdown(Shutdown::Both).unwrap();
    }

    /// Ends all connections as they come, while `work` lasts.
    fn while_ending<T>(&self, work: impl FnOnce() -> T) -> T {
        let ended = AtomicBool::new(false);
        self.0.set_nonblocking(true).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    if self.0.accept().is_err() {
                        sleep(Duration::from_millis(1));
                    }
                }
            });
            let result = work();
            ended.store(true, Ordering::Relaxed);
            result
        })
    }
}

/// A server called `gw`, whose key is under a passphrase, and where something listens.
fn listening(ear: &Ear) -> (Home, Door, String) {
    let home = home(ear);
    let door = Door::opened();
    let port = door.port();
    home.add_server("gw", &lines(ear, &port));
    (home, door, port)
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

/// Leaves a grant in the record that was seen open long ago, and is gone.
fn lose(home: &Home, ear: &Ear, door: &Door) {
    door.open();
    open(home, ear);
    age_by_seconds(&home.file("state/asked.json"), 35);
    door.shut();
}

#[test]
fn whoever_has_a_grant_is_not_asked_for_a_passphrase() {
    let ear = Ear::v4();
    let (home, door, port) = listening(&ear);
    let once = format!("services.ssh = {{ ports = [\"tcp/{port}\"], connections = 1 }}");
    let knock_port = ear.port();
    home.add_server("once", &format!("host = \"127.0.0.1\"\nknock-ports = [{knock_port}]\n{once}"));
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
    let proxy = ["proxy", "127.0.0.1", &port, "--server", "gw"];
    let ran = door.while_ending(|| run_detached(&home, &proxy));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    // All that needs a knock needs the key; that of --while comes when nobody can be asked.
    for words in [
        &["open", "ssh@gw", "--fresh"][..],
        &["open", "ssh@gw", "--timeout", "1s", "--wait"],
        &["open", "udp/53@gw"],
        &["open", "ssh@gw", "udp/53@gw", "--wait"],
        &["open", "ssh@gw", "--while", "--", "touch", "it-ran"],
        &["proxy", "127.0.0.1", &port, "--server", "gw", "--fresh"],
        // Its port is open, but what is connected to without a knock is nobody's.
        &["proxy", "127.0.0.1", &port, "--server", "once"],
        &["close", "ssh@gw"],
    ] {
        let ran = door.while_ending(|| run_detached(&home, words));
        assert!(ran.status == 1 && ran.stderr.contains(LOCKED), "{words:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("asked gw"), "{words:?}: {}", ran.stderr);
    }
    assert!(!home.file("it-ran").exists());
    assert!(!ear.has_more());
}

#[test]
fn where_a_grant_turns_out_to_be_gone_whoever_types_has_time() {
    let ear = Ear::v4();
    let (home, door, port) = listening(&ear);
    let proxy = ["proxy", "127.0.0.1", &port, "--server", "gw", "--timeout", "5s"];
    for words in [&[&OPEN[..], &["--timeout", "5s"]].concat()[..], &proxy] {
        lose(&home, &ear, &door);
        let began = Instant::now();
        let mut terminal = Terminal::start(&home, words);
        terminal.see("passphrase of ");
        assert!(began.elapsed() >= Duration::from_secs(3), "the grant was given no time");
        // Nothing of the record is relied on any more, whatever becomes of this program.
        let record = fs::read_to_string(home.file("state/asked.json")).unwrap();
        assert!(!record.contains("\"ssh\""), "{record}");
        sleep(Duration::from_secs(6));
        assert!(!ear.has_more(), "{words:?}: a knock left before the key was there");
        // It opens by the second knock.
        terminal.answer_unseen("passphrase of ", WORDS);
        let (first, second) = (ear.knock(), ear.knock());
        let apart = first.stamp.distance(second.stamp);
        assert!(apart >= Duration::from_millis(900), "{words:?}: overdue knocks, {apart:?} apart");
        door.open();
        let (status, shown) = door.while_ending(|| terminal.end());
        assert_eq!(status, 0, "{words:?}: {shown}");
        assert!(!shown.contains("passphrase of "), "{words:?}: once is enough: {shown}");
        while ear.has_more() {
            ear.knock();
        }
    }
}

/// What another program has asked for meanwhile is left to it, and relied on.
#[test]
fn a_knock_of_another_program_meanwhile_will_do() {
    let ear = Ear::v4();
    let (home, door, port) = listening(&ear);
    let proxy = ["proxy", "127.0.0.1", &port, "--server", "gw", "--timeout", "1m"];
    for words in [&[&OPEN[..], &["--timeout", "1m"]].concat()[..], &proxy] {
        lose(&home, &ear, &door);
        let began = Instant::now();
        let mut terminal = Terminal::start(&home, words);
        terminal.see("passphrase of ");
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        door.open();
        open(&home, &ear);
        terminal.answer_unseen("passphrase of ", WORDS);
        let (status, shown) = door.while_ending(|| terminal.end());
        assert_eq!(status, 0, "{words:?}: {shown}");
        assert!(!shown.contains("knocking again"), "{words:?}: {shown}");
        assert!(!ear.has_more(), "{words:?}");
    }
}

/// The same before anybody is asked: the look at the old grant goes on with the new one.
#[test]
fn a_knock_of_another_program_saves_the_question() {
    let ear = Ear::v4();
    let (home, door, port) = listening(&ear);
    let words = secret_file(&home, "words", &format!("{WORDS}\n"));
    let proxy = ["proxy", "127.0.0.1", &port, "--server", "gw", "--timeout", "1m"];
    for wanted in [&[&OPEN[..], &["--timeout", "1m"]].concat()[..], &proxy] {
        lose(&home, &ear, &door);
        let ran = std::thread::scope(|scope| {
            let ran = scope.spawn(|| run_detached(&home, wanted));
            // Again and again, so that one of them comes in time however slow this machine is.
            let knock = ["open", "ssh@gw", "--no-wait", "--fresh"];
            for _ in 0..6 {
                sleep(Duration::from_millis(700));
                assert_eq!(run_with(&home, words.to_str().unwrap(), &knock).status, 0);
                ear.knock();
            }
            door.open();
            door.while_ending(|| ran.join().unwrap())
        });
        assert_eq!(ran.status, 0, "{wanted:?}: {}", ran.stderr);
        assert!(!ear.has_more());
    }
}

#[test]
fn no_password_manager_is_started_while_a_grant_holds() {
    let ear = Ear::v4();
    let home = Home::empty();
    let door = Door::opened();
    home.write_key("plain.key");
    let command = home.file("manager");
    let (runs, key) = (home.file("runs"), home.file("plain.key"));
    let script = format!("#!/bin/sh\necho >> {}\ncat {}\n", runs.display(), key.display());
    fs::write(&command, script).unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    let command = command.display();
    home.add_server("gw", &format!("key-command = [\"{command}\"]\n{}", lines(&ear, &door.port())));
    let count = || fs::read_to_string(&runs).unwrap_or_default().lines().count();
    for _ in 0..3 {
        let ran = home.run(&OPEN);
        assert_eq!((ran.status, count()), (0, 1), "{}", ran.stderr);
    }
    ear.knock();
    assert!(!ear.has_more());
    assert_eq!(home.run(&["open", "ssh@gw", "--fresh"]).status, 0);
    assert_eq!(count(), 2);
}

/// One of two services is open, and the other one isn't: nothing is told twice.
#[test]
fn what_is_told_is_told_once() {
    let ear = Ear::v4();
    let (home, door, port) = listening(&ear);
    let other = Door::opened();
    let both = format!("{}\nservices.web = [\"tcp/{}\"]", lines(&ear, &port), other.port());
    home.add_server("both", &both);
    let words = secret_file(&home, "words", &format!("{WORDS}\n"));
    let run = |more: &[&str]| {
        let open = ["open", "ssh@both", "web@both", "--wait"];
        run_with(&home, words.to_str().unwrap(), &[&open[..], more].concat())
    };
    assert_eq!(run(&[]).status, 0);
    ear.knock();
    age_by_seconds(&home.file("state/asked.json"), 35);
    other.shut();
    let ran = std::thread::scope(|scope| {
        let ran = scope.spawn(|| run(&["--timeout", "1m"]));
        ear.knock();
        other.open();
        ran.join().unwrap()
    });
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    for item in ["ssh", "web"] {
        let told = ran.stderr.matches(&format!("{item} on both is open")).count();
        assert_eq!(told, 1, "{}", ran.stderr);
    }
    drop(door);
}

#[test]
fn a_server_that_has_to_be_knocked_at_waits_for_no_other_and_asks_alone() {
    let ear = Ear::v4();
    let (home, _door, port) = listening(&ear);
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
