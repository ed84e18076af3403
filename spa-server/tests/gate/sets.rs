//! What is special where grants are held in sets.

use crate::lab::{
    CLIENT, Lab, OPEN, REFUSED, SILENT, STRANGER, Seen, admit, block_on, hears, plan,
    with_both_variants, withdraw,
};
use crate::standing::led_elsewhere;
use spa_proto::Port;
use spa_server::gate::{
    Change, Doubt, Element, Gate as _, GateError, Guarded, IptablesGate, Mode, Plan, Refusal,
    ToolOverrides, Tools,
};
use spa_server::netlink::ipset::{Entry, Ipset, SetChange};
use spa_server::service::Connections;
use spa_server::source::Source;
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

with_both_variants!(
    an_installation_of_an_earlier_version_is_taken_over,
    sets_of_others_are_left_alone,
    ten_thousand_at_once_are_admitted_and_taken_back,
    a_set_that_is_gone_is_told_and_made_again,
    a_set_that_others_use_stays_and_is_told_of,
    a_trial_that_can_not_be_begun_leaves_the_one_before_its_time,
    a_trial_that_can_not_be_begun_leaves_what_stands_for_good,
    a_family_that_can_not_be_undone_does_not_keep_the_other_from_it,
    an_installation_that_fails_leaves_no_grant_where_nobody_withdraws_it,
    what_is_used_up_while_its_set_is_resized_stays_used_up,
);

/// What version 0.1 wrote for its default plan, but for the refusal.
fn earlier(set: &str, elsewhere: &str, refuse: &str) -> String {
    format!(
        "*mangle\n\
         :SPA-GUARD - [0:0]\n:SPA-JUDGE - [0:0]\n:SPA-REFUSE - [0:0]\n\
         -A SPA-GUARD -i lo -j RETURN\n\
         -A SPA-GUARD {elsewhere} -j RETURN\n\
         -A SPA-GUARD -p tcp -m tcp --dport 22 -j SPA-JUDGE\n\
         -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE\n\
         -A SPA-JUDGE -m set --match-set {set} src,dst -j RETURN\n\
         -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
         -A SPA-JUDGE -j SPA-REFUSE\n\
         -A SPA-REFUSE -j {refuse}\n\
         -I PREROUTING 1 -j SPA-GUARD\n\
         COMMIT\n\
         *filter\n\
         :SPA-INPUT - [0:0]\n\
         -A SPA-INPUT -m set --match-set {set} src,dst -j ACCEPT\n\
         -A SPA-INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A SPA-INPUT ! -i lo -p tcp -m tcp --dport 22 -m conntrack ! --ctstate DNAT -j {refuse}\n\
         -I INPUT 1 -j SPA-INPUT\n\
         COMMIT\n"
    )
}

fn an_installation_of_an_earlier_version_is_taken_over(lab: &Lab) {
    let fresh = lab.ruleset();
    let set_up = || {
        lab.on("s", "ipset create spa4 hash:ip,port family inet maxelem 65536 timeout 0");
        lab.on("s", "ipset create spa6 hash:ip,port family inet6 maxelem 65536 timeout 0");
        lab.on("s", &format!("ipset add spa4 {},tcp:22 timeout 600", CLIENT[0]));
        lab.on("s", &format!("ipset add spa6 {},tcp:22 timeout 600", CLIENT[1]));
        let rules = [
            earlier("spa4", "-m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST", "DROP"),
            earlier("spa6", "! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST", "DROP"),
        ];
        for (command, rules) in lab.variant.commands().iter().zip(&rules) {
            lab.feed("s", &format!("{command}-restore --noflush"), rules);
        }
    };
    set_up();
    assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, SILENT]);
    let mut session = lab.session(0, 22);
    for plan in [plan(Mode::Guard, Refusal::Drop), led_elsewhere(Refusal::Reject)] {
        lab.installed(&plan, |gate| async move {
            let found = gate.snapshot().await.unwrap();
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|live| live.seconds_left > 500), "{found:?}");
        });
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        assert_ne!(lab.both(STRANGER, 22), OPEN);
        assert!(hears(&mut session.0, &mut session.1) && hears(&mut session.1, &mut session.0));
    }
    lab.remove();
    assert_eq!(lab.ruleset(), fresh);
    // Nor does it have to be taken over to be taken away.
    set_up();
    lab.remove();
    assert_eq!(lab.ruleset(), fresh);
}

fn sets_of_others_are_left_alone(lab: &Lab) {
    for name in ["spa4-tcp-22", "spa7", "spa4-nets", "space"] {
        lab.on("s", &format!("ipset create {name} hash:ip"));
    }
    // One that has a name which another plan would use, but is of another kind.
    lab.on("s", "ipset create spa4-udp-1-2 hash:ip");
    let before = lab.ruleset();
    let range = Guarded::plain("udp/1-2".parse().unwrap());
    let mut wanting = plan(Mode::Guard, Refusal::Drop);
    wanting.guarded.push(range);
    lab.inside("s", || {
        let gate = IptablesGate::new(Tools::find(&lab.variant.overrides()).unwrap());
        let error = block_on(gate.install(&wanting)).unwrap_err();
        assert!(matches!(&error, GateError::ForeignSet { name, .. } if name == "spa4-udp-1-2"));
        assert_eq!(lab.ruleset(), before, "what was made before is taken away");
        let mut many = wanting.clone();
        many.guarded.extend((0..100u16).map(|at| {
            let first = 1000 + 10 * at;
            Guarded::plain(format!("tcp/{first}-{}", first + 5).parse().unwrap())
        }));
        let error = block_on(gate.install(&many)).unwrap_err();
        assert!(error.to_string().contains("more than 100 ranges"), "{error}");
        many.guarded.remove(2);
        many.guarded.pop();
        block_on(gate.install(&many)).unwrap();
        assert!(!block_on(gate.install(&many)).unwrap().changed);
    });
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    lab.install(&plan(Mode::Guard, Refusal::Drop));
    lab.remove();
    assert_eq!(lab.ruleset(), before);
}

fn ten_thousand_at_once_are_admitted_and_taken_back(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.max_elements = 65536;
    let sources = (0..10_000u32).map(|at| {
        let address = if at % 2 == 0 {
            std::net::Ipv4Addr::from(0x0a00_0000 + at).into()
        } else {
            std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(at)).into()
        };
        Element { source: Source::host(address), ports: "tcp/22".parse().unwrap() }
    });
    let admit: Vec<_> =
        sources.clone().map(|element| Change::Admit { element, seconds: 600 }).collect();
    let withdraw: Vec<_> = sources.map(|element| Change::Withdraw { element }).collect();
    lab.installed(&plan, |gate| async move {
        let began = Instant::now();
        gate.apply(&admit).await.unwrap();
        // About 10 ms; one exec for each took seconds.
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let found: HashSet<_> =
            gate.snapshot().await.unwrap().into_iter().map(|live| live.element).collect();
        assert!(admit.iter().all(|change| found.contains(&change.element())));
        assert_eq!(gate.look(Doubt::Elements).await.unwrap().elements, 10_000);
        gate.apply(&withdraw).await.unwrap();
        assert_eq!(gate.snapshot().await.unwrap(), []);
    });
}

fn a_set_that_is_gone_is_told_and_made_again(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.installed(&plan, |gate| async {
        let gate = gate;
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        // As long as rules use it, nobody can destroy it.
        lab.rules(lab.variant, &["-F", "-t mangle -F"]);
        lab.on("s", "ipset destroy spa6");
        let error = gate.apply(&admit(STRANGER, "tcp/22", 600)).await.unwrap_err();
        assert!(error.to_string().contains("set spa6"), "{error}");
        assert!(matches!(gate.snapshot().await, Err(GateError::NotInstalled)));
        let look = gate.look(Doubt::Elements).await.unwrap();
        assert_eq!(look.missing, ["set spa6 is missing"]);
        gate.install(&plan).await.unwrap();
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        assert_eq!(
            [lab.both(CLIENT, 22), lab.both(STRANGER, 22)],
            [OPEN, [Seen::Open, Seen::Silent]]
        );
    });
}

fn a_set_that_others_use_stays_and_is_told_of(lab: &Lab) {
    let less = plan(Mode::Guard, Refusal::Drop);
    let mut more = less.clone();
    more.guarded.push(Guarded::plain("udp/10000-10100".parse().unwrap()));
    lab.install(&more);
    let [four, _] = lab.variant.commands();
    let theirs = "INPUT -m set --match-set spa4-udp-10000-10100 src -j ACCEPT";
    lab.on("s", &format!("{four} -A {theirs}"));
    let install = || {
        lab.with_gate(&lab.variant.overrides(), |gate| {
            let less = less.clone();
            async move { gate.install(&less).await.unwrap() }
        })
    };
    let sets = || lab.on("s", "ipset list -n").lines().filter(|name| name.contains("udp")).count();
    for changed in [true, false] {
        let report = install();
        let told = report.warnings.concat();
        assert!(told.starts_with("what isn't needed any more stays: "), "{report:?}");
        // It alone.
        assert_eq!((report.changed, sets()), (changed, 1));
        assert_eq!(lab.both(CLIENT, 22), SILENT);
    }
    lab.on("s", &format!("{four} -D {theirs}"));
    let report = install();
    assert!(report.warnings.is_empty() && report.changed, "{report:?}");
    assert_eq!(sets(), 0);
}

/// The seconds that each of the two halves of everybody is refused for, by family; nothing where there
/// is no such set.
fn armed(lab: &Lab) -> Vec<[u32; 2]> {
    let sets = lab.on("s", "ipset list -n");
    let there = ["spa4-armed", "spa6-armed"].into_iter().filter(|name| sets.contains(name));
    there
        .map(|name| {
            let listed = lab.on("s", &format!("ipset list {name}"));
            let times = listed.lines().filter(|line| line.contains("/1 "));
            let times: Vec<_> =
                times.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
            times.try_into().unwrap()
        })
        .collect()
}

/// A plan of another trial than [`plan`], which takes more than a new time.
fn longer() -> Plan {
    let mut longer = Plan { trial_seconds: Some(86_400), ..plan(Mode::Guard, Refusal::Reject) };
    longer.guarded.push(Guarded::plain("tcp/80".parse().unwrap()));
    longer
}

/// Tools of which one fails when all sets are armed: at the rules of either family, or when they
/// are read back.
fn failing_once_armed(lab: &Lab) -> Vec<ToolOverrides> {
    let good = Tools::find(&lab.variant.overrides()).unwrap();
    let base = lab.variant.overrides();
    let four = Some(lab.failing(&good.iptables_restore, "--dports 22,80"));
    let six = Some(lab.failing(&good.ip6tables_restore, "--dports 22,80"));
    let list = lab.failing_to_print(&good.ip6tables_save, "--dports 22,80", 1);
    vec![
        ToolOverrides { iptables_restore: four, ..base.clone() },
        ToolOverrides { ip6tables_restore: six, ..base.clone() },
        ToolOverrides { ip6tables_save: Some(list), ..base },
    ]
}

/// Fails to begin that trial by these tools; whether what was there before is back.
fn fails(lab: &Lab, overrides: &ToolOverrides, plan: Plan) -> bool {
    let error =
        lab.with_gate(overrides, |gate| async move { gate.install(&plan).await.unwrap_err() });
    !matches!(error, GateError::NotUndone { .. })
}

fn a_trial_that_can_not_be_begun_leaves_the_one_before_its_time(lab: &Lab) {
    let trial = |seconds| Plan { trial_seconds: Some(seconds), ..plan(Mode::Guard, Refusal::Drop) };
    let is_as_it_was = || {
        let left = armed(lab);
        assert_eq!(left.len(), 2);
        assert!(left.iter().flatten().all(|left| (1..=60).contains(left)), "{left:?}");
        assert_eq!(lab.both(STRANGER, 22), SILENT);
    };
    lab.install(&trial(60));
    for overrides in failing_once_armed(lab) {
        assert!(fails(lab, &overrides, longer()), "{overrides:?}");
        is_as_it_was();
    }
    // It goes on, and is over in its time.
    let last = || failing_once_armed(lab).pop().unwrap();
    lab.install(&trial(6));
    assert!(fails(lab, &last(), longer()));
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    lab.wait("the end of the trial", || lab.both(STRANGER, 22) == OPEN);
    // Nor does one begin again that is over.
    assert!(fails(lab, &last(), longer()));
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    // Also where the rules can't be brought back.
    lab.install(&trial(60));
    let save = Tools::find(&lab.variant.overrides()).unwrap().iptables_save;
    let save = Some(lab.failing_to_print(&save, "--dports 22,80", u32::MAX));
    let overrides = ToolOverrides { iptables_save: save, ..lab.variant.overrides() };
    let drops = Plan { refusal: Refusal::Drop, ..longer() };
    assert!(!fails(lab, &overrides, drops));
    is_as_it_was();
    // Positive control: with tools that work, it is as long as it was to be.
    lab.install(&longer());
    assert!(armed(lab).iter().flatten().all(|left| *left > 86_000), "{:?}", armed(lab));
    assert_eq!(lab.both(STRANGER, 22), REFUSED);
}

fn a_trial_that_can_not_be_begun_leaves_what_stands_for_good(lab: &Lab) {
    lab.install(&plan(Mode::Guard, Refusal::Drop));
    for overrides in failing_once_armed(lab) {
        assert!(fails(lab, &overrides, Plan { trial_seconds: Some(1), ..longer() }));
        assert_eq!(armed(lab), [[0; 2]; 0]);
        let rules = lab.ruleset();
        assert!(rules.contains("SPA-REFUSE") && !rules.contains("armed"), "{rules}");
        assert_eq!([lab.both(STRANGER, 22), lab.both(STRANGER, 80)], [SILENT, OPEN]);
    }
}

fn a_family_that_can_not_be_undone_does_not_keep_the_other_from_it(lab: &Lab) {
    let old = plan(Mode::Guard, Refusal::Drop);
    lab.install(&old);
    let mut more = old.clone();
    let ports = ["tcp/80", "udp/10000-10100"];
    more.guarded.extend(ports.map(|ports| Guarded::plain(ports.parse().unwrap())));
    let ranges = || {
        let names = lab.on("s", "ipset list -n");
        names.lines().filter(|name| name.contains("udp")).map(str::to_owned).collect::<Vec<_>>()
    };
    // Once the rules of both families are written, those of IPv4 can't be read any more.
    let save = Tools::find(&lab.variant.overrides()).unwrap().iptables_save;
    let save = Some(lab.failing_to_print(&save, "--dports 22,80", u32::MAX));
    let overrides = ToolOverrides { iptables_save: save, ..lab.variant.overrides() };
    assert!(!fails(lab, &overrides, more.clone()));
    assert_eq!(lab.both(STRANGER, 80), [Seen::Silent, Seen::Open]);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    // Rules that stay keep their sets.
    assert_eq!(ranges(), ["spa4-udp-10000-10100"]);
    // Positive control: by tools that work, both families change.
    lab.install(&more);
    assert_eq!((lab.both(STRANGER, 80), ranges().len()), (SILENT, 2));
    lab.install(&old);
    assert_eq!((lab.both(STRANGER, 80), ranges().len()), (OPEN, 0));
}

fn an_installation_that_fails_leaves_no_grant_where_nobody_withdraws_it(lab: &Lab) {
    let mut one = plan(Mode::Guard, Refusal::Drop);
    one.guarded[0].connections = Connections::One;
    let any = plan(Mode::Guard, Refusal::Reject);
    let members = || {
        let listed = lab.on("s", "ipset save");
        let added: Vec<_> = listed.lines().filter_map(|line| line.strip_prefix("add ")).collect();
        added
            .iter()
            .filter_map(|line| line.split(',').next())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let held_in =
        |sets: [&str; 2]| [0, 1].map(|family| format!("{} {}", sets[family], CLIENT[family]));
    let restore = Tools::find(&lab.variant.overrides()).unwrap().ip6tables_restore;
    let restore = Some(lab.failing(&restore, "SPA-MARKED"));
    let unlucky = ToolOverrides { ip6tables_restore: restore, ..lab.variant.overrides() };
    lab.apply(&one, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(members(), held_in(["spa4-once", "spa6-once"]));
    // The copies go, and the grants stay where they were.
    assert!(fails(lab, &unlucky, any.clone()));
    assert_eq!(members(), held_in(["spa4-once", "spa6-once"]));
    lab.apply(&one, &withdraw(CLIENT, "tcp/22"));
    lab.install(&any);
    assert_eq!((lab.both(CLIENT, 22), members().len()), (REFUSED, 0));
    // Positive control: with tools that work they go where the plan looks for them.
    lab.install(&one);
    lab.apply(&one, &admit(CLIENT, "tcp/22", 600));
    lab.install(&any);
    assert_eq!((lab.both(CLIENT, 22), members()), (OPEN, held_in(["spa4", "spa6"]).to_vec()));
}

fn what_is_used_up_while_its_set_is_resized_stays_used_up(lab: &Lab) {
    const ONCE: &str = "spa4-once";
    const NEW: &str = "spa4-once-new";
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.guarded[0].connections = Connections::One;
    plan.max_elements = 65536;
    // So many that a new set takes a while to fill.
    let sources = (0..20_000u32).map(|at| std::net::Ipv4Addr::from(0x0a00_0000 + at));
    let element = |at| Element { source: Source::host(at), ports: "tcp/22".parse().unwrap() };
    let others: Vec<_> =
        sources.map(|at| Change::Admit { element: element(at.into()), seconds: 600 }).collect();
    let is_there = |ipset: &mut Ipset, entry: &Entry| {
        ipset.entries(ONCE).unwrap().iter().any(|(found, _)| found == entry)
    };
    let port: Port = "tcp/22".parse().unwrap();
    let used = Entry::AddressPort(CLIENT[0].parse().unwrap(), port);
    let kept = Entry::AddressPort(STRANGER[0].parse().unwrap(), port);
    lab.apply(&plan, &others);
    let mut was_seen = false;
    for round in 0..20 {
        plan.max_elements = 65536 - round;
        lab.inside("s", || {
            let mut ipset = Ipset::open().unwrap();
            let both = [used, kept].map(|entry| SetChange::Add {
                set: ONCE,
                entry,
                seconds: NonZeroU32::new(600),
            });
            ipset.apply(&both).unwrap();
        });
        // What a packet that opens a connection does, between the reading of the set and the swap:
        // after it, the new name is that of the old set, which is full.
        let is_filling = |ipset: &mut Ipset| {
            let info = ipset.info(NEW).unwrap();
            info.is_some_and(|info| info.entries < 20_000)
        };
        let done = AtomicBool::new(false);
        let in_between = thread::scope(|scope| {
            let using = scope.spawn(|| {
                lab.inside("s", || {
                    let mut ipset = Ipset::open().unwrap();
                    while !is_filling(&mut ipset) {
                        if done.load(Ordering::Relaxed) {
                            return false;
                        }
                    }
                    ipset.apply(&[SetChange::Delete { set: ONCE, entry: used }]).unwrap();
                    is_filling(&mut ipset)
                })
            });
            lab.install(&plan);
            done.store(true, Ordering::Relaxed);
            using.join().unwrap()
        });
        let there = lab.inside("s", || {
            let mut ipset = Ipset::open().unwrap();
            [used, kept].map(|entry| is_there(&mut ipset, &entry))
        });
        if in_between {
            was_seen = true;
            assert_eq!(there, [false, true], "in round {round}");
            break;
        }
    }
    assert!(was_seen, "no set was resized slowly enough");
}
