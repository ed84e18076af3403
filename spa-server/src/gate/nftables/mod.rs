//! The nftables back-end: what happens in which order, and what is undone when it fails.
//!
//! Everything of the gate is in one table, `inet spa`. What it should be is said by [`render`],
//! what it is by [`listing`]; scripts ([`script`]) for the tool `nft` turn the one into the other.
//!
//! An accept in one table can't take back a drop in another: the host's own firewall has to accept
//! the guarded ports, and an installation says where it doesn't. For the same reason there is no
//! open mode.

mod cut;
mod elements;
mod host;
mod listing;
mod render;
#[cfg(test)]
mod samples;
mod script;
mod segments;
mod shape;
mod tool;
mod undo;
mod watch;

use self::elements::Elements;
use self::host::{Hidden, Host};
use self::listing::Listing;
use self::render::Ruleset;
use self::shape::Shape;
use self::tool::Nft;
use self::watch::Watch;
use super::bounds::{check_change, check_plan};
use super::sockets;
use super::trial_end::TrialEnd;
use super::types::{
    Backend, Change, Connection, Cut, Doubt, Family, InstallReport, LiveElement, Look, Mode, Plan,
};
use super::{Gate, GateError, MissingTool, ToolOverrides};
use crate::causes::with_causes;
use crate::netlink::conntrack::{Conntrack, Tuple};
use spa_proto::Port;
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Instant;
use tokio::sync::Mutex;

const OPEN_MODE: &str = "the nftables back-end has no open mode, for an accept in its table can't take back a drop in another one; use mode = \"guard\", or backend = \"ipset\" or \"iptables\"";

/// A table of nftables.
///
/// Known limit: an installation that has to make the sets anew (another size) puts elements back
/// as it has read them a few milliseconds before. A grant for one connection that is used in just
/// that time can be used once more.
///
/// Another one: when an installation fails, a trial that was running goes on for as much longer as
/// the attempt took.
#[derive(Debug)]
pub struct NftablesGate {
    nft: Nft,
    elements: Elements,
    /// Held by who changes rules: looking at what others have, which takes longer, delays no
    /// grant.
    installing: Mutex<()>,
    /// Held by who changes rules or elements.
    installed: Mutex<Option<Installed>>,
    /// Whether connections are refused by this gate. Held by who changes that.
    cuts: Mutex<bool>,
    /// Held by who waits for changes of others.
    watch: Mutex<Watch>,
}

/// What this gate has installed.
#[derive(Debug)]
struct Installed {
    plan: Plan,
    hidden: Hidden,
    shapes: BTreeSet<Shape>,
    size: u32,
    /// As it was read back.
    listing: Listing,
    /// The number of the ruleset up to which nobody else can have changed the table; `None`: not
    /// known.
    generation: Option<u32>,
    /// Until when the gate on trial refuses.
    trial_end: TrialEnd,
}

impl NftablesGate {
    /// A gate that uses this tool, or that which is found. Nothing is touched yet.
    ///
    /// # Errors
    ///
    /// `nft` isn't there.
    pub fn new(overrides: &ToolOverrides) -> Result<Self, MissingTool> {
        Ok(Self {
            nft: Nft::find(overrides)?,
            elements: Elements::default(),
            installing: Mutex::new(()),
            installed: Mutex::new(None),
            cuts: Mutex::new(false),
            watch: Mutex::default(),
        })
    }

    /// The table as it stands; an error if it is somebody else's.
    async fn listing(&self) -> Result<Option<Listing>, GateError> {
        let Some(json) = self.nft.table().await? else { return Ok(None) };
        match Listing::parse(&json).map_err(unreadable)? {
            Some(listing) if !listing.is_ours() => Err(GateError::ForeignTable),
            listing => Ok(listing),
        }
    }

    /// The table as it stands, and the number of the ruleset if that stayed the same meanwhile.
    async fn numbered_listing(&self) -> Result<(Option<Listing>, Option<u32>), GateError> {
        let before = self.elements.generation()?;
        let listing = self.listing().await?;
        let same = self.elements.generation()? == before;
        Ok((listing, same.then_some(before)))
    }

    /// All elements, whether they count or not.
    async fn all_elements(
        &self,
        listing: Option<&Listing>,
    ) -> Result<Vec<(Shape, LiveElement)>, GateError> {
        let shapes = listing.into_iter().flat_map(Listing::shapes);
        Ok(self.elements.read(shapes).await?.unwrap_or_default())
    }

    /// How many elements a set has room for. Sets that hold more than is wanted stay as large: what is
    /// in them would else have to go, or the gate could not be installed.
    async fn size(&self, plan: &Plan, listing: Option<&Listing>) -> Result<u32, GateError> {
        let wanted = plan.max_elements;
        let sizes = listing.iter().flat_map(|one| one.sets().filter_map(|set| one.size(set)));
        let Some(before) = sizes.max().filter(|before| *before > wanted) else {
            return Ok(wanted);
        };
        let elements = self.all_elements(listing).await?;
        let wanted_too = usize::try_from(wanted).unwrap_or(usize::MAX);
        Ok(if elements.len() > wanted_too { before } else { wanted })
    }

    /// Takes out what the plan has in no set, or in another one: somebody else has put it there, it
    /// admits nobody, and there may be no room for what would. Whether there was any.
    async fn make_room(&self, installed: &Installed) -> Result<bool, GateError> {
        let found = self.elements.read(installed.shapes.iter().copied()).await?;
        let idle = found.unwrap_or_default().into_iter().filter_map(|(shape, live)| {
            let element = live.element;
            let is_idle = shape::under(&installed.plan, element) != Some(shape);
            is_idle.then_some((shape, Change::Withdraw { element }))
        });
        let idle: Vec<_> = idle.collect();
        let any = !idle.is_empty();
        if any {
            self.elements.apply(idle).await?;
        }
        Ok(any)
    }

    /// Everything that [`Gate::install`] changes, in the order that locks nobody out: connection
    /// tracking, then its entries, then the rules. Says how many entries were made.
    async fn put_in_place(
        &self,
        plan: &Plan,
        wanted: &Ruleset,
        mut before: Option<Listing>,
    ) -> Result<u32, GateError> {
        let judged = before.as_ref().map(Listing::guarded).unwrap_or_default();
        if !before.as_ref().is_some_and(Listing::judges) {
            self.nft.run("turn on connection tracking", &script::track()).await?;
            before = self.listing().await?;
        }
        // Only now: a connection that comes about from here on is tracked from its beginning.
        let mut connections = sockets::established(&sockets::read()?, &plan.guarded);
        connections.retain(|connection| {
            let Some(number) = NonZeroU16::new(connection.local.port()) else { return false };
            let port = Port { transport: connection.transport, number };
            !judged.iter().any(|ports| ports.contains(port))
        });
        enter(&connections)?;
        let armed = plan.trial_seconds.map(script::arm).unwrap_or_default();
        let doing = "write the rules";
        let remade = before.as_ref().is_some_and(|one| !one.outdated_sets(wanted).is_empty());
        let elements = match before.as_ref().filter(|_| remade) {
            Some(before) => self.all_elements(Some(before)).await?,
            None => Vec::new(),
        };
        let script = script::change(before.as_ref(), wanted, &elements) + &armed;
        if let Err(error) = self.nft.run(doing, &script).await {
            // Somebody has made of the table what no change can mend.
            tracing::debug!("the table is made anew: {}", with_causes(&error));
            let elements = self.all_elements(before.as_ref()).await?;
            let script = script::replace(wanted, &elements) + &armed;
            self.nft.run(doing, &script).await?;
        }
        Ok(u32::try_from(connections.len()).unwrap_or(u32::MAX))
    }

    /// Reads back what was made, and marks it as complete.
    async fn complete(&self, wanted: &Ruleset) -> Result<(Listing, Option<u32>), GateError> {
        let listing = self.listing().await?.unwrap_or_default();
        let mark = listing.mark_of(wanted);
        self.nft.run("mark the rules as complete", &script::mark(&mark)).await?;
        let (listing, generation) = self.numbered_listing().await?;
        let listing = listing.unwrap_or_default();
        match listing.differences(wanted).into_iter().next() {
            None => Ok((listing, generation)),
            Some(what) => Err(GateError::TableNotThere(what)),
        }
    }

    /// Takes out the elements that this plan has no use for: a later one that guards their ports
    /// would admit them again.
    async fn forget(&self, plan: &Plan) -> Result<(), GateError> {
        let listing = self.listing().await?;
        let found = self.all_elements(listing.as_ref()).await?;
        let strays = found
            .into_iter()
            .filter(|(shape, live)| shape::under(plan, live.element) != Some(*shape));
        let changes: Vec<_> = strays
            .map(|(shape, live)| (shape, Change::Withdraw { element: live.element }))
            .collect();
        if !changes.is_empty() {
            self.elements.apply(changes).await?;
        }
        Ok(())
    }

    /// What is missing of that which lets a gate on trial refuse.
    ///
    /// It is asked for whatever the number of the ruleset says: after an installation or a change of
    /// its rules nobody has looked into this set.
    fn disarmed(&self, trial_end: TrialEnd) -> Result<Option<String>, GateError> {
        if !trial_end.is_ahead(Instant::now()) {
            return Ok(None);
        }
        let (found, all) = (self.elements.armed()?, elements::ALL_ARMED);
        let what =
            || listing::in_table(&format!("set {} has {found} elements of {all}", render::ARMED));
        Ok((found < all).then(what))
    }

    /// Makes sets for elements of these shapes, too.
    async fn extend(&self, installed: &mut Installed, more: &[Shape]) -> Result<(), GateError> {
        let mut shapes = installed.shapes.clone();
        shapes.extend(more);
        let Installed { plan, hidden, size, .. } = &*installed;
        let wanted = Ruleset::new(plan, hidden, &shapes, *size);
        let script = script::change(Some(&installed.listing), &wanted, &[]);
        self.nft.run("make a set for another length of prefix", &script).await?;
        (installed.listing, installed.generation) = self.complete(&wanted).await?;
        installed.shapes = shapes;
        Ok(())
    }
}

/// What an installation writes where there is no table yet, line by line.
pub(super) fn script(plan: &Plan) -> Vec<String> {
    let hidden = Family::ALL.map(|family| (family, plan.knock_ports.clone()));
    let ruleset = Ruleset::new(plan, &hidden, &shapes(plan, None), plan.max_elements);
    ruleset.to_string().lines().map(|line| format!("nft: {line}")).collect()
}

/// The shapes of the sets to have: those of the plan, and those of networks that are there already.
fn shapes(plan: &Plan, listing: Option<&Listing>) -> BTreeSet<Shape> {
    let there = listing.iter().flat_map(|one| one.shapes());
    let mut shapes = shape::of_plan(plan);
    shapes.extend(there.filter(|shape| shape::fits(plan, *shape)));
    shapes
}

/// The number after a change of ours, if nobody else has changed anything since that one.
fn next(before: Option<u32>, now: u32) -> Option<u32> {
    before.filter(|before| before.wrapping_add(1) == now).map(|_| now)
}

/// Enters established connections into connection tracking.
fn enter(connections: &[Connection]) -> Result<(), GateError> {
    if connections.is_empty() {
        return Ok(());
    }
    let mut conntrack = Conntrack::open()?;
    for Connection { transport, peer, local } in connections {
        let tuple = Tuple { transport: *transport, source: *peer, destination: *local };
        conntrack.enter(&tuple)?;
    }
    Ok(())
}

fn unreadable(what: String) -> GateError {
    GateError::Unreadable { tool: "nft", what }
}

fn check_mode(plan: &Plan) -> Result<(), GateError> {
    match plan.mode {
        Mode::Guard => Ok(()),
        Mode::Open => Err(GateError::Plan(OPEN_MODE)),
    }
}

impl Gate for NftablesGate {
    fn backend(&self) -> Backend {
        Backend::Nftables
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let _installing = self.installing.lock().await;
        check_plan(plan)?;
        check_mode(plan)?;
        let Host { hidden, cuts, mut report } = Host::survey(&self.nft, plan).await?;
        if cuts {
            // Held over the command: what is to be refused from now on is not lifted with the rest.
            let refuses = self.cuts.lock().await;
            if !*refuses {
                self.nft.run("lift what an earlier run has refused", &cut::lift()).await?;
            }
        }
        let mut installed = self.installed.lock().await;
        let disarmed = match installed.as_ref() {
            Some(installed) => self.disarmed(installed.trial_end)?,
            None => None,
        };
        let trial_end = TrialEnd::of(plan, Instant::now());
        let (before, mut number) = self.numbered_listing().await?;
        let shapes = shapes(plan, before.as_ref());
        let size = self.size(plan, before.as_ref()).await?;
        let wanted = Ruleset::new(plan, &hidden, &shapes, size);
        let (listing, generation) = match before {
            Some(before) if before.holds(&wanted) => {
                if let Some(seconds) = plan.trial_seconds {
                    report.changed = disarmed.is_some();
                    report.differences.extend(disarmed);
                    self.nft.run("set the time of the trial", &script::arm(seconds)).await?;
                    number = next(number, self.elements.generation()?);
                }
                (before, number)
            }
            before => {
                report.changed = true;
                report.differences =
                    before.as_ref().map_or_else(missing, |b| b.differences(&wanted));
                let standing = self.standing(before.as_ref()).await?;
                let made = async {
                    report.connections_kept = self.put_in_place(plan, &wanted, before).await?;
                    self.forget(plan).await?;
                    self.complete(&wanted).await
                };
                match made.await {
                    Ok(made) => made,
                    Err(failure) => {
                        return Err(match self.undo(standing, plan).await {
                            Ok(()) => failure,
                            Err(source) => GateError::NotUndone {
                                failure: Box::new(failure),
                                source: Box::new(source),
                            },
                        });
                    }
                }
            }
        };
        tracing::debug!(?report, "gate installed");
        let plan = plan.clone();
        *installed = Some(Installed { plan, hidden, shapes, size, listing, generation, trial_end });
        Ok(report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let mut installed = self.installed.lock().await;
        let installed = installed.as_mut().ok_or(GateError::NotInstalled)?;
        let plan = &installed.plan;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        let mut shaped = Vec::new();
        for change in changes {
            // What isn't guarded any more is in no set that counts.
            if let Some(shape) = shape::under(plan, change.element()) {
                shaped.push((shape, *change));
            }
        }
        let is_new = |(shape, change): &(Shape, Change)| {
            matches!(change, Change::Admit { .. }) && !installed.shapes.contains(shape)
        };
        let new: Vec<_> =
            shaped.iter().filter(|one| is_new(one)).map(|(shape, _)| *shape).collect();
        if !new.is_empty() {
            self.extend(installed, &new).await?;
        }
        shaped.retain(|(shape, _)| installed.shapes.contains(shape));
        if shaped.is_empty() {
            return Ok(());
        }
        let is_counted = match self.elements.apply(shaped.clone()).await {
            Err(GateError::Full { .. }) if self.make_room(installed).await? => {
                self.elements.apply(shaped).await?;
                false
            }
            applied => applied?,
        };
        // It is asked for when the port is open: whoever has changed something since the last time,
        // before or after, has made this one more than it would be.
        let known = installed.generation.filter(|_| is_counted);
        installed.generation = next(known, self.elements.generation()?);
        Ok(())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        let installed = self.installed.lock().await;
        let listing = match self.listing().await {
            Ok(Some(listing)) => listing,
            Ok(None) | Err(GateError::ForeignTable) => return Err(GateError::NotInstalled),
            Err(error) => return Err(error),
        };
        let elements = self.all_elements(Some(&listing)).await?;
        Ok(match installed.as_ref() {
            Some(installed) => shape::in_force(&installed.plan, elements),
            None => elements.into_iter().map(|(_, live)| live).collect(),
        })
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        check_plan(plan)?;
        check_mode(plan)?;
        let Host { hidden, mut report, .. } = Host::survey(&self.nft, plan).await?;
        let installed = self.installed.lock().await;
        let listing = self.listing().await?;
        let shapes = shapes(plan, listing.as_ref());
        let size = self.size(plan, listing.as_ref()).await?;
        // A service that came to listen on a knock port since the installation, which anybody on
        // the host can start, is no change of the rules.
        let all = || Family::ALL.map(|family| (family, plan.knock_ports.clone())).to_vec();
        let hidden = match installed.as_ref() {
            Some(installed) => vec![installed.hidden.clone()],
            None => vec![hidden, all()],
        };
        let wanted: Vec<_> =
            hidden.iter().map(|hidden| Ruleset::new(plan, hidden, &shapes, size)).collect();
        let holds = |listing: &Listing| wanted.iter().any(|wanted| listing.holds(wanted));
        report.changed = !listing.as_ref().is_some_and(holds);
        if report.changed {
            report.differences = match (&listing, wanted.first()) {
                (Some(listing), Some(wanted)) => listing.differences(wanted),
                _ => missing(),
            };
        }
        Ok(report)
    }

    async fn disturbed(&self) -> Doubt {
        let mut watch = self.watch.lock().await;
        loop {
            let doubt = watch.hear().await;
            // Not before what this gate may just be doing is done.
            let installed = self.installed.lock().await;
            let known = installed.as_ref().and_then(|installed| installed.generation);
            let is_ours = known.is_some() && self.elements.generation().ok() == known;
            watch.settle();
            if !is_ours {
                return doubt;
            }
        }
    }

    async fn look(&self, _doubt: Doubt) -> Result<Look, GateError> {
        let mut installed = self.installed.lock().await;
        let installed = installed.as_mut().ok_or(GateError::NotInstalled)?;
        let mut missing = Vec::new();
        if installed.generation != Some(self.elements.generation()?) {
            let (listing, generation) = match self.numbered_listing().await {
                Err(GateError::ForeignTable) => (None, None),
                listing => listing?,
            };
            missing = listing.map_or_else(self::missing, |now| installed.listing.missing_in(&now));
            if missing.is_empty() {
                installed.generation = generation;
            }
        }
        if missing.is_empty() {
            missing.extend(self.disarmed(installed.trial_end)?);
        }
        let elements = self.elements.read(installed.shapes.iter().copied()).await?;
        if elements.is_none() && missing.is_empty() {
            missing = self::missing();
        }
        let elements = shape::in_force(&installed.plan, elements.unwrap_or_default()).len();
        Ok(Look { missing, elements: u64::try_from(elements).unwrap_or(u64::MAX) })
    }

    async fn sever(&self, those: &[Cut]) -> Result<(), GateError> {
        let mut cuts = self.cuts.lock().await;
        *cuts = true;
        self.nft.run("refuse connections", &cut::sever(those)).await
    }

    async fn lift(&self) -> Result<(), GateError> {
        let mut cuts = self.cuts.lock().await;
        self.nft.run("refuse connections no more", &cut::lift()).await?;
        *cuts = false;
        Ok(())
    }

    async fn remove(&self) -> Result<(), GateError> {
        let _installing = self.installing.lock().await;
        let mut installed = self.installed.lock().await;
        *installed = None;
        let ours = match self.listing().await {
            // That of somebody else stays.
            Err(GateError::ForeignTable) => String::new(),
            listing => listing?.map(|_| script::remove()).unwrap_or_default(),
        };
        let mut cuts = self.cuts.lock().await;
        *cuts = false;
        self.nft.run("remove the table", &(ours + &cut::lift())).await
    }
}

fn missing() -> Vec<String> {
    vec![format!("table {} is missing", render::TABLE)]
}
