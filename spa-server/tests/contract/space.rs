//! A machine of the lab: a network and a mount namespace without names. They go with the value,
//! and with the process when it is killed. Knows nothing of gates.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

/// The namespaces, held open.
#[derive(Debug, Clone)]
pub(crate) struct Space(Arc<Namespaces>);

#[derive(Debug)]
struct Namespaces {
    net: File,
    mounts: File,
}

impl Space {
    /// A machine with a loopback interface that is up, and a `/run` of its own: the lock that
    /// iptables-legacy takes there is nobody else's.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let open = |kind| File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
            Self(Arc::new(Namespaces { net: open("net"), mounts: open("mnt") }))
        };
        let space = thread::spawn(make).join().unwrap();
        // No address waits to be found unique: it would be unusable for a second.
        for interfaces in ["default", "all"] {
            space.set(&format!("ipv6/conf/{interfaces}/accept_dad"), "0");
        }
        space.ip("link set lo up\n");
        space
    }

    /// Takes this thread into the namespaces, for good.
    pub(crate) fn enter(&self) {
        unshare(CloneFlags::CLONE_FS).unwrap();
        setns(&self.0.mounts, CloneFlags::CLONE_NEWNS).unwrap();
        setns(&self.0.net, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs code on a thread that is in the namespaces. What it opens stays there.
    pub(crate) fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let run = || {
            self.enter();
            code()
        };
        thread::scope(|scope| {
            scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Where other programs find the network namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.net.as_raw_fd())
    }

    /// Sets a value below `/proc/sys/net`.
    pub(crate) fn set(&self, key: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/net/{key}"), value))
            .unwrap_or_else(|error| panic!("{key}: {error}"));
    }

    /// Feeds lines to `ip -batch`.
    pub(crate) fn ip(&self, lines: &str) {
        self.feed("ip -batch -", lines);
    }

    /// Runs a command; it must succeed.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        self.feed(command, "")
    }

    /// Runs a command that reads this; it must succeed.
    #[track_caller]
    pub(crate) fn feed(&self, command: &str, input: &str) -> String {
        self.try_to_feed(command, input).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a command that reads this; an error is what it complains about.
    pub(crate) fn try_to_feed(&self, command: &str, input: &str) -> Result<String, String> {
        let mut child = self.start(command, Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        // One that ends before it has read everything says why by its status.
        let feed = thread::scope(|scope| {
            scope.spawn(move || {
                let _ = stdin.write_all(input.as_bytes());
            });
            child.wait_with_output().unwrap()
        });
        if feed.status.success() {
            Ok(String::from_utf8(feed.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&feed.stderr).into_owned())
        }
    }

    /// Starts a command.
    pub(crate) fn start(&self, command: &str, stdin: Stdio) -> Child {
        let mut words = command.split_whitespace();
        let mut line = Command::new(words.next().unwrap());
        line.args(words).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.inside(|| line.spawn()).unwrap_or_else(|error| panic!("{command}: {error}"))
    }
}
