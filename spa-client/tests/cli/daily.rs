//! `proxy`, `status`, `--while`, and what a knock of before is good for, on loopback.

use crate::support::{Ear, Home, Ran, age_by_seconds};
use socket2::{Domain, Socket, Type};
use spa_proto::MessageType;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;

fn home(ear: &Ear, lines: &str) -> Home {
    Home::with_server(&format!("host = \"127.0.0.1\"\nknock-ports = [{}]\n{lines}", ear.port()))
}

/// A server whose `ssh` is this listener, and whose grants last longer than any test here.
fn listening(ear: &Ear) -> (Home, TcpListener) {
    serving(ear, "lifetime = \"1m\"\n")
}

fn serving(ear: &Ear, lines: &str) -> (Home, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (home(ear, &format!("{lines}services.ssh = [\"tcp/{port}\"]")), listener)
}

/// How many connections came to it.
fn accepted(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| listener.accept().ok()).count()
}

#[test]
fn what_was_seen_open_is_neither_knocked_at_nor_probed_again() {
    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let open = |words: &[&str]| {
        let ran = home.run(&[&["open", "ssh"], words].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stderr
    };
    open(&["--wait"]);
    ear.hear();
    assert_eq!(accepted(&listener), 1);
    for words in [&["--wait"][..], &["--no-wait"], &[]] {
        let told = open(words);
        assert!(told.starts_with("ssh on work: asked for "), "{told}");
        assert!(told.contains(" s ago and was seen open at 127.0.0.1"), "{told}");
        assert!(told.ends_with("--fresh knocks nevertheless\n"), "{told}");
    }
    assert!(!ear.has_more() && accepted(&listener) == 0);
    let report = home.run(&["open", "ssh", "--wait", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let server = &report["servers"][0];
    assert_eq!(
        (&server["items"][0]["state"], &server["knocks"]),
        (&"open".into(), &[(); 0].as_slice().into())
    );
    let left = server["reused"]["seconds_left"].as_u64().unwrap();
    assert!((6..=60).contains(&left), "{server}");

    // Whoever wants it otherwise gets a knock.
    for words in [
        &["--fresh"][..],
        &["--source", "127.0.0.1"],
        &["--lifetime", "5m"],
        &["tcp/1", "--no-wait"],
    ] {
        open(words);
        assert_eq!(ear.knock().request.message_type, MessageType::Open);
        assert!(!ear.has_more(), "{words:?}");
    }
    home.run(&["close", "ssh"]);
    ear.knock();
    open(&["--wait", "--lifetime", "5m"]);
    ear.knock();
    // Of these five minutes, enough is left for as much again, but not for an hour.
    open(&["--lifetime", "5m"]);
    assert!(!ear.has_more());
    open(&["--lifetime", "1h"]);
    ear.knock();

    home.run(&["close", "ssh"]);
    assert_eq!(ear.knock().request.message_type, MessageType::Close);
    open(&[]);
    ear.knock();
}

/// A grant that does not hold any more must not keep whoever has no time from knocking.
#[test]
fn a_short_wait_knocks_in_any_case_and_what_did_not_open_is_forgotten() {
    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let open = |timeout: &str| home.run(&["open", "ssh", "--wait", "--timeout", timeout]).status;
    assert_eq!(open("10s"), 0);
    ear.knock();
    drop(listener);
    assert_eq!(open("300ms"), 1);
    ear.knock();
    let status = home.run(&["status"]);
    assert_eq!(status, Ran::said(0, "this client has asked for nothing that still holds"));
}

/// The server may give less than the usual lifetime: then what was seen open is looked at again.
#[test]
fn without_a_lifetime_what_was_seen_open_is_soon_probed_again() {
    let ear = Ear::v4();
    for (lines, probes) in [("", 1), ("lifetime = \"1m\"\n", 0)] {
        let (home, listener) = serving(&ear, lines);
        let open = || assert_eq!(home.run(&["open", "ssh", "--wait"]).status, 0);
        open();
        ear.knock();
        assert_eq!(accepted(&listener), 1);
        age_by_seconds(&home.file("state/asked.json"), 5);
        open();
        assert_eq!((accepted(&listener), ear.has_more()), (probes, false), "{lines}");
    }
}

#[test]
fn what_nobody_has_seen_open_is_knocked_at_again_where_nobody_waits() {
    let ear = Ear::v4();
    let home = home(&ear, "");
    for _ in 0..3 {
        assert_eq!(home.run(&["open", "ssh", "udp/53"]).status, 0);
        ear.knock();
    }
    assert!(!ear.has_more());
}

#[test]
fn another_server_of_the_name_and_a_damaged_record_are_knocked_at() {
    let ear = Ear::v4();
    let (home, _listener) = listening(&ear);
    let open = || assert_eq!(home.run(&["open", "ssh", "--wait"]).status, 0);
    open();
    ear.knock();
    open();
    assert!(!ear.has_more(), "the control");
    let record = home.file("state/asked.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let key = crate::support::client_key().to_string();
    let other = text.replace(&crate::support::server_key().to_string(), &key);
    assert_ne!(text, other);
    for damaged in [other, text.replace("127.0.0.1", "127.0.0.2"), "{".into(), String::new()] {
        std::fs::write(&record, damaged).unwrap();
        open();
        ear.knock();
        open();
        assert!(!ear.has_more());
    }
}

#[test]
fn status_shows_what_was_asked_for_until_it_is_closed() {
    let ear = Ear::v4();
    let (home, _listener) = serving(&ear, "");
    let nothing = Ran::said(0, "this client has asked for nothing that still holds");
    assert_eq!(home.run(&["status"]), nothing);
    home.run(&["open", "ssh", "--wait", "--lifetime", "5m"]);
    home.run(&["open", "udp/53"]);
    let mut shown = home.run(&["status"]);
    // How many seconds is the machine's business.
    let words = shown.stdout.split(' ').map(|word| word.parse::<u64>().map_or(word, |_| "N"));
    shown.stdout = words.collect::<Vec<_>>().join(" ");
    assert_eq!(
        (shown.stdout.as_str(), shown.stderr.as_str()),
        (
            "\
ssh on work (127.0.0.1 from 127.0.0.1): asked for, for N s more at least; seen open N s ago
udp/53 on work (127.0.0.1 from 127.0.0.1): asked for, for N s more at least if the server's lifetime is the usual one
",
            "a server never answers: this was asked for, not what is open\n"
        )
    );
    let json = home.run(&["status", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let asked = &json["asked"];
    assert_eq!((&asked[0]["item"], &asked[1]["item"]), (&"ssh".into(), &"udp/53".into()));
    assert_eq!(asked[0]["lifetime_known"], true);
    assert!(asked[0]["until_at_least"].as_str() > asked[0]["asked_at"].as_str(), "{json}");
    home.run(&["close", "ssh", "udp/53"]);
    assert_eq!(home.run(&["status"]), nothing);
}

#[test]
fn the_proxy_tells_which_servers_there_are() {
    let home = Home::with_server("host = \"gw.example.org\"");
    let ran = home.run(&["proxy", "gw.example.com", "22"]);
    assert_eq!(
        ran,
        Ran::said(
            2,
            "error: no server has the host or the name \"gw.example.com\"; known are: work (gw.example.org); name the one to knock on with --server NAME, or add it: spa-client server add NAME --host gw.example.com --public-key KEY"
        )
    );
    home.add_server("twin", "host = \"gw.example.org\"");
    let ran = home.run(&["proxy", "gw.example.org", "22"]);
    let told = "error: twin and work all have the host gw.example.org; name the one to knock on with --server NAME";
    assert_eq!(ran, Ran::said(2, told));
    assert_eq!(home.run(&["proxy", "gw.example.org", "0"]).status, 2);
}

#[test]
fn a_proxy_to_a_shut_port_ends_in_time_and_says_why() {
    let ear = Ear::v4();
    let shut = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    shut.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = shut.local_addr().unwrap().as_socket().unwrap().port().to_string();
    let ran = home(&ear, "").run(&["proxy", "127.0.0.1", &port, "--timeout", "2500ms"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    let told = format!(
        "error: tcp/{port} on work did not open within 2.5 s (127.0.0.1: connection refused)\n\
         knocks were sent 2 times; "
    );
    assert!(ran.stderr.starts_with(&told), "{}", ran.stderr);
    ear.knock();
    ear.knock();
    assert!(!ear.has_more());
}

/// Whoever says goodbye first may still listen, on either side.
#[cfg(unix)]
#[test]
fn a_connection_that_the_other_side_has_half_closed_still_takes_bytes() {
    use std::io::{Read as _, Write as _};
    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let port = listener.local_addr().unwrap().port().to_string();
    let start = || {
        let mut command = home.command(&["proxy", "work", &port]);
        let mut proxy = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"bye").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        proxy.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "bye");
        (proxy, stream)
    };
    let (mut proxy, mut stream) = start();
    proxy.stdin.take().unwrap().write_all(b"and you").unwrap();
    let mut came = String::new();
    stream.read_to_string(&mut came).unwrap();
    assert_eq!(came, "and you");
    assert!(proxy.wait().unwrap().success());

    // With nothing more to say on this side, that was the end.
    let (mut proxy, stream) = start();
    let stdin = proxy.stdin.take().unwrap();
    assert!(proxy.wait().unwrap().success());
    drop((stdin, stream));
}

#[cfg(unix)]
#[test]
fn every_byte_arrives_whatever_the_standard_streams_are() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let port = listener.local_addr().unwrap().port().to_string();
    let words: Vec<u32> =
        (0..1 << 21).map(|number: u32| number.wrapping_mul(2_654_435_761)).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let bytes = bytes.as_slice();
    let unblocked = |stream: &dyn AsFd| {
        fcntl(stream.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    };
    // What the proxy gets, and the other ends.
    let streams = |kind: &str| -> (OwnedFd, OwnedFd, OwnedFd, OwnedFd) {
        let (input, keyboard): (OwnedFd, OwnedFd) = if kind == "sockets" {
            UnixStream::pair().map(|(one, other)| (one.into(), other.into())).unwrap()
        } else {
            std::io::pipe().map(|(one, other)| (one.into(), other.into())).unwrap()
        };
        let (screen, output): (OwnedFd, OwnedFd) = if kind == "sockets" {
            UnixStream::pair().map(|(one, other)| (one.into(), other.into())).unwrap()
        } else {
            std::io::pipe().map(|(one, other)| (one.into(), other.into())).unwrap()
        };
        if kind == "pipes that don't block" {
            unblocked(&input);
            unblocked(&output);
        }
        (input, output, keyboard, screen)
    };
    for kind in ["pipes", "pipes that don't block", "sockets"] {
        let (input, output, keyboard, screen) = streams(kind);
        let mut command = home.command(&["proxy", "work", &port]);
        let mut proxy = command.stdin(input).stdout(output).spawn().unwrap();
        drop(command);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut copy = stream.try_clone().unwrap();
                std::io::copy(&mut copy, &mut stream).unwrap();
            });
            scope.spawn(move || File::from(keyboard).write_all(bytes).unwrap());
            let mut came = Vec::new();
            File::from(screen).read_to_end(&mut came).unwrap();
            assert!(came == bytes, "{kind}: {} bytes came", came.len());
        });
        assert!(proxy.wait().unwrap().success(), "{kind}");
    }
    let (from, to) = (home.file("from"), home.file("to"));
    std::fs::write(&from, bytes).unwrap();
    let mut command = home.command(&["proxy", "work", &port]);
    command.stdin(File::open(&from).unwrap()).stdout(File::create(&to).unwrap());
    let mut proxy = command.spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut copy = stream.try_clone().unwrap();
    std::io::copy(&mut copy, &mut stream).unwrap();
    drop((stream, copy));
    assert!(proxy.wait().unwrap().success());
    assert!(std::fs::read(to).unwrap() == bytes, "files");
}

/// As ssh does it where its configuration says `ProxyUseFdpass yes`.
#[cfg(unix)]
#[test]
fn who_waits_for_a_connection_is_handed_it_and_the_proxy_ends() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Read as _, Write as _};
    use std::mem::MaybeUninit;
    use std::net::TcpStream;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let port = listener.local_addr().unwrap().port().to_string();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let mut command = home.command(&["proxy", "--fdpass", "work", &port]);
    let input = OwnedFd::from(theirs.try_clone().unwrap());
    command.stdin(input).stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let proxy = command.spawn().unwrap();
    drop(command);
    let mut server = listener.accept().unwrap().0;

    let (mut bytes, mut space) = ([9; 2], [MaybeUninit::uninit(); 64]);
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(&mut bytes)];
    let came = recvmsg(&ours, &mut bytes, &mut beside, RecvFlags::empty()).unwrap();
    assert_eq!(came.bytes, 1, "as ssh expects it");
    let rights = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
        _ => None,
    });
    let passed = rights.expect("a connection");
    let mut stream = TcpStream::from(passed);
    assert!(Socket::from(stream.try_clone().unwrap()).keepalive().unwrap());
    let out = proxy.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    (&ours).read_exact(&mut [0]).expect_err("nothing more comes");

    // The process is gone, and the connection is there. It blocks, as one of ssh's own would.
    let answer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        server.write_all(b"hello").unwrap();
        let mut said = String::new();
        server.read_to_string(&mut said).unwrap();
        said
    });
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    stream.write_all(b"and you").unwrap();
    drop(stream);
    assert_eq!((&heard, answer.join().unwrap().as_str()), (b"hello", "and you"));
}

/// Other programs that read ssh's configuration start a `ProxyCommand` and know no `ProxyUseFdpass`.
#[cfg(unix)]
#[test]
fn who_takes_no_connection_has_the_bytes_carried() {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let port = listener.local_addr().unwrap().port().to_string();
    let pair = || {
        let (one, other) = UnixStream::pair().unwrap();
        (OwnedFd::from(one), OwnedFd::from(other))
    };
    let pipe = || {
        let (one, other) = std::io::pipe().unwrap();
        (OwnedFd::from(one), OwnedFd::from(other))
    };
    let tcp = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (OwnedFd::from(stream), OwnedFd::from(listener.accept().unwrap().0))
    };
    let twice = |(ours, theirs): (OwnedFd, OwnedFd)| {
        [ours.try_clone().unwrap(), ours, theirs.try_clone().unwrap(), theirs]
    };
    let (pipes, sockets) = ((pipe(), pipe()), (pair(), pair()));
    for (what, [keyboard, screen, input, output]) in [
        ("pipes", [pipes.0.1, pipes.1.0, pipes.0.0, pipes.1.1]),
        ("two sockets", [sockets.0.0, sockets.1.0, sockets.0.1, sockets.1.1]),
        ("a socket of another kind", twice(tcp())),
        ("who has begun to talk", twice(pair())),
    ] {
        let (mut keyboard, mut screen) = (File::from(keyboard), File::from(screen));
        let is_first = what == "who has begun to talk";
        if is_first {
            keyboard.write_all(b"hello").unwrap();
        }
        let mut command = home.command(&["proxy", "--fdpass", "work", &port]);
        let mut proxy = command.stdin(input).stdout(output).spawn().unwrap();
        drop(command);
        let mut server = listener.accept().unwrap().0;
        server.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        server.write_all(b"and you").unwrap();
        let (mut said, mut heard) = ([0; 7], [0; 5]);
        screen.read_exact(&mut said).unwrap();
        if !is_first {
            keyboard.write_all(b"hello").unwrap();
        }
        server.read_exact(&mut heard).unwrap();
        drop(server);
        assert_eq!((&heard, &said), (b"hello", b"and you"), "{what}");
        assert_eq!(screen.read(&mut said).unwrap(), 0, "{what}");
        drop(keyboard);
        assert!(proxy.wait().unwrap().success(), "{what}");
    }
}

/// Any server may mark a byte as urgent (RFC 9293, section 3.8.5), and so may whoever is on the way.
#[test]
fn an_urgent_byte_holds_up_nothing_behind_it() {
    let ear = Ear::v4();
    let (home, listener) = listening(&ear);
    let port = listener.local_addr().unwrap().port().to_string();
    let mut command = home.command(&["proxy", "work", &port]);
    let proxy = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stream = Socket::from(listener.accept().unwrap().0);
    stream.send(b"before").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    stream.send_out_of_band(b"!").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    stream.send(b"after").unwrap();
    drop(stream);
    let out = proxy.wait_with_output().unwrap();
    assert!(out.status.success());
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "beforeafter");
}

#[test]
fn a_command_runs_while_it_is_open_and_its_end_is_the_result() {
    let ear = Ear::v4();
    let (home, _listener) = listening(&ear);
    let home_run = |words: &[&str]| {
        let mut command = home.command(&[&["open", "ssh", "--lifetime", "1s"], words].concat());
        command.env("PATH", "/usr/bin:/bin");
        Ran::of(&command.stdout(Stdio::piped()).output().unwrap(), home.path())
    };
    let script = "echo in; sleep 2; exit 7";
    let ran = home_run(&["--while", "--close-after", "--", "sh", "-c", script]);
    assert_eq!((ran.status, ran.stdout.as_str()), (7, "in\n"), "{}", ran.stderr);
    let mut types = Vec::new();
    while ear.has_more() {
        types.push(ear.knock().request.message_type);
    }
    assert_eq!(types.pop(), Some(MessageType::Close));
    // For one second each, and asked for anew after less than half of it.
    assert!(types.len() >= 4 && types.len() <= 8, "{types:?}");
    assert!(types.iter().all(|message_type| *message_type == MessageType::Open));

    let ran = home_run(&["--while", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(ran.status, 128 + 9);
    let ran = home_run(&["--while", "--", "no-such-command"]);
    assert_eq!(ran.status, 127, "{}", ran.stderr);
    for words in [&["--while"][..], &["--", "true"], &["--close-after"]] {
        assert_eq!(home_run(words).status, 2, "{words:?}");
    }
}

/// Nothing runs where nothing opened.
#[test]
fn a_command_does_not_run_when_the_port_stays_shut() {
    let ear = Ear::v4();
    let shut = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    shut.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let target = format!("tcp/{}", shut.local_addr().unwrap().as_socket().unwrap().port());
    let home = home(&ear, "");
    let words = ["open", &target, "--timeout", "100ms", "--while", "--", "/bin/echo", "in"];
    let ran = home.run(&words);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    // The control: what can't be probed can't be waited for, and it runs at once.
    let ran = home.run(&["open", "udp/53", "--while", "--", "/bin/echo", "in"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "in\n"), "{}", ran.stderr);
}

/// The terminal's Ctrl-C is for the command; what is sent to us alone is handed on.
#[cfg(unix)]
#[test]
fn signals_reach_the_command() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::io::{BufRead as _, BufReader};
    let ear = Ear::v4();
    let home = home(&ear, "");
    let script = "trap 'echo INT' INT; trap 'echo TERM; exit 5' TERM; echo ready; \
                  while :; do sleep 0.05; done";
    let mut command = home.command(&["open", "udp/53", "-q", "--while", "--", "sh", "-c", script]);
    command.env("PATH", "/usr/bin:/bin").stdout(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut client = command.spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(line(), "ready");
    let pid = Pid::from_raw(i32::try_from(client.id()).unwrap());
    // As the terminal does, to all of the process group.
    nix::sys::signal::killpg(pid, Signal::SIGINT).unwrap();
    assert_eq!(line(), "INT");
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(line(), "TERM");
    assert_eq!(client.wait().unwrap().code(), Some(5));
}
