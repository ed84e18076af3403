//! The default back-end: reads what is there, asks [`super::render`] what to change, and has the
//! tools change it. All text is made and judged elsewhere.

use super::foreign::{self, Dropper};
use super::render::{self, OwnTable, TableName};
use super::saved::Saved;
use super::sockets::{self, Connection};
use super::types::{
    Change, Element, Family, InstallReport, LiveElement, MAX_ELEMENT_SECONDS, Mode, Plan, Refusal,
};
use super::{Gate, GateError, Tools};
use crate::process::{ProcessError, Run};
use spa_proto::Port;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};

/// How often a batch is tried whose tool says that it was busy (exit code 4).
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
const BUSY: i32 = 4;
/// How many connections are entered by one call of `conntrack`.
const CONNECTIONS_PER_CALL: usize = 64;
/// More than this the kernel would take, but nobody has.
const MAX_SET_SIZE: u32 = 16 * 1024 * 1024;

/// iptables and ip6tables rules over ipset sets.
#[derive(Debug)]
pub struct IptablesGate {
    tools: Tools,
    variant: OnceCell<Variant>,
    /// The plan that is installed. Held locked during every operation.
    installed: Mutex<Option<Plan>>,
}

/// Which of the kernel's two rule engines the tools speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
}

/// What is there before an installation.
struct Host {
    variant: Variant,
    rules: Vec<(Family, Saved)>,
    connections: Vec<Connection>,
    knock_ports: Vec<(Family, Vec<u16>)>,
    report: InstallReport,
}

impl Host {
    fn wanted(&self, family: Family, table: TableName, plan: &Plan) -> OwnTable {
        let knock_ports = self.knock_ports.iter().find(|(of, _)| *of == family);
        render::wanted(family, table, plan, knock_ports.map_or(&[], |(_, ports)| ports))
    }
}

/// What happened to a set, to be undone.
struct SetChange {
    family: Family,
    /// The size that it had; `None` if there was none.
    before: Option<u32>,
}

impl IptablesGate {
    /// A gate that uses these tools. Nothing is touched yet.
    pub fn new(tools: Tools) -> Self {
        Self { tools, variant: OnceCell::new(), installed: Mutex::new(None) }
    }

    /// Looks at the host as [`Gate::install`] would, and changes nothing: the tools, the rules of
    /// others, the sockets on knock ports. `changed` tells whether an installation would change
    /// rules.
    pub async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let _installed = self.installed.lock().await;
        let host = self.host(plan).await?;
        let changed = host.rules.iter().any(|(family, saved)| {
            TableName::ALL.into_iter().any(|table| {
                let wanted = host.wanted(*family, table, plan);
                render::transition(table, saved.table(table.as_str()), &wanted).is_some()
            })
        });
        Ok(InstallReport { changed, ..host.report })
    }

    async fn host(&self, plan: &Plan) -> Result<Host, GateError> {
        check_plan(plan)?;
        let variant = self.variant().await?;
        let mut rules = Vec::new();
        for family in families() {
            rules.push((family, self.saved(family).await?));
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
        let connections = sockets::established(&sockets, &plan.ports);
        Ok(Host { variant, rules, connections, knock_ports, report })
    }

    /// Where others drop what the gate accepts: an error in open mode, a warning else.
    async fn judge_foreign(
        &self,
        plan: &Plan,
        variant: Variant,
        rules: &[(Family, Saved)],
        report: &mut InstallReport,
    ) -> Result<(), GateError> {
        let mut droppers = self.nft_droppers(plan, variant, report).await?;
        if variant == Variant::Nft {
            droppers.extend(self.legacy_droppers(report).await?);
        } else {
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
        report.warnings.extend(foreign::warnings(&droppers, &plan.ports));
        for (family, saved) in rules {
            if foreign::untracks(saved) {
                report.warnings.push(format!(
                    "table raw takes some {family} packets out of connection tracking: a connection among them ends with its grant"
                ));
            }
        }
        Ok(())
    }

    async fn nft_droppers(
        &self,
        plan: &Plan,
        variant: Variant,
        report: &mut InstallReport,
    ) -> Result<Vec<Dropper>, GateError> {
        let nft = match (self.tools.need_nft(), plan.mode) {
            (Ok(nft), _) => nft,
            (Err(missing), Mode::Open) => return Err(missing.into()),
            (Err(missing), Mode::Guard) => {
                report.warnings.push(format!(
                    "whether rules made with nftables drop granted packets is unknown: {missing}"
                ));
                return Ok(Vec::new());
            }
        };
        let json = Run::new(nft, &["-j", "-t", "list", "ruleset"])
            .output()
            .await
            .map_err(doing("list the rules of nftables"))?;
        if json.trim().is_empty() {
            return Ok(Vec::new());
        }
        foreign::in_nft(&json, variant == Variant::Nft)
            .map_err(|what| GateError::Unreadable { tool: "nft", what })
    }

    /// The rules of iptables-legacy, when ours are in iptables-nft. The kernel is asked first:
    /// the tool would load modules.
    async fn legacy_droppers(&self, report: &mut InstallReport) -> Result<Vec<Dropper>, GateError> {
        let mut droppers = Vec::new();
        for (family, names, name) in [
            (Family::V4, "/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
            (Family::V6, "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
        ] {
            if fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty()) {
                let Some(path) = Tools::find_optional(name) else {
                    report.warnings.push(format!(
                        "the kernel holds {family} rules of iptables-legacy, but there is no {name} to read them"
                    ));
                    continue;
                };
                let saved = read_rules(&path).await?;
                droppers.extend(foreign::in_saved(family, "iptables-legacy", &saved));
            }
        }
        Ok(droppers)
    }

    async fn variant(&self) -> Result<Variant, GateError> {
        self.variant.get_or_try_init(|| self.ask_variants()).await.copied()
    }

    async fn ask_variants(&self) -> Result<Variant, GateError> {
        let tools = &self.tools;
        let mut found = Vec::new();
        for path in [
            &tools.iptables_restore,
            &tools.ip6tables_restore,
            &tools.iptables_save,
            &tools.ip6tables_save,
        ] {
            let version = Run::new(path, &["--version"])
                .output()
                .await
                .map_err(doing("ask a tool for its version"))?;
            let is_nft = version.contains("(nf_tables)");
            found.push((path, if is_nft { Variant::Nft } else { Variant::Legacy }));
        }
        let (_, variant) = found[0];
        if found.iter().all(|(_, other)| *other == variant) {
            return Ok(variant);
        }
        let list: Vec<_> = found
            .iter()
            .map(|(path, variant)| format!("{} is {}", path.display(), variant.as_str()))
            .collect();
        Err(GateError::MixedVariants(list.join(", ")))
    }

    async fn saved(&self, family: Family) -> Result<Saved, GateError> {
        read_rules(match family {
            Family::V4 => &self.tools.iptables_save,
            Family::V6 => &self.tools.ip6tables_save,
        })
        .await
    }

    async fn restore(&self, family: Family, batch: &str) -> Result<(), GateError> {
        let path = match family {
            Family::V4 => &self.tools.iptables_restore,
            Family::V6 => &self.tools.ip6tables_restore,
        };
        let mut tries = 1;
        loop {
            let run = Run::new(path, &["--noflush", "-w", "5"]).stdin(batch);
            match run.output().await {
                Ok(_) => return Ok(()),
                Err(error) if error.exit_code() == Some(BUSY) && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Err(error) => return Err(doing("write the rules")(error)),
            }
        }
    }

    async fn ipset(&self, what: &'static str, batch: &str) -> Result<(), GateError> {
        let run = Run::new(&self.tools.ipset, &["restore", "-exist"]).stdin(batch);
        run.output().await.map(drop).map_err(|error| {
            if error.complaint().contains("is full") {
                let at_v6 = error.complaint().contains("spa6");
                let name = render::set_name(if at_v6 { Family::V6 } else { Family::V4 });
                return GateError::Full { name };
            }
            doing(what)(error)
        })
    }

    /// The size of the set of a family, if there is one.
    async fn set_size(&self, family: Family) -> Result<Option<u32>, GateError> {
        let name = render::set_name(family);
        let listed = Run::new(&self.tools.ipset, &["list", "-t", name]).output().await;
        let text = match listed {
            Ok(text) => text,
            Err(error) if is_no_set(&error) => return Ok(None),
            Err(error) => return Err(doing("look for the set")(error)),
        };
        render::own_set_size(family, &text)
            .map(Some)
            .map_err(|what| GateError::ForeignSet { name, what })
    }

    async fn elements(&self, family: Family) -> Result<Vec<LiveElement>, GateError> {
        let name = render::set_name(family);
        let text = match Run::new(&self.tools.ipset, &["save", name]).output().await {
            Ok(text) => text,
            Err(error) if is_no_set(&error) => return Err(GateError::NotInstalled),
            Err(error) => return Err(doing("read the set")(error)),
        };
        Ok(render::read_elements(&text))
    }

    /// Makes the set, or gives it the size wanted; elements live on.
    async fn make_set(&self, family: Family, size: u32) -> Result<Option<SetChange>, GateError> {
        let before = self.set_size(family).await?;
        match before {
            Some(before) if before == size => return Ok(None),
            Some(_) => {
                let elements = self.elements(family).await?;
                self.discard_new_set(family).await?;
                let batch = render::resize_set(family, size, &elements);
                if let Err(error) = self.ipset("resize the set", &batch).await {
                    self.discard_new_set(family).await?;
                    return Err(error);
                }
            }
            None => {
                let batch = render::create_set(family, render::set_name(family), size);
                self.ipset("create the set", &batch).await?;
            }
        }
        Ok(Some(SetChange { family, before }))
    }

    /// Destroys what a resizing that failed has left.
    async fn discard_new_set(&self, family: Family) -> Result<(), GateError> {
        self.destroy_set(render::new_set_name(family)).await
    }

    async fn destroy_set(&self, name: &str) -> Result<(), GateError> {
        match Run::new(&self.tools.ipset, &["destroy", name]).output().await {
            Err(error) if !is_no_set(&error) => Err(doing("destroy the set")(error)),
            _ => Ok(()),
        }
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
            sets.extend(self.make_set(*family, plan.max_elements).await?);
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
                    self.restore(*family, &batch).await?;
                }
            }
            host.report.connections_kept = self.enter(&host.connections).await?;
        }
        for (family, batch) in &batches {
            let discard = match plan.mode {
                // What tracked during the installation goes in the batch that tracks for good.
                Mode::Guard => render::DISCARD_TRACK,
                Mode::Open => "",
            };
            self.restore(*family, &format!("{batch}{discard}")).await?;
        }
        for (family, _) in &host.rules {
            let saved = self.saved(*family).await?;
            for table in TableName::ALL {
                let wanted = host.wanted(*family, table, plan);
                if let Some(what) = wanted.missing_in(saved.table(table.as_str())) {
                    return Err(GateError::NotThere { family: *family, what });
                }
            }
        }
        Ok(())
    }

    /// Enters established connections into connection tracking; says how many.
    async fn enter(&self, connections: &[Connection]) -> Result<u32, GateError> {
        for some in connections.chunks(CONNECTIONS_PER_CALL) {
            // One call for many ends at the first that is there already. What it entered before
            // does no harm to the calls one by one that then follow.
            if some.len() > 1 {
                let lines: String =
                    some.iter().map(|one| render::enter_connection(one) + "\n").collect();
                let run = Run::new(&self.tools.conntrack, &["-R", "-"]).stdin(&lines);
                if run.output().await.is_ok() {
                    continue;
                }
            }
            for one in some {
                self.enter_one(one).await?;
            }
        }
        Ok(u32::try_from(connections.len()).unwrap_or(u32::MAX))
    }

    async fn enter_one(&self, connection: &Connection) -> Result<(), GateError> {
        let doing = doing("tell connection tracking of an established connection");
        match self.conntrack(&render::enter_connection(connection)).await {
            Err(error) if error.complaint().contains("exists") => {}
            other => return other.map_err(doing),
        }
        match self.conntrack(&render::confirm_connection(connection)).await {
            // There is none in this direction: then there is one that this host began, and the
            // peer's packets are answers.
            Err(error) if error.complaint().contains("0 flow entries") => Ok(()),
            other => other.map_err(doing),
        }
    }

    async fn conntrack(&self, args: &str) -> Result<(), ProcessError> {
        let args: Vec<_> = args.split(' ').collect();
        Run::new(&self.tools.conntrack, &args).output().await.map(drop)
    }

    /// Brings back what is ours to what it was.
    async fn undo(&self, before: &[(Family, Saved)], sets: &[SetChange]) -> Result<(), GateError> {
        for (family, before) in before {
            let now = self.saved(*family).await?;
            let batch: String = TableName::ALL
                .into_iter()
                .filter_map(|table| {
                    let wanted = OwnTable::of(before.table(table.as_str()));
                    render::transition(table, now.table(table.as_str()), &wanted)
                })
                .collect();
            if !batch.is_empty() {
                self.restore(*family, &batch).await?;
            }
        }
        for change in sets {
            match change.before {
                None => self.destroy_set(render::set_name(change.family)).await?,
                Some(size) => {
                    self.make_set(change.family, size).await?;
                }
            }
        }
        Ok(())
    }

    async fn remove_family(&self, family: Family) -> Result<(), GateError> {
        let saved = self.saved(family).await?;
        let batch: String = TableName::ALL
            .into_iter()
            .filter_map(|table| {
                let nothing = OwnTable::default();
                render::transition(table, saved.table(table.as_str()), &nothing)
            })
            .collect();
        if !batch.is_empty() {
            self.restore(family, &batch).await?;
        }
        self.discard_new_set(family).await?;
        self.destroy_set(render::set_name(family)).await
    }
}

impl Gate for IptablesGate {
    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let mut installed = self.installed.lock().await;
        let mut host = self.host(plan).await?;
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
        Ok(host.report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let installed = self.installed.lock().await;
        let plan = installed.as_ref().ok_or(GateError::NotInstalled)?;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        if changes.is_empty() {
            return Ok(());
        }
        self.ipset("change what is admitted", &render::changes(changes)).await
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        let _installed = self.installed.lock().await;
        let mut elements = Vec::new();
        for family in families() {
            elements.extend(self.elements(family).await?);
        }
        Ok(elements)
    }

    async fn remove(&self) -> Result<(), GateError> {
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

fn doing(doing: &'static str) -> impl Fn(ProcessError) -> GateError {
    move |source| GateError::Tool { doing, source }
}

fn is_no_set(error: &ProcessError) -> bool {
    error.complaint().contains("does not exist")
}

async fn read_rules(path: &Path) -> Result<Saved, GateError> {
    let text = Run::new(path, &[]).output().await.map_err(doing("read the rules"))?;
    Saved::parse(&text).map_err(|what| GateError::Unreadable { tool: "iptables-save", what })
}

fn check_plan(plan: &Plan) -> Result<(), GateError> {
    if plan.ports.is_empty() {
        return Err(GateError::Plan("it guards no port"));
    }
    if plan.max_elements == 0 || plan.max_elements > MAX_SET_SIZE {
        return Err(GateError::Plan("the size of the sets is out of bounds"));
    }
    Ok(())
}

fn check_change(plan: &Plan, change: &Change) -> Result<(), GateError> {
    let Change::Admit { element, seconds } = *change else { return Ok(()) };
    if !is_guarded(plan, element.port) {
        return Err(GateError::NotGuarded(element));
    }
    if !is_possible_source(element) {
        return Err(GateError::BadSource(element));
    }
    if !(1..=MAX_ELEMENT_SECONDS).contains(&seconds) {
        return Err(GateError::BadTime { element, seconds });
    }
    Ok(())
}

fn is_guarded(plan: &Plan, port: Port) -> bool {
    plan.ports.contains(&port)
}

fn is_possible_source(element: Element) -> bool {
    let source = element.source;
    !source.is_unspecified() && !source.is_multicast() && source.to_canonical() == source
}
