//! The default back-end: what happens in which order, and what is undone when it fails.
//!
//! What is there is read, and what must change is done, by [`super::kernel`]; what it should be
//! is said by [`super::render`].

use super::bounds::{check_change, check_plan};
use super::foreign;
use super::kernel::{Kernel, SetChange, Variant};
use super::render::{self, OwnTable, TableName};
use super::saved::Saved;
use super::sockets;
use super::types::{
    Backend, Change, Connection, Doubt, Family, Guarded, InstallReport, LiveElement, Look, Mode,
    Plan, Refusal,
};
use super::{Gate, GateError, Tools};
use crate::service::{Connections, Target};
use std::fs;
use std::time::Duration;
use tokio::sync::Mutex;

/// How often is looked where the kernel tells of no change.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
const TCP_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
/// An idle connection shows a sign of life every two hours, if it has TCP keep-alive at all; and
/// that may be lost a few times.
const IDLE_SECONDS: u32 = 7200 + 11 * 75;

/// iptables and ip6tables rules over ipset sets.
#[derive(Debug)]
pub struct IptablesGate {
    kernel: Kernel,
    /// The knock ports that the rules hide, of this gate's last installation. Held by who looks at
    /// the rules, and perhaps changes them.
    rules: Mutex<Option<KnockPorts>>,
    /// The plan that is installed. Held by who changes rules or elements: looking at rules, which
    /// takes longer, delays no grant.
    installed: Mutex<Option<Plan>>,
}

type KnockPorts = Vec<(Family, Vec<u16>)>;

/// What is there before an installation.
struct Host {
    variant: Variant,
    rules: Vec<(Family, Saved)>,
    knock_ports: KnockPorts,
    report: InstallReport,
}

impl Host {
    fn wanted(&self, family: Family, table: TableName, plan: &Plan) -> OwnTable {
        let knock_ports = self.knock_ports.iter().find(|(of, _)| *of == family);
        render::wanted(family, table, plan, knock_ports.map_or(&[], |(_, ports)| ports))
    }

    /// Whether the rules are other ones than they have to be.
    fn differs(&self, plan: &Plan) -> bool {
        self.rules.iter().any(|(family, saved)| {
            TableName::ALL.into_iter().any(|table| {
                let wanted = self.wanted(*family, table, plan);
                render::transition(table, saved.table(table.as_str()), &wanted).is_some()
            })
        })
    }

    /// Whether rules of ours judge this connection's packets already: then it is tracked, or has
    /// been refused.
    fn judges(&self, connection: &Connection) -> bool {
        let family = Family::of(connection.local.ip());
        self.rules
            .iter()
            .any(|(of, saved)| *of == family && render::judges(saved.table("mangle"), connection))
    }
}

impl IptablesGate {
    /// A gate that uses these tools. Nothing is touched yet.
    pub fn new(tools: Tools) -> Self {
        Self { kernel: Kernel::new(tools), rules: Mutex::new(None), installed: Mutex::new(None) }
    }

    async fn host(&self, plan: &Plan) -> Result<Host, GateError> {
        check_plan(plan)?;
        check_support(plan)?;
        let variant = self.kernel.variant().await?;
        let mut rules = Vec::new();
        for family in families() {
            rules.push((family, self.kernel.saved(family).await?));
        }
        let sockets = sockets::read()?;
        let mut report = InstallReport {
            busy_knock_ports: match plan.mode {
                Mode::Guard => sockets::busy_knock_ports(&sockets, &plan.knock_ports),
                Mode::Open => Vec::new(),
            },
            ..InstallReport::default()
        };
        if rules.len() < Family::ALL.len() {
            report.warnings.push("this kernel has no IPv6: only IPv4 is guarded".to_owned());
        }
        let knock_ports = families()
            .map(|family| {
                let is_busy = |port: &u16| {
                    report.busy_knock_ports.iter().any(|b| b.port == *port && b.family == family)
                };
                (family, plan.knock_ports.iter().copied().filter(|port| !is_busy(port)).collect())
            })
            .collect();
        self.judge_foreign(plan, variant, &rules, &mut report).await?;
        report.warnings.extend(forgetful_tracking(plan));
        Ok(Host { variant, rules, knock_ports, report })
    }

    /// Where others drop what the gate accepts: an error in open mode, a warning else.
    async fn judge_foreign(
        &self,
        plan: &Plan,
        variant: Variant,
        rules: &[(Family, Saved)],
        report: &mut InstallReport,
    ) -> Result<(), GateError> {
        let mut droppers = Vec::new();
        for found in
            [self.kernel.nft_droppers(variant).await, self.kernel.legacy_droppers(variant).await]
        {
            match (found, plan.mode) {
                (Ok(found), _) => droppers.extend(found),
                (Err(error), Mode::Open) => return Err(error),
                (Err(error), Mode::Guard) => report.warnings.push(format!(
                    "whether rules of others lose granted packets is unknown: {}",
                    super::with_causes(&error)
                )),
            }
        }
        if variant == Variant::Legacy {
            // Among our own variant's tables only filter INPUT holds our accept.
            for (family, saved) in rules {
                let own_filter = format!("table filter ({family})");
                let found = foreign::in_saved(*family, variant.as_str(), saved);
                droppers.extend(found.into_iter().filter(|d| !d.chain.ends_with(&own_filter)));
            }
        }
        if plan.mode == Mode::Open {
            if !droppers.is_empty() {
                return Err(GateError::DroppedElsewhere {
                    chains: droppers.iter().map(ToString::to_string).collect(),
                    ours: variant.as_str().to_owned(),
                });
            }
            for (family, saved) in rules {
                if foreign::drops(saved.table("filter"), "INPUT").is_none() {
                    report.warnings.push(format!(
                        "nothing drops {family} packets in chain filter INPUT of {}: in open mode the guarded ports are open to everybody unless a rule there refuses them",
                        variant.as_str()
                    ));
                }
            }
            return Ok(());
        }
        report.warnings.extend(foreign::warnings(&droppers, &plan.guarded));
        for (family, saved) in rules {
            if foreign::untracks(saved) {
                report.warnings.push(format!(
                    "table raw takes some {family} packets out of connection tracking: a connection among them ends with its grant"
                ));
            }
        }
        Ok(())
    }

    /// Everything that [`Gate::install`] changes, in the order that locks nobody out: sets, then
    /// connection tracking, then its entries, then the rules.
    async fn put_in_place(
        &self,
        plan: &Plan,
        host: &mut Host,
        sets: &mut Vec<SetChange>,
    ) -> Result<(), GateError> {
        for (family, _) in &host.rules {
            sets.extend(self.kernel.make_set(*family, plan.max_elements).await?);
        }
        let order = match plan.refusal {
            // What marks a packet must not be there before what rejects a marked one is, nor
            // stay longer.
            Refusal::Reject => [TableName::Filter, TableName::Mangle],
            Refusal::Drop => [TableName::Mangle, TableName::Filter],
        };
        let batches: Vec<_> = host
            .rules
            .iter()
            .map(|(family, saved)| {
                let batch: String = order
                    .into_iter()
                    .filter_map(|table| {
                        let wanted = host.wanted(*family, table, plan);
                        render::transition(table, saved.table(table.as_str()), &wanted)
                    })
                    .collect();
                (*family, batch)
            })
            .filter(|(_, batch)| !batch.is_empty())
            .collect();
        host.report.changed = !batches.is_empty() || !sets.is_empty();
        if batches.is_empty() {
            return Ok(());
        }
        if plan.mode == Mode::Guard {
            for (family, saved) in &host.rules {
                if let Some(batch) = render::track(saved.table("mangle")) {
                    self.kernel.restore(*family, &batch).await?;
                }
            }
            // Only now: a connection that comes about from here on is tracked from its beginning.
            let mut connections = sockets::established(&sockets::read()?, &plan.guarded);
            connections.retain(|connection| !host.judges(connection));
            host.report.connections_kept = self.kernel.enter(&connections).await?;
        }
        for (family, batch) in &batches {
            let discard = match plan.mode {
                // What tracked during the installation goes in the batch that tracks for good.
                Mode::Guard => render::DISCARD_TRACK,
                Mode::Open => "",
            };
            self.kernel.restore(*family, &format!("{batch}{discard}")).await?;
        }
        for (family, _) in &host.rules {
            let saved = self.kernel.saved(*family).await?;
            for table in TableName::ALL {
                let wanted = host.wanted(*family, table, plan);
                if let Some(what) = wanted.missing_in(saved.table(table.as_str())) {
                    return Err(GateError::NotThere { family: *family, what });
                }
            }
        }
        Ok(())
    }

    /// Brings back what is ours to what it was.
    async fn undo(&self, before: &[(Family, Saved)], sets: &[SetChange]) -> Result<(), GateError> {
        for (family, before) in before {
            let now = self.kernel.saved(*family).await?;
            let batch: String = TableName::ALL
                .into_iter()
                .filter_map(|table| {
                    let wanted = OwnTable::of(before.table(table.as_str()));
                    render::transition(table, now.table(table.as_str()), &wanted)
                })
                .collect();
            if !batch.is_empty() {
                self.kernel.restore(*family, &batch).await?;
            }
        }
        for change in sets {
            match change.before {
                None => self.kernel.destroy_sets(change.family).await?,
                Some(size) => {
                    self.kernel.make_set(change.family, size).await?;
                }
            }
        }
        Ok(())
    }

    async fn remove_family(&self, family: Family) -> Result<(), GateError> {
        let removed = remove_rules(&self.kernel, family).await;
        // What iptables stands for may have changed since the gate was installed.
        for kernel in self.kernel.variants(family) {
            if let Err(error) = remove_rules(&kernel, family).await {
                // If there are rules of ours there, they hold the set, which says so.
                tracing::debug!("a variant can't be used: {}", super::with_causes(&error));
            }
        }
        removed?;
        self.kernel.destroy_sets(family).await
    }
}

async fn remove_rules(kernel: &Kernel, family: Family) -> Result<(), GateError> {
    let saved = kernel.saved(family).await?;
    let batch: String = TableName::ALL
        .into_iter()
        .filter_map(|table| {
            let nothing = OwnTable::default();
            render::transition(table, saved.table(table.as_str()), &nothing)
        })
        .collect();
    if batch.is_empty() { Ok(()) } else { kernel.restore(family, &batch).await }
}

impl Gate for IptablesGate {
    fn backend(&self) -> Backend {
        Backend::Ipset
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let mut rules = self.rules.lock().await;
        let mut host = self.host(plan).await?;
        let mut installed = self.installed.lock().await;
        let mut sets = Vec::new();
        if let Err(failure) = self.put_in_place(plan, &mut host, &mut sets).await {
            return Err(match self.undo(&host.rules, &sets).await {
                Ok(()) => failure,
                Err(undo) => {
                    GateError::NotUndone { failure: Box::new(failure), source: Box::new(undo) }
                }
            });
        }
        tracing::debug!(variant = host.variant.as_str(), report = ?host.report, "gate installed");
        *installed = Some(plan.clone());
        *rules = Some(host.knock_ports);
        Ok(host.report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let installed = self.installed.lock().await;
        let plan = installed.as_ref().ok_or(GateError::NotInstalled)?;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        if changes.is_empty() {
            return Ok(());
        }
        self.kernel.ipset("change what is admitted", &render::changes(changes)).await
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        let mut elements = Vec::new();
        for family in families() {
            elements.extend(self.kernel.elements(family).await?);
        }
        Ok(elements)
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        // A service that came to listen on a knock port since the installation, which anybody on
        // the host can start, is no change of the rules.
        let hidden = self.rules.lock().await;
        let mut host = self.host(plan).await?;
        let changed = if let Some(hidden) = hidden.as_ref() {
            host.knock_ports.clone_from(hidden);
            host.differs(plan)
        } else {
            host.differs(plan) && {
                let all = |family| (family, plan.knock_ports.clone());
                host.knock_ports = families().map(all).collect();
                host.differs(plan)
            }
        };
        Ok(InstallReport { changed, ..host.report })
    }

    async fn disturbed(&self) -> Doubt {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        Doubt::Everything
    }

    async fn look(&self, doubt: Doubt) -> Result<Look, GateError> {
        let rules = self.rules.lock().await;
        let knock_ports = rules.clone().ok_or(GateError::NotInstalled)?;
        let plan = self.installed.lock().await.clone().ok_or(GateError::NotInstalled)?;
        let mut look = Look::default();
        for family in families() {
            match self.kernel.elements(family).await {
                Ok(elements) => {
                    let elements = u64::try_from(elements.len()).unwrap_or(u64::MAX);
                    look.elements = look.elements.saturating_add(elements);
                }
                Err(GateError::NotInstalled) => {
                    look.missing.push(format!("set {}", render::set_name(family)));
                }
                Err(error) => return Err(error),
            }
            if doubt == Doubt::Everything {
                let hidden = knock_ports.iter().find(|(of, _)| *of == family);
                let hidden = hidden.map_or(&[][..], |(_, ports)| ports.as_slice());
                let saved = self.kernel.saved(family).await?;
                for table in TableName::ALL {
                    let wanted = render::wanted(family, table, &plan, hidden);
                    if render::transition(table, saved.table(table.as_str()), &wanted).is_some() {
                        look.missing.push(format!("rules in {} ({family})", table.as_str()));
                    }
                }
            }
        }
        Ok(look)
    }

    async fn sever(&self, _connections: &[Connection]) -> Result<(), GateError> {
        Ok(())
    }

    async fn lift(&self) -> Result<(), GateError> {
        Ok(())
    }

    async fn remove(&self) -> Result<(), GateError> {
        let mut rules = self.rules.lock().await;
        *rules = None;
        let mut installed = self.installed.lock().await;
        *installed = None;
        let mut result = Ok(());
        for family in families() {
            // One that fails doesn't keep the other from being removed.
            result = result.and(self.remove_family(family).await);
        }
        result
    }
}

fn families() -> impl Iterator<Item = Family> {
    let both = sockets::ipv6_is_there();
    Family::ALL.into_iter().filter(move |family| both || *family == Family::V4)
}

/// What tells that connection tracking forgets connections that still live.
fn forgetful_tracking(plan: &Plan) -> Option<String> {
    // The file is there once connections are tracked.
    let text = fs::read_to_string(TCP_TIMEOUT).ok()?;
    let seconds: u32 = text.trim().parse().ok()?;
    (plan.mode == Mode::Guard && seconds < IDLE_SECONDS).then(|| {
        format!(
            "connection tracking forgets an idle connection after {seconds} seconds, which then needs a new grant; raise net.netfilter.nf_conntrack_tcp_timeout_established to 432000"
        )
    })
}

/// What this back-end can't do.
fn check_support(plan: &Plan) -> Result<(), GateError> {
    let simple = |guarded: &Guarded| {
        guarded.target == Target::Here
            && guarded.connections == Connections::Any
            && guarded.ports.single().is_some()
    };
    if plan.guarded.iter().all(simple) && plan.always_admit.is_empty() {
        Ok(())
    } else {
        Err(GateError::Plan(
            "ranges, forwards, limited connections and always-admit are not there yet",
        ))
    }
}
