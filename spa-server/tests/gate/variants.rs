//! A host on which what `iptables` stands for changes while a gate stands.

use crate::lab::{
    CLIENT, Lab, OPEN, SERVER, SILENT, STRANGER, Seen, Variant, admit, element, plan, withdraw,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use spa_server::gate::{
    Doubt, Gate as _, GateError, Guarded, IptablesGate, Mode, Plan, Refusal, ToolOverrides,
};
use spa_server::service::Connections;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

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
    a_gate_follows_iptables_to_the_other_variant,
    a_gate_stays_where_it_is_while_the_tools_do_not_belong_together,
    a_second_gate_that_can_not_be_taken_away_is_taken_away_later,
    a_gate_that_may_be_left_where_no_tools_are_is_told,
);

/// Links to the tools of a variant, as `update-alternatives` has them.
struct Alternatives {
    directory: TempDir,
}

impl Alternatives {
    fn new(variant: Variant) -> Self {
        let alternatives = Self { directory: tempfile::tempdir().unwrap() };
        alternatives.lead_to(variant, "");
        alternatives
    }

    /// Has the tools whose names begin so be those of this variant.
    fn lead_to(&self, variant: Variant, beginning: &str) {
        for (link, tool) in tools(&self.overrides()).into_iter().zip(tools(&variant.overrides())) {
            if link.file_name().unwrap().to_str().unwrap().starts_with(beginning) {
                let new = self.directory.path().join("new");
                symlink(tool, &new).unwrap();
                fs::rename(new, link).unwrap();
            }
        }
    }

    fn overrides(&self) -> ToolOverrides {
        let path = |name| Some(self.directory.path().join(name));
        ToolOverrides {
            iptables_restore: path("iptables-restore"),
            ip6tables_restore: path("ip6tables-restore"),
            iptables_save: path("iptables-save"),
            ip6tables_save: path("ip6tables-save"),
            ..ToolOverrides::default()
        }
    }
}

fn tools(overrides: &ToolOverrides) -> [&Path; 4] {
    let ToolOverrides {
        iptables_restore, ip6tables_restore, iptables_save, ip6tables_save, ..
    } = overrides;
    [iptables_restore, ip6tables_restore, iptables_save, ip6tables_save]
        .map(|path| path.as_deref().unwrap())
}

/// What is missing, as soon as the gate notices that.
async fn noticed(gate: &IptablesGate) -> Vec<String> {
    let watching = async {
        loop {
            let doubt = gate.disturbed().await;
            let look = gate.look(doubt).await.unwrap();
            if !look.missing.is_empty() {
                return look.missing;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), watching).await.expect("something is missing")
}

/// Other programs in the place of a variant's tools, for this thread and its children.
struct Replaced(PathBuf);

impl Replaced {
    fn by(new: &Path, variant: Variant) -> Self {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let program = tools(&variant.overrides())[0].canonicalize().unwrap();
        mount(Some(new), &program, none, MsFlags::MS_BIND, none).unwrap();
        Self(program)
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Makes a program that does what the variant's tools do, but for `restore` and `save` as long as
/// there is a file of that name beside it.
fn moody(directory: &Path, variant: Variant) -> PathBuf {
    let program = tools(&variant.overrides())[0].canonicalize().unwrap();
    let copy = directory.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    let path = directory.join("moody");
    let script = format!(
        "#!/bin/sh\n\
         [ ! -e {directory}/${{0##*-}} ] || {{ echo 'out of luck' >&2; exit 7; }}\n\
         exec {copy} ${{0##*/}} \"$@\"\n",
        directory = directory.display(),
        copy = copy.display(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn with_port_80(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.guarded.push(Guarded::plain("tcp/80".parse().unwrap()));
    plan
}

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

fn a_gate_follows_iptables_to_the_other_variant(lab: &Lab) {
    let (old, new) = (lab.variant, lab.variant.other());
    let alternatives = Alternatives::new(old);
    let plan = plan(Mode::Guard, Refusal::Drop);
    let more = with_port_80(&plan);
    lab.with_gate(&alternatives.overrides(), |gate| async move {
        gate.install(&plan).await.unwrap();
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
        assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, SILENT]);
        assert_eq!(lab.both(STRANGER, 80), OPEN);
        alternatives.lead_to(new, "");
        let missing = noticed(&gate).await;
        assert!(missing[0].starts_with("the gate is in iptables-"), "{missing:?}");
        // As the daemon does then, and for an administrator who wants a port more.
        for plan in [&plan, &more, &more] {
            let report = gate.install(plan).await.unwrap();
            assert_eq!(report.warnings, [""; 0]);
            assert_eq!(ours(lab, old), [""; 0]);
            assert!(!ours(lab, new).is_empty());
            assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
        }
        assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, SILENT]);
        assert_eq!(lab.both(STRANGER, 80), SILENT);
        gate.apply(&admit(STRANGER, "tcp/80", 600)).await.unwrap();
        assert_eq!(lab.both(STRANGER, 80), OPEN);
        // What others do there is noticed, too.
        lab.rules(new, &["-w 5 -t mangle -F SPA-GUARD"]);
        let missing = noticed(&gate).await;
        assert!(missing[0].starts_with("chain SPA-GUARD"), "{missing:?}");
    });
}

fn a_gate_stays_where_it_is_while_the_tools_do_not_belong_together(lab: &Lab) {
    let alternatives = Alternatives::new(lab.variant);
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.with_gate(&alternatives.overrides(), |gate| async move {
        gate.install(&plan).await.unwrap();
        alternatives.lead_to(lab.variant.other(), "iptables");
        let mixed = |error| matches!(error, GateError::MixedVariants(_));
        assert!(mixed(gate.look(Doubt::Elements).await.unwrap_err()));
        assert!(mixed(gate.install(&with_port_80(&plan)).await.unwrap_err()));
        assert_eq!([lab.both(STRANGER, 22), lab.both(STRANGER, 80)], [SILENT, OPEN]);
        alternatives.lead_to(lab.variant, "");
        assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
        gate.install(&with_port_80(&plan)).await.unwrap();
        assert_eq!(lab.both(STRANGER, 80), SILENT);
    });
}

fn a_second_gate_that_can_not_be_taken_away_is_taken_away_later(lab: &Lab) {
    let (old, new) = (lab.variant, lab.variant.other());
    let plan = plan(Mode::Guard, Refusal::Drop);
    let directory = tempfile::tempdir().unwrap();
    for trouble in ["restore", "save"] {
        lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
        let trouble = directory.path().join(trouble);
        fs::write(&trouble, "").unwrap();
        lab.with_gate(&new.overrides(), |gate| async {
            let gate = gate;
            let _replaced = Replaced::by(&moody(directory.path(), old), old);
            let told = |warnings: &[String]| {
                let told = "a second gate may stand in iptables-";
                warnings.iter().filter(|warning| warning.starts_with(told)).count()
            };
            let report = gate.install(&plan).await.unwrap();
            assert_eq!(told(&report.warnings), 2, "{report:?}");
            let changes = [admit(STRANGER, "tcp/22", 600), withdraw(CLIENT, "tcp/22")].concat();
            gate.apply(&changes).await.unwrap();
            // Where grants are rules the one gate knows nothing of what the other one admits.
            let seen = if lab.in_sets { OPEN } else { SILENT };
            assert_eq!(lab.both(STRANGER, 22), seen);
            // What was withdrawn is not what that one goes on admitting.
            let report = gate.install(&with_port_80(&plan)).await.unwrap();
            assert_eq!(told(&report.warnings), 2, "{report:?}");
            let mut live = gate.snapshot().await.unwrap();
            live.sort_unstable();
            let wanted = STRANGER.map(|source| element(source, "tcp/22"));
            assert_eq!(live.iter().map(|live| live.element).collect::<Vec<_>>(), wanted);
            fs::remove_file(&trouble).unwrap();
            let began = Instant::now();
            while !ours(lab, old).is_empty() {
                assert!(began.elapsed() < Duration::from_secs(60), "nobody takes it away");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!([lab.both(STRANGER, 22), lab.both(CLIENT, 22)], [OPEN, SILENT]);
            assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
            gate.remove().await.unwrap();
        });
    }
}

fn a_gate_that_may_be_left_where_no_tools_are_is_told(lab: &Lab) {
    let (old, new) = (lab.variant, lab.variant.other());
    let plan = plan(Mode::Guard, Refusal::Drop);
    let told = format!("a second gate may stand in {}", old.commands()[0]);
    let check = |stands: bool| {
        lab.with_gate(&new.overrides(), |gate| async {
            let gate = gate;
            let replaced = Replaced::by(Path::new("/dev/null"), old);
            let tells =
                |warnings: &[String]| warnings.iter().any(|warning| warning.starts_with(&told));
            assert_eq!(tells(&gate.examine(&plan).await.unwrap().warnings), stands);
            assert_eq!(tells(&gate.install(&plan).await.unwrap().warnings), stands);
            let removed = gate.remove().await;
            let unseen = matches!(removed, Err(GateError::Unseen { .. }));
            assert!(if stands { unseen } else { removed.is_ok() }, "{removed:?}");
            drop(replaced);
            gate.remove().await.unwrap();
        });
    };
    check(false);
    lab.install(&plan);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    check(true);
    assert_eq!(lab.both(STRANGER, 22), OPEN);
}
