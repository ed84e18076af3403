//! The managers of a host's own rules: ufw, firewalld, the service of nftables, and rules that
//! are restored at the boot as netfilter-persistent does.

use super::{ALLOWED_PORT, Neighbour, Room, Ssh, ensure_drops_by_default};
use crate::command::finish;
use crate::lab::Lab;
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::process::Child;

/// ufw, enabled, with its usual default: deny incoming.
pub struct Ufw<'a> {
    room: &'a Room,
}

impl<'a> Ufw<'a> {
    /// Enables it.
    pub fn enable(room: &'a Room, ssh: Ssh) -> Result<Self> {
        room.sh(&format!("ufw allow {ALLOWED_PORT}/tcp"))?;
        if ssh == Ssh::Allowed {
            room.sh("ufw allow 22/tcp")?;
        }
        let ufw = Self { room };
        ufw.again()?;
        Ok(ufw)
    }

    /// `ufw enable`
    pub fn again(&self) -> Result<()> {
        self.room.sh("ufw --force enable").map(|_| ())
    }

    /// `ufw disable`
    pub fn disable(&self) -> Result<()> {
        self.room.sh("ufw disable").map(|_| ())
    }

    /// `ufw reload`
    pub fn reload(&self) -> Result<()> {
        self.room.sh("ufw reload").map(|_| ())
    }
}

impl Neighbour for Ufw<'_> {
    fn name(&self) -> &'static str {
        "ufw"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_drops_by_default(lab)
    }
}

/// firewalld with its nftables back-end, and the bus that it needs.
pub struct Firewalld<'a> {
    room: &'a Room,
    _daemons: [Child; 2],
}

impl<'a> Firewalld<'a> {
    /// Starts both.
    pub fn start(room: &'a Room, ssh: Ssh) -> Result<Self> {
        let ssh = match ssh {
            Ssh::Allowed => "<service name=\"ssh\"/>",
            Ssh::Unspoken => "",
        };
        room.write(
            "/etc/firewalld/zones/public.xml",
            &format!(
                "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
                 <zone><short>Public</short>{ssh}\
                 <port port=\"{ALLOWED_PORT}\" protocol=\"tcp\"/></zone>\n"
            ),
        )?;
        let bus = room.spawn("dbus-daemon --system --nofork --nopidfile")?;
        eventually("the system bus is to be there", || {
            Ok(room.path_of("/run/dbus/system_bus_socket").exists().then_some(()))
        })?;
        let mut daemon = room.spawn("firewalld --nofork --nopid --log-target console")?;
        eventually("firewalld is to run", || {
            if let Some(status) = daemon.try_wait()? {
                bail!("firewalld ended at its start ({status})");
            }
            Ok(room.run("firewall-cmd --state")?.success().then_some(()))
        })
        .with_context(|| room.log())?;
        Ok(Self { room, _daemons: [bus, daemon] })
    }

    /// `firewall-cmd --reload`
    pub fn reload(&self) -> Result<()> {
        self.order("firewall-cmd --reload")
    }

    /// `firewall-cmd --complete-reload`
    pub fn complete_reload(&self) -> Result<()> {
        self.order("firewall-cmd --complete-reload")
    }

    /// Who puts chains back while firewalld deletes all that there are has its `iptables-restore` fail now
    /// and then: the nft variant looks first, and then deletes what it saw. Whoever gave the order is told,
    /// and gives it again.
    fn order(&self, line: &str) -> Result<()> {
        for _ in 0..2 {
            let done = self.room.run(line)?;
            if done.success() {
                return Ok(());
            }
            ensure!(done.said().contains("CHAIN_DEL failed"), "{done}");
        }
        self.room.sh(line).map(|_| ())
    }
}

impl Neighbour for Firewalld<'_> {
    fn name(&self) -> &'static str {
        "firewalld"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_drops_by_default(lab)
    }
}

/// The unit whose commands are run.
const UNIT: &str = "/lib/systemd/system/nftables.service";

/// nftables.service: `/etc/nftables.conf` loaded by the very commands of Debian's unit.
pub struct NftablesService<'a> {
    room: &'a Room,
}

impl<'a> NftablesService<'a> {
    /// Starts it with a ruleset that drops by default.
    pub fn start(room: &'a Room, ssh: Ssh) -> Result<Self> {
        let ssh = match ssh {
            Ssh::Allowed => "tcp dport 22 accept\n",
            Ssh::Unspoken => "",
        };
        let text = format!(
            "#!/usr/sbin/nft -f\n\
             flush ruleset\n\
             table inet filter {{\n\
             \tset admins {{ type ipv4_addr; elements = {{ 192.0.2.7, 192.0.2.9 }} }}\n\
             \tchain input {{\n\
             type filter hook input priority filter; policy drop;\n\
             ct state established,related accept\n\
             iif lo accept\n\
             icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
             ip saddr @admins counter accept\n\
             tcp dport {ALLOWED_PORT} accept\n\
             {ssh}\
             }}\n\
             \tchain forward {{ type filter hook forward priority filter; }}\n\
             }}\n"
        );
        room.write("/etc/nftables.conf", &text)?;
        let service = Self { room };
        service.does("ExecStart")?;
        Ok(service)
    }

    /// As `systemctl restart nftables` does.
    pub fn restart(&self) -> Result<()> {
        self.does("ExecStop")?;
        self.does("ExecStart")
    }

    /// As `systemctl reload nftables` does.
    pub fn reload(&self) -> Result<()> {
        self.does("ExecReload")
    }

    fn does(&self, what: &str) -> Result<()> {
        let unit = fs::read_to_string(UNIT).with_context(|| format!("cannot read {UNIT}"))?;
        let line = unit.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix('='));
        let line = line.with_context(|| format!("{UNIT} has no {what}"))?;
        let mut words = line.split_whitespace();
        let name = words.next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        finish(self.room.command(name)?.args(words))?.ok().map(|_| ())
    }
}

impl Neighbour for NftablesService<'_> {
    fn name(&self) -> &'static str {
        "nftables.service"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_drops_by_default(lab)
    }
}

/// Rules that `iptables-restore` loads from `/etc/iptables`, as netfilter-persistent does: the package
/// itself can't be installed where ufw is.
pub struct SavedRules<'a> {
    room: &'a Room,
}

impl<'a> SavedRules<'a> {
    /// Writes and loads rules that drop by default, with a chain of their own.
    pub fn load(room: &'a Room, ssh: Ssh) -> Result<Self> {
        let ssh = match ssh {
            Ssh::Allowed => "-A ADMIN -p tcp -m tcp --dport 22 -j ACCEPT\n",
            Ssh::Unspoken => "",
        };
        for (name, icmp) in [("rules.v4", "icmp"), ("rules.v6", "ipv6-icmp")] {
            let text = format!(
                "*mangle\n\
                 :PREROUTING ACCEPT [0:0]\n\
                 -A PREROUTING -p tcp -m tcp --dport 4444 -j DROP\n\
                 COMMIT\n\
                 *filter\n\
                 :INPUT DROP [0:0]\n\
                 :FORWARD ACCEPT [0:0]\n\
                 :OUTPUT ACCEPT [0:0]\n\
                 :ADMIN - [0:0]\n\
                 -A INPUT -i lo -j ACCEPT\n\
                 -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                 -A INPUT -p {icmp} -j ACCEPT\n\
                 -A INPUT -j ADMIN\n\
                 -A ADMIN -p tcp -m tcp --dport {ALLOWED_PORT} -m comment --comment \"of the \
                 admin's\" -j ACCEPT\n\
                 {ssh}\
                 COMMIT\n"
            );
            room.write(&format!("/etc/iptables/{name}"), &text)?;
        }
        let saved = Self { room };
        saved.restore()?;
        Ok(saved)
    }

    /// What netfilter-persistent's plugins run at `start`, `restart` and `reload`.
    pub fn restore(&self) -> Result<()> {
        for (tool, name) in [("iptables-restore", "rules.v4"), ("ip6tables-restore", "rules.v6")] {
            self.room.sh(&format!("{tool} -w 5 /etc/iptables/{name}"))?;
        }
        Ok(())
    }
}

impl Neighbour for SavedRules<'_> {
    fn name(&self) -> &'static str {
        "iptables-restore"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_drops_by_default(lab)
    }
}
