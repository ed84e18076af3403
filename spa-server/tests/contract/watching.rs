//! What the gate notices of what others do to it, and that it makes no noise by itself.

use crate::gates::LiveGate;
use crate::lab::{
    BOTH, CLIENT, Lab, NETWORK, STRANGER, admit, admitted, assert_same, elements, forward, plan,
    ports, withdraw,
};
use crate::probe::Seen::{Open, Silent};
use crate::probe::{both, until};
use crate::subject::Variant;
use spa_server::gate::{AnyGate, Backend, Doubt, Gate as _, Guarded, Look, Plan};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long it may take until a change is noticed, on a machine that has other things to do, too.
const SOON: Duration = Duration::from_secs(3);
/// How often a gate may look that is told of nothing, and how many times at most in a second.
const LOOKS_A_SECOND: usize = 2;

fn guarding(lab: &Lab) -> Plan {
    let mut plan = plan(&["tcp/22", "udp/10000-10100"]);
    if lab.subject.backend != Backend::Hook {
        plan.guarded.push(Guarded { target: forward(Some(22), true), ..forwarded() });
    }
    plan
}

fn forwarded() -> Guarded {
    Guarded::plain(ports("tcp/3322"))
}

/// What somebody else may do, by name: commands on the server.
fn disturbances(lab: &Lab) -> Vec<(&'static str, Vec<String>)> {
    let variant = lab.subject.variant;
    let both = |rule: &str| variant.commands().map(|command| format!("{command} -w 5 {rule}"));
    let one = |rule: &str, at: usize| vec![both(rule)[at].clone()];
    let text = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let mut all = Vec::new();
    if lab.subject.uses_iptables() {
        all.extend([
            ("iptables -F", both("-F").to_vec()),
            ("iptables -t mangle -F", both("-t mangle -F").to_vec()),
            ("iptables -t nat -F", both("-t nat -F").to_vec()),
            ("only IPv4 flushed", one("-t mangle -F", 0)),
            ("only IPv6 flushed", one("-t mangle -F", 1)),
            ("a chain flushed", one("-t mangle -F SPA-GUARD", 1)),
            ("a jump taken out", one("-t mangle -D PREROUTING -j SPA-GUARD", 0)),
            ("a rule of ours taken out", one("-t mangle -D SPA-JUDGE 1", 1)),
            ("a rule put before ours", one("-t mangle -I PREROUTING -j ACCEPT", 0)),
            ("our last rule made another", one("-t mangle -R SPA-REFUSE 1 -j ACCEPT", 1)),
        ]);
    }
    match lab.subject.backend {
        Backend::Ipset => all.extend([
            ("a set flushed", text(&["ipset flush spa4"])),
            ("all sets flushed", text(&["ipset flush"])),
            ("an element taken out", vec![format!("ipset del spa6 {},tcp:22", CLIENT[1])]),
        ]),
        Backend::Nftables => all.extend([
            ("our table taken out", text(&["nft delete table inet spa"])),
            ("our rules flushed", text(&["nft flush table inet spa"])),
        ]),
        _ => {}
    }
    if lab.subject.backend == Backend::Nftables || variant == Variant::Nft {
        all.push(("nft flush ruleset", text(&["nft flush ruleset"])));
    }
    all
}

/// Looks as the daemon does, whenever it is told to, until something is missing.
async fn watch(gate: Arc<AnyGate>, wanted: u64) -> Look {
    loop {
        let doubt = gate.disturbed().await;
        let look = gate.look(doubt).await.unwrap();
        if !look.missing.is_empty() || look.elements < wanted {
            return look;
        }
    }
}

/// Has somebody disturb a gate that holds so many elements; what it notices, and after which time.
///
/// Whether it waits for it just then, or is at something else: nothing is lost between two calls.
fn notices(
    lab: &Lab,
    gate: &LiveGate,
    wanted: usize,
    waits: bool,
    commands: &[String],
) -> (Look, Duration) {
    let wanted = wanted as u64;
    let begin = || gate.start(|gate| watch(gate, wanted));
    let quiet = begin();
    thread::sleep(Duration::from_millis(50));
    assert!(!quiet.is_finished());
    let waiting = if waits {
        Some(quiet)
    } else {
        quiet.abort();
        None
    };
    let began = Instant::now();
    for command in commands {
        lab.server.run(command);
    }
    let watching = waiting.unwrap_or_else(begin);
    until("noticed", || watching.is_finished());
    (gate.wait(watching), began.elapsed())
}

pub(crate) fn whatever_others_do_is_noticed_and_mended(lab: &Lab) {
    let plan = guarding(lab);
    let gate = lab.installed(&plan);
    let changes = [admit(CLIENT, "tcp/22", 600), admit(NETWORK, "udp/10000-10100", 600)].concat();
    let whole = |gate: &LiveGate| {
        lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", Silent)]);
        let look = gate.look(Doubt::Everything);
        assert_eq!((look.missing.as_slice(), look.elements), ([].as_slice(), 4));
    };
    gate.apply(&[&changes]);
    whole(&gate);
    let original = lab.ruleset();
    let mut slowest = (Duration::ZERO, "");
    for (at, (name, commands)) in disturbances(lab).into_iter().enumerate() {
        let (look, took) = notices(lab, &gate, changes.len(), at % 2 == 0, &commands);
        assert!(took < SOON, "{name}: noticed after {took:?}");
        println!("{name}: noticed after {} ms", took.as_millis());
        slowest = slowest.max((took, name));
        let fewer = look.elements < changes.len() as u64;
        assert!(fewer || !look.missing.is_empty(), "{name}: {look:?}");
        // As the daemon does then.
        let examined = gate.examine(&plan).unwrap();
        assert!(fewer || (examined.changed && !examined.differences.is_empty()), "{examined:?}");
        gate.install(&plan).unwrap();
        gate.apply(&[&changes]);
        assert_eq!(elements(&gate.snapshot()), admitted(&[&changes]), "{name}");
        if name == "a rule put before ours" {
            lab.rules(&["-t mangle -F PREROUTING"]);
            gate.install(&plan).unwrap();
        }
        assert_same(&lab.ruleset(), &original, &name);
        whole(&gate);
    }
    println!("slowest: {} after {:?}", slowest.1, slowest.0);
}

pub(crate) fn its_own_changes_are_no_disturbance(lab: &Lab) {
    let plan = guarding(lab);
    let gate = lab.installed(&plan);
    let looks = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&looks);
    let watch = gate.start(|gate| async move {
        loop {
            let doubt = gate.disturbed().await;
            let look = gate.look(doubt).await.unwrap();
            assert!(look.missing.is_empty(), "{look:?}");
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let seen = |at_work: usize| {
        let (began, before) = (Instant::now(), looks.load(Ordering::Relaxed));
        let rounds = if at_work > 0 { 40 } else { 1 };
        for round in 0..rounds {
            if at_work > 0 {
                let seconds = 100 + round;
                gate.apply(&[&admit(CLIENT, "tcp/22", seconds), &admit(NETWORK, "tcp/22", 500)]);
                gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
                gate.snapshot();
            }
            thread::sleep(Duration::from_millis(if at_work > 0 { 25 } else { 2000 }));
        }
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
        let seen = looks.load(Ordering::Relaxed) - before;
        let most = seconds * LOOKS_A_SECOND + at_work;
        assert!(seen <= most, "{seen} looks in {seconds} s, of {most}");
    };
    // Where a grant is a rule, a batch of them may cost a look, by family; but not one for ever.
    let batches = 80;
    seen(if lab.subject.promises.sets { 1 } else { 2 * batches });
    assert!(!gate.install(&plan).unwrap().changed);
    seen(0);
    assert!(!watch.is_finished());

    // Positive control: it is awake.
    watch.abort();
    gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
    notices(lab, &gate, 4, true, &disturbances(lab)[0].1);
}

pub(crate) fn a_look_counts_and_names_what_is_missing(lab: &Lab) {
    let plan = guarding(lab);
    let gate = lab.gate();
    let error = gate.run(|gate| async move { gate.look(Doubt::Everything).await }).unwrap_err();
    assert!(error.to_string().contains("not installed"), "{error}");
    gate.install(&plan).unwrap();
    let expected = [0, 2, 4, 2];
    for (round, changes) in [
        vec![],
        admit(CLIENT, "tcp/22", 600),
        admit(NETWORK, "udp/10000-10100", 600),
        withdraw(CLIENT, "tcp/22"),
    ]
    .into_iter()
    .enumerate()
    {
        gate.apply(&[&changes]);
        for doubt in [Doubt::Elements, Doubt::Everything] {
            let look = gate.look(doubt);
            assert_eq!(look.elements, expected[round], "{look:?}");
            assert_eq!(look.missing, [] as [&str; 0]);
        }
    }
    // What the kernel closes itself is gone from the count, sooner or later.
    gate.apply(&[&admit(NETWORK, "udp/10000-10100", 1)]);
    until("over", || gate.look(Doubt::Elements).elements == 0 || gate.snapshot().is_empty());
    gate.remove();
    assert!(gate.run(|gate| async move { gate.look(Doubt::Everything).await }).is_err());
    for family in BOTH {
        assert!(lab.session(STRANGER, family, 22).lives());
    }
}

pub(crate) fn a_gate_that_is_gone_is_missed(lab: &Lab) {
    let plan = guarding(lab);
    let gate = lab.installed(&plan);
    assert!(gate.look(Doubt::Everything).missing.is_empty());
    // By an administrator, with another program.
    lab.gate().remove();
    let look = gate.look(Doubt::Everything);
    assert!(!look.missing.is_empty());
    let began = Instant::now();
    let look = gate.run(|gate| watch(gate, 0));
    let took = began.elapsed();
    assert!(!look.missing.is_empty() && took < SOON, "{took:?}");
    assert!(gate.install(&plan).unwrap().changed);
    assert!(gate.look(Doubt::Everything).missing.is_empty());
    lab.see(&[&both(STRANGER, "tcp/22", Silent)]);
}
