//! Judges what the worker asks of the helper: it may have been taken over.
//!
//! What is judged against is the configuration that the helper has read itself, and the last word of
//! root's. It touches no gate.

use super::ordered::{OrderFile, Ordered};
use super::permits::Permits;
use super::{HelperAnswer, HelperRequest};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{Settings, client_rules};
use crate::gate::{Change, Connection, Cut, Element, GateAnswer, GateRequest, Guarded, Plan};
use crate::gate_record::GateRecord;
use crate::trial::TrialState;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much later than the administrator the worker may think that a trial ends: it reads the
/// configuration in between.
const SLACK: Duration = Duration::from_secs(120);

/// How many connections are remembered that were found.
const MOST_FOUND: usize = 262_144;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Warden {
    config: PathBuf,
    /// By the configuration that this process began with: what of it holds until the next start.
    knock_ports: Vec<u16>,
    orders: OrderFile,
    record: Arc<GateRecord>,
    started: BootMicros,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the gate is to guard; never on trial.
    plan: Plan,
    /// By a configuration that was read since, until it is installed.
    next: Option<Plan>,
    /// All that was ever to be guarded: connections to it are ours to end.
    guarded: HashSet<Guarded>,
    /// What clients may have by the configuration that the worker began with, or has told of last.
    in_force: Reading,
    /// By one that was read since.
    newer: Option<Permits>,
    /// Whether this process has put up a gate.
    has_installed: bool,
    /// When it last put up one that stands for good.
    for_good: Option<BootMicros>,
    /// Connections that it has found itself, of which the worker was told.
    found: HashSet<Cut>,
}

impl State {
    fn seconds(&mut self, element: Element, wanted: u32) -> Option<u32> {
        let newer = self.newer.as_ref().and_then(|newer| newer.seconds(element, wanted));
        newer.max(self.in_force.done().seconds(element, wanted))
    }

    fn expect(&mut self, plan: Plan) {
        self.guarded.extend(plan.guarded.iter().copied());
        self.next = (plan != self.plan).then_some(plan);
    }

    fn judge_guarded(&self, guarded: &[Guarded]) -> Result<(), Refusal> {
        match guarded.iter().find(|guarded| !self.guarded.contains(guarded)) {
            None => Ok(()),
            Some(stranger) => Err(format!("no service has the ports {}", stranger.ports)),
        }
    }

    /// Whether the trial that was ordered then has ended in a gate that stands for good.
    fn is_over(&self, ordered: BootMicros) -> bool {
        self.for_good.is_some_and(|since| since >= ordered)
    }

    fn judge_cuts(&self, cuts: &[Cut]) -> Result<(), Refusal> {
        // Where a connection is answered follows from nothing that a configuration says: a container's
        // port may be any.
        match cuts.iter().find(|cut| !self.found.contains(cut)) {
            None => Ok(()),
            Some(Cut { connection: Connection { peer, local, .. }, .. }) => {
                Err(format!("the gate helper has found no connection of {peer} to {local}"))
            }
        }
    }
}

/// A hundred thousand files take a while.
#[derive(Debug)]
enum Reading {
    On(JoinHandle<Permits>),
    Done(Permits),
}

/// Why something is not done.
type Refusal = String;

impl Warden {
    pub(super) fn new(
        config: &Path,
        settings: Settings,
        orders: OrderFile,
        record: Arc<GateRecord>,
    ) -> Self {
        let (plan, knock_ports) = (settings.gate_plan(), settings.knock_ports.clone());
        // Not behind all others: the first knock may wait for it.
        let reading = std::thread::Builder::new().name("permits".into());
        let permits = reading
            .spawn(move || permits(&settings).unwrap_or_default())
            .map_or_else(|_| Reading::Done(Permits::default()), Reading::On);
        let guarded = plan.guarded.iter().copied().collect();
        Self {
            config: config.into(),
            knock_ports,
            orders,
            record,
            started: BootMicros::now(),
            state: Mutex::new(State {
                plan,
                next: None,
                guarded,
                in_force: permits,
                newer: None,
                has_installed: false,
                for_good: None,
                found: HashSet::new(),
            }),
        }
    }

    /// Judges a request; what is too much of a time is cut, and what nobody may have taken out, which the
    /// other value tells.
    pub(super) fn judge(
        &self,
        request: HelperRequest,
    ) -> Result<(HelperRequest, Option<Refusal>), Refusal> {
        if let HelperRequest::Gate(GateRequest::Apply(mut changes)) = request {
            let refused = self.judge_changes(&mut changes);
            return Ok((HelperRequest::Gate(GateRequest::Apply(changes)), refused));
        }
        self.judge_whole(request).map(|request| (request, None))
    }

    fn judge_whole(&self, request: HelperRequest) -> Result<HelperRequest, Refusal> {
        match request {
            HelperRequest::Gate(request) => self.judge_gate(request).map(HelperRequest::Gate),
            HelperRequest::List { ref guarded, .. }
            | HelperRequest::Established { ref guarded, .. } => {
                self.state().judge_guarded(guarded).map(|()| request)
            }
            HelperRequest::End { ref guarded, ref established, .. } => {
                let state = self.state();
                state.judge_guarded(guarded)?;
                state.judge_cuts(established).map(|()| request)
            }
            HelperRequest::RemoveOthers if self.state().has_installed => Ok(request),
            HelperRequest::RemoveOthers => {
                Err("another gate is taken away only when this one stands".into())
            }
            HelperRequest::TalkedTo(_) | HelperRequest::Disturbed => Ok(request),
            HelperRequest::Reread => {
                self.reread();
                Ok(request)
            }
        }
    }

    /// Notes what came of what was asked.
    pub(super) fn note(&self, asked: &HelperRequest, answer: &HelperAnswer) {
        let mut state = self.state();
        match (asked, answer) {
            (
                HelperRequest::Gate(GateRequest::Install(plan)),
                HelperAnswer::Gate(GateAnswer::Installed(_)),
            ) => {
                state.has_installed = true;
                if plan.trial_seconds.is_none() {
                    state.for_good = Some(BootMicros::now());
                }
                let plan = for_good(plan);
                if state.next.as_ref() == Some(&plan) {
                    // Who goes back to the one before would guard less, perhaps.
                    state.plan = plan;
                    state.next = None;
                }
            }
            (HelperRequest::Established { .. }, HelperAnswer::Cuts(cuts)) => {
                if state.found.len() > MOST_FOUND {
                    // Whoever is still to be refused is found again.
                    state.found.clear();
                }
                state.found.extend(cuts);
            }
            _ => {}
        }
    }

    fn judge_gate(&self, request: GateRequest) -> Result<GateRequest, Refusal> {
        match request {
            GateRequest::Install(ref plan) | GateRequest::Examine(ref plan) => {
                self.judge_plan(plan)?;
                if let (GateRequest::Install(_), Some(seconds)) = (&request, plan.trial_seconds) {
                    self.judge_trial(seconds)?;
                }
                Ok(request)
            }
            GateRequest::Sever(ref cuts) => self.state().judge_cuts(cuts).map(|()| request),
            GateRequest::Remove => self.judge_removal().map(|()| request),
            // Changes are judged one by one.
            GateRequest::Apply(_)
            | GateRequest::Snapshot
            | GateRequest::Look(_)
            | GateRequest::Lift => Ok(request),
        }
    }

    fn judge_plan(&self, plan: &Plan) -> Result<(), Refusal> {
        let plan = for_good(plan);
        let is_known = || {
            let state = self.state();
            state.plan == plan || state.next.as_ref() == Some(&plan)
        };
        if is_known() {
            return Ok(());
        }
        self.read_clients();
        if is_known() {
            return Ok(());
        }
        Err(format!(
            "the gate helper reads another configuration in {} than the daemon did: has it changed meanwhile? Reload again",
            self.config.display()
        ))
    }

    fn judge_trial(&self, seconds: u32) -> Result<(), Refusal> {
        let ends = BootMicros::now().saturating_add(Duration::from_secs(seconds.into()));
        match self.orders.read() {
            Some(Ordered::Trial { at, until })
                if ends <= until.saturating_add(SLACK) && self.is_on_trial_since(at) =>
            {
                Ok(())
            }
            _ => Err("no administrator has ordered a trial of the gate, or not for so long; `spa-server gate install --trial` does".into()),
        }
    }

    /// Whether what was ordered then holds: no gate stands for good since, by this process or one before.
    fn is_on_trial_since(&self, ordered: BootMicros) -> bool {
        !self.state().is_over(ordered) && self.record.trial(BootMicros::now()) != TrialState::None
    }

    fn judge_removal(&self) -> Result<(), Refusal> {
        match self.orders.read() {
            // One that was given to the daemon before this one was for that one: it is up again.
            Some(Ordered::Removed { at }) if at >= self.started => Ok(()),
            Some(Ordered::Trial { at, until })
                if until <= BootMicros::now() && self.is_on_trial_since(at) =>
            {
                Ok(())
            }
            _ => Err("no administrator has ordered the gate to be removed; `spa-server gate remove` does, also without the daemon".into()),
        }
    }

    /// Takes out what nobody may have, and says so: the others are not to wait for it.
    fn judge_changes(&self, changes: &mut Vec<Change>) -> Option<Refusal> {
        let mut has_reread = false;
        let mut refused = None;
        changes.retain_mut(|change| {
            let Change::Admit { element, seconds } = change else { return true };
            let mut permitted = self.state().seconds(*element, *seconds);
            if permitted.is_none() && !std::mem::replace(&mut has_reread, true) {
                // The worker may know of a client that has come since.
                self.read_clients();
                permitted = self.state().seconds(*element, *seconds);
            }
            let Some(permitted) = permitted else {
                refused = Some(format!(
                    "the gate helper admits no {element}: no client of {} may have it",
                    self.config.display()
                ));
                return false;
            };
            *seconds = permitted;
            true
        });
        refused
    }

    /// The worker has another configuration in force.
    fn reread(&self) {
        let Some((permits, plan)) = self.read() else { return };
        let mut state = self.state();
        state.in_force = Reading::Done(permits);
        state.newer = None;
        state.expect(plan);
    }

    /// Looks who there is by now, and what is to be guarded. Those of the configuration that is in force
    /// stay: the worker may not have read this one, or have refused it.
    fn read_clients(&self) {
        let Some((permits, plan)) = self.read() else { return };
        let mut state = self.state();
        state.newer = Some(permits);
        state.expect(plan);
    }

    /// A configuration that can't be read changes nothing.
    fn read(&self) -> Option<(Permits, Plan)> {
        match Settings::load(&self.config) {
            Ok(settings) => {
                let settings = Settings { knock_ports: self.knock_ports.clone(), ..settings };
                Some((permits(&settings)?, settings.gate_plan()))
            }
            Err(error) => {
                tracing::debug!("the gate helper keeps to what it knows: {}", with_causes(&error));
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is ever half done behind it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn done(&mut self) -> &Permits {
        if let Self::On(_) = self {
            let reading = std::mem::replace(self, Self::Done(Permits::default()));
            if let Self::On(reading) = reading {
                // Who can read nothing admits nobody, and reads again.
                *self = Self::Done(reading.join().unwrap_or_default());
            }
        }
        match self {
            Self::Done(permits) => permits,
            Self::On(_) => unreachable!("it was waited for"),
        }
    }
}

fn permits(settings: &Settings) -> Option<Permits> {
    match client_rules(settings) {
        Ok(rules) => Some(Permits::new(&settings.services, rules, Now::realtime())),
        Err(problem) => {
            tracing::error!("the gate helper can't read who may open what: {problem}");
            None
        }
    }
}

fn for_good(plan: &Plan) -> Plan {
    Plan { trial_seconds: None, ..plan.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Doubt, InstallReport};
    use crate::replay_store::BootId;
    use spa_keys::PrivateKey;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    const SERVER: &str = "knock-ports = [62201]\n[services.ssh]\nports = [\"tcp/22\"]\n";
    const WEB: &str = "[services.web]\nports = [\"tcp/443\"]\n";

    /// A directory with a configuration and a place for orders, and a warden over them.
    struct Host {
        directory: tempfile::TempDir,
        warden: Warden,
        orders: OrderFile,
        record: Arc<GateRecord>,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("clients.d")).unwrap();
            let orders = OrderFile::within(&directory.path().join("orders"), Path::new("/state"));
            write(directory.path(), "server.toml", SERVER);
            client(directory.path(), "laptop", &["ssh"]);
            let config = directory.path().join("server.toml");
            let record = GateRecord::of(&directory.path().join("state"), BootId([7; 16])).into();
            let settings = Settings::load(&config).unwrap();
            let warden = Warden::new(&config, settings, orders.clone(), Arc::clone(&record));
            Self { directory, warden, orders, record }
        }

        /// What a helper would have that is started now.
        fn next_warden(&self) -> Warden {
            let settings = Settings::load(&self.warden.config).unwrap();
            let (orders, record) = (self.orders.clone(), Arc::clone(&self.record));
            Warden::new(&self.warden.config, settings, orders, record)
        }

        /// As the commands of root's do, and whoever puts a gate up.
        fn announce(&self, trial_seconds: Option<u32>) {
            let plan = Plan { trial_seconds, ..self.plan() };
            let announced = self.record.announce(&plan, BootMicros::now()).unwrap().unwrap();
            announced.stands(BootMicros::now()).1.unwrap();
        }

        fn plan(&self) -> Plan {
            Settings::load(&self.directory.path().join("server.toml")).unwrap().gate_plan()
        }

        fn judge(&self, request: GateRequest) -> Result<(HelperRequest, Option<Refusal>), Refusal> {
            self.warden.judge(HelperRequest::Gate(request))
        }

        fn installs(&self, plan: &Plan) -> bool {
            let request = GateRequest::Install(plan.clone());
            let judged = self.judge(request);
            if let Ok((asked, _)) = &judged {
                let report = InstallReport::default();
                self.warden.note(asked, &HelperAnswer::Gate(GateAnswer::Installed(report)));
            }
            judged.is_ok()
        }

        fn admits(&self, ports: &str) -> bool {
            let source = "192.0.2.7".parse().unwrap();
            let element = Element { source, ports: ports.parse().unwrap() };
            let asked = vec![Change::Admit { element, seconds: 30 }];
            self.judge(GateRequest::Apply(asked)).unwrap().1.is_none()
        }

        fn order(&self, ordered: Option<Ordered>) {
            self.orders.set(Path::new("/state"), ordered).unwrap();
        }
    }

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }

    fn client(directory: &Path, name: &str, allow: &[&str]) {
        let key = PrivateKey::from_bytes([9; 32].into()).public();
        let text = format!("public-key = \"{key}\"\nallow = {allow:?}\n");
        write(directory, &format!("clients.d/{name}.toml"), &text);
    }

    fn in_a_minute() -> BootMicros {
        BootMicros::now().saturating_add(Duration::from_secs(60))
    }

    #[test]
    fn a_gate_that_guards_less_than_the_configuration_says_is_not_put_up() {
        let host = Host::new();
        let plan = host.plan();
        assert!(host.warden.judge(HelperRequest::RemoveOthers).is_err(), "nothing stands yet");
        assert!(host.installs(&plan));
        assert!(host.warden.judge(HelperRequest::RemoveOthers).is_ok());
        for other in [
            Plan { guarded: Vec::new(), ..plan.clone() },
            Plan { mode: crate::gate::Mode::Open, ..plan.clone() },
            Plan { always_admit: vec!["0.0.0.0/0".parse().unwrap()], ..plan.clone() },
            Plan { knock_ports: Vec::new(), ..plan.clone() },
        ] {
            assert!(!host.installs(&other), "{other:?}");
            assert!(host.judge(GateRequest::Examine(other)).is_err());
        }
        assert!(host.installs(&plan));
    }

    #[test]
    fn a_new_configuration_is_taken_from_the_file_and_the_former_one_is_over_once_it_stands() {
        let host = Host::new();
        let former = host.plan();
        write(host.directory.path(), "server.toml", &format!("{SERVER}{WEB}"));
        let next = host.plan();
        assert!(next != former);
        // Before it stands, it may fail, and the former one come back.
        host.warden.judge(HelperRequest::Reread).unwrap();
        assert!(host.installs(&former) && host.installs(&next));
        assert!(!host.installs(&former));
        assert!(!host.admits("tcp/443"), "no client may have it");
        client(host.directory.path(), "laptop", &["ssh", "web"]);
        assert!(host.admits("tcp/443"), "who has come is found");
        fs::remove_file(host.directory.path().join("clients.d/laptop.toml")).unwrap();
        host.warden.judge(HelperRequest::Reread).unwrap();
        assert!(!host.admits("tcp/443"));
        // What can't be read changes nothing.
        client(host.directory.path(), "laptop", &["ssh"]);
        assert!(host.admits("tcp/22"));
        host.warden.judge(HelperRequest::Reread).unwrap();
        let clients = host.directory.path().join("clients.d");
        for (mode, server) in [(0o777, format!("{SERVER}{WEB}")), (0o755, "nonsense".to_owned())] {
            fs::set_permissions(&clients, Permissions::from_mode(mode)).unwrap();
            write(host.directory.path(), "server.toml", &server);
            host.warden.judge(HelperRequest::Reread).unwrap();
            assert!(host.admits("tcp/22") && host.installs(&next), "{mode:o}");
        }
    }

    #[test]
    fn knock_ports_are_those_of_the_start() {
        let host = Host::new();
        let plan = host.plan();
        write(host.directory.path(), "server.toml", &SERVER.replace("62201", "62202"));
        assert!(!host.installs(&host.plan()));
        assert!(host.installs(&plan));
    }

    #[test]
    fn only_what_some_client_may_have_is_admitted_and_withdrawn_is_anything() {
        let host = Host::new();
        assert!(host.admits("tcp/22"));
        assert!(!host.admits("tcp/23"));
        let element =
            Element { source: "192.0.2.7".parse().unwrap(), ports: "tcp/23".parse().unwrap() };
        let withdraw = Change::Withdraw { element };
        let admit = |ports: &str| {
            let element = Element { ports: ports.parse().unwrap(), ..element };
            Change::Admit { element, seconds: 30 }
        };
        // Nobody else waits for what is refused.
        let asked = vec![admit("tcp/22"), admit("tcp/23"), withdraw];
        let (judged, refused) = host.judge(GateRequest::Apply(asked)).unwrap();
        let rest = GateRequest::Apply(vec![admit("tcp/22"), withdraw]);
        assert_eq!(judged, HelperRequest::Gate(rest));
        assert!(refused.unwrap().contains("tcp/23"));
    }

    /// The worker may have refused what is in the files now, and goes on by what it has.
    #[test]
    fn what_is_in_force_is_admitted_until_the_worker_has_another_configuration() {
        let host = Host::new();
        assert!(host.admits("tcp/22"));
        fs::remove_file(host.directory.path().join("clients.d/laptop.toml")).unwrap();
        assert!(!host.admits("tcp/23"), "which has the files read");
        assert!(host.admits("tcp/22"));
        host.warden.judge(HelperRequest::Reread).unwrap();
        assert!(!host.admits("tcp/22"));
    }

    /// By a clock that was set wrong at the start the helper takes somebody for expired who is not: it looks
    /// again when he is asked for.
    #[test]
    fn who_has_expired_is_not_admitted_until_the_clock_or_his_file_says_otherwise() {
        let host = Host::new();
        let file = host.directory.path().join("clients.d/laptop.toml");
        let sound = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("expires = 2001-01-01\n{sound}")).unwrap();
        let warden = host.next_warden();
        let host = Host { warden, ..host };
        assert!(!host.admits("tcp/22"));
        fs::write(&file, sound).unwrap();
        assert!(host.admits("tcp/22"));
    }

    #[test]
    fn a_gate_goes_away_only_when_root_has_ordered_it() {
        let host = Host::new();
        let plan = host.plan();
        let trial = |seconds| Plan { trial_seconds: Some(seconds), ..plan.clone() };
        let removes = || host.judge(GateRequest::Remove).is_ok();
        assert!(!removes() && !host.installs(&trial(60)));
        host.order(Some(Ordered::Trial { at: BootMicros::now(), until: in_a_minute() }));
        assert!(!host.installs(&trial(60)), "a boot would take it for one that stands for good");
        host.announce(Some(60));
        assert!(host.installs(&trial(60)) && host.installs(&trial(1)));
        assert!(!host.installs(&trial(3600)), "for longer than was ordered");
        assert!(!removes(), "its time is not over");
        let now = BootMicros::now();
        host.order(Some(Ordered::Trial { at: now, until: now }));
        assert!(removes());
        let remove = || HelperRequest::Gate(GateRequest::Remove);
        host.next_warden().judge(remove()).unwrap();
        // Somebody has confirmed it, and the order was not taken back.
        assert!(host.installs(&plan));
        assert!(!removes() && !host.installs(&trial(1)));
        host.announce(None);
        host.next_warden().judge(remove()).unwrap_err();
        host.order(Some(Ordered::Removed { at: BootMicros::now() }));
        assert!(removes() && !host.installs(&trial(60)));
        let before = BootMicros(host.warden.started.0 - 1);
        host.order(Some(Ordered::Removed { at: before }));
        assert!(!removes(), "it was put up again since");
        host.order(None);
        assert!(!removes());
        for harmless in
            [GateRequest::Snapshot, GateRequest::Look(Doubt::Everything), GateRequest::Lift]
        {
            assert!(host.judge(harmless).is_ok());
        }
    }

    #[test]
    fn only_connections_that_it_has_found_at_guarded_ports_are_touched() {
        let host = Host::new();
        let guarded = |ports: &str| vec![Guarded::plain(ports.parse().unwrap())];
        let cut = |local: &str| Cut {
            connection: Connection {
                transport: spa_proto::Transport::Tcp,
                peer: "192.0.2.7:50000".parse().unwrap(),
                local: local.parse().unwrap(),
            },
            answered_from: local.parse().unwrap(),
        };
        let found = HelperRequest::Established {
            those: [cut("192.0.2.1:22").connection].into(),
            guarded: guarded("tcp/22"),
        };
        let sever = |those| host.judge(GateRequest::Sever(those));
        assert!(sever(vec![cut("192.0.2.1:22")]).is_err(), "nobody has found it");
        host.warden.judge(found.clone()).unwrap();
        host.warden.note(&found, &HelperAnswer::Cuts(vec![cut("192.0.2.1:22")]));
        assert!(sever(vec![cut("192.0.2.1:22")]).is_ok());
        assert!(sever(vec![cut("192.0.2.1:22"), cut("192.0.2.1:80")]).is_err());
        let elsewhere = "192.0.2.1:8443".parse().unwrap();
        assert!(sever(vec![Cut { answered_from: elsewhere, ..cut("192.0.2.1:22") }]).is_err());
        let list =
            |ports: &str| HelperRequest::List { guarded: guarded(ports), in_background: true };
        assert!(host.warden.judge(list("tcp/22")).is_ok());
        assert!(host.warden.judge(list("tcp/1-65535")).is_err());
        let end = |ports: &str, established: &str| HelperRequest::End {
            those: [cut("192.0.2.1:22").connection].into(),
            established: vec![cut(established)],
            guarded: guarded(ports),
        };
        assert!(host.warden.judge(end("tcp/22", "192.0.2.1:22")).is_ok());
        assert!(host.warden.judge(end("tcp/80", "192.0.2.1:22")).is_err());
        assert!(host.warden.judge(end("tcp/22", "192.0.2.1:80")).is_err());
    }
}
