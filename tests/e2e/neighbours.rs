//! The gate beside the firewalls of others: their rules are the same before it was installed and
//! after it was removed, whatever happened in between; and what it grants passes them, or it says
//! which of their chains is in the way.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Backend, Docker, Family, Finished, Firewalld, Host, Neighbour, NftablesService, Podman,
    PortState, Room, Ruleset, SSH_PORT, SavedRules, Scene, Server, Ssh, Ufw, eventually, finish,
    program,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The tools that change something.
const TOOLS: [&str; 3] = ["iptables-restore", "ip6tables-restore", "nft"];
/// At so many moments of an installation, evenly spread, it is killed.
const MOMENTS: u32 = 8;

/// Starts one of the firewalls of others.
type Start = for<'a> fn(&'a Room, Ssh) -> Result<Box<dyn Neighbour + 'a>>;

const UFW: Start = |room, ssh| Ok(Box::new(Ufw::enable(room, ssh)?));
const FIREWALLD: Start = |room, ssh| Ok(Box::new(Firewalld::start(room, ssh)?));
const NFTABLES: Start = |room, ssh| Ok(Box::new(NftablesService::start(room, ssh)?));
const SAVED_RULES: Start = |room, ssh| Ok(Box::new(SavedRules::load(room, ssh)?));
const DOCKER: Start = |room, _| {
    let docker = Docker::start(room)?;
    docker.publish()?;
    Ok(Box::new(docker))
};
const PODMAN: Start = |room, _| {
    let podman = Podman::new(room)?;
    podman.publish()?;
    Ok(Box::new(podman))
};

/// Which `iptables` the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nft,
    Legacy,
}

/// A scene whose server is not started, on a host of this variant, and its room.
fn prepared(variant: Variant) -> Result<(Scene, Room)> {
    let scene = Scene::prepared(|_| {})?;
    if variant == Variant::Legacy {
        scene.lab.server().use_iptables_legacy()?;
    }
    let room = Room::new(&scene.lab)?;
    Ok((scene, room))
}

/// Mode and look of the gate.
const LOOKS: [(&str, &str); 3] = [("guard", "drop"), ("guard", "reject"), ("open", "drop")];

fn look(server: &mut Server, backend: Backend, (mode, refuse): (&str, &str)) -> Result<()> {
    server.reconfigure(|configuration| {
        backend.choose(configuration);
        configuration.gate.mode = mode.into();
        configuration.gate.refuse = refuse.into();
    })
}

/// Installed and removed in every way, the gate leaves the rules of this neighbour as they were.
fn rules_of_others_stay(start: Start, variant: Variant) -> Result<()> {
    let (mut scene, room) = prepared(variant)?;
    let neighbour = start(&room, Ssh::Allowed)?;
    neighbour.ensure_in_force(&scene.lab)?;
    let host = scene.lab.server().clone();
    let before = Ruleset::of(&host)?;
    for backend in Backend::ALL {
        for (mode, refuse) in LOOKS {
            let how = format!("{} beside {}, {mode}, {refuse}", backend.name, neighbour.name());
            look(&mut scene.server, backend, (mode, refuse))?;
            let installed = scene.server.admin(&["gate", "install"])?;
            if mode == "guard" {
                ensure!(installed.success(), "{how}: {installed}");
                let refused =
                    if refuse == "drop" { PortState::Filtered } else { PortState::Closed };
                for family in Family::BOTH {
                    scene.ensure_sees(scene.lab.other(), family, SSH_PORT, refused)?;
                }
            }
            let with = Ruleset::of(&host)?;
            // In open mode, the gate may refuse to be where it can do nothing.
            ensure!((with != before) == installed.success(), "{how}: {installed}");
            remove(&scene.server)?;
            Ruleset::of(&host)?.ensure_same_as(&before, "before the gate came").context(how)?;
        }
    }
    neighbour.ensure_in_force(&scene.lab)
}

fn remove(server: &Server) -> Result<()> {
    server.admin(&["gate", "remove"])?.ok().map(|_| ())
}

#[test]
fn the_rules_of_ufw_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(UFW, Variant::Nft)
}

#[test]
fn the_rules_of_ufw_are_the_same_after_the_gate_as_before_with_legacy_tables() -> Result<()> {
    rules_of_others_stay(UFW, Variant::Legacy)
}

#[test]
fn the_rules_of_firewalld_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(FIREWALLD, Variant::Nft)
}

#[test]
fn the_rules_of_nftables_service_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(NFTABLES, Variant::Nft)
}

#[test]
fn restored_rules_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(SAVED_RULES, Variant::Nft)
}

#[test]
fn restored_rules_are_the_same_after_the_gate_as_before_with_legacy_tables() -> Result<()> {
    rules_of_others_stay(SAVED_RULES, Variant::Legacy)
}

#[test]
fn the_rules_of_docker_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(DOCKER, Variant::Nft)
}

#[test]
fn the_rules_of_docker_are_the_same_after_the_gate_as_before_with_legacy_tables() -> Result<()> {
    rules_of_others_stay(DOCKER, Variant::Legacy)
}

#[test]
fn the_rules_of_podman_are_the_same_after_the_gate_as_before() -> Result<()> {
    rules_of_others_stay(PODMAN, Variant::Nft)
}

/// Runs one of the gate's commands and kills it after `time`; gives how it ended, if it did so
/// before, and waits until no tool of its runs on.
fn killed_after(server: &Server, words: &[&str], time: Duration) -> Result<()> {
    let mut command = server.admin_command(words)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    std::thread::sleep(time);
    child.kill()?;
    child.wait()?;
    await_end_of_tools(server.host())
}

/// A tool that was under way when its parent was killed does its work to the end.
fn await_end_of_tools(host: &Host) -> Result<()> {
    let ip = program("ip")?;
    eventually("the tools are to end", || {
        let mut list = std::process::Command::new(&ip);
        let pids = finish(list.args(["netns", "pids", host.namespace()]))?.ok()?;
        let is_tool = |pid: &str| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["tables", "ipset", "conntrack", "nft"].iter().any(|tool| name.contains(tool))
        };
        Ok((!pids.split_whitespace().any(is_tool)).then_some(()))
    })
}

fn time_of(server: &Server, words: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    server.admin(words)?.ok()?;
    Ok(start.elapsed())
}

/// Killed at moments that are spread over all of an installation and a removal, the gate can be
/// removed without a trace.
fn a_kill_at_any_moment_leaves_no_trace(
    start: Start,
    variant: Variant,
    backends: &[Backend],
) -> Result<()> {
    let (mut scene, room) = prepared(variant)?;
    let neighbour = start(&room, Ssh::Allowed)?;
    let host = scene.lab.server().clone();
    let before = Ruleset::of(&host)?;
    for &backend in backends {
        look(&mut scene.server, backend, ("guard", "reject"))?;
        let install = time_of(&scene.server, &["gate", "install"])?;
        let removal = time_of(&scene.server, &["gate", "remove"])?;
        let mut cut_short = 0;
        for moment in 0..MOMENTS {
            let how = || format!("{}, moment {moment} of {MOMENTS}", backend.name);
            killed_after(&scene.server, &["gate", "install"], install * moment / MOMENTS)?;
            cut_short += u32::from(!stands(&scene.server)?);
            remove(&scene.server).with_context(how)?;
            Ruleset::of(&host)?.ensure_same_as(&before, "before").with_context(how)?;

            scene.server.admin(&["gate", "install"])?.ok()?;
            killed_after(&scene.server, &["gate", "remove"], removal * moment / MOMENTS)?;
            cut_short += u32::from(Ruleset::of(&host)? != before);
            remove(&scene.server).with_context(how)?;
            Ruleset::of(&host)?.ensure_same_as(&before, "before").with_context(how)?;
        }
        ensure!(cut_short > 0, "no kill came in the middle");
    }
    neighbour.ensure_in_force(&scene.lab)
}

/// Whether the gate is there, and as it has to be.
fn stands(server: &Server) -> Result<bool> {
    let shown = server.admin(&["gate", "show", "--json"])?.ok()?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let is = |key: &str| shown.get(key).and_then(serde_json::Value::as_bool) == Some(true);
    Ok(is("installed") && is("up-to-date"))
}

#[test]
fn killed_at_any_moment_beside_ufw_the_gate_leaves_no_trace() -> Result<()> {
    a_kill_at_any_moment_leaves_no_trace(UFW, Variant::Nft, &[Backend::IPSET, Backend::NFTABLES])
}

#[test]
fn killed_at_any_moment_beside_legacy_tables_the_gate_leaves_no_trace() -> Result<()> {
    a_kill_at_any_moment_leaves_no_trace(
        SAVED_RULES,
        Variant::Legacy,
        &[Backend::IPSET, Backend::IPTABLES],
    )
}

#[test]
fn killed_at_any_moment_beside_docker_the_gate_leaves_no_trace() -> Result<()> {
    a_kill_at_any_moment_leaves_no_trace(DOCKER, Variant::Nft, &[Backend::IPSET])
}

/// Stands in for all tools that change something, and stops at one of their runs that do, before or
/// after the real tool has done its work.
struct Brake {
    directory: PathBuf,
}

impl Brake {
    /// Puts it in place of the tools.
    fn on(server: &mut Server) -> Result<Self> {
        let directory = server.directory().join("brake");
        fs::create_dir_all(&directory)?;
        for name in TOOLS {
            let (tool, at) = (directory.join(name), directory.display());
            let text = format!(
                "#!/bin/sh\n\
                 case \"$*\" in *list*) exec {real} \"$@\";; esac\n\
                 count=$(($(cat {at}/count) + 1)); echo $count >{at}/count\n\
                 read -r number when <{at}/wanted\n\
                 if [ $count = $number ] && [ $when = before ]; then\n\
                 echo $$ >{at}/stopped.new; mv {at}/stopped.new {at}/stopped; exec sleep 600\n\
                 fi\n\
                 if [ $count = $number ]; then\n\
                 {real} \"$@\"; echo $$ >{at}/stopped.new; mv {at}/stopped.new {at}/stopped\n\
                 exec sleep 600\n\
                 fi\n\
                 exec {real} \"$@\"\n",
                real = program(name)?.display(),
            );
            fs::write(&tool, text)?;
            fs::set_permissions(&tool, Permissions::from_mode(0o755))?;
            server.reconfigure(|configuration| {
                configuration.gate.tools.insert(name.into(), tool);
            })?;
        }
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// From now on, it stops at this run of a tool; 0 is none.
    fn stop_at(&self, number: u32, when: &str) -> Result<()> {
        let _ = fs::remove_file(self.path("stopped"));
        fs::write(self.path("count"), "0\n")?;
        Ok(fs::write(self.path("wanted"), format!("{number} {when}\n"))?)
    }

    /// Runs the command until it stops there, and kills it and the tool; whether it came so far.
    fn kill_at(&self, server: &Server, words: &[&str], number: u32, when: &str) -> Result<bool> {
        self.stop_at(number, when)?;
        let mut command = server.admin_command(words)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let stopped = eventually("the command is to stop or to end", || {
            Ok(if self.path("stopped").exists() {
                Some(true)
            } else {
                child.try_wait()?.map(|_| false)
            })
        })?;
        child.kill()?;
        child.wait()?;
        if stopped {
            let pid = fs::read_to_string(self.path("stopped"))?;
            server.host().run(&format!("kill -9 {}", pid.trim()))?;
        }
        await_end_of_tools(server.host())?;
        self.stop_at(0, "never")?;
        Ok(stopped)
    }
}

/// Killed before and after each run of a tool, one by one: no step is missed.
fn a_kill_at_each_step_leaves_no_trace(
    refuse: &str,
    variant: Variant,
    backends: &[Backend],
) -> Result<()> {
    let (mut scene, room) = prepared(variant)?;
    let neighbour = UFW(&room, Ssh::Allowed)?;
    let host = scene.lab.server().clone();
    // An open connection, so that there is one to enter into connection tracking.
    let _session = scene.sshd.session(scene.lab.owner(), Family::V4)?;
    let before = Ruleset::of(&host)?;
    let brake = Brake::on(&mut scene.server)?;
    for &backend in backends {
        look(&mut scene.server, backend, ("guard", refuse))?;
        for when in ["before", "after"] {
            for command in ["install", "remove"] {
                let mut number = 1;
                loop {
                    let how = || format!("{} killed {when} tool {number}", backend.name);
                    brake.stop_at(0, "never")?;
                    if command == "remove" {
                        scene.server.admin(&["gate", "install"])?.ok()?;
                    }
                    let stopped = brake.kill_at(&scene.server, &["gate", command], number, when)?;
                    if command == "install" && stopped {
                        ensure_not_locked_out(&scene).with_context(how)?;
                    }
                    remove(&scene.server).with_context(how)?;
                    Ruleset::of(&host)?.ensure_same_as(&before, "before").with_context(how)?;
                    if !stopped {
                        break;
                    }
                    number += 1;
                }
                ensure!(number > 1, "{command} ran no tool");
            }
        }
    }
    neighbour.ensure_in_force(&scene.lab)
}

/// Half an installation that refuses must be one that can be finished.
fn ensure_not_locked_out(scene: &Scene) -> Result<()> {
    scene.server.admin(&["gate", "install"])?.ok()?;
    ensure!(stands(&scene.server)?, "a second installation doesn't finish the first");
    scene.ensure_sees(scene.lab.other(), Family::V6, SSH_PORT, refused(&scene.server))
}

fn refused(server: &Server) -> PortState {
    match server.configuration().gate.refuse.as_str() {
        "drop" => PortState::Filtered,
        _ => PortState::Closed,
    }
}

#[test]
fn killed_at_each_step_the_gate_leaves_no_trace() -> Result<()> {
    a_kill_at_each_step_leaves_no_trace("drop", Variant::Nft, &[Backend::IPSET, Backend::NFTABLES])
}

#[test]
fn killed_at_each_step_the_rejecting_gate_leaves_no_trace_in_legacy_tables() -> Result<()> {
    a_kill_at_each_step_leaves_no_trace("reject", Variant::Legacy, &[Backend::IPTABLES])
}

/// What became of a knock behind a neighbour that drops by default.
fn knocked(start: Start, ssh: Ssh, variant: Variant, backend: Backend) -> Result<Knocked> {
    let (mut scene, room) = prepared(variant)?;
    let neighbour = start(&room, ssh)?;
    neighbour.ensure_in_force(&scene.lab)?;
    look(&mut scene.server, backend, ("guard", "drop"))?;
    let checked = scene.server.admin(&["check"])?;
    scene.server.start()?;
    for family in Family::BOTH {
        let seen = scene.sees(scene.lab.owner(), family, SSH_PORT)?;
        ensure!(seen == PortState::Filtered, "before the knock: {seen}");
        scene.knock(scene.lab.owner(), family, &scene.laptop.open("ssh").seal()?)?;
    }
    scene.server.await_accepted(2)?;
    eventually("both grants are to be live", || {
        Ok((scene.server.grants()?.len() == 2).then_some(()))
    })?;
    let opens = Family::BOTH.map(|family| {
        matches!(scene.sees(scene.lab.owner(), family, SSH_PORT), Ok(PortState::Open))
    });
    for family in Family::BOTH {
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(Knocked { opens, checked })
}

struct Knocked {
    /// Whether the port opened, by family.
    opens: [bool; 2],
    /// What `check` had said.
    checked: Finished,
}

impl Knocked {
    fn ensure_opened(&self) -> Result<()> {
        ensure!(self.opens == [true, true], "opened: {:?}; {}", self.opens, self.checked);
        Ok(())
    }

    fn ensure_lost_in(&self, chain: &str) -> Result<()> {
        ensure!(self.opens == [false, false], "opened: {:?}", self.opens);
        let said = self.checked.said();
        ensure!(said.contains(chain), "check doesn't name {chain}: {said}");
        ensure!(said.contains("tcp/22"), "check doesn't name the port: {said}");
        Ok(())
    }
}

/// In chains of iptables: only what comes before them there can pass their default drop.
fn a_knock_passes_iptables(start: Start, variant: Variant) -> Result<()> {
    for backend in Backend::ALL {
        let knocked = knocked(start, Ssh::Unspoken, variant, backend)?;
        if backend.in_iptables {
            knocked.ensure_opened()?;
        } else {
            knocked.ensure_lost_in("INPUT")?;
        }
    }
    Ok(())
}

#[test]
fn a_knock_passes_the_default_drop_of_ufw() -> Result<()> {
    a_knock_passes_iptables(UFW, Variant::Nft)
}

#[test]
fn a_knock_passes_the_default_drop_of_ufw_with_legacy_tables() -> Result<()> {
    a_knock_passes_iptables(UFW, Variant::Legacy)
}

#[test]
fn a_knock_passes_the_default_drop_of_restored_rules() -> Result<()> {
    a_knock_passes_iptables(SAVED_RULES, Variant::Nft)
}

/// A table of its own that drops: no accept elsewhere can override it.
fn a_knock_needs_leave_of(start: Start, chain: &str) -> Result<()> {
    for backend in Backend::ALL {
        knocked(start, Ssh::Unspoken, Variant::Nft, backend)?.ensure_lost_in(chain)?;
        knocked(start, Ssh::Allowed, Variant::Nft, backend)?.ensure_opened()?;
    }
    Ok(())
}

#[test]
fn where_firewalld_drops_what_was_granted_check_names_its_chain() -> Result<()> {
    a_knock_needs_leave_of(FIREWALLD, "chain filter_INPUT of nft table inet firewalld")
}

#[test]
fn where_nftables_service_drops_what_was_granted_check_names_its_chain() -> Result<()> {
    a_knock_needs_leave_of(NFTABLES, "chain input of nft table inet filter")
}

#[test]
fn in_open_mode_the_gate_refuses_to_be_where_another_table_drops_and_names_the_chain() -> Result<()>
{
    let chains = [
        (FIREWALLD, "chain filter_INPUT of nft table inet firewalld"),
        (NFTABLES, "chain input of nft table inet filter"),
    ];
    for (start, chain) in chains {
        let (mut scene, room) = prepared(Variant::Nft)?;
        let neighbour = start(&room, Ssh::Unspoken)?;
        let before = Ruleset::of(scene.lab.server())?;
        for backend in Backend::ALL {
            // A table of nftables can take back no drop, wherever it is.
            let why = if backend.in_iptables { chain } else { "no open mode" };
            look(&mut scene.server, backend, ("open", "drop"))?;
            for words in [&["gate", "install"][..], &["check"]] {
                let said = scene.server.admin(words)?;
                ensure!(!said.success() && said.said().contains(why), "{said}");
            }
            let (_, log) = scene.server.start_in_vain()?;
            ensure!(log.contains(why), "{log}");
            Ruleset::of(scene.lab.server())?.ensure_same_as(&before, "before")?;
        }
        neighbour.ensure_in_force(&scene.lab)?;
    }
    Ok(())
}

#[test]
fn in_open_mode_a_knock_opens_what_ufw_drops() -> Result<()> {
    for backend in Backend::ALL.into_iter().filter(|backend| backend.in_iptables) {
        let (mut scene, room) = prepared(Variant::Nft)?;
        let neighbour = UFW(&room, Ssh::Unspoken)?;
        neighbour.ensure_in_force(&scene.lab)?;
        look(&mut scene.server, backend, ("open", "drop"))?;
        scene.server.start()?;
        scene.ensure_shut()?;
        for family in Family::BOTH {
            scene.ensure_owner_gets_in(family)?;
            scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        }
    }
    Ok(())
}
