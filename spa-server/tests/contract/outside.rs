//! The back-ends that guard nothing by themselves: commands of an administrator's for a firewall of
//! his own, and the one that only says what it would do.

use crate::lab::{
    BOTH, CLIENT, Lab, NETWORK, STRANGER, admit, admitted, at, elements, plan, withdraw,
};
use crate::probe::Seen::{Open, Silent};
use crate::probe::{PATIENCE, both, misjudged, until};
use spa_proto::Transport;
use spa_server::gate::{
    Backend, CommandLine, Connection, Cut, Doubt, Gate as _, Guarded, HookSettings, Mode, Plan,
};
use spa_server::service::Connections;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Admits by a rule with a comment, and takes out the rules with that comment.
const SCRIPT: &str = "#!/bin/sh
set -eu
ports=$SPA_PORT; [ $SPA_PORT = $SPA_PORT_LAST ] || ports=$SPA_PORT-$SPA_PORT_LAST
key=\"$SPA_SOURCE $SPA_PROTOCOL $ports\"
case $SPA_FAMILY in ipv4) ip=ip;; ipv6) ip=ip6;; esac
case $SPA_ACTION in
open) exec nft \"add rule inet admin granted $ip saddr $SPA_SOURCE $SPA_PROTOCOL dport $ports accept comment \\\"$key\\\"\";;
close) nft -a list chain inet admin granted | grep -F \"\\\"$key\\\"\" | sed 's/.*handle //' |
    while read handle; do nft delete rule inet admin granted handle $handle; done;;
esac
";

/// Commands that open and close in the table that [`guard`] makes.
pub(crate) fn commands(directory: &Path) -> HookSettings {
    let script = directory.join("change");
    let line = CommandLine::parse(&[script.display().to_string()]).unwrap();
    HookSettings {
        open: line.clone(),
        close: line,
        refresh: false,
        time_limit: Duration::from_secs(10),
        directory: directory.join("ledger"),
    }
}

/// Puts the commands where [`commands`] has them.
pub(crate) fn write_commands(lab: &Lab) {
    let script = lab.scripts.path().join("change");
    let text = script.with_extension("text");
    std::fs::write(&text, SCRIPT).unwrap();
    // By another process: see [`crate::crash`].
    lab.server.run(&format!("install -m 755 {} {}", text.display(), script.display()));
}

/// Waits until nobody holds what a gate before has held: it is dead, but a child that another test
/// was about to start in that moment shares its files until it runs its program.
pub(crate) fn await_end(lab: &Lab) {
    let ledger = commands(lab.scripts.path()).directory;
    let lock = format!("flock -n {} true", ledger.display());
    until("free", || !ledger.exists() || lab.server.try_to_feed(&lock, "").is_ok());
}

/// A firewall of an administrator's who hides these ports himself.
pub(crate) fn guard(lab: &Lab, plan: &Plan) {
    if lab.server.try_to_feed("nft list table inet admin", "").is_ok() {
        return;
    }
    let mut rules = String::from(
        "table inet admin {\n chain granted {}\n chain entry {\n \
         type filter hook prerouting priority mangle\n iif lo accept\n \
         ct state established,related accept\n jump granted\n",
    );
    for guarded in &plan.guarded {
        let (transport, first, last) =
            (guarded.ports.transport(), guarded.ports.first(), guarded.ports.last());
        let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let _ = writeln!(rules, " fib daddr type local {transport} dport {ports} drop");
    }
    rules.push_str(" }\n}\n");
    lab.server.feed("nft -f -", &rules);
}

pub(crate) fn nobody_closes_for_a_dead_daemon_but_the_next_one(lab: &Lab) {
    let plan = plan(&["tcp/22", "udp/10000-10100"]);
    let gate = lab.installed(&plan);
    let middle = |seen| both(CLIENT, "udp/10050", seen);
    lab.see(&[&both(CLIENT, "tcp/22", Silent), &middle(Silent)]);
    // As long as it lives, it closes in time.
    gate.apply(&[&admit(CLIENT, "tcp/22", 2)]);
    lab.see(&[&both(CLIENT, "tcp/22", Open)]);
    until("closed", || misjudged(&lab.clients, &both(CLIENT, "tcp/22", Silent)).is_empty());
    gate.apply(&[&admit(CLIENT, "udp/10000-10100", 2), &admit(STRANGER, "tcp/22", 600)]);
    drop(gate);
    std::thread::sleep(Duration::from_secs(2) + PATIENCE);
    lab.see(&[&middle(Open)]);
    // The next one finishes what it finds over, and goes on with the rest.
    let gate = lab.installed(&plan);
    until("closed", || misjudged(&lab.clients, &middle(Silent)).is_empty());
    lab.see(&[&both(STRANGER, "tcp/22", Open)]);
    assert_eq!(elements(&gate.snapshot()), admitted(&[&admit(STRANGER, "tcp/22", 1)]));
}

/// What neither of the two can, it says so; and changes no rule by itself.
fn cannot_do_more(lab: &Lab, takes_one_connection: bool) {
    let before = lab.ruleset();
    let gate = lab.gate();
    let mut plan = plan(&["tcp/80"]);
    assert!(gate.install(&plan).unwrap().changed);
    assert_same_rules(lab, &before);
    lab.see(&[&both(STRANGER, "tcp/80", Open)]);
    let connection = Connection {
        transport: Transport::Tcp,
        peer: at(CLIENT[0], 40000),
        local: at(crate::lab::SERVER[0], 80),
    };
    let cut = Cut { connection, answered_from: connection.local };
    let severed = gate.run(|gate| async move { gate.sever(&[cut]).await });
    if lab.subject.backend == Backend::Hook {
        let error = severed.unwrap_err().to_string();
        assert!(error.contains("connections"), "{error}");
    }
    gate.lift();
    plan.guarded[0].connections = Connections::One;
    assert_eq!(gate.install(&plan).is_ok(), takes_one_connection);
    // Nobody else changes what it has, so nobody is told.
    let disturbed = gate.start(|gate| async move { gate.disturbed().await });
    std::thread::sleep(PATIENCE);
    assert!(!disturbed.is_finished());
    gate.remove();
    assert_same_rules(lab, &before);
}

fn assert_same_rules(lab: &Lab, before: &str) {
    crate::lab::assert_same(&lab.ruleset(), before, &lab.subject.backend);
}

pub(crate) fn commands_hide_nothing_and_cut_nothing(lab: &Lab) {
    guard(lab, &plan(&["tcp/22"]));
    cannot_do_more(lab, false);
}

pub(crate) fn a_dry_run_touches_nothing_and_says_what_it_would_do(lab: &Lab) {
    cannot_do_more(lab, true);
    let before = lab.ruleset();
    let gate = lab.gate();
    let mut all = plan(&["tcp/22", "udp/10000-10100"]);
    all.guarded.push(Guarded {
        target: crate::lab::forward(Some(22), true),
        ..Guarded::plain(crate::lab::ports("tcp/3322"))
    });
    for mode in [Mode::Guard, Mode::Open] {
        let plan = Plan { mode, ..all.clone() };
        let said = gate.install(&plan).unwrap().differences.join("\n");
        for word in ["SPA-INPUT", "spa4", "spa6", "SPA-FORWARD", "DNAT"] {
            assert!(said.contains(word), "{said}");
        }
        let changes = [admit(CLIENT, "tcp/22", 600), admit(NETWORK, "udp/10000-10100", 1)].concat();
        gate.apply(&[&changes]);
        assert_eq!(elements(&gate.snapshot()), admitted(&[&changes]));
        // Time runs as it would.
        until("over", || gate.snapshot().len() == 2);
        assert_eq!(gate.look(Doubt::Everything).elements, 2);
        lab.see(&[&both(STRANGER, "tcp/22", Open)]);
        gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
        assert_eq!(gate.snapshot(), []);
        for family in BOTH {
            assert!(lab.session(STRANGER, family, 22).lives());
        }
        assert_same_rules(lab, &before);
    }
}
