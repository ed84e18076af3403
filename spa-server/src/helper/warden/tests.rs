//! The warden over a directory with a configuration, and orders of root's.

mod hijacked;

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
        self.announce_as(&Plan { trial_seconds, ..self.plan() });
    }

    fn announce_as(&self, plan: &Plan) {
        let announced = self.record.announce(plan, BootMicros::now()).unwrap().unwrap();
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
    write(directory, &format!("clients.d/{name}.toml"), &client_file(9, allow));
}

/// That of a client with a key of its own for each `seed`.
fn client_file(seed: u8, allow: &[&str]) -> String {
    let key = PrivateKey::from_bytes([seed; 32].into()).public();
    format!("public-key = \"{key}\"\nallow = {allow:?}\n")
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
    for harmless in [GateRequest::Snapshot, GateRequest::Look(Doubt::Everything), GateRequest::Lift]
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
    let list = |ports: &str| HelperRequest::List { guarded: guarded(ports), in_background: true };
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
