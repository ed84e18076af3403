//! The real binary with a configuration of its own, and a server's ears to hear it with.

use spa_keys::{PrivateKey, PublicKey, mask_key, pair_secret_for_server};
use spa_proto::{Knock, Receiver, Settings, UnixMicros, Verdict};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Keys of nobody.
pub(crate) const CLIENT_PRIVATE: &str =
    "spa-private-um3NOma01OpBEE6YIJxv869rM8sTYsPyWHCsUHeOwd-UMUbh";
pub(crate) const SERVER_PRIVATE: &str =
    "spa-private-YTtmyg1pB-8j5MqK_HlgGFWpXBm7oKAR7P91GhfmDItqgzHD";

/// Long enough for the slowest machine; nothing waits for it to pass when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration directory.
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    /// Without anything in it.
    pub(crate) fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// With a key, and with a server called `work` that has these lines.
    pub(crate) fn with_server(lines: &str) -> Self {
        let home = Self::empty();
        home.write_key("identity.key");
        home.add_server("work", lines);
        home
    }

    pub(crate) fn write_key(&self, name: &str) {
        let key: PrivateKey = CLIENT_PRIVATE.parse().unwrap();
        let refuse = spa_keys::Overwrite::Refuse;
        spa_keys::write_private_key(self.file(name), &key, refuse).unwrap();
    }

    pub(crate) fn add_server(&self, name: &str, lines: &str) {
        let before = std::fs::read_to_string(self.file("config.toml")).unwrap_or_default();
        let key = server_key();
        let text = format!("{before}[server.{name}]\npublic-key = \"{key}\"\n{lines}\n");
        std::fs::write(self.file("config.toml"), text).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spa-client"));
        command.args(words).env_clear().env("SPA_CONFIG_DIR", self.path()).stdin(Stdio::null());
        command.env("SPA_STATE_DIR", self.path().join("state"));
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().unwrap(), self.path())
    }
}

/// What a run left behind; the directory is called `[dir]` in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output, directory: &Path) -> Self {
        let text = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.replace(directory.to_str().unwrap(), "[dir]")
        };
        Self {
            status: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// A run that said this on standard error and nothing on standard output.
    pub(crate) fn said(status: i32, stderr: &str) -> Self {
        Self { status, stdout: String::new(), stderr: format!("{stderr}\n") }
    }
}

pub(crate) fn server_key() -> PublicKey {
    SERVER_PRIVATE.parse::<PrivateKey>().unwrap().public()
}

pub(crate) fn client_key() -> PublicKey {
    CLIENT_PRIVATE.parse::<PrivateKey>().unwrap().public()
}

/// A knock port: a socket that a real server would not have.
pub(crate) struct Ear(UdpSocket);

impl Ear {
    pub(crate) fn new(address: impl Into<IpAddr>) -> Self {
        let socket = UdpSocket::bind((address.into(), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(crate) fn v4() -> Self {
        Self::new(Ipv4Addr::LOCALHOST)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// The next datagram and where it came from.
    pub(crate) fn hear(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (length, from) = loop {
            match self.0.recv_from(&mut buffer) {
                // A read with a time limit, in a machine that was frozen for a moment (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                came => break came.unwrap(),
            }
        };
        (buffer[..length].to_vec(), from)
    }

    /// The next datagram, which has to be a knock of the client that the server knows.
    pub(crate) fn knock(&self) -> Knock {
        let (datagram, from) = self.hear();
        authentic(&datagram, from.ip())
    }

    /// Whether another datagram lies in the queue.
    pub(crate) fn has_more(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let more = self.0.peek_from(&mut [0]).is_ok();
        self.0.set_nonblocking(false).unwrap();
        more
    }
}

/// What the server's receiver makes of a datagram.
pub(crate) fn receive(datagram: &[u8], from: IpAddr) -> Verdict {
    let me: PrivateKey = SERVER_PRIVATE.parse().unwrap();
    let mut receiver = Receiver::new(Settings::default(), mask_key(&me.public()));
    let pair = pair_secret_for_server(&me, &client_key(), None).unwrap();
    receiver.set_clients([(client_key().into(), pair)]);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    receiver.receive(UnixMicros::default().saturating_add(since), from, datagram)
}

pub(crate) fn authentic(datagram: &[u8], from: IpAddr) -> Knock {
    match receive(datagram, from) {
        Verdict::Authentic(knock) => knock,
        verdict => panic!("{verdict:?}"),
    }
}

/// As if what the record holds had happened so much earlier.
pub(crate) fn age_by_seconds(record: &std::path::Path, seconds: u64) {
    fn age(value: &mut serde_json::Value, by: u64) {
        match value {
            serde_json::Value::Array(list) => list.iter_mut().for_each(|it| age(it, by)),
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value.as_u64() {
                        Some(at) if key.ends_with("-milliseconds") => *value = (at - by).into(),
                        _ => age(value, by),
                    }
                }
            }
            _ => {}
        }
    }
    let text = std::fs::read_to_string(record).unwrap();
    let mut entries = serde_json::from_str(&text).unwrap();
    age(&mut entries, seconds * 1000);
    std::fs::write(record, entries.to_string()).unwrap();
}
