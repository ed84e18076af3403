//! Knocks on loopback: what leaves is what a server accepts, and the wait ends when it should.

use crate::support::{Ear, Home, Ran, authentic, client_key, receive};
use socket2::{Domain, Socket, Type};
use spa_proto::{DropReason, MessageType, Verdict};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Stdio;

/// A TCP port that refuses until it is [opened](Shut::open). It is taken all the while, so that
/// no other program can come in between.
struct Shut(Socket);

impl Shut {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().as_socket().unwrap().port()
    }

    fn open(self) -> TcpListener {
        self.0.listen(16).unwrap();
        self.0.into()
    }
}

fn home(ears: &[&Ear]) -> Home {
    let ports: Vec<u16> = ears.iter().map(|ear| ear.port()).collect();
    Home::with_server(&format!("host = \"127.0.0.1\"\nknock-ports = {ports:?}"))
}

fn items(knock: &spa_proto::Knock) -> Vec<String> {
    knock.request.items.iter().map(ToString::to_string).collect()
}

#[test]
fn open_sends_one_datagram_that_the_server_accepts() {
    let ear = Ear::v4();
    let home = home(&[&ear]);
    let ran = home.run(&["open", "ssh", "tcp/8022@work", "--no-wait", "--lifetime", "5m"]);
    assert_eq!(ran, Ran::said(0, "asked work to open ssh and tcp/8022 (127.0.0.1)"));
    let (datagram, from) = ear.hear();
    assert!(!ear.has_more(), "one knock is one datagram");
    assert_eq!(datagram.len(), 216);
    let knock = authentic(&datagram, from.ip());
    assert_eq!(knock.request.message_type, MessageType::Open);
    assert_eq!(items(&knock), ["ssh", "tcp/8022"]);
    assert_eq!(knock.request.lifetime.map(u32::from), Some(300));
    assert_eq!(knock.request.bound_source, None, "a loopback address is not a global one");
}

#[test]
fn close_sends_one_datagram_that_the_server_accepts() {
    let ear = Ear::v4();
    let ran = home(&[&ear]).run(&["close", "ssh"]);
    assert_eq!(ran, Ran::said(0, "asked work to close ssh (127.0.0.1)"));
    let knock = ear.knock();
    assert_eq!(knock.request.message_type, MessageType::Close);
    assert_eq!((items(&knock), knock.request.lifetime), (vec!["ssh".into()], None));
    assert!(!ear.has_more());
}

#[test]
fn the_configuration_fills_in_what_the_command_leaves_out() {
    let ear = Ear::v4();
    let home = Home::with_server(&format!(
        "host = \"127.0.0.1\"\nknock-ports = [{}]\nlifetime = \"90s\"\nbind-source = \"127.0.0.1\"",
        ear.port()
    ));
    assert_eq!(home.run(&["open", "ssh"]).status, 0);
    let configured = ear.knock().request;
    assert_eq!(configured.lifetime.map(u32::from), Some(90));
    assert_eq!(configured.bound_source, Some(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(home.run(&["open", "ssh", "--lifetime", "1s", "--source", "observed"]).status, 0);
    let overridden = ear.knock().request;
    assert_eq!(overridden.lifetime.map(u32::from), Some(1));
    assert_eq!(overridden.bound_source, None);
    assert_eq!(home.run(&["open", "ssh", "--source", "192.0.2.7"]).status, 0);
    let (datagram, from) = ear.hear();
    match receive(&datagram, from.ip()) {
        Verdict::Dropped(dropped) => assert_eq!(dropped.reason, DropReason::BoundSource),
        verdict => panic!("{verdict:?}"),
    }
    authentic(&datagram, [192, 0, 2, 7].into());
}

#[test]
fn two_knocks_have_nothing_in_common() {
    let ear = Ear::v4();
    let home = home(&[&ear]);
    let [(a, from_a), (b, from_b)] = [(); 2].map(|()| {
        assert_eq!(home.run(&["open", "ssh"]).status, 0);
        ear.hear()
    });
    assert_ne!(from_a.port(), from_b.port(), "each knock has its own source port");
    let mut at = 0;
    for (part, length) in [("tag", 16), ("nonce", 24), ("ciphertext", 144), ("mac", 32)] {
        assert_ne!(a[at..at + length], b[at..at + length], "{part}");
        at += length;
    }
    assert_eq!((a.len(), b.len()), (at, at));
    // Chance makes 216 / 256 of them equal; 16 come once in 10^13 runs.
    let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
    assert!(equal < 16, "{equal} bytes are equal");
}

#[test]
fn a_pre_shared_key_changes_what_only_the_server_can_tell() {
    let ear = Ear::v4();
    let home = Home::with_server(&format!(
        "host = \"127.0.0.1\"\nknock-ports = [{}]\npre-shared-key-file = \"work.psk\"",
        ear.port()
    ));
    let missing = home.run(&["open", "ssh"]);
    assert_eq!(missing.status, 78);
    assert!(missing.stderr.contains("[dir]/work.psk"), "{}", missing.stderr);
    let key = spa_keys::PreSharedKey::generate(&ring::rand::SystemRandom::new()).unwrap();
    let refuse = spa_keys::Overwrite::Refuse;
    spa_keys::write_pre_shared_key(home.file("work.psk"), &key, refuse).unwrap();
    assert_eq!(home.run(&["open", "ssh"]).status, 0);
    let (datagram, from) = ear.hear();
    assert_eq!(datagram.len(), 216);
    // The receiver of the test has no pre-shared key: to it this is noise.
    match receive(&datagram, from.ip()) {
        Verdict::Dropped(dropped) => assert_eq!(dropped.reason, DropReason::UnknownTag),
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn a_longer_plaintext_makes_a_longer_packet() {
    let ear = Ear::v4();
    let home = Home::with_server(&format!(
        "host = \"127.0.0.1\"\nknock-ports = [{}]\nplaintext-length = 320",
        ear.port()
    ));
    assert_eq!(home.run(&["open", "ssh"]).status, 0);
    assert_eq!(ear.hear().0.len(), 320 + 88);
}

#[test]
fn knocks_go_over_ipv6_too() {
    let ear = Ear::new(Ipv6Addr::LOCALHOST);
    let home = Home::with_server(&format!("host = \"::1\"\nknock-ports = [{}]", ear.port()));
    assert_eq!(home.run(&["open", "ssh"]), Ran::said(0, "asked work to open ssh (::1)"));
    assert_eq!(ear.knock().source, Ipv6Addr::LOCALHOST);
}

#[test]
fn several_servers_are_asked_in_one_call() {
    let (ear, other) = (Ear::v4(), Ear::v4());
    let home = home(&[&ear]);
    home.add_server("home", &format!("host = \"127.0.0.1\"\nknock-ports = [{}]", other.port()));
    assert_eq!(home.run(&["-q", "open", "ssh"]).status, 2, "-q belongs to open");
    let ran = home.run(&["open", "ssh@work", "web@home", "tcp/1@work", "-q"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(items(&ear.knock()), ["ssh", "tcp/1"]);
    assert_eq!(items(&other.knock()), ["web"]);
}

#[test]
fn waiting_ends_when_a_second_knock_to_the_next_port_opens() {
    let (first, second, shut) = (Ear::v4(), Ear::v4(), Shut::new());
    let port = shut.port();
    let home = home(&[&first, &second]);
    let target = format!("tcp/{port}");
    let client = home
        .command(&["open", &target, "--wait", "--timeout", "1m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lost = first.knock();
    // The first knock is lost. The port opens for the fresh one only.
    let fresh = second.knock();
    let listener = shut.open();
    let ran = Ran::of(&client.wait_with_output().unwrap(), home.path());
    assert_ne!(lost.nonce, fresh.nonce);
    assert!(fresh.stamp > lost.stamp);
    assert_eq!(items(&fresh), [target.as_str()]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, ""));
    let (told, opened) = ran.stderr.split_once('\n').unwrap();
    assert_eq!(told, format!("{target} on work is not open yet; knocking again, for 60 s in all"));
    let after = opened
        .strip_prefix(&format!("{target} on work is open (127.0.0.1 after "))
        .and_then(|rest| rest.strip_suffix(" ms)\n"))
        .unwrap_or_else(|| panic!("{opened}"));
    assert!(after.parse::<u64>().unwrap() >= 1000, "the first second was over: {after} ms");
    drop(listener);
}

#[test]
fn waiting_is_over_at_once_when_the_port_is_open() {
    let ear = Ear::v4();
    let listener = Shut::new();
    let port = listener.port();
    let listener = listener.open();
    let home = home(&[&ear]);
    let config = std::fs::read_to_string(home.file("config.toml")).unwrap();
    std::fs::write(home.file("config.toml"), format!("{config}services.ssh = [\"tcp/{port}\"]\n"))
        .unwrap();
    let ran = home.run(&["open", "ssh", "--wait", "--timeout", "1m", "--json"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let item = &report["servers"][0]["items"][0];
    assert_eq!(
        (&report["action"], &report["ok"], &item["item"], &item["state"], &item["address"]),
        (&"open".into(), &true.into(), &"ssh".into(), &"open".into(), &"127.0.0.1".into())
    );
    assert!(item["milliseconds"].is_u64());
    assert_eq!(report["servers"][0]["knocks"][0]["to"], format!("127.0.0.1:{}", ear.port()));
    drop(listener);
}

/// The positive control is the test above: there the port is open too, and the probe sees it.
#[test]
fn what_lets_one_connection_in_is_not_probed_and_not_waited_for() {
    let ear = Ear::v4();
    let listener = Shut::new();
    let port = listener.port();
    let listener = listener.open();
    let home = home(&[&ear]);
    let config = std::fs::read_to_string(home.file("config.toml")).unwrap();
    let service = format!(
        "services.desk = {{ ports = [\"tcp/{port}\"], connections = 1 }}\n\
         services.media = [\"udp/7-9\"]\nservices.far = [\"tcp/7-9\"]\n"
    );
    std::fs::write(home.file("config.toml"), format!("{config}{service}")).unwrap();
    for item in ["desk".to_owned(), format!("tcp/{port}")] {
        let ran = home.run(&["open", "media", &item, "--wait"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        let told =
            format!("error: {item} on work lets one connection in, and --wait would use it up");
        assert!(ran.stderr.starts_with(&told), "{}", ran.stderr);
    }
    assert!(!ear.has_more());
    let ran = home.run(&["open", "desk"]);
    assert_eq!(ran, Ran::said(0, "asked work to open desk (127.0.0.1)"));
    ear.hear();
    let ran = home.run(&["open", "far", "--wait"]);
    assert_eq!(ran, Ran::said(0, "asked work to open far; ranges of ports are not probed"));
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "somebody connected: {nobody}");
}

#[test]
fn a_port_that_stays_closed_is_told_with_the_likely_reasons() {
    let (ear, shut) = (Ear::v4(), Shut::new());
    let home = home(&[&ear]);
    let target = format!("tcp/{}", shut.port());
    let words =
        ["open", &target, "--wait", "--timeout", "900ms", "--json", "--source", "127.0.0.1"];
    let ran = home.run(&words);
    let clock = ran.stderr.find("this one says ").unwrap() + "this one says ".len();
    let mut stderr = ran.stderr.clone();
    stderr.replace_range(clock..clock + 20, "[now]");
    assert_eq!(
        stderr,
        format!(
            "\
error: {target} on work did not open within 900 ms (127.0.0.1: connection refused)
one knock was sent; a server never answers one, but its log tells what became of it; likely reasons:
  - nothing listens there: does the service run, and on this port?
  - the clocks differ by more than the server allows, a minute by default; this one says [now]
  - the server doesn't know this client; there: spa-server client add NAME --public-key {} --allow SERVICE
  - the server doesn't allow this client {target}, or not from this address
  - a router changes the address 127.0.0.1 that the knock is bound to; try --source observed
  - a firewall on the way drops udp/{}; try another network
",
            client_key(),
            ear.port()
        )
    );
    assert_eq!(ran.status, 1);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let item = &report["servers"][0]["items"][0];
    assert_eq!(item["state"], "closed");
    assert_eq!(item["addresses"]["127.0.0.1"], "connection refused");
    drop(shut);
}

#[test]
fn what_cannot_be_probed_is_asked_for_and_told() {
    let ear = Ear::v4();
    let home = home(&[&ear]);
    let ran = home.run(&["open", "udp/53", "admin", "shs", "--wait"]);
    assert_eq!(
        ran,
        Ran::said(
            0,
            "asked work to open udp/53; UDP ports can't be probed\n\
             asked work to open admin, whose ports are not known here; to have it probed, \
             name its ports under [server.work.services], as in admin = [\"tcp/8080\"]\n\
             asked work to open shs, whose ports are not known here; did you mean ssh?"
        )
    );
    assert_eq!(items(&ear.knock()), ["udp/53", "admin", "shs"]);
}

/// `open` with one of its outputs on a terminal, the other into a pipe.
#[cfg(unix)]
#[test]
fn a_terminal_is_waited_on_and_a_pipe_is_not() {
    use std::io::Read as _;
    let (ear, shut) = (Ear::v4(), Shut::new());
    let home = home(&[&ear]);
    let target = format!("tcp/{}", shut.port());
    let words = ["open", target.as_str(), "--timeout", "50ms"];
    assert_eq!(home.run(&words).status, 0, "no terminal, no wait, no failure");
    for on_stderr in [false, true] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = home.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if on_stderr {
            command.stderr(Stdio::from(pty.slave));
        } else {
            command.stdout(Stdio::from(pty.slave));
        }
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(1), "it waited, and in vain");
        drop(command);
        let mut shown = Vec::new();
        // A terminal that nobody holds any more ends with an error instead of an end.
        let _ = std::fs::File::from(pty.master).read_to_end(&mut shown);
        let shown = String::from_utf8(shown).unwrap();
        assert_eq!(on_stderr, shown.contains("did not open within 50 ms"), "{shown}");
    }
    drop(shut);
}

#[test]
fn verbose_says_what_is_sent_where() {
    let ear = Ear::v4();
    let ran = home(&[&ear]).run(&["open", "ssh", "--no-wait", "-v"]);
    assert_eq!(
        ran,
        Ran::said(
            0,
            &format!(
                "work: knock of 216 bytes sent to 127.0.0.1 port {}, source as observed, \
                 because the own address 127.0.0.1 is not a global one\n\
                 asked work to open ssh (127.0.0.1)",
                ear.port()
            )
        )
    );
}
