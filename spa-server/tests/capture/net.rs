//! Network namespaces, and frames put on their interfaces.

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace that is deleted in the end.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "the capture tests need root: they make network namespaces"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("spa-capture-{}-{count}", std::process::id()) };
        run(&["netns", "add", &namespace.name]);
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` with these words, inside.
    pub(crate) fn ip(&self, words: &str) {
        let mut arguments = vec!["-n", &self.name];
        arguments.extend(words.split(' '));
        run(&arguments);
    }

    /// What a program prints, inside.
    pub(crate) fn output(&self, words: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(words.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Calls `work` on a thread that is inside; the threads which it starts are too.
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The lengths of the filters that the kernel runs for packet sockets, inside.
    pub(crate) fn kernel_filters(&self) -> Vec<usize> {
        let output = self.output("ss --packet --bpf --no-header");
        let lengths = output.split("bpf filter (").skip(1);
        lengths.map(|text| text.split(')').next().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// The index of an interface of this thread's namespace.
pub(crate) fn index(name: &str) -> u32 {
    if_nametoindex(name).unwrap()
}

/// Puts whole frames on an interface.
pub(crate) struct Sender(pcap::Capture<pcap::Active>);

impl Sender {
    pub(crate) fn on(interface: &str) -> Self {
        let pcap = pcap::Capture::from_device(interface).unwrap().open().unwrap();
        Self(pcap)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.0.sendpacket(frame).unwrap();
    }
}

/// A tun interface. What is written to it is received by the host as raw IP.
pub(crate) struct Tun {
    child: Child,
    input: ChildStdin,
}

/// Attaching to /dev/net/tun takes an ioctl, which Rust can't make without `unsafe`.
const TUN: &str = r#"
import fcntl, os, struct, sys
name, flags, linear = sys.argv[1].encode(), int(sys.argv[2], 16), int(sys.argv[3])
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH22x", name, flags))
print("ready", flush=True)
for line in sys.stdin:
    data = bytes.fromhex(line)
    os.writev(tun, [part for part in [data[:linear], data[linear:]] if part])
"#;
/// `IFF_TUN` and `IFF_NO_PI` of if_tun.h.
const RAW_IP: &str = "1001";
/// `IFF_TAP`, `IFF_NAPI`, `IFF_NAPI_FRAGS` and `IFF_NO_PI`.
const IN_FRAGMENTS: &str = "1032";

impl Tun {
    /// Makes the interface in this thread's namespace.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, RAW_IP, 0)
    }

    /// One that receives Ethernet frames as some network cards do: so many bytes in the linear part
    /// of the kernel's buffer, the others in a fragment.
    pub(crate) fn in_fragments(name: &str, linear: usize) -> Self {
        Self::with(name, IN_FRAGMENTS, linear)
    }

    fn with(name: &str, flags: &str, linear: usize) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", TUN, name, flags, &linear.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 attaches to the tun interface");
        let input = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, input }
    }

    pub(crate) fn receive(&mut self, packet: &[u8]) {
        for byte in packet {
            write!(self.input, "{byte:02x}").unwrap();
        }
        writeln!(self.input).unwrap();
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
