//! What an installation changes, in which order, and how it is undone when it fails.

use super::blueprint::Blueprint;
use super::host::Host;
use super::kernel::Kernel;
use super::other_variant::OtherVariant;
use super::rules::Held;
use super::sets::{Made, Placed};
use super::{Holding, IptablesGate, Standing, families};
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::bounds::check_change;
use crate::gate::render::{self, OwnTable, TableName};
use crate::gate::saved::Saved;
use crate::gate::sets as set_names;
use crate::gate::sockets;
use crate::gate::types::{Change, Family, LiveElement, MAX_ELEMENT_SECONDS, Mode, Plan};

impl IptablesGate {
    /// Everything that [`Gate::install`] changes, in the order that locks nobody out: sets, then
    /// connection tracking, then its entries, then the rules. Returns what [`Self::tidy`] takes out.
    pub(super) async fn put_in_place(
        &self,
        host: &mut Host,
        other: &OtherVariant,
        blueprint: &Blueprint<'_>,
        made: &mut Vec<Made>,
    ) -> Result<Vec<Placed>, GateError> {
        let plan = blueprint.plan;
        let families: Vec<_> = families().collect();
        let in_sets = self.holding == Holding::InSets;
        if in_sets {
            for set in families.iter().flat_map(|family| set_names::wanted(*family, plan)) {
                made.extend(self.sets.make(set, set.size(plan))?);
            }
            host.report.changed |= !made.is_empty();
            if let Some(seconds) = plan.trial_seconds {
                for family in &families {
                    made.push(self.sets.armed(*family)?);
                    self.sets.arm(*family, seconds)?;
                }
            }
        }
        let batches = blueprint.batches(&host.rules);
        host.report.changed |= !batches.is_empty();
        let mut misplaced = Vec::new();
        if !batches.is_empty() {
            if in_sets {
                let here = host.rules.iter().map(|(family, saved)| (*family, saved));
                self.take_over(here.chain(other.rules()), plan).await?;
                misplaced = self.sets.relocate(&families, plan, made)?;
            }
            self.write_rules(host, blueprint, &batches).await?;
        }
        Ok(misplaced)
    }

    /// Takes away the elements and sets that nothing needs any more. Only once the rules have been
    /// read back: those before them, which an undoing brings back, need them.
    ///
    /// What can't be taken away does no harm to what stands, and the next installation tries again.
    pub(super) fn tidy(&self, host: &mut Host, plan: &Plan, misplaced: &[Placed]) {
        let families: Vec<_> = families().collect();
        let wanted = (self.holding == Holding::InSets).then_some(plan);
        let tidied = match self.sets.change(misplaced) {
            Ok(()) => self.sets.tidy(&families, wanted),
            Err(error) => Err(error),
        };
        match tidied {
            Ok(any) => host.report.changed |= any,
            Err(error) => {
                let why = with_causes(&error);
                host.report.warnings.push(format!("what isn't needed any more stays: {why}"));
            }
        }
    }

    async fn write_rules(
        &self,
        host: &mut Host,
        blueprint: &Blueprint<'_>,
        batches: &[(Family, String)],
    ) -> Result<(), GateError> {
        let plan = blueprint.plan;
        if plan.mode == Mode::Guard {
            for (family, saved) in &host.rules {
                if let Some(batch) = render::track(saved.table("mangle")) {
                    self.kernel.restore(*family, &batch).await?;
                }
            }
            // Only now: a connection that comes about from here on is tracked from its beginning.
            let mut connections = sockets::established(&sockets::read()?, &plan.guarded);
            // Where rules of ours judge a connection's packets already, it is tracked, or refused.
            connections.retain(|connection| {
                let family = Family::of(connection.local.ip());
                !host.rules.iter().any(|(of, saved)| {
                    *of == family && render::judges(saved.table("mangle"), connection)
                })
            });
            host.report.connections_kept = Kernel::enter(&connections)?;
        }
        for (family, batch) in batches {
            let discard = match plan.mode {
                // What tracked during the installation goes in the batch that tracks for good.
                Mode::Guard => render::DISCARD_TRACK,
                Mode::Open => "",
            };
            self.kernel.restore(*family, &format!("{batch}{discard}")).await?;
        }
        Ok(())
    }

    /// Reads back what is ours; all of it has to be there.
    pub(super) async fn read_back(&self, blueprint: &Blueprint<'_>) -> Result<Standing, GateError> {
        let mut standing = Vec::new();
        for family in families() {
            let saved = self.kernel.saved(family).await?;
            if let Some(what) = blueprint.missing(family, &saved) {
                return Err(GateError::NotThere { family, what });
            }
            standing.push((family, own_tables(&saved)));
        }
        Ok(standing)
    }

    /// Brings back what is ours to what it was. A family that fails doesn't keep the other from it.
    pub(super) async fn undo(
        &self,
        before: &[(Family, Saved)],
        made: &[Made],
    ) -> Result<(), GateError> {
        let mut undone = Ok(());
        let mut stuck = Vec::new();
        for (family, before) in before {
            if let Err(error) = self.bring_back(*family, before).await {
                stuck.push(*family);
                undone = undone.and(Err(error));
            }
        }
        // Rules that could not be taken out still ask for the sets. But a trial that was running
        // ends in its time, whatever rules stand.
        let is_due = |made: &&Made| !stuck.contains(&made.family()) || made.is_time_of_a_trial();
        made.iter().rev().filter(is_due).fold(undone, |done, made| done.and(self.sets.unmake(made)))
    }

    /// Brings back rules of ours.
    async fn bring_back(&self, family: Family, before: &Saved) -> Result<(), GateError> {
        let now = self.kernel.saved(family).await?;
        let batch: String = render::order(render::refusal_in(before.table("mangle")))
            .into_iter()
            .filter_map(|table| {
                let wanted = OwnTable::of(before.table(table.as_str()));
                render::transition(table, now.table(table.as_str()), &wanted)
            })
            .collect();
        if batch.is_empty() { Ok(()) } else { self.kernel.restore(family, &batch).await }
    }

    /// Takes over what is left of a gate that held its grants in rules.
    async fn take_over(
        &self,
        rules: impl Iterator<Item = (Family, &Saved)>,
        plan: &Plan,
    ) -> Result<(), GateError> {
        for (family, saved) in rules {
            let mut changes = admissions(&Held::in_saved(family, saved.clone()).live(None));
            changes.retain(|change| check_change(plan, change).is_ok());
            self.sets.apply(plan, &changes).await?;
        }
        Ok(())
    }
}

/// What admits these elements for as long as they are admitted now.
pub(super) fn admissions(live: &[LiveElement]) -> Vec<Change> {
    let admit = |live: &LiveElement| Change::Admit {
        element: live.element,
        seconds: live.seconds_left.saturating_add(1).min(MAX_ELEMENT_SECONDS),
    };
    live.iter().map(admit).collect()
}

fn own_tables(saved: &Saved) -> Vec<(TableName, OwnTable)> {
    TableName::ALL.map(|table| (table, OwnTable::of(saved.table(table.as_str())))).to_vec()
}
