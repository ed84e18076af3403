//! Network namespaces with a client, a server and a host behind the server; and probes.

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use spa_server::gate::{
    Change, Element, Gate as _, Guarded, IptablesGate, Mode, Plan, Refusal, ToolOverrides, Tools,
};
use std::fs::{self, File};
use std::future::Future;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// How long a probe waits before it says that nothing answers. Every test that sees nothing has
/// shown before that this path answers, within milliseconds.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long a probe waits for what must come.
const LONG: Duration = Duration::from_secs(10);

pub(crate) const CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
/// A second host, as the server sees it.
pub(crate) const STRANGER: [&str; 2] = ["192.0.2.3", "2001:db8:1::3"];
pub(crate) const SERVER: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
pub(crate) const INNER: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];

/// The client's and the server's.
pub(crate) const LINK_LOCAL: (&str, &str) = ("fe80::1", "fe80::2");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    pub(crate) fn overrides(self) -> ToolOverrides {
        let path = |tool: &str| Some(PathBuf::from(format!("/usr/sbin/{tool}")));
        let variant = self.name();
        ToolOverrides {
            iptables_restore: path(&format!("iptables-{variant}-restore")),
            ip6tables_restore: path(&format!("ip6tables-{variant}-restore")),
            iptables_save: path(&format!("iptables-{variant}-save")),
            ip6tables_save: path(&format!("ip6tables-{variant}-save")),
            ..ToolOverrides::default()
        }
    }

    /// The names of the commands `iptables` and `ip6tables`.
    pub(crate) fn commands(self) -> [String; 2] {
        ["iptables", "ip6tables"].map(|tool| format!("{tool}-{}", self.name()))
    }
}

/// What a TCP port looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Open,
    Refused,
    Silent,
}

pub(crate) const OPEN: [Seen; 2] = [Seen::Open; 2];
pub(crate) const SILENT: [Seen; 2] = [Seen::Silent; 2];
pub(crate) const REFUSED: [Seen; 2] = [Seen::Refused; 2];

pub(crate) struct Lab {
    name: String,
    pub(crate) variant: Variant,
    /// Whether grants are held in sets, or else in rules.
    pub(crate) in_sets: bool,
    scripts: TempDir,
    /// Sockets of the server and the inner host, which live as long as the lab.
    listeners: Vec<(&'static str, TcpListener)>,
}

impl Lab {
    /// A client (with the address of a stranger, too) and a server on one link; a host behind the
    /// server, to which it forwards. The server listens on TCP 22 and 80, the inner host on 22.
    pub(crate) fn new(variant: Variant) -> Self {
        Self::holding(variant, true)
    }

    /// The same, with the grants in sets or in rules.
    pub(crate) fn holding(variant: Variant, in_sets: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("spag{}n{count}", std::process::id());
        let scripts = tempfile::tempdir().unwrap();
        let mut lab = Self { name, variant, in_sets, scripts, listeners: Vec::new() };
        for place in ["c", "s", "i"] {
            run("ip", &format!("netns add {}", lab.ns(place)));
            lab.on(place, "ip link set lo up");
            // No address waits to be found unique: it would be unusable for a second.
            for key in ["default.accept_dad", "all.accept_dad"] {
                lab.on(place, &format!("sysctl -qw net.ipv6.conf.{key}=0"));
            }
        }
        // The kernel would else tell only the first few senders that a port is closed.
        lab.on("s", "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
        let (client, server, inner) = (lab.ns("c"), lab.ns("s"), lab.ns("i"));
        run("ip", &format!("link add ext netns {server} type veth peer name up netns {client}"));
        run("ip", &format!("link add int netns {server} type veth peer name up netns {inner}"));
        for (place, link, address) in [
            ("c", "up", format!("{}/24", CLIENT[0])),
            ("c", "up", format!("{}/24", STRANGER[0])),
            ("c", "up", format!("{}/64", CLIENT[1])),
            ("c", "up", format!("{}/64", STRANGER[1])),
            ("s", "ext", format!("{}/24", SERVER[0])),
            ("s", "ext", format!("{}/64", SERVER[1])),
            ("s", "int", "198.51.100.1/24".to_owned()),
            ("s", "int", "2001:db8:2::1/64".to_owned()),
            ("c", "up", format!("{}/64", LINK_LOCAL.0)),
            ("s", "ext", format!("{}/64", LINK_LOCAL.1)),
            ("i", "up", format!("{}/24", INNER[0])),
            ("i", "up", format!("{}/64", INNER[1])),
        ] {
            lab.on(place, &format!("ip address add {address} dev {link}"));
            lab.on(place, &format!("ip link set dev {link} up"));
        }
        for (place, via4, via6) in
            [("c", SERVER[0], SERVER[1]), ("i", "198.51.100.1", "2001:db8:2::1")]
        {
            lab.on(place, &format!("ip route add default via {via4}"));
            lab.on(place, &format!("ip route add default via {via6}"));
        }
        lab.on("s", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for (place, port) in [("s", 22), ("s", 80), ("i", 22)] {
            // The wildcard serves IPv4 too: its connections have v4-mapped addresses.
            let listener = lab.inside(place, || TcpListener::bind(("::", port)).unwrap());
            lab.listeners.push((place, listener));
        }
        // Both families answer before anything is tried.
        for family in 0..2 {
            lab.await_open(CLIENT[family], SERVER[family]);
            lab.await_open(CLIENT[family], INNER[family]);
        }
        lab
    }

    /// Links and neighbours take a moment until they carry the first packet.
    fn await_open(&self, from: &str, to: &str) {
        let mut seen = Seen::Silent;
        for _ in 0..30 {
            seen = self.tcp(from, to, 22);
            if seen == Seen::Open {
                return;
            }
        }
        panic!("port 22 of {to} is {seen:?} from {from} before any gate was there");
    }

    fn ns(&self, place: &str) -> String {
        format!("{}{place}", self.name)
    }

    /// Runs a command in a namespace; it must succeed.
    pub(crate) fn on(&self, place: &str, command: &str) -> String {
        run("ip", &format!("netns exec {} {command}", self.ns(place)))
    }

    /// Runs a command in a namespace with this for its input; it must succeed.
    pub(crate) fn feed(&self, place: &str, command: &str, input: &str) {
        let path = self.scripts.path().join("input");
        fs::write(&path, input).unwrap();
        let args = format!("netns exec {} {command}", self.ns(place));
        let status = Command::new("ip")
            .args(args.split(' '))
            .stdin(File::open(&path).unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "{command} with {input}");
    }

    /// Runs rules through `iptables` and `ip6tables` of the lab's variant, on the server.
    pub(crate) fn rules(&self, variant: Variant, rules: &[&str]) {
        for command in variant.commands() {
            for rule in rules {
                self.on("s", &format!("{command} {rule}"));
            }
        }
    }

    /// Feeds a ruleset to `nft` on the server.
    pub(crate) fn nft(&self, ruleset: &str) {
        let path = self.scripts.path().join("rules.nft");
        fs::write(&path, ruleset).unwrap();
        self.on("s", &format!("nft -f {}", path.display()));
    }

    /// Runs code on a thread that has entered a namespace. What it opens stays there.
    pub(crate) fn inside<T: Send>(&self, place: &str, code: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.ns(place));
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                    code()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs async code on a thread in the server's namespace, with a gate of these tools.
    pub(crate) fn with_gate<T: Send, F: Future<Output = T>>(
        &self,
        overrides: &ToolOverrides,
        code: impl FnOnce(IptablesGate) -> F + Send,
    ) -> T {
        self.inside("s", || {
            let tools = Tools::find(overrides).unwrap();
            block_on(code(self.gate(tools)))
        })
    }

    pub(crate) fn gate(&self, tools: Tools) -> IptablesGate {
        if self.in_sets { IptablesGate::new(tools) } else { IptablesGate::without_sets(tools) }
    }

    /// Installs a plan with the tools of the lab's variant, and returns what the code returns.
    pub(crate) fn installed<T: Send, F: Future<Output = T>>(
        &self,
        plan: &Plan,
        code: impl FnOnce(IptablesGate) -> F + Send,
    ) -> T {
        self.with_gate(&self.variant.overrides(), |gate| async {
            gate.install(plan).await.unwrap();
            code(gate).await
        })
    }

    pub(crate) fn install(&self, plan: &Plan) {
        self.installed(plan, |_| async {});
    }

    /// Installs the plan and makes changes.
    pub(crate) fn apply(&self, plan: &Plan, changes: &[Change]) {
        self.installed(plan, |gate| async move { gate.apply(changes).await.unwrap() });
    }

    pub(crate) fn remove(&self) {
        self.with_gate(
            &self.variant.overrides(),
            |gate| async move { gate.remove().await.unwrap() },
        );
    }

    /// Whether a connection comes about, from an address of the client's.
    pub(crate) fn tcp(&self, from: &str, to: &str, port: u16) -> Seen {
        self.tcp_on("c", from, to, port)
    }

    pub(crate) fn tcp_on(&self, place: &str, from: &str, to: &str, port: u16) -> Seen {
        self.inside(place, || match block_on(connect(from, to, port, PATIENCE)) {
            Some(Ok(_)) => Seen::Open,
            Some(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Seen::Refused,
            Some(Err(error)) => panic!("connecting to {to} port {port}: {error}"),
            None => Seen::Silent,
        })
    }

    /// What every listed source sees of a server port, for both families.
    pub(crate) fn both(&self, from: [&str; 2], port: u16) -> [Seen; 2] {
        at_once(|family| self.tcp(from[family], SERVER[family], port))
    }

    /// A listener of the lab's own.
    pub(crate) fn listener(&self, place: &str, port: u16) -> TcpListener {
        let is_it = |listener: &TcpListener| listener.local_addr().unwrap().port() == port;
        let (_, listener) = self
            .listeners
            .iter()
            .find(|(at, listener)| *at == place && is_it(listener))
            .expect("a listener");
        listener.try_clone().unwrap()
    }

    /// A connection from the client to the server, both ends.
    pub(crate) fn session(&self, family: usize, port: u16) -> (TcpStream, TcpStream) {
        self.session_by(family, port, &self.listener("s", port)).expect("a connection")
    }

    /// A connection from the client to a port of the server at whose end is this listener; `None`
    /// if none comes about.
    pub(crate) fn session_by(
        &self,
        family: usize,
        port: u16,
        listener: &TcpListener,
    ) -> Option<(TcpStream, TcpStream)> {
        let from = CLIENT[family];
        let connecting = || block_on(connect(from, SERVER[family], port, LONG));
        let near = self.inside("c", connecting)?.expect("a connection");
        let mine = near.local_addr().unwrap().port();
        // Probes before have left connections in the backlog. The port is that of this host where
        // it is translated, and the same then, too, as long as it is free.
        listener.set_nonblocking(true).unwrap();
        let mut far = None;
        self.wait("the other end", || {
            while let Ok((stream, peer)) = listener.accept() {
                if peer.port() == mine {
                    far = Some(stream);
                }
            }
            far.is_some()
        });
        listener.set_nonblocking(false).unwrap();
        let far = far.unwrap();
        far.set_nonblocking(false).unwrap();
        Some((near, far))
    }

    /// Waits until this is so.
    pub(crate) fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let began = std::time::Instant::now();
        while !is_so() {
            assert!(began.elapsed() < LONG * 3, "{what} ({})", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a datagram to the server and says what comes of it: whether the socket got it, or an
    /// ICMP error came back, or nothing.
    pub(crate) fn udp(&self, family: usize, port: u16, socket: Option<&UdpSocket>) -> Seen {
        let sender = self.inside("c", || {
            let sender = at_fresh_port(|port| UdpSocket::bind((CLIENT[family], port)));
            sender.connect((SERVER[family], port)).unwrap();
            sender
        });
        sender.send(b"anybody there?").unwrap();
        if let Some(socket) = socket {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            if uninterrupted(|| socket.recv(&mut [0; 64])).is_ok() {
                return Seen::Open;
            }
        }
        // Once more: a datagram may be lost, and so may be the error that it causes.
        let again = sender.send(b"anybody there?").map(drop);
        sender.set_read_timeout(Some(PATIENCE)).unwrap();
        match again.and_then(|()| uninterrupted(|| sender.recv(&mut [0; 64]))) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Seen::Refused,
            Err(error) if is_timeout(&error) => Seen::Silent,
            other => panic!("nobody answers here: {other:?}"),
        }
    }

    /// What `nmap` says of two server ports, by each kind of scan: state and reason.
    pub(crate) fn nmap(&self, family: usize, scans: &[&str], ports: [u16; 2]) -> [Vec<String>; 2] {
        let version = if family == 0 { "" } else { " -6" };
        let [one, other] = ports;
        let mut seen = [Vec::new(), Vec::new()];
        for scan in scans {
            let out = self.on(
                "c",
                &format!(
                    "nmap{version} {scan} -Pn -n --reason --max-retries 1 -p {one},{other} {}",
                    SERVER[family]
                ),
            );
            for (port, seen) in ports.iter().zip(&mut seen) {
                let line = out.lines().find(|line| {
                    let number = line.split('/').next();
                    number.is_some_and(|number| number == port.to_string())
                });
                let words: Vec<_> =
                    line.unwrap_or_else(|| panic!("{out}")).split_whitespace().collect();
                // Port, state, the port's usual service, reason.
                seen.push(format!("{scan}: {} {}", words[1], words[3..].join(" ")));
            }
        }
        seen
    }

    /// All rules of both variants and of nft, and all sets, as text; without comments and
    /// counters, and without the tables that hold nothing, which the tools make in passing.
    pub(crate) fn ruleset(&self) -> String {
        let mut text = String::new();
        for variant in [Variant::Nft, Variant::Legacy] {
            for command in variant.commands() {
                let saved = self.on("s", &format!("{command}-save"));
                let mut rules = String::new();
                for line in saved.lines().filter(|line| !line.starts_with('#')) {
                    let line = line.split(" [").next().unwrap();
                    rules.push_str(line);
                    rules.push('\n');
                    if line == "COMMIT" {
                        let is_plain =
                            |l: &str| l.starts_with('*') || l == "COMMIT" || l.ends_with(" ACCEPT");
                        if !rules.lines().all(is_plain) {
                            text.push_str(&[&command, " ", &rules].concat());
                        }
                        rules.clear();
                    }
                }
            }
        }
        text + &self.on("s", "ipset save")
    }

    /// A copy of a tool that fails with a complaint when its input or its arguments hold a text.
    pub(crate) fn failing(&self, tool: &Path, when: &str) -> PathBuf {
        let tool = tool.display();
        self.script(&format!(
            "input=$(/bin/cat; echo .); input=${{input%.}}\n\
             case \"$*$input\" in *'{when}'*) echo 'out of luck' >&2; exit 7;; esac\n\
             printf %s \"$input\" | exec {tool} \"$@\"\n"
        ))
    }

    /// A copy of a tool that fails with a complaint, so many times, when it would print a text.
    pub(crate) fn failing_to_print(&self, tool: &Path, when: &str, times: u32) -> PathBuf {
        let tool = tool.display();
        self.script(&format!(
            "output=$({tool} \"$@\") || exit\n\
             case \"$output\" in *'{when}'*)\n\
             echo >>$0.struck\n\
             [ $(/usr/bin/wc -l <$0.struck) -gt {times} ] || {{ echo 'out of luck' >&2; exit 7; }};;\n\
             esac\n\
             printf '%s\\n' \"$output\"\n"
        ))
    }

    /// A program of these lines of sh.
    pub(crate) fn script(&self, text: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.scripts.path().join(format!("failing{count}"));
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for place in ["c", "s", "i"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(place)]).status();
        }
    }
}

/// Probes both families at once: nothing is what takes long to see.
pub(crate) fn at_once(probe: impl Fn(usize) -> Seen + Sync) -> [Seen; 2] {
    thread::scope(|scope| {
        let six = scope.spawn(|| probe(1));
        [probe(0), six.join().unwrap()]
    })
}

/// Whether what is said at one end is heard at the other.
pub(crate) fn hears(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    from.write_all(b"x").unwrap();
    // Long enough for two retransmissions, should the machine be busy.
    to.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    match uninterrupted(|| to.read(&mut [0; 16])) {
        Ok(count) => count > 0,
        Err(error) if is_timeout(&error) => false,
        Err(error) => panic!("reading: {error}"),
    }
}

pub(crate) fn plan(mode: Mode, refusal: Refusal) -> Plan {
    Plan {
        mode,
        refusal,
        guarded: ["tcp/22", "udp/5000"].map(|p| Guarded::plain(p.parse().unwrap())).to_vec(),
        always_admit: Vec::new(),
        trial_seconds: None,
        knock_ports: vec![62201],
        max_elements: 1024,
    }
}

pub(crate) fn element(source: &str, port: &str) -> Element {
    Element { source: source.parse().unwrap(), ports: port.parse().unwrap() }
}

pub(crate) fn admit(sources: [&str; 2], port: &str, seconds: u32) -> Vec<Change> {
    sources.map(|source| Change::Admit { element: element(source, port), seconds }).to_vec()
}

pub(crate) fn withdraw(sources: [&str; 2], port: &str) -> Vec<Change> {
    sources.map(|source| Change::Withdraw { element: element(source, port) }).to_vec()
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(
    from: &str,
    to: &str,
    port: u16,
    patience: Duration,
) -> Option<std::io::Result<TcpStream>> {
    let to = address(to, port);
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    at_fresh_port(|port| socket.bind(address(from, port)));
    let connecting = socket.connect(to);
    let outcome = tokio::time::timeout(patience, connecting).await.ok()?;
    Some(outcome.map(|stream| {
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    }))
}

/// Binds a socket to a port that no probe has used for long. Connection tracking remembers a flow for
/// minutes after its socket is closed, and by rights it is established that long; the kernel gives
/// a port again now and then.
pub(crate) fn at_fresh_port<T>(mut bind: impl FnMut(u16) -> std::io::Result<T>) -> T {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        // None that the kernel gives by itself.
        match bind(10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 22_000) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            outcome => return outcome.unwrap(),
        }
    }
}

/// A link-local address is one on the client's only link.
fn address(text: &str, port: u16) -> SocketAddr {
    match text.parse().unwrap() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            let link = if_nametoindex("up").unwrap();
            SocketAddrV6::new(ip, port, 0, link).into()
        }
        ip => SocketAddr::new(ip, port),
    }
}

/// A read that has a time limit is interrupted when the machine was frozen for a moment (signal(7)),
/// and by children that end elsewhere in this process.
pub(crate) fn uninterrupted<T>(mut read: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program)
        .args(args.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a test of each of these functions for each variant.
macro_rules! with_both_variants {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::new(crate::lab::Variant::Nft)); })*
        }
        mod legacy {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::new(crate::lab::Variant::Legacy)); })*
        }
    };
}
pub(crate) use with_both_variants;

/// Makes a test of each of these functions for each variant and each place where grants are held,
/// not all four of them together: the contract's tests have those.
macro_rules! with_all_gates {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::new(crate::lab::Variant::Nft)); })*
        }
        mod legacy_rules {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::holding(crate::lab::Variant::Legacy, false)); })*
        }
    };
}
pub(crate) use with_all_gates;
