//! A host on which what `iptables` stands for changes while a gate stands.

use crate::lab::{CLIENT, Lab, OPEN, SERVER, SILENT, STRANGER, Seen, Variant, admit, plan};
use spa_server::gate::{Gate as _, Guarded, Mode, Plan, Refusal};
use spa_server::service::Connections;

/// Makes a test of each of these functions for each variant and each place where grants are held.
macro_rules! with_each_gate {
    ($($name:ident),* $(,)?) => {
        with_each_gate!(@ nft, Nft, true, $($name),*);
        with_each_gate!(@ nft_rules, Nft, false, $($name),*);
        with_each_gate!(@ legacy, Legacy, true, $($name),*);
        with_each_gate!(@ legacy_rules, Legacy, false, $($name),*);
    };
    (@ $module:ident, $variant:ident, $in_sets:literal, $($name:ident),*) => {
        mod $module {
            $(#[test] fn $name() {
                super::$name(&crate::lab::Lab::holding(super::Variant::$variant, $in_sets));
            })*
        }
    };
}

with_each_gate!(
    a_gate_in_the_other_variant_is_replaced_with_what_it_admits,
    a_trial_ends_though_a_gate_stood_for_good_in_the_other_variant,
);

/// What is ours in a variant.
fn ours(lab: &Lab, variant: Variant) -> Vec<String> {
    let saved = variant.commands().map(|command| lab.on("s", &format!("{command}-save")));
    let all = saved.concat();
    all.lines().filter(|line| line.contains("SPA-")).map(str::to_owned).collect()
}

fn a_gate_in_the_other_variant_is_replaced_with_what_it_admits(lab: &Lab) {
    let (old, new) = (lab.variant, lab.variant.other());
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    let once =
        Guarded { connections: Connections::One, ..Guarded::plain("tcp/80".parse().unwrap()) };
    plan.guarded.push(once);
    let always = Plan { always_admit: vec!["192.0.2.3/32".parse().unwrap()], ..plan.clone() };
    let grants = [admit(CLIENT, "tcp/22", 600), admit(CLIENT, "tcp/80", 600)].concat();
    lab.apply(&plan, &grants);
    assert!(!ours(lab, old).is_empty());
    lab.with_gate(&new.overrides(), |gate| async move {
        let told = format!(
            "rules of this gate stand in iptables-{}",
            if old == Variant::Nft { "nft" } else { "legacy" }
        );
        let tells = |differences: &[String]| {
            differences.iter().filter(|what| what.starts_with(&told)).count()
        };
        let seen = gate.examine(&always).await.unwrap();
        assert!(seen.changed && tells(&seen.differences) == 2, "{seen:?}");
        let report = gate.install(&always).await.unwrap();
        assert!(report.changed && tells(&report.differences) == 2, "{report:?}");
        assert_eq!(report.warnings, [""; 0]);
        assert_eq!(ours(lab, old), [""; 0]);
        let again = gate.install(&always).await.unwrap();
        assert_eq!((again.changed, again.differences), (false, Vec::new()));
        assert_eq!(gate.snapshot().await.unwrap().len(), 4);
        // What was granted before, and what the plan says now.
        assert_eq!(lab.both(STRANGER, 22), [Seen::Open, Seen::Silent]);
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        assert_eq!([lab.both(CLIENT, 80), lab.both(CLIENT, 80)], [OPEN, SILENT]);
        // What is granted now.
        gate.apply(&admit(STRANGER, "tcp/80", 600)).await.unwrap();
        let six = || lab.tcp(STRANGER[1], SERVER[1], 80);
        assert_eq!([six(), six()], [Seen::Open, Seen::Silent]);
        gate.remove().await.unwrap();
    });
    assert_eq!(lab.both(STRANGER, 22), OPEN);
}

fn a_trial_ends_though_a_gate_stood_for_good_in_the_other_variant(lab: &Lab) {
    let forever = plan(Mode::Guard, Refusal::Drop);
    lab.install(&forever);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    let install = |seconds| {
        let on_trial = Plan { trial_seconds: Some(seconds), ..forever.clone() };
        lab.with_gate(&lab.variant.other().overrides(), |gate| async move {
            gate.install(&on_trial).await.unwrap();
        });
    };
    install(600);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    // Nobody is there when it is over.
    install(4);
    lab.wait("the end of the trial", || lab.both(STRANGER, 22) == OPEN);
}
