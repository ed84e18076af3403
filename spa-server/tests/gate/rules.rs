//! What is special where each grant is a rule.

use crate::lab::{CLIENT, Lab, OPEN, SILENT, STRANGER, Seen, admit, element, plan, withdraw};
use spa_server::gate::{
    Backend, Change, Element, Gate as _, GateError, Guarded, Mode, Refusal, ToolOverrides,
};
use spa_server::service::Connections;
use spa_server::source::Source;
use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

macro_rules! with_rules {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::holding(crate::lab::Variant::Nft, false)); })*
        }
        mod legacy {
            $(#[test] fn $name() { super::$name(&crate::lab::Lab::holding(crate::lab::Variant::Legacy, false)); })*
        }
    };
}

with_rules!(
    the_kernel_closes_by_itself_and_the_rule_goes_with_the_next_change,
    grants_are_rules_and_nothing_else,
    a_grant_is_found_by_its_comment_wherever_it_stands,
    a_thousand_at_once_are_admitted_and_taken_back,
    there_are_no_more_than_the_plan_allows,
    sets_give_way_to_rules_and_rules_to_sets,
    a_tool_that_fails_is_told_and_changes_nothing,
);

/// The rules that are grants, of both families and all tables, less their times.
fn grants(lab: &Lab) -> Vec<String> {
    let rules = lab.ruleset();
    let grants = rules.lines().filter(|line| line.contains("--comment \"spa:"));
    grants.map(str::to_owned).collect()
}

/// Waits until the client is let in no longer.
fn until_over(lab: &Lab) {
    lab.wait("the grants to be over", || {
        // Nobody takes the connections, and only so many can wait.
        thread::sleep(Duration::from_millis(150));
        lab.both(CLIENT, 22) == SILENT
    });
}

fn the_kernel_closes_by_itself_and_the_rule_goes_with_the_next_change(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.guarded[1].connections = Connections::One;
    let changes = [admit(CLIENT, "tcp/22", 3), admit(CLIENT, "udp/5000", 3)].concat();
    lab.apply(&plan, &changes);
    // No gate lives any more: the process could be dead.
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    until_over(lab);
    assert_eq!(lab.both(CLIENT, 80), OPEN);
    // The rules are still there, and count for nothing.
    assert_eq!(grants(lab).len(), 6);
    lab.installed(&plan, |gate| async move {
        assert_eq!(grants(lab).len(), 6, "an installation touches nothing that is in place");
        assert_eq!(gate.snapshot().await.unwrap(), []);
        assert_eq!(grants(lab).len(), 0);
        gate.apply(&changes).await.unwrap();
        assert_eq!(gate.snapshot().await.unwrap().len(), 4);
        until_over(lab);
        gate.apply(&admit(STRANGER, "tcp/22", 600)).await.unwrap();
        let left = grants(lab);
        assert!(left.len() == 4 && left.iter().all(|rule| !rule.contains(":udp/5000")), "{left:?}");
    });
    assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [SILENT, OPEN]);
}

fn grants_are_rules_and_nothing_else(lab: &Lab) {
    let before = lab.ruleset();
    let plan = plan(Mode::Guard, Refusal::Reject);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.on("s", "ipset list -n"), "");
    // A refresh is no second rule.
    lab.installed(&plan, |gate| async move {
        assert_eq!(gate.backend(), Backend::Iptables);
        gate.apply(&admit(CLIENT, "tcp/22", 900)).await.unwrap();
        gate.apply(&[admit(CLIENT, "tcp/22", 5), admit(CLIENT, "tcp/22", 800)].concat())
            .await
            .unwrap();
        let found = gate.snapshot().await.unwrap();
        assert!(found.len() == 2 && found.iter().all(|live| live.seconds_left > 700), "{found:?}");
        assert_eq!(grants(lab).len(), 4);
        let both = [admit(STRANGER, "tcp/22", 800), withdraw(STRANGER, "tcp/22")].concat();
        gate.apply(&both).await.unwrap();
        assert_eq!(grants(lab).len(), 4);
    });
    lab.remove();
    assert_eq!(lab.ruleset(), before);
}

fn a_grant_is_found_by_its_comment_wherever_it_stands(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    // Somebody has put rules of his own among them.
    for table in ["mangle", "filter"] {
        lab.rules(
            lab.variant,
            &[
                &format!("-t {table} -I SPA-GRANTS 1 -p tcp -m tcp --dport 99 -j RETURN"),
                &format!("-t {table} -I SPA-GRANTS 3 -p tcp -m tcp --dport 98 -m comment --comment spa -j RETURN"),
            ],
        );
    }
    lab.inside("s", || {
        let gate = lab.gate(spa_server::gate::Tools::find(&lab.variant.overrides()).unwrap());
        crate::lab::block_on(async {
            let found = gate.snapshot().await.unwrap();
            assert_eq!(found.len(), 2, "another process reads them, too");
        });
    });
    let others = |lab: &Lab| lab.ruleset().matches("--dport 9").count();
    assert_eq!(others(lab), 8);
    lab.with_gate(&lab.variant.overrides(), |gate| async move {
        // What isn't ours there is in the way of what is installed, and goes.
        assert!(gate.install(&plan).await.unwrap().changed);
        assert_eq!(others(lab), 0);
        gate.apply(&withdraw(CLIENT, "tcp/22")).await.unwrap();
        assert_eq!((gate.snapshot().await.unwrap(), grants(lab)), (Vec::new(), Vec::new()));
    });
    assert_eq!(lab.both(CLIENT, 22), SILENT);
}

fn a_thousand_at_once_are_admitted_and_taken_back(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.max_elements = 65536;
    let mut sources: Vec<Element> = (0..998u32)
        .map(|at| {
            let address = if at % 2 == 0 {
                Ipv4Addr::from(0x0a00_0000 + at).into()
            } else {
                Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(at)).into()
            };
            Element { source: Source::host(address), ports: "tcp/22".parse().unwrap() }
        })
        .collect();
    sources.extend(CLIENT.map(|client| element(client, "tcp/22")));
    let admit: Vec<_> =
        sources.iter().map(|element| Change::Admit { element: *element, seconds: 600 }).collect();
    let withdraw: Vec<_> =
        sources.iter().map(|element| Change::Withdraw { element: *element }).collect();
    lab.installed(&plan, |gate| async move {
        gate.apply(&admit).await.unwrap();
        let found: HashSet<_> =
            gate.snapshot().await.unwrap().into_iter().map(|live| live.element).collect();
        assert_eq!(found, sources.into_iter().collect());
        assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, SILENT]);
        // Half of them anew, the others gone.
        let half: Vec<_> = admit
            .iter()
            .zip(&withdraw)
            .enumerate()
            .map(|(at, (a, w))| if at < 500 { *a } else { *w })
            .collect();
        gate.apply(&half).await.unwrap();
        assert_eq!(gate.snapshot().await.unwrap().len(), 500);
        gate.apply(&withdraw).await.unwrap();
        assert_eq!((gate.snapshot().await.unwrap(), grants(lab)), (Vec::new(), Vec::new()));
    });
    assert_eq!(lab.both(CLIENT, 22), SILENT);
}

fn there_are_no_more_than_the_plan_allows(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.max_elements = 1;
    lab.installed(&plan, |gate| async move {
        gate.apply(&admit(CLIENT, "tcp/22", 2)).await.unwrap();
        // The same one once more, and another one in its place.
        gate.apply(&admit(CLIENT, "tcp/22", 2)).await.unwrap();
        let error = gate.apply(&admit(STRANGER, "tcp/22", 30)).await.unwrap_err();
        assert!(
            matches!(&error, GateError::Full { name } if name.contains("SPA-GRANTS")),
            "{error}"
        );
        until_over(lab);
        gate.apply(&admit(STRANGER, "tcp/22", 30)).await.unwrap();
    });
}

fn sets_give_way_to_rules_and_rules_to_sets(lab: &Lab) {
    let fresh = lab.ruleset();
    let mut plan = plan(Mode::Guard, Refusal::Reject);
    plan.guarded.push(Guarded::plain("udp/10000-10100".parse().unwrap()));
    let install = |in_sets: bool, first: bool| {
        lab.inside("s", || {
            let tools = spa_server::gate::Tools::find(&lab.variant.overrides()).unwrap();
            let gate = if in_sets {
                spa_server::gate::IptablesGate::new(tools)
            } else {
                spa_server::gate::IptablesGate::without_sets(tools)
            };
            crate::lab::block_on(async {
                assert!(gate.install(&plan).await.unwrap().changed);
                if first {
                    gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
                }
                // It is not a moment without its grants.
                let found = gate.snapshot().await.unwrap();
                assert_eq!(found.len(), 2);
                assert!(found.iter().all(|live| live.seconds_left > 500), "{found:?}");
                assert_eq!(gate.examine(&plan).await.unwrap().differences, [""; 0]);
            });
        });
        assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, [Seen::Refused; 2]]);
    };
    install(true, true);
    install(false, false);
    assert_eq!(lab.on("s", "ipset list -n"), "");
    install(true, false);
    assert_eq!(grants(lab), [""; 0]);
    // Either one takes away the other's.
    lab.remove();
    assert_eq!(lab.ruleset(), fresh);
}

fn a_tool_that_fails_is_told_and_changes_nothing(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.install(&plan);
    let restore = lab.variant.overrides().ip6tables_restore.unwrap();
    let overrides = ToolOverrides {
        ip6tables_restore: Some(lab.failing(&restore, "-I SPA-GRANTS")),
        ..lab.variant.overrides()
    };
    lab.with_gate(&overrides, |gate| async move {
        gate.install(&plan).await.unwrap();
        let error = gate.apply(&admit(CLIENT, "tcp/22", 600)[1..]).await.unwrap_err();
        assert!(matches!(error, GateError::Tool { .. }), "{error}");
        assert_eq!(gate.snapshot().await.unwrap(), []);
        gate.apply(&admit(CLIENT, "tcp/22", 600)[..1]).await.unwrap();
        assert_eq!(gate.snapshot().await.unwrap().len(), 1);
    });
    assert_eq!(lab.both(CLIENT, 22), [Seen::Open, Seen::Silent]);
}
