//! The sandbox that the units make: what each process may do, and that all of the gate works in it.

use super::{CONFIG, Installation, UNIT};
use anyhow::{Context, Result, ensure};
use spa_tests::{Family, Listener, PortState, SSH_PORT, ensure_locked, eventually, swappable};
use std::collections::BTreeMap;
use std::fs;
use std::iter;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// `CAP_NET_RAW` of capabilities(7).
const CAPTURES: &str = "0000000000002000";
/// `CAP_NET_ADMIN`, and `CAP_NET_RAW`, by which the legacy variant of iptables reads its rules.
const GUARDS: &str = "0000000000003000";
/// What its unit gives the worker: `CAP_BPF` besides, until the prefilter is loaded.
const BOUND: &str = "0000008000002000";
const NOTHING: &str = "0000000000000000";
/// The processes' units.
const UNITS: [&str; 4] = [UNIT, "spa-gate.service", "spa-helper@.service", "spa-metrics@.service"];
/// What the aim is, by `systemd-analyze security`.
const EXPOSURE: f64 = 1.5;

#[test]
fn the_worker_can_capture_and_its_helper_change_the_firewall_and_no_more() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, worker) = (&installation.machine, installation.pid()?);
    let helper = machine.sh("pgrep --full gate-helper")?;
    // The kernel's filter is loaded before there is a helper.
    for (pid, user, is, bound, inherited) in [
        (worker.as_str(), "spa", CAPTURES, BOUND, NOTHING),
        // What it executes has to get it, too.
        (helper.trim(), "spa-gate", GUARDS, GUARDS, GUARDS),
    ] {
        let uid = machine.sh(&format!("id --user {user}"))?;
        let ids = iter::repeat_n(uid.trim(), 4).collect::<Vec<_>>().join("\t");
        ensure!(uid.trim() != "0");
        let mut threads = 0;
        for thread in machine.sh(&format!("ls /proc/{pid}/task"))?.split_whitespace() {
            let task = format!("/proc/{pid}/task/{thread}");
            let status = match machine.read(&format!("{task}/status")) {
                // A thread that waits for work in vain ends, which was just now.
                Err(_) if !machine.path_of(&task).exists() => continue,
                status => status?,
            };
            let field = |name: &str| {
                let line =
                    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(str::trim).with_context(|| format!("no {name} in {status}"))
            };
            for (name, is) in [
                ("Uid", ids.as_str()),
                ("CapPrm", is),
                ("CapEff", is),
                ("CapBnd", bound),
                ("CapAmb", inherited),
                ("CapInh", inherited),
            ] {
                ensure!(field(name)? == is, "{name} of {}: {status}", field("Name")?);
            }
            ensure!(field("NoNewPrivs")? == "1", "{status}");
            // 2: a filter of system calls.
            ensure!(field("Seccomp")? == "2", "{status}");
            threads += 1;
        }
        ensure!(threads >= 2, "each has several threads, and there are {threads} of {pid}");
    }
    let journal = machine.sh("journalctl --unit spa-server --output cat")?;
    ensure!(journal.contains("ready") && !journal.contains("confined"), "{journal}");
    // With these they have all that they can do.
    let status = machine.sh("spa-server status")?;
    ensure!(status.contains("prefilter     in the kernel\n"), "{status}");
    // The control: systemd itself has more than that.
    let systemd = machine.sh("cat /proc/1/status")?;
    ensure!(!systemd.contains(&format!("CapEff:\t{GUARDS}")), "{systemd}");
    Ok(())
}

/// As on a kernel that has none of it.
#[test]
fn without_landlock_the_daemon_does_its_work_and_says_that_it_is_not_confined() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    machine.drop_in(
        UNIT,
        "[Service]\nSystemCallFilter=~landlock_create_ruleset\nSystemCallErrorNumber=ENOSYS\n",
    )?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    machine
        .await_journal(UNIT, "the worker's files are not confined: this kernel has no Landlock")?;
    Ok(())
}

/// Not every machine's systemd may lift a limit; the capability then does as well.
#[test]
fn the_worker_s_memory_is_locked_and_where_it_may_not_be_that_is_told() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    let smaps = || machine.read(&format!("/proc/{}/smaps", installation.pid()?));
    let told = || Ok::<_, anyhow::Error>(machine.journal(UNIT)?.matches("to a swap").count());
    ensure!(machine.property(UNIT, "LimitMEMLOCK")? == "infinity");
    machine.sh("systemctl start spa-server")?;
    let limits = machine.read(&format!("/proc/{}/limits", installation.pid()?))?;
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory"));
    let is_lifted = limit.context("no limit")?.contains("unlimited");
    ensure!(swappable(&smaps()?).is_empty() == is_lifted, "{limits}");
    let before = told()?;
    ensure!(before == usize::from(!is_lifted), "{}", machine.journal(UNIT)?);

    let limited = "[Service]\nLimitMEMLOCK=8M\n";
    let capable = "CapabilityBoundingSet=CAP_IPC_LOCK\nAmbientCapabilities=CAP_IPC_LOCK\n";
    machine.drop_in(UNIT, &format!("{limited}{capable}"))?;
    machine.sh("systemctl restart spa-server")?;
    installation.open("10m")?;
    ensure_locked(&smaps()?)?;
    ensure!(told()? == before, "{}", machine.journal(UNIT)?);
    // Memory that it asks for later must not be refused then.
    machine.drop_in(UNIT, limited)?;
    machine.sh("systemctl restart spa-server")?;
    ensure!(!swappable(&smaps()?).is_empty(), "the limit is not in force");
    eventually("it is to say so", || Ok((told()? == before + 1).then_some(())))?;
    installation.open("10m")
}

#[test]
fn the_thread_that_reads_knocks_goes_before_others() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, pid) = (&installation.machine, installation.pid()?);
    let mut niceness = BTreeMap::new();
    for thread in machine.sh(&format!("ls /proc/{pid}/task"))?.split_whitespace() {
        // See proc_pid_stat(5): the name may hold anything, and the niceness is the 17th behind it.
        let Ok(stat) = machine.read(&format!("/proc/{pid}/task/{thread}/stat")) else { continue };
        let (name, fields) = stat.rsplit_once(") ").context("stat has no name")?;
        let name = name.split_once('(').context("stat has no name")?.1.to_owned();
        let nice = fields.split_whitespace().nth(16).context("stat is short")?.to_owned();
        niceness.insert(name, nice);
    }
    let limits = machine.read(&format!("/proc/{pid}/limits"))?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max nice priority"));
    let limit = limit.and_then(|line| line.split_whitespace().next()).context("no limit")?;
    // Where systemd itself may not raise a limit (it takes CAP_SYS_RESOURCE), all goes on as before.
    let expected = if limit == "25" { "-5" } else { "0" };
    let of = |name: &str| niceness.get(name).map(String::as_str);
    ensure!(of("spa-server") == Some("0"), "{niceness:?}");
    ensure!(of("capture-any") == Some(expected), "{niceness:?} by a limit of {limit}");
    let asked = machine.sh("systemctl show --property LimitNICE spa-server")?;
    ensure!(asked == "LimitNICE=25\n", "{asked}");
    Ok(())
}

#[test]
fn each_process_can_write_its_own_directories_only() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, worker) = (&installation.machine, installation.pid()?);
    let helper = machine.sh("pgrep --full gate-helper")?;
    for (pid, own, others) in [
        (worker.as_str(), ["/var/lib/spa", "/run/spa"].as_slice(), ["/var/lib/spa-gate", "/run"]),
        (helper.trim(), &["/var/lib/spa-gate"], ["/var/lib/spa", "/run/spa"]),
    ] {
        // Files as the process sees them, through its own mounts, but with the rights of root.
        let touch = |path: &str| machine.run(&format!("touch /proc/{pid}/root{path}"));
        for directory in ["/etc/spa", "/root", "/usr/sbin", "/var/lib"].iter().chain(&others) {
            let touched = touch(&format!("{directory}/written"))?;
            ensure!(touched.said().contains("Read-only file system"), "{touched}");
        }
        for directory in own.iter().chain(&["/tmp"]) {
            touch(&format!("{directory}/written"))?.ok()?;
        }
        ensure!(!machine.path_of("/tmp/written").exists(), "it sees the /tmp of everybody");
        for directory in own {
            ensure!(machine.path_of(&format!("{directory}/written")).exists());
            let metadata = fs::metadata(machine.path_of(directory))?;
            let mode = metadata.permissions().mode() & 0o777;
            // Who tells Prometheus how the daemon is gets to its socket.
            let expected = if directory.starts_with("/run") { 0o711 } else { 0o700 };
            ensure!(mode == expected, "{directory} has mode {mode:o}");
            ensure!(metadata.uid() != 0, "{directory} is root's");
        }
    }
    // What the firewall's tools lock is everybody's.
    machine.run(&format!("touch /proc/{}/root/run/xtables.lock", helper.trim()))?.ok()?;
    Ok(())
}

#[test]
fn the_sandbox_lets_both_variants_of_iptables_and_both_modes_work() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    let config = machine.read(CONFIG)?;
    let legacy = "[gate.tools]\n\
         iptables-restore = \"/usr/sbin/iptables-legacy-restore\"\n\
         ip6tables-restore = \"/usr/sbin/ip6tables-legacy-restore\"\n\
         iptables-save = \"/usr/sbin/iptables-legacy-save\"\n\
         ip6tables-save = \"/usr/sbin/ip6tables-legacy-save\"\n";
    machine.write(CONFIG, &format!("{config}\n{legacy}"))?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    machine.sh("systemctl stop spa-server")?;
    machine.sh("spa-server gate remove")?;
    installation.ensure_sees(lab.other(), PortState::Open)?;

    for tables in ["iptables", "ip6tables"] {
        machine.sh(&format!("{tables} -A INPUT -p tcp --dport {SSH_PORT} -j DROP"))?;
    }
    machine.write(CONFIG, &config.replace("#mode = \"guard\"", "mode = \"open\""))?;
    machine.sh("systemctl start spa-server")?;
    ensure!(machine.status()?.mode == "open");
    installation.ensure_a_knock_opens()
}

#[test]
fn the_sandbox_lets_sessions_be_ended_and_a_flushed_gate_be_put_back() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let sshd = installation.sshd()?;
    installation.open("10m")?;
    let mut session = sshd.session(lab.owner(), Family::V4)?;
    machine.sh("spa-server grants revoke --all")?;
    // The control: that alone ends nothing.
    session.ensure_alive()?;
    let cut = machine.run("spa-server grants revoke laptop --cut")?;
    ensure!(cut.success() && cut.said().contains("1 connection ended"), "{cut}");
    ensure!(session.ensure_alive().is_err(), "the session lives: {}", machine.journal(UNIT)?);

    installation.open("10m")?;
    machine.sh("nft flush ruleset")?;
    eventually("the gate is to be put back", || Ok((machine.status()?.restored > 0).then_some(())))
        .with_context(|| machine.journal(UNIT).unwrap_or_default())?;
    machine.await_journal(UNIT, "event=gate-restored")?;
    installation.ensure_open_for_the_owner_only()
}

#[test]
fn systemd_finds_no_fault_with_the_units_and_little_that_they_may_do() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    for unit in ["spa-helper.socket", "spa-metrics.socket"].into_iter().chain(UNITS) {
        // An instance of its own is what there is of a template.
        let unit = unit.replace("@.", "@1.");
        let verified = machine.run(&format!("systemd-analyze verify {unit}"))?;
        ensure!(verified.success() && verified.said().is_empty(), "{unit}: {verified}");
    }
    // The control: it finds faults where there are some.
    let faulty = "[Service]\nExecStart=/nonexistent\nNoSuch=1\n";
    machine.write("/etc/systemd/system/faulty.service", faulty)?;
    let verified = machine.run("systemd-analyze verify faulty.service")?;
    ensure!(verified.said().contains("NoSuch"), "{verified}");

    for unit in UNITS {
        let security = machine.sh(&format!(
            "systemd-analyze security --offline=yes --no-pager /usr/lib/systemd/system/{unit}"
        ))?;
        let score = security.lines().find(|line| line.contains("Overall exposure level"));
        let score = score.with_context(|| format!("no score in {security}"))?.trim();
        spa_tests::report(score);
        let exposure: Option<f64> =
            score.split_once(": ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        ensure!(exposure.is_some_and(|exposure| exposure <= EXPOSURE), "{score}: {security}");
    }
    Ok(())
}
