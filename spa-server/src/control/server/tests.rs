//! The control socket over a real socket, with hostile peers.

use super::super::{CallError, call};
use super::*;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as Peer;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A daemon that counts the requests and answers them; it ends with the value.
struct Daemon {
    socket: PathBuf,
    handled: Arc<AtomicUsize>,
    /// What whoever connects from now on may ask for.
    right: Arc<Mutex<Result<Right, PeerRefused>>>,
    _runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start(idle: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/control.sock");
        let handled = Arc::new(AtomicUsize::new(0));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let listener = runtime.block_on(async { bind(&socket).unwrap() });
        let count = Arc::clone(&handled);
        let handler = move |request| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                match request {
                    ControlRequest::GrantsList => ControlResponse::Grants(Vec::new()),
                    ControlRequest::Reload => ControlResponse::error(&"server.toml is no TOML"),
                    _ => ControlResponse::Done,
                }
            }
        };
        let right = Arc::new(Mutex::new(Ok(Right::Everything)));
        let theirs = Arc::clone(&right);
        let right_of = move |_: &UnixStream| *theirs.lock().unwrap();
        runtime.spawn(serve_within(listener, right_of, handler, idle));
        Self { socket, handled, right, _runtime: runtime, _directory: directory }
    }

    fn peer(&self) -> Peer {
        let peer = Peer::connect(&self.socket).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        peer.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        peer
    }

    fn answers(&self) -> bool {
        matches!(call(&self.socket, &ControlRequest::GrantsList), Ok(ControlResponse::Grants(_)))
    }

    fn handled(&self) -> usize {
        self.handled.load(Ordering::SeqCst)
    }
}

/// All that the daemon sends until it hangs up.
fn rest(mut peer: &Peer) -> String {
    let mut bytes = Vec::new();
    // A hang-up with bytes of ours unread may come as a reset after what was sent.
    if let Err(error) = peer.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    String::from_utf8(bytes).unwrap()
}

/// One line that the daemon sends.
fn read_one(mut peer: &Peer) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while peer.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn requests_are_answered_and_refusals_are_errors() {
    let daemon = Daemon::start(IDLE);
    assert!(daemon.answers());
    let error = call(&daemon.socket, &ControlRequest::Reload).unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }));
    assert_eq!(error.to_string(), "server.toml is no TOML");
}

#[test]
fn one_connection_may_ask_often_and_in_pieces() {
    let daemon = Daemon::start(IDLE);
    let mut peer = daemon.peer();
    peer.write_all(b"\"grants-list\"\n\"stat").unwrap();
    assert_eq!(read_one(&peer), r#"{"grants":[]}"#);
    peer.write_all(b"us\"\n").unwrap();
    assert_eq!(read_one(&peer), r#""done""#);
}

#[test]
fn the_socket_is_for_its_owner_alone_and_for_who_may_look() {
    let daemon = Daemon::start(IDLE);
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    // On a host that has a user for metrics, its group as well.
    assert_eq!(mode & 0o777, if observer().is_some() { 0o660 } else { 0o600 });
    let beside = std::fs::read_dir(daemon.socket.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "the temporary name is gone");
}

#[test]
fn only_root_and_the_daemon_itself_may_give_orders() {
    for (uid, euid, observer, right) in [
        (0, 0, None, Some(Right::Everything)),
        (0, 990, Some(980), Some(Right::Everything)),
        (990, 990, Some(980), Some(Right::Everything)),
        // A daemon that runs as who may look does not give its own rights up.
        (980, 980, Some(980), Some(Right::Everything)),
        (980, 990, Some(980), Some(Right::Status)),
        (980, 990, None, None),
        (1000, 990, Some(980), None),
        (1000, 0, None, None),
    ] {
        assert_eq!(may_speak(uid, euid, observer).ok(), right, "{uid} to {euid}");
    }
    assert_eq!(
        may_speak(1000, 0, None).unwrap_err().to_string(),
        "user id 1000 may not speak to the daemon; run the command as root"
    );
}

#[test]
fn garbage_is_answered_with_an_error_and_reaches_no_handler() {
    let daemon = Daemon::start(IDLE);
    for garbage in [&b"\n"[..], b"hello\n", b"\xff\xfe\x00\n", b"{\"status\":1}\n", b"[[[[[[\n"] {
        let mut peer = daemon.peer();
        peer.write_all(garbage).unwrap();
        let answer = read_one(&peer);
        assert!(
            answer.starts_with(r#"{"error":{"message":"the daemon does not understand"#),
            "{answer}"
        );
    }
    let mut deep = vec![b'['; 60_000];
    deep.push(b'\n');
    let mut peer = daemon.peer();
    peer.write_all(&deep).unwrap();
    assert!(read_one(&peer).contains("does not understand"));
    assert_eq!(daemon.handled(), 0);
    assert!(daemon.answers());
}

#[test]
fn a_line_without_end_is_cut_off() {
    let daemon = Daemon::start(IDLE);
    let mut fits = b"\"status\"".to_vec();
    fits.resize(MAX_REQUEST - 1, b' ');
    fits.push(b'\n');
    let mut peer = daemon.peer();
    peer.write_all(&fits).unwrap();
    assert_eq!(read_one(&peer), r#""done""#);

    let mut peer = daemon.peer();
    let endless = vec![b' '; 4 * 1024 * 1024];
    peer.write_all(&endless).unwrap_err();
    assert_eq!(rest(&peer), "{\"error\":{\"message\":\"a request has at most 65536 bytes\"}}\n");
    assert_eq!(daemon.handled(), 1);
}

#[test]
fn half_a_request_is_no_request() {
    let daemon = Daemon::start(IDLE);
    let mut peer = daemon.peer();
    peer.write_all(b"\"status\"").unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&peer), "");
    assert_eq!(daemon.handled(), 0);
}

#[test]
fn the_seventeenth_connection_is_turned_away_and_room_comes_back() {
    let daemon = Daemon::start(IDLE);
    let mut peers: Vec<_> = (0..MAX_CONNECTIONS).map(|_| daemon.peer()).collect();
    for peer in &mut peers {
        peer.write_all(b"\"status\"\n").unwrap();
        assert_eq!(read_one(peer), r#""done""#);
    }
    assert!(rest(&daemon.peer()).contains("too many connections"));
    let error = call(&daemon.socket, &ControlRequest::Status).unwrap_err();
    assert!(error.to_string().contains("too many connections"), "{error}");
    // Those that are in are still served.
    peers[0].write_all(b"\"status\"\n").unwrap();
    assert_eq!(read_one(&peers[0]), r#""done""#);
    drop(peers);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !daemon.answers() {
        assert!(std::time::Instant::now() < deadline, "room does not come back");
        std::thread::yield_now();
    }
}

#[test]
fn who_may_only_look_is_told_the_status_and_takes_no_place_of_others() {
    let daemon = Daemon::start(IDLE);
    *daemon.right.lock().unwrap() = Ok(Right::Status);
    let mut peers: Vec<_> = (0..MAX_OBSERVERS).map(|_| daemon.peer()).collect();
    for peer in &mut peers {
        peer.write_all(b"\"reload\"\n").unwrap();
        assert!(read_one(peer).contains("may ask for the status only"));
        peer.write_all(b"\"status\"\n").unwrap();
        assert_eq!(read_one(peer), r#""done""#);
    }
    assert_eq!(daemon.handled(), MAX_OBSERVERS);
    assert!(rest(&daemon.peer()).contains("too many connections"));
    *daemon.right.lock().unwrap() = Ok(Right::Everything);
    let others: Vec<_> = (0..MAX_CONNECTIONS).map(|_| daemon.peer()).collect();
    for mut peer in &others {
        peer.write_all(b"\"grants-list\"\n").unwrap();
        assert_eq!(read_one(peer), r#"{"grants":[]}"#);
    }
}

#[test]
fn who_may_not_speak_is_told_so_and_not_listened_to() {
    let daemon = Daemon::start(IDLE);
    *daemon.right.lock().unwrap() = Err(PeerRefused { uid: 1000 });
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut peer = daemon.peer();
        drop(peer.write_all(b"\"status\"\n"));
        assert!(rest(&peer).contains("user id 1000 may not speak to the daemon"));
    }
    assert_eq!(daemon.handled(), 0);
    *daemon.right.lock().unwrap() = Ok(Right::Everything);
    assert!(daemon.answers());
}

#[test]
fn a_silent_peer_is_hung_up_on() {
    let daemon = Daemon::start(Duration::from_millis(50));
    let mut peer = daemon.peer();
    assert_eq!(rest(&peer), "");
    let mut slow = daemon.peer();
    slow.write_all(b"\"sta").unwrap();
    assert_eq!(rest(&slow), "");
    drop(peer.write_all(b"\"status\"\n"));
    assert_eq!(daemon.handled(), 0);
    assert!(daemon.answers());
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
    let daemon = Daemon::start(IDLE);
    let error = bind(&daemon.socket).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(daemon.answers());
    let socket = daemon.socket.clone();
    let Daemon { _directory: directory, _runtime: runtime, .. } = daemon;
    drop(runtime);
    assert!(socket.exists(), "the daemon died without cleaning up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { bind(&socket).unwrap() });
    drop(directory);
}

/// Whoever owns the directory may put a link to a file of root's where root makes a socket.
#[test]
fn what_somebody_has_put_in_the_place_of_the_new_socket_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("shadow"), "").unwrap();
    std::fs::set_permissions(path("shadow"), Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(path("shadow"), path("link")).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(path("theirs")).unwrap();
    std::os::unix::fs::chown(path("theirs"), Some(4711), None).unwrap();
    for name in ["link", "shadow", "theirs"] {
        adjust(&path(name), Some(Gid::from_raw(4712))).unwrap_err();
        let metadata = std::fs::metadata(path(name)).unwrap();
        assert_ne!(metadata.gid(), 4712, "{name}");
    }
    // The control.
    std::os::unix::fs::chown(path("theirs"), Some(0), None).unwrap();
    adjust(&path("theirs"), Some(Gid::from_raw(4712))).unwrap();
    let metadata = std::fs::metadata(path("theirs")).unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (4712, 0o660));
    drop(listener);
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = bind(&path).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
