//! The gate beside the host's own firewall, and among tools that fail.

use crate::lab::{
    CLIENT, Lab, OPEN, SILENT, STRANGER, Seen, Variant, admit, block_on, plan, with_both_variants,
    withdraw,
};
use spa_server::gate::{
    Gate as _, GateError, Guarded, IptablesGate, MissingTool, Mode, Refusal, ToolOverrides, Tools,
};
use spa_server::service::Connections;
use std::error::Error as _;
use std::path::Path;

with_both_variants!(
    granted_traffic_passes_the_hosts_own_default_drop,
    removing_leaves_the_ruleset_as_it_was,
    a_second_installation_changes_nothing_and_elements_live_on,
    what_others_flush_or_put_before_us_is_mended,
    sets_are_resized_without_losing_an_element,
    a_failing_tool_leaves_nothing_half_installed,
    a_failing_tool_leaves_what_was_installed_before,
    open_mode_opens_what_the_host_drops,
    open_mode_refuses_where_another_chain_drops,
    open_mode_refuses_where_the_other_variant_drops,
    guard_warns_of_chains_that_lose_granted_packets,
    rules_that_set_marks_of_ours_are_told_of,
    rules_that_clear_marks_of_ours_are_told_of,
    a_host_that_forgets_idle_connections_is_told_of,
    what_is_taken_out_of_tracking_is_told_of_wherever_that_is_done,
    a_set_of_somebody_elses_is_not_taken,
    removing_needs_no_more_than_it_uses_and_finds_the_other_variant,
);

/// Rules as a host may have them, in every table that the gate writes to.
const HOST_RULES: [&str; 7] = [
    "-N HOST",
    "-A HOST -p tcp --dport 80 -j ACCEPT",
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -j HOST",
    "-A INPUT -m comment --comment a\"b -j HOST",
    "-t mangle -A PREROUTING -p tcp --dport 99 -j MARK --set-mark 0x1",
    "-t nat -A PREROUTING -p tcp --dport 98 -j REDIRECT --to-ports 80",
];

fn granted_traffic_passes_the_hosts_own_default_drop(lab: &Lab) {
    lab.rules(lab.variant, &["-A INPUT -p icmpv6 -j ACCEPT", "-A INPUT -j DROP", "-P INPUT DROP"]);
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    for refusal in [Refusal::Drop, Refusal::Reject] {
        let plan = plan(Mode::Guard, refusal);
        lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        assert_ne!(lab.both(STRANGER, 22), OPEN);
        assert_eq!(lab.both(CLIENT, 80), SILENT);
        lab.remove();
        assert_eq!(lab.both(CLIENT, 22), SILENT);
    }
}

fn removing_leaves_the_ruleset_as_it_was(lab: &Lab) {
    for host_has_rules in [false, true] {
        if host_has_rules {
            lab.rules(lab.variant, &HOST_RULES);
            lab.rules(lab.variant.other(), &HOST_RULES);
            lab.on("s", "ipset create mine hash:ip timeout 600");
        }
        let before = lab.ruleset();
        assert_eq!(before.contains("HOST"), host_has_rules);
        for (mode, refusal) in [
            (Mode::Guard, Refusal::Drop),
            (Mode::Guard, Refusal::Reject),
            (Mode::Open, Refusal::Drop),
        ] {
            let plan = plan(mode, refusal);
            lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
            assert!(lab.ruleset().contains("SPA-INPUT"));
            lab.remove();
            assert_eq!(lab.ruleset(), before);
        }
        // Removing what isn't there does no harm.
        lab.remove();
        assert_eq!(lab.ruleset(), before);
    }
}

fn a_second_installation_changes_nothing_and_elements_live_on(lab: &Lab) {
    lab.rules(lab.variant, &HOST_RULES);
    for (mode, refusal) in
        [(Mode::Guard, Refusal::Drop), (Mode::Guard, Refusal::Reject), (Mode::Open, Refusal::Drop)]
    {
        let plan = plan(mode, refusal);
        lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
        let rules = |text: String| {
            let times = |line: &&str| !line.contains(" timeout ");
            text.lines().filter(times).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = rules(lab.ruleset());
        let (changed, elements) = lab.with_gate(&lab.variant.overrides(), |gate| async move {
            let report = gate.install(&plan).await.unwrap();
            (report.changed, gate.snapshot().await.unwrap())
        });
        assert!(!changed);
        assert_eq!(rules(lab.ruleset()), before);
        assert_eq!(elements.len(), 2);
        assert!(elements.iter().all(|live| live.seconds_left > 500), "{elements:?}");
    }
}

fn what_others_flush_or_put_before_us_is_mended(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    let before = lab.ruleset();

    // Before us, in one table or the other: the port is still hidden. In both: no more.
    let accepts = ["-t mangle -I PREROUTING -j ACCEPT", "-I INPUT -j ACCEPT"];
    let deletes = accepts.map(|rule| rule.replace("-I", "-D"));
    for (accept, delete) in accepts.iter().zip(&deletes) {
        lab.rules(lab.variant, &[accept]);
        assert_eq!(lab.both(STRANGER, 22), SILENT);
        lab.rules(lab.variant, &[delete]);
    }
    lab.rules(lab.variant, &accepts);
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    lab.install(&plan);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    lab.rules(lab.variant, &deletes.each_ref().map(String::as_str));

    // Everything flushed, as a firewall manager does when it starts.
    lab.rules(lab.variant, &["-F", "-X", "-t mangle -F", "-t mangle -X"]);
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    lab.install(&plan);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    assert_eq!(lab.both(CLIENT, 22), OPEN, "the grant lived on in its set");

    // A rule of ours taken out, one doubled, a jump doubled.
    lab.rules(
        lab.variant,
        &[
            "-t mangle -D SPA-JUDGE -j SPA-REFUSE",
            "-I SPA-INPUT -j RETURN",
            "-A INPUT -j SPA-INPUT",
        ],
    );
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    lab.install(&plan);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    let rules = |text: &str| {
        let is_rule = |line: &&str| !line.contains(" timeout ");
        text.lines().filter(is_rule).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rules(&lab.ruleset()), rules(&before));
}

fn sets_are_resized_without_losing_an_element(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    plan.max_elements = 7;
    let elements = lab.installed(&plan, |gate| async move { gate.snapshot().await.unwrap() });
    assert_eq!(elements.len(), 2);
    assert!((500..=601).contains(&elements[0].seconds_left), "{elements:?}");
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    let sets = lab.on("s", "ipset list -t");
    assert_eq!(sets.matches("maxelem 7 ").count(), 4, "{sets}");
    assert_eq!(sets.matches("Name:").count(), 4, "{sets}");

    // Smaller than what is in it: it stays as large until that is over. A daemon that starts with
    // a smaller max-grants would else lock everybody out.
    lab.apply(&plan, &admit(STRANGER, "tcp/22", 600));
    plan.max_elements = 1;
    let sizes = || {
        let sets = lab.on("s", "ipset list -t");
        [1, 7].map(|size| sets.matches(&format!("maxelem {size} ")).count())
    };
    lab.install(&plan);
    assert_eq!(sizes(), [2, 2]);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    lab.apply(&plan, &withdraw(STRANGER, "tcp/22"));
    lab.install(&plan);
    assert_eq!(sizes(), [4, 0]);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
}

/// Overrides in which one tool fails at a certain input, for each tool and place where it may.
fn failures(lab: &Lab) -> Vec<ToolOverrides> {
    let good = Tools::find(&lab.variant.overrides()).unwrap();
    let fail = |tool: &Path, when: &str| Some(lab.failing(tool, when));
    let base = lab.variant.overrides();
    vec![
        ToolOverrides {
            iptables_restore: fail(&good.iptables_restore, "SPA-TRACK"),
            ..base.clone()
        },
        ToolOverrides {
            ip6tables_restore: fail(&good.ip6tables_restore, "-A SPA-JUDGE"),
            ..base.clone()
        },
        ToolOverrides {
            ip6tables_restore: fail(&good.ip6tables_restore, "-A SPA-INPUT"),
            ..base.clone()
        },
        ToolOverrides { iptables_save: fail(&good.iptables_save, ""), ..base },
    ]
}

fn a_failing_tool_leaves_nothing_half_installed(lab: &Lab) {
    lab.rules(lab.variant, &HOST_RULES);
    let _session = lab.session(0, 22);
    let before = lab.ruleset();
    for overrides in failures(lab) {
        let plan = plan(Mode::Guard, Refusal::Reject);
        let error =
            lab.with_gate(&overrides, |gate| async move { gate.install(&plan).await.unwrap_err() });
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains("out of luck") && cause.contains("failing"), "{error}: {cause}");
        assert_eq!(lab.ruleset(), before, "{overrides:?}");
        assert_eq!(lab.both(CLIENT, 22), OPEN);
    }
    // Positive control: with tools that work, it works.
    lab.install(&plan(Mode::Guard, Refusal::Reject));
    assert_ne!(lab.ruleset(), before);
}

fn a_failing_tool_leaves_what_was_installed_before(lab: &Lab) {
    lab.rules(lab.variant, &HOST_RULES);
    let old = plan(Mode::Guard, Refusal::Drop);
    lab.apply(&old, &admit(CLIENT, "tcp/22", 600));
    let _session = lab.session(0, 22);
    let rules = || {
        let text = lab.ruleset();
        let keep = |line: &&str| !line.contains(" timeout ") || line.starts_with("create");
        text.lines().filter(keep).map(|l| l.split(" initval").next().unwrap().to_owned()).collect()
    };
    let before: Vec<String> = rules();
    for overrides in failures(lab) {
        let mut new = plan(Mode::Guard, Refusal::Reject);
        new.guarded.push(Guarded::plain("tcp/80".parse().unwrap()));
        new.max_elements = 4096;
        let result = lab.with_gate(&overrides, |gate| async move { gate.install(&new).await });
        // Tracking is on already, and the sets are there: not every failure strikes.
        if result.is_ok() {
            lab.install(&old);
        }
        assert_eq!(rules(), before, "{overrides:?}");
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        assert_eq!(lab.both(STRANGER, 22), SILENT);
    }
}

fn open_mode_opens_what_the_host_drops(lab: &Lab) {
    let plan = plan(Mode::Open, Refusal::Drop);
    let warnings = lab.with_gate(&lab.variant.overrides(), |gate| {
        let plan = plan.clone();
        async move { gate.install(&plan).await.unwrap().warnings }
    });
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(warnings.len(), 2, "nothing drops, and that is said: {warnings:?}");
    lab.remove();

    lab.rules(lab.variant, &["-A INPUT -p icmpv6 -j ACCEPT", "-P INPUT DROP"]);
    let warnings = lab.with_gate(&lab.variant.overrides(), |gate| {
        let plan = plan.clone();
        async move { gate.install(&plan).await.unwrap().warnings }
    });
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    // From guard to open mode, live: nothing of guard mode is left.
    lab.install(&crate::lab::plan(Mode::Guard, Refusal::Reject));
    lab.install(&plan);
    let rules = lab.ruleset();
    assert!(!rules.contains("SPA-GUARD") && !rules.contains("SPA-REJECT"), "{rules}");
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

const NATIVE: &str = "\
table inet strict {
    chain entry {
        type filter hook input priority 10; policy drop;
        tcp dport 80 accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
}
";

fn open_mode_refuses_where_another_chain_drops(lab: &Lab) {
    lab.nft(NATIVE);
    let before = lab.ruleset();
    let plan = plan(Mode::Open, Refusal::Drop);
    let error = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        assert!(gate.examine(&plan).await.is_err());
        gate.install(&plan).await.unwrap_err()
    });
    assert!(matches!(error, GateError::DroppedElsewhere { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("chain entry of nft table inet strict has policy drop"), "{message}");
    assert_eq!(lab.ruleset(), before);
}

fn open_mode_refuses_where_the_other_variant_drops(lab: &Lab) {
    // Ours drops nothing, the other one does: an accept in ours changes nothing.
    lab.rules(lab.variant.other(), &["-P INPUT DROP"]);
    let plan = plan(Mode::Open, Refusal::Drop);
    let error = lab.with_gate(&lab.variant.overrides(), |gate| {
        let plan = plan.clone();
        async move { gate.install(&plan).await.unwrap_err() }
    });
    let message = error.to_string();
    assert!(message.contains("INPUT") && message.contains("filter"), "{message}");
    // Positive control: with the tools of the variant that drops, it works.
    lab.with_gate(&lab.variant.other().overrides(), |gate| async move {
        gate.install(&plan).await.unwrap();
    });
}

fn guard_warns_of_chains_that_lose_granted_packets(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    lab.nft(NATIVE);
    let warnings = |plan: spa_server::gate::Plan| {
        lab.with_gate(&lab.variant.overrides(), |gate| async move {
            gate.install(&plan).await.unwrap().warnings
        })
    };
    let warned = warnings(plan.clone());
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("chain entry of nft table inet strict"), "{warned:?}");
    assert!(warned[0].contains("tcp/22, udp/5000"), "{warned:?}");
    plan.guarded = vec![Guarded::plain("tcp/80".parse().unwrap())];
    assert!(warnings(plan).is_empty());
}

fn rules_that_set_marks_of_ours_are_told_of(lab: &Lab) {
    let warnings = |refusal| {
        lab.with_gate(&lab.variant.overrides(), |gate| async move {
            gate.examine(&plan(Mode::Guard, refusal)).await.unwrap().warnings
        })
    };
    lab.rules(lab.variant, &["-t mangle -A PREROUTING -p tcp -j MARK --set-mark 0x1"]);
    assert!(warnings(Refusal::Reject).is_empty());
    lab.rules(lab.variant, &["-t mangle -A PREROUTING -p udp -j MARK --or-mark 0x20000000"]);
    lab.nft(
        "table inet uplinks {\n chain entry {\n type filter hook prerouting priority 0\n \
         meta mark set 0xffffffff\n }\n}\n",
    );
    let told = warnings(Refusal::Reject);
    assert_eq!(told.len(), 3, "one for each family, and one for nft: {told:?}");
    assert!(told.iter().all(|warning| warning.contains("(0x20000000)")), "{told:?}");
    // Where the gate drops, no mark counts.
    assert!(warnings(Refusal::Drop).is_empty());
}

fn rules_that_clear_marks_of_ours_are_told_of(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    let limited =
        Guarded { connections: Connections::One, ..Guarded::plain("tcp/80".parse().unwrap()) };
    plan.guarded.push(limited);
    let seen = || {
        lab.apply(&plan, &admit(CLIENT, "tcp/80", 600));
        let seen = lab.both(CLIENT, 80);
        lab.apply(&plan, &withdraw(CLIENT, "tcp/80"));
        let plan = plan.clone();
        let warnings = lab.with_gate(&lab.variant.overrides(), |gate| async move {
            gate.examine(&plan).await.unwrap().warnings
        });
        assert!(warnings.iter().all(|one| one.contains("clears bits of the connection mark")));
        assert!(warnings.iter().all(|one| one.contains("connections = 1 may let nobody in")));
        (seen, warnings.len())
    };
    assert_eq!(seen(), (OPEN, 0));
    let save = |mask: &str| format!("PREROUTING -j CONNMARK --save-mark{mask}");
    lab.rules(lab.variant, &[&format!("-t mangle -A {}", save(" --mask 0xff"))]);
    assert_eq!(seen(), (OPEN, 0));
    lab.rules(lab.variant, &[&format!("-t mangle -A {}", save(""))]);
    assert_eq!(seen(), (SILENT, 2), "one for each family");
    lab.rules(lab.variant, &[&format!("-t mangle -D {}", save(""))]);
    let native = |what: &str| {
        lab.nft(&format!(
            "table inet uplinks {{\n chain entry {{\n type filter hook prerouting priority 0\n \
             ct mark set {what}\n }}\n}}\n"
        ));
    };
    native("ct mark or 0x1");
    assert_eq!(seen(), (OPEN, 0));
    native("0x1");
    assert_eq!(seen(), (SILENT, 1));
}

fn a_host_that_forgets_idle_connections_is_told_of(lab: &Lab) {
    let install = || {
        lab.with_gate(&lab.variant.overrides(), |gate| async move {
            gate.install(&plan(Mode::Guard, Refusal::Drop)).await.unwrap().warnings
        })
    };
    assert!(install().is_empty());
    lab.on("s", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=600");
    let warnings = install();
    assert!(warnings.len() == 1 && warnings[0].contains("600 seconds"), "{warnings:?}");
    lab.on("s", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=432000");

    // Nor does it track what table raw takes out.
    lab.rules(lab.variant, &["-t raw -A PREROUTING -p tcp --dport 22 -j CT --notrack"]);
    assert_eq!(install().len(), 2, "one for each family");
}

fn what_is_taken_out_of_tracking_is_told_of_wherever_that_is_done(lab: &Lab) {
    let told = || {
        lab.with_gate(&lab.variant.overrides(), |gate| async move {
            gate.examine(&plan(Mode::Guard, Refusal::Drop)).await.unwrap().warnings
        })
    };
    let base = "table inet early {\n chain entry {\n type filter hook prerouting priority raw\n \
                tcp dport 99 counter\n }\n}\n";
    lab.nft(base);
    assert!(told().is_empty());
    lab.nft("add rule inet early entry tcp dport 22 notrack\n");
    let warnings = told();
    assert!(
        warnings.len() == 1 && warnings[0].contains("chain entry of nft table inet early takes"),
        "{warnings:?}"
    );
    lab.nft("delete table inet early\n");
    let untrack = ["-t raw -A PREROUTING -p tcp --dport 22 -j CT --notrack"];
    lab.rules(lab.variant.other(), &untrack);
    let warnings = told();
    assert!(
        warnings.len() == 2 && warnings.iter().all(|one| one.contains("of connection tracking")),
        "one for each family: {warnings:?}"
    );
}

fn a_set_of_somebody_elses_is_not_taken(lab: &Lab) {
    lab.on("s", "ipset create spa6 hash:net family inet6");
    let before = lab.ruleset();
    let plan = plan(Mode::Guard, Refusal::Drop);
    let error = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        gate.install(&plan).await.unwrap_err()
    });
    assert!(matches!(&error, GateError::ForeignSet { name, .. } if name == "spa6"), "{error}");
    assert_eq!(lab.ruleset(), before);
    // Nor is it taken away, nor one that has the name of the set that is to be the new one.
    lab.on("s", "ipset create spa4-new hash:net");
    let before = lab.ruleset();
    lab.remove();
    assert_eq!(lab.ruleset(), before);
}

fn removing_needs_no_more_than_it_uses_and_finds_the_other_variant(lab: &Lab) {
    let before = lab.ruleset();
    let gone = || Some("/nonexistent".into());
    let no_nft = ToolOverrides { nft: gone(), ..lab.variant.overrides() };
    for overrides in [no_nft, lab.variant.other().overrides()] {
        lab.install(&plan(Mode::Guard, Refusal::Reject));
        assert_eq!(lab.both(CLIENT, 22), crate::lab::REFUSED);
        lab.inside("s", || {
            let gate = IptablesGate::new(Tools::find_some(&overrides));
            block_on(gate.remove()).unwrap();
        });
        assert_eq!(lab.ruleset(), before);
        assert_eq!(lab.both(CLIENT, 22), OPEN);
    }
    // Nor are the named ones needed where those of both variants are there.
    lab.install(&plan(Mode::Guard, Refusal::Drop));
    lab.inside("s", || {
        let mut tools = Tools::find(&lab.variant.overrides()).unwrap();
        tools.iptables_save = "/nonexistent".into();
        block_on(IptablesGate::new(tools).remove()).unwrap();
    });
    assert_eq!(lab.ruleset(), before);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

#[test]
fn a_missing_tool_is_named_with_what_to_do() {
    let overrides = ToolOverrides {
        iptables_save: Some("/nonexistent/save".into()),
        ..ToolOverrides::default()
    };
    let error: MissingTool = Tools::find(&overrides).unwrap_err();
    assert_eq!((error.name, error.package), ("iptables-save", "iptables"));
    // Positive control: it is there.
    assert!(Tools::find(&ToolOverrides::default()).is_ok());
}

#[test]
fn tools_of_different_variants_are_refused() {
    let lab = Lab::new(Variant::Nft);
    let mut overrides = Variant::Nft.overrides();
    overrides.ip6tables_restore = Variant::Legacy.overrides().ip6tables_restore;
    let before = lab.ruleset();
    let error = lab.with_gate(&overrides, |gate| async move {
        gate.install(&plan(Mode::Guard, Refusal::Drop)).await.unwrap_err()
    });
    assert!(matches!(error, GateError::MixedVariants(_)), "{error}");
    assert_eq!(lab.ruleset(), before);
    assert_eq!(lab.tcp(CLIENT[0], crate::lab::SERVER[0], 22), Seen::Open);
}
