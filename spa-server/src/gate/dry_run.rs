//! The back-end that touches nothing: it says what the default one would do, in the log and to
//! whoever installs it, and remembers for how long it would have admitted what.

use super::bounds::{check_change, check_plan};
use super::render::{self, Armed, Grants, Layout, TableName};
use super::saved::SavedTable;
use super::types::{
    Backend, Change, Connection, Cut, Doubt, Element, Family, InstallReport, LiveElement, Look,
    Plan,
};
use super::{Gate, GateError, ToolOverrides, Tools, leftover, sets};
use crate::clock::{BootMicros, Now};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Nothing: it says what it would do.
#[derive(Debug, Default)]
pub struct DryRunGate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    /// Until when each element would be admitted.
    elements: BTreeMap<Element, BootMicros>,
}

impl DryRunGate {
    /// A gate that nobody notices.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn report(plan: &Plan, is_known: bool) -> Result<InstallReport, GateError> {
        check_plan(plan)?;
        let mut warnings = vec![
            "backend = \"dry-run\": nothing is hidden and nothing opens; what would be done is said only".to_owned(),
        ];
        let tools = Tools::find_some(&ToolOverrides::default());
        for backend in [Backend::Ipset, Backend::Nftables] {
            if leftover::stands(backend, &tools).await {
                warnings.push(format!(
                    "a gate of {backend} still stands and hides the ports, which nothing opens now; `spa-server gate remove` takes it away"
                ));
            }
        }
        Ok(InstallReport {
            changed: !is_known,
            warnings,
            differences: if is_known { Vec::new() } else { script(plan) },
            ..InstallReport::default()
        })
    }
}

/// The rules and sets that the default back-end makes for this plan where there are none: what its
/// tools would be given, line by line.
pub(super) fn script(plan: &Plan) -> Vec<String> {
    let armed = if plan.trial_seconds.is_some() { Armed::BySet } else { Armed::ForGood };
    lines(plan, Grants::InSets, armed)
}

/// The same of the back-end that has no sets.
pub(super) fn script_without_sets(plan: &Plan) -> Vec<String> {
    let until =
        |seconds: u32| Armed::Until(Now::read().realtime.as_secs().saturating_add(seconds.into()));
    lines(plan, Grants::InRules(&[]), plan.trial_seconds.map_or(Armed::ForGood, until))
}

fn lines(plan: &Plan, grants: Grants<'_>, armed: Armed) -> Vec<String> {
    let mut lines = Vec::new();
    for family in Family::ALL {
        let (restore, empty) = (restore_name(family), SavedTable::default());
        if let Grants::InSets = grants {
            lines.extend(sets::wanted(family, plan).iter().map(|set| {
                let (kind, size) = (set.kind().as_str(), set.size(plan));
                format!("ipset: create {set} {kind} maxelem {size} timeout 0")
            }));
        }
        let layout =
            Layout { family, plan, knock_ports: &plan.knock_ports, grants, armed, cut: &[] };
        for table in TableName::ALL {
            let wanted = render::wanted(table, &layout);
            let text = render::transition(table, &empty, &wanted).unwrap_or_default();
            lines.extend(text.lines().map(|line| format!("{restore}: {line}")));
        }
    }
    lines
}

const fn restore_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    }
}

impl Gate for DryRunGate {
    fn backend(&self) -> Backend {
        Backend::DryRun
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let is_known = self.state().plan.as_ref() == Some(plan);
        let report = Self::report(plan, is_known).await?;
        for line in &report.differences {
            tracing::info!("dry run: {line}");
        }
        self.state().plan = Some(plan.clone());
        Ok(report)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let mut state = self.state();
        let plan = state.plan.as_ref().ok_or(GateError::NotInstalled)?;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        for change in changes {
            match *change {
                Change::Admit { element, seconds } => {
                    tracing::info!("dry run: {element} would be admitted for {seconds} s");
                    let time = Duration::from_secs(seconds.into());
                    state.elements.insert(element, BootMicros::now().saturating_add(time));
                }
                Change::Withdraw { element } => {
                    tracing::info!("dry run: {element} would be admitted no longer");
                    state.elements.remove(&element);
                }
            }
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        let mut state = self.state();
        if state.plan.is_none() {
            return Err(GateError::NotInstalled);
        }
        let now = BootMicros::now();
        state.elements.retain(|_, until| *until > now);
        let live = state.elements.iter().map(|(element, until)| LiveElement {
            element: *element,
            seconds_left: u32::try_from(until.since(now).as_secs()).unwrap_or(u32::MAX),
        });
        Ok(live.collect())
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let is_known = self.state().plan.as_ref() == Some(plan);
        Self::report(plan, is_known).await
    }

    /// What isn't there can't be disturbed.
    async fn disturbed(&self) -> Doubt {
        std::future::pending().await
    }

    async fn look(&self, _doubt: Doubt) -> Result<Look, GateError> {
        let elements = self.snapshot().await?.len();
        Ok(Look { missing: Vec::new(), elements: u64::try_from(elements).unwrap_or(u64::MAX) })
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        for Cut { connection: Connection { transport, peer, local }, .. } in cuts {
            tracing::info!("dry run: the {transport} connection of {peer} to {local} would be cut");
        }
        Ok(())
    }

    async fn lift(&self) -> Result<(), GateError> {
        Ok(())
    }

    async fn remove(&self) -> Result<(), GateError> {
        *self.state() = State::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Guarded, Mode, Refusal};

    fn plan() -> Plan {
        Plan {
            mode: Mode::Guard,
            refusal: Refusal::Drop,
            guarded: vec![Guarded::plain("tcp/22".parse().unwrap())],
            knock_ports: vec![62201],
            always_admit: Vec::new(),
            max_elements: 100,
            trial_seconds: None,
        }
    }

    #[tokio::test]
    async fn it_says_what_it_would_do_and_lets_time_run() {
        let gate = DryRunGate::new();
        let element =
            Element { source: "192.0.2.7".parse().unwrap(), ports: "tcp/22".parse().unwrap() };
        let admit = |seconds| [Change::Admit { element, seconds }];
        assert!(matches!(gate.apply(&admit(9)).await, Err(GateError::NotInstalled)));
        assert!(matches!(gate.snapshot().await, Err(GateError::NotInstalled)));
        let report = gate.install(&plan()).await.unwrap();
        assert!(report.changed && report.warnings[0].contains("nothing opens"), "{report:?}");
        let said = report.differences.join("\n");
        for part in
            ["ipset: create spa4 ", "\niptables-restore: *mangle\n", "\nip6tables-restore: COMMIT"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        let again = gate.install(&plan()).await.unwrap();
        assert!(!again.changed && again.differences.is_empty());

        gate.apply(&admit(600)).await.unwrap();
        let live = gate.snapshot().await.unwrap();
        assert!((300..=600).contains(&live[0].seconds_left), "{live:?}");
        assert_eq!(gate.look(Doubt::Everything).await.unwrap().elements, 1);
        gate.apply(&admit(1)).await.unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while gate.look(Doubt::Elements).await.unwrap().elements > 0 {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        gate.apply(&admit(600)).await.unwrap();
        gate.apply(&[Change::Withdraw { element }]).await.unwrap();
        assert!(gate.snapshot().await.unwrap().is_empty());
        let other = Element { ports: "tcp/23".parse().unwrap(), ..element };
        let refused = gate.apply(&[Change::Admit { element: other, seconds: 9 }]).await;
        assert!(matches!(refused, Err(GateError::NotGuarded(_))));
        gate.remove().await.unwrap();
        assert!(gate.examine(&plan()).await.unwrap().changed);
    }
}
