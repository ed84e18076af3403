//! What is left when the daemon dies, or a tool fails, at any step of its way.

use crate::gates::LiveGate;
use crate::lab::{
    BOTH, CLIENT, Lab, NETWORK, STRANGER, admit, admitted, assert_same, elements, plan, withdraw,
};
use crate::probe::Seen::{Open, Silent};
use crate::probe::{LONG, both, misjudged, until};
use spa_server::config::GateSettings;
use spa_server::gate::{AnyGate, Gate as _, GateError, Plan, Refusal, ToolOverrides};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What becomes of a tool's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It does nothing, and never ends.
    HangsBefore,
    /// It does its work, and never ends.
    HangsAfter,
    /// It does nothing, and complains.
    Fails,
}

const COMPLAINT: &str = "out of luck";
/// More steps than anything takes.
const MANY: usize = 60;

/// Tools of which the run of this number, among all runs of all of them, meets this fate.
struct Unlucky {
    tools: ToolOverrides,
    struck: PathBuf,
}

impl Unlucky {
    fn new(lab: &Lab, number: usize, fate: Fate) -> Self {
        let directory = lab.scripts.path();
        let (count, struck) = (directory.join("count"), directory.join("struck"));
        let _ = fs::remove_file(&struck);
        fs::write(&count, "0").unwrap();
        let mut tools = lab.subject.tools();
        for (name, tool) in each(&mut tools) {
            let Some(path) = tool.take() else { continue };
            let (real, struck) = (path.display(), struck.display());
            let mut text =
                format!("#!/bin/sh\nread n <{0}; n=$((n+1)); echo $n >{0}\n", count.display());
            let _ = match fate {
                Fate::HangsBefore => {
                    writeln!(text, "[ $n != {number} ] || {{ : >{struck}; exec sleep 600; }}")
                }
                Fate::HangsAfter => writeln!(
                    text,
                    "[ $n != {number} ] || {{ {real} \"$@\"; : >{struck}; exec sleep 600; }}"
                ),
                Fate::Fails => writeln!(
                    text,
                    "[ $n != {number} ] || {{ : >{struck}; echo {COMPLAINT} >&2; exit 1; }}"
                ),
            };
            let _ = writeln!(text, "exec {real} \"$@\"");
            *tool = Some(program(lab, name, &text));
        }
        Self { tools, struck }
    }

    fn has_struck(&self) -> bool {
        self.struck.exists()
    }
}

/// Makes a script a program that can be run.
fn program(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let script = lab.scripts.path().join(name);
    // By another process: while this one has a program open for writing, a child that another test
    // starts has it open as well, and nobody can run it.
    let fresh = script.with_extension("new");
    fs::write(&fresh, text).unwrap();
    let [from, to] = [&fresh, &script].map(|path| path.display());
    lab.server.run(&format!("install -m 755 {from} {to}"));
    script
}

fn each(tools: &mut ToolOverrides) -> [(&'static str, &mut Option<PathBuf>); 5] {
    [
        ("iptables-restore", &mut tools.iptables_restore),
        ("ip6tables-restore", &mut tools.ip6tables_restore),
        ("iptables-save", &mut tools.iptables_save),
        ("ip6tables-save", &mut tools.ip6tables_save),
        ("nft", &mut tools.nft),
    ]
}

/// Does something with a gate that dies in the middle. `false`: it was done before that.
fn dies_in<F>(gate: LiveGate, unlucky: &Unlucky, code: impl FnOnce(Arc<AnyGate>) -> F) -> bool
where
    F: Future<Output = Result<(), GateError>> + Send + 'static,
{
    let task = gate.start(code);
    let began = Instant::now();
    while !task.is_finished() {
        if unlucky.has_struck() {
            // With the runtime everything goes that the task was at.
            drop(gate);
            return true;
        }
        assert!(began.elapsed() < LONG, "neither struck nor done");
        thread::sleep(Duration::from_millis(2));
    }
    gate.wait(task).unwrap();
    false
}

fn settings(lab: &Lab, unlucky: &Unlucky) -> GateSettings {
    lab.subject.settings(unlucky.tools.clone(), lab.scripts.path())
}

/// Rules of the host's own.
fn prepare(lab: &Lab) {
    lab.rules(&["-A INPUT -p tcp --dport 80 -j ACCEPT", "-t mangle -A PREROUTING -i lo"]);
}

pub(crate) fn an_installation_that_dies_can_be_finished_or_removed(lab: &Lab) {
    prepare(lab);
    let plan = plan(&["tcp/22", "udp/10000-10100"]);
    let nothing = lab.ruleset();
    let gate = lab.installed(&plan);
    let everything = lab.ruleset();
    gate.remove();
    let mut steps = 0;
    for fate in [Fate::HangsBefore, Fate::HangsAfter] {
        for number in 1.. {
            assert!(number < MANY);
            let unlucky = Unlucky::new(lab, number, fate);
            let install = |gate: Arc<AnyGate>| {
                let plan = plan.clone();
                async move { gate.install(&plan).await.map(drop) }
            };
            if !dies_in(lab.gate_with(unlucky.tools.clone()), &unlucky, install) {
                lab.gate().remove();
                break;
            }
            steps += 1;
            // Finished by the next one, or removed.
            if number % 2 == 0 {
                let gate = lab.installed(&plan);
                assert_same(&lab.ruleset(), &everything, &format!("{fate:?} at {number}"));
                gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
                assert_eq!(gate.snapshot().len(), 2);
            }
            lab.gate().remove();
            assert_same(&lab.ruleset(), &nothing, &format!("{fate:?} at {number}"));
        }
    }
    assert!(steps > 4, "{steps} steps");
}

pub(crate) fn a_change_of_plan_that_dies_leaves_the_ports_hidden(lab: &Lab) {
    prepare(lab);
    let old = plan(&["tcp/22", "udp/5000"]);
    let new = Plan {
        refusal: Refusal::Reject,
        max_elements: 4096,
        ..plan(&["tcp/22", "udp/5000", "udp/10000-10100"])
    };
    let kept = [admit(CLIENT, "tcp/22", 600), admit(NETWORK, "udp/5000", 600)].concat();
    let [tcp, udp] = [withdraw(CLIENT, "tcp/22"), withdraw(NETWORK, "udp/5000")];
    let gate = lab.installed(&new);
    gate.apply(&[&kept]);
    gate.apply(&[&tcp, &udp]);
    let wanted = lab.ruleset();
    gate.remove();
    lab.installed(&old).apply(&[&kept]);
    let hammer = crate::hammer::Hammer::start(lab, STRANGER, 5000);
    let mut steps = 0;
    for number in 1.. {
        assert!(number < MANY);
        let unlucky = Unlucky::new(lab, number, Fate::HangsAfter);
        let install = |gate: Arc<AnyGate>| {
            let new = new.clone();
            async move { gate.install(&new).await.map(drop) }
        };
        let died = dies_in(lab.gate_with(unlucky.tools.clone()), &unlucky, install);
        steps += usize::from(died);
        let gate = lab.installed(&new);
        assert_eq!(elements(&gate.snapshot()), admitted(&[&kept]), "at {number}");
        gate.apply(&[&tcp, &udp]);
        assert_same(&lab.ruleset(), &wanted, &format!("at {number}"));
        if !died {
            break;
        }
        gate.install(&old).unwrap();
        gate.apply(&[&kept]);
    }
    assert!(steps > 4, "{steps} steps");
    hammer.sends_on();
    assert_eq!(hammer.received(), 0, "nothing has slipped through at any step");
    // Positive control: without the gate it does.
    lab.gate().remove();
    hammer.passes();
}

pub(crate) fn a_removal_that_dies_can_be_finished(lab: &Lab) {
    prepare(lab);
    let plan = plan(&["tcp/22", "udp/10000-10100"]);
    let nothing = lab.ruleset();
    let mut steps = 0;
    for fate in [Fate::HangsBefore, Fate::HangsAfter] {
        for number in 1.. {
            assert!(number < MANY);
            lab.installed(&plan).apply(&[&admit(CLIENT, "tcp/22", 600)]);
            let unlucky = Unlucky::new(lab, number, fate);
            let gate = lab.gate_with(unlucky.tools.clone());
            let remove = |gate: Arc<AnyGate>| async move { gate.remove().await };
            let died = dies_in(gate, &unlucky, remove);
            steps += usize::from(died);
            if number % 2 == 0 {
                // Put back as it should be.
                let gate = lab.installed(&plan);
                lab.see(&[&both(STRANGER, "tcp/22", Silent)]);
                gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
                assert_eq!(gate.snapshot().len(), 2);
            }
            lab.gate().remove();
            assert_same(&lab.ruleset(), &nothing, &format!("{fate:?} at {number}"));
            if !died {
                break;
            }
        }
    }
    assert!(steps > 2, "{steps} steps");
}

pub(crate) fn a_tool_that_fails_leaves_what_was_there_before(lab: &Lab) {
    prepare(lab);
    let _idle = BOTH.map(|family| lab.session(CLIENT, family, 22));
    let old = plan(&["tcp/22"]);
    let new = Plan { max_elements: 4096, ..plan(&["tcp/22", "udp/10000-10100"]) };
    let kept = admit(CLIENT, "tcp/22", 600);
    let range = admit(CLIENT, "udp/10000-10100", 600);
    // Also one that needs less than was there.
    for (before, plan) in [(None, &new), (Some(&old), &new), (Some(&new), &old)] {
        let mut failures = 0;
        for number in 1.. {
            assert!(number < MANY);
            if let Some(before) = before {
                let gate = lab.installed(before);
                gate.apply(&[&kept]);
                if before == &new {
                    gate.apply(&[&range]);
                }
            } else {
                lab.gate().remove();
            }
            let there = lab.ruleset();
            let unlucky = Unlucky::new(lab, number, Fate::Fails);
            // A tool that is only asked for its version may fail before there is a gate.
            let installed = LiveGate::new(&lab.server, settings(lab, &unlucky))
                .and_then(|gate| gate.install(plan).map(drop));
            if let Err(error) = installed {
                failures += 1;
                let text = spa_server::causes::with_causes(&error);
                assert!(text.contains(COMPLAINT), "{text}");
                assert_same(&lab.ruleset(), &there, &format!("failed at {number}: {text}"));
            } else if !unlucky.has_struck() {
                break;
            }
        }
        assert!(failures > 2, "{failures} failures");
    }
}

pub(crate) fn a_trial_that_can_not_be_begun_leaves_the_one_before_its_time(lab: &Lab) {
    let trial = |seconds, ports| Plan { trial_seconds: Some(seconds), ..plan(ports) };
    let begin = |number| {
        let unlucky = Unlucky::new(lab, number, Fate::Fails);
        let longer = trial(86_400, &["tcp/22", "udp/10000-10100"]);
        let begun = LiveGate::new(&lab.server, settings(lab, &unlucky))
            .and_then(|gate| gate.install(&longer).map(drop));
        (begun, unlucky.has_struck())
    };
    // The last step that may fail: by then the new time is in the kernel.
    let mut last = None;
    for number in 1.. {
        assert!(number < MANY);
        lab.installed(&trial(600, &["tcp/22"]));
        match begin(number) {
            (Err(_), _) => last = Some(number),
            (Ok(()), true) => {}
            (Ok(()), false) => break,
        }
    }
    // Positive control: that one has begun.
    lab.see(&[&both(STRANGER, "udp/10050", Silent), &both(STRANGER, "tcp/22", Silent)]);
    lab.installed(&trial(8, &["tcp/22"]));
    assert!(begin(last.unwrap()).0.is_err());
    lab.see(&[&both(STRANGER, "udp/10050", Open), &both(STRANGER, "tcp/22", Silent)]);
    until("over", || misjudged(&lab.clients, &both(STRANGER, "tcp/22", Open)).is_empty());
}

pub(crate) fn a_change_that_fails_is_told(lab: &Lab) {
    let plan = plan(&["tcp/22"]);
    let mut told = 0;
    for number in 1.. {
        assert!(number < MANY);
        let unlucky = Unlucky::new(lab, number, Fate::Fails);
        let gate = LiveGate::new(&lab.server, settings(lab, &unlucky));
        let Ok(gate) = gate else { continue };
        if gate.install(&plan).is_err() {
            continue;
        }
        let before = unlucky.has_struck();
        match gate.try_to_apply(&[&admit(CLIENT, "tcp/22", 600)]) {
            Ok(()) => {
                lab.see(&[&both(CLIENT, "tcp/22", Open)]);
                if !unlucky.has_struck() {
                    break;
                }
                // What struck was a step that changes can do without.
                assert!(before, "a tool failed, and nobody was told");
            }
            Err(error) => {
                told += 1;
                assert!(spa_server::causes::with_causes(&error).contains(COMPLAINT), "{error}");
            }
        }
        lab.gate().remove();
    }
    // Changes over netlink need no tool; those by tools are told of.
    assert!(told > 0 || lab.subject.promises.sets);
}

pub(crate) fn others_that_hold_the_lock_are_waited_for(lab: &Lab) {
    let plan = plan(&["tcp/22"]);
    let mut holder = lab.server.start("flock -F /run/xtables.lock sleep 600", Stdio::null());
    // It has the lock once nobody else can have it.
    until("locked", || lab.server.try_to_feed("flock -n /run/xtables.lock true", "").is_err());
    // Each attempt to write rules leaves a line: how it ended.
    let mut tools = lab.subject.tools();
    let attempts = lab.scripts.path().join("attempts");
    fs::write(&attempts, "").unwrap();
    if let Some(restore) = &mut tools.iptables_restore {
        let [real, attempts] = [&*restore, &attempts].map(|path| path.display());
        let text =
            format!("#!/bin/sh\n{real} \"$@\"\ncode=$?\necho $code >>{attempts}\nexit $code\n");
        *restore = program(lab, "iptables-restore", &text);
    }
    let gate = lab.gate_with(tools);
    let task = gate.start(|gate| async move {
        gate.install(&plan).await?;
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await
    });
    if lab.subject.takes_the_lock() {
        // One run of the tool waits for some seconds, and then says that it was busy. That others
        // hold the lock for longer is no reason to give up.
        until("given up by one run", || {
            assert!(!task.is_finished(), "the lock is not for nothing");
            fs::read_to_string(&attempts).unwrap().lines().any(|code| code == "4")
        });
        holder.kill().unwrap();
        gate.wait(task).unwrap();
    } else {
        gate.wait(task).unwrap();
        holder.kill().unwrap();
    }
    holder.wait().unwrap();
    lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", Silent)]);
}
