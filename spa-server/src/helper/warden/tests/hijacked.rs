//! A worker that somebody has taken over asks for whatever it likes, while root changes configuration and
//! orders. What passes is beside a model: it knows the clients by heart, and reads no file.

use super::{Host, client_file, in_a_minute, write};
use crate::clock::BootMicros;
use crate::gate::{
    Change, Connection, Cut, Element, GateAnswer, GateRequest, Guarded, InstallReport, Mode, Plan,
};
use crate::helper::ordered::Ordered;
use crate::helper::{HelperAnswer, HelperRequest};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;

/// How many configurations there are. The last one can't be read.
const CONFIGURATIONS: usize = 4;
const BROKEN: usize = 3;
/// A trial is ordered for a minute; the worker may be two later, and the test some seconds.
const ORDERED_SECONDS: u32 = 60 + 120;

const SOURCES: [&str; 5] = ["192.0.2.7", "10.0.0.7", "2001:db8::7", "10.0.0.0/8", "0.0.0.0/0"];
const PORTS: [&str; 7] =
    ["tcp/22", "tcp/443", "udp/5000-5010", "udp/5003", "udp/5000-5005", "tcp/23", "tcp/1-65535"];

/// For how many seconds somebody may have that by this configuration.
fn right(configuration: usize, source: &str, ports: &str) -> Option<u32> {
    let is_host = !source.contains('/');
    match (configuration, ports) {
        (0 | 1, "tcp/22") if is_host => Some(3600),
        (1, "tcp/443") if source == "10.0.0.7" => Some(60),
        (2, "udp/5000-5010" | "udp/5003") if is_host => Some(300),
        _ => None,
    }
}

/// What a client may open, and what its file says beside that.
type OfClient = (&'static str, &'static [&'static str], &'static str);

fn write_configuration(host: &Host, number: usize) {
    const WEB: &str = "[services.web]\nports = [\"tcp/443\"]\n";
    const GAMES: &str = "[services.games]\nports = [\"udp/5000-5010\"]\n";
    let (services, clients): (&str, &[OfClient]) = match number {
        0 => ("", &[("laptop", &["ssh"], "")]),
        1 => (
            WEB,
            &[
                ("laptop", &["ssh"], ""),
                ("tablet", &["web"], "max-lifetime = \"60s\"\nsources = [\"10.0.0.0/8\"]\n"),
            ],
        ),
        2 => (
            GAMES,
            &[
                ("laptop", &["ssh", "games"], "enabled = false\n"),
                ("guest", &["games"], "max-lifetime = \"5m\"\n"),
            ],
        ),
        _ => ("nonsense", &[]),
    };
    let directory = host.directory.path();
    write(directory, "server.toml", &format!("{}{services}", super::SERVER));
    let clients_d = directory.join("clients.d");
    for entry in fs::read_dir(&clients_d).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (seed, (name, allow, more)) in (1..).zip(clients) {
        let lifetime = if more.contains("max-lifetime") { "" } else { "max-lifetime = \"1h\"\n" };
        let text = client_file(seed, allow) + lifetime + more;
        write(directory, &format!("clients.d/{name}.toml"), &text);
    }
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Root writes that configuration.
    Configure(usize),
    /// Root orders, as his commands do.
    OrderTrial,
    OrderRemoval,
    TakeOrderBack,
    /// The worker asks.
    Reread,
    Admit(Vec<(usize, usize, u32)>),
    /// For the plan of a configuration, with so much changed of it.
    Install(usize, Forgery, Option<u32>),
    Examine(usize, Forgery),
    Remove,
    RemoveOthers,
    /// Whether this is established, at these ports; the helper then has found it.
    Find(u16, usize),
    Sever(Vec<u16>),
    End(u16, Vec<u16>, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgery {
    None,
    GuardsNothing,
    IsOpen,
    AdmitsAll,
    ShowsKnockPorts,
    HasNoRoom,
}

impl Forgery {
    fn of(self, plan: Plan) -> Plan {
        match self {
            Self::None => plan,
            Self::GuardsNothing => Plan { guarded: Vec::new(), ..plan },
            Self::IsOpen => Plan { mode: Mode::Open, ..plan },
            Self::AdmitsAll => Plan { always_admit: vec!["::/0".parse().unwrap()], ..plan },
            Self::ShowsKnockPorts => Plan { knock_ports: Vec::new(), ..plan },
            Self::HasNoRoom => Plan { max_elements: 1, ..plan },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let configuration = 0..CONFIGURATIONS;
    let readable = 0..BROKEN;
    let forgery = prop_oneof![
        6 => Just(Forgery::None),
        1 => Just(Forgery::GuardsNothing),
        1 => Just(Forgery::IsOpen),
        1 => Just(Forgery::AdmitsAll),
        1 => Just(Forgery::ShowsKnockPorts),
        1 => Just(Forgery::HasNoRoom),
    ];
    let seconds = prop::sample::select(vec![1, 30, 61, 62, 63, 302, 303, 3602, 3603, 1_000_000]);
    let trial = prop_oneof![2 => Just(None), 1 => prop::sample::select(vec![1, 60, 150, 200, 400]).prop_map(Some)];
    let change = (0..SOURCES.len(), 0..PORTS.len(), seconds);
    let port = prop::sample::select(vec![22_u16, 443, 5003, 80]);
    let guarded = 0..PORTS.len();
    prop_oneof![
        3 => configuration.prop_map(Step::Configure),
        1 => Just(Step::OrderTrial),
        1 => Just(Step::OrderRemoval),
        1 => Just(Step::TakeOrderBack),
        2 => Just(Step::Reread),
        6 => vec(change, 1..6).prop_map(Step::Admit),
        4 => (readable.clone(), forgery.clone(), trial).prop_map(|(c, f, t)| Step::Install(c, f, t)),
        1 => (readable, forgery).prop_map(|(c, f)| Step::Examine(c, f)),
        2 => Just(Step::Remove),
        1 => Just(Step::RemoveOthers),
        2 => (port.clone(), guarded.clone()).prop_map(|(port, at)| Step::Find(port, at)),
        2 => vec(port.clone(), 0..3).prop_map(Step::Sever),
        1 => (port.clone(), vec(port, 0..3), guarded).prop_map(|(one, cuts, at)| Step::End(one, cuts, at)),
    ]
}

/// What root has ordered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    None,
    Removal,
    Trial,
}

/// What is true.
struct Model {
    plans: Vec<Plan>,
    /// That the worker has told of last.
    in_force: usize,
    /// Those that were on the disk since, the present one last.
    since: Vec<usize>,
    /// What was on the disk at any time, and could be read.
    ever: HashSet<usize>,
    /// What was put up last; at first, what is to be.
    standing: Plan,
    has_installed: bool,
    order: Order,
    stands_for_good_since: bool,
    found: HashSet<Cut>,
}

impl Model {
    fn present(&self) -> usize {
        *self.since.last().unwrap()
    }

    /// The least that has to be admitted, and the most that may be.
    fn bounds(&self, source: &str, ports: &str) -> (Option<u32>, Option<u32>) {
        let at_least = right(self.in_force, source, ports);
        let since = self.since.iter().filter_map(|one| right(*one, source, ports)).max();
        (at_least, at_least.max(since))
    }

    /// Whether a plan must pass, and whether it may.
    fn judge(&self, plan: &Plan) -> (bool, bool) {
        let plan = &Plan { trial_seconds: None, ..plan.clone() };
        let is_of = |configuration: &usize| self.plans.get(*configuration) == Some(plan);
        let must = self.standing == *plan || is_of(&self.present());
        (must, must || self.since.iter().any(is_of) || is_of(&self.in_force))
    }

    fn guards(&self, guarded: Guarded) -> bool {
        self.ever.iter().any(|one| self.plans[*one].guarded.contains(&guarded))
    }
}

fn cut(port: u16) -> Cut {
    let connection = Connection {
        transport: spa_proto::Transport::Tcp,
        peer: "192.0.2.7:50000".parse().unwrap(),
        local: ([192, 0, 2, 1], port).into(),
    };
    Cut { connection, answered_from: connection.local }
}

/// What each configuration would have guarded, and the warden that began with the first.
fn begin() -> (Host, Model) {
    let host = Host::new();
    let plans: Vec<_> = (0..BROKEN)
        .map(|number| {
            write_configuration(&host, number);
            host.plan()
        })
        .collect();
    write_configuration(&host, 0);
    let host = Host { warden: host.next_warden(), ..host };
    // It has read the clients by then.
    assert!(host.admits("tcp/22"));
    let model = Model {
        standing: plans[0].clone(),
        plans,
        in_force: 0,
        since: vec![0],
        ever: [0].into(),
        has_installed: false,
        order: Order::None,
        stands_for_good_since: false,
        found: HashSet::new(),
    };
    (host, model)
}

fn admit(host: &Host, model: &Model, wanted: &[(usize, usize, u32)]) -> Result<(), TestCaseError> {
    let element = |source: usize, ports: usize| Element {
        source: SOURCES[source].parse().unwrap(),
        ports: PORTS[ports].parse().unwrap(),
    };
    let changes: Vec<_> = wanted
        .iter()
        .map(|(source, ports, seconds)| Change::Admit {
            element: element(*source, *ports),
            seconds: *seconds,
        })
        .collect();
    let (judged, refused) = host.judge(GateRequest::Apply(changes)).unwrap();
    let HelperRequest::Gate(GateRequest::Apply(mut passed)) = judged else { panic!("{judged:?}") };
    let mut out = 0;
    // What passes does so in its order; what was asked for twice is there twice.
    passed.reverse();
    for (source, ports, wanted) in wanted {
        let (at_least, at_most) = model.bounds(SOURCES[*source], PORTS[*ports]);
        let is_next = matches!(passed.last(), Some(Change::Admit { element: next, .. }) if *next == element(*source, *ports));
        if !is_next {
            let present = right(model.present(), SOURCES[*source], PORTS[*ports]);
            prop_assert!(at_least.or(present).is_none(), "{} {}", SOURCES[*source], PORTS[*ports]);
            out += 1;
            continue;
        }
        let Some(Change::Admit { seconds, .. }) = passed.pop() else { unreachable!() };
        let Some(most) = at_most else {
            return Err(TestCaseError::fail(format!("{} {}", SOURCES[*source], PORTS[*ports])));
        };
        prop_assert!(seconds <= *wanted && seconds <= most + 2, "{seconds} of {wanted}");
        prop_assert!(seconds >= at_least.map_or(1, |least| (*wanted).min(least)), "{seconds}");
    }
    prop_assert!(passed.is_empty(), "{passed:?} was not asked for");
    prop_assert_eq!(refused.is_some(), out > 0);
    Ok(())
}

fn install(host: &Host, model: &mut Model, plan: Plan) -> Result<(), TestCaseError> {
    let (must, may) = model.judge(&plan);
    let trial = plan.trial_seconds;
    let is_ordered = trial.is_none_or(|seconds| {
        model.order == Order::Trial && !model.stands_for_good_since && seconds <= ORDERED_SECONDS
    });
    let judged = host.judge(GateRequest::Install(plan.clone()));
    prop_assert!(judged.is_err() || may && is_ordered, "{plan:?}");
    prop_assert!(judged.is_ok() || !must || !is_ordered, "{judged:?}");
    if let Ok((asked, _)) = judged {
        let installed = HelperAnswer::Gate(GateAnswer::Installed(InstallReport::default()));
        host.warden.note(&asked, &installed);
        model.has_installed = true;
        model.stands_for_good_since |= trial.is_none();
        model.standing = Plan { trial_seconds: None, ..plan };
    }
    Ok(())
}

fn take(host: &Host, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Configure(number) => {
            write_configuration(host, number);
            model.since.push(number);
            model.ever.extend(Some(number).filter(|number| *number != BROKEN));
        }
        Step::OrderTrial => {
            host.announce_as(&Plan { trial_seconds: Some(60), ..model.standing.clone() });
            host.order(Some(Ordered::Trial { at: BootMicros::now(), until: in_a_minute() }));
            (model.order, model.stands_for_good_since) = (Order::Trial, false);
        }
        Step::OrderRemoval => {
            host.order(Some(Ordered::Removed { at: BootMicros::now() }));
            model.order = Order::Removal;
        }
        Step::TakeOrderBack => {
            host.order(None);
            model.order = Order::None;
        }
        Step::Reread => {
            host.warden.judge(HelperRequest::Reread).unwrap();
            if model.present() != BROKEN {
                model.in_force = model.present();
                model.since = vec![model.in_force];
            }
        }
        Step::Admit(wanted) => admit(host, model, &wanted)?,
        Step::Install(number, forgery, trial_seconds) => {
            let plan = Plan { trial_seconds, ..forgery.of(model.plans[number].clone()) };
            install(host, model, plan)?;
        }
        Step::Examine(number, forgery) => {
            let plan = forgery.of(model.plans[number].clone());
            let (must, may) = model.judge(&plan);
            let judged = host.judge(GateRequest::Examine(plan));
            prop_assert!(if judged.is_ok() { may } else { !must }, "{judged:?}");
        }
        Step::Remove => {
            let judged = host.judge(GateRequest::Remove);
            prop_assert_eq!(judged.is_ok(), model.order == Order::Removal);
        }
        Step::RemoveOthers => {
            let judged = host.warden.judge(HelperRequest::RemoveOthers);
            prop_assert_eq!(judged.is_ok(), model.has_installed);
        }
        Step::Find(port, at) => {
            let guarded = Guarded::plain(PORTS[at].parse().unwrap());
            let request = HelperRequest::Established {
                those: [cut(port).connection].into(),
                guarded: vec![guarded],
            };
            let judged = host.warden.judge(request.clone());
            prop_assert!(judged.is_err() || model.guards(guarded), "{guarded:?}");
            let of = |configuration: usize| model.plans[configuration].guarded.contains(&guarded);
            prop_assert!(judged.is_ok() || !of(0) && !of(model.in_force), "{guarded:?}");
            if judged.is_ok() {
                host.warden.note(&request, &HelperAnswer::Cuts(vec![cut(port)]));
                model.found.insert(cut(port));
            }
        }
        Step::Sever(ports) => {
            let cuts: Vec<_> = ports.into_iter().map(cut).collect();
            let are_found = cuts.iter().all(|cut| model.found.contains(cut));
            prop_assert_eq!(host.judge(GateRequest::Sever(cuts)).is_ok(), are_found);
        }
        Step::End(one, ports, at) => {
            let guarded = Guarded::plain(PORTS[at].parse().unwrap());
            let established: Vec<_> = ports.into_iter().map(cut).collect();
            let are_found = established.iter().all(|cut| model.found.contains(cut));
            let those = [cut(one).connection].into();
            let request = HelperRequest::End { those, established, guarded: vec![guarded] };
            let judged = host.warden.judge(request);
            prop_assert!(judged.is_err() || are_found && model.guards(guarded), "{judged:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_a_hijacked_worker_asks_only_what_some_client_may_have_passes(steps in vec(step(), 1..60)) {
        let (host, mut model) = begin();
        for step in steps {
            take(&host, &mut model, step)?;
        }
    }
}
