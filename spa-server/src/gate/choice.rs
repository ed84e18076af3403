//! Which back-end it is: the one that the configuration names, or the first that works here; and
//! what becomes of the gates of the others.

use super::any::AnyGate;
use super::bounds::check_change;
use super::types::{Backend, Change, InstallReport, Plan};
use super::{DryRunGate, Gate, GateError, HookGate, IptablesGate, NftablesGate, Tools, leftover};
use crate::causes::with_causes;
use crate::config::GateSettings;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// The order in which [`Backend::Auto`] looks for one that works: the cheaper for each packet and
/// each grant the earlier.
const IN_ORDER: [Backend; 3] = [Backend::Ipset, Backend::Nftables, Backend::Iptables];
/// How long until it is tried again to take away what hook commands have open.
const HOOKS_AGAIN: Duration = Duration::from_secs(60);
/// The same of rules, which refuse until then.
const RULES_AGAIN: Duration = Duration::from_secs(5);

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
    /// administrator has named and that isn't there is an error too: it was wanted. So is what may
    /// pass while the gate of that back-end stands: it is what admits, and another one beside it
    /// would not.
    pub async fn choose(settings: &GateSettings, plan: &Plan) -> Result<Choice, GateError> {
        if settings.backend != Backend::Auto {
            let gate = Self::of(settings.backend, settings)?;
            if settings.backend != Backend::DryRun {
                refuse_stranded(settings.backend, settings).await?;
            }
            return Ok(Choice { gate, passed_over: Vec::new() });
        }
        let mut passed_over = Vec::new();
        for backend in IN_ORDER {
            match Self::try_out(backend, settings, plan).await {
                Ok(gate) => return Ok(Choice { gate, passed_over }),
                Err(GateError::Missing(missing)) if missing.at.is_some() => {
                    return Err(missing.into());
                }
                Err(why) if may_pass(&why) && stands(backend, settings).await => return Err(why),
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
        for other in others(self.backend(), settings).await {
            complaints.extend(take_away(other).await);
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
        for gate in removable(settings).await {
            result = result.and(gate.remove().await);
        }
        // Of the others, whose tools aren't there.
        result.and(refuse_stranded(Backend::Hook, settings).await)
    }
}

/// Takes a gate away, and says why not if that doesn't work. It is tried again for as long as this
/// process lives.
async fn take_away(gate: AnyGate) -> Option<String> {
    let error = gate.remove().await.err()?;
    let complaint =
        format!("what {} has left can't be taken away: {}", gate.backend(), with_causes(&error));
    // A kernel without nf_tables has nothing of them.
    if !matches!(error, GateError::NoNftables { .. }) {
        tokio::spawn(take_away_later(gate));
    }
    Some(complaint)
}

/// What hook commands have open no kernel closes, and this gate is the only one who still can.
/// Rules refuse what the gate lets in that has taken their place.
async fn take_away_later(gate: AnyGate) {
    let backend = gate.backend();
    let (every, harm) = match backend {
        Backend::Hook => (HOOKS_AGAIN, "what is over stays open"),
        _ => (RULES_AGAIN, "nobody may be let in until it is"),
    };
    let mut is_told = false;
    loop {
        tokio::time::sleep(every).await;
        let Err(error) = gate.remove().await else { break };
        if !is_told {
            tracing::error!(
                "what {backend} has left still can't be taken away, and {harm}; it is tried every {} seconds: {}",
                every.as_secs(),
                with_causes(&error)
            );
            is_told = true;
        }
    }
    tracing::warn!("what {backend} has left is taken away now");
}

async fn stands(backend: Backend, settings: &GateSettings) -> bool {
    leftover::stands(backend, &Tools::find_some(&settings.tools)).await
}

/// A gate beside rules of ours that nobody can change any more would open nothing: a packet has to
/// pass both. So is a host whose tools were taken away under a gate.
async fn refuse_stranded(backend: Backend, settings: &GateSettings) -> Result<(), GateError> {
    let tools = Tools::find_some(&settings.tools);
    for (of, kind, have_tools) in [
        ("iptables", Backend::Ipset, tools.have_iptables()),
        ("nftables", Backend::Nftables, Tools::find_nft(&settings.tools).is_ok()),
    ] {
        let is_its_own = rules_of(backend) == kind;
        if !is_its_own && !have_tools && leftover::stands(kind, &tools).await {
            return Err(GateError::Stranded { of });
        }
    }
    Ok(())
}

/// Whether it may be otherwise in a moment: a tool that hangs or can't be started, a kernel that
/// doesn't answer.
fn may_pass(why: &GateError) -> bool {
    match why {
        GateError::Tool { .. } => true,
        GateError::Netlink(error) => error.refusal().is_none(),
        _ => false,
    }
}

/// The gates that may have been left beside one of this back-end.
async fn others(kept: Backend, settings: &GateSettings) -> Vec<AnyGate> {
    if kept == Backend::DryRun {
        return Vec::new();
    }
    let mut all = removable(settings).await;
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

/// One gate for each kind of rules that can be taken away.
async fn removable(settings: &GateSettings) -> Vec<AnyGate> {
    let mut all = Vec::new();
    let tools = Tools::find_some(&settings.tools);
    let some_do = tools.have_some_of_iptables();
    if tools.have_iptables() || some_do && leftover::stands(Backend::Ipset, &tools).await {
        all.push(AnyGate::Ipset(IptablesGate::new(tools)));
    }
    let rest = [Backend::Nftables, Backend::Hook];
    all.extend(rest.into_iter().filter_map(|backend| AnyGate::of(backend, settings).ok()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Element, Guarded, Mode, Refusal};
    use crate::gate::{CommandLine, HookSettings, ToolOverrides};
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

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

    #[tokio::test]
    async fn what_hook_commands_have_open_is_closed_though_another_backend_has_come() {
        let state = tempfile::tempdir().unwrap();
        let trouble = state.path().join("trouble");
        fs::write(&trouble, "").unwrap();
        let script = format!("[ $SPA_ACTION = open ] || [ ! -e {} ]", trouble.display());
        let words = ["/bin/sh", "-c", &script].map(str::to_owned);
        let line = CommandLine::parse(&words).unwrap();
        let hook = HookSettings { open: line.clone(), close: line, ..hook(state.path()) };
        let settings = GateSettings { hook: Some(hook), ..settings(Backend::Hook) };
        let open = || async {
            let gate = AnyGate::of(Backend::Hook, &settings).unwrap();
            gate.install(&plan()).await.unwrap();
            let element =
                Element { source: "192.0.2.7".parse().unwrap(), ports: "tcp/22".parse().unwrap() };
            gate.apply(&[Change::Admit { element, seconds: 600 }]).await.unwrap();
        };
        let left = || fs::read_dir(state.path().join("hook")).map_or(0, Iterator::count);
        open().await;
        let complaint = take_away(AnyGate::of(Backend::Hook, &settings).unwrap()).await.unwrap();
        assert!(complaint.starts_with("what hook has left can't be taken away: "), "{complaint}");
        assert_eq!(left(), 1);
        fs::remove_file(&trouble).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while left() > 0 {
            assert!(std::time::Instant::now() < deadline, "nobody closes it any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn rules_are_taken_away_though_their_tool_has_failed_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // Lists no table, and notes what it is given to carry out.
        let script = format!(
            "#!/bin/sh\n[ ! -e {trouble} ] || {{ echo 'out of luck' >&2; exit 7; }}\n\
             [ \"$1\" = -f ] && exec cat >>{done}\n\
             echo 'No such file or directory' >&2; exit 1\n",
            trouble = path("trouble").display(),
            done = path("done").display(),
        );
        fs::write(path("nft"), script).unwrap();
        fs::set_permissions(path("nft"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path("trouble"), "").unwrap();
        let tools = ToolOverrides { nft: Some(path("nft")), ..ToolOverrides::default() };
        let settings = GateSettings { tools, ..settings(Backend::Nftables) };
        let gate = AnyGate::of(Backend::Nftables, &settings).unwrap();
        let complaint = take_away(gate).await.unwrap();
        assert!(complaint.contains("nftables has left can't be taken away: "), "{complaint}");
        assert!(complaint.contains("out of luck"), "{complaint}");
        assert!(!path("done").exists());
        fs::remove_file(path("trouble")).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !path("done").exists() {
            assert!(std::time::Instant::now() < deadline, "nobody takes it away any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn nobody_takes_away_the_rules_that_he_shares() {
        let state = tempfile::tempdir().unwrap();
        let settings = GateSettings { hook: Some(hook(state.path())), ..settings(Backend::Auto) };
        let left = async |kept| {
            let others = others(kept, &settings).await;
            others.iter().map(Gate::backend).collect::<Vec<_>>()
        };
        for kept in [Backend::Ipset, Backend::Iptables] {
            let left = left(kept).await;
            assert!(!left.contains(&Backend::Ipset) && left.contains(&Backend::Hook));
        }
        assert!(left(Backend::Hook).await.contains(&Backend::Ipset));
        assert!(!left(Backend::Hook).await.contains(&Backend::Hook));
        assert!(left(Backend::DryRun).await.is_empty(), "it touches nothing");
    }
}
