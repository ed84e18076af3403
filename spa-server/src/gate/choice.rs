//! Which back-end it is: the one that the configuration names, or the first that works here; and
//! what becomes of the gates of the others.

use super::any::AnyGate;
use super::bounds::check_change;
use super::types::{Backend, Change, InstallReport, Plan};
use super::{DryRunGate, Gate, GateError, HookGate, IptablesGate, NftablesGate, Tools};
use crate::causes::with_causes;
use crate::config::GateSettings;
use crate::netlink::ipset::Ipset;
use crate::process::Run;
use std::collections::BTreeSet;
use std::fmt;

/// The order in which [`Backend::Auto`] looks for one that works: the cheaper for each packet and
/// each grant the earlier.
const IN_ORDER: [Backend; 3] = [Backend::Ipset, Backend::Nftables, Backend::Iptables];

/// A back-end, and why no earlier one.
#[derive(Debug)]
pub struct Choice {
    /// The gate. Nothing is installed yet.
    pub gate: AnyGate,
    /// What was looked at before, and can't be used.
    pub passed_over: Vec<PassedOver>,
}

/// A back-end that can't be used here.
#[derive(Debug)]
pub struct PassedOver {
    /// Which one.
    pub backend: Backend,
    /// Why not.
    pub why: GateError,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, with_causes(&self.why))
    }
}

impl AnyGate {
    /// The back-end that the settings ask for: with [`Backend::Auto`] the first that could install
    /// this plan here. Nothing is touched.
    ///
    /// # Errors
    ///
    /// It can't work here, or none can, and the error says what is missing. A tool that the
    /// administrator has named and that isn't there is an error too: it was wanted.
    pub async fn choose(settings: &GateSettings, plan: &Plan) -> Result<Choice, GateError> {
        if settings.backend != Backend::Auto {
            let gate = Self::of(settings.backend, settings)?;
            refuse_stranded(settings.backend, settings).await?;
            return Ok(Choice { gate, passed_over: Vec::new() });
        }
        let mut passed_over = Vec::new();
        for backend in IN_ORDER {
            match Self::try_out(backend, settings, plan).await {
                Ok(gate) => return Ok(Choice { gate, passed_over }),
                Err(GateError::Missing(missing)) if missing.at.is_some() => {
                    return Err(missing.into());
                }
                Err(why) => passed_over.push(PassedOver { backend, why }),
            }
        }
        Err(GateError::NoBackend(passed_over))
    }

    /// One back-end, whatever else there is.
    ///
    /// # Errors
    ///
    /// Its tools are missing, or it isn't configured.
    pub fn of(backend: Backend, settings: &GateSettings) -> Result<Self, GateError> {
        match backend {
            Backend::Ipset => Ok(Self::Ipset(IptablesGate::new(Tools::find(&settings.tools)?))),
            Backend::Iptables => {
                Ok(Self::Iptables(IptablesGate::without_sets(Tools::find(&settings.tools)?)))
            }
            Backend::Hook => match &settings.hook {
                Some(hook) => Ok(Self::Hook(HookGate::new(hook.clone())?)),
                None => Err(GateError::NotConfigured(Backend::Hook)),
            },
            Backend::Nftables => Ok(Self::Nftables(NftablesGate::new(&settings.tools)?)),
            Backend::DryRun => Ok(Self::DryRun(DryRunGate::new())),
            Backend::Auto => Err(GateError::NoSuchBackend(Backend::Auto)),
        }
    }

    async fn try_out(
        backend: Backend,
        settings: &GateSettings,
        plan: &Plan,
    ) -> Result<Self, GateError> {
        let gate = Self::of(backend, settings)?;
        refuse_stranded(backend, settings).await?;
        gate.examine(plan).await?;
        Ok(gate)
    }

    /// Installs this gate in the place of those of other back-ends of ours: with what they still
    /// admit, and without a moment in which none stands.
    ///
    /// # Errors
    ///
    /// As [`Gate::install`]; the others still stand.
    pub async fn install_in_place(
        &self,
        settings: &GateSettings,
        plan: &Plan,
    ) -> Result<InstallReport, GateError> {
        // Before: a gate with rules of the same names replaces what the other one has.
        let mut admitted = Vec::new();
        for backend in [Backend::Ipset, Backend::Iptables, Backend::Nftables, Backend::Hook] {
            let other = Self::of(backend, settings).ok().filter(|_| backend != self.backend());
            if let Some(other) = other {
                admitted.extend(other.snapshot().await.unwrap_or_default());
            }
        }
        let mut report = self.install(plan).await?;
        let known: BTreeSet<_> =
            self.snapshot().await?.into_iter().map(|live| live.element).collect();
        let changes = admitted.into_iter().filter(|live| !known.contains(&live.element));
        let changes: Vec<_> = changes
            .map(|live| Change::Admit { element: live.element, seconds: live.seconds_left })
            // What is over, or no service any more, ends here.
            .filter(|change| check_change(plan, change).is_ok())
            .collect();
        if let Err(error) = self.apply(&changes).await {
            let why = with_causes(&error);
            report.warnings.push(format!("what was open before can't be opened again: {why}"));
        }
        report.warnings.extend(self.remove_others(settings).await);
        Ok(report)
    }

    /// Takes away the gates of other back-ends of ours: for when this one stands and admits what it
    /// should. Says what did not work.
    pub async fn remove_others(&self, settings: &GateSettings) -> Vec<String> {
        let mut complaints = Vec::new();
        for other in others(self.backend(), settings) {
            let backend = other.backend();
            if let Err(error) = other.remove().await {
                let why = with_causes(&error);
                complaints.push(format!("what {backend} has left can't be taken away: {why}"));
            }
        }
        complaints
    }

    /// Takes away the gates of all back-ends. One that fails keeps no other from being removed.
    ///
    /// # Errors
    ///
    /// Something may still be there.
    pub async fn remove_all(settings: &GateSettings) -> Result<(), GateError> {
        let mut result = Ok(());
        for gate in removable(settings) {
            result = result.and(gate.remove().await);
        }
        result
    }
}

/// A gate beside rules of ours that nobody can change any more would open nothing: a packet has to
/// pass both. So is a host whose iptables was taken away under a gate.
async fn refuse_stranded(backend: Backend, settings: &GateSettings) -> Result<(), GateError> {
    let tools = Tools::find_some(&settings.tools);
    if matches!(rules_of(backend), Backend::Ipset | Backend::DryRun) || tools.have_iptables() {
        return Ok(());
    }
    // Sets tell of the rules that use them. Rules without sets can be seen if they are iptables-nft's.
    let is_there = |sets: &mut Ipset, name| sets.info(name).is_ok_and(|found| found.is_some());
    let has_sets = Ipset::open()
        .is_ok_and(|mut sets| ["spa4", "spa6"].into_iter().any(|name| is_there(&mut sets, name)));
    let has_chains = match &tools.nft {
        Some(nft) => {
            let listed = Run::new(nft, &["list", "chains"]).output().await;
            listed.is_ok_and(|chains| chains.contains("SPA-GUARD"))
        }
        None => false,
    };
    if has_sets || has_chains { Err(GateError::Stranded) } else { Ok(()) }
}

/// The gates that may have been left beside one of this back-end.
fn others(kept: Backend, settings: &GateSettings) -> Vec<AnyGate> {
    if kept == Backend::DryRun {
        return Vec::new();
    }
    let mut all = removable(settings);
    all.retain(|gate| rules_of(gate.backend()) != rules_of(kept));
    all
}

/// Back-ends with rules of the same names replace each other's when they are installed; to remove
/// the one would be to remove the other.
const fn rules_of(backend: Backend) -> Backend {
    match backend {
        Backend::Iptables => Backend::Ipset,
        other => other,
    }
}

/// One gate for each kind of rules that can be there: without its tools nobody has made them.
fn removable(settings: &GateSettings) -> Vec<AnyGate> {
    let mut all = Vec::new();
    let tools = Tools::find_some(&settings.tools);
    if tools.have_iptables() {
        all.push(AnyGate::Ipset(IptablesGate::new(tools)));
    }
    let rest = [Backend::Nftables, Backend::Hook];
    all.extend(rest.into_iter().filter_map(|backend| AnyGate::of(backend, settings).ok()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Guarded, Mode, Refusal};
    use crate::gate::{CommandLine, HookSettings, ToolOverrides};
    use std::path::Path;
    use std::time::Duration;

    fn settings(backend: Backend) -> GateSettings {
        GateSettings {
            mode: Mode::Guard,
            refuse: Refusal::Drop,
            backend,
            always_admit: Vec::new(),
            tools: ToolOverrides::default(),
            hook: None,
        }
    }

    fn hook(directory: &Path) -> HookSettings {
        let line = CommandLine::parse(&["/bin/true".to_owned()]).unwrap();
        HookSettings {
            open: line.clone(),
            close: line,
            refresh: false,
            time_limit: Duration::from_secs(10),
            directory: directory.join("hook"),
        }
    }

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
    async fn what_is_named_is_taken_and_nothing_else() {
        let dry = AnyGate::choose(&settings(Backend::DryRun), &plan()).await.unwrap();
        assert_eq!((dry.gate.backend(), dry.passed_over.len()), (Backend::DryRun, 0));
        let error = AnyGate::choose(&settings(Backend::Hook), &plan()).await.unwrap_err();
        assert!(error.to_string().contains("[gate.hook]"), "{error}");
        let state = tempfile::tempdir().unwrap();
        let settings = GateSettings { hook: Some(hook(state.path())), ..settings(Backend::Hook) };
        let chosen = AnyGate::choose(&settings, &plan()).await.unwrap();
        assert_eq!(chosen.gate.backend(), Backend::Hook);
    }

    #[tokio::test]
    async fn a_tool_that_was_named_and_is_missing_is_told_and_not_passed_over() {
        let mut settings = settings(Backend::Auto);
        settings.tools.iptables_save = Some("/nowhere/iptables-save".into());
        let error = AnyGate::choose(&settings, &plan()).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/iptables-save"), "{error}");
    }

    #[test]
    fn nobody_takes_away_the_rules_that_he_shares() {
        let state = tempfile::tempdir().unwrap();
        let settings = GateSettings { hook: Some(hook(state.path())), ..settings(Backend::Auto) };
        let left = |kept| {
            let others = others(kept, &settings);
            others.iter().map(Gate::backend).collect::<Vec<_>>()
        };
        for kept in [Backend::Ipset, Backend::Iptables] {
            assert!(!left(kept).contains(&Backend::Ipset) && left(kept).contains(&Backend::Hook));
        }
        assert!(left(Backend::Hook).contains(&Backend::Ipset));
        assert!(!left(Backend::Hook).contains(&Backend::Hook));
        assert!(left(Backend::DryRun).is_empty(), "it touches nothing");
    }
}
