//! The back-ends on top of iptables: what happens in which order, and what is undone when it
//! fails.
//!
//! What is there is read, and what must change is done, by [`kernel`], [`sets`] and [`rules`];
//! what it should be is said by [`super::render`] and [`super::sets`].

mod blueprint;
mod changes;
mod host;
mod install;
mod kernel;
mod other_variant;
mod removal;
mod rules;
mod sets;

use self::blueprint::Blueprint;
use self::changes::Changes;
use self::host::{Host, KnockPorts};
use self::install::admissions;
use self::kernel::{Kernel, Variant};
use self::other_variant::OtherVariant;
use self::rules::Held;
use self::sets::Sets;
use super::bounds::{check_change, check_plan};
use super::render::{self, Armed, CutRule, HeldRule, OwnTable, TableName};
use super::saved::Saved;
use super::sets as set_names;
use super::sockets;
use super::trial_end::TrialEnd;
use super::types::{
    Backend, Change, Cut, Doubt, Family, InstallReport, LiveElement, Look, MAX_CUT_SECONDS, Plan,
};
use super::{Gate, GateError, Tools};
use crate::clock::Now;
use std::collections::BTreeSet;
use std::time::Instant;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// iptables and ip6tables rules, with the grants in ipset sets or in rules as well.
#[derive(Debug)]
pub struct IptablesGate {
    kernel: Kernel,
    holding: Holding,
    sets: Sets,
    changes: Changes,
    /// Held by who looks at the rules, and perhaps changes them.
    rules: Mutex<Rules>,
    /// The plan that is installed. Held by who changes rules or elements: looking at rules, which
    /// takes longer, delays no grant.
    installed: Mutex<Option<Plan>>,
}

/// What this gate has done to the rules.
#[derive(Debug, Default)]
struct Rules {
    /// In which variant of iptables the last installation has put the gate.
    variant: Option<Variant>,
    /// The knock ports that the last installation has hidden.
    hidden: Option<KnockPorts>,
    /// What is ours, as it was read back then.
    standing: Option<Standing>,
    /// The connections that are being cut.
    cut: Vec<CutRule>,
    /// Until when the gate on trial refuses.
    trial_end: TrialEnd,
    /// They take away what is left in the other variant.
    taking_away: JoinSet<()>,
}

/// Where grants are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    /// In sets, which give each its time.
    InSets,
    /// Each in a rule of its own, which says itself until when it counts.
    InRules,
}

type Standing = Vec<(Family, Vec<(TableName, OwnTable)>)>;

impl IptablesGate {
    /// A gate that uses these tools, and holds grants in sets. Nothing is touched yet.
    pub fn new(tools: Tools) -> Self {
        Self::holding(Holding::InSets, tools)
    }

    /// A gate that uses these tools, and holds grants in rules: for hosts whose kernel has no
    /// sets. Nothing is touched yet.
    pub fn without_sets(tools: Tools) -> Self {
        Self::holding(Holding::InRules, tools)
    }

    fn holding(holding: Holding, tools: Tools) -> Self {
        Self {
            kernel: Kernel::new(tools),
            holding,
            sets: Sets::default(),
            changes: Changes::default(),
            rules: Mutex::default(),
            installed: Mutex::default(),
        }
    }

    /// What holds the gate shut.
    fn armed(&self, plan: &Plan) -> Armed {
        match (self.holding, plan.trial_seconds) {
            (_, None) => Armed::ForGood,
            (Holding::InSets, Some(_)) => Armed::BySet,
            (Holding::InRules, Some(_)) => rules::armed(plan),
        }
    }

    /// The grants that are rules, as this plan wants them written, if grants are rules.
    fn held(
        &self,
        rules: &[(Family, Saved)],
        other: &OtherVariant,
        plan: &Plan,
    ) -> Option<Vec<(Family, Vec<HeldRule>)>> {
        if self.holding == Holding::InSets {
            return None;
        }
        // What is left of a gate that held its grants in sets.
        let families: Vec<_> = families().collect();
        let in_sets = admissions(&self.sets.elements(&families, None).unwrap_or_default());
        let fitting = |(family, saved): &(Family, Saved)| {
            let held = Held::in_saved(*family, saved.clone());
            (*family, held.fitting(plan, other.held(*family).as_ref(), &in_sets))
        };
        Some(rules.iter().map(fitting).collect())
    }

    fn differences_of_sets(&self, plan: &Plan) -> Result<Vec<String>, GateError> {
        match self.holding {
            Holding::InSets => self.sets.differences(&families().collect::<Vec<_>>(), plan),
            Holding::InRules => Ok(Vec::new()),
        }
    }

    /// What is missing of that which lets a gate on trial refuse, where that isn't in its rules.
    fn disarmed(&self, trial_end: TrialEnd) -> Result<Vec<String>, GateError> {
        if self.holding == Holding::InRules || !trial_end.is_ahead(Instant::now()) {
            return Ok(Vec::new());
        }
        self.sets.disarmed(&families().collect::<Vec<_>>())
    }

    /// Refuses these connections instead of those that are refused now.
    async fn cut(&self, cuts: &[Cut]) -> Result<(), GateError> {
        let mut rules = self.rules.lock().await;
        let until = Now::read().realtime.as_secs().saturating_add(MAX_CUT_SECONDS.into());
        let cuts: Vec<_> = cuts.iter().map(|cut| CutRule { cut: *cut, until }).collect();
        for family in families() {
            let saved = self.kernel.saved(family).await?;
            let filter = saved.table("filter");
            let wanted = OwnTable::of(filter).cutting(render::cut(family, &cuts));
            if let Some(batch) = render::transition(TableName::Filter, filter, &wanted) {
                self.kernel.restore(family, &batch).await?;
            }
        }
        for (family, tables) in rules.standing.iter_mut().flatten() {
            let saved = self.kernel.saved(*family).await?;
            let written = OwnTable::of(saved.table("filter")).cuts();
            for (_, own) in tables.iter_mut().filter(|(table, _)| *table == TableName::Filter) {
                *own = std::mem::take(own).cutting(written.clone());
            }
        }
        rules.cut = cuts;
        Ok(())
    }
}

impl Gate for IptablesGate {
    fn backend(&self) -> Backend {
        match self.holding {
            Holding::InSets => Backend::Ipset,
            Holding::InRules => Backend::Iptables,
        }
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        check(plan)?;
        let mut rules = self.rules.lock().await;
        let variant = self.kernel.ask_variant().await?;
        if rules.variant != Some(variant) {
            // What they take away there would be this gate.
            rules.taking_away.shutdown().await;
        }
        // Where grants are rules, none may be added between reading and writing them; else looking
        // delays none.
        let (mut installed, mut host) = match self.holding {
            Holding::InRules => {
                let installed = self.installed.lock().await;
                (installed, Host::read(&self.kernel, variant, plan).await?)
            }
            Holding::InSets => {
                let host = Host::read(&self.kernel, variant, plan).await?;
                (self.installed.lock().await, host)
            }
        };
        let other = OtherVariant::read(&self.kernel, variant, rules.variant).await;
        let knock_ports = host.knock_ports.clone();
        let held = self.held(&host.rules, &other, plan);
        let blueprint = Blueprint {
            plan,
            knock_ports: &knock_ports,
            held: held.as_deref(),
            armed: self.armed(plan),
            cut: &rules.cut,
        };
        host.report.differences = blueprint.differences(&host.rules);
        host.report.differences.extend(self.differences_of_sets(plan)?);
        host.report.differences.extend(other.differences());
        if plan.trial_seconds.is_some() {
            let disarmed = self.disarmed(rules.trial_end)?;
            host.report.changed = !disarmed.is_empty();
            host.report.differences.extend(disarmed);
        }
        if variant == Variant::Nft {
            self.changes.subscribe();
        }
        let trial_end = TrialEnd::of(plan, Instant::now());
        let mut made = Vec::new();
        let done = async {
            let misplaced = self.put_in_place(&mut host, &other, &blueprint, &mut made).await?;
            Ok((misplaced, self.read_back(&blueprint).await?))
        };
        let standing = match done.await {
            Ok((misplaced, standing)) => {
                // Its rules hold sets that may not be needed any more. If the tools are others since,
                // what was read may be the gate's own by now: the next look tells.
                if self.kernel.known_variant() == Some(variant) {
                    other.remove(&mut host.report, &mut rules.taking_away).await;
                }
                self.tidy(&mut host, plan, &misplaced);
                standing
            }
            Err(failure) => {
                return Err(match self.undo(&host.rules, &made).await {
                    Ok(()) => failure,
                    Err(undo) => {
                        GateError::NotUndone { failure: Box::new(failure), source: Box::new(undo) }
                    }
                });
            }
        };
        tracing::debug!(variant = variant.as_str(), report = ?host.report, "gate installed");
        *installed = Some(plan.clone());
        rules.trial_end = trial_end;
        rules.variant = Some(variant);
        rules.hidden = Some(knock_ports);
        rules.standing = Some(standing);
        Ok(host.report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let installed = self.installed.lock().await;
        let plan = installed.as_ref().ok_or(GateError::NotInstalled)?;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        if self.holding == Holding::InSets {
            return self.sets.apply(plan, changes).await;
        }
        for family in families() {
            let is_of = |change: &Change| Family::of(change.element().source.address()) == family;
            if !changes.iter().any(is_of) {
                continue;
            }
            let held = Held::read(&self.kernel, family).await?;
            if let Some(batch) = held.changing(plan, changes)? {
                self.kernel.restore(family, &batch).await?;
            }
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        // What is over is taken out of the rules, too.
        let installed = self.installed.lock().await;
        let plan = installed.as_ref();
        if self.holding == Holding::InSets {
            let families: Vec<_> = families().collect();
            return self.sets.elements(&families, plan);
        }
        let mut live = Vec::new();
        for family in families() {
            let held = Held::read(&self.kernel, family).await?;
            if !held.has_place() {
                return Err(GateError::NotInstalled);
            }
            live.extend(held.live(plan));
            if let Some(batch) = plan.and_then(|plan| held.tidying(plan)) {
                self.kernel.restore(family, &batch).await?;
            }
        }
        Ok(live)
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        check(plan)?;
        let rules = self.rules.lock().await;
        let variant = self.kernel.ask_variant().await?;
        let mut host = Host::read(&self.kernel, variant, plan).await?;
        let other = OtherVariant::read(&self.kernel, variant, rules.variant).await;
        let held = self.held(&host.rules, &other, plan);
        let differences = |knock_ports: &KnockPorts| {
            let armed = match self.armed(plan) {
                // It goes on as it is.
                Armed::Until(second) => Armed::Until(armed_until(&host.rules).unwrap_or(second)),
                other => other,
            };
            let held = held.as_deref();
            Blueprint { plan, knock_ports, held, armed, cut: &rules.cut }.differences(&host.rules)
        };
        // A service that came to listen on a knock port since the installation, which anybody on
        // the host can start, is no change of the rules.
        let mut found = differences(rules.hidden.as_ref().unwrap_or(&host.knock_ports));
        if rules.hidden.is_none() && !found.is_empty() {
            let all = families().map(|family| (family, plan.knock_ports.clone())).collect();
            let with_all = differences(&all);
            if with_all.is_empty() {
                found = with_all;
            }
        }
        found.extend(self.differences_of_sets(plan)?);
        found.extend(other.differences());
        host.report.warnings.extend(other.warnings());
        host.report.changed = !found.is_empty();
        host.report.differences = found;
        Ok(host.report)
    }

    async fn disturbed(&self) -> Doubt {
        let in_nft = || self.kernel.known_variant() == Some(Variant::Nft);
        self.changes.next(self.holding == Holding::InSets, in_nft).await
    }

    async fn look(&self, doubt: Doubt) -> Result<Look, GateError> {
        let rules = self.rules.lock().await;
        let standing = rules.standing.as_ref().ok_or(GateError::NotInstalled)?;
        let plan = self.installed.lock().await.clone().ok_or(GateError::NotInstalled)?;
        let mut look = Look::default();
        if self.holding == Holding::InSets {
            let families: Vec<_> = families().collect();
            (look.elements, look.missing) = self.sets.look(&families, &plan)?;
            look.missing.extend(self.disarmed(rules.trial_end)?);
        }
        // Where the gate stands the tools don't lead any more.
        let now = self.kernel.variant().await?;
        if let Some(variant) = rules.variant.filter(|variant| *variant != now) {
            let (variant, now) = (variant.as_str(), now.as_str());
            look.missing.push(format!("the gate is in {variant}, and iptables is {now} by now"));
            return Ok(look);
        }
        if self.holding == Holding::InSets && doubt == Doubt::Elements {
            return Ok(look);
        }
        for (family, tables) in standing {
            let saved = self.kernel.saved(*family).await?;
            for (table, own) in tables {
                let saved = saved.table(table.as_str());
                look.missing.extend(own.differences(*family, *table, saved));
            }
            if self.holding == Holding::InRules {
                let live = Held::in_saved(*family, saved).live(Some(&plan));
                look.elements += u64::try_from(live.len()).unwrap_or(u64::MAX);
            }
        }
        Ok(look)
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        self.cut(cuts).await
    }

    async fn lift(&self) -> Result<(), GateError> {
        self.cut(&[]).await
    }

    async fn remove(&self) -> Result<(), GateError> {
        let mut rules = self.rules.lock().await;
        rules.taking_away.shutdown().await;
        *rules = Rules::default();
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

/// Until which second the rules that are there refuse, if they say so.
fn armed_until(rules: &[(Family, Saved)]) -> Option<u64> {
    rules.iter().find_map(|(_, saved)| render::armed_until(saved.table("mangle")))
}

fn check(plan: &Plan) -> Result<(), GateError> {
    check_plan(plan)?;
    let ranges: BTreeSet<_> =
        plan.guarded.iter().map(|one| one.ports).filter(|ports| ports.single().is_none()).collect();
    if ranges.len() > set_names::MAX_RANGES {
        return Err(GateError::Plan(
            "it has more than 100 ranges of ports, each of which needs a set",
        ));
    }
    Ok(())
}
