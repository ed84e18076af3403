//! Network namespaces on one link, made for one test and removed after it.

use crate::command::{Finished, finish};
use crate::programs::program;
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const PREFIX: &str = "spat";
const NAMESPACES: &str = "/run/netns";
/// What the owner's interfaces to its stations are called, before their numbers.
const STATION: &str = "station";
/// What `ip netns exec` lays over `/etc`, by namespace.
const OVERLAYS: &str = "/etc/netns";
/// The discard service of RFC 863.
const DISCARD: u16 = 9;
/// The name that every namespace of a lab knows the server by, with both of its addresses.
pub(crate) const SERVER_NAME: &str = "gateway";

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them: what holds for one has to hold for the other.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One machine of the lab: a network namespace with the interface `eth0`.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    namespace: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    mac: [u8; 6],
}

impl Host {
    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.0.v4.into(),
            Family::V6 => self.0.v6.into(),
        }
    }

    /// Its address with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// The link address of its `eth0`.
    pub fn mac(&self) -> [u8; 6] {
        self.0.mac
    }

    /// The name of its namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// A command that runs `program` in this namespace; the process is the program's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let program = program.as_ref();
        let path = match program.to_str() {
            Some(name) if !name.contains('/') => crate::programs::program(name)?,
            _ => PathBuf::from(program),
        };
        let mut command = Command::new(crate::programs::program("ip")?);
        command.args(["netns", "exec", self.namespace()]).arg(path);
        Ok(command)
    }

    /// Runs one of Debian's programs in this namespace to its end; the words of `line` are
    /// separated by white space.
    pub fn run(&self, line: &str) -> Result<Finished> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default())?;
        finish(command.args(words))
    }

    /// Runs it, and gives back what it printed; a failure is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(line)?.ok()
    }

    /// Runs `work` on a thread in this namespace. Sockets that it opens stay in the namespace,
    /// wherever they are used afterwards.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new(NAMESPACES).join(self.namespace());
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(&path)?;
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", path.display()))?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// From now on, `iptables` and its likes stand for the legacy variant on this host.
    pub fn use_iptables_legacy(&self) -> Result<()> {
        let (from, to) = (Path::new("/etc/alternatives"), self.overlay().join("alternatives"));
        fs::create_dir_all(&to)?;
        for name in names(from) {
            // There is a README, too.
            let Ok(target) = fs::read_link(from.join(&name)) else { continue };
            let is_tables = name.starts_with("iptables") || name.starts_with("ip6tables");
            let target = match target.to_str() {
                Some(path) if is_tables => path.replacen("tables-nft", "tables-legacy", 1).into(),
                _ => target,
            };
            symlink(target, to.join(&name))?;
        }
        let version = self.sh("iptables --version")?;
        ensure!(version.contains("legacy"), "iptables is not the legacy variant: {version}");
        Ok(())
    }

    /// The directory that lies over `/etc` for the programs of this host.
    pub(crate) fn overlay(&self) -> PathBuf {
        Path::new(OVERLAYS).join(self.namespace())
    }

    /// The index of an interface of this namespace.
    pub fn interface_index(&self, name: &str) -> Result<u32> {
        self.inside(|| Ok(nix::net::if_::if_nametoindex(name)?))
    }

    /// Takes the interface of this [`station`](Lab::station) down, does something meanwhile, and brings
    /// it up with all that has gone with it. `link` is the owner's interface to it.
    pub(crate) fn without_link<T>(
        &self,
        link: &str,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let number = link.strip_prefix(STATION).and_then(|number| number.parse().ok());
        let number = number.with_context(|| format!("{link} leads to no station"))?;
        self.ip("link set eth0 down\n")?;
        let done = meanwhile();
        self.ip(&station_up(self, number))?;
        done
    }

    /// Runs `ip -batch` over the lines.
    fn ip(&self, lines: &str) -> Result<()> {
        ip_batch(self.namespace(), lines)
    }
}

/// A server, the owner of a client key and two strangers, on one Ethernet with IPv4 and IPv6.
///
/// All of it goes with the value; what a killed test has left is swept by the next one.
pub struct Lab {
    directory: TempDir,
    tag: String,
    hub: Host,
    server: Host,
    owner: Host,
    other: Host,
    third: Host,
    namespaces: Mutex<Vec<String>>,
}

impl Lab {
    /// Makes the namespaces and joins them.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            Uid::effective().is_root(),
            "the end-to-end tests make network namespaces and firewall rules in them, and need \
             root for it; run `make test`"
        );
        sweep();

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{PREFIX}-{}-{number}", std::process::id());
        let directory = tempfile::Builder::new().prefix(&format!("{tag}-")).tempdir()?;
        let host = |name: &str, number: u8| {
            Host(Arc::new(Inner {
                namespace: format!("{tag}-{name}"),
                v4: Ipv4Addr::new(10, 66, 0, number),
                v6: Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, number.into()),
                mac: [2, 0x5a, 0x5a, 0, 0, number],
            }))
        };
        let lab = Self {
            directory,
            hub: host("hub", 0),
            server: host("server", 1),
            owner: host("owner", 2),
            other: host("other", 3),
            third: host("third", 4),
            tag,
            namespaces: Mutex::default(),
        };
        lab.up()?;
        Ok(lab)
    }

    /// Where the server runs: 10.66.0.1 and fd66::1.
    pub fn server(&self) -> &Host {
        &self.server
    }

    /// Where the owner of a client key sits: 10.66.0.2 and fd66::2.
    pub fn owner(&self) -> &Host {
        &self.owner
    }

    /// A stranger: 10.66.0.3 and fd66::3.
    pub fn other(&self) -> &Host {
        &self.other
    }

    /// The switch between them all: the owner is at its port `p2`.
    pub(crate) fn hub(&self) -> &Host {
        &self.hub
    }

    /// Another stranger: 10.66.0.4 and fd66::4.
    pub fn third(&self) -> &Host {
        &self.third
    }

    /// A directory for files of this lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A machine behind the server that only the server can reach: 10.77.0.2 and fd77::2, with
    /// the server (interface `container0`) as its router.
    pub fn container(&self) -> Result<Host> {
        let container = Host(Arc::new(Inner {
            namespace: format!("{}-container", self.tag),
            v4: Ipv4Addr::new(10, 77, 0, 2),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2),
            mac: [2, 0x5a, 0x5a, 0, 1, 2],
        }));
        self.add(&container)?;
        self.server.ip(&format!(
            "link add container0 type veth peer name eth0 address {} netns {}\n\
             addr add 10.77.0.1/24 dev container0\n\
             addr add fd77::1/64 dev container0 nodad\n\
             link set container0 up\n",
            mac_text(container.mac()),
            container.namespace()
        ))?;
        container.ip(&format!(
            "addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             link set lo up\n\
             link set eth0 up\n\
             route add default via 10.77.0.1\n\
             route add default via fd77::1\n",
            container.address(Family::V4),
            container.address(Family::V6)
        ))?;
        self.server.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        Ok(container)
    }

    /// A further server, on a link of its own with the owner: 10.80.N.1 and fd80::N:1, by the owner's
    /// interface `stationN`. All other addresses are the owner's, as it sees them.
    pub fn station(&self, number: u8) -> Result<Host> {
        let last = u16::from(number);
        let station = Host(Arc::new(Inner {
            namespace: format!("{}-station{number}", self.tag),
            v4: Ipv4Addr::new(10, 80, number, 1),
            v6: Ipv6Addr::new(0xfd80, 0, 0, 0, 0, 0, last, 1),
            mac: [2, 0x5a, 0x5a, 1, number, 1],
        }));
        self.add(&station)?;
        station
            .sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
             net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")?;
        let link = station_link(number);
        let owner = station_peer(number);
        self.owner.ip(&format!(
            "link add {link} address {owner} type veth peer name eth0 address {} netns {}\n\
             link set {link} up\n",
            mac_text(station.mac()),
            station.namespace()
        ))?;
        station.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             link set lo up\n\
             {}",
            station_up(&station, number),
            v4 = station.address(Family::V4),
        ))?;
        Ok(station)
    }

    /// Puts a second link between the server (10.68.0.1) and the owner (10.68.0.2): a new
    /// interface `name` on both.
    pub fn add_link(&self, name: &str) -> Result<()> {
        self.server.ip(&format!(
            "link add {name} type veth peer name {name} netns {}\n\
             addr add 10.68.0.1/24 dev {name}\n\
             link set {name} up\n",
            self.owner.namespace()
        ))?;
        self.owner.ip(&format!("addr add 10.68.0.2/24 dev {name}\nlink set {name} up\n"))
    }

    /// Takes the second link away.
    pub fn remove_link(&self, name: &str) -> Result<()> {
        self.server.ip(&format!("link del {name}\n"))
    }

    /// Loses the first datagram to this port on its way over the link, of each family.
    pub fn lose_first_datagram_to(&self, port: u16) -> Result<()> {
        self.hub.sh(
            "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        )?;
        for tables in ["iptables", "ip6tables"] {
            self.hub.sh(&format!(
                "{tables} -A FORWARD -p udp --dport {port} \
                 -m statistic --mode nth --every 1000000 --packet 0 -j DROP"
            ))?;
        }
        Ok(())
    }

    fn hosts(&self) -> [&Host; 4] {
        [&self.server, &self.owner, &self.other, &self.third]
    }

    fn up(&self) -> Result<()> {
        self.add(&self.hub)?;
        self.hub.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
        // Where bridged packets pass through iptables, they must not do so in the middle.
        let _ = self.hub.run(
            "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        )?;
        for host in self.hosts() {
            self.add(host)?;
            host.sh(
                "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0",
            )?;
        }
        let mut hub = String::from("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n");
        for (host, port) in self.hosts().into_iter().zip(["p1", "p2", "p3", "p4"]) {
            writeln!(
                hub,
                "link add {port} type veth peer name eth0 address {} netns {}\n\
                 link set {port} master br0 up",
                mac_text(host.mac()),
                host.namespace()
            )?;
        }
        self.hub.ip(&hub)?;
        for host in self.hosts() {
            let mut lines = format!(
                "addr add {}/24 dev eth0\n\
                 addr add {}/64 dev eth0 nodad\n\
                 link set lo up\n\
                 link set eth0 up\n",
                host.address(Family::V4),
                host.address(Family::V6)
            );
            // Neighbours are known from the start: no question and no lost first packet disturbs
            // a measurement.
            for neighbour in self.hosts() {
                if neighbour.mac() == host.mac() {
                    continue;
                }
                for family in Family::BOTH {
                    writeln!(
                        lines,
                        "neigh replace {} lladdr {} dev eth0 nud permanent",
                        neighbour.address(family),
                        mac_text(neighbour.mac())
                    )?;
                }
            }
            host.ip(&lines)?;
        }
        self.await_links()
    }

    /// A bridge takes a moment until it carries the first packet of a new port.
    fn await_links(&self) -> Result<()> {
        let to = self.server.at(Family::V4, DISCARD);
        let receiver = self.server.inside(|| Ok(UdpSocket::bind(to)?))?;
        receiver.set_read_timeout(Some(Duration::from_millis(10)))?;
        for host in [&self.owner, &self.other, &self.third] {
            let from = host.address(Family::V4);
            eventually(&format!("the link of {} is to carry packets", host.namespace()), || {
                host.send_udp(to, b"are you there?")?;
                let came = receiver.recv_from(&mut [0; 64]);
                Ok(came.is_ok_and(|(_, source)| source.ip() == from).then_some(()))
            })?;
        }
        Ok(())
    }

    fn add(&self, host: &Host) -> Result<()> {
        let overlay = Path::new(OVERLAYS).join(host.namespace());
        fs::create_dir_all(&overlay)
            .with_context(|| format!("cannot create {}", overlay.display()))?;
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(host.namespace().to_owned());
        let server = &self.server;
        fs::write(
            overlay.join("hosts"),
            format!(
                "127.0.0.1 localhost\n::1 localhost\n{} {SERVER_NAME}\n{} {SERVER_NAME}\n",
                server.address(Family::V4),
                server.address(Family::V6)
            ),
        )?;
        finish(Command::new(program("ip")?).args(["netns", "add", host.namespace()]))?
            .ok()
            .context("this machine lets nobody make network namespaces")?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let namespaces = self.namespaces.get_mut().unwrap_or_else(PoisonError::into_inner);
        for namespace in namespaces.iter() {
            remove(namespace);
        }
    }
}

/// The owner's interface to a [`Lab::station`].
pub(crate) fn station_link(number: u8) -> String {
    format!("{STATION}{number}")
}

/// The link address of that interface.
fn station_peer(number: u8) -> String {
    mac_text([2, 0x5a, 0x5a, 1, number, 2])
}

/// What a station's interface needs to be up, but for what stays when it goes down.
fn station_up(station: &Host, number: u8) -> String {
    let (owner, v6) = (station_peer(number), station.address(Family::V6));
    format!(
        "addr add {v6}/112 dev eth0 nodad\n\
         link set eth0 up\n\
         neigh replace 10.80.{number}.2 lladdr {owner} dev eth0 nud permanent\n\
         neigh replace fd80::{number:x}:2 lladdr {owner} dev eth0 nud permanent\n\
         route add default via 10.80.{number}.2\n\
         route add default via fd80::{number:x}:2\n"
    )
}

/// Removes what tests that were killed have left behind.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        crate::cgroup::sweep();
        for namespace in names(Path::new(NAMESPACES)).filter(|name| stale(name)) {
            remove(&namespace);
        }
        for overlay in names(Path::new(OVERLAYS)).filter(|name| stale(name)) {
            let _ = fs::remove_dir_all(Path::new(OVERLAYS).join(overlay));
        }
        let temporary = std::env::temp_dir();
        for directory in names(&temporary).filter(|name| stale(name)) {
            let _ = fs::remove_dir_all(temporary.join(directory));
        }
    });
}

/// Whether something with this name belongs to a test that is no more.
pub(crate) fn stale(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|name| name.strip_prefix('-'))
        .and_then(|name| name.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

pub(crate) fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Ends the processes in the namespace, and removes it. A clean-up has nobody to report to.
fn remove(namespace: &str) {
    let Ok(ip) = program("ip") else { return };
    let pids = finish(Command::new(&ip).args(["netns", "pids", namespace]));
    let pids = pids.map(|finished| finished.stdout).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = finish(Command::new(&ip).args(["netns", "del", namespace]));
    let _ = fs::remove_dir_all(Path::new(OVERLAYS).join(namespace));
}

fn ip_batch(namespace: &str, lines: &str) -> Result<()> {
    let mut child = Command::new(program("ip")?)
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("ip has no standard input")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip -batch in {namespace}: {}{lines}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_lab_reach_one_another_and_nothing_stays_of_it() {
        let lab = Lab::new().unwrap();
        for family in Family::BOTH {
            let to = lab.server().at(family, 5000);
            let receiver = lab.server().inside(|| Ok(UdpSocket::bind(to)?)).unwrap();
            receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let from = lab.third().at(family, 6000);
            lab.third().inside(|| Ok(UdpSocket::bind(from)?.send_to(b"hello", to)?)).unwrap();
            let mut buffer = [0; 16];
            let came = crate::wait::uninterrupted(|| receiver.recv_from(&mut buffer)).unwrap();
            assert_eq!(came, (5, from));
        }
        let known = lab.owner().sh("cat /etc/hosts").unwrap();
        assert!(known.contains("10.66.0.1 gateway"), "{known}");

        let namespace = Path::new(NAMESPACES).join(lab.owner().namespace());
        let directory = lab.directory().to_owned();
        assert!(namespace.exists() && directory.exists());
        drop(lab);
        assert!(!namespace.exists() && !directory.exists());
    }
}
