//! A directory with a configuration in which the real program runs, and a daemon for it to talk to.

use spa_keys::PrivateKey;
use spa_proto::UnixMicros;
use spa_server::config::Config;
use spa_server::control::{
    ControlRequest, ControlResponse, GrantView, Status, StatusClients, bind, serve,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_spa-server");

/// A directory in which commands run, with a configuration below `spa`.
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) server: String,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// It did what it was to do.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// It ended with this status, and its message has this in it.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, message: &str) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.err.contains(message), "{self:#?}");
        self
    }
}

impl Host {
    /// After `spa-server init`.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut host = Self { directory, server: String::new() };
        let initialized = host.run(&["init", "--dir", "spa"]).done();
        host.server.push_str(initialized.out.trim());
        // Whatever sshd this machine has.
        host.edit("server.toml", |text| {
            let begin = text.find("ports = [\"tcp/").unwrap();
            let end = begin + text[begin..].find('\n').unwrap();
            format!("{}ports = [\"tcp/22\"]{}", &text[..begin], &text[end..])
        });
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("spa").join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&str) -> String) {
        let text = change(&self.read(name));
        self.write(name, &text);
    }

    pub(crate) fn command(&self, program: &str, words: &[&str]) -> Finished {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.directory.path());
        command.output().unwrap().into()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Finished {
        let config = self.path("server.toml");
        let config = config.to_str().unwrap();
        let words: Vec<&str> = if words.contains(&"--dir") {
            words.to_vec()
        } else {
            words.iter().copied().chain(["--config", config]).collect()
        };
        self.command(PROGRAM, &words)
    }

    /// In a new network namespace; `%` in the script is the program with its configuration.
    pub(crate) fn script_in_namespace(&self, script: &str) -> Finished {
        let config = self.path("server.toml");
        let script = script.replace('%', &format!("{PROGRAM} --config {}", config.display()));
        let script = format!("set -e; ip link set lo up; {script}");
        self.command("unshare", &["--net", "sh", "-c", &script])
    }

    pub(crate) fn loads(&self) -> Config {
        Config::load(&self.path("server.toml")).unwrap()
    }

    /// Files and directories below the working directory, with their modes.
    pub(crate) fn files(&self) -> Vec<String> {
        let listed = self.command("find", &[".", "-mindepth", "1", "-printf", "%#m %P\n"]).done();
        let mut files: Vec<_> = listed.out.lines().map(Into::into).collect();
        files.sort_by(|a: &String, b| a[5..].cmp(&b[5..]));
        files
    }
}

pub(crate) fn key(seed: u8) -> String {
    PrivateKey::from_bytes([seed; 32].into()).public().to_string()
}

/// A daemon that answers what it is told to, and keeps what it was asked.
pub(crate) struct Daemon {
    asked: Arc<Mutex<Vec<ControlRequest>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    pub(crate) fn start(
        host: &Host,
        answer: impl Fn(&ControlRequest) -> ControlResponse + Send + Sync + 'static,
    ) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(async { bind(&host.path("control.sock")).unwrap() });
        let kept = Arc::clone(&asked);
        runtime.spawn(serve(listener, move |request| {
            let response = answer(&request);
            kept.lock().unwrap().push(request);
            async move { response }
        }));
        Self { asked, _runtime: runtime }
    }

    pub(crate) fn asked(&self) -> Vec<ControlRequest> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

pub(crate) fn grant() -> GrantView {
    GrantView {
        client: "laptop".into(),
        source: "192.0.2.7".parse().unwrap(),
        service: "ssh".parse().unwrap(),
        ports: vec!["tcp/22".parse().unwrap()],
        opened: UnixMicros::from_secs(1_798_758_000),
        seconds_left: 29,
        request_id: "0a1b2c3d".into(),
    }
}

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 123,
        started: UnixMicros::from_secs(1_798_758_000),
        uptime: 3723,
        interfaces: Vec::new(),
        knock_ports: vec![62_201],
        backend: spa_server::gate::Backend::Ipset,
        mode: "guard".into(),
        refuse: "drop".into(),
        guards: true,
        gate: "installed".into(),
        trial_seconds_left: None,
        restored: 0,
        last_restored: None,
        replay_store: "writable".into(),
        clients: StatusClients { total: 1, enabled: 1 },
        grants: 1,
        refused: 0,
        received: 4,
        prefilter: "in the kernel".into(),
        accepted: 1,
        opened: 1,
        closed: 0,
        failed: 0,
        dropped: [("replay".into(), 3)].into(),
        kernel_drops: 0,
        queue: spa_server::control::QueueStatus { waiting: 0, deepest: 1, limit: 4096 },
        latency: None,
        barrier_until: None,
        left_out: Vec::new(),
        last_reload: None,
    }
}
